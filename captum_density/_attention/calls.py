"""The attention calls of one layer, seen as the model runs."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from captum_density._attention.operations import (
    AttentionCall,
    Observed,
    Softmax,
    attention_call_of,
    hides_attention,
)
from captum_density._model.batch import ModelOnBatch
from captum_density._model.calls import map_tensors, operation_name, tensors_in
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.generators import replayable
from captum_density._model.interrupts import CleanInterrupts
from captum_density._model.modules import is_fully_sharded, unwrap
from captum_density._model.shared_settings import EAGER_CODE
from captum_density._model.validation import check_model

__all__ = ["AttentionCalls", "Observed", "find_layer", "logits_of", "run_from_start"]

Change = Callable[[AttentionCall, int], Any]


class _PassEnded(BaseException):
    """Ends a forward pass whose rest is not needed. No `Exception`, which a model might take for its own."""

    def __init__(self, by: AttentionCalls) -> None:
        super().__init__("the attention that was asked for has been read")
        self.by = by


class AttentionCalls(TorchFunctionMode):
    """While entered, what runs in a layer's attention call is `change(call, N)`.

    Args:
        model: What is run, to name modules by.
        layer: One of its modules, with one attention call a run.
        change: From the call and the number of examples to its result.
        n: The number of examples; None reads it from the model's first tensor.
        run: In which of the layer's runs, from 0; None in each. They are counted within a pass of the model; where that
            is a function, whose beginning cannot be seen, from when this is entered.
        ends_pass: Whether the model's pass ends with that run. Where models are sharded or offloaded it does not, as
            what a rank or a hook does after a module would be left undone.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: nn.Module,
        change: Change,
        n: int | None = None,
        run: int | None = None,
        ends_pass: bool = False,
    ) -> None:
        super().__init__()
        self._root = model if isinstance(model, nn.Module) else layer
        self._layer, self._change, self._n, self._fixed, self._run = layer, change, n, n is not None, run
        self._ends_pass = ends_pass and run is not None and not _keeps_weights_elsewhere(self._root)
        self._names: dict[int, str] = {}
        for name, module in self._root.named_modules():
            self._names.setdefault(id(module), name)
        self._thread = threading.get_ident()
        self._paused = False
        self._running: list[nn.Module] = []
        self._pass: tuple[Any, Any] = ((), None)  # arguments of the root
        self._here: list[str] = []  # attention calls of the layer's current run
        self._sinks: tuple[torch.Size, int] | None = None  # of the last scores that were put beside constants
        self.elsewhere: set[str] = set()
        self.runs = 0  # so far, in this pass
        self.most_runs = 0  # in a pass
        self.calls = 0
        self._exit = ExitStack()

    @property
    def name(self) -> str:
        """The layer, in words."""
        name = self._names.get(id(self._layer), "")
        return f"layer {name!r}" if name else f"the {type(self._layer).__name__} that was given"

    def __enter__(self) -> AttentionCalls:
        with ExitStack() as stack:
            for module in self._root.modules():
                pre = module.register_forward_pre_hook(self._begin, with_kwargs=True)
                post = module.register_forward_hook(self._end, always_call=True)
                for handle in (pre, post):
                    stack.callback(RemovableHandle.remove, handle)
            stack.enter_context(EAGER_CODE)
            super().__enter__()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        super().__exit__(kind, error, traceback)
        self._exit.close()
        self._pass = ((), None)
        return isinstance(error, _PassEnded) and error.by is self

    def _begin(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if self._paused or threading.get_ident() != self._thread:
            return
        if module is self._root:
            self._begin_pass(args, kwargs)
        self._running.append(module)
        if module is self._layer:
            if self._run is not None and self._running[0] is not self._root:
                raise ValueError(
                    f"{self.name} runs outside of a pass of the model, so that run={self._run} cannot be told; call "
                    "the model itself, and turn activation checkpointing off"
                )
            self._here, self._sinks = [], None
            self.runs += 1
            self.most_runs = max(self.most_runs, self.runs)

    def _begin_pass(self, args: Any, kwargs: Any) -> None:
        self._running.clear()  # of a pass that was ended, whose modules are on it still
        self._pass = (args, kwargs)
        if self._root is not self._layer:
            self.runs = 0
        given = [t for t in tensors_in((args, kwargs)) if t.ndim]
        if not self._fixed:
            self._n = len(given[0]) if given else None
        elif self._root is not self._layer and given and all(self._n not in t.shape[:2] for t in given):
            raise ValueError(f"positions are for {self._n} examples, but the model is given {len(given[0])}")

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._paused or threading.get_ident() != self._thread:
            return
        # Modules whose pre-hook did not run, because another one raised, are not on the stack.
        if not self._running or self._running[-1] is not module:
            return
        self._running.pop()
        # Of a module that raised, this is told with None.
        if self._ends_pass and module is self._layer and self._is_meant and self._here and output is not None:
            raise _PassEnded(self)

    @property
    def _is_meant(self) -> bool:
        return self._run is None or self.runs - 1 == self._run

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        inside = any([module is self._layer for module in self._running])  # a list is faster
        if inside and operation_name(func) in _CONCATENATIONS:
            result = func(*args, **kwargs)
            self._sinks = _sinks_of(result, *args, **kwargs) or self._sinks
            return result
        where = self._names.get(id(self._running[-1]), "") if self._running else ""
        if hides_attention(func) and inside and self._is_meant:
            raise ValueError(_hidden(self.name, operation_name(func)))
        named_call = attention_call_of(func, args, kwargs)
        if named_call is None:
            return func(*args, **kwargs)
        name, call = named_call
        if not inside:
            self.elsewhere.add(where)
        if not inside or not self._is_meant:
            return func(*args, **kwargs)
        self._here.append(f"{name} in {where!r}" if where else name)
        self.calls += 1
        if len(self._here) > 1:
            raise ValueError(
                f"{self.name} runs attention more than once, first {self._here[0]}, then {self._here[1]}; give the "
                "module in which it runs once"
            )
        if self._n is None:
            raise ValueError("the model was called without a tensor, which would tell how many examples there are")
        if isinstance(call, Softmax) and self._sinks is not None and call.of_last(self._sinks[0]):
            call.sinks = self._sinks[1]
        call.heads_first = partial(self._heads_first, call)
        return self._change(call, self._n)

    def _heads_first(self, call: AttentionCall) -> bool:
        """Of examples and heads that share a dimension: whether the examples of a head are side by side.

        Told by a second pass with the examples in another order, up to the same call: read in the right order, its
        scores are those of the first pass in that order.

        Raises:
            ValueError: Both orders would do, or none.
        """
        n = call.examples or self._n
        assert n is not None
        scores: list[tuple[Tensor, Tensor]] = []

        def compare(other: AttentionCall, n: int) -> Any:
            for heads_first in (False, True):
                before, after = (c.arranged_scores(n, heads_first) for c in (call, other))
                if before is not None and after is not None:
                    scores.append((before.roll(1, 0), after))
            return other.unchanged()

        args, kwargs = self._pass
        if all(_is_plain(value) for value in (*args, *(kwargs or {}).values())):
            in_turn = map_tensors(lambda t: _rolled(t, n), (args, kwargs or {}))
            run = 0 if self._root is self._layer else self.runs - 1
            again = AttentionCalls(self._root, self._layer, compare, n, run, ends_pass=True)
            self._paused = True
            try:
                with fixed_modules(self._root, needs_statistics=False), replayable(call.device), torch.no_grad(), again:
                    self._root(*in_turn[0], **in_turn[1])
            finally:
                self._paused = False
        errors = [_difference(*pair) for pair in scores]
        if len(errors) == 2 and min(errors) < 0.1 * max(errors) and min(errors) < 1e-2:
            return errors[1] < errors[0]
        raise ValueError(
            f"{self.name} folds heads into the examples, and whether those of an example or those of a head are "
            "side by side could not be told from its scores; explain one example at a time"
        )

    def check_seen(self) -> None:
        """Refuse a layer in which no attention was seen, or not in the run that is meant.

        Raises:
            ValueError: There was none; says where there was.
        """
        if self.calls:
            return
        if not self.most_runs:
            raise ValueError(f"{self.name} did not run; is it a module of this model, called (not its forward)?")
        if self._run is not None and self.most_runs <= self._run:
            times = "once" if self.most_runs == 1 else f"{self.most_runs} times"
            raise ValueError(f"{self.name} ran {times} in a pass, so that run must be below {self.most_runs}")
        kernel = _kernel_of(self._layer) or _kernel_of(self._root)
        if any(word in kernel for word in ("flash", "paged", "kernels-community")):
            raise ValueError(_hidden(self.name, kernel))
        others = ", ".join(repr(name) for name in sorted(self.elsewhere) if name)
        raise ValueError(
            f"{self.name} has no attention: it calls no softmax, scaled_dot_product_attention, flex_attention or "
            "nn.MultiheadAttention (fused kernels of other names cannot be seen; in Hugging Face's transformers choose "
            f'attn_implementation="eager" or "sdpa")' + (f". There is some in {others}" if others else "")
        )


def _hidden(layer: str, kernel: str) -> str:
    return (
        f"{layer} attends in {kernel}, a kernel that shows no weights; choose another one, in Hugging Face's "
        'transformers attn_implementation="sdpa"'
    )


def _kernel_of(module: nn.Module) -> str:
    """What attends in a Hugging Face model, as its configuration has it; "" of others."""
    return str(getattr(getattr(module, "config", None), "_attn_implementation", None) or "")


def _keeps_weights_elsewhere(model: nn.Module) -> bool:
    """Whether its weights come and go as it runs: fully sharded, or offloaded by hooks of accelerate."""
    return is_fully_sharded(model) or any(hasattr(module, "_hf_hook") for module in model.modules())


_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})


