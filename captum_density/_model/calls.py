"""Calls of torch functions: one name for every spelling, their tensors, and how to run them a second time."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import checkpoint

from captum_density._model.shared_settings import PLAIN_ATTENTION, PLAIN_RECURRENCE

__all__ = [
    "Call",
    "OverwrittenError",
    "Versions",
    "in_checkpoint",
    "is_continuous",
    "map_tensors",
    "mutated",
    "operation_name",
    "tensors_in",
]

# Where `inplace` stands among the arguments of the functions that have it.
_INPLACE_POSITION = {
    "relu": 1, "relu6": 1, "silu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "selu": 1, "leaky_relu": 2, "elu": 2,
    "celu": 2, "hardtanh": 3, "threshold": 3, "rrelu": 4, "dropout": 3, "dropout1d": 3, "dropout2d": 3, "dropout3d": 3,
    "alpha_dropout": 3, "feature_alpha_dropout": 3,
}  # fmt: skip

# These draw random numbers when a model is in training mode, so a second evaluation must replay them.
_FUSED_RECURRENCE = frozenset("lstm gru rnn_tanh rnn_relu".split())
_RANDOM = _FUSED_RECURRENCE | frozenset(
    """
    scaled_dot_product_attention multi_head_attention_forward alpha_dropout feature_alpha_dropout gumbel_softmax
    """.split()
)

_LEAVES = frozenset((int, float, bool, str, type(None)))

# Operations that add or write a number they are given.
_TAKES_NUMBERS = frozenset("add sub rsub where masked_fill setitem fill index_fill scatter".split())

_ALIASES = {
    **{f"{prefix}{name}": name for name in ("add", "mul", "matmul", "pow", "sub") for prefix in ("i", "r") if (
        prefix + name) != "rsub"},
    **dict.fromkeys(("multiply", "mul"), "mul"),
    **dict.fromkeys(("truediv", "itruediv", "divide", "true_divide", "idiv"), "div"),
    **dict.fromkeys(("rtruediv", "rdiv"), "rdiv"),
    "rpow": "rpow",
    "subtract": "sub",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def operation_name(func: Callable[..., Any]) -> str:
    """One name for all spellings of an operation: `torch.add`, `Tensor.add_`, `+=`, `aten.add.Tensor` are "add".

    >>> spellings = torch.add, torch.Tensor.__iadd__, torch.ops.aten.add_.Tensor, torch.Tensor.T.__get__
    >>> [operation_name(function) for function in spellings]
    ['add', 'add', 'add', 'T']
    """
    name = getattr(func, "__name__", "") or type(func).__name__
    if name in ("__get__", "__set__"):
        name = func.__self__.__name__  # type: ignore[attr-defined]
    name = name.split(".")[0].strip("_")
    return _ALIASES.get(name, name)


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    result: list[Tensor] = []
    _collect(tree, result)
    return result


def _collect(tree: Any, result: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        result.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            if item.__class__ not in _LEAVES:
                _collect(item, result)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(item, result)


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nested tuples, lists and dicts with `function` applied to every tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, tuple):
        items = [map_tensors(function, item) for item in tree]
        if hasattr(tree, "n_sequence_fields"):  # torch.return_types
            return type(tree)(items)
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [map_tensors(function, item) for item in tree]
    if isinstance(tree, dict):
        return {key: map_tensors(function, item) for key, item in tree.items()}
    return tree


@dataclass(slots=True)
class Call:
    """One call of a torch function, as it stood before the call.

    `activations` are the arguments that depend on the inputs, by identity; everything else is a constant.
    `mutated` are the arguments the call writes to, `edge` is where the one activation stood in the graph before that.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    activations: list[Tensor]
    mutated: Sequence[Tensor] = ()
    rng_state: Sequence[tuple[torch.device, Tensor]] = ()
    edge: GradientEdge | None = None

    @property
    def name(self) -> str:
        return operation_name(self.func)

    def argument(self, position: int, name: str) -> Any:
        """A positional-or-keyword argument, None where it is absent."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    def is_activation(self, value: Any) -> bool:
        return any([value is activation for activation in self.activations])  # by identity, and a list is faster

    def has_constants(self) -> bool:
        """Whether a floating-point tensor or a number other than 0 is added or written beside the activations."""
        if any(is_continuous(t) and not self.is_activation(t) for t in tensors_in((self.args, self.kwargs))):
            return True
        values = (*self.args, *self.kwargs.values()) if self.name in _TAKES_NUMBERS else ()
        return any(isinstance(value, (int, float, complex)) and value != 0 for value in values)

    def frozen(self) -> Call:
        """The same call on copies of what it is about to overwrite: a record to evaluate it again later.

        Where a flag asks for overwriting, the record does without: then no further copy is ever needed.
        """
        copies = {id(t): t.clone() for t in self.mutated}
        args, kwargs = map_tensors(lambda t: copies.get(id(t), t), (self.args, self.kwargs))
        activations = [copies.get(id(t), t) for t in self.activations]
        mutated = [copies[id(t)] for t in self.mutated]
        position = _INPLACE_POSITION.get(self.name, len(args))
        if len(args) > position:
            args, mutated = (*args[:position], False, *args[position + 1 :]), []
        elif kwargs.get("inplace"):
            kwargs, mutated = {**kwargs, "inplace": False}, []
        return Call(self.func, args, kwargs, activations, mutated, self.rng_state, self.edge)

    def evaluate(self, substitute: Callable[[Tensor], Tensor], *, differentiable: bool = True) -> list[Tensor]:
        """Run the call with `substitute(u)` in place of each activation u, as it ran: same kernels, same random draws.

        Args:
            substitute: Of an activation.
            differentiable: Whether what has fused kernels without a forward-mode derivative, attention and recurrent
                layers, runs in its plain form, which has one and takes more memory.
        """
        done: dict[int, Tensor] = {}
        written = {id(t) for t in self.mutated}

        def replace(t: Tensor) -> Tensor:
            if id(t) not in done:
                done[id(t)] = substitute(t) if self.is_activation(t) else t.clone() if id(t) in written else t
            return done[id(t)]

        args, kwargs = map_tensors(replace, (self.args, self.kwargs))
        with contextlib.ExitStack() as stack:
            if differentiable and self.name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
                stack.enter_context(PLAIN_ATTENTION)
            elif differentiable and self.name in _FUSED_RECURRENCE:
                stack.enter_context(PLAIN_RECURRENCE)
            stack.enter_context(_replayed(self.rng_state))
            result = self.func(*args, **kwargs)
        return [done[id(t)] for t in self.mutated] or tensors_in(result)

    def record_edge(self) -> None:
        """Remember where the activation stands in the graph, which is about to be overwritten."""
        self.edge = get_gradient_edge(self.activations[0])

    def record_rng(self, always: bool = False) -> None:
        """Remember the random state if the call may draw from it."""
        if always or self.name in _RANDOM:
            devices = {t.device for t in self.activations}
            on_devices = [(d, torch.cuda.get_rng_state(d)) for d in devices if d.type == "cuda"]
            self.rng_state = [(torch.device("cpu"), torch.get_rng_state()), *on_devices]


@contextlib.contextmanager
def _replayed(rng_state: Sequence[tuple[torch.device, Tensor]]) -> Iterator[None]:
    if not rng_state:
        yield
        return
    with torch.random.fork_rng([d for d, _ in rng_state if d.type == "cuda"]):
        for device, state in rng_state:
            torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
        yield


def is_continuous(t: Tensor) -> bool:
    """Floating point, real or complex."""
    return t.is_floating_point() or t.is_complex()


def mutated(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Tensor]:
    """The tensors a call writes to."""
    if kwargs and isinstance(out := kwargs.get("out"), Tensor):
        return [out]
    if isinstance(func, torch._ops.OpOverload):
        return [a for a, spec in zip(args, func._schema.arguments, strict=False) if spec.is_write]
    in_place = _is_in_place(func)
    if not in_place:
        position = _INPLACE_POSITION.get(operation_name(func), len(args))
        in_place = bool(args[position] if len(args) > position else kwargs and kwargs.get("inplace", False))
    if not in_place:
        return ()
    target = args[0] if args else kwargs.get("input")
    return [target] if isinstance(target, Tensor) else ()


@functools.lru_cache(maxsize=4096)
def _is_in_place(func: Callable[..., Any]) -> bool:
    """Whether a function overwrites its first argument, by its name."""
    name = getattr(func, "__name__", "")
    return name != "requires_grad_" and (
        (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"))
        or name == "__setitem__"
    )


class OverwrittenError(RuntimeError):
    """What was to be read in the backward pass has been overwritten."""


class Versions:
    """Tensors that are to be read in the backward pass, and have to be what they are now.

    Autograd makes sure of those that it keeps itself, but of some it keeps a copy, and lets the model overwrite its
    own: of a mask as numbers, of an input in another order of memory.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._of = [(t, t._version) for t in tensors if not t.is_inference()]

    def check(self) -> None:
        """Before they are read.

        Raises:
            OverwrittenError: One has been written to.
        """
        if any(t._version != version for t, version in self._of):
            raise OverwrittenError


def in_checkpoint() -> bool:
    """Whether what runs now is activation checkpointing's, of the kind that is not reentrant."""
    top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top_hooks is not None:
        hooks = top_hooks(False)
        return hooks is not None and "checkpoint" in getattr(hooks[0], "__module__", "")
    frame = sys._getframe()  # PyTorch 2.6 tells nobody its hooks
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "checkpoint" and frame.f_code.co_filename == checkpoint.__file__:
            return True
    return False
