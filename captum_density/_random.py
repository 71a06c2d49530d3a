"""The global random generators, to play the same numbers again and to leave them as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["replayable"]


@contextmanager
def replayable(device: torch.device) -> Iterator[Callable[[], None]]:
    """Within, a function that takes torch's, NumPy's and Python's generators back; after, they are as before.

    Captum's methods draw from all three (GradientShap from NumPy's).

    Args:
        device: Of the inputs; its own generator is among them.

    Yields:
        A function without arguments.
    """
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

    try:
        yield rewind
    finally:
        rewind()
