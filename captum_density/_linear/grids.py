"""From one grid to another: values spread over what their cells cover, or interpolated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["area_matrix", "linear_matrix", "resize"]


def area_matrix(size: int, cells: int) -> Tensor:
    """(size, cells): the share of each of `cells` equal intervals that falls on each of `size`; columns sum to 1.

    >>> area_matrix(4, 2)
    tensor([[0.5000, 0.0000],
            [0.5000, 0.0000],
            [0.0000, 0.5000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    position = torch.arange(size, dtype=torch.float64).unsqueeze(1) / size
    cell = torch.arange(cells, dtype=torch.float64).unsqueeze(0) / cells
    overlap = torch.minimum(position + 1 / size, cell + 1 / cells) - torch.maximum(position, cell)
    return overlap.clamp(min=0) * cells


def linear_matrix(size: int, cells: int) -> Tensor:
    """(size, cells): linear interpolation with aligned corners as `F.interpolate` has them; rows sum to 1.

    >>> linear_matrix(3, 2)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    position = torch.arange(size, dtype=torch.float64).unsqueeze(1) * ((cells - 1) / max(size - 1, 1))
    return (1 - (position - torch.arange(cells, dtype=torch.float64)).abs()).clamp(min=0)


def resize(values: Tensor, size: Sequence[int], matrix: Callable[[int, int], Tensor]) -> Tensor:
    """Values on one grid (N, *grid) to another (N, *size), one dimension after the other.

    With `area_matrix` each value is spread over the positions its cell covers, which keeps every example's sum; with
    `linear_matrix` values are interpolated.
    """
    for dim, length in enumerate(size, start=1):
        if values.size(dim) != length:
            weights = matrix(length, values.size(dim)).to(values)
            values = torch.movedim(torch.tensordot(values, weights, dims=([dim], [1])), -1, dim)
    return values
