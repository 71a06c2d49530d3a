"""From terms to maps: the reductions of a sweep. Each reduces a term as soon as its gradient is there."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.places import Lie, Spread
from captum_density._linear.sweep import Term, per_example

__all__ = [
    "AllTerms",
    "BatchSums",
    "InputMaps",
    "Placement",
    "SaliencyMaps",
    "SampleSums",
    "SignedMaps",
    "SimpleSaliencyMaps",
    "TermSums",
    "TermsByName",
    "smooth_maps",
]

_Dims = Sequence[Sequence[int]]

_EPS = 1e-6  # the reference implementation's, in the rescaling of psi
_WORKING_SET = 2**20  # elements
_SAMPLE = 2**14  # elements


@dataclass(frozen=True)
class TermsByName:
    """Every term of f(x): the input terms, and the bias terms by name in forward order, each (N, ...)."""

    products: list[Tensor]
    biases: dict[str, Tensor]
    placement: Placement


@dataclass(frozen=True)
class Placement:
    """How much of the terms, by absolute values, has a place on the inputs.

    Attributes:
        size: (N,) sum of |terms|, inputs' and biases'.
        unplaced: (N,) that of elements without a place, by the operation at which they lost it; None if it is not
            known, "" if it was a dense layer over flat features.
    """

    size: Tensor
    unplaced: dict[str | None, Tensor]

    def unplaced_size(self) -> Tensor:
        """(N,) sum of |terms| without a place."""
        return sum(self.unplaced.values(), torch.zeros_like(self.size))

    def unplaced_share(self) -> Tensor:
        """(N,) between 0 and 1."""
        return self.unplaced_size() / self.size.clamp(min=torch.finfo(torch.float64).tiny)

    def culprit(self) -> str | None:
        """The operation at which most was lost."""
        if len(self.unplaced) < 2:
            return next(iter(self.unplaced), None)
        largest = torch.stack([size.sum() for size in self.unplaced.values()]).argmax()
        return list(self.unplaced)[int(largest)]

    @classmethod
    def joined(cls, parts: Sequence[Placement]) -> Placement:
        names = dict.fromkeys(name for part in parts for name in part.unplaced)
        return cls(
            torch.cat([p.size for p in parts]),
            {n: torch.cat([p.unplaced.get(n, torch.zeros_like(p.size)) for p in parts]) for n in names},
        )


class _Scratch:
    """Memory to work in, the same for every term: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, values: Tensor) -> Tensor:
        """Of the values' shape and dtype; what it held is gone."""
        if self._buffer is None or self._buffer.numel() < values.numel() or self._buffer.dtype != values.dtype:
            self._buffer = torch.empty(values.numel(), dtype=values.dtype, device=values.device)
        return self._buffer[: values.numel()].view(values.shape)

    def absolute(self, values: Tensor) -> Tensor:
        return values.abs() if torch.is_grad_enabled() else torch.abs(values, out=self.like(values))