def _sinks_of(result: Tensor, tensors: Any = (), dim: int = 0, **_: Any) -> tuple[torch.Size, int] | None:
    """The shape of scores beside which there are constants, the same for all examples and queries; and how many.

    They take part in the softmax and have no value, so that weights sum to less than 1, as in GPT-OSS. Expanded to the
    scores' shape, they have strides of 0.
    """
    pieces = [piece for piece in tensors if isinstance(piece, Tensor)]
    if len(pieces) != 2 or result.ndim != 4 or dim not in (-1, 3):
        return None
    sinks, (n, _heads, queries, width) = pieces[1], pieces[1].shape
    if n * queries == 1:  # nothing was expanded; then it is a parameter as it is, of one number a head
        constant = width == 1 and isinstance(sinks._base, nn.Parameter)
    else:
        constant = all(size == 1 or stride == 0 for size, stride in ((n, sinks.stride(0)), (queries, sinks.stride(2))))
    return (result.shape, width) if constant else None


def _is_plain(value: Any) -> bool:
    """Whether a value can be passed twice: nothing that a model writes to, as to a cache."""
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, Tensor | int | float | str)


def _rolled(values: Tensor, n: int) -> Tensor:
    """The last example first, where examples are the first or second of its dimensions."""
    dim = next((dim for dim, size in enumerate(values.shape[:2]) if size == n), None)
    return values if dim is None else values.detach().roll(1, dim)


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest, of scores as softmax sees them; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a.double().softmax(-1) - b.double().softmax(-1)).abs().nan_to_num(0).max())


