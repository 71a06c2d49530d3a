"""Modules that a forward pass in training mode changes, held still while a model is evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from captum_density._model.sparse import dense_parts

__all__ = ["FixedModules", "evaluation_mode", "fixed_modules", "modules_of"]

_NormBase, _BatchNorm = nn.modules.batchnorm._NormBase, nn.modules.batchnorm._BatchNorm


class _Saved(NamedTuple):
    module: nn.Module
    name: str
    training: bool
    buffers: dict[str, Tensor | None]


class FixedModules:
    """What was changed on modules, and how to change it back.

    Batch norm and spectral norm are put in evaluation mode: f(x) would else be a function of the whole batch, noisy
    copies included, or of how often it was asked for. Buffers of modules in training mode are copies, which take what
    is written to them. So are batch norm's in any mode: a later call in training mode overwrites its statistics without
    a word to autograd, and the backward pass through this evaluation would read others than were used.
    """

    def __init__(self, needs_statistics: bool = True) -> None:
        self._needs_statistics = needs_statistics
        self._saved: dict[int, _Saved] = {}

    def fix(self, module: nn.Module, name: str = "") -> None:
        """Hold a module still, once.

        Raises:
            ValueError: Batch norm without running statistics.
        """
        is_batch_norm = isinstance(module, _BatchNorm)
        if is_batch_norm and (module.running_mean is None or module.running_var is None):
            if not self._needs_statistics:
                return
            raise ValueError(
                f"batch norm {name!r} keeps no running statistics, so that f(x) depends on the other examples in the "
                "batch; use track_running_stats=True, or GroupNorm in its place"
            )
        writes = module.training and (bool(module._buffers) or _is_spectral_norm(module))
        if id(module) in self._saved or not (writes or is_batch_norm):
            return
        self._saved[id(module)] = _Saved(module, name, module.training, dict(module._buffers))
        module.training = module.training and not is_batch_norm and not _is_spectral_norm(module)
        module._buffers.update({key: None if b is None else b.clone() for key, b in module._buffers.items()})

    @property
    def switched(self) -> bool:
        """Whether a module's mode is another than it was."""
        return any(saved.module.training != saved.training for saved in self._saved.values())

    def refuse_changes(self) -> None:
        """Refuse a model whose buffers have changed, so that it is another than before.

        Raises:
            ValueError: They have.
        """
        for module, name, _, buffers in self._saved.values():
            if isinstance(module, _NormBase):
                continue  # instance norm counts and averages what it does not use in training mode
            for key, before in buffers.items():
                now = module._buffers.get(key)
                if before is not None and (now is None or not _equal(before, now)):
                    raise ValueError(
                        f"module {name!r} ({type(module).__name__}) changes its buffer {key!r} as it runs, so that "
                        "two evaluations are those of two networks; call model.eval() for this call, and model.train() "
                        "after"
                    )

    def restore(self) -> None:
        """Make everything as it was."""
        for module, _, training, buffers in self._saved.values():
            module.training = training
            module._buffers.update(buffers)


def _equal(before: Tensor, now: Tensor) -> bool:
    alike = before.layout == now.layout and before.shape == now.shape
    return alike and all(map(torch.equal, dense_parts(before), dense_parts(now)))


@contextmanager
def fixed_modules(
    model: Callable[..., Any], *, comparison: bool = False, needs_statistics: bool = True
) -> Iterator[FixedModules]:
    """Within, nothing that a forward pass does to the model's modules lasts, or makes two of them differ.

    Of a function, the modules are those that run within: PyTorch tells of each before it does.

    Args:
        model: A module, a method of one, or any function.
        comparison: Whether values are compared, so that a model is refused whose other buffers change.
        needs_statistics: Whether batch norm without running statistics is refused, or left as it is.

    Raises:
        ValueError: Batch norm without running statistics, or a model that changes itself.
    """
    fixed, hook = FixedModules(needs_statistics), None
    try:
        owner = _owner(model)
        if isinstance(owner, nn.Module):
            for name, module in owner.named_modules():
                fixed.fix(module, name)
        else:
            hook = register_module_forward_pre_hook(lambda module, _: fixed.fix(module, type(module).__name__))
        yield fixed
        if comparison:
            fixed.refuse_changes()
    finally:
        if hook is not None:
            hook.remove()
        fixed.restore()


@contextmanager
def evaluation_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Within, a model's modules are in evaluation mode; after, each is in its own again."""
    saved = [(module, module.training) for module in modules_of(model)]
    try:
        for module, _ in saved:
            module.training = False  # not by .eval(), which a class may override
        yield
    finally:
        for module, training in saved:
            module.training = training


def modules_of(model: Callable[..., Any]) -> list[nn.Module]:
    """The modules of a module, or of one whose method the model is; none of any other function."""
    owner = _owner(model)
    return list(owner.modules()) if isinstance(owner, nn.Module) else []


def _owner(model: Any) -> Any:
    while isinstance(model, functools.partial):
        model = model.func
    return getattr(model, "__self__", model)


def _is_spectral_norm(module: nn.Module) -> bool:
    if isinstance(module, _SpectralNorm):
        return True
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
