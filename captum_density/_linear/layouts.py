"""Where the outputs of one operation lie, from where its arguments do: what the table of operations holds in a column.

Each rule looks at a call and at the places of its activations, and returns one place for each output, None where it
does not say; then `unknown` does. A rule is written for one axis; `_by_axis` asks it for each dimension of each input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._linear.grids import Cells
from captum_density._linear.jacobian import reach
from captum_density._linear.places import CONSTANT, Axis, Place, compact, encoded, exact, hull, join, merged, resampled
from captum_density._model.calls import Call, map_tensors, tensors_in

__all__ = [
    "Layout",
    "PlacedCall",
    "assigned",
    "attention",
    "concatenated",
    "contracted",
    "convolution",
    "copied",
    "einsum",
    "expanded",
    "indexed",
    "kept",
    "linear",
    "matrix_product",
    "mixed",
    "module_attention",
    "moved",
    "nowhere",
    "padded",
    "paired",
    "patches",
    "permuted",
    "pooled",
    "recurrent",
    "reduced",
    "repeated",
    "reshaped",
    "rolled",
    "shared",
    "unknown",
]

Of = Callable[[Any], "Axis | None"]
Places = Sequence["Place | None"]


@dataclass(frozen=True)
class PlacedCall:
    """A call, the places of its activations by identity, and the shapes of its outputs."""

    call: Call
    places: dict[int, Place]
    shapes: Sequence[torch.Size]

    def operands(self) -> list[Tensor]:
        """The activations that have a place."""
        return [u for u in self.call.activations if id(u) in self.places]


Rule = Callable[[PlacedCall], Places]


@dataclass(frozen=True)
class Layout:
    """How an operation's outputs lie.

    Attributes:
        rule: Their places.
        mixes: Which dimensions of its first activation an operation with weights mixes; None if it has no weights.
        reads: Whether the values of index tensors matter, not only their shapes.
    """

    rule: Rule
    mixes: Callable[[Call], Sequence[int]] | None = None
    reads: bool = False


def whole(size: int, rank: int) -> Axis:
    """The axis of what lies anywhere."""
    return Axis(torch.zeros([1] * rank, dtype=torch.int32, device="cpu"), Cells.even(size, 1))


def _by_axis(step: PlacedCall, rule: Callable[[Of], Sequence[Axis | None]]) -> Places:
    """Ask a rule, which takes the axis of each activation and returns those of the outputs, about every axis."""
    result: list[dict[tuple[int, int], tuple[Axis, ...]]] = [{} for _ in step.shapes]
    operands = [step.places[id(u)] for u in step.operands()]
    for key in dict.fromkeys(key for place in operands for key in place.axes):
        split = {tuple(a.cells.size for a in place.axes[key]) for place in operands if key in place.axes}
        ways: list[Sequence[Axis | None]] = []
        for j in range(len(next(iter(split))) if len(split) == 1 else 1):

            def of(t: Any, j: int = j, key: tuple[int, int] = key, one: bool = len(split) == 1) -> Axis | None:
                axes = step.places[id(t)].axes.get(key) if id(t) in step.places else None
                return None if axes is None else axes[j] if one else merged(axes)

            ways.append(rule(of))
        for number, shape in enumerate(step.shapes):
            axes = [way[number] if number < len(way) else None for way in ways]
            if any(a is None or not _fits(a.codes, shape) for a in axes):
                axes = [_fallback(step, key, shape)]
            result[number][key] = tuple(a for a in axes if a is not None)
    return [Place(axes) if axes else None for axes in result]


def _fits(codes: Tensor, shape: Sequence[int]) -> bool:
    return codes.ndim == len(shape) and all(c in (1, y) for c, y in zip(codes.shape, shape, strict=True))


def _fallback(step: PlacedCall, key: tuple[int, int], shape: torch.Size) -> Axis:
    """What nothing is known of lies anywhere, within its example if examples still stand first."""
    size = 0
    for u in step.operands():
        for axis in step.places[id(u)].axes.get(key, ()):
            size = max(size, 1) * axis.cells.size
            codes = axis.codes
            first = codes.ndim > 0 and codes.numel() == codes.size(0) == u.size(0)
            if key[1] == 0 and first and len(shape) and shape[0] == u.size(0):
                return axis.with_codes(codes.reshape(-1, *[1] * (len(shape) - 1)))
        if size:
            break
    return whole(max(size, 1), len(shape))


def unknown(step: PlacedCall, looks: Mapping[int, Sequence[int]] | None = None) -> Places:
    """An operation of which nothing is known: where the shape stays, derivatives tell; else only examples do.

    Args:
        step: The call.
        looks: By identity of an activation of the output's shape, what `reach` says of it; by default it is asked.
    """
    dims = _reach(step) if looks is None else looks

    def rule(of: Of) -> list[Axis | None]:
        result: list[Axis | None] = []
        for shape in step.shapes:
            alike = [(a, dims.get(id(u))) for u in step.operands() if u.shape == shape and (a := of(u)) is not None]
            axes = [hull(a, own) for a, own in alike if own is not None]
            result.append(join(axes, len(shape)) if axes and len(axes) == len(alike) else None)
        return result

    return _by_axis(step, rule)


def _reach(step: PlacedCall) -> Mapping[int, Sequence[int]]:
    """What `reach` says of a call's activations, from a second evaluation; nothing where it cannot be evaluated."""
    alike = [u for u in step.operands() if all(u.shape == shape for shape in step.shapes)]
    if not alike or step.call.mutated:
        return {id(u): () for u in alike}
    leaves = {id(u): u.detach().clone().requires_grad_() for u in alike}
    try:
        with torch.enable_grad():
            outputs = step.call.evaluate(lambda u: leaves.get(id(u), u.detach()))
            looks = [reach(y, list(leaves.values())) for y in outputs if y.requires_grad]
    except (RuntimeError, IndexError, NotImplementedError, TypeError, ValueError):
        return {}
    return {u: sorted({d for own in looks for d in own[i]}) for i, u in enumerate(leaves)}


