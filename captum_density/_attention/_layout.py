"""One layout for attention weights: examples, heads, queries, positions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["arranged"]


def arranged(values: Tensor, dim: int, n: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Weights or scores as (N, heads, queries, positions), and the way back.

    Heads may be folded into the examples, as (N * heads, queries, positions), example by example; heads and queries may
    be absent; the examples may come later where their number tells.

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
    folds = lead and lead[0] % n == 0 and (len(lead) == 2 or (len(lead) == 1 and n > 1))
    if folds:
        batch = 0  # with heads among the examples, or without
    windows = len(lead) == 3 and n > 1 and batch != 0 and lead[0] % n == 0  # of images, among the examples
    if windows or (batch is None and (n != 1 or len(lead) > 2)):
        raise ValueError(
            f"attention weights of shape {tuple(values.shape)} do not show which dimension holds the {n} examples"
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
