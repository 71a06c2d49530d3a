"""What a check finds, and how values are compared and put into words."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Finding(NamedTuple):
    """A law broken: what was expected and received and, beside the model's name, where."""

    expected: str
    received: str
    where: str = ""


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The value itself if it is a tuple, else a tuple of it."""
    return value if isinstance(value, tuple) else (value,)


def shapes(value: Any) -> list[tuple[int, ...]]:
    """The shapes of a tensor or a tuple of tensors; () for what is no tensor."""
    return [tuple(getattr(item, "shape", ())) for item in as_tuple(value)]


def identical(first: Any, second: Any) -> bool:
    """Bit for bit the same, through tuples; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
            return False
        return torch.equal(first, second) or bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    return bool(first == second)


def relative_gap(received: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected value; infinite where the forms differ."""
    if shapes(received) != shapes(expected):
        return float("inf")
    worst = 0.0
    for a, b in zip(as_tuple(received), as_tuple(expected), strict=True):
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        gap = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def brief(value: Any) -> str:
    """A few words for a value, for a line of the report."""
    if isinstance(value, Tensor):
        small = f" {value.tolist()}" if value.numel() <= 4 else ""
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)} on {value.device}{small}"
    if isinstance(value, dict):
        return f"{len(value)} hooks"
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value[:4]))}{', ...' if len(value) > 4 else ''})"
    if isinstance(value, Exception):
        return brief(f"{type(value).__name__}: {value}")
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
