"""A model at displaced copies of a batch of examples: its outputs there, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType
from captum_density._model.evaluation import differentiable_twice, fixed_buffers, refuse_reentrant_checkpoint
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import examples_first

__all__ = ["ModelOnCopies", "Points", "gradients_of"]

# For each input a tensor (K, N, ...): K copies of the batch, each displaced in its own way.
Points = tuple[Tensor, ...]


class ModelOnCopies(ModelOnBatch):
    """A model on displaced copies of its batch, of which the inputs are detached.

    What is measured in a batch of copies is the same as one copy at a time: batch norm is fixed and autocast off within
    `evaluation`. Of all copies, `max_examples_per_batch` examples run at once; at least one copy does.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Any,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(
            forward_func, inputs, target, additional_forward_args, max_examples_per_batch=max_examples_per_batch
        )
        self.inputs = tuple(x.detach() for x in self.inputs)
        # With several processes, zero with a graph to every parameter that the last values depend on.
        self.anchor: Tensor | None = None

    @contextmanager
    def evaluation(self, *, comparison: bool = False, second_derivatives: bool = False) -> Iterator[None]:
        """As `ModelOnBatch.evaluation`, and DistributedDataParallel sends no buffers.

        Args:
            comparison: Whether values are compared, so that a model that draws random numbers is refused.
            second_derivatives: Whether second derivatives are asked for, of which compiled code has none.

        Raises:
            ValueError: As there; DistributedDataParallel with a static graph.
        """
        second = differentiable_twice(self.forward_func) if second_derivatives else nullcontext()
        with super().evaluation(comparison=comparison), fixed_buffers(self.forward_func), second:
            yield

    def points(self) -> Points:
        """The examples, as one copy: new tensors, which a model may write to."""
        return tuple(x.clone()[None] for x in self.inputs)

    def displaced(self, by: Points) -> Points:
        """Copies of the examples, displaced."""
        return tuple(x + v for x, v in zip(self.inputs, by, strict=True))

    def outputs(self, points: Points) -> Tensor:
        """All outputs (K, N, ...) at the points, in single precision at least."""
        return torch.cat([self._outputs(chunk) for chunk in self._chunks(points)])

    def jacobian_products(
        self, vectors_of: Callable[[Tensor], Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, Points]:
        """The outputs (N, ...), and J'v for each vector v: a backward pass each, after one run.

        Args:
            vectors_of: A function of the outputs, detached, which returns the vectors (K, N, ...).
            create_graph: As torch.autograd.grad's.

        Returns:
            The outputs, and for each input a tensor (K, N, ...).

        Raises:
            ValueError: No gradient reaches any input.
        """
        outputs, products = self.each_jacobian_product(vectors_of, create_graph=create_graph)
        return outputs, tuple(torch.stack(parts) for parts in zip(*products, strict=True))

    def each_jacobian_product(
        self, vectors_of: Callable[[Tensor], Iterable[Tensor]], *, create_graph: bool = False
    ) -> tuple[Tensor, Iterator[Points]]:
        """As `jacobian_products`, one vector after the other, so that none has to be kept; (N, ...) for each input."""
        with torch.enable_grad():
            leaves = tuple(x.clone().requires_grad_() for x in self.inputs)
            (outputs,) = self._outputs(tuple(leaf.clone()[None] for leaf in leaves))  # which a model may write to
            vectors = vectors_of(outputs.detach())
        return outputs, (gradients_of(outputs, leaves, create_graph, v) for v in vectors)

    def anchored(self, loss: Tensor) -> Tensor:
        """The loss, with zeros as the gradient of what it does not depend on, such as the last bias.

        With none at all, DistributedDataParallel would wait for it and synchronise nothing.
        """
        return loss if self.anchor is None else loss + self.anchor

    def _keep_anchor(self, values: Tensor) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.anchor = values.flatten()[:0].sum()

    @property
    def copies_at_once(self) -> int | None:
        """How many copies of the examples one run takes; None for all."""
        return None if self.limit is None else max(1, self.limit // self.n)

    def _chunks(self, points: Points) -> Iterator[Points]:
        copies = len(points[0])
        size = self.copies_at_once or copies
        return (tuple(p[start : start + size] for p in points) for start in range(0, copies, size))

    def _outputs(self, points: Points) -> Tensor:
        rows, flat = self._flat(points)
        output = examples_first(self.run(flat, rows), len(rows))
        self._refuse_checkpoint(output)
        if torch.is_grad_enabled():
            self._keep_anchor(output)
        return output.to(accumulation_dtype(output)).reshape(*points[0].shape[:2], *output.shape[1:])

    def _flat(self, points: Points) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of K copies, which example each row is of, (K * N,), and the rows."""
        rows = torch.arange(self.n, device=self.device).repeat(len(points[0]))
        return rows, tuple(p.flatten(0, 1) for p in points)

    def _refuse_checkpoint(self, output: Tensor) -> None:
        if output.requires_grad and self._modules is not None and self._modules.switched:
            refuse_reentrant_checkpoint(output)


def gradients_of(values: Tensor, points: Points, create_graph: bool, vector: Tensor | None = None) -> Points:
    """The gradients of the sum of values, or of their product with a vector; then the graph is kept for another.

    Raises:
        ValueError: No gradient reaches any input.
    """
    gradients: tuple[Tensor | None, ...] = (None,)
    if values.requires_grad:
        output, retain_graph = (values.sum(), create_graph) if vector is None else (values, True)
        gradients = torch.autograd.grad(output, points, vector, retain_graph, create_graph, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError(
            "the model's output has no gradient by its inputs; does it detach them, run under torch.no_grad(), or "
            "return classes instead of logits?"
        )
    return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, points, strict=True))
