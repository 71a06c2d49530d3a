"""What has to hold while a model is evaluated at many points: batch norm fixed, full precision, no random numbers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "differentiable_twice",
    "fixed_batch_norm",
    "full_precision",
    "load_forward_mode",
    "refuse_random_numbers",
    "without_fused_recurrence",
]


@contextmanager
def fixed_batch_norm(model: Callable[..., Any]) -> Iterator[None]:
    """Within, batch norm uses its running statistics, and does not move them, whatever the mode.

    In training mode f(x) would be a function of the whole batch, noisy copies included. The statistics are copies: a
    later call in training mode writes to a module's own without a word to autograd, and the backward pass through the
    evaluation would then read others than were used.

    Raises:
        ValueError: Batch norm without running statistics.
    """
    owner = getattr(model, "__self__", model)  # of a bound method, such as model.features
    modules = owner.named_modules() if isinstance(owner, nn.Module) else ()
    norms = {name: module for name, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for name, module in norms.items():
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                f"batch norm {name!r} keeps no running statistics, so that f(x) depends on the other examples in the "
                "batch; use track_running_stats=True, or GroupNorm in its place"
            )
    saved = [(module, module.training, dict(module._buffers)) for module in norms.values()]
    try:
        for module, _, buffers in saved:
            module.training = False
            module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for module, training, buffers in saved:
            module.training = training
            module._buffers.update(buffers)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, autocast is off: differences of outputs of a few units in the last place are all that is asked for."""
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def differentiable_twice(model: Callable[..., Any]) -> Iterator[None]:
    """Within, attention and recurrent layers run in the form that has second derivatives."""
    recurrent = isinstance(model, nn.Module) and any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(without_fused_recurrence())
        yield


@functools.cache
def load_forward_mode() -> None:
    """Load torch's forward-mode decompositions, which warn of their own use of TorchScript when first needed."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")


@contextmanager
def without_fused_recurrence() -> Iterator[None]:
    """Within, LSTM and GRU run step by step: their fused kernels have one derivative."""
    # The public torch.backends.mkldnn.flags sets TF32 on top, which warns.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextmanager
def refuse_random_numbers(x: Tensor) -> Iterator[None]:
    """Raise where the model drew random numbers, as dropout does; the generators are then as before.

    Raises:
        ValueError: Two evaluations would be those of two networks.
    """
    before = _random_states(x)
    yield
    if any(not torch.equal(old, new) for old, new in zip(before, _random_states(x), strict=True)):
        torch.set_rng_state(before[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(before[1], x.device)
        raise ValueError(
            "the model draws random numbers (dropout in training mode?), so that the difference of two evaluations is "
            "noise; call model.eval() for this call, or turn dropout off, and model.train() after"
        )


def _random_states(x: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]
