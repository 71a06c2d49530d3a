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
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from captum_density._model.fixed_modules import modules_of
from captum_density._model.shared_settings import EAGER_CODE, PLAIN_ATTENTION, PLAIN_RECURRENCE

__all__ = [
    "DifferentiableNorms",
    "differentiable",
    "differentiable_twice",
    "fixed_buffers",
    "full_precision",
    "grad_mode",
    "load_forward_mode",
    "refuse_random_numbers",
    "refuse_reentrant_checkpoint",
    "without_compilation",
]

_RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())

P = ParamSpec("P")
T = TypeVar("T")


def without_compilation(method: Callable[P, T]) -> Callable[P, T]:
    """A decorator: the function always runs as plain Python, in code that torch.compile compiles as well.

    Compiled code has no second derivatives, and does not let a function within it switch compilation off.
    """

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not _can_compile():
            return method(*args, **kwargs)
        disabled: Callable[P, T] = torch.compiler.disable(method)
        return disabled(*args, **kwargs)

    return run


def _can_compile() -> bool:
    # torch._dynamo is torch.compile's, and slow to import. Whether the compiler is at work comes first, as it would
    # else trace a look at the thousands of names in sys.modules, which takes half the time of compiling a step.
    return torch.compiler.is_compiling() or "torch._dynamo" in sys.modules


@contextmanager
def fixed_buffers(model: Callable[..., Any]) -> Iterator[None]:
    """Within, DistributedDataParallel broadcasts no buffers.

    A step's first forward pass has done so; another time would overwrite what its backward pass needs.

    Raises:
        ValueError: A static graph, whose first backward pass is the first gradient by the inputs: what synchronises
            the parameters' gradients would have gone by then.
    """
    parallel = [module for module in modules_of(model) if isinstance(module, DistributedDataParallel)]
    if any(module.static_graph for module in parallel):
        raise ValueError(
            "DistributedDataParallel with static_graph=True does not synchronise the gradients of a step that takes "
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


def grad_mode(enabled: bool) -> torch.enable_grad | torch.no_grad:
    """As `torch.set_grad_enabled`, which changes the mode as it is made, before a `with` can change it back."""
    return torch.enable_grad() if enabled else torch.no_grad()


@contextmanager
def differentiable(model: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Within, a model runs so that its outputs can be differentiated: recurrent layers in evaluation mode, on a GPU.

    Args:
        model: A module or a function.
        device: Where it runs.
    """
    if device.type != "cuda" or not _may_recur(model):
        yield
        return
    with _Recurrence(_as_trained):
        yield


def _may_recur(model: Callable[..., Any]) -> bool:
    modules = modules_of(model)
    return not modules or any(isinstance(module, nn.RNNBase) for module in modules)


class _Recurrence(TorchFunctionMode):
    """Within, recurrent layers run in another way.

    Args:
        run: Takes the function, its arguments and those by name.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _RECURRENT:
            return self._run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _as_trained(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As in training mode and without dropout, which gives the same numbers.

    In evaluation mode cuDNN keeps nothing that a backward pass could use.
    """
    if len(args) == 9:
        # (data, batch_sizes, ..., dropout, train, bidirectional) of packed sequences, one more at the end of others
        packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()
        at = 6 if packed else 5
        if not args[at + 1]:
            args = (*args[:at], 0.0, True, *args[at + 2 :])
    return func(*args, **kwargs)


def _step_by_step(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with PLAIN_RECURRENCE:
        return func(*args, **kwargs)


@contextmanager
def differentiable_twice(model: Callable[..., Any]) -> Iterator[None]:
    """Within, attention, recurrent layers and compiled code run in the form that has second derivatives."""
    with ExitStack() as stack:
        stack.enter_context(PLAIN_ATTENTION)
        stack.enter_context(EAGER_CODE)
        if any(isinstance(module, nn.RNNBase) for module in modules_of(model)):
            stack.enter_context(PLAIN_RECURRENCE)
        elif _may_recur(model):
            stack.enter_context(_Recurrence(_step_by_step))
        yield


class DifferentiableNorms(TorchFunctionMode):
    """Within, layer and instance norm are computed from their definition.

    PyTorch's own take mean and variance for constants in their third derivative, without a word, or have none.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        if func is nn.functional.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: bool,
) -> Tensor:
    return _normalized(input, tuple(range(-len(normalized_shape), 0)), weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return nn.functional.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    channels = (-1, *[1] * (input.ndim - 2))
    weight, bias = (None if scale is None else scale.reshape(channels) for scale in (weight, bias))
    return _normalized(input, tuple(range(2, input.ndim)), weight, bias, eps)


def _normalized(
    input: Tensor, dimensions: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
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


def refuse_reentrant_checkpoint(values: Tensor) -> None:
    """Refuse a graph that runs the model anew in the backward pass, when this evaluation's settings are gone.

    Raises:
        ValueError: There is such a node.
    """
    visited, waiting = set(), [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "reentrant activation checkpointing runs the model again in the backward pass, in training mode, where "
                "batch norm depends on the batch; call model.eval() before this call and model.train() after backward()"
            )
        visited.add(node)
        waiting += [following for following, _ in node.next_functions]