class _Sizes:
    """Sums of absolute values, as terms come.

    Args:
        exact: Whether to sum up every element; or some ten thousand of each term, for what all of it has.
    """

    def __init__(self, exact: bool = True) -> None:
        self._exact = exact
        self._size: Tensor | None = None
        self._unplaced: dict[str | None, Tensor] = {}

    def add(self, term: Term) -> None:
        with torch.no_grad():
            step, dim = 1, 1
            if not self._exact and term.remainder.ndim == term.gradient.ndim > 2:
                sizes = term.gradient.shape[1:-1]
                dim = 1 + sizes.index(max(sizes))
                step = min(term.gradient.numel() // _SAMPLE, max(sizes) // 4) | 1  # odd: not in step with a width
            values = self._every(step, dim, term.gradient) * self._every(step, dim, term.remainder)
            scale = term.gradient.size(dim) / values.size(dim) if step > 1 else 1.0
            size = term.summed(self._size_of(values)) * scale
            self._take(size)
            nowhere = term.spread.nowhere
            if isinstance(nowhere, Tensor):
                absent = self._every(step, dim, term.spread.absent(values.device))
                self._lose(term.lost, term.summed(self._size_of(values * absent)) * scale)
            elif nowhere:
                self._lose(term.lost, size)

    @staticmethod
    def _every(step: int, dim: int, values: Tensor) -> Tensor:
        """Every so manieth along a dimension."""
        return (
            values if step == 1 or values.size(dim) == 1 else values[(slice(None),) * dim + (slice(None, None, step),)]
        )

    @staticmethod
    def _size_of(values: Tensor) -> Tensor:
        return values.abs() if values.ndim == 1 else torch.linalg.vector_norm(values, 1, tuple(range(1, values.ndim)))

    def _take(self, size: Tensor) -> None:
        self._size = size if self._size is None else self._size + size

    def _lose(self, name: str | None, size: Tensor) -> None:
        self._unplaced[name] = self._unplaced[name] + size if name in self._unplaced else size

    def placement(self, products: Sequence[Tensor]) -> Placement:
        """Of all terms, with the inputs', which all have a place."""
        sizes = [per_example(p.detach().abs()).double() for p in products]
        size = sum(sizes[1:], sizes[0])
        size = size if self._size is None else size + self._size
        return Placement(size, {name: u.double() for name, u in self._unplaced.items()})


class AllTerms:
    """Keeps every term: what a decomposition is made of."""

    together = False

    def __init__(self) -> None:
        self._biases: dict[str, Tensor] = {}
        self._sizes = _Sizes()

    def add(self, term: Term) -> Tensor:
        self._biases[term.name] = values = term.values
        self._sizes.add(term)
        return per_example(values)

    def result(self, products: list[Tensor], positions: _Dims) -> TermsByName:
        return TermsByName(products, dict(reversed(self._biases.items())), self._sizes.placement(products))

    def join(self, results: list[TermsByName]) -> TermsByName:
        names = dict.fromkeys(name for result in results for name in result.biases)
        biases = {name: _joined([result.biases.get(name) for result in results]) for name in names}
        placement = Placement.joined([result.placement for result in results])
        return TermsByName(_cat([result.products for result in results]), biases, placement)


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
        biases: Values (N, ...) of each bias term that has a place, and how they lie, by name.
        positions: For each input, the dimensions that are positions.
    """

    products: list[Tensor]
    biases: dict[str, tuple[Tensor, Spread]]
    positions: _Dims

    def __add__(self, other: TermSums) -> TermSums:
        """Those of more samples of the same examples."""
        products = [a + b for a, b in zip(self.products, other.products, strict=True)]
        biases = dict(self.biases)
        for name, (values, spread) in other.biases.items():
            biases[name] = (biases[name][0] + values, spread) if name in biases else (values, spread)
        return TermSums(products, biases, self.positions)

    def examples(self) -> list[TermSums]:
        """Those of each example."""
        return [
            TermSums(
                [product[i : i + 1] for product in self.products],
                {name: (values[i : i + 1], spread.of_row(i)) for name, (values, spread) in self.biases.items()},
                self.positions,
            )
            for i in range(len(self.products[0]))
        ]


@dataclass(frozen=True)
class BatchSums:
    """Terms of a batch, summed over noise samples.

    Attributes:
        parts: Of the batch as a whole; or of each of its examples, where they were run one by one, as then an
            operation's output may be of another length, and lie elsewhere, for each.
        lost: As `InputMaps` has it, of any term.
    """

    parts: list[TermSums]
    lost: str | None

    def __add__(self, other: BatchSums) -> BatchSums:
        """Those of more samples of the same batch."""
        ours, theirs = self.parts, other.parts
        if len(ours) != len(theirs):
            ours, theirs = ([one for part in parts for one in part.examples()] for parts in (ours, theirs))
        return BatchSums([a + b for a, b in zip(ours, theirs, strict=True)], self.lost or other.lost)


class SampleSums:
    """Terms summed over noise samples, the copies of an example standing together."""

    together = False

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._biases: dict[str, tuple[Tensor, Spread]] = {}
        self._lost: str | None = None

    def add(self, term: Term) -> Tensor:
        self._lost = term.lost or self._lost
        values = term.values
        if term.spread.lies:
            copies = self._samples if len(values) > 1 else 1
            self._biases[term.name] = self._summed(values), term.spread.of_first(copies)
        return per_example(values)

    def result(self, products: list[Tensor], positions: _Dims) -> BatchSums:
        sums = TermSums([self._summed(product) for product in products], self._biases, positions)
        return BatchSums([sums], self._lost)

    def join(self, results: list[BatchSums]) -> BatchSums:
        copies = [part for result in results for part in result.parts]
        starts = range(0, len(copies), self._samples)
        lost = next((result.lost for result in results if result.lost), None)
        return BatchSums([reduce(operator.add, copies[start : start + self._samples]) for start in starts], lost)

    def _summed(self, values: Tensor) -> Tensor:
        """(N * samples, ...) to (N, ...); a copy that was run alone waits until it is joined to the others."""
        return values if len(values) == 1 else values.unflatten(0, (-1, self._samples)).sum(1)


@dataclass(frozen=True)
class InputMaps:
    """A map for each input, of its shape.

    Attributes:
        maps: The maps.
        placement: How much of the terms has a place; None where it was not asked for.
        lost: Where no bias term reaches the maps, although there are some: the operation at which the last of them lost
            its place; None otherwise.
    """

    maps: list[Tensor]
    placement: Placement | None
    lost: str | None = None


class _Maps:
    """Cell sums by input and cells, so that those of equal cells are added up before they are spread once."""

    kind: Literal["area", "linear"]
    together = True

    def __init__(self) -> None:
        self._sums: dict[tuple[int, Hashable], tuple[Lie, Tensor]] = {}

    def _put(self, index: int, lie: Lie, values: Tensor) -> None:
        key = index, lie.key
        self._sums[key] = lie, self._sums[key][1] + values if key in self._sums else values

    def on_grid(self, index: int, x: Tensor, positions: Sequence[int]) -> Tensor | None:
        """The sum over what lies on an input, at each of its positions (N, *positions); None if nothing does."""
        sizes = [x.size(d) for d in positions]
        total: Tensor | None = None
        for (i, _), (lie, values) in self._sums.items():
            if i == index:
                at = lie.on_positions(values, self.kind)
                at = at.reshape(-1, *[x.size(d) if d in lie.dims else 1 for d in positions])
                at = at if self.kind == "linear" else at / math.prod(x.size(d) for d in positions if d not in lie.dims)
                total = at if total is None else total + at
        return None if total is None else total.expand(-1, *sizes)

    def plus_biases(self, index: int, own: Tensor, positions: Sequence[int]) -> Tensor:
        """An input's own map, of the input's shape, plus what the terms put on it."""
        placed = self.on_grid(index, own, positions)
        return own if placed is None else own + _over_channels(placed, own, positions)


class SignedMaps(_Maps):
    """Signed cell sums of every term, spread over the positions of each cell; what has no place, over everything.

    Args:
        exact: Whether to measure exactly how much of the terms has a place.
    """

    kind = "area"

    def __init__(self, exact: bool = False) -> None:
        super().__init__()
        self._unplaced: Tensor | None = None
        self._sizes = _Sizes(exact)

    def add(self, term: Term) -> Tensor:
        channelwise = _channelwise(term)
        if channelwise is not None:
            (index,) = term.spread.lies
            bias = term.remainder.flatten(1)
            weights = bias.unsqueeze(1).expand(len(term.gradient), -1, -1)
            placed = torch.bmm(weights, term.gradient.flatten(2)).squeeze(1)
            self._put(index, channelwise, term.summed(placed).reshape(-1, *channelwise.shape))
            self._sizes.add(term)
            return placed.sum(1)
        values = term.values
        self._sizes.add(term)
        if len(term.spread.lies) == 1 and term.spread.nowhere is False:
            ((index, lie),) = term.spread.lies.items()
            sums = lie.sums(values)
            self._put(index, lie, term.summed(sums))
            return per_example(sums)
        total, rest = per_example(values), None
        for index, lie in term.spread.lies.items():
            sums = lie.sums(values)
            self._put(index, lie, term.summed(sums))
            rest = (total if rest is None else rest) - per_example(sums)
        if term.spread.nowhere is not False:
            rest = term.summed(total if rest is None else rest)
            self._unplaced = rest if self._unplaced is None else self._unplaced + rest
        return total

    def result(self, products: list[Tensor], positions: _Dims) -> InputMaps:
        """All maps together sum to f(x)."""
        maps = [self.plus_biases(i, p, d) for i, (p, d) in enumerate(zip(products, positions, strict=True))]
        if self._unplaced is not None:
            share = self._unplaced / sum(m[0].numel() for m in maps)
            maps = [m + share.view(-1, *[1] * (m.ndim - 1)) for m in maps]
        return InputMaps(maps, self._sizes.placement(products))

    def join(self, results: list[InputMaps]) -> InputMaps:
        return _joined_maps(results)


def _joined_maps(results: list[InputMaps]) -> InputMaps:
    placements = [r.placement for r in results if r.placement is not None]
    lost = results[0].lost if all(r.lost is not None for r in results) else None
    return InputMaps(_cat([r.maps for r in results]), Placement.joined(placements) if placements else None, lost)


class SaliencyMaps(_Maps):
    """psi of every term that has a place: |.|, rescaled to [0, 1] over the term, summed over channels, upsampled.

    Rescaling subtracts the minimum and divides by the maximum + 1e-6, over channels and positions of an example, as the
    reference implementation does. Upsampling is linear, so channels and terms are summed before it.

    Args:
        measure: Whether to measure how much of the terms has a place.
    """

    kind = "linear"

    def __init__(self, measure: bool = False) -> None:
        super().__init__()
        self._scratch = _Scratch()
        self._sizes = _Sizes() if measure else None
        self._lost: str | None = None

    def add(self, term: Term) -> Tensor:
        self._lost = term.lost or self._lost
        channelwise = _channelwise(term)
        if channelwise is not None:
            return self._add_channelwise(term, channelwise)
        values = self._product(term)
        total = per_example(values)
        if self._sizes is not None:
            self._sizes.add(term)
        if term.spread.lies:
            self.add_size(values.abs() if values.requires_grad else values.abs_(), term.spread, term.summed)
        return total

    def add_size(self, size: Tensor, spread: Spread, summed: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        """Add what is left of psi once absolute values (N, ...) have been taken, of one term or several."""
        low, high = _extremes(size, spread)
        for index, lie in spread.lies.items():
            view = [-1, *[1] * len(lie.shape)]
            smallest, largest = low.view(view), high.view(view)
            psi = (lie.sums(size) - lie.counts(size) * smallest) / (largest - smallest + _EPS)
            self._put(index, lie, summed(psi))

    def result(self, products: list[Tensor], positions: _Dims) -> InputMaps:
        """psi of the input term plus psi of the bias terms."""
        maps = [self.plus_biases(i, _rescaled(p), d) for i, (p, d) in enumerate(zip(products, positions, strict=True))]
        placement = None if self._sizes is None else self._sizes.placement(products)
        return InputMaps(maps, placement, None if self._sums else self._lost)

    def join(self, results: list[InputMaps]) -> InputMaps:
        return _joined_maps(results)

    def _add_channelwise(self, term: Term, lie: Lie) -> Tensor:
        """A bias per channel of a map: the same from |df/dy| alone, without the product."""
        bias = term.remainder.flatten(1)
        size, maps, sums = bias.abs(), [], []
        # A few examples at a time, so that |df/dy| is read again before it leaves the cache.
        for gradient in term.gradient.split(max(1, _WORKING_SET // term.gradient[0].numel())):
            values = self._scratch.absolute(gradient).flatten(2)
            low = (values.amin(2) * size).amin(1, keepdim=True)
            high = (values.amax(2) * size).amax(1, keepdim=True)
            placed = torch.bmm(size.expand(len(values), -1).unsqueeze(1), values).squeeze(1)
            maps.append((placed - values.size(1) * low) / (high - low + _EPS))
            sums.append((gradient.flatten(2).sum(2) * bias).sum(1))
        (index,) = term.spread.lies
        self._put(index, lie, torch.cat(maps).reshape(-1, *lie.shape))
        if self._sizes is not None:
            self._sizes.add(term)
        return torch.cat(sums)

    def _product(self, term: Term) -> Tensor:
        if torch.is_grad_enabled():
            return term.values
        return torch.mul(term.gradient, term.remainder, out=self._scratch.like(term.gradient))


class SimpleSaliencyMaps(SaliencyMaps):
    """psi of df/dy in place of df/dy * r."""

    def add(self, term: Term) -> Tensor:
        self._lost = term.lost or self._lost
        if term.spread.lies:
            self.add_size(term.gradient.abs(), term.spread, term.summed)
        return per_example(term.values)


def smooth_maps(sums: BatchSums) -> InputMaps:
    """psi of summed terms; of an input term, channels are summed before, as the published code does."""
    reached = any(part.biases for part in sums.parts)
    return InputMaps(_cat([_smooth_maps(part) for part in sums.parts]), None, None if reached else sums.lost)


def _smooth_maps(sums: TermSums) -> list[Tensor]:
    maps = SaliencyMaps()
    for values, spread in sums.biases.values():
        maps.add_size(values.abs(), spread)
    own = zip(sums.products, sums.positions, strict=True)
    return [_smooth_map(maps, i, product, dims) for i, (product, dims) in enumerate(own)]


def _smooth_map(maps: SaliencyMaps, index: int, product: Tensor, positions: Sequence[int]) -> Tensor:
    channels = [d for d in range(1, product.ndim) if d not in positions]
    own = _rescaled(product.sum(channels) if channels else product)
    placed = maps.on_grid(index, product, positions)
    return _over_channels(own if placed is None else own + placed, product, positions)


def _channelwise(term: Term) -> Lie | None:
    """How a term lies that is a bias per channel on a regular channels-first map; None if it is not."""
    gradient, r = term.gradient, term.remainder
    per_channel = r.ndim == gradient.ndim > 2 and r.numel() == r.size(1) == gradient.size(1)
    return term.spread.is_channels_first(gradient.shape) if per_channel else None


def _extremes(size: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """(N,) smallest and largest of absolute values (N, ...) among the elements that have a place."""
    if spread.nowhere is False:
        flat = size.reshape(len(size), -1)
        return flat.amin(1), flat.amax(1)
    absent = spread.absent(size.device)
    alike = [d for d in range(1, size.ndim) if absent.size(d) == 1]
    low, high = (size.amin(alike, keepdim=True), size.amax(alike, keepdim=True)) if alike else (size, size)
    return low.masked_fill(absent, math.inf).flatten(1).amin(1), high.masked_fill(absent, 0.0).flatten(1).amax(1)


def _rescaled(values: Tensor) -> Tensor:
    """psi without upsampling: |values| between 0 and 1 in each example."""
    values = values.abs()
    shape = [len(values)] + [1] * (values.ndim - 1)
    low, high = values.flatten(1).amin(1).view(shape), values.flatten(1).amax(1).view(shape)
    return (values - low) / (high - low + _EPS)


def _over_channels(values: Tensor, like: Tensor, positions: Sequence[int]) -> Tensor:
    """A map (N, *positions) shared out evenly over the channels of an input (N, ...)."""
    channels = math.prod(like.size(d) for d in range(1, like.ndim) if d not in positions)
    shape = [len(values), *(like.size(d) if d in positions else 1 for d in range(1, like.ndim))]
    return (values.reshape(shape) / channels).expand(len(values), *like.shape[1:])
