"""Remainders in closed form, of operations of which the only other way to r is a derivative in forward mode.

In each, a is 1 for an argument that is an activation and 0 for one that is a constant::

    operation        y                           r
    summed product   b + u_1 ... u_n             (1 - k) y + (k - a_b) b, of k activations among the u
    normalisation    w (x - mean) / std + b      (1 - a_x e - a_w) (y - b) + (1 - a_b) b,  e = eps / std^2
    attention        P V, P = softmax(S + B)     (1 - a_v) y + rowsum(P * M) y - (P * M) V,  M = (a_q + a_k) S + a_B B
    smooth function  sigma(u)                    y - sigma'(u) u

The first follows from Euler's theorem. A normalisation of x alone would leave all of y, as what a scale of x does not
change, were it not for eps. The derivative of attention weights P by scores, times M, is P * M - P rowsum(P * M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_density._linear.blocks import blocks
from captum_density._linear.jacobian import finite
from captum_density._linear.remainders import DERIVATIVE, SYMMETRIC, Remainder, symmetric
from captum_density._model.calls import Call

__all__ = ["added", "biased", "dot_attention", "normalisation", "smooth"]

_BLOCK = 2**17  # attention weights at a time, which a cache holds
_LEAST = 16  # queries at a time
_PRECISE = (torch.float32, torch.float64)


# -- a product and a summand


@dataclass(frozen=True)
class _SummedProduct(Remainder):
    position: int
    name: str
    axis: int | None
    evaluates: ClassVar[bool] = True  # where it runs in place, it overwrites its summand

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        (y,), b = outputs, call.argument(self.position, self.name)
        active = b is not None and call.is_activation(b)
        factors = len(call.activations) - active
        if self.axis is None:  # the summand may be a mask of scores: infinite, where no gradient comes from
            y, b = finite(y), finite(b)
        product = None if factors == 1 else (1 - factors) * y
        weight = (factors - active) * call.kwargs.get("beta", 1)
        if b is None or weight == 0:  # at beta = 0 it is not read, and may be what memory held
            return [product]
        b = self._along(b, y)
        b = b if weight == 1 else weight * b
        return [b if product is None else product + b]

    def constant(self, call: Call, y: Tensor) -> bool | Tensor:
        b = call.argument(self.position, self.name)
        beta = call.kwargs.get("beta", 1)
        if b is None or call.is_activation(b) or beta == 0:
            return False
        if len(call.activations) == 1:
            return True
        return beta * self._along(b if self.axis is not None else finite(b), y).detach()

    def _along(self, b: Tensor, y: Tensor) -> Tensor:
        """b in y's number of dimensions."""
        shape = [*[1] * (y.ndim - b.ndim), *b.shape]
        if self.axis is not None:
            shape = [1] * y.ndim
            shape[self.axis] = -1
        return b.reshape(shape)


def biased(axis: int, position: int = 2) -> Callable[[Call], Remainder]:
    """A product of tensors, and a bias along an axis of the output that stands at a position among the arguments."""
    remainder = _SummedProduct(position, "bias", axis)
    return lambda call: remainder


_ADDED = _SummedProduct(0, "input", None)


def added(call: Call) -> Remainder:
    """A first argument, `beta` times, and a product of the others; in the order that PyTorch has had since 1.5."""
    return _ADDED if isinstance(call.argument(0, "input"), Tensor) and len(call.args) < 4 else DERIVATIVE


# -- functions with a symmetric Jacobian

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Smooth(Remainder):
    """By the backward pass that PyTorch has for the operation, without a graph to send it through.

    Attributes:
        product: Of (call, u, y), the Jacobian times u.
        bounded: Whether y is finite where u is infinite: then nothing comes from there.
        later: As in `Remainder`: whether autograd keeps u.
    """

    product: Callable[[Call, Tensor, Tensor], Tensor]
    bounded: bool = False
    later: bool = False
    evaluates: ClassVar[bool] = True

    def on_saved(self, call: Call, y: Tensor) -> Call:
        u = y.grad_fn._saved_self.detach()  # type: ignore[union-attr]
        return Call(getattr(F, call.name), (u,), {}, [u])

    def prepare(self, call: Call) -> None:
        SYMMETRIC.prepare(call)

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        (u,), (y,) = call.activations, outputs
        if create_graph or u.shape != y.shape or u.dtype != y.dtype:
            return SYMMETRIC.of(call, outputs, create_graph)
        product = self.product(call, u, y)
        if self.bounded:
            product.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return [torch.sub(y, product, out=product)]


