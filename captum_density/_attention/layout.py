"""One layout for attention weights: examples, heads, queries, positions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Place", "WeightLayout", "places"]

# One for all examples, or (N,) each example's own.
Place = int | Tensor


class WeightLayout:
    """Where a tensor of weights or scores has its examples, heads, queries and positions.

    Heads may be folded into the examples, (N * heads, queries, positions): those of an example side by side, as PyTorch
    folds them, or the examples of a head. Heads and queries may be absent; the examples may come later where their
    number tells.

    Args:
        shape: In the model's own layout.
        dim: Of the positions.
        n: The number of examples.

    Raises:
        ValueError: The shape does not show which dimension holds the examples.
    """

    def __init__(self, shape: Sequence[int], dim: int, n: int) -> None:
        sizes = list(shape)
        positions = sizes.pop(dim)
        batch = next((i for i, size in enumerate(sizes) if size == n), None)
        folds = bool(sizes) and batch != 0 and sizes[0] % n == 0
        if folds and len(sizes) == 2 and batch is None:
            batch = 0  # with heads among the examples
            folds = False
        # Heads, queries, windows of images: what else there is could be each of them.
        unclear = folds and (batch is not None or n > 1)
        if unclear or (batch is None and (n != 1 or len(sizes) > 2)):
            raise ValueError(
                f"attention weights of shape {tuple(shape)} do not show which dimension holds the {n} examples (and "
                "not heads, queries or windows); give another number of examples at once, or let examples come first"
            )
        rest = sizes if batch is None else sizes[:batch] + sizes[batch + 1 :]
        folded = n if batch is None else sizes[batch]
        heads = rest[:-1] if folded == n else [folded // n, *rest[:-1]]
        if len(heads) > 1:
            raise ValueError(
                f"attention weights of shape {tuple(shape)} have more dimensions than examples, heads, queries and "
                "positions"
            )
        self._dim, self._batch = dim, batch
        self._first = (*([] if batch is None else [folded]), *rest, positions)
        self.shape = (n, *(heads or (1,)), *(rest[-1:] or (1,)), positions)
        #: Whether examples and heads share a dimension, in an order that the shape does not show.
        self.folded = folded != n and n > 1

    def arranged(self, values: Tensor, heads_first: bool = False) -> Tensor:
        """As (N, heads, queries, positions).

        Args:
            values: In the model's own layout.
            heads_first: Of folded ones, whether the examples of a head are side by side.
        """
        moved = values.movedim(self._dim, -1)
        moved = moved if self._batch is None else moved.movedim(self._batch, 0)
        n, heads, *rest = self.shape
        return moved.reshape(heads, n, *rest).transpose(0, 1) if heads_first else moved.reshape(self.shape)

    def back(self, values: Tensor, heads_first: bool = False) -> Tensor:
        """From (N, heads, queries, positions) to the model's own layout."""
        in_order = (values.transpose(0, 1) if heads_first else values).reshape(self._first)
        in_order = in_order if self._batch is None else in_order.movedim(0, self._batch)
        return in_order.movedim(-1, self._dim)


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
