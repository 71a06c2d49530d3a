"""Numbers from a seed that touch no global generator."""

from __future__ import annotations

import numpy as np

__all__ = ["LAST_SEED", "random_state"]

LAST_SEED = 2**32 - 1


def random_state(seed: int) -> np.random.RandomState:
    """NumPy's legacy generator: its stream is frozen, so it moves with no version of NumPy or PyTorch.

    Raises:
        ValueError: The seed is no integer in 0..2^32 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed <= LAST_SEED:
        raise ValueError(f"seed must be an integer in 0..{LAST_SEED}, but is {seed!r}")
    return np.random.RandomState(seed)
