"""log p(x | y) or log p(x), up to a constant, at a batch of examples and at displaced copies of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from captum_density._model.captum import TargetType
from captum_density._model.copies import ModelOnCopies, Points, gradients_of
from captum_density._model.evaluation import DifferentiableNorms, load_forward_mode
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import refuse_labels_of_one_output, selected_output, warn_of_probabilities

__all__ = ["LogDensity", "squared_norm"]


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

    Raises:
        TypeError: A model that cannot be called; inputs that are not floating-point.
        ValueError: Inputs that are empty, unequally many, NaN or infinite, or on another device than the model.
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
    ) -> None:
        super().__init__(
            forward_func, inputs, target, additional_forward_args, max_examples_per_batch=max_examples_per_batch
        )
        self._marginal, self._lacks_forward_mode = marginal, False
        # Whether outputs that look like probabilities are warned of, once.
        self.warns = False
        # Whether one output, which knows no classes, is refused with labels.
        self.refuses_labels = False

    def moved(self, x: Tensor, target: Tensor | None) -> LogDensity:
        """The same density at other examples, as many, and for other classes; evaluated as long as this one is."""
        other = copy.copy(self)
        other.inputs, other.target = (x.detach(),), target
        other.warns = False
        return other

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
        target = self.target_of(rows)
        output = self.run(flat, rows)
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
        selected = selected_output(output, target, len(rows))
        self._refuse_checkpoint(selected)
        return selected.to(accumulation_dtype(selected)).reshape(points[0].shape[:2])


def squared_norm(gradients: Points) -> Tensor:
    """(K, N) squared Euclidean norm over all inputs."""
    return _inner(gradients, gradients)


def _inner(a: Points, b: Points) -> Tensor:
    wide = ((x.to(accumulation_dtype(x)), y.to(accumulation_dtype(y))) for x, y in zip(a, b, strict=True))
    return torch.stack([(x * y).reshape(*x.shape[:2], -1).sum(2) for x, y in wide]).sum(0)