def nowhere(step: PlacedCall) -> Places:
    """An operation that puts elements where its numbers say: only examples are followed."""
    return _by_axis(step, lambda of: [None] * len(step.shapes))


# -- elementwise


def kept(step: PlacedCall) -> Places:
    """Every element of an output is made of those that broadcast to it."""
    if len(operands := step.operands()) == 1 and all(shape == operands[0].shape for shape in step.shapes):
        return [step.places[id(operands[0])]] * len(step.shapes)

    def rule(of: Of) -> list[Axis | None]:
        result: list[Axis | None] = []
        for shape in step.shapes:
            axes = [a for u in step.operands() if (a := of(u)) is not None and _broadcasts(u.shape, shape)]
            result.append(join(axes, len(shape)) if axes else None)
        return result

    return _by_axis(step, rule)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(s in (1, t) for s, t in zip(reversed(shape), reversed(to), strict=False))


def copied(step: PlacedCall) -> Places:
    """x.copy_(y) lies where y does."""
    y = step.call.argument(1, "src")
    return _by_axis(step, lambda of: [None if (a := of(y)) is None else join([a], len(step.shapes[0]))])


# -- elements moved about


def _dims_at(position: int, default: int | None = 0) -> Callable[[Call], Sequence[int] | None]:
    def dims(call: Call) -> Sequence[int] | None:
        dim = call.argument(position, "dim")
        dim = default if dim is None else dim
        return None if dim is None else [dim]

    return dims


def permuted(step: PlacedCall) -> Places:
    """A move of whole dimensions."""
    return moved(lambda call: [])(step)


def moved(dims: Callable[[Call], Sequence[int] | None] | int) -> Rule:
    """A move of elements along some dimensions only, all where None.

    Args:
        dims: Which, from the call; or where the argument `dim` stands.
    """
    touched = _dims_at(dims) if isinstance(dims, int) else dims

    def rule(step: PlacedCall) -> Places:
        (u, *more) = step.operands()
        if more or (step.call.mutated and touched(step.call) != []):
            return [None] * len(step.shapes)
        along = touched(step.call)

        def move(of: Of) -> list[Axis | None]:
            axis = of(u)
            assert axis is not None
            where = range(u.ndim) if along is None else along
            if along and not any(axis.codes.size(d) > 1 for d in along) and len(step.shapes[0]) == u.ndim:
                return [axis] * len(step.shapes)  # does not see what moves
            codes = _run(step.call, {id(u): _expanded(axis.codes, u.shape, where)})
            return [axis.with_codes(compact(c)) for c in codes]

        return _by_axis(step, move)

    return rule


def rolled(call: Call) -> Sequence[int] | None:
    """The dimensions of `x.roll(shifts, dims)`, None where it rolls the flattened tensor."""
    dims = call.argument(2, "dims")
    return None if dims is None or dims == () else [dims] if isinstance(dims, int) else list(dims)


def _expanded(codes: Tensor, shape: Sequence[int], dims: Iterable[int]) -> Tensor:
    sizes = list(codes.shape)
    for d in dims:
        sizes[d] = shape[d]
    return codes.expand(sizes)


