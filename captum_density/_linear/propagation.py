"""From the places of a call's activations to those of its outputs, remembered by all that they depend on.

The second run of a model over inputs of the same shapes finds every place at hand, and waits for no device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._linear.jacobian import reach
from captum_density._linear.layouts import Layout, PlacedCall, kept, unknown
from captum_density._linear.operations import row
from captum_density._linear.places import Place, examples_place, input_place
from captum_density._model.calls import Call, is_continuous

__all__ = ["Mixing", "Positions", "forget", "place_beside", "place_of_input", "propagate", "unknown_place"]

_BYTES = 2**28  # of codes, after which everything is forgotten


@dataclass(frozen=True)
class Mixing:
    """What an operation with weights does to the dimensions of one input.

    Attributes:
        index: Which input.
        mixed: The dimensions that it mixes, wholly or in windows.
        left: The dimensions along which its output still tells elements apart.
    """

    index: int
    mixed: frozenset[int]
    left: frozenset[int]


class Positions:
    """Which dimensions of each input are positions: those that the first weighted mixing leaves.

    Args:
        inputs: The inputs.
        layout: For each input its positions where the user says, None where not.
    """

    def __init__(self, inputs: Sequence[Tensor], layout: Sequence[Sequence[int] | None] | None = None) -> None:
        self._all = [tuple(range(1, x.ndim)) for x in inputs]
        given = [None] * len(inputs) if layout is None else list(layout)
        self._decided = [None if g is None else tuple(sorted(g)) for g in given]
        self._windowed: list[set[int]] = [set() for _ in inputs]

    def learn(self, mixing: Mixing) -> None:
        """Of an operation with weights, in the order in which the model runs them."""
        i = mixing.index
        if self._decided[i] is not None:
            return
        mixed = mixing.mixed - self._windowed[i]
        if mixed - mixing.left:
            self._decided[i] = tuple(d for d in self._all[i] if d in mixing.left) or self._all[i]
        else:
            self._windowed[i] |= mixed
            if self._windowed[i] >= set(self._all[i]):
                self._decided[i] = self._all[i]

    def __getitem__(self, index: int) -> tuple[int, ...]:
        decided = self._decided[index]
        return self._all[index] if decided is None else decided

    def of_all(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self[i] for i in range(len(self._all)))


_Result = tuple[tuple["Place | None", ...], tuple[Mixing, ...]]
_remembered: dict[Hashable, _Result] = {}
_bytes = 0
_reaches: dict[Hashable, list[tuple[int, ...]]] = {}


def place_of_input(index: int, shape: Sequence[int]) -> Place:
    """The place of an input itself, the same object whenever it is asked for."""
    return _remember(("input", index, tuple(shape)), lambda: ((input_place(index, shape),), ()))[0][0]  # type: ignore[return-value]


def place_beside(index: int, shape: Sequence[int]) -> Place:
    """As `place_of_input`, of an input that has no positions."""
    return _remember(("beside", index, tuple(shape)), lambda: ((examples_place(index, shape),), ()))[0][0]  # type: ignore[return-value]


def propagate(
    call: Call, places: Sequence[Place | None], outputs: Sequence[Tensor]
) -> tuple[Sequence[Place | None], Sequence[Mixing]]:
    """The places of a call's outputs, and what its weights mix.

    Args:
        call: The call.
        places: Those of its activations, in order.
        outputs: What it returned or wrote.
    """
    layout, shapes = row(call).layout, [y.shape for y in outputs]
    if layout.rule is kept and len(shapes) == 1 and _alike(call.activations, shapes[0], places):
        return places[:1], ()
    if not outputs or all(place is None for place in places):
        return [None] * len(outputs), ()
    by_tensor = {id(u): p for u, p in zip(call.activations, places, strict=True) if p is not None}
    key = (
        call.name, bool(call.mutated), _key(call.args, by_tensor, layout.reads),
        _key(call.kwargs, by_tensor, layout.reads), tuple(shapes),
    )  # fmt: skip
    return _remember(key, lambda: _result(layout, PlacedCall(call, by_tensor, shapes)))


def _alike(activations: Sequence[Tensor], shape: torch.Size, places: Sequence[Place | None]) -> bool:
    """Whether all activations are of one shape and in one place."""
    if len(activations) == 1:
        return activations[0].shape == shape
    return all([u.shape == shape and place is places[0] for u, place in zip(activations, places, strict=True)])


def unknown_place(operands: Sequence[Tensor], places: Sequence[Place | None], output: Tensor) -> Place | None:
    """The place of what was made of activations out of the trace's sight, by a graph that leads to them."""
    by_tensor = {id(u): p for u, p in zip(operands, places, strict=True) if p is not None}
    if not by_tensor:
        return None
    alike = [u for u in operands if u.shape == output.shape and id(u) in by_tensor]
    looks = dict(zip(map(id, alike), _reach(output, alike, operands), strict=True))
    call = Call(torch.empty_like, (output,), {}, list(operands))
    known = tuple((tuple(u.shape), by_tensor.get(id(u)), looks.get(id(u))) for u in operands)
    step = PlacedCall(call, by_tensor, [output.shape])
    return _remember(("unknown", known, tuple(output.shape)), lambda: (tuple(unknown(step, looks)), ()))[0][0]


