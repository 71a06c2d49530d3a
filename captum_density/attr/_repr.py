"""How an attribution shows itself: its model by name, and its settings."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["given", "short", "shown"]


def shown(instance: object, *values: object, **settings: object) -> str:
    """Such as ``PathIntegratedGradients(Sequential, path=StraightPath(), multiply_by_inputs=True)``."""
    parts = [*map(short, values), *(f"{name}={short(value)}" for name, value in settings.items())]
    return f"{type(instance).__name__}({', '.join(parts)})"


def given(**settings: object) -> dict[str, object]:
    """The settings that are neither None nor False."""
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def short(value: object) -> str:
    """A module or function by its name, a tensor of several numbers by its shape, anything else by its `repr`."""
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return short(value[0]) if len(value) == 1 else f"({', '.join(map(short, value))})"
    return getattr(value, "__name__", None) or repr(value)
