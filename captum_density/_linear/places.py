"""Where the elements of an activation lie along each dimension of each input, the examples' among them.

Shapes alone cannot tell: a (N, 64, 49, 96) tensor is 64 channels of a map, or 64 windows of 49 positions. So every
activation carries, for each dimension of each input, an `Axis`: small integers that say for each of its elements which
interval of positions along that dimension it stands over. They go through the same reshapes, rolls and
concatenations as the activation itself (`layouts`), on the host, once for each shape (`propagation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from captum_density._linear.grids import Cells, resize

__all__ = [
    "NOWHERE",
    "Axis",
    "Lie",
    "Place",
    "Spread",
    "compact",
    "encoded",
    "exact",
    "examples_place",
    "hull",
    "input_place",
    "join",
    "merged",
]

CONSTANT = -1
_SPARSE = 16  # cells for each element that make a table too large,
_SMALL = 2**14  # unless they are as few as this
_WORKING_SET = 2**22  # elements


@dataclass(frozen=True, eq=False)
class Axis:
    """Where elements lie along one dimension of one input.

    Attributes:
        codes: Which of the cells each element stands over, -1 for one that is the same whatever stands there. Of the
            activation's number of dimensions, of size 1 along those that it does not depend on; on the host.
        cells: The intervals.
    """

    codes: Tensor
    cells: Cells

    def with_codes(self, codes: Tensor) -> Axis:
        return Axis(codes, self.cells)

    def canonical(self) -> Axis:
        """The one axis with these codes and cells."""
        return _axes.setdefault((self.cells, self.codes.shape, self.codes.numpy().tobytes()), self)

    @cached_property
    def varies(self) -> bool:
        return self.codes.numel() > 1

    @cached_property
    def has_constants(self) -> bool:
        return bool((self.codes < 0).any())

    @cached_property
    def tells(self) -> bool:
        """Whether any element stands over less than the whole dimension."""
        return bool(self.known.any())

    @cached_property
    def known(self) -> Tensor:
        """Of the codes' shape, whether an element stands over less than the whole dimension."""
        return (self.codes >= 0) & ~self.cells.whole[self.codes.clamp(min=0).long()]

    @cached_property
    def is_raw(self) -> bool:
        """Whether elements lie one by one in the dimension's own order, along one of the activation's."""
        k = self.cells.size
        return (
            self.codes.numel() == k == len(self.cells)
            and k in self.codes.shape
            and bool((self.cells.bounds[:, 0] == torch.arange(k, dtype=torch.float64, device="cpu")).all())
            and bool((self.cells.bounds[:, 1] - self.cells.bounds[:, 0] == 1).all())
            and bool((self.codes.flatten() == torch.arange(k, device="cpu")).all())
        )


# The dimension of an input, and the axes along it: one, or several where a reshape has split it as 784 to 28, 28.
Axes = Mapping[tuple[int, int], tuple[Axis, ...]]
Arrange = Callable[[Tensor], Tensor]


