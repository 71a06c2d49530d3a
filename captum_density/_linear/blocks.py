"""Attention in blocks of its weights, so that no matrix of them is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

__all__ = ["blocks"]


def blocks(shape: Sequence[int], queries: int) -> Iterator[tuple[slice, ...]]:
    """Slices along the dimensions of a batch, and of its queries, which come last, with so many queries in each."""
    steps = list[int]()
    for size in reversed(shape):
        steps.insert(0, max(min(size, queries), 1))
        queries //= max(size, 1)
    for corner in itertools.product(*(range(0, size, step) for size, step in zip(shape, steps, strict=True))):
        yield tuple(slice(i, min(i + step, size)) for i, step, size in zip(corner, steps, shape, strict=True))
