"""From terms to maps: the consumers of a sweep. Each reduces a term as soon as its gradient is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from captum_density._linear.places import Place, Source, area_matrix, linear_matrix, resize
from captum_density._linear.sweep import Term, per_example

__all__ = ["SaliencyMaps", "SampleSums", "SignedMaps", "SimpleSaliencyMaps", "Terms", "over_channels", "rescaled"]

_EPS = 1e-6  # the reference implementation's, in the rescaling of psi
_WORKING_SET = 2**20  # elements


class Terms:
    """Keeps every term: what a decomposition is made of."""

    def __init__(self) -> None:
        self.biases: dict[str, Tensor] = {}

    def add(self, term: Term) -> Tensor:
        self.biases[term.name] = values = term.values
        return per_example(values)


class SampleSums:
    """Keeps terms summed over noise samples, the copies of an example standing together."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.terms: dict[str, Term] = {}

    def add(self, term: Term) -> Tensor:
        values = term.values
        kept = self.summed(values) if len(values) > 1 else values  # one alone: the caller has to join it to the others
        self.terms[term.name] = replace(term, gradient=kept, remainder=kept.new_ones(()))
        return per_example(values)

    def summed(self, values: Tensor) -> Tensor:
        """(N * samples, ...) to (N, ...)."""
        return values.unflatten(0, (-1, self.samples)).sum(1)


class _Maps:
    """Cell sums by input and grid, so that equal grids are added up before they are resized once."""

    matrix: Callable[[int, int], Tensor]

    def __init__(self) -> None:
        self._maps: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self._sources: dict[int, Source] = {}

    def _put(self, place: Place, values: Tensor) -> None:
        key = (place.source.index, place.grid)
        self._sources[place.source.index] = place.source
        self._maps[key] = self._maps[key] + values if key in self._maps else values

    def source(self, index: int, x: Tensor) -> Source:
        """What the terms have shown of input x: which of its dimensions are positions."""
        return self._sources.get(index) or Source.of(index, x)

    def on_input(self, index: int) -> Tensor | None:
        """The sum over grids on an input's own grid (N, *grid); None if nothing has a place on it."""
        found = [
            resize(values.unflatten(1, grid), self._sources[i].grid, self.matrix) if grid else values
            for (i, grid), values in self._maps.items()
            if i == index
        ]
        return sum(found[1:], found[0]) if found else None


class SignedMaps(_Maps):
    """Signed cell sums of every term, spread over the positions of each cell; what has no place is summed up."""

    matrix = staticmethod(area_matrix)

    def __init__(self) -> None:
        super().__init__()
        self.unplaced: Tensor | None = None

    def add(self, term: Term) -> Tensor:
        if term.place is None:
            total = rest = per_example(term.values)
        else:
            if _is_channelwise(term):
                weights = term.remainder.flatten(1).unsqueeze(1).expand(len(term.gradient), -1, -1)
                placed = torch.bmm(weights, term.gradient.flatten(2)).squeeze(1)
                rest = None
            else:
                placed, rest = _cell_sums(term.values, term.place)
            self._put(term.place, placed)
            total = placed.sum(1) if rest is None else placed.sum(1) + rest
        if rest is not None:
            self.unplaced = rest if self.unplaced is None else self.unplaced + rest
        return total


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
        self._add_psi(values if values.requires_grad else values.abs_(), term.place)
        return total

    def _add_psi(self, values: Tensor, place: Place) -> None:
        values = values.abs() if values.requires_grad else values
        low, high = _range(values, place)
        placed, _ = _cell_sums(values, place)
        self._put(place, (placed - _counts(values, place) * low) / (high - low + _EPS))

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
            self._add_psi(term.gradient.abs(), term.place)
        return per_example(term.values)


def _is_channelwise(term: Term) -> bool:
    """Whether the term is a bias per channel on a regular channels-first map."""
    place, gradient, r = term.place, term.gradient, term.remainder
    return (
        place is not None
        and not place.partial
        and gradient.ndim > 2
        and place.cells.shape == (1, *gradient.shape[2:])
        and r.ndim == gradient.ndim
        and r.numel() == r.size(1) == gradient.size(1)
        and place.regular
    )


def _cell_sums(values: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
    """Sums over the elements of each cell (N, cells), and over those without a place (N,)."""
    crowd = [d + 1 for d in range(place.cells.ndim) if place.cells.size(d) == 1 and values.size(d + 1) > 1]
    summed = values.sum(crowd, keepdim=True) if crowd else values
    if place.regular:
        return summed.reshape(len(summed), -1), None
    index = place.cells.flatten().long() + 1
    table = summed.new_zeros(len(summed), math.prod(place.grid) + 1).index_add(
        1, index, summed.reshape(len(summed), -1)
    )
    return table[:, 1:], table[:, 0]


def _counts(values: Tensor, place: Place) -> Tensor | int:
    """How many elements of an example each cell sums up."""
    elements = math.prod(values.shape[1:])
    if place.regular:
        return elements // max(place.cells.numel(), 1)
    index = place.cells.flatten().long() + 1
    count = values.new_full((len(index),), elements // max(len(index), 1))
    return values.new_zeros(math.prod(place.grid) + 1).index_add(0, index, count)[1:]


def _range(values: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """(N, 1) smallest and largest value of each example, among the elements that have a place."""
    if not place.partial:
        flat = values.reshape(len(values), -1)
        return flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    nowhere = place.cells < 0
    low = values.masked_fill(nowhere, math.inf).flatten(1).amin(1, keepdim=True)
    return low, values.masked_fill(nowhere, 0.0).flatten(1).amax(1, keepdim=True)


def rescaled(values: Tensor) -> Tensor:
    """psi without upsampling: |values| between 0 and 1 in each example."""
    values = values.abs()
    shape = [len(values)] + [1] * (values.ndim - 1)
    low, high = values.flatten(1).amin(1).view(shape), values.flatten(1).amax(1).view(shape)
    return (values - low) / (high - low + _EPS)


def over_channels(values: Tensor, source: Source) -> Tensor:
    """A map (N, *grid) shared out evenly over the channels of an input of shape (N, ...)."""
    positions = source.final_positions()
    shape = [source.shape[d] if d in positions else 1 for d in range(len(source.shape))]
    shape[0] = len(values)
    channels = math.prod(source.shape[1:]) // math.prod(source.grid)
    return (values.reshape(shape) / channels).expand(len(values), *source.shape[1:])
