"""Intervals of positions along one dimension, and from values on them to values at each position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ["Cells", "area_matrix", "linear_matrix", "resize"]


class Cells:
    """Intervals [lo, hi) of positions along a dimension, whole or broken; equal ones are one object.

    Attributes:
        size: Positions along the dimension.
        bounds: (K, 2) float64 lo and hi of each, on the host.
        extent: What the operation that made them stood over: interpolation reaches from one end to the other.
    """

    _known: ClassVar[WeakValueDictionary[tuple[int, bytes, tuple[float, float]], Cells]] = WeakValueDictionary()

    def __init__(self, size: int, bounds: Tensor, extent: tuple[float, float]) -> None:
        self.size, self.bounds, self.extent = size, bounds, extent
        self._matrices: dict[tuple[object, ...], Tensor] = {}

    @classmethod
    def of(cls, size: int, bounds: Tensor, extent: tuple[float, float] | None = None) -> Cells:
        """The one object for these intervals; the extent is the whole dimension unless told otherwise."""
        extent = (0.0, float(size)) if extent is None else extent
        key = size, bounds.numpy().tobytes(), extent
        cells = cls._known.get(key)
        if cells is None:
            cells = cls._known[key] = cls(size, bounds, extent)
        return cells

    @classmethod
    def even(cls, size: int, cells: int) -> Cells:
        """As many equal intervals as `cells`."""
        edges = torch.arange(cells + 1, dtype=torch.float64, device="cpu") * (size / cells)
        return cls.of(size, torch.stack([edges[:-1], edges[1:]], 1))

    def __len__(self) -> int:
        return len(self.bounds)

    @cached_property
    def whole(self) -> Tensor:
        """(K,) whether an interval is all of the dimension, which tells nothing."""
        return (self.bounds[:, 0] <= 0) & (self.bounds[:, 1] >= self.size)

    def area(self) -> Tensor:
        """(size, K) the share of each interval that falls on each position; columns sum to 1."""
        position = torch.arange(self.size, dtype=torch.float64, device="cpu").unsqueeze(1)
        lo, hi = self.bounds[:, 0], self.bounds[:, 1]
        overlap = torch.minimum(position + 1, hi) - torch.maximum(position, lo)
        return overlap.clamp(min=0) / (hi - lo)

    def interpolation(self) -> Tensor:
        """(size, K) linear interpolation between centres, the outermost lying on the ends of the extent.

        That is what `F.interpolate` does with aligned corners. Where widths or steps differ there is no such grid: then
        a value counts, undiminished, at every position that its interval covers.
        """
        lo, hi = self.bounds[:, 0], self.bounds[:, 1]
        centres, which = torch.unique((lo + hi) / 2, return_inverse=True)
        steps = centres.diff()
        if bool((hi - lo - (hi - lo).mean()).abs().max() > 1e-6) or (
            len(steps) > 1 and bool((steps - steps.mean()).abs().max() > 1e-6)
        ):
            return self.area() * (hi - lo)
        position = torch.arange(self.size, dtype=torch.float64, device="cpu").unsqueeze(1)
        first, last = self.extent[0], self.extent[1] - 1
        within = (position >= self.extent[0] - 1e-6) & (position <= max(last, first) + 1e-6)
        if len(centres) == 1:
            return within.to(torch.float64).expand(self.size, len(self)).clone()
        at = (position - first) * ((len(centres) - 1) / max(last - first, 1))
        hats = (1 - (at - torch.arange(len(centres), dtype=torch.float64, device="cpu")).abs()).clamp(min=0)
        return (hats * within)[:, which]

    def matrix(self, kind: Literal["area", "linear"], constants: bool, like: Tensor) -> Tensor:
        """(size, K) of that kind, after a column for elements that are constant along the dimension if there are any.

        Constants belong to all positions alike.
        """
        key = kind, constants, like.dtype, like.device
        if key not in self._matrices:
            matrix = self.area() if kind == "area" else self.interpolation()
            if constants:
                column = torch.ones(self.size, 1, dtype=torch.float64, device="cpu")
                matrix = torch.cat([column / self.size if kind == "area" else column, matrix], 1)
            self._matrices[key] = matrix.to(like)
        return self._matrices[key]


def area_matrix(size: int, cells: int) -> Tensor:
    """(size, cells): the share of each of `cells` equal intervals that falls on each of `size`; columns sum to 1.

    >>> area_matrix(4, 2)
    tensor([[0.5000, 0.0000],
            [0.5000, 0.0000],
            [0.0000, 0.5000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    return Cells.even(size, cells).area()


def linear_matrix(size: int, cells: int) -> Tensor:
    """(size, cells): linear interpolation with aligned corners as `F.interpolate` has them; rows sum to 1.

    >>> linear_matrix(3, 2)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    return Cells.even(size, cells).interpolation()


def resize(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Values (N, *cells) to (N, *positions), one matrix (positions, cells) for each dimension after the first."""
    for dim, matrix in enumerate(matrices, start=1):
        values = torch.movedim(torch.tensordot(values, matrix, dims=([dim], [1])), -1, dim)
    return values
