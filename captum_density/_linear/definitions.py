"""Operations that are made of others, written out, so that each of those can get its rule.

Each has the signature of the function of torch that it defines, and returns NotImplemented for arguments of which it
has no definition. The value is that function's up to rounding.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DEFINITIONS", "opened"]


def opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A Python function of torch whose body runs call by call: the same code, which asks for no dispatch of its own."""
    names = "has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"
    scope = {**function.__globals__, **dict.fromkeys(names, lambda *_: False)}
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def _softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    return F.softmax(-input, dim, _stacklevel, dtype)


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + value * tensor1 * tensor2


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + value * tensor1 / tensor2


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    return (1 - weight) * input + weight * end


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    norms = [x.square().sum(dim, keepdim=True).sqrt().clamp_min(eps) for x in (x1, x2)]
    return ((x1 / norms[0]) * (x2 / norms[1])).sum(dim)


def _local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    square = input.square().flatten(2).unsqueeze(1)
    mean = F.avg_pool2d(F.pad(square, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    return input / (mean.view(input.shape) * alpha + k).pow(beta)


def _div(input: Tensor, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        return NotImplemented
    return input * other.reciprocal()


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    weights = scores.softmax(-1)
    return F.dropout(weights, dropout_p) @ value


def _vector_norm(
    x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if ord != 2 or dtype is not None or x.is_complex():
        return NotImplemented
    return x.square().sum(dim, keepdim=keepdim).sqrt()


DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "glu": _glu, "softmin": _softmin,
    "addcmul": _addcmul, "addcdiv": _addcdiv, "lerp": _lerp, "cosine_similarity": _cosine_similarity,
    "local_response_norm": _local_response_norm, "div": _div, "scaled_dot_product_attention": _attention,
    "linalg_vector_norm": _vector_norm,
}  # fmt: skip
