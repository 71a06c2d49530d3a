"""All outputs of a model at a batch of examples and at displaced copies of it, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from captum_density._model.captum import (
    ExpansionTypes,
    expand_additional_forward_args,
    format_additional_forward_args,
    format_tensor_into_tuples,
    run_forward,
)
from captum_density._model.evaluation import (
    differentiable_twice,
    fixed_buffers,
    full_precision,
    refuse_random_numbers,
    refuse_reentrant_checkpoint,
)
from captum_density._model.fixed_modules import FixedModules, fixed_modules
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_limit, check_model, examples_first, validate_inputs

__all__ = ["Outputs", "Points", "gradients_of"]

# For each input a tensor (K, N, ...): K copies of the batch, each displaced in its own way.
Points = tuple[Tensor, ...]


class Outputs:
    """What a model makes of a batch.

    What is measured in a batch of copies is the same as one copy at a time: batch norm is fixed and autocast off within
    `opened`.

    Args:
        forward_func: As Captum's.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        additional_forward_args: As Captum's.
        max_examples_per_batch: As Captum's: of all copies, how many examples run at once; at least one copy does.

    Raises:
        TypeError: A model that cannot be called; inputs that are not floating-point.
        ValueError: Inputs that are empty, unequally many, NaN or infinite, or on another device than the model.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Any,
        additional_forward_args: object,
        *,
        max_examples_per_batch: int | None = None,
    ) -> None:
        check_model(forward_func)
        check_limit(max_examples_per_batch)
        if not isinstance(inputs, Tensor) and not (isinstance(inputs, tuple) and inputs):
            raise TypeError(f"inputs must be a tensor or a non-empty tuple of tensors, but is {type(inputs).__name__}")
        self.is_tuple = isinstance(inputs, tuple)
        self.inputs: tuple[Tensor, ...] = format_tensor_into_tuples(inputs)
        validate_inputs(forward_func, self.inputs)
        self.inputs = tuple(x.detach() for x in self.inputs)
        self.n = len(self.inputs[0])
        self.forward_func = forward_func
        self.args = format_additional_forward_args(additional_forward_args)
        self._limit, self._compared = max_examples_per_batch, False
        self._modules: FixedModules | None = None
        # With several processes, zero with a graph to every parameter that the last values depend on.
        self.anchor: Tensor | None = None

    @contextmanager
    def opened(self, *, twice: bool = False, compared: bool = False) -> Iterator[None]:
        """Within, it can be evaluated.

        Args:
            twice: Whether second derivatives are asked for, of which compiled code has none.
            compared: Whether values are compared, so that a model that draws random numbers is refused.
        """
        self._compared = compared
        with ExitStack() as stack:
            gradients = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))  # leaving inference mode enables them
            stack.enter_context(full_precision(self.inputs[0].device))
            self._modules = stack.enter_context(fixed_modules(self.forward_func, compared=compared))
            stack.enter_context(fixed_buffers(self.forward_func))
            if twice:
                stack.enter_context(differentiable_twice(self.forward_func))
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
        with torch.enable_grad():
            leaves = tuple(x.clone().requires_grad_() for x in self.inputs)
            (outputs,) = self._outputs(tuple(leaf.clone()[None] for leaf in leaves))  # which a model may write to
            rows = [gradients_of(outputs, leaves, create_graph, v) for v in vectors_of(outputs.detach())]
        return outputs, tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

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
        return None if self._limit is None else max(1, self._limit // self.n)

    def _chunks(self, points: Points) -> Iterator[Points]:
        copies = len(points[0])
        size = self.copies_at_once or copies
        return (tuple(p[start : start + size] for p in points) for start in range(0, copies, size))

    def _outputs(self, points: Points) -> Tensor:
        copies = len(points[0])
        output = examples_first(self._run(points), copies * self.n)
        if output.requires_grad and self._modules is not None and self._modules.switched:
            refuse_reentrant_checkpoint(output)
        if torch.is_grad_enabled():
            self._keep_anchor(output)
        return output.to(accumulation_dtype(output)).reshape(copies, self.n, *output.shape[1:])

    def _run(self, points: Points) -> Any:
        """What the model returns for K copies, (K * N, ...)."""
        flat = tuple(p.flatten(0, 1) for p in points)
        args = expand_additional_forward_args(self.args, len(points[0]), expansion_type=ExpansionTypes.repeat)
        with refuse_random_numbers(flat[0]) if self._compared else nullcontext():
            return run_forward(self.forward_func, flat, None, args)


def gradients_of(values: Tensor, points: Points, create_graph: bool, vector: Tensor | None = None) -> Points:
    """The gradients of the sum of values, or of their product with a vector; then the graph is kept for another.

    Raises:
        ValueError: No gradient reaches any input.
    """
    found: tuple[Tensor | None, ...] = (None,)
    if values.requires_grad:
        given, graph = (values.sum(), create_graph) if vector is None else (values, True)
        found = torch.autograd.grad(given, points, vector, graph, create_graph, allow_unused=True)
    if all(g is None for g in found):
        raise ValueError(
            "the model's output has no gradient by its inputs; does it detach them, run under torch.no_grad(), or "
            "return classes instead of logits?"
        )
    return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, points, strict=True))
