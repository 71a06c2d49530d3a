"""What a cell's model sees: the inputs with the elements that are not kept removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._cache.arrays import ArrayRef, Arrays
from captum_density._model.generators import derived_seed, seeded
from captum_density.retraining._examples import Cell, Examples, Impute

__all__ = ["CellSpec", "ExamplesSpec", "View"]

_ROWS = 1024  # of a whole data set, handled at once
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@dataclass(frozen=True)
class ExamplesSpec:
    """`Examples` as they are sent to a worker, for (training, test) each."""

    inputs: tuple[ArrayRef, ArrayRef]
    labels: tuple[ArrayRef, ArrayRef]
    ranks: tuple[ArrayRef, ArrayRef] | None
    groups: ArrayRef | None
    fill: ArrayRef
    impute: Impute | None
    mask_only: bool

    @classmethod
    def of(cls, examples: Examples, arrays: Arrays) -> ExamplesSpec:
        """Name all arrays of some examples."""
        pairs = zip(examples.train, examples.test, strict=True)
        inputs, labels = ((arrays.ref(a), arrays.ref(b)) for a, b in pairs)
        ranks = examples.ranks
        # A number is that number for inputs in double precision too.
        fill = torch.as_tensor(examples.fill, dtype=None if isinstance(examples.fill, Tensor) else torch.float64)
        return cls(
            inputs,
            labels,
            None if ranks is None else (arrays.ref(ranks[0]), arrays.ref(ranks[1])),
            None if examples.groups is None else arrays.ref(examples.groups),
            arrays.ref(fill),
            examples.impute,
            examples.mask_only,
        )


@dataclass(frozen=True)
class CellSpec:
    """A `Cell` as it is sent to a worker."""

    low: int
    high: int
    complete: bool
    run: int

    @classmethod
    def of(cls, cell: Cell) -> CellSpec:
        """Take what a worker needs."""
        return cls(*cell.places, cell.complete, cell.run)


class View:
    """Examples on a device, as cells see them.

    Args:
        spec: The examples.
        device: Where the models are.
        seed: Of the noise of an imputation.
    """

    def __init__(self, spec: ExamplesSpec, device: torch.device, seed: int) -> None:
        self._spec, self._device, self._seed = spec, device, seed
        self._inputs = [ref.tensor(device) for ref in spec.inputs]
        self.labels = [ref.tensor(device).long() for ref in spec.labels]
        self._ranks = None if spec.ranks is None else [ref.tensor(device) for ref in spec.ranks]
        self._groups = None if spec.groups is None else spec.groups.tensor(device).long().flatten()
        self._fill = spec.fill.tensor(device).to(self._inputs[0].dtype)

    def size(self, split: int) -> int:
        """How many examples there are; split 0 trains, 1 tests."""
        return len(self._inputs[split])

    @property
    def lazy(self) -> bool:
        """Whether rows can be masked one batch after another, as nothing is drawn for them."""
        return self._spec.impute is None

    def rows(self, split: int, rows: Any, cell: CellSpec) -> Tensor:
        """Some examples as a cell's model sees them, (B, ...)."""
        x = self._inputs[split][rows]
        if cell.complete:
            return x.clone()  # a model may write to what it is given
        return self._seen(x, self._of_rows(split, rows, x.shape), cell.low, cell.high)

    def stacked(self, split: int, rows: Any, low: Tensor, high: Tensor) -> Tensor:
        """Some examples as each of M models sees them, (M, B, ...).

        Args:
            split: 0 trains, 1 tests.
            rows: (B,) or a slice, the same for all models, or (M, B).
            low: (M,) first place kept.
            high: (M,) first place not kept.
        """
        x = self._inputs[split][rows]
        x = x if isinstance(rows, Tensor) and rows.ndim == 2 else x[None]
        if self._ranks is None:
            return x.expand(len(low), *x.shape[1:]).clone()
        per_model = [-1] + [1] * (x.ndim - 1)
        low, high = (places.view(per_model) for places in (low, high))
        return self._seen(x, self._of_rows(split, rows, x.shape), low, high)

    def whole(self, split: int, cell: CellSpec, check: Callable[[], None] = lambda: None) -> Tensor:
        """All examples as a cell's model sees them, (N, ...); a copy only where something is removed."""
        if cell.complete:
            return self._inputs[split]
        n = self.size(split)
        parts = (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))
        if self.lazy:
            out = torch.empty_like(self._inputs[split])
            for part in parts:
                out[part] = self.rows(split, part, cell)
            return out
        assert self._spec.impute is not None
        seed = derived_seed(self._seed, "impute", cell.run, split)
        generator = torch.Generator(self._device).manual_seed(seed)
        imputed = torch.empty_like(self._inputs[split])
        with seeded(seed, self._device):
            for part in parts:
                check()
                x = self._inputs[split][part]
                kept = _kept(self._of_rows(split, part, x.shape), cell.low, cell.high)
                imputed[part] = _checked(self._spec.impute(x.masked_fill(~kept, 0), kept, generator=generator), x)
        return imputed

    def _of_rows(self, split: int, rows: Any, shape: torch.Size) -> Tensor:
        """The rank of each element of some examples."""
        assert self._ranks is not None
        ranks = self._ranks[split][rows]
        if self._groups is not None:
            ranks = ranks.index_select(ranks.ndim - 1, self._groups)
        return ranks.view(shape)

    def _seen(self, x: Tensor, ranks: Tensor, low: Any, high: Any) -> Tensor:
        if self._spec.mask_only:
            return _kept(ranks, low, high).to(x.dtype)
        if x.device.type == "cpu":
            return _where_kept(x, ranks, low, high, self._fill)
        return torch.where(_kept(ranks, low, high), x, self._fill)


def _kept(ranks: Tensor, low: Any, high: Any) -> Tensor:
    before, last = _ends(ranks, low, high)
    return (ranks > before) & (ranks <= last)


def _ends(ranks: Tensor, low: Any, high: Any) -> tuple[Any, Any]:
    # The last place always fits the ranks' type; the number of places, 128 of int8 say, does not.
    before, last = low - 1, high - 1
    if isinstance(before, Tensor):
        return before.to(ranks.dtype), last.to(ranks.dtype)
    return before, last


def _where_kept(x: Tensor, ranks: Tensor, low: Any, high: Any, fill: Tensor) -> Tensor:
    """`torch.where(kept, x, fill)` to the bit, and on a CPU many times as fast, as nothing is compared or branches.

    The sign of `before - ranks`, and not that of `last - ranks`, is set where an element is kept; shifted all the way
    it is a mask of the bits of x.
    """
    before, last = _ends(ranks, low, high)
    sign = (before - ranks).bitwise_and_((last - ranks).bitwise_not_())
    bits = _BITS[x.element_size()]
    mask = sign.bitwise_right_shift_(8 * sign.element_size() - 1).to(bits)
    of_fill = fill.view(bits)
    return (mask & (x.view(bits) ^ of_fill)).bitwise_xor_(of_fill).view(x.dtype)


def _checked(imputed: Any, x: Tensor) -> Tensor:
    if not isinstance(imputed, Tensor) or imputed.shape != x.shape:
        found = tuple(imputed.shape) if isinstance(imputed, Tensor) else type(imputed).__name__
        raise ValueError(f"the imputation must return {tuple(x.shape)}, as the inputs are, but returned {found}")
    if not bool(imputed.isfinite().all()):
        raise ValueError("the imputation returned NaN or infinity")
    return imputed.to(x)
