"""Outputs that infidelity keeps for the next method are those of the same inputs, in the same order.

Of the private part on purpose: an audit gives every method the same inputs, so that nothing else is seen from outside.
"""

import pytest
import torch
from torch.testing import assert_close

from captum_density.audit._figures.infidelity import _Replay

X = torch.rand(3, 2, 4)
OTHERS = {
    "other values": X + 1e-3,
    "another order of elements": X.flip(2),
    "another order of channels": X.flip(1),
    "another order of examples": X.flip(0),
    "fewer examples": X[:2],
}
WEIGHTS = torch.randn(8, 2)


def counted():
    """A replay of a model, and what it was run on."""
    runs = []

    def model(x):
        runs.append(x)
        return x.flatten(1) @ WEIGHTS

    return _Replay(model), runs


def test_the_same_inputs_are_run_once():
    replay, runs = counted()
    first, again = (replay.measured(lambda: torch.cat([replay(X), replay(X + 1)])) for _ in range(2))
    assert len(runs) == 2
    assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_are_run_again(name):
    replay, runs = counted()
    replay.measured(lambda: replay(X))
    other = OTHERS[name]
    assert_close(replay.measured(lambda: replay(other)), other.flatten(1) @ WEIGHTS)
    assert len(runs) == 2
