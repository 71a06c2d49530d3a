"""The finite-difference gap of cubics, waves and networks, and of gradients that are zero."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import finite_difference_gap
from captum_density.softmax_shift import BoundedShift


def cubic(x):
    """t + t^3 / 2 along the mean of the elements times their root, whose gradient has length 1 at 0."""
    t = x.sum(1, keepdim=True) / x.shape[1] ** 0.5
    return t + t**3 / 2


def test_a_cubic_in_closed_form():
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert_close(finite_difference_gap(cubic, x, 0, changes=0.2), torch.full((2,), 0.02, dtype=torch.float64))
    # (h + h^3 / 2) / h - 1; of several, the largest
    several = finite_difference_gap(cubic, x, 0, changes=(0.1, 0.4, 0.2))
    assert_close(several, torch.full((2,), 0.08, dtype=torch.float64))


def test_the_unit_of_the_inputs_does_not_matter():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    gaps = finite_difference_gap(model, x, 1)
    assert gaps.max() > 1e-6
    assert_close(finite_difference_gap(lambda z: model(z / 1000), 1000 * x, 1), gaps)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_waves_break_the_promise(strength):
    model, x = nn.Linear(50, 3), torch.randn(8, 50)
    steepness = strength * model.weight.detach().norm(dim=1).mean().item()
    waved = BoundedShift(model, amplitude=1e-3, frequency=steepness / 1e-3)
    assert finite_difference_gap(model, x, 0).max() < 1e-3
    promised = finite_difference_gap(waved, x, 0)
    # <g, g + w> / |g + w|^2 = 1 / (1 + s^2) of the promise is kept, of directions at right angles
    assert (promised - strength**2 / (1 + strength**2)).abs().max() < 0.3


def test_zero_gradients_promise_nothing():
    x = torch.tensor([[-1.0], [2.0]])
    assert finite_difference_gap(nn.ReLU(), x, 0).max() < 1e-6
    assert finite_difference_gap(nn.ReLU(), x, 0)[0] == 0


def test_several_inputs_and_batches():
    def model(x, y, scale):
        return (scale[:, None] * (x.tanh() + y.exp())).sum(1, keepdim=True)

    args = (torch.randn(5, 3), torch.randn(5, 3)), 0, torch.rand(5) + 0.5
    whole = finite_difference_gap(model, *args)
    assert whole.min() > 0
    assert_close(finite_difference_gap(model, *args, max_examples_per_batch=2), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [0.0, -1.0, float("inf"), ()])
def test_changes_are_refused(changes):
    with pytest.raises(ValueError, match="positive and finite"):
        finite_difference_gap(cubic, torch.zeros(1, 2), 0, changes=changes)


def test_random_numbers_are_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    with pytest.raises(ValueError, match="eval"):
        finite_difference_gap(model, torch.randn(2, 3), 0)


@pytest.mark.cuda
def test_cuda():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(4, 6).double()
    expected = finite_difference_gap(model, x, 1)
    measured = finite_difference_gap(model.cuda(), x.cuda(), 1)
    assert measured.is_cuda
    assert_close(measured.cpu(), expected)
