"""Normalisations with a constant divisor: y = (u - mean u) w / std + b is affine in u then, and b is all that is left.

Each function has the signature of torch's own, after that function, which computes the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_density.rules._maps import Normalised

__all__ = ["NORMALISATIONS", "bias_of"]

Function = Callable[..., Tensor]


def _layer_norm(
    function: Function, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, *rest: Any,
) -> Tensor:  # fmt: skip
    with torch.no_grad():
        u = input
        if torch.is_autocast_enabled(input.device.type):  # under which layer_norm computes in float32
            u = input.float()
            weight, bias = (None if t is None else t.float() for t in (weight, bias))
        y, _, rstd = torch.native_layer_norm(u, list(normalized_shape), weight, bias, eps)
    return Normalised.apply(input, y, rstd, weight, tuple(input.shape), tuple(range(-len(normalized_shape), 0)))


def _rms_norm(
    function: Function, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:  # fmt: skip
    dims = tuple(range(-len(normalized_shape), 0))
    with torch.no_grad():
        y = function(input, normalized_shape, weight, eps)
        added = torch.finfo(input.dtype).eps if eps is None else eps
        factor = (input.square().mean(dims, keepdim=True) + added).rsqrt()
    return Normalised.apply(input, y, factor, weight, tuple(input.shape), ())


def _group_norm(
    function: Function, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, *rest: Any,
) -> Tensor:  # fmt: skip
    with torch.no_grad():
        y = function(input, num_groups, weight, bias, eps, *rest)
    return _grouped(input, y, num_groups, weight, eps)


def _instance_norm(
    function: Function, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5, *rest: Any,
) -> Tensor:  # fmt: skip
    arguments = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps, *rest)
    if not use_input_stats:  # affine as it is
        return function(input, *arguments)
    with torch.no_grad():
        y = function(input, *arguments)
    return _grouped(input, y, input.shape[1], weight, eps)


def _grouped(input: Tensor, y: Tensor, groups: int, weight: Tensor | None, eps: float) -> Tensor:
    grouped = input.detach().reshape(len(input), groups, input.shape[1] // groups, -1)
    with torch.no_grad():
        factor = (grouped.var((2, 3), correction=0, keepdim=True) + eps).rsqrt()
    weight = None if weight is None else weight.view(1, groups, -1, 1)
    return Normalised.apply(input, y, factor, weight, tuple(grouped.shape), (2, 3))


NORMALISATIONS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "group_norm": _group_norm, "instance_norm": _instance_norm,
}  # fmt: skip


def bias_of(
    name: str, output: Tensor, input: Tensor, first: Any = None, second: Any = None, third: Any = None,
    fourth: Any = None, *rest: Any, **named: Any,
) -> Tensor | None:  # fmt: skip
    """b, broadcastable to the output, None where there is none."""
    if name == "rms_norm":
        return None
    bias: Tensor | None = named.get("bias", fourth if name == "instance_norm" else third)
    if bias is None or name == "layer_norm":
        return None if bias is None else bias.reshape((1,) * (output.ndim - bias.ndim) + tuple(bias.shape))
    return bias.view(-1, *[1] * (output.ndim - 2)).unsqueeze(0)
