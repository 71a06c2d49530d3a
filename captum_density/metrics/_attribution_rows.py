"""Attributions that a metric takes itself: whether they ran the model, and what they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._model.arrays import as_tensors
from captum_density._model.refusals import refuse_where

__all__ = ["attribution_rows", "counted_runs"]


@contextmanager
def counted_runs(model: Callable[..., Any]) -> Iterator[list[bool]]:
    """A list with an entry for each time the module runs; it stays empty for a function."""
    runs: list[bool] = []
    with ExitStack() as stack:
        if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
            stack.callback(model.register_forward_hook(lambda *_: runs.append(True)).remove)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        yield runs


def attribution_rows(attributions: Any, n: int) -> Tensor:
    """(N, elements) in float64, over all inputs, of what an attribution function returned.

    Raises:
        TypeError: No tensors.
        ValueError: NaN or infinity, or not N rows.
    """
    attributions = as_tensors(attributions)
    parts = attributions if isinstance(attributions, tuple) else (attributions,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        received = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"attributions must be a tensor or a tuple of tensors, but are {received}")
    for part in parts:
        text = "the attributions contain NaN or infinity, so nothing can be compared with them"
        refuse_where(~part.isfinite().all(), partial(ValueError, text))
        if part.ndim == 0 or len(part) != n or part.numel() == 0:
            raise ValueError(f"attributions of {n} examples must have as many rows, but have shape {tuple(part.shape)}")
    return torch.cat([part.detach().double().reshape(n, -1) for part in parts], dim=1)