def _run(call: Call, codes: dict[int, Tensor]) -> list[Tensor]:
    def number(t: Tensor) -> Tensor:
        if id(t) in codes:
            return codes[id(t)].clone() if call.mutated else codes[id(t)]
        return t.detach().cpu()

    args, kwargs = map_tensors(number, (call.args, call.kwargs))
    return list(tensors_in(call.func(*args, **kwargs)))


def indexed(step: PlacedCall) -> Places:
    """x[...]."""
    return moved(lambda call: _indexed(call.args[1], call.args[0].ndim))(step)


def _indexed(index: Any, rank: int) -> list[int]:
    """The dimensions that an index does something to."""
    items = list(index) if isinstance(index, tuple) else [index]
    spans = [i.ndim if isinstance(i, Tensor) and i.dtype == torch.bool else 1 for i in items]
    consumed = sum(s for i, s in zip(items, spans, strict=True) if i is not None and i is not Ellipsis)
    dims: list[int] = []
    at = 0
    for item, span in zip(items, spans, strict=True):
        if item is Ellipsis:
            at += rank - consumed
        elif item is not None:
            if not (isinstance(item, slice) and item == slice(None)):
                dims += range(at, at + span)
            at += span
    return dims


def reshaped(step: PlacedCall) -> Places:
    """A reshape in row-major order, which only looks at the two shapes."""
    (u, *more), (shape, *others) = step.operands(), step.shapes
    if more or others or step.call.mutated or u.numel() != math.prod(shape) or not u.numel():
        return [None] * len(step.shapes)
    blocks = _blocks(u.shape, shape)
    result: dict[tuple[int, int], tuple[Axis, ...]] = {}
    for key, axes in step.places[id(u)].axes.items():
        may_split = key[1] > 0 and len(axes) == 1  # once, so that rows and columns of a flat image are a map's
        after = tuple(b for a in axes for b in _reshaped(a, u.shape, shape, blocks, may_split))
        whole = exact(after)
        result[key] = tuple(whole) if len(whole) == 1 and whole[0].is_raw else after
    return [Place(result)]


Block = tuple[list[int], list[int]]


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[Block]:
    """The dimensions of two shapes in the smallest groups that hold the same elements."""
    blocks: list[Block] = []
    i = j = 0
    while i < len(before) or j < len(after):
        a, b = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(a), j + len(b)
        size_a, size_b = math.prod(before[d] for d in a), math.prod(after[d] for d in b)
        while size_a != size_b:
            if size_a < size_b:
                a.append(i)
                size_a *= before[i]
                i += 1
            else:
                b.append(j)
                size_b *= after[j]
                j += 1
        blocks.append((a, b))
    return blocks


def _reshaped(
    axis: Axis, before: Sequence[int], after: Sequence[int], blocks: Sequence[Block], may_split: bool
) -> tuple[Axis, ...]:
    sizes, target, touched = list(axis.codes.shape), [1] * len(after), list[int]()
    for a, b in blocks:
        if all(axis.codes.size(d) == 1 for d in a):
            continue
        long = [d for d in b if after[d] > 1]
        if may_split and len(long) > 1 and sum(before[d] > 1 for d in a) == 1 and axis.is_raw:
            return tuple(_raw(after[d], d, len(after)) for d in long)
        for d in a:
            sizes[d] = before[d]
        for d in b:
            target[d] = after[d]
        touched += b
    return (axis.with_codes(compact(axis.codes.expand(sizes).reshape(target), touched)),)


def _raw(size: int, dim: int, rank: int) -> Axis:
    view = [size if d == dim else 1 for d in range(rank)]
    return Axis(torch.arange(size, dtype=torch.int32, device="cpu").view(view), Cells.even(size, size))


def expanded(step: PlacedCall) -> Places:
    """A broadcast."""
    (u, *_) = step.operands()
    return _by_axis(step, lambda of: [None if (a := of(u)) is None else join([a], len(s)) for s in step.shapes])


