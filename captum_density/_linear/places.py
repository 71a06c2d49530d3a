"""Where on the input grid each element of an activation sits.

Reading a bias term as a picture needs to know which pixel, token or sample it belongs to. Shapes alone cannot tell: a
(N, 64, 49, 96) tensor is 64 channels of a map, or 64 windows of 49 positions. So the numbers of the grid cells are
pushed through the same reshapes, permutations, rolls, slices and concatenations as the activations themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._model.calls import Call, map_tensors, tensors_in

__all__ = ["Place", "Source", "area_matrix", "linear_matrix", "propagate", "resize", "settle"]

# Operations that only move elements about: done to the cell numbers as they are done to the activation.
_MOVES = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose t T mT H mH adjoint swapaxes
    swapdims movedim moveaxis expand expand_as broadcast_to repeat tile repeat_interleave ravel getitem select narrow
    chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split hsplit vsplit dsplit unbind index_select gather
    take_along_dim diagonal roll flip fliplr flipud rot90 cat concat concatenate stack hstack vstack dstack pad unfold
    """.split()
)

# Those that neither drop nor add elements, so that no place appears or vanishes.
_BIJECTIVE = frozenset("view reshape flatten unflatten squeeze unsqueeze permute transpose roll flip".split())

# Operations on (N, C, *grid): their output is a regular map of its own resolution.
_SPATIAL = {
    **{f"{kind}{k}d": k for kind in ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool") for k in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{k}d": k for kind in ("max", "avg") for k in (1, 2, 3)},
    **{f"max_pool{k}d_with_indices": k for k in (1, 2, 3)},
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "grid_sample"), 2),
    **dict.fromkeys(("interpolate", "upsample", "convolution"), 0),  # of the input's own rank
}
_CHANNELS_FIRST = frozenset({*_SPATIAL, "batch_norm", "instance_norm", "group_norm"})

# Operations that mix the last dimension and leave the others alone.
_MIXES_LAST = frozenset(
    """
    linear bilinear matmul bmm baddbmm mm addmm scaled_dot_product_attention multi_head_attention_forward lstm gru
    rnn_tanh rnn_relu layer_norm rms_norm softmax log_softmax
    """.split()
)
_KEEPS_LAST = frozenset({"layer_norm", "rms_norm", "softmax", "log_softmax"})


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
        known = {2: (1,), 4: (2, 3), 5: (2, 3, 4)}
        return cls(index, tensor.shape, None if tensor.ndim == 3 else known.get(tensor.ndim, ()))

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

    def with_cells(self, cells: Tensor) -> Place:
        """The same grid with the cell numbers of another layout of the same elements."""
        return replace(self, cells=cells)

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


def settle(call: Call, place: Place | None) -> None:
    """Learn from an operation that tells channels from positions which dimensions of a 3-D input are which."""
    if place is None or not place.unsettled or place.source.positions is not None:
        return
    cells, name = place.cells, call.name
    if cells.ndim < 2:
        return
    if name in _CHANNELS_FIRST and cells.ndim == 3:
        channel = 1
    elif name in _MIXES_LAST:
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
    """The places of a call's outputs, from those of its activations (both in order)."""
    known = [(u, p.settled()) for u, p in zip(call.activations, places, strict=True) if p is not None]
    name = call.name
    if name in _MOVES and known and call.mutated:
        return [None] * len(outputs)  # x.t_() and its like: the shape it had is gone
    if name in _MOVES and known:
        return _moved(call, known, outputs)
    if name in _SPATIAL:
        source = known[0][1].source if known else sources[0] if len(sources) == 1 else None
        return [_regular(call, source, known, y) for y in outputs]
    return [_carried(call, known, y) for y in outputs]


def _regular(call: Call, source: Source | None, known: Sequence[tuple[Tensor, Place]], output: Tensor) -> Place | None:
    """A channels-first map (N, C, *grid): of the grid it had, or of a new one in row-major order."""
    rank = output.ndim - 2
    for u, place in known:
        if u.ndim < 3 or place.cells.size(1) > 1:
            continue
        if u.shape[:1] + u.shape[2:] == output.shape[:1] + output.shape[2:]:
            return place
    if source is None or rank != len(source.final_positions()) or _SPATIAL[call.name] not in (0, rank):
        return None
    if output.shape[0] != source.shape[0]:
        return None
    grid = tuple(output.shape[2:])
    cells = torch.arange(math.prod(grid), dtype=torch.int32, device=output.device)
    return Place(source, grid, cells.view(1, 1, *grid), regular=True)


def _carried(call: Call, known: Sequence[tuple[Tensor, Place]], output: Tensor) -> Place | None:
    """Other operations keep the positions they do not mix: elementwise all, a dense layer all but the last."""
    if call.name in _MIXES_LAST - _KEEPS_LAST:
        known = [(u, mixed) for u, place in known if (mixed := _mixed(place)) is not None]
    for u, place in known:
        if u.shape == output.shape:
            return place
    dim = call.argument(1, "dim")
    for u, place in sorted(known, key=lambda pair: -pair[1].cells.numel()):
        if _broadcasts(place.cells, output):
            return place
        if type(dim) is int and -u.ndim <= dim < u.ndim and place.cells.size(dim) == 1:
            reduced = place.with_cells(place.cells.squeeze(dim))
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


def _moved(call: Call, known: Sequence[tuple[Tensor, Place]], outputs: Sequence[Tensor]) -> list[Place | None]:
    first = known[0][1]
    if any(place.source is not first.source or place.grid != first.grid for _, place in known):
        return [None] * len(outputs)
    cells = {id(u): place.cells for u, place in known}
    for full in (False, True):
        # Small where that says the same: dimensions that do not matter stay of size 1.
        moved = _move(call, cells, full)
        if moved is None or len(moved) != len(outputs):
            continue
        if full or all(_broadcasts(c, y) for c, y in zip(moved, outputs, strict=True)):
            partial = call.name not in _BIJECTIVE or any(place.partial for _, place in known)
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
    if not full and call.name not in ("permute", "transpose", "getitem", "cat", "swapaxes", "movedim", "roll", "pad"):
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