def _softmax(call: Call, u: Tensor, y: Tensor) -> Tensor:
    return _aten._softmax_backward_data(finite(u), y, call.argument(1, "dim"), u.dtype)


_SMOOTH = {
    "sigmoid": _Smooth(lambda call, u, y: _aten.sigmoid_backward(u, y), True),
    "tanh": _Smooth(lambda call, u, y: _aten.tanh_backward(u, y), True),
    "exp": _Smooth(lambda call, u, y: u * y, True),
    "gelu": _Smooth(
        lambda call, u, y: _aten.gelu_backward(u, u, approximate=call.kwargs.get("approximate", "none")), later=True
    ),
    "silu": _Smooth(lambda call, u, y: _aten.silu_backward(u, u), later=True),
    "hardswish": _Smooth(lambda call, u, y: _aten.hardswish_backward(u, u), later=True),
    "hardsigmoid": _Smooth(lambda call, u, y: _aten.hardsigmoid_backward(u, u), True),
    "softmax": _Smooth(_softmax),
}


def smooth(call: Call) -> Remainder:
    """A function of each element, or along a dimension, with a symmetric Jacobian of which PyTorch has the product."""
    explicit = call.name != "softmax" or call.argument(1, "dim") is not None
    remainder = symmetric(call)
    return _SMOOTH[call.name] if explicit and remainder is SYMMETRIC else remainder


# -- normalisations

# Of (call, x): the mean square that a normalisation divides by, before eps is added; broadcastable to the output.
Spread = Callable[[Call, Tensor], Tensor]


@dataclass(frozen=True)
class _Normalisation(Remainder):
    spread: Spread
    weight: int
    bias: int | None
    eps: int
    later: bool = True

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        (y,), x = outputs, call.argument(0, "input")
        y = y.clone() if create_graph else y  # the graph would keep it, and the operation lets the model overwrite it
        w = call.argument(self.weight, "weight")
        b = None if self.bias is None else call.argument(self.bias, "bias")
        of_x, of_w, of_b = (t is not None and call.is_activation(t) for t in (x, w, b))
        scale = x.new_full((), 1.0 - of_w)  # a copy to a GPU would wait for it
        if of_x:
            eps = call.argument(self.eps, "eps")
            eps = eps if eps is not None else torch.finfo(x.dtype).eps if self.bias is None else 1e-5
            scale = scale - eps / (self.spread(call, x) + eps)
        if b is None:
            return [scale * y]
        b = _added(call, b, y)
        return [scale * (y - b) if of_b else torch.lerp(b, y, scale)]

    def constant(self, call: Call, y: Tensor) -> bool | Tensor:
        b = None if self.bias is None else call.argument(self.bias, "bias")
        return False if b is None or call.is_activation(b) else _added(call, b, y).detach()


class _Imprecise(_Normalisation):
    """By the derivative, in a dtype in which the closed form would lose what eps leaves."""

    evaluates = True

    def prepare(self, call: Call) -> None:
        DERIVATIVE.prepare(call)

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        return DERIVATIVE.of(call, outputs, create_graph)


def _added(call: Call, b: Tensor, y: Tensor) -> Tensor:
    """What a normalisation adds to y, in y's number of dimensions."""
    if call.name == "layer_norm":
        return b.view(*[1] * (y.ndim - b.ndim), *b.shape)
    return b.view(1, -1, *[1] * (y.ndim - 2))


def _over_last(call: Call, x: Tensor) -> Tensor:
    dims = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
    x = x if call.name == "rms_norm" else x - x.mean(dims, keepdim=True)
    return x.square().mean(dims, keepdim=True)