def repeated(step: PlacedCall) -> Places:
    """Copies side by side along each dimension."""
    (u, *_), (shape,) = step.operands(), step.shapes

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        codes = join([axis], len(shape)).codes
        sizes = (*[1] * (len(shape) - u.ndim), *u.shape)
        times = [y // s if c > 1 else 1 for y, s, c in zip(shape, sizes, codes.shape, strict=True)]
        return [axis.with_codes(codes.repeat(times))]

    return _by_axis(step, rule)


def padded(step: PlacedCall) -> Places:
    """Constants, or copies, beside what is there."""
    (u, *_) = step.operands()
    pads = list(step.call.args[1] if len(step.call.args) > 1 else step.call.kwargs["pad"])
    mode = step.call.argument(2, "mode") or "constant"
    dims = [u.ndim - 1 - i // 2 for i in range(0, len(pads), 2) if pads[i] or pads[i + 1]]

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        if not any(axis.codes.size(d) > 1 for d in dims):
            return [axis]
        if mode == "constant":
            codes = F.pad(_expanded(axis.codes, u.shape, dims), pads, value=CONSTANT)
            return [axis.with_codes(compact(_inherited(codes, dims)))]
        codes = F.pad(_expanded(axis.codes, u.shape, dims).double(), pads, mode=mode).int()
        return [axis.with_codes(compact(codes))]

    return _by_axis(step, rule)


def _inherited(codes: Tensor, dims: Iterable[int]) -> Tensor:
    """Constants belong where their neighbours along a dimension do, if those all lie in the same interval."""
    for dim in dims:
        if not bool((codes < 0).any()):
            break
        top = codes.amax(dim, keepdim=True)
        least = codes.masked_fill(codes < 0, torch.iinfo(codes.dtype).max).amin(dim, keepdim=True)
        if bool((least >= top).all()):  # greater where all are constants
            codes = top
    return codes


def concatenated(default: int = 0, new: bool = False) -> Rule:
    """Tensors side by side along a dimension, or along a new one; constants among them have no place."""

    def rule(step: PlacedCall) -> Places:
        tensors = step.call.argument(0, "tensors")
        dim = step.call.argument(1, "dim")
        (shape,) = step.shapes
        dim = (default if dim is None else dim) % len(shape)
        lengths = [1 if new else t.size(dim) if t.ndim == len(shape) else 0 for t in tensors]

        def one(of: Of) -> list[Axis | None]:
            axes = [of(t) for t in tensors]
            axes = [a.with_codes(a.codes.unsqueeze(dim)) if new and a is not None else a for a in axes]
            others = any(a is None and id(t) in step.places for a, t in zip(axes, tensors, strict=True))
            return [_side_by_side(axes, lengths, dim, inherit=not others)]

        return _by_axis(step, one)

    return rule


def _side_by_side(axes: Sequence[Axis | None], lengths: Sequence[int], dim: int, inherit: bool) -> Axis:
    """Axes, or constants, along a dimension; what lies on other inputs does not inherit from its neighbours."""
    there = [a for a in axes if a is not None]
    first = there[0]
    alike = all(a.codes.size(dim) == 1 and a.cells is first.cells and torch.equal(a.codes, first.codes) for a in there)
    if alike and (inherit or len(there) == len(axes)):
        return first
    tables = list(dict.fromkeys(a.cells for a in there))
    offsets = dict(zip(tables, [sum(map(len, tables[:i])) for i in range(len(tables))], strict=True))
    sizes = [max(a.codes.size(d) for a in there) for d in range(first.codes.ndim)]
    parts = []
    for axis, length in zip(axes, lengths, strict=True):
        sizes[dim] = length
        if axis is None:
            parts.append(torch.full(sizes, CONSTANT, dtype=torch.int32, device="cpu"))
        else:
            codes = axis.codes + offsets[axis.cells] if offsets[axis.cells] else axis.codes
            parts.append(codes.masked_fill(axis.codes < 0, CONSTANT).expand(sizes))
    codes = torch.cat(parts, dim)
    codes = compact(_inherited(codes, [dim]) if inherit else codes)
    return Axis(codes, tables[0]) if len(tables) == 1 else _one_table(codes, tables)


def _one_table(codes: Tensor, tables: Sequence[Cells]) -> Axis:
    """Codes of several tables laid end to end, as those of one in which every interval stands once."""
    ends = torch.cat([t.bounds for t in tables])
    extent = min(t.extent[0] for t in tables), max(t.extent[1] for t in tables)
    table = encoded(ends[:, 0], ends[:, 1], tables[0].size, extent)
    new = table.codes.expand(len(ends))[codes.clamp(min=0).long()]
    return Axis(new.masked_fill(codes < 0, CONSTANT), table.cells)


def assigned(step: PlacedCall) -> Places:
    """x[index] = value."""
    x, index, value = step.call.args[:3]
    (shape,) = step.shapes
    dims = _indexed(index, len(shape))
    at = map_tensors(lambda t: t.detach().cpu(), index)

    def rule(of: Of) -> list[Axis | None]:
        before, after = of(x), of(value)
        there = [a for a in (before, after) if a is not None]
        if before is not None and after is not None and not any(before.codes.size(d) > 1 for d in dims):
            new = join([after], len(shape)).codes
            if before.cells is after.cells and torch.equal(before.codes, new):
                return [before]
        tables = list(dict.fromkeys(a.cells for a in there))
        codes = torch.full(shape, CONSTANT, dtype=torch.int32, device="cpu")
        if before is not None:
            codes.copy_(before.codes)
        if after is None:
            codes[at] = CONSTANT
        else:
            offset = len(tables[0]) if before is not None and after.cells is not tables[0] else 0
            codes[at] = torch.where(after.codes < 0, after.codes, after.codes + offset)
        return [_one_table(compact(_inherited(codes, dims)), tables)]

    return _by_axis(step, rule)


def patches(step: PlacedCall) -> Places:
    """`F.unfold`, which lays windows out as channels and pads with zeros; or `Tensor.unfold`, along one dimension."""
    if step.call.func is not F.unfold:
        return moved(1)(step)
    (u, *_) = step.operands()

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        codes = _expanded(axis.codes, u.shape, range(1, u.ndim)).double() + 1
        (columns,) = _run(step.call, {id(u): codes})
        return [axis.with_codes(compact(_inherited(columns.int() - 1, [-2, -1])))]

    return _by_axis(step, rule)


# -- mixing


def contracted(*dims: int) -> Rule:
    """What mixes dimensions of its first activation and keeps them, of whatever size."""

    def rule(step: PlacedCall) -> Places:
        u = step.operands()[0]
        return _by_axis(step, lambda of: [None if (a := of(u)) is None else hull(a, dims)] * len(step.shapes))

    return rule


def mixed(position: int) -> Rule:
    """What mixes the one dimension that an argument names, the last where it is absent, whatever size it leaves."""

    def rule(step: PlacedCall) -> Places:
        dim = step.call.argument(position, "dim")
        return contracted(-1 if dim is None else dim)(step)

    return rule


def paired(step: PlacedCall) -> Places:
    """Complex numbers as pairs of real ones along a last dimension, or back."""
    (u, *_), (shape,) = step.operands(), step.shapes

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        if len(shape) > u.ndim:
            return [axis.with_codes(axis.codes.unsqueeze(-1))]
        axis = hull(axis, [-1])
        return [axis.with_codes(axis.codes.squeeze(-1))]

    return _by_axis(step, rule)


def linear(step: PlacedCall) -> Places:
    """A dense layer over the last dimension."""
    return contracted(-1)(step) if len(step.operands()) == 1 else unknown(step)


def matrix_product(step: PlacedCall) -> Places:
    """A @ B, plus what is added in the forms that add: an axis along which A varies is that of the rows."""
    operands = [t for t in tensors_in((step.call.args, step.call.kwargs)) if t.ndim]
    if len(operands) < 2 or len(step.shapes) != 1 or min(t.ndim for t in operands[-2:]) < 2:
        return [None] * len(step.shapes)
    a, b = operands[-2:]
    rank = len(step.shapes[0])
    keeps_rows = id(a) not in step.places and a.ndim == 2 and a.size(0) == a.size(1)  # a graph's A @ X

    def rule(of: Of) -> list[Axis | None]:
        rows, columns = of(a), of(b)
        ways = [hull(rows, [-1])] if rows is not None else []
        ways += [columns if keeps_rows else hull(columns, [-2])] if columns is not None else []
        added = [x for t in operands[:-2] if (x := of(t)) is not None]
        return [_first_varying(ways + added, rank)]

    return _by_axis(step, rule)


def _first_varying(axes: Sequence[Axis], rank: int) -> Axis | None:
    axes = [join([a], rank) for a in axes]
    varying = next((a for a in axes if a.varies), None)
    return join(axes, rank) if axes and varying is None else varying


def _product_mixes(call: Call) -> Sequence[int]:
    operands = [t for t in tensors_in((call.args, call.kwargs)) if t.ndim]
    if len(operands) < 2 or call.is_activation(operands[-2]) == call.is_activation(operands[-1]):
        return []
    if call.is_activation(operands[-2]):
        return [-1]
    a = operands[-2]
    return [] if a.ndim == 2 and a.size(0) == a.size(1) else [-2]


def einsum(step: PlacedCall) -> Places:
    """A product over named dimensions: an axis along which the first operand varies is that operand's."""
    parsed = _equation(step.call)
    if parsed is None:
        return [None] * len(step.shapes)
    names, output, tensors = parsed

    def rule(of: Of) -> list[Axis | None]:
        ways = []
        for t, own in zip(tensors, names, strict=True):
            if (axis := of(t)) is None:
                continue
            axis = hull(axis, [i for i, name in enumerate(own) if name not in output])
            left = [name for name in own if name in output]
            codes = axis.codes.squeeze([i for i, name in enumerate(own) if name not in output])
            codes = codes.permute([left.index(name) for name in output if name in left])
            codes = codes.view([codes.size([m for m in output if m in left].index(o)) if o in left else 1
                                for o in output])  # fmt: skip
            ways.append(axis.with_codes(codes))
        return [_first_varying(ways, len(output))]

    return _by_axis(step, rule)


def _equation(call: Call) -> tuple[list[str], str, list[Tensor]] | None:
    """The dimensions' names of each operand and of the output; None for spellings that repeat one, or hide some."""
    if not call.args or not isinstance(call.args[0], str):
        return None
    tensors = list(tensors_in(call.args[1:]))
    left, arrow, output = call.args[0].replace(" ", "").partition("->")
    names = left.split(",")
    hidden = "".join(chr(0x100 + i) for i in range(max(t.ndim for t in tensors)))
    for i, (own, t) in enumerate(zip(names, tensors, strict=False)):
        if "..." in own:
            extra = t.ndim - len(own) + 3
            names[i] = own.replace("...", hidden[len(hidden) - extra :] if extra else "")
    if not arrow:
        every = "".join(names)
        output = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    shown = max((n for own in names if (n := "".join(c for c in own if c in hidden))), key=len, default="")
    output = output.replace("...", shown)
    alike = all(len(own) == t.ndim == len(set(own)) for own, t in zip(names, tensors, strict=False))
    return (names, output, tensors) if alike and len(names) == len(tensors) else None


def _einsum_mixes(call: Call) -> Sequence[int]:
    parsed = _equation(call)
    if parsed is None or len(call.activations) != 1:
        return []
    names, output, tensors = parsed
    own = next(n for n, t in zip(names, tensors, strict=True) if call.is_activation(t))
    return [i for i, name in enumerate(own) if name not in output]


def attention(step: PlacedCall) -> Places:
    """Each output lies where its query does."""
    call, rank = step.call, len(step.shapes[0])
    query, key, value = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))

    def rule(of: Of) -> list[Axis | None]:
        ways = [hull(a, [-1])] if (a := of(query)) is not None else []
        ways += [hull(a, [-2, -1]) for t in (value, key) if (a := of(t)) is not None]
        return [_first_varying(ways, rank)]

    return _by_axis(step, rule)


