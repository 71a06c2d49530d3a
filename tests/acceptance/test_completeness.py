"""Completeness on real architectures: the table that `python -m tests._linear.architectures` prints, held.

On small images, and in a plain run, tests/_linear/test_architectures.py holds it.
"""

import pytest
import torch

from tests._linear.architectures import NAMES, build, gaps

BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUNDS, ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_complete(name, dtype):
    gap, _, terms = gaps(build(name, dtype))
    assert terms > 0
    # The RMS norm of transformers' Llama computes in float32 whatever the model's dtype.
    assert gap < BOUNDS[torch.float32 if name == "llama" else dtype]
