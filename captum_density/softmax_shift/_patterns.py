"""Products of patterns with the model's arguments, and what can be refused before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_density._model.refusals import refuse_where

__all__ = ["check_fit", "check_patterns", "floating", "leading", "product"]


def leading(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The model's first `count` arguments."""
    if len(args) < count:
        raise ValueError(f"the shift reads the model's first {count} positional arguments, but got {len(args)}")
    return args[:count]


def check_patterns(patterns: tuple[Any, ...], what: str = "pattern") -> None:
    """Refuse what is no picture, or one that moves nothing."""
    if not patterns or not all(isinstance(p, Tensor) and p.is_floating_point() for p in patterns):
        received = ", ".join(str(p.dtype) if isinstance(p, Tensor) else type(p).__name__ for p in patterns)
        raise TypeError(f"pattern must be a floating-point tensor or a tuple of them, but is {received or 'empty'}")
    device = patterns[0].device
    finite = torch.stack([p.isfinite().all().to(device) for p in patterns]).all()
    moves = torch.stack([p.any().to(device) for p in patterns]).any()

    def useless() -> ValueError:
        if not finite:
            return ValueError(f"{what} contains NaN or infinity")
        return ValueError(f"{what} is zero throughout: a shift by it would move no gradient")

    refuse_where(~(finite & moves), useless)


def floating(x: Any, i: int = 0) -> Tensor:
    """The model's argument i, which only a floating-point tensor has products of."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        received = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"argument {i} of the model must be a floating-point tensor to shift by, but is {received}")
    return x


def check_fit(x: Any, shape: tuple[int, ...], device: torch.device, i: int = 0) -> None:
    """Refuse an argument i of the model that a pattern of this shape and device has no product with."""
    x = floating(x, i)
    if shape not in {tuple(x.shape[1:]), (1, *x.shape[1:])}:
        raise ValueError(
            f"the pattern for argument {i} of the model has shape {shape}, but must have that of one example, "
            f"{tuple(x.shape[1:])}"
        )
    if device != x.device:
        raise ValueError(
            f"the pattern is on {device}, argument {i} of the model on {x.device}; move what holds the pattern with "
            f".to({str(x.device)!r})"
        )


def product(pattern: Tensor, x: Any, i: int = 0) -> Tensor:
    """<pattern, x> for each example of the model's argument i, (N,), in its dtype."""
    check_fit(x, tuple(pattern.shape), pattern.device, i)
    # Not a matrix product, which autocast would round to half precision.
    return (x * pattern.to(x.dtype)).reshape(len(x), pattern.numel()).sum(1)