def module_attention(step: PlacedCall) -> Places:
    """The same of `F.multi_head_attention_forward` on (L, N, E), which also returns its weights (N, ..., L, S)."""
    call = step.call
    query, key, value = (call.argument(i, name) for i, name in enumerate(("query", "key", "value")))

    def rule(of: Of) -> list[Axis | None]:
        ways = [hull(a, [-1])] if (a := of(query)) is not None else []
        ways += [hull(a, [0, -1]) for t in (value, key) if (a := of(t)) is not None]
        axis = _first_varying(ways, query.ndim)
        result: list[Axis | None] = [axis]
        for shape in step.shapes[1:]:
            if axis is None or query.ndim != 3 or len(shape) not in (3, 4):
                result.append(None)
            else:
                weights = axis.codes.transpose(0, 1)
                result.append(axis.with_codes(weights if len(shape) == 3 else weights.unsqueeze(1)))
        return result

    return _by_axis(step, rule)


def recurrent(step: PlacedCall) -> Places:
    """Outputs keep time; a final state is that of the last step, or of the first of a layer that runs backwards."""
    u = step.operands()[0]
    if u.ndim != 3 or not all(len(s) == 3 for s in step.shapes):
        return contracted(-1)(step)
    batch_first, bidirectional = (bool(v) for v in (step.call.args[-1], step.call.args[-2]))
    time = 1 if batch_first else 0

    def rule(of: Of) -> list[Axis | None]:
        if (axis := of(u)) is None:
            return [None] * len(step.shapes)
        axis = hull(axis, [-1])
        steps = axis.codes.size(time)
        ends = [axis.codes.select(time, at) for at in ([steps - 1, 0] if bidirectional else [steps - 1])]
        last = compact(torch.stack(ends).repeat(step.shapes[-1][0] // len(ends), 1, 1))
        return [axis, *[axis.with_codes(last)] * (len(step.shapes) - 1)]

    return _by_axis(step, rule)


def reduced(position: int | None = 1) -> Rule:
    """A sum or the like over the dimensions that an argument names, all where it is absent."""

    def rule(step: PlacedCall) -> Places:
        if len(step.operands()) > 1:  # max and min of two tensors
            return kept(step)
        (u,) = step.operands()
        if all(s == u.shape for s in step.shapes) and position is None:
            return contracted(*range(u.ndim))(step)
        dims = None if position is None else step.call.argument(position, "dim")
        dims = step.call.kwargs.get("axis") if dims is None else dims
        if isinstance(dims, Tensor):
            return kept(step)
        over = list(range(u.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
        over = [d % u.ndim for d in over or range(u.ndim)] if u.ndim else []

        def one(of: Of) -> list[Axis | None]:
            if (axis := of(u)) is None:
                return [None] * len(step.shapes)
            axis = hull(axis, over)
            flat = axis.with_codes(axis.codes.squeeze(over) if over else axis.codes)
            return [axis if len(s) == u.ndim else flat for s in step.shapes]

        return _by_axis(step, one)

    return rule


# -- convolutions and pooling


def convolution(step: PlacedCall) -> Places:
    """Outputs of stride 1 lie at their window's centre, others share the span evenly; channels are mixed by group."""
    call = step.call
    (u, *more), (shape,) = step.operands(), step.shapes
    weight = call.argument(1, "weight")
    if more or not isinstance(weight, Tensor) or u is weight:
        return [None]
    rank = weight.ndim - 2
    sizes, groups = _geometry(call, rank)

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        axis = _by_group(axis, u.ndim - rank - 1, groups, shape[-rank - 1])
        for dim, (kernel, stride, padding, dilation) in enumerate(sizes, start=u.ndim - rank):
            width = dilation * (kernel - 1) + 1
            if axis.codes.size(dim) == 1:
                continue
            if shape[dim] == 1:
                axis = hull(axis, [dim])
            elif stride == 1:
                first, last = _within_padding(axis, dim)
                start = torch.arange(shape[dim], dtype=torch.float64, device="cpu") - padding + (width - 1) / 2
                start = start.clamp(first, last)
                axis = resampled(axis, dim, start, start + 1)
            else:
                axis = _over_span(axis, dim, shape[dim], width, stride, padding)
        return [axis]

    return _by_axis(step, rule)


def _by_group(axis: Axis, dim: int, groups: int, channels: int) -> Axis:
    """The axis after channels have been mixed within groups."""
    if axis.codes.size(dim) == 1 or groups == 1:
        return hull(axis, [dim])
    codes = axis.codes.movedim(dim, 0).unflatten(0, (groups, -1))
    axis = hull(axis.with_codes(codes), [1])
    codes = axis.codes.squeeze(1)
    codes = codes.repeat_interleave(channels // groups, 0) if codes.size(0) > 1 else codes
    return axis.with_codes(codes.movedim(0, dim))


def _over_span(axis: Axis, dim: int, m: int, width: int, stride: int, padding: int) -> Axis:
    """Outputs share evenly what their windows, of at least a stride, cover together, but for constants at its ends."""
    if axis.codes.size(dim) == 1:
        return axis
    first, last = _within_padding(axis, dim)
    start, end = max(first, -padding), min(last + 1, (m - 1) * stride - padding + max(width, stride))
    edges = start + torch.arange(m + 1, dtype=torch.float64, device="cpu") * ((end - start) / m)
    return resampled(axis, dim, edges[:-1], edges[1:])


def _within_padding(axis: Axis, dim: int) -> tuple[int, int]:
    """The first and the last index along a dimension between constants, or copies of what is between, at its ends."""
    n = axis.codes.size(dim)
    codes = axis.codes.movedim(dim, 0).reshape(n, -1)
    top = codes.amax(1)
    filled = (top >= 0).nonzero()
    if not len(filled):
        return 0, n - 1
    if not bool(((codes == top[:, None]) | (codes < 0)).all()):  # other dimensions have a say as well
        return int(filled[0]), int(filled[-1])
    run = max(_runs(top.tolist()), key=len)
    beside = set(top[: run.start].tolist() + top[run.stop :].tolist())
    if beside <= {CONSTANT, *top[run.start : run.stop].tolist()}:
        return run.start, run.stop - 1
    return int(filled[0]), int(filled[-1])


def _runs(codes: list[int]) -> list[range]:
    """Where codes of no constants grow, or fall, from one to the next, as long as they do."""
    runs = []
    start, way = 0, 0
    for i in range(1, len(codes) + 1):
        before, after = codes[i - 1], codes[i] if i < len(codes) else CONSTANT
        turn = 0 if CONSTANT in (before, after) else (after > before) - (after < before)
        if turn == 0 or turn == -way:
            runs.append(range(start, i))
            start = i - 1 if turn else i
        way = turn
    return runs


def _numbers(value: Any, rank: int, default: int) -> list[int]:
    if value is None or (isinstance(value, (tuple, list)) and not value):
        return [default] * rank
    values = [value] * rank if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _geometry(call: Call, rank: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """(kernel, stride, padding, dilation) along each dimension, and the number of groups."""
    stride, padding, dilation = (call.argument(3 + i, name) for i, name in enumerate(("stride", "padding", "dilation")))
    groups = call.argument(8 if call.name == "convolution" else 6, "groups")
    kernels = call.argument(1, "weight").shape[2:]
    strides, dilations = _numbers(stride, rank, 1), _numbers(dilation, rank, 1)
    if isinstance(padding, str):
        pads = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernels, dilations, strict=True)]
    else:
        pads = _numbers(padding, rank, 0)
    return list(zip(kernels, strides, pads, dilations, strict=True)), groups or 1


def _convolution_mixes(call: Call) -> Sequence[int]:
    weight = call.argument(1, "weight")
    rank = weight.ndim - 2
    groups = call.argument(8 if call.name == "convolution" else 6, "groups") or 1
    spatial = [i - rank for i in range(rank) if weight.size(2 + i) > 1]
    return spatial if groups > 1 else [-rank - 1, *spatial]


def pooled(step: PlacedCall) -> Places:
    """Outputs of windows share the span evenly."""
    (u, *_) = step.operands()
    name = step.call.name
    rank = int(next(c for c in name if c.isdigit()))
    at = (2, 3, None) if name.startswith("lp") else (1, 2, 3)
    kernel, stride, padding = (
        None if i is None else step.call.argument(i, n)
        for i, n in zip(at, ("kernel_size", "stride", "padding"), strict=True)
    )
    kernels = _numbers(kernel, rank, 1)
    strides = kernels if stride is None or stride == [] or stride == () else _numbers(stride, rank, 1)
    pads = _numbers(padding, rank, 0)
    widths = kernels
    if name.startswith("max"):
        widths = [d * (k - 1) + 1 for k, d in zip(kernels, _numbers(step.call.argument(4, "dilation"), rank, 1),
                                                  strict=True)]  # fmt: skip

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        for i in range(rank):
            dim = u.ndim - rank + i
            axis = _over_span(axis, dim, step.shapes[0][dim], widths[i], strides[i], pads[i])
        return [axis] * len(step.shapes)

    return _by_axis(step, rule)


def shared(step: PlacedCall) -> Places:
    """Outputs share each dimension after the channels evenly; channels are mixed where their number changes."""
    (u, *_) = step.operands()

    def rule(of: Of) -> list[Axis | None]:
        axis = of(u)
        assert axis is not None
        (shape, *_) = step.shapes
        if len(shape) != u.ndim:
            return [None] * len(step.shapes)
        first = u.ndim - _spatial_rank(step.call, u)
        if u.size(first - 1) != shape[first - 1] or step.call.name.startswith("conv"):
            axis = hull(axis, [first - 1])
        for dim in range(first, u.ndim):
            edges = torch.arange(shape[dim] + 1, dtype=torch.float64, device="cpu") * (u.size(dim) / shape[dim])
            if axis.codes.size(dim) > 1 and shape[dim] == 1:
                axis = hull(axis, [dim])
            else:
                axis = resampled(axis, dim, edges[:-1], edges[1:])
        return [axis] * len(step.shapes)

    return _by_axis(step, rule)


def _spatial_rank(call: Call, u: Tensor) -> int:
    digits = [int(c) for c in call.name if c.isdigit()]
    if digits:
        return digits[0]
    return 2 if call.name.startswith("pixel") else u.ndim - 2


# -- with the dimensions that weights mix

LAST_MIXED = Layout(linear, lambda call: [-1])
PRODUCT = Layout(matrix_product, _product_mixes)
EINSUM = Layout(einsum, _einsum_mixes)
CONVOLUTION = Layout(convolution, _convolution_mixes)
TRANSPOSED = Layout(shared, _convolution_mixes)
RECURRENT = Layout(recurrent, lambda call: [-1])
MODULE_ATTENTION = Layout(module_attention, lambda call: [-1])
