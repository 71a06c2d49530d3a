"""From terms to maps: the reductions of a sweep. Each reduces a term as soon as its gradient is there."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.grids import area_matrix, linear_matrix, resize
from captum_density._linear.places import Place, Source
from captum_density._linear.sweep import Term, per_example

__all__ = [
    "AllTerms",
    "BatchSums",
    "SaliencyMaps",
    "SampleSums",
    "SignedMaps",
    "SimpleSaliencyMaps",
    "TermSums",
    "TermsByName",
    "smooth_maps",
]

_EPS = 1e-6  # the reference implementation's, in the rescaling of psi
_WORKING_SET = 2**20  # elements


@dataclass(frozen=True)
class TermsByName:
    """Every term of f(x): the input terms, and the bias terms by name in forward order, each (N, ...)."""

    products: list[Tensor]
    biases: dict[str, Tensor]


class AllTerms:
    """Keeps every term: what a decomposition is made of."""

    def __init__(self) -> None:
        self._biases: dict[str, Tensor] = {}

    def add(self, term: Term) -> Tensor:
        self._biases[term.name] = values = term.values
        return per_example(values)

    def result(self, products: list[Tensor]) -> TermsByName:
        return TermsByName(products, dict(reversed(self._biases.items())))

    def join(self, results: list[TermsByName]) -> TermsByName:
        names = dict.fromkeys(name for result in results for name in result.biases)
        biases = {name: _joined([result.biases.get(name) for result in results]) for name in names}
        return TermsByName(_cat([result.products for result in results]), biases)


def _joined(chunks: list[Tensor | None]) -> Tensor:
    """One batch of a term taken one by one; zeros where an example is shorter, or did not meet the operation."""
    present = [chunk for chunk in chunks if chunk is not None]
    shape = [max(sizes) for sizes in zip(*(chunk.shape[1:] for chunk in present), strict=True)]
    rows = [present[0].new_zeros(1, *shape) if chunk is None else chunk for chunk in chunks]
    return torch.cat([F.pad(row, [p for size, full in zip(row.shape[:0:-1], shape[::-1], strict=True)
                                  for p in (0, full - size)]) for row in rows])  # fmt: skip


def _cat(parts: list[list[Tensor]]) -> list[Tensor]:
    """A batch of each of several things, from those of its examples."""
    return [torch.cat(chunks) for chunks in zip(*parts, strict=True)]


@dataclass(frozen=True)
class TermSums:
    """Terms of some examples, summed over noise samples.

    Attributes:
        products: The input terms.
        biases: Values (N, ...) and place of each bias term that has one, by name.
    """

    products: list[Tensor]
    biases: dict[str, tuple[Tensor, Place]]

    def __add__(self, other: TermSums) -> TermSums:
        """Those of more samples of the same examples."""
        products = [a + b for a, b in zip(self.products, other.products, strict=True)]
        biases = dict(self.biases)
        for name, (values, place) in other.biases.items():
            biases[name] = (biases[name][0] + values, place) if name in biases else (values, place)
        return TermSums(products, biases)

    def examples(self) -> list[TermSums]:
        """Those of each example."""
        return [
            TermSums(
                [product[i : i + 1] for product in self.products],
                {name: (values[i : i + 1], place) for name, (values, place) in self.biases.items()},
            )
            for i in range(len(self.products[0]))
        ]


@dataclass(frozen=True)
class BatchSums:
    """Terms of a batch, summed over noise samples.

    Attributes:
        parts: Of the batch as a whole; or of each of its examples, where they were run one by one, as then an
            operation's output may be of another length, and lie elsewhere, for each.
    """

    parts: list[TermSums]

    def __add__(self, other: BatchSums) -> BatchSums:
        """Those of more samples of the same batch."""
        ours, theirs = self.parts, other.parts
        if len(ours) != len(theirs):
            ours, theirs = ([one for part in parts for one in part.examples()] for parts in (ours, theirs))
        return BatchSums([a + b for a, b in zip(ours, theirs, strict=True)])


class SampleSums:
    """Terms summed over noise samples, the copies of an example standing together."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._biases: dict[str, tuple[Tensor, Place]] = {}

    def add(self, term: Term) -> Tensor:
        values = term.values
        if term.place is not None:
            self._biases[term.name] = self._summed(values), term.place
        return per_example(values)

    def result(self, products: list[Tensor]) -> BatchSums:
        return BatchSums([TermSums([self._summed(product) for product in products], self._biases)])

    def join(self, results: list[BatchSums]) -> BatchSums:
        copies = [part for result in results for part in result.parts]
        starts = range(0, len(copies), self._samples)
        return BatchSums([reduce(operator.add, copies[start : start + self._samples]) for start in starts])

    def _summed(self, values: Tensor) -> Tensor:
        """(N * samples, ...) to (N, ...); a copy that was run alone waits until it is joined to the others."""
        return values if len(values) == 1 else values.unflatten(0, (-1, self._samples)).sum(1)


