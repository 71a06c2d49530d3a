"""Which module is running, by its name in the model; and models whose operations or gradients are hidden, refused."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from captum_density._model.shared_settings import EAGER_CODE

__all__ = ["FSDP_IDENTITY", "ModuleStack", "as_written", "batch_statistics_error", "is_fully_sharded", "unwrap"]

# What `fully_shard` puts around a module's inputs: an autograd Function that returns them as they are.
FSDP_IDENTITY = "RegisterPostBackwardFunction"
# Where Captum defines hooks that put other gradients in place of a module's.
_GRADIENT_HOOKS = frozenset({"captum._utils.common", "captum.attr._core.deep_lift", "captum.attr._utils.lrp_rules"})


def unwrap(model: Callable[..., Any]) -> Callable[..., Any]:
    """The module inside DataParallel, DistributedDataParallel and torch.compile.

    Raises:
        TypeError: If the model is TorchScript, whose operations cannot be seen.
        NotImplementedError: If hooks of Captum's change its gradients.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            _refuse_opaque(module, name)
            _refuse_gradient_hooks(module)
    elif isinstance(model, torch.jit.ScriptFunction):
        raise TypeError("a TorchScript function hides its operations; pass the Python function it was made from")
    return model


def _refuse_opaque(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        where = f"submodule {name!r} is" if name else "the model is"
        raise TypeError(f"{where} TorchScript, which hides its operations; pass the nn.Module it was made from")


def _refuse_gradient_hooks(module: nn.Module) -> None:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if getattr(hook, "__module__", "") in _GRADIENT_HOOKS:
            raise NotImplementedError(
                "hooks of Captum's DeepLift, GuidedBackprop, Deconvolution or LRP change this model's gradients, which "
                "cannot follow two methods at once; in place of DeepLift take CompleteDeepLift of the model, in place "
                "of LRP InputXGradient of its BalancedGradients"
            )


def is_fully_sharded(model: Callable[..., Any]) -> bool:
    """Whether `torch.distributed.fsdp.fully_shard` was applied to a part of a model."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(kind.__name__ == "FSDPModule" for module in modules for kind in type(module).__mro__)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, compiled code runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # then nothing can be compiled
        yield
        return
    with EAGER_CODE, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        yield


class ModuleStack(contextlib.AbstractContextManager["ModuleStack"]):
    """While entered, follows calls of modules. A model met inside a plain function is named from its own root.

    The hooks are global, so calls in other threads (someone's training loop) are none of its business.
    Batch norm in training mode is refused before it updates its statistics, and TorchScript when it is met.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._thread = threading.get_ident()
        self._exit = contextlib.ExitStack()

    @property
    def path(self) -> str:
        """The name of the innermost module that is running, "" outside all and in the root."""
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> ModuleStack:
        pre = module_hooks.register_module_forward_pre_hook(self._enter_module)
        self._exit.callback(pre.remove)
        post = module_hooks.register_module_forward_hook(self._leave_module, always_call=True)
        self._exit.callback(post.remove)
        self._exit.enter_context(as_written())
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if id(module) not in self._names:
            for name, child in module.named_modules():
                _refuse_opaque(child, name)
                self._names.setdefault(id(child), name.replace("_orig_mod.", "").removesuffix("._orig_mod"))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            raise batch_statistics_error(self._names[id(module)])
        self._stack.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack and threading.get_ident() == self._thread:
            self._stack.pop()


def batch_statistics_error(name: str) -> ValueError:
    """What to say of a batch norm that makes each example's output depend on the others."""
    return ValueError(
        f"batch norm {name!r} normalises with the statistics of the batch, so an example's output depends on the other "
        "examples and has no full gradient of its own; call model.eval() first (it must have running statistics)"
    )