def _over_groups(call: Call, x: Tensor) -> Tensor:
    groups = x.shape[1] if call.name == "instance_norm" else call.argument(1, "num_groups")
    grouped = x.reshape(len(x), groups, -1)
    spread = (grouped - grouped.mean(2, keepdim=True)).square().mean(2)
    return spread.repeat_interleave(x.shape[1] // groups, 1).view(*x.shape[:2], *[1] * (x.ndim - 2))


_NORMALISATIONS = {
    "layer_norm": _Normalisation(_over_last, 2, 3, 4),
    "rms_norm": _Normalisation(_over_last, 2, None, 3),
    "group_norm": _Normalisation(_over_groups, 2, 3, 4),
    "instance_norm": _Normalisation(_over_groups, 3, 4, 7),
}
_IMPRECISE = {
    name: _Imprecise(own.spread, own.weight, own.bias, own.eps, later=False) for name, own in _NORMALISATIONS.items()
}


def normalisation(call: Call) -> Remainder:
    """A normalisation by the statistics of its input."""
    x = call.argument(0, "input")
    stored = call.name == "instance_norm" and call.argument(5, "use_input_stats") is False
    twice = len({id(u) for u in call.activations}) < len(call.activations)
    if stored or twice or call.func is torch.instance_norm:
        return DERIVATIVE
    return (_NORMALISATIONS if x.dtype in _PRECISE else _IMPRECISE)[call.name]


# -- attention


class _Attention(Remainder):
    """In blocks of weights, so that no more of them are in memory than fused attention has."""

    def waits(self, y: Tensor) -> bool:
        # Fused attention keeps its arguments; written out, it keeps what it makes of them.
        return y.grad_fn is not None and y.grad_fn.name().startswith("ScaledDotProduct")

    def of(self, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
        (y,) = outputs
        operands = [call.argument(i, name) for i, name in enumerate(("query", "key", "value", "attn_mask"))]
        active = [t is not None and call.is_activation(t) for t in operands]
        if sum(active) != len(call.activations) or y.dtype not in _PRECISE:
            return DERIVATIVE.of(call, outputs, create_graph)
        y = y.clone() if create_graph else y.detach()  # as of a normalisation
        q, k, v, mask = operands if create_graph else map(_detached, operands)
        of_scores, of_value, of_mask = float(active[0] + active[1]), active[2], active[3]
        if not of_scores and not of_mask:
            return [torch.zeros_like(y)]
        if call.argument(7, "enable_gqa"):
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scale = call.argument(6, "scale")
        q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
        q, k, v = (t.expand(*y.shape[:-2], *t.shape[-2:]) for t in (q, k, v))
        mask = None if mask is None else mask.expand(*y.shape[:-1], k.shape[-2])
        r = torch.empty_like(y)
        # A graph keeps all weights anyway.
        queries = y.numel() if create_graph else max(_BLOCK // max(k.shape[-2], 1), _LEAST)
        for *batch, rows in blocks(y.shape[:-1], queries):
            at = (*batch, rows)
            keys = (*batch, slice(0, rows.stop if call.argument(5, "is_causal") else None))
            s = q[at] @ k[keys].mT
            own = None if mask is None else mask[at]
            p = _weights(s, own, rows.start if keys[-1].stop else None)
            s *= of_scores
            p = p * (s if own is None or not of_mask else s + finite(own))
            drift, drifted = p.sum(-1, keepdim=True), p @ v[keys]
            if mask is not None:  # a query without keys, whose weights are NaN, attends to nothing
                drift, drifted = drift.nan_to_num(), drifted.nan_to_num()
            r[at] = torch.sub(y[at] * (drift + (0 if of_value else 1)), drifted)
        return [r]


def _detached(t: Any) -> Any:
    return None if t is None else t.detach()


def _weights(scores: Tensor, mask: Tensor | None, start: int | None) -> Tensor:
    """Softmax of scores, of which an additive or boolean mask, or one of the keys later than query `start + i`, takes.

    Later scores are 0 afterwards, as they add nothing.
    """
    # Where a mask leaves a query no keys, softmax is NaN, which would spoil a graph.
    softmax = torch._safe_softmax if mask is not None and scores.requires_grad else torch.softmax
    if start is not None:
        later = torch.ones_like(scores[(0,) * (scores.ndim - 2)][:, start:], dtype=torch.bool).triu(1)
        ahead = scores[..., start:]
        ahead.masked_fill_(later, -math.inf)
        weights = softmax(scores, -1)
        ahead.masked_fill_(later, 0)
        return weights
    if mask is not None:
        scores = scores + mask if mask.dtype != torch.bool else scores.masked_fill(~mask, -math.inf)
    return softmax(scores, -1)


_ATTENTION = _Attention()


def dot_attention(call: Call) -> Remainder:
    """Scaled dot-product attention without dropout, and without masks of a class of their own, such as `CausalBias`."""
    plain = type(call.argument(3, "attn_mask")) in (type(None), Tensor, nn.Parameter)
    return _ATTENTION if plain and not call.argument(4, "dropout_p") else DERIVATIVE
