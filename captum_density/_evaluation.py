"""What has to hold while a model is evaluated at many points: batch norm fixed, full precision, no random numbers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

__all__ = [
    "DifferentiableLayerNorm",
    "differentiable_twice",
    "eager",
    "fixed_batch_norm",
    "fixed_buffers",
    "full_precision",
    "load_forward_mode",
    "refuse_random_numbers",
    "without_fused_recurrence",
]

P = ParamSpec("P")
T = TypeVar("T")


def eager(method: Callable[P, T]) -> Callable[P, T]:
    """The method, of which torch.compile leaves everything as it is.

    What is compiled around it may take no gradients twice, and refuses that compiling be switched off within.
    """

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _can_compile():
            return method(*args, **kwargs)
        disabled: Callable[P, T] = torch.compiler.disable(method)
        return disabled(*args, **kwargs)

    return run


def _can_compile() -> bool:
    return "torch._dynamo" in sys.modules  # torch.compile's, and slow to import


@contextmanager
def fixed_batch_norm(model: Callable[..., Any]) -> Iterator[None]:
    """Within, batch norm uses its running statistics, and does not move them, whatever the mode.

    In training mode f(x) would be a function of the whole batch, noisy copies included. Instance norm looks at one
    example, and keeps its mode. The statistics are copies, which take what it writes to them; and a later call in
    training mode writes to batch norm's own without a word to autograd, so that the backward pass through the
    evaluation would read others than were used.

    Raises:
        ValueError: Batch norm without running statistics.
    """
    owner = getattr(model, "__self__", model)  # of a bound method, such as model.features
    modules = owner.named_modules() if isinstance(owner, nn.Module) else ()
    norms = {name: module for name, module in modules if isinstance(module, nn.modules.batchnorm._NormBase)}
    for name, module in norms.items():
        if _is_batch_norm(module) and (module.running_mean is None or module.running_var is None):
            raise ValueError(
                f"batch norm {name!r} keeps no running statistics, so that f(x) depends on the other examples in the "
                "batch; use track_running_stats=True, or GroupNorm in its place"
            )
    saved = [(module, module.training, dict(module._buffers)) for module in norms.values()]
    try:
        for module, _, buffers in saved:
            module.training = module.training and not _is_batch_norm(module)
            module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for module, training, buffers in saved:
            module.training = training
            module._buffers.update(buffers)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


@contextmanager
def fixed_buffers(model: Callable[..., Any]) -> Iterator[None]:
    """Within, DistributedDataParallel broadcasts no buffers.

    A step's first forward pass has done so; another time would overwrite what its backward pass needs.

    Raises:
        ValueError: A static graph, whose first backward pass is the first gradient by the inputs: what synchronizes
            the parameters' gradients would have gone by then.
    """
    owner = getattr(model, "__self__", model)
    modules = owner.modules() if isinstance(owner, nn.Module) else ()
    parallel = [module for module in modules if isinstance(module, DistributedDataParallel)]
    if any(module.static_graph for module in parallel):
        raise ValueError(
            "DistributedDataParallel with static_graph=True does not synchronize the gradients of a step that takes "
            "gradients by the inputs; make it with static_graph=False, or, where nothing is trained, pass its .module"
        )
    saved = [(module, module.broadcast_buffers) for module in parallel]
    try:
        for module, _ in saved:
            module.broadcast_buffers = False
        yield
    finally:
        for module, broadcast in saved:
            module.broadcast_buffers = broadcast


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, autocast is off: differences of outputs of a few units in the last place are all that is asked for."""
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def differentiable_twice(model: Callable[..., Any]) -> Iterator[None]:
    """Within, attention, recurrent layers and compiled code run in the form that has second derivatives."""
    owner = getattr(model, "__self__", model)  # of a bound method
    recurrent = isinstance(owner, nn.Module) and any(isinstance(module, nn.RNNBase) for module in owner.modules())
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if _can_compile():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if recurrent:
            stack.enter_context(without_fused_recurrence())
        yield


class DifferentiableLayerNorm(TorchFunctionMode):
    """Within, layer norm is computed from its definition.

    PyTorch's own takes mean and variance for constants in its third derivative, without a word.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: bool,
) -> Tensor:
    dimensions = tuple(range(-len(normalized_shape), 0))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    x = x - x.mean(dimensions, keepdim=True)
    x = x * ((x**2).mean(dimensions, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * weight
    x = x if bias is None else x + bias
    return x.to(input.dtype)


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
            "the model draws random numbers (dropout in training mode?), so that two evaluations are those of two "
            "networks; call model.eval() for this call, or turn dropout off, and model.train() after"
        )


def _random_states(x: Tensor) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]
