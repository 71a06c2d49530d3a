"""What is refused by the values of tensors: looked at one by one, or together, as a GPU is waited for at each look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["are_looked_at_together", "looked_at_together", "on_host", "refuse_where"]

# Conditions on a GPU that nobody has looked at yet, each with what makes its error.
_Waiting: TypeAlias = list[tuple[Tensor, Callable[[], Exception]]]
_waiting: ContextVar[_Waiting | None] = ContextVar("waiting", default=None)


def refuse_where(condition: Tensor, error: Callable[[], Exception]) -> None:
    """Raise an error where a condition holds: at once or, of a GPU's within `looked_at_together`, at its end.

    What cannot be read is passed over: in compiled code, on the meta device, under `torch.func.vmap`.

    Args:
        condition: One bool.
        error: Makes the error; it is called only where the condition holds.
    """
    if torch.compiler.is_compiling() or condition.is_meta:
        return
    waiting = _waiting.get()
    if waiting is not None and condition.is_cuda and not torch._C._functorch.is_functorch_wrapped_tensor(condition):
        waiting.append((condition, error))
        return
    try:
        holds = bool(condition)
    except RuntimeError as reason:
        if "vmap" not in str(reason):
            raise
        return
    if holds:
        raise error()


def are_looked_at_together(values: Tensor) -> bool:
    """Whether `refuse_where` looks at conditions on these values later, so that they have to be safe until then."""
    return _waiting.get() is not None and values.is_cuda


@contextmanager
def looked_at_together(*, at_the_outermost: bool = False) -> Iterator[None]:
    """Within, conditions on a GPU wait for each other; the first that holds is raised in place of what it led to.

    Args:
        at_the_outermost: Whether to leave the look to one that this is within.
    """
    if at_the_outermost and _waiting.get() is not None:
        yield
        return
    waiting: _Waiting = []
    token = _waiting.set(waiting)
    try:
        try:
            yield
        except Exception:
            _look(waiting)
            raise
        _look(waiting)
    finally:
        _waiting.reset(token)


def on_host(values: Tensor) -> Tensor:
    """Floating-point values on the CPU; conditions that wait are looked at in the same copy."""
    waiting = _waiting.get()
    if not waiting or not values.is_cuda:
        return values.cpu()
    together = torch.cat([values.detach().flatten(), _conditions(waiting, values.device).to(values.dtype)]).cpu()
    conditions, waiting[:] = [*waiting], []
    _raise(together[values.numel() :].tolist(), conditions)
    return together[: values.numel()].view(values.shape)


def _conditions(waiting: _Waiting, device: torch.device) -> Tensor:
    return torch.stack([condition.detach().to(device) for condition, _ in waiting])


def _look(waiting: _Waiting) -> None:
    if waiting:
        _raise(_conditions(waiting, waiting[0][0].device).tolist(), waiting)


def _raise(held: list[Any], waiting: _Waiting) -> None:
    for holds, (_, error) in zip(held, waiting, strict=True):
        if holds:
            raise error()