class Place:
    """Where the elements of an activation lie: axes by (input, dimension); those of other inputs are constant."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self._spreads: dict[object, Spread | None] = {}
        self._arranges: dict[object, Arrange | None] = {}

    @cached_property
    def telling(self) -> frozenset[tuple[int, int]]:
        """The dimensions, but for those of examples, along which elements are told apart."""
        return frozenset(key for key, axes in self.axes.items() if key[1] > 0 and any(a.tells for a in axes))

    @cached_property
    def everywhere(self) -> bool:
        """Whether every element has a place."""
        known = [a.known for key in self.telling for a in self.axes[key]]
        return bool(known) and bool(_any(known).all())

    @cached_property
    def is_beside(self) -> bool:
        """Whether it is made of nothing that has positions, see `examples_place`."""
        return all(dim == 0 for _, dim in self.axes)

    @cached_property
    def is_flat(self) -> bool:
        """Whether it is that of one dimension of features beside the examples, in one piece."""
        return all(key[1] <= 1 and len(axes) == 1 for key, axes in self.axes.items())

    @property
    def nbytes(self) -> int:
        return sum(4 * a.codes.numel() for axes in self.axes.values() for a in axes)

    def spread(self, shape: torch.Size, n: int, positions: tuple[tuple[int, ...], ...]) -> Spread | None:
        """How terms of that shape, of n examples, lie on the inputs; None if their examples are not told apart.

        Args:
            shape: That of the activation.
            n: The number of examples.
            positions: For each input, the dimensions that are positions.
        """
        arrange = self._arrange(shape, n)
        key = shape if arrange is not _as_they_are else None, n, positions
        if key not in self._spreads:
            self._spreads[key] = None if arrange is None else _spread(self, arrange, positions)
        return self._spreads[key]

    def _arrange(self, shape: torch.Size, n: int) -> Arrange | None:
        """What brings a tensor of that shape into the form (N, ...); None if its examples are not told apart."""
        key = shape, n
        if key not in self._arranges:
            self._arranges[key] = _by_examples(self, shape, n) or by_shape(shape, n)
        return self._arranges[key]

    def canonical(self) -> Place:
        """The one place with these axes, which remembers what has been made of it."""
        axes = {key: tuple(a.canonical() for a in own) for key, own in self.axes.items()}
        return _places.setdefault(tuple(axes.items()), Place(axes))


_axes: WeakValueDictionary[object, Axis] = WeakValueDictionary()
_places: WeakValueDictionary[object, Place] = WeakValueDictionary()

NOWHERE = Place({})


def input_place(index: int, shape: Sequence[int]) -> Place:
    """The place of an input itself."""
    axes = {}
    for dim, size in enumerate(shape):
        view = [size if d == dim else 1 for d in range(len(shape))]
        codes = torch.arange(size, dtype=torch.int32, device="cpu").view(view)
        axes[index, dim] = (Axis(codes, Cells.even(size, size)),)
    return Place(axes)


def examples_place(index: int, shape: Sequence[int]) -> Place:
    """The place of an input of which it only matters which example an element belongs to."""
    whole = input_place(index, shape).axes
    return Place({key: axes for key, axes in whole.items() if key[1] == 0})


# -- what rules are made of


def compact(codes: Tensor, dims: Iterable[int] | None = None) -> Tensor:
    """Cut every dimension along which the codes do not change to size 1."""
    for dim in range(codes.ndim) if dims is None else dims:
        if codes.size(dim) > 1:
            head = codes.narrow(dim, 0, 1)
            if codes.stride(dim) == 0 or bool((codes == head).all()):
                codes = head
    return codes


def encoded(lo: Tensor, hi: Tensor, size: int, extent: tuple[float, float]) -> Axis:
    """The axis of elements that lie from lo to hi; where hi <= lo they are constant."""
    constant = hi <= lo
    lows, low = torch.unique(lo.masked_fill(constant, 0), return_inverse=True)
    highs, high = torch.unique(hi.masked_fill(constant, size), return_inverse=True)
    pairs, codes = torch.unique((low * len(highs) + high).masked_fill(constant, -1), return_inverse=True)
    if len(pairs) and int(pairs[0]) < 0:
        pairs, codes = pairs[1:], codes - 1
    bounds = torch.stack([lows[pairs // len(highs)], highs[pairs % len(highs)]], 1)
    return Axis(compact(codes.int()), Cells.of(size, bounds, extent))


def bounds(axis: Axis, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(lo, hi) of elements, inf and -inf of constants."""
    codes = axis.codes if codes is None else codes
    if not len(axis.cells):
        return torch.full_like(codes, math.inf, dtype=torch.float64), torch.full_like(
            codes, -math.inf, dtype=torch.float64
        )
    both = axis.cells.bounds[codes.clamp(min=0).long()]
    constant = codes < 0
    return both[..., 0].masked_fill(constant, math.inf), both[..., 1].masked_fill(constant, -math.inf)


