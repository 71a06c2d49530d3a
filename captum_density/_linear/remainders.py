"""The remainder of one operation: what is left of its output after its linear part at the point of evaluation.

An operation y = op(u_1, ..., u_k) of activations is there equal to::

    y = sum_j J_j u_j + r,      r = y - sum_j J_j u_j,      J_j = d op / d u_j.

r is always `y - jvp(op, u, u)`, which is `DERIVATIVE`. Euler's theorem and plain affinity give it for less: an
operation that is positively homogeneous of degree p has sum_j J_j u_j = p y, so r = (1 - p) y; an affine one has
r = op(0). The other ways to r are such shortcuts.

The functions below are what the table of operations holds in its column: each looks at a call and says which way is
the cheapest exact one.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.jacobian import finite, jacobian_products, transposed_product
from captum_density._model.calls import Call, is_continuous, tensors_in

__all__ = [
    "DERIVATIVE",
    "PARTS",
    "SYMMETRIC",
    "ZERO",
    "Remainder",
    "affine",
    "any_call",
    "autograd",
    "batch_norm",
    "extremum",
    "homogeneous",
    "linear",
    "multilinear",
    "padding",
    "parts",
    "power",
    "quotient",
    "shift",
    "symmetric",
]

# -- ways to r


class Remainder:
    """A way to r.

    Attributes:
        evaluates: Whether the call may be run a second time, so that what it overwrites must be kept.
        related: Whether one of several outputs may be computed from another, as an LSTM's h is from its c.
        later: Whether r may as well be computed in the backward pass, so that it takes no memory until then: whether it
            is made of y and of activations that autograd keeps for that pass, and lets nobody overwrite.
        is_constant: Whether r is what the operation adds to a linear map of its activations.
    """

    evaluates: ClassVar[bool] = False
    is_constant: ClassVar[bool] = False
    related: ClassVar[bool] = False
    later: bool = False

    def on_saved(self, call: Call, y: Tensor) -> Call:
        """A call that overwrote its one argument with y, on what autograd keeps of that; where it `evaluates` later."""
        raise NotImplementedError

    def waits(self, y: Tensor) -> bool:
        """Whether r of the output y may be computed in the backward pass."""
        return self.later

    def prepare(self, call: Call) -> None:
        """Note of a call that is about to run what cannot be found out afterwards."""

    def constant(self, call: Call, y: Tensor) -> bool | Tensor:
        """What of the r of the output y is a constant that the operation adds: all of it, nothing, or this tensor.

        The tensor has y's number of dimensions and broadcasts to it.
        """
        return self.is_constant

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        """r for each output of a call: a tensor that broadcasts to the output, or None for zero.

        Args:
            call: The call; where it `evaluates`, as `Call.frozen` recorded it.
            outputs: The tensors it returned or wrote, as they are now.
            create_graph: Whether r shall carry its own graph; gradients are to be enabled if so, else disabled.

        Raises:
            NotImplementedError: If the operation has neither a forward-mode nor a second reverse-mode derivative.
        """
        raise NotImplementedError


class _Zero(Remainder):
    """Of what is positively homogeneous of degree 1."""

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        return [None] * len(outputs)


@dataclass(frozen=True)
class _Degree(Remainder):
    """(1 - p) y, of what is positively homogeneous of degree p."""

    degree: float
    later: bool = False

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        return [(1 - self.degree) * y for y in outputs]


class _BatchNormBias(Remainder):
    """beta - gamma * mean / sqrt(variance + eps), of a batch norm on stored statistics."""

    is_constant = True

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
        gamma, beta, eps = call.argument(3, "weight"), call.argument(4, "bias"), call.argument(7, "eps")
        shift = -mean * torch.rsqrt(variance + (1e-5 if eps is None else eps))
        shift = shift if gamma is None else shift * gamma
        shift = shift if beta is None else shift + beta
        return [shift.view([1, -1] + [1] * (outputs[0].ndim - 2))]


class _AtZero(Remainder):
    """op(0), of what is affine in all its activations together."""

    evaluates = True
    is_constant = True

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        # A masked score is -inf and has gradient zero: it adds nothing to f, where -inf * 0 would be NaN.
        return [finite(y) if is_continuous(y) else None for y in call.evaluate(torch.zeros_like)]


class _Constant(Remainder):
    """c of u + c, times what `alpha` and a difference make of it."""

    evaluates = True
    is_constant = True

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        (y,), (first, second) = outputs, (call.argument(i, name) for i, name in enumerate(("input", "other")))
        alpha = call.kwargs.get("alpha", 1)
        weights = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[call.name]
        of_second = call.is_activation(first)
        c, weight = second if of_second else first, weights[of_second]
        c = finite(c.to(y) if isinstance(c, Tensor) else torch.as_tensor(c, dtype=y.dtype, device=y.device))
        c = c if weight == 1 else weight * c
        return [c if c.ndim == y.ndim else c.reshape([1] * (y.ndim - c.ndim) + [*c.shape])]


class _Derivative(Remainder):
    """y - sum_j J_j u_j, of whatever has a derivative."""

    evaluates = True
    related = True

    def prepare(self, call: Call) -> None:
        call.record_rng()

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        return [y - product for y, product in zip(outputs, jacobian_products(call, create_graph), strict=True)]


class _Symmetric(Remainder):
    """y - J^T u, of what has a symmetric Jacobian: one step of the backward pass that is there anyway."""

    evaluates = True

    def prepare(self, call: Call) -> None:
        if call.mutated:
            call.record_edge()

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        products = transposed_product(call, outputs, create_graph)
        if products is None:
            products = jacobian_products(call, create_graph)
        elif not create_graph:
            return [product.neg_().add_(y) for y, product in zip(outputs, products, strict=True)]
        return [y - product for y, product in zip(outputs, products, strict=True)]


DERIVATIVE = _Derivative()
PARTS = Remainder()  # no way of its own: each of the operations that it is made of has one
ZERO = _Zero()
SYMMETRIC = _Symmetric()
_AT_ZERO, _BATCH_NORM, _CONSTANT = _AtZero(), _BatchNormBias(), _Constant()


def _of_degree(degree: float, later: bool = False) -> Remainder:
    return ZERO if degree == 1 else _Degree(degree, later)


# -- what the table holds


def any_call(call: Call) -> Remainder:
    """An operation of which nothing is known."""
    return DERIVATIVE


def parts(call: Call) -> Remainder:
    """An operation that is made of others, in Python code of torch's."""
    return PARTS


