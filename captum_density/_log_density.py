"""log p(x | y) or log p(x), up to a constant, at a batch of examples and at displaced copies of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from captum.attr import Attribution
from torch import Tensor

from captum_density._captum import (
    ExpansionTypes,
    TargetType,
    expand_additional_forward_args,
    expand_target,
    format_additional_forward_args,
    format_tensor_into_tuples,
    run_forward,
)
from captum_density._evaluation import (
    DifferentiableNorms,
    differentiable_twice,
    fixed_buffers,
    full_precision,
    load_forward_mode,
    refuse_random_numbers,
    refuse_reentrant_checkpoint,
)
from captum_density._fixed_modules import FixedModules, fixed_modules
from captum_density._validation import check_limit, selected_output, validate_inputs

__all__ = ["LogDensity", "Points", "squared_norm"]

# For each input a tensor (K, N, ...): K copies of the batch, each displaced in its own way.
Points = tuple[Tensor, ...]


class LogDensity:
    """log p(x | y) = f_y(x) + const of a classifier's logits f, or log p(x) = logsumexp_i f_i(x) + const.

    A model with one output is an unnormalised log-density itself. What is measured in a batch of copies is the same as
    one copy at a time: batch norm is fixed and autocast off within `opened`.

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
        if not callable(forward_func) or isinstance(forward_func, Attribution | type):
            raise TypeError(f"forward_func must be a module or a function, but is {type(forward_func).__name__}")
        check_limit(max_examples_per_batch)
        if not isinstance(inputs, Tensor) and not (isinstance(inputs, tuple) and inputs):
            raise TypeError(f"inputs must be a tensor or a non-empty tuple of tensors, but is {type(inputs).__name__}")
        self.is_tuple = isinstance(inputs, tuple)
        self.inputs: tuple[Tensor, ...] = format_tensor_into_tuples(inputs)
        validate_inputs(forward_func, self.inputs)
        self.inputs = tuple(x.detach() for x in self.inputs)
        self.n = len(self.inputs[0])
        self.forward_func = forward_func
        self.target = target
        self.args = format_additional_forward_args(additional_forward_args)
        self._limit, self._marginal = max_examples_per_batch, marginal
        self._compared = self._lacks_forward_mode = False
        self._modules: FixedModules | None = None
        # With several processes, zero with a graph to every parameter that the last gradient's values depend on.
        self.anchor: Tensor | None = None

    def moved(self, x: Tensor, target: Tensor | None) -> LogDensity:
        """The same density at other examples, as many, and for other classes; opened as long as this one is."""
        other = copy.copy(self)
        other.inputs, other.target = (x.detach(),), target
        return other

    @contextmanager
    def opened(self, *, twice: bool = False, compared: bool = False) -> Iterator[LogDensity]:
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
            yield self

    def points(self) -> Points:
        """The examples, as one copy: new tensors, which a model may write to."""
        return tuple(x.clone()[None] for x in self.inputs)

    def displaced(self, by: Points) -> Points:
        """Copies of the examples, displaced."""
        return tuple(x + v for x, v in zip(self.inputs, by, strict=True))

    def values(self, points: Points) -> Tensor:
        """The log-density (K, N) at the points."""
        return torch.cat([self._run(chunk) for chunk in self._chunks(points)])

    def scores(self, points: Points, *, create_graph: bool = False) -> tuple[Tensor, Points]:
        """The log-density (K, N) and its gradients by the points.

        Raises:
            ValueError: No gradient reaches any input.
        """
        values, gradients = [], []
        with torch.enable_grad():
            for chunk in self._chunks(points):
                leaves = tuple(p.detach().clone().requires_grad_() for p in chunk)
                found = self._run(tuple(leaf.clone() for leaf in leaves))  # which a model may write to
                gradients.append(self._gradient(found, leaves, create_graph))
                values.append(found if create_graph else found.detach())
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
        found = []
        for chunk in self._chunks(directions):
            products = None
            if not create_graph and not self._lacks_forward_mode:
                try:
                    products = self._forward_over_reverse(chunk)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError):  # what else is wrong shows again below
                    self._lacks_forward_mode = True
            found.append(_inner(products or self._reverse_over_reverse(chunk, create_graph), chunk))
        return torch.cat(found)

    def _forward_over_reverse(self, directions: Points) -> Points:
        load_forward_mode()
        with torch.enable_grad(), forward_mode.dual_level():
            expanded = (x.expand_as(v).clone().requires_grad_() for x, v in zip(self.inputs, directions, strict=True))
            duals = tuple(forward_mode.make_dual(p, v) for p, v in zip(expanded, directions, strict=True))
            gradients = _gradient(self._run(tuple(dual.clone() for dual in duals)), duals, False)
            tangents = [forward_mode.unpack_dual(g).tangent for g in gradients]
        return tuple(
            torch.zeros_like(v) if t is None else t.detach() for t, v in zip(tangents, directions, strict=True)
        )

    def _reverse_over_reverse(self, directions: Points, create_graph: bool) -> Points:
        with torch.enable_grad(), DifferentiableNorms() if create_graph else nullcontext():
            leaves = tuple(
                x.expand_as(v).clone().requires_grad_() for x, v in zip(self.inputs, directions, strict=True)
            )
            gradients = self._gradient(self._run(tuple(leaf.clone() for leaf in leaves)), leaves, True)
            slope = _inner(gradients, directions).sum()
            if not slope.requires_grad:
                return tuple(map(torch.zeros_like, directions))
            return torch.autograd.grad(
                slope, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )

    def _gradient(self, values: Tensor, points: Points, create_graph: bool) -> Points:
        if create_graph and torch.distributed.is_available() and torch.distributed.is_initialized():
            self.anchor = values.flatten()[:0].sum()
        return _gradient(values, points, create_graph)

    @property
    def copies_at_once(self) -> int | None:
        """How many copies of the examples one run takes; None for all."""
        return None if self._limit is None else max(1, self._limit // self.n)

    def _chunks(self, points: Points) -> Iterator[Points]:
        copies = len(points[0])
        size = self.copies_at_once or copies
        return (tuple(p[start : start + size] for p in points) for start in range(0, copies, size))

    def _run(self, points: Points) -> Tensor:
        copies = len(points[0])
        flat = tuple(p.flatten(0, 1) for p in points)
        target = expand_target(self.target, copies, expansion_type=ExpansionTypes.repeat)
        args = expand_additional_forward_args(self.args, copies, expansion_type=ExpansionTypes.repeat)
        with refuse_random_numbers(flat[0]) if self._compared else nullcontext():
            output = run_forward(self.forward_func, flat, None, args)
        if target is None and self._marginal and isinstance(output, Tensor) and output.ndim > 1:
            if output[:1].numel() > output.shape[1]:
                raise ValueError(
                    f"log p(x) is the logsumexp of logits (N, C), but the model returned {tuple(output.shape)}; name a "
                    "target, or pass a function that returns (N, C)"
                )
            output = output.to(_at_least_single(output)).flatten(1).logsumexp(1)
        selected = selected_output(output, target, copies * self.n)
        if selected.requires_grad and self._modules is not None and self._modules.switched:
            refuse_reentrant_checkpoint(selected)
        return selected.to(_at_least_single(selected)).reshape(copies, self.n)


def squared_norm(gradients: Points) -> Tensor:
    """(K, N) squared Euclidean norm over all inputs."""
    return _inner(gradients, gradients)


def _inner(a: Points, b: Points) -> Tensor:
    products = [(x * y).reshape(*x.shape[:2], -1) for x, y in zip(a, b, strict=True)]
    return torch.stack([p.sum(2, dtype=_at_least_single(p)) for p in products]).sum(0)


def _at_least_single(t: Tensor) -> torch.dtype:
    return t.dtype if t.dtype in (torch.float32, torch.float64) else torch.float32


def _gradient(values: Tensor, points: Points, create_graph: bool) -> Points:
    gradients: tuple[Tensor | None, ...] = (None,)
    if values.requires_grad:
        gradients = torch.autograd.grad(values.sum(), points, create_graph=create_graph, allow_unused=True)
    if all(g is None for g in gradients):
        raise ValueError(
            "the model's output has no gradient by its inputs; does it detach them, run under torch.no_grad(), or "
            "return classes instead of logits?"
        )
    return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, points, strict=True))
