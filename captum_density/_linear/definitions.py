"""Operations that are made of others, written out, so that each of those can get its rule.

Each has the signature of the function of torch that it defines. The value is that function's; see `RuleMode`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

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


DEFINITIONS: dict[str, Callable[..., Tensor]] = {
    "glu": _glu, "softmin": _softmin,
    "addcmul": _addcmul, "addcdiv": _addcdiv, "lerp": _lerp, "cosine_similarity": _cosine_similarity,
    "local_response_norm": _local_response_norm,
}  # fmt: skip
