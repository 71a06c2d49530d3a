"""What a job's model sees: the inputs with the elements that are not kept removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._cache.arrays import ArrayRef, Arrays
from captum_density._model.arrays import as_tensor, as_tensors
from captum_density._model.generators import derived_seed, seeded
from captum_density.retraining._examples import Examples, Impute

__all__ = ["ExamplesRef", "Kept", "View"]

Kept = tuple[int, int]  # places (low, high): elements of rank low..high-1 stay

_ROWS = 1024  # of a whole data set, handled at once
_BYTES_AT_ONCE = 2**25  # of all examples as all models of a stack see them: more is made batch by batch
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


@dataclass(frozen=True)
class ExamplesRef:
    """`Examples` for a worker: names of their arrays, each a pair for (training, test)."""

    inputs: tuple[ArrayRef, ArrayRef]
    labels: tuple[ArrayRef, ArrayRef]
    ranks: tuple[ArrayRef, ArrayRef] | None
    groups: ArrayRef | None
    fill: ArrayRef
    impute: Impute | None
    mask_only: bool
    d: int

    def complete(self, kept: Kept) -> bool:
        """Whether a model sees its examples whole, whatever the ranks."""
        return kept == (0, self.d) and not self.mask_only

    @classmethod
    def of(cls, examples: Examples, arrays: Arrays) -> ExamplesRef:
        """Name all arrays of some examples."""
        (train, train_labels), (test, test_labels) = examples.splits
        ranks = examples.ranks
        # A number is that number for inputs in double precision too.
        fill = as_tensor(examples.fill, None if isinstance(examples.fill, Tensor) else torch.float64)
        return cls(
            (arrays.ref(train), arrays.ref(test)),
            (arrays.ref(train_labels), arrays.ref(test_labels)),
            None if ranks is None else (arrays.ref(ranks[0]), arrays.ref(ranks[1])),
            None if examples.groups is None else arrays.ref(examples.groups),
            arrays.ref(fill),
            examples.impute,
            examples.mask_only,
            examples.d,
        )


class View:
    """Examples on a device, as the models of jobs see them.

    Args:
        examples: Which.
        device: Where the models are.
        seed: Of the noise of an imputation.
    """

    def __init__(self, examples: ExamplesRef, device: torch.device, seed: int) -> None:
        self._device, self._seed = device, seed
        self._impute, self._mask_only, self.complete = examples.impute, examples.mask_only, examples.complete
        self._inputs = [ref.tensor(device) for ref in examples.inputs]
        self.labels = [ref.tensor(device).long() for ref in examples.labels]
        self._ranks = None if examples.ranks is None else [ref.tensor(device) for ref in examples.ranks]
        self._groups = None if examples.groups is None else examples.groups.tensor(device).long().flatten()
        self._fill = examples.fill.tensor(device).to(self._inputs[0].dtype)

    def size(self, split: int) -> int:
        """How many examples there are; split 0 trains, 1 tests."""
        return len(self._inputs[split])

    @property
    def lazy(self) -> bool:
        """Whether rows can be masked one batch after another, as nothing is drawn for them."""
        return self._impute is None

    def rows(self, split: int, rows: Any, kept: Kept) -> Tensor:
        """Some examples as a job's model sees them, (B, ...)."""
        x = self._inputs[split][rows]
        if self.complete(kept):
            return x.clone()  # a model may write to what it is given
        return self._masked(x, self._ranks_of(split, rows, x.shape), *kept)

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
        return self._masked(x, self._ranks_of(split, rows, x.shape), low, high)

    def of_models(self, split: int, low: Tensor, high: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of rows, (B,) or (M, B), as `stacked`; what the models see is made once where it is small."""
        if len(low) * self._inputs[split].nbytes > _BYTES_AT_ONCE:
            return lambda rows: self.stacked(split, rows, low, high)
        every = self.stacked(split, slice(None), low, high)
        models = torch.arange(len(low), device=low.device)[:, None]
        return lambda rows: every.index_select(1, rows) if rows.ndim == 1 else every[models, rows]

    def whole(self, split: int, kept: Kept, run: int, check: Callable[[], None] = lambda: None) -> Tensor:
        """All examples as a job's model sees them, (N, ...); a copy only where something is removed."""
        if self.complete(kept):
            return self._inputs[split]
        n = self.size(split)
        parts = [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]
        out = torch.empty_like(self._inputs[split])
        if self._impute is None:
            for part in parts:
                out[part] = self.rows(split, part, kept)
            return out
        seed = derived_seed(self._seed, "impute", run, split)
        generator = torch.Generator(self._device).manual_seed(seed)
        with seeded(seed, self._device):
            for part in parts:
                check()
                x = self._inputs[split][part]
                stays = _stays(self._ranks_of(split, part, x.shape), *kept)
                out[part] = _imputation(self._impute(x.masked_fill(~stays, 0), stays, generator=generator), x)
        return out

    def _ranks_of(self, split: int, rows: Any, shape: torch.Size) -> Tensor:
        """The rank of each element of some examples."""
        assert self._ranks is not None
        ranks = self._ranks[split][rows]
        if self._groups is not None:
            ranks = ranks.index_select(ranks.ndim - 1, self._groups)
        return ranks.view(shape)

    def _masked(self, x: Tensor, ranks: Tensor, low: Any, high: Any) -> Tensor:
        if self._mask_only:
            return _stays(ranks, low, high).to(x.dtype)
        if x.device.type == "cpu":
            return _where_stays(x, ranks, low, high, self._fill)
        return torch.where(_stays(ranks, low, high), x, self._fill)


def _stays(ranks: Tensor, low: Any, high: Any) -> Tensor:
    before, last = _ends(ranks, low, high)
    return (ranks > before) & (ranks <= last)


def _ends(ranks: Tensor, low: Any, high: Any) -> tuple[Any, Any]:
    # The last place always fits the ranks' type; the number of places, 128 of int8 say, does not.
    before, last = low - 1, high - 1
    if isinstance(before, Tensor):
        return before.to(ranks.dtype), last.to(ranks.dtype)
    return before, last


def _where_stays(x: Tensor, ranks: Tensor, low: Any, high: Any, fill: Tensor) -> Tensor:
    """`torch.where(stays, x, fill)` to the bit, and on a CPU many times as fast, as nothing is compared or branches.

    The sign of `before - ranks`, and not that of `last - ranks`, is set where an element stays; shifted all the way
    it is a mask of the bits of x.
    """
    before, last = _ends(ranks, low, high)
    sign = (before - ranks).bitwise_and_((last - ranks).bitwise_not_())
    bits = _BITS[x.element_size()]
    mask = sign.bitwise_right_shift_(8 * sign.element_size() - 1).to(bits)
    of_fill = fill.view(bits)
    return (mask & (x.view(bits) ^ of_fill)).bitwise_xor_(of_fill).view(x.dtype)


def _imputation(imputed: Any, x: Tensor) -> Tensor:
    """What an imputation returned, checked."""
    imputed = as_tensors(imputed)
    if not isinstance(imputed, Tensor) or imputed.shape != x.shape:
        received = tuple(imputed.shape) if isinstance(imputed, Tensor) else type(imputed).__name__
        raise ValueError(f"the imputation must return {tuple(x.shape)}, as the inputs are, but returned {received}")
    if not bool(imputed.isfinite().all()):
        raise ValueError("the imputation returned NaN or infinity")
    return imputed.to(x)
