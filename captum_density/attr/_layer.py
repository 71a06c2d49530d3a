"""A model cut at layers: a function of what they return, or take, and of everything else the model is given.

What a method says of inputs, it says of a layer when it is asked about this function: its inputs are then the layer's
tensors, put in place of what the layer would return by a hook, and the model's own inputs, through which whatever goes
around the layer still goes. Of integer inputs, such as token ids, what is looked up by them stands for them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from captum_density._model.batch import ModelOnBatch, Rows
from captum_density._model.calls import map_tensors, operation_name, tensors_in
from captum_density._model.captum import TargetType, run_forward
from captum_density._model.evaluation import grad_mode
from captum_density._model.modules import as_written, unwrap
from captum_density._model.validation import class_span, validate_inputs

__all__ = ["Cut", "check_layers", "floats_in", "hook", "layers_of", "refuse_grad_kwargs", "unclear", "unwrapped"]

_UNNEEDED = frozenset({"create_graph", "retain_graph", "allow_unused", "materialize_grads"})


def check_layers(layer: Any, several: bool = True) -> None:
    """Refuse what is no layer.

    Raises:
        TypeError: It is no module, and no list of such where there may be several.
    """
    layers = layer if several and isinstance(layer, list) else [layer]
    if not layers or not all(isinstance(one, nn.Module) for one in layers):
        of = "an nn.Module of the model, or a non-empty list of such," if several else "one nn.Module of the model"
        name = next((one for one in layers if isinstance(one, str)), None)
        module = "a module such as model.features" if name is None else f"model.get_submodule({name!r})"
        raise TypeError(f"layer must be {of} but is {layer!r}; pass {module}")


def layers_of(attribution: Any) -> list[nn.Module]:
    """The layers of an attribution that was given one, or a list of them."""
    return attribution.layer if isinstance(attribution.layer, list) else [attribution.layer]


def refuse_grad_kwargs(grad_kwargs: Mapping[str, Any] | None, allowed: Sequence[str] = ()) -> None:
    """Refuse arguments of `torch.autograd.grad` that would be ignored.

    Raises:
        ValueError: There are some.
    """
    for name, value in (grad_kwargs or {}).items():
        if name not in _UNNEEDED or (name == "create_graph" and value and name not in allowed):
            raise ValueError(f"grad_kwargs cannot set {name!r} here; leave it out")


@dataclass(frozen=True)
class _Form:
    """Where the examples are in a layer's tensor.

    Attributes:
        dim: The dimension; None where it is the same for all of them, as position embeddings are.
        each: How many elements along it belong to one example, None where it is one.
        leads: Of what is the same for all, whether a dimension of size 1 stands for them.
    """

    dim: int | None = 0
    each: int | None = None
    leads: bool = False

    def examples_first(self, t: Tensor, n: int) -> Tensor:
        """(N, ...), of the layer's own form."""
        if self.dim is None:
            return (t if self.leads else t.unsqueeze(0)).expand(n, *t.shape[self.leads :])
        t = t if self.dim == 0 else t.movedim(self.dim, 0)
        return t if self.each is None else t.unflatten(0, (n, self.each))

    def own(self, t: Tensor) -> Tensor:
        """The layer's own form, of (N, ...); of what is the same for all examples, with one row for each."""
        if self.dim is None:
            return t.squeeze(0) if len(t) == 1 and not self.leads else t
        t = t if self.each is None else t.flatten(0, 1)
        return t if self.dim == 0 else t.movedim(0, self.dim)


