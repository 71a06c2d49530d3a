"""Where on the input grid each element of an activation sits.

Reading a bias term as a picture needs to know which pixel, token or sample it belongs to. Shapes alone cannot tell: a
(N, 64, 49, 96) tensor is 64 channels of a map, or 64 windows of 49 positions. So the numbers of the grid cells are
pushed through the same reshapes, permutations, rolls, slices and concatenations as the activations themselves.

The rest of the engine knows no more of this than: a `Source` makes the place of an input, `propagate` makes those of a
call's outputs, and a `Place` says what a sweep and its maps ask of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.operations import row
from captum_density._model.calls import Call, map_tensors, tensors_in

__all__ = ["Place", "Source", "propagate"]


@dataclass
class Source:
    """One input of the model, and which of its dimensions are positions: the others but the batch are channels.

    (N, F) features, (N, C, H, W) images and (N, C, T, H, W) volumes tell by their number of dimensions. (N, C, L)
    signals and (N, L, E) embeddings do not: `positions` is None until an operation shows which of the two they are.
    """

    index: int
    shape: torch.Size
    positions: tuple[int, ...] | None

    @classmethod
    def of(cls, index: int, tensor: Tensor) -> Source:
        positions = {2: (1,), 4: (2, 3), 5: (2, 3, 4)}
        return cls(index, tensor.shape, None if tensor.ndim == 3 else positions.get(tensor.ndim, ()))

    def final_positions(self) -> tuple[int, ...]:
        """The position dimensions, reading a 3-D input that nothing has settled as (N, L, E)."""
        return (1,) if self.positions is None else self.positions

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of the input's own grid."""
        return tuple(self.shape[d] for d in self.final_positions())

    def place(self, device: torch.device) -> Place:
        """The place of the input itself."""
        dims = (1, 2) if self.positions is None else self.positions
        grid = tuple(self.shape[d] for d in dims)
        shape = [self.shape[d] if d in dims else 1 for d in range(len(self.shape))]
        cells = torch.arange(math.prod(grid), dtype=torch.int32, device=device).view(shape)
        return Place(self, grid, cells, unsettled=self.positions is None, regular=True)


@dataclass(frozen=True)
class Place:
    """Cell numbers of an activation on a grid laid over a source, -1 for elements that have no place.

    `cells` has the activation's number of dimensions, of size 1 wherever the cell does not depend on them.
    """

    source: Source
    grid: tuple[int, ...]
    cells: Tensor
    unsettled: bool = False
    partial: bool = False  # whether some elements have no place
    regular: bool = False  # whether the cells are 0, 1, 2, ... in this order

    # -- what a sweep asks

    def runs_along(self, dim: int) -> bool:
        """Whether elements along a dimension sit in different cells."""
        return self.cells.size(dim) > 1

    def rearranged(self, layout: Callable[[Tensor], Tensor]) -> Place:
        """The place of the same elements in another layout."""
        return replace(self, cells=layout(self.cells))

    # -- what maps ask

    def is_channels_first(self, shape: torch.Size) -> bool:
        """Whether elements of that shape, examples first, lie on a regular map (N, C, *grid) without gaps."""
        return self.regular and not self.partial and len(shape) > 2 and self.cells.shape == (1, *shape[2:])

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sums of values (N, ...) over the elements of each cell (N, cells), and over those without a place (N,)."""
        crowd = [d + 1 for d in range(self.cells.ndim) if self.cells.size(d) == 1 and values.size(d + 1) > 1]
        summed = values.sum(crowd, keepdim=True) if crowd else values
        if self.regular:
            return summed.reshape(len(summed), -1), None
        index = self.cells.flatten().long() + 1
        table = summed.new_zeros(len(summed), math.prod(self.grid) + 1).index_add(
            1, index, summed.reshape(len(summed), -1)
        )
        return table[:, 1:], table[:, 0]

    def counts(self, values: Tensor) -> Tensor | int:
        """How many elements of an example each cell sums up."""
        elements = math.prod(values.shape[1:])
        if self.regular:
            return elements // max(self.cells.numel(), 1)
        index = self.cells.flatten().long() + 1
        count = values.new_full((len(index),), elements // max(len(index), 1))
        return values.new_zeros(math.prod(self.grid) + 1).index_add(0, index, count)[1:]

    def extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1) smallest and largest value (>= 0) of each example, among the elements that have a place."""
        if not self.partial:
            flat = values.reshape(len(values), -1)
            return flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        nowhere = self.cells < 0
        low = values.masked_fill(nowhere, math.inf).flatten(1).amin(1, keepdim=True)
        return low, values.masked_fill(nowhere, 0.0).flatten(1).amax(1, keepdim=True)

    # -- inputs of three dimensions

    def settled(self) -> Place:
        """The same place after the source has found out which of its dimensions are positions."""
        if not self.unsettled or self.source.positions is None:
            return self
        return self._reduced(self.source.positions)

    def final(self) -> Place:
        """The same place, its source read as (N, L, E) where nothing has settled it."""
        return self._reduced(self.source.final_positions()) if self.unsettled else self

    def _reduced(self, positions: tuple[int, ...]) -> Place:
        width = self.grid[1]
        cells = self.cells.div(width, rounding_mode="floor") if positions == (1,) else self.cells % width
        cells = torch.where(self.cells < 0, self.cells, cells)
        return Place(self.source, (self.grid[positions[0] - 1],), _compact(cells), partial=self.partial)


