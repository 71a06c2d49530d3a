"""Which elements count: the top k of each example by importance, in an order that ties do not change."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ranks", "top_count"]


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
    """How many of d elements a fraction is: to the nearest, halves up, so that k and d - k are those of 1 - fraction.

    The sum of a fraction's count and its complement's is d but where both are halves.
    """
    return int(fraction * d + 0.5)
