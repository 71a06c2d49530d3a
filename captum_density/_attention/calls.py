"""The attention calls of one layer, seen as the model runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from captum_density._attention.operations import AttentionCall, Observed, attention_call_of
from captum_density._model.calls import tensors_in
from captum_density._model.modules import unwrap
from captum_density._model.validation import check_model

__all__ = ["AttentionCalls", "Observed", "find_layer", "logits_of"]

Change = Callable[[AttentionCall, int], Any]


class AttentionCalls(TorchFunctionMode):
    """While entered, what runs in a layer's attention call is `change(call, N)`.

    Args:
        model: What is run, to name modules by.
        layer: One of its modules, with one attention call.
        change: From the call and the number of examples to its result.
        n: The number of examples; None reads it from the model's first tensor.
    """

    def __init__(self, model: Callable[..., Any], layer: nn.Module, change: Change, n: int | None = None) -> None:
        super().__init__()
        self._root = model if isinstance(model, nn.Module) else layer
        self._layer, self._change, self._n, self._fixed = layer, change, n, n is not None
        self._names = {id(module): name for name, module in self._root.named_modules()}
        self._thread = threading.get_ident()
        self._running: list[nn.Module] = []
        self._here: list[str] = []  # attention calls of the layer's current run
        self.elsewhere: set[str] = set()
        self.runs = 0
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
            if "torch._dynamo" in sys.modules:  # only then can anything be compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            super().__enter__()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._exit.close()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if threading.get_ident() != self._thread:
            return
        if module is self._root and not self._running:
            given = [t for t in tensors_in((args, kwargs)) if t.ndim]
            if not self._fixed:
                self._n = len(given[0]) if given else None
            elif module is not self._layer and given and all(self._n not in t.shape[:2] for t in given):
                raise ValueError(f"positions are for {self._n} examples, but the model is given {len(given[0])}")
        self._running.append(module)
        if module is self._layer:
            self._here = []
            self.runs += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        # Modules whose pre-hook did not run, because another one raised, are not on the stack.
        if threading.get_ident() == self._thread and self._running and self._running[-1] is module:
            self._running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        named_call = attention_call_of(func, args, kwargs)
        if named_call is None or threading.get_ident() != self._thread:
            return func(*args, **kwargs)
        name, call = named_call
        inside = self._names.get(id(self._running[-1]), "") if self._running else ""
        if not any(module is self._layer for module in self._running):
            self.elsewhere.add(inside)
            return func(*args, **kwargs)
        self._here.append(f"{name} in {inside!r}" if inside else name)
        self.calls += 1
        if len(self._here) > 1:
            raise ValueError(
                f"{self.name} runs attention more than once, first {self._here[0]}, then {self._here[1]}; give the "
                "module in which it runs once"
            )
        if self._n is None:
            raise ValueError("the model was called without a tensor, which would tell how many examples there are")
        return self._change(call, self._n)

    def check_seen(self) -> None:
        """Refuse a layer in which no attention was seen.

        Raises:
            ValueError: There was none; says where there was.
        """
        if self.calls:
            return
        if not self.runs:
            raise ValueError(f"{self.name} did not run; is it a module of this model, called (not its forward)?")
        others = ", ".join(repr(name) for name in sorted(self.elsewhere) if name)
        raise ValueError(
            f"{self.name} has no attention: it calls no softmax, scaled_dot_product_attention or "
            "nn.MultiheadAttention (fused kernels of other names cannot be seen; in Hugging Face's transformers choose "
            f'attn_implementation="eager" or "sdpa")' + (f". There is some in {others}" if others else "")
        )


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
    modules = dict(inner.named_modules())
    if layer not in modules:
        near = [name for name in modules if layer.rpartition(".")[2] in name] or list(modules)
        raise ValueError(f"the model has no layer {layer!r}; it has {', '.join(map(repr, near[:8]))}")
    return inner, modules[layer]


def logits_of(output: Any) -> Any:
    """A Hugging Face model's `logits`, and whatever else is returned as it is."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output
