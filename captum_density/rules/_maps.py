"""Values of a model's own with gradients of one's choice: the autograd Functions that rules are made of.

Each has the value of the operation it stands for, to the bit, and sends back the gradient of another linear map. That
map's coefficients count as constants: what asks for their derivative is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Normalised", "Secant", "Valued", "probe_points", "scaled"]

_STEP = 1e-5


def probe_points() -> Tensor:
    """Where a chain of pointwise functions is looked at, beside the activation itself: at zero, and around it."""
    return torch.tensor([0.0, _STEP, -_STEP], dtype=torch.float64, device="cpu")


def scaled(u: Tensor, factor: float) -> Tensor:
    """u, whose gradient is multiplied by the factor."""
    if factor == 1:
        return u
    return u.detach() if factor == 0 else _Scaled.apply(u, factor)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return u.view_as(u)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


class Valued(torch.autograd.Function):
    """The value of one tensor with the gradient of another that differs from it by rounding."""

    @staticmethod
    def forward(ctx: Any, linked: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = linked.dtype
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.to(ctx.dtype), None


class Secant(torch.autograd.Function):
    r"""y = sigma(u), elementwise, with the slope of the secant through (0, sigma(0)) for its derivative.

    .. math:: A = (\sigma(u) - \sigma(0)) / u

    `forward` takes u, the value y, sigma at the points of `probe_points`, and sigma itself, to compute y with a second
    time in place of keeping the slope, which would take memory that a plain gradient does not; None to keep it.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, y: Tensor, probe: Tensor, function: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.probe, ctx.function = probe, function
        ctx.save_for_backward(u, None if function else _slope(u, y.clone(), probe))
        return y.clone() if y is u else y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        u, slope = ctx.saved_tensors
        if slope is None:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                y = ctx.function(u)
                slope = _slope(u, y.clone() if y.data_ptr() == u.data_ptr() else y, ctx.probe)
                if not (torch._C._functorch.is_batchedtensor(gradient) or gradient.requires_grad or u.requires_grad):
                    return slope.mul_(gradient).to(u.dtype), None, None, None
        return (gradient * _fixed(slope, u)).to(u.dtype), None, None, None


def _slope(u: Tensor, y: Tensor, probe: Tensor) -> Tensor:
    """The secant's slope, elementwise, in the memory of y: it sets the peak of a transformer's backward pass.

    Where u is so small that sigma(u) - sigma(0) would be rounding, it is sigma'(0) + sigma''(0) u / 2, by differences
    of the probe: sigma at 0, h and -h in float64.
    """
    at_zero, above, below = probe.tolist()
    first, second = (above - below) / (2 * _STEP), (above + below - 2 * at_zero) / (2 * _STEP**2)
    # No derivative at 0, as of a square root, or a corner there, or a curve as narrow as that of 1 / sqrt(u + 1e-5).
    first, is_smooth = (first if abs(first) < 1e6 else 0.0), abs(first) < 1e6 and abs(second) < 1e4
    second = second if first and is_smooth else 0.0
    # A quotient of u itself is exact to rounding; a difference loses what sigma(0) is larger than it.
    precision = torch.finfo(u.dtype)
    near = u.abs() <= (precision.eps ** (1 / 3) if at_zero and is_smooth else precision.tiny)
    slope = (y.sub_(at_zero) if at_zero else y).div_(u)
    if not second:
        return slope.masked_fill_(near, first)
    line = (u * second).add_(first).to(slope.dtype)
    return torch.where(near, line, slope, out=line)


class Normalised(torch.autograd.Function):
    """A normalisation whose divisor is a constant: y = (u - mean u) * factor * weight + bias, or without the mean.

    `forward` takes u, the value y, the factor and the weight (None for 1), the shape in which u is grouped for these,
    and the dimensions of that shape over which the mean is taken, none for a normalisation without mean.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, y: Tensor, factor: Tensor, weight: Tensor | None, shape: tuple[int, ...],
        dims: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(u, factor, weight)  # not their product, which is as large as u
        ctx.shape, ctx.dims = shape, dims
        return y.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        u, factor, weight = ctx.saved_tensors
        back = gradient.reshape(ctx.shape)
        back = (back if weight is None else back * weight.detach()) * _fixed(factor, u)
        if ctx.dims:
            back = back - back.mean(ctx.dims, keepdim=True)
        return back.reshape(u.shape).to(u.dtype), None, None, None, None, None


def _fixed(coefficient: Tensor, u: Tensor) -> Tensor:
    """A coefficient, whose derivative by the activation it was computed from is refused where it is asked for."""
    return _Fixed.apply(coefficient, u) if torch.is_grad_enabled() and u.requires_grad else coefficient


class _Fixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficient: Tensor, u: Tensor) -> Tensor:
        return coefficient.view_as(coefficient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise NotImplementedError(
            "balanced gradients are linear maps whose coefficients are constants: they have no second derivatives; "
            "take those of the model itself, or with rules='jacobian'"
        )