def find_layer(model: Callable[..., Any], layer: str | nn.Module) -> tuple[Callable[..., Any], nn.Module]:
    """The model inside wrappers, and its layer.

    Raises:
        TypeError: No model, TorchScript, or a layer that is no module and no name of one.
        ValueError: A name that the model does not have.
    """
    check_model(model, "model")
    inner = unwrap(model)
    if isinstance(layer, nn.Module):
        found = unwrap(layer)
        assert isinstance(found, nn.Module)
        return inner, found
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a module of the model or its name, but is {type(layer).__name__}")
    if not isinstance(inner, nn.Module):
        raise TypeError("the model is a function, which has no named layers; give the module itself as layer")
    modules = dict(inner.named_modules(remove_duplicate=False))
    if layer not in modules:
        near = [name for name in modules if layer.rpartition(".")[2] in name] or list(modules)
        raise ValueError(f"the model has no layer {layer!r}; it has {', '.join(map(repr, near[:8]))}")
    return inner, modules[layer]


def run_from_start(batch: ModelOnBatch, layer: nn.Module, run: Any) -> int | None:
    """Which of a layer's runs in a pass, counted from the first, at the cost of a pass where it is from the last.

    Args:
        batch: The model and its examples.
        layer: One of its modules.
        run: From 0, from -1 for the last, or None, which stays.

    Raises:
        TypeError: No integer.
        ValueError: There is no such run.
    """
    try:
        if run is None:
            return None
        if isinstance(run, bool):
            raise TypeError
        run = operator.index(run)
    except TypeError:
        raise TypeError(f"run must be an integer, or None where the layer runs once, but is {run!r}") from None
    if run >= 0:
        return int(run)
    fixed, calls = (
        fixed_modules(batch.forward_func, needs_statistics=False),
        AttentionCalls(batch.forward_func, layer, lambda call, _: call.unchanged(), batch.n),
    )
    with CleanInterrupts(), fixed, replayable(batch.device), torch.no_grad(), calls:
        batch.run()
    calls.check_seen()
    if -run > calls.most_runs:
        raise ValueError(
            f"{calls.name} ran {calls.most_runs} times in a pass, so that run must be -{calls.most_runs} or above"
        )
    return int(calls.most_runs + run)


def logits_of(output: Any) -> Any:
    """A Hugging Face model's `logits`, and whatever else is returned as it is."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output