class Cut:
    """A model's output as a function of its layers' tensors and of its arguments.

    Called with the layers' tensors (N, ...), what is beside them, all other inputs and the additional arguments.

    Args:
        forward_func: The model; DataParallel, DistributedDataParallel and compiled models are unwrapped.
        layers: The layers to cut it at.
        at_input: Whether what they take is meant, not what they return: the floating-point tensors among their
            positional arguments, or the first that is passed by name.
        inputs: As Captum's.
        additional_forward_args: As Captum's.
        lookups: Whether what is looked up by integer inputs is beside the layers' tensors, too.

    Attributes:
        batch: The model on its inputs.
        rest: What the function takes after tensors; None for nothing.

    Raises:
        TypeError: Inputs that are no tensors.
        ValueError: Inputs that are empty, NaN, infinite, or unequally many.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: Sequence[nn.Module],
        at_input: bool,
        inputs: Any,
        additional_forward_args: object,
        lookups: bool = True,
    ) -> None:
        self.batch = ModelOnBatch(unwrap(forward_func), inputs, None, additional_forward_args, differentiable=False)
        with torch.inference_mode(False):  # what is made in inference mode autograd does not keep
            self.batch.inputs = tuple(x.clone() if x.is_inference() else x for x in self.batch.inputs)
        self._floating = [x.is_floating_point() for x in self.batch.inputs]
        validate_inputs(self.batch.forward_func, self._pick(self.batch.inputs, True))
        self.rest = self._pick(self.batch.inputs, False) + (self.batch.args or ()) or None
        self._layers = [unwrapped(layer) for layer in layers]
        self._at_input = at_input
        self._trees: list[Any] = []
        self._runs = [0] * len(layers)
        self._given: list[Tensor] | None = None
        self._versions: list[tuple[Tensor, int]] = []
        self._output: Any = None
        self._is_overwritten = False
        self._lookups = lookups and not all(self._floating)
        self._forms: list[_Form] = []  # of the layers' tensors, then of what is looked up
        self._counts: list[int] = []
        self._sources: list[int] = []

    @property
    def beside_names(self) -> list[str]:
        """Of what is beside the layers' tensors: "input 0" for the first input and for what is looked up by it."""
        floats = [i for i, floating in enumerate(self._floating) if floating]
        return [f"input {i}" for i in (*floats, *self._sources)]

    def _pick(self, values: Sequence[Any], floating: bool) -> tuple[Any, ...]:
        return tuple(value for value, own in zip(values, self._floating, strict=True) if own is floating)

    # -- the function

    def __call__(self, *args: Any) -> Any:
        """What the model returns where its layers return these tensors."""
        layers, floats = sum(self._counts), sum(self._floating)
        tensors = [*args[:layers], *args[layers + floats : len(self._forms) + floats]]
        own = [form.own(z.clone() if z.is_leaf else z) for form, z in zip(self._forms, tensors, strict=True)]
        values, others = iter(args[layers:]), iter(args[len(self._forms) + floats :])
        inputs = tuple(next(values if floating else others) for floating in self._floating)
        self._given, self._runs = own[:layers], [0] * len(self._layers)
        with _Lookups(self._pick(inputs, False), own[layers:]) if self._lookups else nullcontext():
            return run_forward(self.batch.forward_func, inputs, None, tuple(others) or None)

    def tensors(
        self, inputs: tuple[Tensor, ...] | None = None, create_graph: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The layers' tensors and what is beside them, examples first, from a run of the model as it is.

        Within `hooked`. Beside them are the floating-point inputs, and what is looked up by the others.

        Args:
            inputs: The model's inputs; its own where they are left out.
            create_graph: Whether they carry a graph.

        Raises:
            ValueError: A layer that does not run, or runs several times, or whose tensors are not finite.
        """
        inputs = self.batch.inputs if inputs is None else inputs
        trees, lookups = self._natural(inputs, slice(None), create_graph)
        own = [*(t for tree in trees for t in floats_in(tree)), *(t for _, t in lookups)]
        is_overwritten, output = self._is_overwritten, self._output
        if not self._forms:
            self._counts = [len(floats_in(tree)) for tree in trees]
            ids = [i for i, floating in enumerate(self._floating) if not floating]
            self._sources = [ids[source] for source, _ in lookups]
            self._forms = self._forms_of(own)
        if not all(bool(t.isfinite().all()) for t in own):
            raise ValueError("the layer's tensors contain NaN or infinity: f has no gradient there; explain another")
        values = [form.examples_first(t, self.batch.n) for form, t in zip(self._forms, own, strict=True)]
        values = values if create_graph else [z.detach() for z in values]
        layers = sum(self._counts)
        beside = (*self._pick(inputs, True), *values[layers:])
        if is_overwritten:
            self._refuse_aliases((*values[:layers], *beside), output)
        return tuple(values[:layers]), beside

    def _refuse_aliases(self, tensors: tuple[Tensor, ...], output: Any) -> None:
        """Refuse a layer's tensor that is overwritten together with another of the same memory, which is read later.

        Raises:
            ValueError: The model returns something else where the layer's tensor has memory of its own.
        """
        with torch.no_grad():
            own = self._replayed(self, tensors, self.rest)
        for a, b in zip(floats_in(output), floats_in(own), strict=True):
            if a.shape != b.shape or not torch.allclose(a, b.to(a), rtol=1e-3, atol=1e-3 * float(a.abs().max())):
                raise ValueError(
                    "a tensor of the layer is overwritten in place, and with it one that the model reads elsewhere, so "
                    "that the two cannot be told apart; pass another layer, or compute without inplace=True"
                )

    def refuse_shared(self, values: tuple[Tensor, ...], beside: tuple[Tensor, ...], repeated: bool = False) -> None:
        """Refuse a tensor for all examples where the model does not take one for each.

        Within `hooked`, and after `tensors`, which gives both.

        Args:
            values: The layers' tensors.
            beside: What is beside them.
            repeated: Whether one example is run several times at once.

        Raises:
            ValueError: Another example's output depends on an example's tensor.
        """
        shared = [form.dim is None for form in self._forms[: len(values)]]
        if not any(shared) or (self.batch.n == 1 and not repeated):
            return
        batch = ModelOnBatch(self, (*values, *beside), None, self.rest)
        if batch.n == 1:
            batch = batch.at(torch.zeros(2, dtype=torch.int64, device=batch.device))
        moved = [z.clone() for z in batch.inputs]
        for z, is_shared in zip(moved, shared, strict=False):
            if is_shared:
                z[0] = 2 * z[0] + 1
        try:
            with torch.no_grad():
                pair = [floats_in(self._replayed(self, tuple(x), batch.args)) for x in (batch.inputs, moved)]
            independent = all(torch.allclose(a[1:], b[1:], equal_nan=True) for a, b in zip(*pair, strict=True))
        except RuntimeError:  # shapes that do not fit
            independent = False
        if not independent:
            raise ValueError(
                "the layer's tensor is the same for all examples, and the model cannot be given one for each; pass "
                "examples one at a time to LayerFullGrad, or explain a layer that comes after"
            )

    def _replayed(self, function: Callable[..., Any], inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> Any:
        """What a function returns, where what is drawn is drawn again in the run that is explained."""
        devices = [self.batch.device] if self.batch.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _without_fused_layers():
            return run_forward(function, inputs, None, args)

    def output(self, target: TargetType, inputs: tuple[Tensor, ...] | None = None) -> Tensor:
        """(N,) f of the model as it is, at its inputs or others."""
        batch = copy.copy(self.batch)
        batch.target, batch.span = target, class_span(target)
        with batch.evaluation(), torch.no_grad(), _without_fused_layers():
            return batch.selected(inputs)

    def in_form(self, attributions: Sequence[Tensor], listed: bool = False) -> Any:
        """Attributions to the layers' tensors as Captum has them.

        Args:
            attributions: (N, ...) each.
            listed: Whether a list of the layers' is asked for, or the one layer's.
        """
        own = [form.own(a).contiguous() for form, a in zip(self._forms, attributions, strict=False)]
        of_each = []
        for count in self._counts:
            parts, own = tuple(own[:count]), own[count:]
            of_each.append(parts if count > 1 else parts[0])
        return of_each if listed else of_each[0]

    # -- hooks

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within, the layers' hooks are in place, in the backward pass too, as checkpoints run layers again there."""
        with ExitStack() as stack:
            stack.enter_context(as_written())
            for index, layer in enumerate(self._layers):
                stack.callback(hook(layer, self._at_input, partial(self._met, index)).remove)
            try:
                yield
            finally:
                self._given, self._output = None, None

    def _met(self, index: int, tree: Any) -> Any:
        """A layer's tensors have come up: they are noted, or others put in their place."""
        self._runs[index] += 1
        if self._given is None:
            self._trees[index] = _substituted(tree, [t.clone() for t in floats_in(tree)])
            self._versions += [(t, t._version) for t in floats_in(tree) if not t.is_inference()]
            return None
        start = sum(self._counts[:index])
        return _substituted(tree, self._given[start : start + self._counts[index]])

    # -- the model as it is

    def _natural(
        self, inputs: tuple[Tensor, ...], rows: Rows, create_graph: bool = False
    ) -> tuple[list[Any], list[tuple[int, Tensor]]]:
        """What each layer returns, or takes; and what is looked up by which integer input."""
        self._given, self._trees, self._runs = None, [None] * len(self._layers), [0] * len(self._layers)
        self._versions = []
        xs = tuple(x[rows] if len(x) == self.batch.n else x for x in inputs)
        lookups = _Lookups(self._pick(xs, False))
        watching = lookups if self._lookups else nullcontext()
        args = self.batch.args_of(rows)
        with grad_mode(create_graph), watching:
            self._output = self._replayed(self.batch.forward_func, xs, args)
        self._is_overwritten = any(t._version != version for t, version in self._versions)
        self._versions = []
        for layer, runs, tree in zip(self._layers, self._runs, self._trees, strict=True):
            if runs != 1 or not floats_in(tree):
                raise unclear(self.batch.forward_func, layer, runs, self._at_input)
        return self._trees, lookups.results

    def _forms_of(self, tensors: Sequence[Tensor]) -> list[_Form]:
        """Where examples are, from the shapes of one, or two: n rows may be n examples, or n positions of all."""
        n, shapes = self.batch.n, [t.shape for t in tensors]
        others: list[torch.Size] = []
        if n > 1 or any(shape[:1] != (1,) for shape in shapes):
            rows = slice(0, 1) if n > 1 else torch.zeros(2, dtype=torch.int64, device=self.batch.device)
            with suppress(Exception):  # a model that does not take them: what its shapes look like has to do
                trees, lookups = self._natural(self.batch.inputs, rows)
                others = [t.shape for tree in trees for t in floats_in(tree)] + [t.shape for _, t in lookups]
        if len(others) != len(shapes):
            return [_form(shape, None, n) for shape in shapes]
        if n > 1:
            return [_form(shape, one, n) for shape, one in zip(shapes, others, strict=True)]
        try:
            return [_form(two, shape, 2) for shape, two in zip(shapes, others, strict=True)]
        except ValueError:
            return [_form(shape, None, n) for shape in shapes]


def _form(shape: torch.Size, alone: torch.Size | None, n: int) -> _Form:
    """The form of a tensor of n examples.

    Raises:
        ValueError: Its shape does not tell them apart.
    """
    if not shape:
        raise ValueError("the layer's tensor is one number for all examples, which has no shares; pass another layer")
    if alone is not None and len(alone) == len(shape):
        differ = [d for d in range(len(shape)) if shape[d] != alone[d]]
        if not differ:
            return _Form(None, leads=shape[0] == 1)
        if len(differ) == 1 and shape[differ[0]] == n * alone[differ[0]]:
            each = alone[differ[0]]
            return _Form(differ[0], None if each == 1 else each)
        if differ and (shape[0], alone[0]) == (n, 1):  # the others' size may depend on the longest example
            return _Form()
    elif shape[0] == n:
        return _Form()
    elif len(shape) > 1 and shape[1] == n:
        return _Form(1)
    elif shape[0] % n == 0:
        return _Form(0, shape[0] // n)
    raise ValueError(
        f"the layer's tensor of shape {tuple(shape)} does not tell the {n} examples apart; pass them one at a time, or "
        "another layer"
    )


def unwrapped(layer: nn.Module) -> nn.Module:
    """As `unwrap`."""
    inner = unwrap(layer)
    assert isinstance(inner, nn.Module)
    return inner


def hook(layer: nn.Module, at_input: bool, met: Callable[[Any], Any]) -> RemovableHandle:
    """A hook that tells of what a layer returns, or takes, where the thread that asks runs it.

    Args:
        layer: The layer.
        at_input: As `Cut`.
        met: Takes the tensors, in whatever they are in, and returns the same with others, or None.
    """
    owner = threading.current_thread()

    def elsewhere() -> bool:
        """Autograd's own threads, which run checkpoints again, are dummies to Python."""
        thread = threading.current_thread()
        return thread is not owner and not isinstance(thread, threading._DummyThread)

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if elsewhere():
            return None
        if floats_in(args):
            new = met(args)
            return None if new is None else (new, kwargs)
        new = met(next(({key: value} for key, value in kwargs.items() if floats_in(value)), {}))
        return None if new is None else (args, {**kwargs, **new})

    if at_input:
        return layer.register_forward_pre_hook(before, with_kwargs=True)
    return layer.register_forward_hook(lambda module, args, output: None if elsewhere() else met(output))


def unclear(model: Callable[..., Any], layer: nn.Module, runs: int, at_input: bool) -> ValueError:
    """What to say of a layer that has no tensors, or more than one run's."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((f"{name!r} " for name, module in modules if module is layer and name), "")
    which = f"layer {name}({type(layer).__name__})"
    if runs == 0:
        return ValueError(f"{which} does not run for these inputs; pass a module that the model calls")
    if runs == 1:
        what = "takes" if at_input else "returns"
        return ValueError(f"{which} {what} no floating-point tensor; pass a layer that does")
    return ValueError(
        f"{which} runs {runs} times in one pass, so that it is not clear which of its tensors is meant; pass a module "
        "around one of them, or give each use a module of its own"
    )


def floats_in(tree: Any) -> list[Tensor]:
    """The floating-point tensors, in order."""
    return [t for t in tensors_in(tree) if t.is_floating_point()]


def _substituted(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The same tree with other floating-point tensors."""
    others = iter(tensors)

    def next_of(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        other = next(others)
        return other if other.dtype == t.dtype else other.to(t.dtype)  # autocast may be off where it was on

    if not isinstance(tree, dict) or type(tree) is dict:
        return map_tensors(next_of, tree)
    new = copy.copy(tree)  # a record, such as those of transformers
    for key, value in tree.items():
        new[key] = map_tensors(next_of, value)
    return new


class _Lookups(TorchFunctionMode):
    """Within, what is looked up in tables of numbers by integer inputs is noted, or others are put in its place.

    Args:
        inputs: The integer inputs.
        given: What to put there, in order; nothing where it is noted.

    Attributes:
        results: Which input it was looked up by, and what was found.
    """

    def __init__(self, inputs: Sequence[Tensor], given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self._given = None if given is None else iter(given)
        self._moved = {id(t): (t, i) for i, t in enumerate(inputs)}
        self.results: list[tuple[int, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = operation_name(func)
        is_move = name in _MOVES
        if not is_move and name not in _LOOKUPS:
            return result
        sources = [self._moved[id(t)][1] for t in tensors_in((args, kwargs)) if id(t) in self._moved]
        if not sources:
            return result
        if isinstance(result, Tensor) and result.is_floating_point():
            if name not in _LOOKUPS:
                return result
            if self._given is not None:
                return next(self._given)
            self.results.append((sources[0], result.clone()))
            return result
        if is_move:
            self._moved |= {id(t): (t, sources[0]) for t in tensors_in(result)}
        return result


_LOOKUPS = frozenset("embedding embedding_bag getitem index index_select gather take take_along_dim".split())
_MOVES = frozenset(
    """
    view reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze transpose swapaxes permute movedim t T mT
    expand expand_as repeat repeat_interleave contiguous clone detach to long int type getitem narrow select split chunk
    unbind index_select flip roll cat stack clamp clip
    """.split()
)


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """Within, transformer layers run their parts, as they do where gradients are taken."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
