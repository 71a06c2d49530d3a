"""A check that random numbers are drawn from nobody else's generator."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture
def untouched() -> Iterator[None]:
    """The global generators are as they were when the test ends."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
