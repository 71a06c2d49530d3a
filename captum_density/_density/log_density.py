"""log p(x | y) or log p(x), up to a constant, at a batch of examples and at displaced copies of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from captum_density._model.batch import Rows, rows_of
from captum_density._model.captum import TargetType, format_tensor_into_tuples
from captum_density._model.copies import ModelOnCopies, Points, gradients_of
from captum_density._model.evaluation import DifferentiableNorms, load_forward_mode
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import (
    received,
    refuse_labels_of_one_output,
    selected_output,
    warn_of_probabilities,
)

__all__ = ["LogDensity", "squared_norm"]

# Of the largest logit: what rounding in batches of another size stays far below, and batch norm in another mode above.
_SAME = 1e-3


class _ForwardPass(NamedTuple):
    """What the model returned in the caller's own forward pass, of which inputs, and which rows of both are meant."""

    logits: Tensor
    inputs: tuple[Tensor, ...]
    rows: Rows


class LogDensity(ModelOnCopies):
    """log p(x | y) = f_y(x) + const of a classifier's logits f, or log p(x) = logsumexp_i f_i(x) + const.

    A model with one output is an unnormalised log-density itself. What is measured in a batch of copies is the same as
    one copy at a time: batch norm is fixed and autocast off within `evaluation`.

    Args:
        forward_func: As Captum's.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        target: y, as Captum's; None for log p(x).
        additional_forward_args: As Captum's.
        max_examples_per_batch: As Captum's: of all copies, how many examples run at once; at least one copy does.
        marginal: Whether no target means log p(x); else the model has to have one output then.
        logits: What the model returned for the inputs, with its graph, so that it need not run on them again.

    Raises:
        TypeError: A model that cannot be called; inputs that are not floating-point; logits that are no tensor.
        ValueError: Inputs that are empty, unequally many, NaN or infinite, or on another device than the model; logits
            of other examples, of less precision than the inputs, or without a graph where one is needed.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Any,
        target: TargetType,
        additional_forward_args: object,
        *,
        max_examples_per_batch: int | None = None,
        marginal: bool = True,
        logits: Tensor | None = None,
    ) -> None:
        super().__init__(
            forward_func, inputs, target, additional_forward_args, max_examples_per_batch=max_examples_per_batch
        )
        if logits is not None:
            _check_logits(logits, self.inputs)
        self._pass = None if logits is None else _ForwardPass(logits, format_tensor_into_tuples(inputs), slice(None))
        self._is_pass_checked = False
        self._marginal, self._lacks_forward_mode = marginal, False
        # Whether outputs that look like probabilities are warned of, once.
        self.warns = False
        # Whether one output, which knows no classes, is refused with labels.
        self.refuses_labels = False

    def moved(self, x: Tensor, target: Tensor | None) -> LogDensity:
        """The same density at other examples, as many, and for other classes; evaluated as long as this one is."""
        if self._pass is not None and not self._is_pass_checked:
            with torch.no_grad():
                self._run_and_check(tuple(x[:0] for x in self.inputs), torch.arange(0, device=self.device))
        other = copy.copy(self)
        other.inputs, other.target = (x.detach(),), target
        other._pass, other.warns = None, False
        return other

    def at(self, rows: Rows) -> LogDensity:
        """The same density at some of the examples."""
        other = super().at(rows)
        other._pass = None if self._pass is None else self._pass._replace(rows=rows)
        return other

    @property
    def clean_values(self) -> Tensor | None:
        """The log-density (1, N) at the examples, where the model's logits are there already."""
        if self._pass is None:
            return None
        return self._of_output(rows_of(self._pass.logits, self._pass.rows), torch.arange(self.n, device=self.device))[
            None
        ]

    def clean_scores(self, *, create_graph: bool = False) -> tuple[Tensor, Points]:
        """The log-density (1, N) at the examples and its gradients by them, (1, N, ...) each.

        Raises:
            ValueError: No gradient reaches any input.
        """
        if self._pass is None:
            return self.scores(self.points(), create_graph=create_graph)
        inputs = self._pass.inputs
        if not all(x.requires_grad for x in inputs):
            raise ValueError(
                "logits have no gradient by the inputs, which did not require one; call inputs.requires_grad_() before "
                "the model, or leave logits out"
            )
        with torch.enable_grad():
            values = self.clean_values
            assert values is not None
            # With a vector the graph is kept, which is the caller's.
            gradients = gradients_of(values, inputs, create_graph, torch.ones_like(values))
        if create_graph:
            self._keep_anchor(values)
        return values if create_graph else values.detach(), tuple(rows_of(g, self._pass.rows)[None] for g in gradients)

    def values(self, points: Points) -> Tensor:
        """The log-density (K, N) at the points."""
        return torch.cat([self._values(chunk) for chunk in self._chunks(points)])

    def scores(self, points: Points, *, create_graph: bool = False) -> tuple[Tensor, Points]:
        """The log-density (K, N) and its gradients by the points.

        Raises:
            ValueError: No gradient reaches any input.
        """
        values, gradients = [], []
        with torch.enable_grad():
            for chunk in self._chunks(points):
                leaves = tuple(p.detach().clone().requires_grad_() for p in chunk)
                value = self._values(tuple(leaf.clone() for leaf in leaves))  # which a model may write to
                gradients.append(self._gradients(value, leaves, create_graph))
                values.append(value if create_graph else value.detach())
        return torch.cat(values), tuple(torch.cat(parts) for parts in zip(*gradients, strict=True))

    def require_gradient(self) -> None:
        """Refuse a model that does not depend on its inputs.

        Raises:
            ValueError: No gradient reaches any input.
        """
        self.scores(self.points())

    def curvatures(self, directions: Points, *, create_graph: bool = False) -> Tensor:
        """v'Hv (K, N) of the Hessian H for each direction v, by forward mode over reverse mode.

        By reverse mode twice where an operation has no forward mode, and with `create_graph`: the forward-mode formulas
        of logsumexp, softmax and others write in place, and have no further derivative.
        """
        curvatures = []
        for chunk in self._chunks(directions):
            products = None
            if not create_graph and not self._lacks_forward_mode:
                try:
                    products = self._forward_over_reverse(chunk)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError):  # what else is wrong shows again below
                    self._lacks_forward_mode = True
            curvatures.append(_inner(products or self._reverse_over_reverse(chunk, create_graph), chunk))
        return torch.cat(curvatures)

    def _forward_over_reverse(self, directions: Points) -> Points:
        load_forward_mode()
        with torch.enable_grad(), forward_mode.dual_level():
            expanded = (x.expand_as(v).clone().requires_grad_() for x, v in zip(self.inputs, directions, strict=True))
            duals = tuple(forward_mode.make_dual(p, v) for p, v in zip(expanded, directions, strict=True))
            gradients = gradients_of(self._values(tuple(dual.clone() for dual in duals)), duals, False)
            tangents = [forward_mode.unpack_dual(g).tangent for g in gradients]
        return tuple(
            torch.zeros_like(v) if t is None else t.detach() for t, v in zip(tangents, directions, strict=True)
        )

    def _reverse_over_reverse(self, directions: Points, create_graph: bool) -> Points:
        with torch.enable_grad(), DifferentiableNorms() if create_graph else nullcontext():
            leaves = tuple(
                x.expand_as(v).clone().requires_grad_() for x, v in zip(self.inputs, directions, strict=True)
            )
            gradients = self._gradients(self._values(tuple(leaf.clone() for leaf in leaves)), leaves, True)
            slope = _inner(gradients, directions).sum()
            if not slope.requires_grad:
                return tuple(map(torch.zeros_like, directions))
            return torch.autograd.grad(
                slope, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )

    def _gradients(self, values: Tensor, points: Points, create_graph: bool) -> Points:
        if create_graph:
            self._keep_anchor(values)
        return gradients_of(values, points, create_graph)

    def _values(self, points: Points) -> Tensor:
        rows, flat = self._flat(points)
        if self._pass is None or self._is_pass_checked:
            output = self.run(flat, rows)
        else:
            output = self._run_and_check(flat, rows)
        return self._of_output(output, rows).reshape(points[0].shape[:2])

    def _run_and_check(self, flat: tuple[Tensor, ...], rows: Tensor) -> Any:
        """As `run`, with the first example as one more row, which must give the logits that the caller had for it.

        Raises:
            ValueError: It does not.
        """
        assert self._pass is not None
        extended = tuple(torch.cat([f, x[:1]]) for f, x in zip(flat, self.inputs, strict=True))
        output = self.run(extended, torch.cat([rows, rows.new_zeros(1)]))
        if not isinstance(output, Tensor) or len(output) != len(rows) + 1:
            return output  # which is refused below
        with torch.no_grad():
            now, before = output[-1].detach(), rows_of(self._pass.logits, self._pass.rows)[0]
            is_same = now.shape == before.shape and bool((now - before).abs().max() <= _SAME * before.abs().max())
        if not is_same:
            raise ValueError(
                "logits are not what the model returns now for the first example. Batch norm in training mode "
                "normalises by the batch, and this loss evaluates the model with its running statistics; dropout "
                "differs, too: call model.eval() before both, or leave logits out"
            )
        self._is_pass_checked = True
        return output[:-1]

    def _of_output(self, output: Any, rows: Tensor) -> Tensor:
        """The log-density (R,), of what the model returned for versions of examples."""
        target = self.target_of(rows)
        if self.warns:
            self.warns = False
            warn_of_probabilities(output, "whose logarithms alone are log-densities up to a constant")
        if self.refuses_labels:
            refuse_labels_of_one_output(output, self.target, len(rows))
        if target is None and self._marginal and isinstance(output, Tensor) and output.ndim > 1:
            if output[:1].numel() > output.shape[1]:
                raise ValueError(
                    f"log p(x) is the logsumexp of logits (N, C), but the model returned {tuple(output.shape)}; name a "
                    "target, or pass a function that returns (N, C)"
                )
            output = output.to(accumulation_dtype(output)).flatten(1).logsumexp(1)
        selected = selected_output(output, target, len(rows), self.span)
        self._refuse_checkpoint(selected)
        return selected.to(accumulation_dtype(selected))