def extent(axis: Axis) -> tuple[float, float]:
    """What the elements stand over: the extent of their cells, or less of it where some were cut away."""
    used = torch.unique(axis.codes[axis.codes >= 0])
    if len(used) in (0, len(axis.cells)):
        return axis.cells.extent
    lo, hi = bounds(axis, used)
    return float(lo.min()), float(hi.max())


def hull(axis: Axis, dims: Sequence[int]) -> Axis:
    """The axis of what mixes all elements along some dimensions, which are kept with size 1."""
    mixed = [d for d in dims if axis.codes.size(d) > 1]
    if not mixed:
        return axis
    lo, hi = bounds(axis)
    lo, hi = _to_ends(axis.cells, lo.amin(mixed, keepdim=True), hi.amax(mixed, keepdim=True))
    return encoded(lo, hi, axis.cells.size, axis.cells.extent)


def _to_ends(cells: Cells, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """What takes in all cells stands over all that they do: centres of windows leave out the borders."""
    if not len(cells):
        return lo, hi
    everything = (lo <= cells.bounds[:, 0].min()) & (hi >= cells.bounds[:, 1].max())
    return lo.masked_fill(everything, cells.extent[0]), hi.masked_fill(everything, cells.extent[1])


def resampled(axis: Axis, dim: int, starts: Tensor, ends: Tensor) -> Axis:
    """The axis of elements of which each stands over [start, end) along a dimension, in its elements and broken."""
    n = axis.codes.size(dim)
    if n == 1:
        return axis
    edges = torch.arange(n + 1, dtype=torch.float64, device="cpu")
    if torch.equal(starts, edges[:-1]) and torch.equal(ends, edges[1:]):
        return axis
    first = starts.floor().long().clamp(0, n - 1)
    last = (ends.ceil().long() - 1).clamp(0, n - 1).maximum(first)
    a, b = axis.codes.index_select(dim, first), axis.codes.index_select(dim, last)
    for step in range(1, n):  # constants that were padded: the nearest element within that is not
        if not bool(((a < 0) | (b < 0)).any()) or step > int((last - first).max()):
            break
        a = torch.where(a < 0, axis.codes.index_select(dim, (first + step).minimum(last)), a)
        b = torch.where(b < 0, axis.codes.index_select(dim, (last - step).maximum(first)), b)
    view = [-1 if d == dim else 1 for d in range(a.ndim)]
    before, after = (starts - first).view(view), (ends - last).view(view)
    (lo_a, hi_a), (lo_b, hi_b) = bounds(axis, a), bounds(axis, b)
    wide_a, wide_b = hi_a - lo_a, hi_b - lo_b
    backwards = lo_a > lo_b
    lo = torch.where(backwards, hi_b - after * wide_b, lo_a + before * wide_a)
    hi = torch.where(backwards, hi_a - before * wide_a, lo_b + after * wide_b)
    lo, hi = lo.masked_fill((a < 0) | (b < 0), math.inf), hi.masked_fill((a < 0) | (b < 0), -math.inf)
    lo, hi = _to_ends(axis.cells, lo, hi)
    return encoded(lo, hi, axis.cells.size, extent(axis))


def join(axes: Sequence[Axis], rank: int) -> Axis:
    """The axis of elements made of several that broadcast: an interval within the others wins, otherwise the hull."""
    joined = _ranked(axes[0], rank)
    for axis in axes[1:]:
        joined = _join(joined, _ranked(axis, rank))
    return joined


def _ranked(axis: Axis, rank: int) -> Axis:
    missing = rank - axis.codes.ndim
    return axis if missing <= 0 else axis.with_codes(axis.codes[(None,) * missing])


def _join(a: Axis, b: Axis) -> Axis:
    if a.cells is b.cells and (a.codes is b.codes or torch.equal(a.codes, b.codes)):
        return a
    for one, other in ((a, b), (b, a)):
        if not one.tells and (not other.has_constants or not bool((one.codes >= 0).any())):
            return other  # the whole contains everything, and a constant adds nothing
    lo_a, hi_a = bounds(a)
    lo_b, hi_b = bounds(b)
    pair = (a.codes.long() + 1) * (len(b.cells) + 1) + b.codes + 1
    pairs, which = torch.unique(pair, return_inverse=True)
    (lo_a, hi_a), (lo_b, hi_b) = bounds(a, pairs // (len(b.cells) + 1) - 1), bounds(b, pairs % (len(b.cells) + 1) - 1)
    first = (hi_b <= lo_b) | ((lo_b <= lo_a) & (hi_a <= hi_b) & (lo_a < hi_a))
    second = ~first & ((hi_a <= lo_a) | ((lo_a <= lo_b) & (hi_b <= hi_a)))
    lo = torch.where(first, lo_a, torch.where(second, lo_b, torch.minimum(lo_a, lo_b)))
    hi = torch.where(first, hi_a, torch.where(second, hi_b, torch.maximum(hi_a, hi_b)))
    constant = hi <= lo
    table = encoded(lo, hi, a.cells.size, _wider(a.cells.extent, b.cells.extent))
    codes = table.codes.expand(lo.shape).masked_fill(constant, CONSTANT)
    return table.with_codes(compact(codes[which]))


def _wider(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


def merged(axes: Sequence[Axis]) -> Axis:
    """One axis of a dimension that had been split."""
    whole = axes[0]
    for axis in axes[1:]:
        rows, columns = whole.cells.size, axis.cells.size
        (lo_a, hi_a), (lo_b, hi_b) = bounds(whole), bounds(axis)
        constant = torch.isinf(lo_a) & torch.isinf(lo_b)
        lo_a, hi_a = _filled(lo_a, hi_a, rows)
        lo_b, hi_b = _filled(lo_b, hi_b, columns)
        lo, hi = lo_a * columns + lo_b, (hi_a - 1) * columns + hi_b
        lo, hi, constant = torch.broadcast_tensors(lo, hi, constant)
        whole = encoded(
            lo.masked_fill(constant, math.inf), hi.masked_fill(constant, -math.inf), rows * columns,
            (0.0, float(rows * columns)),
        )  # fmt: skip
    return whole


def exact(axes: Sequence[Axis]) -> Sequence[Axis]:
    """One axis for several of a dimension that had been split, where that says the same; otherwise as they are.

    Several along different dimensions are rows and columns of a flat image, which are not to be strung together.
    """
    if len({tuple(c > 1 for c in a.codes.shape) for a in axes if a.varies}) > 1 or len(axes) < 2:
        return axes
    whole = axes[0]
    for axis in axes[1:]:
        (lo_a, hi_a), (lo_b, hi_b) = bounds(whole), bounds(axis)
        alike = (hi_a - lo_a == 1) | ((lo_b <= 0) & (hi_b >= axis.cells.size))
        if whole.has_constants or axis.has_constants or not bool(alike.all()):
            return axes
        whole = merged([whole, axis])
    return [whole]


def _filled(lo: Tensor, hi: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Constants stand over everything."""
    return lo.masked_fill(torch.isinf(lo), 0), hi.masked_fill(torch.isinf(hi), size)


# -- how terms lie on the inputs


@dataclass(frozen=True, eq=False)
class Lie:
    """How the elements of one example's terms lie on an input: a table of cells along its positions.

    The table is the product of the cells along each dimension, as those of a map are, unless it were far larger than
    what lies in it (where rows depend on columns, as in x + x.mT): then it is a list of the cells that occur.

    Attributes:
        index: Which of the table's cells an element adds to, 0 for none and counted from 1; for (N, ...), of size 1
            along dimensions that do not matter.
        axes: Along each dimension of the table.
        dims: Which dimension of the input each belongs to; one that was split has several.
        regular: Whether the cells are 1, 2, ... in this order.
        share: What an element's term is multiplied by where it lies on several inputs.
        listed: Of a list, which cell of each axis its cells stand over, counted from the one for constants.
    """

    index: Tensor
    axes: tuple[Axis, ...]
    dims: tuple[int, ...]
    regular: bool
    share: Tensor | None
    listed: tuple[Tensor, ...] | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Cells along each dimension of the table, after one for constants if there are any; of a list, its length."""
        return _table(self.axes) if self.listed is None else (len(self.listed[0]),)

    @cached_property
    def key(self) -> Hashable:
        """Equal for those whose sums can be added."""
        listed = None if self.listed is None else tuple(codes.numpy().tobytes() for codes in self.listed)
        return self.dims, tuple((a.cells, a.has_constants) for a in self.axes), listed

    def on_positions(self, sums: Tensor, kind: Literal["area", "linear"]) -> Tensor:
        """From sums by cell (N, *cells) to values at the positions along each axis, (N, *positions)."""
        matrices = [a.cells.matrix(kind, a.has_constants, sums) for a in self.axes]
        if self.listed is None:
            return resize(sums, matrices)
        columns = [m[:, codes.to(m.device)] for m, codes in zip(matrices, self.listed, strict=True)]
        result = sums.new_zeros(len(sums), *(len(m) for m in matrices))
        step = max(1, _WORKING_SET // math.prod([len(sums), *(len(m) for m in matrices[:-1])]))
        for start in range(0, sums.size(1), step):
            *others, last = (c[:, start : start + step] for c in columns)
            part = sums[:, start : start + step]
            for other in others:
                part = part.unsqueeze(-2) * other
            result = result + part @ last.T
        return result

    @cached_property
    def _copies(self) -> dict[object, Tensor]:
        return {}

    def _on(self, what: str, make: Callable[[], Tensor], device: torch.device) -> Tensor:
        key = what, device
        if key not in self._copies:
            self._copies[key] = make().to(device)
        return self._copies[key]

    def sums(self, values: Tensor) -> Tensor:
        """Sums of values (N, ...) over the elements of each cell, (N, *cells)."""
        if self.share is not None:
            values = values * self._on("share", lambda: self.share, values.device).to(values)  # type: ignore[arg-type, return-value]
        crowd = [d for d in range(1, values.ndim) if self.index.size(d) == 1 and values.size(d) > 1]
        summed = values.sum(crowd, keepdim=True) if crowd else values
        n, cells = len(values), math.prod(self.shape)
        if self.regular:
            return summed.reshape(n, *self.shape)
        if self.index.size(0) == 1:
            index = self._on("index", lambda: self.index.flatten().long(), values.device)
            table = summed.new_zeros(n, cells + 1).index_add(1, index, summed.reshape(n, -1))
        else:  # cells that differ by example
            index = self._on("rows", lambda: self._rows(), values.device)
            table = summed.new_zeros(n * (cells + 1)).index_add(0, index, summed.reshape(-1)).view(n, -1)
        return table[:, 1:].reshape(n, *self.shape)

    def _rows(self) -> Tensor:
        offsets = torch.arange(len(self.index), device="cpu") * (math.prod(self.shape) + 1)
        return (self.index.long() + offsets.view(-1, *[1] * (self.index.ndim - 1))).flatten()

    def counts(self, values: Tensor) -> Tensor:
        """(1 or N, *cells) how many elements of an example each cell sums up."""
        if self.regular and self.share is None:
            return values.new_full((1, *[1] * len(self.shape)), values[0].numel() // max(self.index.numel(), 1))
        shape = len(values) if self.index.size(0) > 1 else 1, *values.shape[1:]
        key = shape, values.dtype, values.device
        if key not in self._copies:
            self._copies[key] = self.sums(values.new_ones(()).expand(shape))
        return self._copies[key]


@dataclass(frozen=True, eq=False)
class Spread:
    """How the terms of an operation lie on the inputs.

    Attributes:
        arrange: What brings tensors that broadcast to the activation into the form (N, ...).
        lies: By input, of those on which any element has a place.
        nowhere: (N or 1, ...) which elements have no place; a bool where that holds for none, or for all.
        sources: The inputs that the activation is made of; none where that could not be followed.
    """

    arrange: Arrange
    lies: dict[int, Lie]
    nowhere: Tensor | bool
    sources: frozenset[int] = frozenset()

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all examples lie alike."""
        own = [t for lie in self.lies.values() for t in (lie.index, lie.share) if t is not None]
        own += [self.nowhere] if isinstance(self.nowhere, Tensor) else []
        return all(len(t) == 1 for t in own)

    def absent(self, device: torch.device) -> Tensor:
        """`nowhere`, where it is a tensor."""
        assert isinstance(self.nowhere, Tensor)
        if device not in self._copies:
            self._copies[device] = self.nowhere.to(device)
        return self._copies[device]

    def is_channels_first(self, shape: torch.Size) -> Lie | None:
        """The one lie of elements of that shape, examples first, on a regular map (N, C, *cells), if it is one."""
        if len(self.lies) != 1 or self.nowhere is not False or len(shape) < 3:
            return None
        (lie,) = self.lies.values()
        return lie if lie.regular and lie.share is None and lie.index.shape == (1, 1, *shape[2:]) else None

    def with_pairs(self) -> Spread:
        """The same of complex numbers, which are pairs of real ones."""

        def wider(t: Tensor) -> Tensor:
            return t.unsqueeze(-1)

        lies = {
            i: replace(lie, index=wider(lie.index), share=None if lie.share is None else wider(lie.share))
            for i, lie in self.lies.items()
        }
        nowhere = wider(self.nowhere) if isinstance(self.nowhere, Tensor) else self.nowhere
        return Spread(self.arrange, lies, nowhere, self.sources)

    def of_first(self, copies: int) -> Spread:
        """The same of every so manieth example."""
        return self if copies == 1 else self._rows(lambda t: t[::copies])

    def of_row(self, i: int) -> Spread:
        """The same of one example."""
        return self._rows(lambda t: t[i : i + 1] if len(t) > 1 else t)

    def _rows(self, rows: Callable[[Tensor], Tensor]) -> Spread:
        lies = {
            i: replace(lie, index=rows(lie.index), share=None if lie.share is None else rows(lie.share))
            for i, lie in self.lies.items()
        }
        nowhere = rows(self.nowhere) if isinstance(self.nowhere, Tensor) else self.nowhere
        return Spread(self.arrange, lies, nowhere, self.sources)


def _as_they_are(t: Tensor) -> Tensor:
    return t


def by_shape(shape: torch.Size, n: int) -> Arrange | None:
    """What brings a tensor of this shape, of n examples, into the form (N, ...), where nothing but the shape tells."""
    if shape and shape[0] == n:
        return _as_they_are
    if len(shape) > 1 and shape[1] == n:
        return lambda t: t.transpose(0, 1)
    if n == 1:
        return lambda t: t.unsqueeze(0)
    if shape and shape[0] % n == 0 and shape[0] > 0:
        return lambda t: t.reshape(n if t.shape[0] > 1 else 1, -1, *t.shape[1:])
    return None


def _spread(place: Place, arrange: Arrange, positions: Sequence[Sequence[int]]) -> Spread:
    sources = frozenset(index for index, _ in place.axes)
    known: dict[int, Tensor] = {}
    tables: dict[int, tuple[tuple[int, ...], tuple[Axis, ...]]] = {}
    for i, dims in enumerate(positions):
        found = [(d, a) for d in dims for a in exact(place.axes.get((i, d), ()))]
        if any(a.tells for _, a in found):
            axes = tuple(a.with_codes(compact(arrange(a.codes))) for _, a in found)
            tables[i], known[i] = (tuple(d for d, _ in found), axes), _any([a.known for a in axes])
    if not tables:
        return Spread(arrange, {}, True, sources)
    total = sum((k.int() for k in known.values()), torch.zeros((), dtype=torch.int32, device="cpu"))
    lies = {i: _lie(*tables[i], known[i], total if len(tables) > 1 else None) for i in tables}
    nowhere = compact(total == 0)
    return Spread(arrange, lies, nowhere if bool(nowhere.any()) else False, sources)


def _table(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(len(a.cells) + a.has_constants for a in axes)


def _lie(dims: tuple[int, ...], axes: tuple[Axis, ...], known: Tensor, inputs: Tensor | None) -> Lie:
    index = torch.zeros([1] * known.ndim, dtype=torch.int64, device="cpu")
    for axis, size in zip(axes, _table(axes), strict=True):
        index = index * size + axis.codes + int(axis.has_constants)
    index = compact((index + 1) * known)
    share = None if inputs is None or bool((inputs <= 1).all()) else 1 / inputs.clamp(min=1).double()
    cells = math.prod(_table(axes))
    if cells > max(_SMALL, _SPARSE * index.numel()):
        occurring, index = torch.unique(index, return_inverse=True)
        if int(occurring[0]):
            index = index + 1
        else:
            occurring = occurring[1:]
        listed = torch.unravel_index(occurring - 1, _table(axes))
        return Lie(index.int(), axes, dims, False, share, listed)
    regular = (
        index.size(0) == 1
        and index.numel() == cells
        and bool((index.flatten() == torch.arange(1, cells + 1, device="cpu")).all())
    )
    return Lie(index.int(), axes, dims, regular, share)


def _by_examples(place: Place, shape: torch.Size, n: int) -> Arrange | None:
    """What brings a tensor of this shape into the form (N, ...), by which example each element belongs to."""
    batch = [a for key, axes in place.axes.items() if key[1] == 0 for a in axes]
    if n == 1 or not batch:
        return None
    axis = join(batch, len(shape))
    lo, hi = bounds(axis)
    if not bool((hi - lo == 1).all()):
        return None
    dims = [d for d in range(lo.ndim) if lo.size(d) > 1]
    if (
        dims == [0]
        and lo.numel() == n
        and torch.equal(lo.flatten(), torch.arange(n, dtype=torch.float64, device="cpu"))
    ):
        return _as_they_are
    sizes = [shape[d] for d in dims]
    owner = lo.movedim(dims, list(range(len(dims)))).flatten() if dims else lo.flatten()
    if len(owner) != math.prod(sizes) or len(owner) % n:
        return None
    each = len(owner) // n
    order = torch.argsort(owner, stable=True)
    if not torch.equal(owner[order], torch.arange(n, dtype=torch.float64, device="cpu").repeat_interleave(each)):
        return None
    in_order = torch.equal(order, torch.arange(len(order), device="cpu"))

    def arrange(t: Tensor) -> Tensor:
        front = t.movedim(dims, list(range(len(dims))))
        rest = front.shape[len(dims) :]
        if all(front.size(d) == 1 for d in range(len(dims))):
            return front.reshape(1, *([1] if each > 1 else []), *rest)
        flat = front.expand(*sizes, *rest).reshape(len(owner), *rest)
        if not in_order:
            flat = flat.index_select(0, order.to(t.device))
        return flat if each == 1 else flat.reshape(n, each, *rest)

    return arrange


def _any(flags: Sequence[Tensor]) -> Tensor:
    result = flags[0]
    for flag in flags[1:]:
        result = result | flag
    return result
