"""What a shift of all logits must not move."""

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import nn

from captum_density.attr import FullGrad
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 5)).double().eval()


METHODS = {
    "Saliency": Saliency,
    "InputXGradient": InputXGradient,
    "IntegratedGradients": IntegratedGradients,
    "FullGrad": FullGrad,
    "complete FullGrad": lambda model: FullGrad(model, complete=True),
}


@pytest.mark.parametrize("method", METHODS)
def test_no_shift_of_the_logits_is_seen_through_centered_logits(network, method):
    x, target = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    shifted = SoftmaxShift(network, LinearShift(100 * torch.randn(3, 8, 8, dtype=torch.float64)))
    plain, moved = (METHODS[method](CenteredLogits(f)).attribute(x, target=target) for f in (network, shifted))
    torch.testing.assert_close(moved, plain, rtol=1e-9, atol=1e-10)
    # The shift is one that is seen without.
    assert (METHODS[method](shifted).attribute(x, target=target) - plain).abs().max() > 1