def _settle(call: Call, place: Place) -> None:
    """Learn from an operation that tells channels from positions which dimensions of a 3-D input are which."""
    if not place.unsettled or place.source.positions is not None:
        return
    cells, kind = place.cells, row(call).layout.kind
    if cells.ndim < 2:
        return
    if kind in ("spatial", "channels first") and cells.ndim == 3:
        channel = 1
    elif kind in ("mixed last", "channels last"):
        channel = cells.ndim - 1
    else:
        return
    if cells.size(channel) > 1:
        first, second = cells.flatten().gather(0, _first_two(cells, channel))
        place.source.positions = (1,) if int(second - first) == 1 else (2,)


def _first_two(cells: Tensor, dim: int) -> Tensor:
    """Flat indices of the first two elements along a dimension."""
    return torch.tensor([0, math.prod(cells.shape[dim + 1 :])], device=cells.device)


def propagate(
    call: Call, places: Sequence[Place | None], outputs: Sequence[Tensor], sources: Sequence[Source]
) -> list[Place | None]:
    """The places of a call's outputs.

    Args:
        call: The call.
        places: Those of its activations, in order.
        outputs: What it returned or wrote.
        sources: The model's inputs.
    """
    for place in places:
        if place is not None:
            _settle(call, place)
    operands = [(u, p.settled()) for u, p in zip(call.activations, places, strict=True) if p is not None]
    layout = row(call).layout
    if layout.moves and operands:
        # Of x.t_() and its like the shape it had is gone.
        return [None] * len(outputs) if call.mutated else _moved(call, operands, outputs)
    if layout.kind == "spatial":
        source = operands[0][1].source if operands else sources[0] if len(sources) == 1 else None
        return [_regular(layout.rank, source, operands, y) for y in outputs]
    return [_carried(call, operands, y) for y in outputs]


def _regular(
    rank: int, source: Source | None, operands: Sequence[tuple[Tensor, Place]], output: Tensor
) -> Place | None:
    """A channels-first map (N, C, *grid): of the grid it had, or of a new one in row-major order."""
    for u, place in operands:
        if u.ndim < 3 or place.runs_along(1):
            continue
        if u.shape[:1] + u.shape[2:] == output.shape[:1] + output.shape[2:]:
            return place
    if source is None or output.ndim - 2 != len(source.final_positions()) or rank not in (0, output.ndim - 2):
        return None
    if output.shape[0] != source.shape[0]:
        return None
    grid = tuple(output.shape[2:])
    cells = torch.arange(math.prod(grid), dtype=torch.int32, device=output.device)
    return Place(source, grid, cells.view(1, 1, *grid), regular=True)


def _carried(call: Call, operands: Sequence[tuple[Tensor, Place]], output: Tensor) -> Place | None:
    """Other operations keep the positions they do not mix: elementwise all, a dense layer all but the last."""
    if row(call).layout.kind == "mixed last":
        operands = [(u, mixed) for u, place in operands if (mixed := _mixed(place)) is not None]
    for u, place in operands:
        if u.shape == output.shape:
            return place
    dim = call.argument(1, "dim")
    for u, place in sorted(operands, key=lambda pair: -pair[1].cells.numel()):
        if _broadcasts(place.cells, output):
            return place
        if type(dim) is int and -u.ndim <= dim < u.ndim and place.cells.size(dim) == 1:
            reduced = replace(place, cells=place.cells.squeeze(dim))
            if _broadcasts(reduced.cells, output) and output.numel() * u.size(dim) == u.numel():
                return reduced
    return None