def _reach(output: Tensor, alike: Sequence[Tensor], operands: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """`reach`, remembered of a custom autograd Function by what its context holds."""
    node, steps = output.grad_fn, {u.grad_fn for u in operands}
    parents = [] if node is None else [parent for parent, _ in node.next_functions if parent is not None]
    if not hasattr(type(node), "_forward_cls") or any(parent not in steps for parent in parents):
        return reach(output, alike)
    shapes = tuple((tuple(u.shape), any(a is u for a in alike)) for u in operands)
    key = type(node), _key(vars(node), {}, True), shapes
    if key not in _reaches:
        if len(_reaches) > 1000:
            forget()
        _reaches[key] = reach(output, alike)
    return _reaches[key]


def forget() -> None:
    """Drop every place that is remembered."""
    global _bytes
    _remembered.clear()
    _reaches.clear()
    _bytes = 0


def _remember(key: Hashable, make: Callable[[], _Result]) -> _Result:
    global _bytes
    result = _remembered.get(key)
    if result is None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            places, mixings = make()
            result = tuple(None if place is None else place.canonical() for place in places), mixings
        if _bytes > _BYTES or len(_remembered) > 20000:
            forget()
        _remembered[key] = result
        _bytes += sum(place.nbytes for place in result[0] if place is not None)
    return result


def _key(value: Any, places: dict[int, Place], reads: bool) -> Hashable:
    kind = type(value)
    if value is None or kind is str:
        return value
    if kind is int or kind is bool or kind is float:
        return kind, value  # True == 1 == 1.0
    if isinstance(value, Tensor):
        place = places.get(id(value))
        if place is not None or not reads or is_continuous(value):
            return value.shape, place
        numbers = value.detach().cpu().contiguous()
        return value.shape, numbers.dtype, numbers.numpy().tobytes()
    if isinstance(value, (tuple, list)):
        return kind, *[_key(v, places, reads) for v in value]
    if isinstance(value, dict):
        return tuple([(k, _key(v, places, reads)) for k, v in value.items()])
    if isinstance(value, slice):
        return kind, *[_key(v, places, reads) for v in (value.start, value.stop, value.step)]
    return value if isinstance(value, Hashable) else repr(value)


def _result(layout: Layout, step: PlacedCall) -> _Result:
    try:
        found = [*layout.rule(step)]
    except (RuntimeError, IndexError, NotImplementedError, TypeError, ValueError, AssertionError):
        found = []  # an unusual spelling: nothing is known of it
    if len(found) != len(step.shapes) or any(place is None for place in found):
        found += [None] * (len(step.shapes) - len(found))
        found = [a if b is None else b for a, b in zip(unknown(step), found, strict=False)]
    return tuple(found), tuple(_mixings(layout, step, found[0]))


def _mixings(layout: Layout, step: PlacedCall, after: Place | None) -> list[Mixing]:
    if layout.mixes is None or not step.operands() or after is None:
        return []
    u = step.operands()[0]
    dims = layout.mixes(step.call)
    mixed: dict[int, set[int]] = {}
    for (index, dim), axes in step.places[id(u)].axes.items():
        if dim > 0 and any(a.codes.size(d) > 1 for a in axes for d in dims):
            mixed.setdefault(index, set()).add(dim)
    left = {index: frozenset(d for i, d in after.telling if i == index) for index in mixed}
    return [Mixing(index, frozenset(dims), left[index]) for index, dims in mixed.items()]
