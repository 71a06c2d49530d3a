"""One layout for attention weights: examples, heads, queries, positions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Place", "arranged", "places"]

# One for all examples, or (N,) each example's own.
Place = int | Tensor


def arranged(values: Tensor, dim: int, n: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Weights or scores as (N, heads, queries, positions), and the way back.

    Heads may be folded into the examples, as (N * heads, queries, positions), those of an example side by side; heads
    and queries may be absent; the examples may come later where their number tells.

    Args:
        values: In the model's own layout.
        dim: Of the positions.
        n: The number of examples.

    Raises:
        ValueError: The shape does not show which dimension holds the examples.
    """
    moved = values.movedim(dim, -1)
    lead = moved.shape[:-1]
    batch = next((i for i, size in enumerate(lead) if size == n), None)
    folds = bool(lead) and batch != 0 and lead[0] % n == 0
    if folds and len(lead) == 2 and batch is None:
        batch = 0  # with heads among the examples
        folds = False
    # Heads, queries, windows of images: what else there is could be each of them.
    unclear = folds and (batch is not None or n > 1)
    if unclear or (batch is None and (n != 1 or len(lead) > 2)):
        raise ValueError(
            f"attention weights of shape {tuple(values.shape)} do not show which dimension holds the {n} examples (and "
            "not heads, queries or windows); give another number of examples at once, or let examples come first"
        )
    first = moved if batch is None else moved.movedim(batch, 0)
    rest = first.shape[:-1] if batch is None else first.shape[1:-1]
    folded = n if batch is None else first.shape[0]
    heads = rest[:-1] if folded == n else (folded // n, *rest[:-1])
    if len(heads) > 1:
        raise ValueError(
            f"attention weights of shape {tuple(values.shape)} have more dimensions than examples, heads, queries and "
            "positions"
        )
    shape = (n, *(heads or (1,)), *(rest[-1:] or (1,)), first.shape[-1])

    def back(given: Tensor) -> Tensor:
        in_order = given.reshape(first.shape)
        in_order = in_order if batch is None else in_order.movedim(0, batch)
        return in_order.movedim(-1, dim)

    return first.reshape(shape), back


def places(chosen: Any, n: int, size: int, name: str) -> Tensor:
    """(N,) or (1,) int64: which of so many, counted from 0, or from the end if negative.

    Raises:
        TypeError: Neither an integer nor integers.
        ValueError: There is no such, or they are of another number of examples.
    """
    if isinstance(chosen, Tensor) and chosen.ndim == 1 and not chosen.dtype.is_floating_point:
        if len(chosen) != n:
            raise ValueError(f"{name} is for {len(chosen)} examples, but there are {n}")
        found = chosen.detach().long()
    else:
        try:
            if isinstance(chosen, bool):
                raise TypeError
            found = torch.tensor([operator.index(chosen)], device="cpu")
        except TypeError:
            raise TypeError(f"{name} must be an integer, or integers (N,), but is {chosen!r}") from None
    if bool(((found < -size) | (found >= size)).any()):
        raise ValueError(f"{name} must be below {size}, or count from the end, but is {chosen}")
    return found % size