class _Maps:
    """Cell sums by input and grid, so that equal grids are added up before they are resized once."""

    matrix: Callable[[int, int], Tensor]

    def __init__(self) -> None:
        self._sums: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._sources: dict[int, Source] = {}

    def _put(self, place: Place, values: Tensor) -> None:
        key = (place.source.index, place.grid)
        self._sources[place.source.index] = place.source
        self._sums[key] = self._sums[key] + values if key in self._sums else values

    def source(self, index: int, x: Tensor) -> Source:
        """What the terms have shown of input x: which of its dimensions are positions."""
        return self._sources.get(index) or Source.of(index, x)

    def on_grid(self, index: int) -> Tensor | None:
        """The sum over grids on an input's own grid (N, *grid); None if nothing has a place on it."""
        resized = [
            resize(values.unflatten(1, grid), self._sources[i].grid, self.matrix) if grid else values
            for (i, grid), values in self._sums.items()
            if i == index
        ]
        return sum(resized[1:], resized[0]) if resized else None

    def plus_biases(self, index: int, own: Tensor) -> Tensor:
        """An input's own map, of the input's shape, plus what the terms put on it."""
        placed = self.on_grid(index)
        return own if placed is None else own + _over_channels(placed, self.source(index, own))

    def join(self, results: list[list[Tensor]]) -> list[Tensor]:
        return _cat(results)


class SignedMaps(_Maps):
    """Signed cell sums of every term, spread over the positions of each cell; what has no place, over everything."""

    matrix = staticmethod(area_matrix)

    def __init__(self) -> None:
        super().__init__()
        self._unplaced: Tensor | None = None

    def add(self, term: Term) -> Tensor:
        if term.place is None:
            total = rest = per_example(term.values)
        else:
            if _is_channelwise(term):
                weights = term.remainder.flatten(1).unsqueeze(1).expand(len(term.gradient), -1, -1)
                placed = torch.bmm(weights, term.gradient.flatten(2)).squeeze(1)
                rest = None
            else:
                placed, rest = term.place.sums(term.values)
            self._put(term.place, placed)
            total = placed.sum(1) if rest is None else placed.sum(1) + rest
        if rest is not None:
            self._unplaced = rest if self._unplaced is None else self._unplaced + rest
        return total

    def result(self, products: list[Tensor]) -> list[Tensor]:
        """A map for each input, of its shape; all together sum to f(x)."""
        maps = [self.plus_biases(index, product) for index, product in enumerate(products)]
        if self._unplaced is None:
            return maps
        elements = sum(m[0].numel() for m in maps)
        return [m + (self._unplaced / elements).view(-1, *[1] * (m.ndim - 1)) for m in maps]


