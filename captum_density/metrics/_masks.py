"""Which elements count: the top k of each example by importance, in an order that ties do not change."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["ranks", "top_count", "top_counts"]

D = TypeVar("D", float, Tensor)


def ranks(importance: Tensor) -> Tensor:
    """The place of each element in its example's order, 0 for the largest; equal ones by position, on any device.

    Args:
        importance: (N, d), finite.

    Returns:
        (N, d) int64, a permutation of 0..d-1 in each row: `ranks < k` marks exactly the top k.
    """
    order = importance.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def top_count(fraction: float, d: int) -> int:
    """How many of d elements a fraction is: to the nearest, halves up, as written in decimals (0.1 of 5 is a half).

    `top_count(f, d) + (d - top_count(1 - (1 - f), d)) == d` for every float f: what 1 - f cannot tell is left out.
    """
    return int(_rounded_up(fraction, d))


def top_counts(fraction: float, sizes: Tensor) -> Tensor:
    """`top_count` of each of several numbers of elements, int64."""
    return _rounded_up(fraction, sizes.double()).long()


def _rounded_up(fraction: float, d: D) -> D:
    """What to cut the decimals off."""
    # For f below 1/2, 1 - f is rounded to a multiple of 2^-53 and what f has beyond is lost; 1 - (1 - f) drops it here
    # too. The margin is above the rounding of the product, and far below what one element makes of a fraction.
    return (1 - (1 - fraction)) * d + 0.5 + 1e-6