def _mixed(place: Place) -> Place | None:
    """The place after an operation has mixed the last dimension.

    Where that dimension held several cells (patches laid out as channels, merged patches), their mean position counts.
    Distinct positions make the rows and columns of a coarser grid; if there is but one, nothing is left of the place.
    """
    cells = place.cells
    if cells.ndim == 0 or place.unsettled:
        return None
    if cells.size(-1) == 1:
        return place
    here = (cells >= 0).double()
    count = here.sum(-1, keepdim=True)
    rest, numbers, grid = cells.clamp(min=0).long(), torch.zeros_like(count, dtype=torch.int64), list[int]()
    for size in reversed(place.grid):  # from the last dimension of the grid to the first, as cells are numbered
        mean = ((rest % size) * here).sum(-1, keepdim=True) / count
        distinct, rank = torch.unique(mean[count > 0], return_inverse=True)
        numbers[count > 0] += rank * math.prod(grid)
        grid.insert(0, len(distinct))
        rest = rest.div(size, rounding_mode="floor")
    numbers[count == 0] = -1
    if math.prod(grid) <= 1:
        return None
    return Place(place.source, tuple(grid), numbers.int(), partial=bool((count == 0).any()))


def _moved(call: Call, operands: Sequence[tuple[Tensor, Place]], outputs: Sequence[Tensor]) -> list[Place | None]:
    first = operands[0][1]
    if any(place.source is not first.source or place.grid != first.grid for _, place in operands):
        return [None] * len(outputs)
    cells = {id(u): place.cells for u, place in operands}
    for full in (False, True):
        # Small where that says the same: dimensions that do not matter stay of size 1.
        moved = _move(call, cells, full)
        if moved is None or len(moved) != len(outputs):
            continue
        if full or all(_broadcasts(c, y) for c, y in zip(moved, outputs, strict=True)):
            partial = row(call).layout.kind == "selected" or any(place.partial for _, place in operands)
            return [_checked(replace(first, cells=_compact(c) if full else c, regular=False), partial) for c in moved]
    return [None] * len(outputs)


def _checked(place: Place, partial: bool) -> Place | None:
    """The place with `partial` as its cells have it; None if no element, or the whole input in one, is placed."""
    if math.prod(place.grid) == 1:
        return None  # what a dense layer reads after global pooling
    if not partial:
        return place
    nowhere = place.cells < 0
    return None if bool(nowhere.all()) else replace(place, partial=bool(nowhere.any()))


def _move(call: Call, cells: dict[int, Tensor], full: bool) -> list[Tensor] | None:
    """Run a moving operation on cell numbers; constants have no place."""
    if not full and row(call).layout.kind != "permuted" and call.name not in ("getitem", "cat", "pad"):
        return None
    if not full and call.name == "getitem" and any(True for _ in tensors_in(call.args[1])):
        return None  # an index by numbers must meet the sizes it was made for

    if call.name == "unfold":  # which has no integer form, and pads with zeros
        source = cells[id(call.args[0])].expand(call.args[0].shape) + 1
        return [(call.func(source.double(), *call.args[1:], **call.kwargs) - 1).int()] if full else None

    def number(t: Tensor) -> Tensor:
        if id(t) in cells:
            # As contiguous as the activation, or a view that its layout allows would fail here.
            full_cells = cells[id(t)].expand(t.shape)
            return (full_cells.contiguous() if t.is_contiguous() else full_cells) if full else cells[id(t)]
        if not t.is_floating_point():
            return t  # an index or a mask
        return torch.full((1,) * t.ndim, -1, dtype=torch.int32, device=t.device).expand(t.shape)

    args, kwargs = map_tensors(number, (call.args, call.kwargs))
    if call.name == "cat" and not full:
        tensors, dim = args[0], call.argument(1, "dim") or 0
        same = all(t.shape == tensors[0].shape and torch.equal(t, tensors[0]) for t in tensors)
        return [tensors[0]] if same and tensors[0].size(dim) == 1 else None
    try:
        if call.name == "pad":
            return [F.pad(args[0], args[1], call.argument(2, "mode") or "constant", -1)]
        return list(tensors_in(call.func(*args, **kwargs)))
    except (RuntimeError, IndexError, NotImplementedError):
        return None


def _broadcasts(cells: Tensor, output: Tensor) -> bool:
    return cells.ndim == output.ndim and all(c in (1, y) for c, y in zip(cells.shape, output.shape, strict=True))


def _compact(cells: Tensor) -> Tensor:
    """Cut every dimension along which the cells do not change to size 1."""
    for dim in range(cells.ndim):
        head = cells.narrow(dim, 0, min(1, cells.size(dim)))
        if cells.size(dim) > 1 and (cells.stride(dim) == 0 or bool((cells == head).all())):
            cells = head
    return cells
