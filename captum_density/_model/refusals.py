"""What is refused by the values of tensors: looked at one by one, or together, as a GPU is waited for at each look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["are_looked_at_together", "looked_at_together", "refuse_where"]

# Conditions on a GPU that nobody has looked at yet, each with what makes its error.
_waiting: ContextVar[list[tuple[Tensor, Callable[[], Exception]]] | None] = ContextVar("waiting", default=None)


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
def looked_at_together() -> Iterator[None]:
    """Within, conditions on a GPU wait for each other; the first that holds is raised in place of what it led to."""
    waiting: list[tuple[Tensor, Callable[[], Exception]]] = []
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


def _look(waiting: list[tuple[Tensor, Callable[[], Exception]]]) -> None:
    if not waiting:
        return
    device = waiting[0][0].device
    held = torch.stack([condition.detach().to(device) for condition, _ in waiting]).tolist()
    for holds, (_, error) in zip(held, waiting, strict=True):
        if holds:
            raise error()