def _check_logits(logits: Any, inputs: tuple[Tensor, ...]) -> None:
    n = len(inputs[0])
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be what the model returned for the inputs, a tensor, but are {received(logits)}")
    if logits.ndim == 0 or len(logits) != n or logits.device != inputs[0].device:
        raise ValueError(
            f"logits must be what the model returned for the inputs, ({n}, ...) on {inputs[0].device}, but are "
            f"{tuple(logits.shape)} on {logits.device}"
        )
    if torch.finfo(logits.dtype).eps > torch.finfo(inputs[0].dtype).eps:
        raise ValueError(
            f"logits are {logits.dtype} of inputs of {inputs[0].dtype}: rounding would drown what is measured; run the "
            "model outside autocast, or leave logits out"
        )
    if torch.is_grad_enabled() and not logits.requires_grad:
        raise ValueError("logits carry no graph, so that nothing would be trained through them; do not detach them")


def squared_norm(gradients: Points) -> Tensor:
    """(K, N) squared Euclidean norm over all inputs."""
    return _inner(gradients, gradients)


def _inner(a: Points, b: Points) -> Tensor:
    wide = ((x.to(accumulation_dtype(x)), y.to(accumulation_dtype(y))) for x, y in zip(a, b, strict=True))
    return torch.stack([(x * y).reshape(*x.shape[:2], -1).sum(2) for x, y in wide]).sum(0)