def linear(call: Call) -> Remainder:
    """Homogeneous of degree 1 in the one activation it reads; whatever else it reads scales, selects or shapes."""
    return ZERO if len(call.activations) == 1 else DERIVATIVE


def affine(call: Call) -> Remainder:
    """Affine in all the tensors it reads together."""
    return _AT_ZERO if call.has_constants() else ZERO


def shift(call: Call) -> Remainder:
    """A sum or a difference of two; of three positions, the second is `alpha`."""
    if len(call.args) > 2:
        return affine(call)
    if len(call.activations) > 1:
        return ZERO
    first, second = call.argument(0, "input"), call.argument(1, "other")
    number = first if isinstance(second, Tensor) else second
    return ZERO if isinstance(number, (int, float)) and number == 0 else _CONSTANT  # as the start of Python's sum


def multilinear(call: Call) -> Remainder:
    """Linear in each tensor it reads: homogeneous of degree (number of activations) in the activations together."""
    return _of_degree(len(call.activations), call.name == "mul")


def homogeneous(degree: float) -> Callable[[Call], Remainder]:
    """Positively homogeneous in all the activations it reads together."""
    remainder = _of_degree(degree, True)
    return lambda call: remainder


def symmetric(call: Call) -> Remainder:
    """With a symmetric Jacobian in its one activation, as every elementwise function has."""
    # That of a holomorphic function, such as exp(z), is no symmetric 2x2.
    return SYMMETRIC if len(call.activations) == 1 and not call.activations[0].is_complex() else DERIVATIVE


def quotient(call: Call) -> Remainder:
    """u / v."""
    if call.kwargs.get("rounding_mode") is not None:
        return DERIVATIVE
    above, below = (call.is_activation(call.argument(i, name)) for i, name in enumerate(("input", "other")))
    return _of_degree(float(above) - float(below))


def power(call: Call) -> Remainder:
    """u ** p."""
    exponent = call.argument(1, "exponent")
    return _of_degree(float(exponent), True) if isinstance(exponent, numbers.Real) else DERIVATIVE


def extremum(call: Call) -> Remainder:
    """max and min over dimensions, or of two tensors."""
    if call.name in ("maximum", "minimum"):
        return DERIVATIVE if call.has_constants() else ZERO
    return ZERO if len(call.activations) == len(tensors_in(call.args)) else DERIVATIVE


def padding(call: Call) -> Remainder:
    """Padding with a number, or with what is there."""
    is_constant = (call.argument(2, "mode") or "constant") == "constant"
    return _AT_ZERO if is_constant and call.argument(3, "value") else ZERO


def batch_norm(call: Call) -> Remainder:
    """`F.batch_norm` on stored statistics is affine per channel."""
    stored = call.func is F.batch_norm and not call.argument(5, "training") and len(call.activations) == 1
    return _BATCH_NORM if stored else DERIVATIVE


def autograd(call: Call) -> Remainder:
    """`torch.autograd.grad`, which cannot be seen through.

    Raises:
        NotImplementedError: If it is that.
    """
    if call.func is torch.autograd.grad:
        raise NotImplementedError("torch.autograd.grad hides what it computes; use torch.func.grad under torch.vmap")
    return DERIVATIVE
