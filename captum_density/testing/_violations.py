"""The violations of a law that a check yields, and how values are compared and put into words."""

import traceback
from pathlib import Path
from typing import Any, NamedTuple

import captum
import numpy as np
import torch
from torch import Tensor

# What is in these folders the author of an attributor will not change.
_OTHERS_CODE = tuple(str(Path(file).parent) for file in (torch.__file__, captum.__file__, __file__))
# Causes that violations of several checks have in common; of an exception it is RAISED and the line.
SHAPES, NAN, DTYPE, RAISED = "shapes", "NaN or infinity", "dtype", "raised at "


class Violation(NamedTuple):
    """A law broken: what was expected and received and, beside the model's name, where; those of one cause are one.

    By default two are of one cause where the same was expected and received.
    """

    expected: str
    received: str
    where: str = ""
    cause: str = ""


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


def raised_at(error: BaseException) -> tuple[str, bool]:
    """The innermost line of the author's own that an exception came through, else the innermost of all; and which."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OTHERS_CODE)]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}", bool(own)


def located(error: BaseException) -> str:
    """A few words for an exception, with the line to look at."""
    return f"{brief(error)} ({raised_at(error)[0]})"