class SaliencyMaps(_Maps):
    """psi of every term that has a place: |.|, rescaled to [0, 1] over the term, summed over channels, upsampled.

    Rescaling subtracts the minimum and divides by the maximum + 1e-6, over channels and positions of an example, as the
    reference implementation does. Upsampling is linear, so channels and terms are summed before it.
    """

    matrix = staticmethod(linear_matrix)

    def __init__(self) -> None:
        super().__init__()
        self._buffer: Tensor | None = None

    def add(self, term: Term) -> Tensor:
        if term.place is None:
            return per_example(term.values)
        if _is_channelwise(term):
            return self._add_channelwise(term, term.place)
        values = self._product(term)
        total = per_example(values)
        self.add_size(values.abs() if values.requires_grad else values.abs_(), term.place)
        return total

    def add_size(self, size: Tensor, place: Place) -> None:
        """Add what is left of psi once absolute values (N, ...) have been taken."""
        low, high = place.extremes(size)
        placed, _ = place.sums(size)
        self._put(place, (placed - place.counts(size) * low) / (high - low + _EPS))

    def result(self, products: list[Tensor]) -> list[Tensor]:
        """A map for each input, of its shape: psi of the input term plus psi of the bias terms."""
        return [self.plus_biases(index, _rescaled(product)) for index, product in enumerate(products)]

    def _add_channelwise(self, term: Term, place: Place) -> Tensor:
        """A bias per channel of a map: the same from |df/dy| alone, without the product."""
        bias = term.remainder.flatten(1)
        size, maps, sums = bias.abs(), [], []
        # A few examples at a time, so that |df/dy| is read again before it leaves the cache.
        for gradient in term.gradient.split(max(1, _WORKING_SET // term.gradient[0].numel())):
            values = self._absolute(gradient).flatten(2)
            low = (values.amin(2) * size).amin(1, keepdim=True)
            high = (values.amax(2) * size).amax(1, keepdim=True)
            placed = torch.bmm(size.expand(len(values), -1).unsqueeze(1), values).squeeze(1)
            maps.append((placed - values.size(1) * low) / (high - low + _EPS))
            sums.append((gradient.flatten(2).sum(2) * bias).sum(1))
        self._put(place, torch.cat(maps))
        return torch.cat(sums)

    def _product(self, term: Term) -> Tensor:
        if torch.is_grad_enabled():
            return term.values
        return torch.mul(term.gradient, term.remainder, out=self._scratch(term.gradient))

    def _absolute(self, values: Tensor) -> Tensor:
        return values.abs() if torch.is_grad_enabled() else torch.abs(values, out=self._scratch(values))

    def _scratch(self, like: Tensor) -> Tensor:
        """Memory to work in, the same for every term: fresh pages cost more than the arithmetic."""
        if self._buffer is None or self._buffer.numel() < like.numel() or self._buffer.dtype != like.dtype:
            self._buffer = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return self._buffer[: like.numel()].view(like.shape)


class SimpleSaliencyMaps(SaliencyMaps):
    """psi of df/dy in place of df/dy * r."""

    def add(self, term: Term) -> Tensor:
        if term.place is not None:
            self.add_size(term.gradient.abs(), term.place)
        return per_example(term.values)


def smooth_maps(sums: BatchSums) -> list[Tensor]:
    """psi of summed terms; of an input term, channels are summed before, as the published code does."""
    return _cat([_smooth_maps(part) for part in sums.parts])


def _smooth_maps(sums: TermSums) -> list[Tensor]:
    maps = SaliencyMaps()
    for values, place in sums.biases.values():
        maps.add_size(values.abs(), place)
    return [_smooth_map(maps, index, product) for index, product in enumerate(sums.products)]


def _smooth_map(maps: SaliencyMaps, index: int, product: Tensor) -> Tensor:
    source = maps.source(index, product)
    channels = [d for d in range(1, product.ndim) if d not in source.final_positions()]
    own = _rescaled(product.sum(channels) if channels else product)
    placed = maps.on_grid(index)
    return _over_channels(own if placed is None else own + placed, source)


def _is_channelwise(term: Term) -> bool:
    """Whether the term is a bias per channel on a regular channels-first map."""
    gradient, r = term.gradient, term.remainder
    return (
        r.ndim == gradient.ndim > 2
        and r.numel() == r.size(1) == gradient.size(1)
        and term.place is not None
        and term.place.is_channels_first(gradient.shape)
    )


def _rescaled(values: Tensor) -> Tensor:
    """psi without upsampling: |values| between 0 and 1 in each example."""
    values = values.abs()
    shape = [len(values)] + [1] * (values.ndim - 1)
    low, high = values.flatten(1).amin(1).view(shape), values.flatten(1).amax(1).view(shape)
    return (values - low) / (high - low + _EPS)


def _over_channels(values: Tensor, source: Source) -> Tensor:
    """A map (N, *grid) shared out evenly over the channels of an input of shape (N, ...)."""
    positions = source.final_positions()
    shape = [source.shape[d] if d in positions else 1 for d in range(len(source.shape))]
    shape[0] = len(values)
    channels = math.prod(source.shape[1:]) // math.prod(source.grid)
    return (values.reshape(shape) / channels).expand(len(values), *source.shape[1:])
