"""Sums that PyTorch's own corners stand in the way of: no gradient, no number, lengths that differ, faulty kernels."""

import pytest
import torch
from torch import nn

from captum_density.attr import FullGrad
from captum_density.rules import BalancedGradients
from captum_density.testing import assert_complete


@pytest.mark.parametrize("view", [lambda model: model, BalancedGradients], ids=["gradients", "balanced"])
@pytest.mark.parametrize("seed", [4, 5])
def test_outputs_of_an_operation_that_nothing_uses(seed, view):
    # A sure prediction: log p is a small difference of large logits, so that rounding is looked into, by a trace that
    # listens to every output of every operation; no gradient reaches the second half.
    torch.manual_seed(seed)
    layer = nn.Linear(5, 6)
    x = torch.randn(8, 5)
    full = FullGrad(view(lambda x: (30 * layer(x).chunk(2, 1)[0]).log_softmax(1))).decompose(x, 0)
    expected = (30 * layer(x)[:, :3]).log_softmax(1)[:, 0]
    torch.testing.assert_close(full.total(), expected, rtol=0, atol=2e-5 * 30)


class HalfDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return 2 * x, 3 * y + 1

    @staticmethod
    def backward(ctx, a, b):
        return 2 * a, None


def test_custom_functions_that_return_no_gradient():
    layer = nn.Linear(5, 3).double()

    def model(x):
        y = layer(x)
        a, b = HalfDifferentiable.apply(y, y.exp())
        return a + b

    x = torch.randn(4, 5, dtype=torch.float64)
    full = FullGrad(model).decompose(x, 1)
    assert_complete(full)
    # By the gradient that it declares, the second half is a constant.
    picked = (full.inputs[0].sum(1), 2 * layer.weight[1].mul(x).sum(1))
    torch.testing.assert_close(*picked)


class LastState(nn.Module):
    """A recurrent network, of which one output is used."""

    def __init__(self, output):
        super().__init__()
        self.recurrent, self.output = nn.LSTM(6, 5, 2, batch_first=True), output

    def forward(self, x):
        y, (h, c) = self.recurrent(x)
        return (300 * {"y": y[:, -1], "h": h[-1], "c": c[-1]}[self.output]).log_softmax(1)


@pytest.mark.parametrize("view", [lambda model: model, BalancedGradients], ids=["gradients", "balanced"])
@pytest.mark.parametrize("output", ["y", "h", "c"])
def test_outputs_of_an_lstm_that_nothing_uses(output, view):
    torch.manual_seed(0)
    model, x = LastState(output), 3 * torch.randn(8, 7, 6)
    target = model(x).argmax(1)
    full = FullGrad(view(model)).decompose(x, target)
    torch.testing.assert_close(full.total(), full.output, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside_a_layer_with_a_gradient"])
def test_dynamically_quantised_models_have_no_gradient(beside):
    layer = nn.Linear(5, 3)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    for view in (lambda model: model, BalancedGradients):
        with pytest.raises(NotImplementedError, match="before it was quantised"):
            FullGrad(view(lambda x: quantised(x) + layer(x) if beside else quantised(x))).attribute(
                torch.randn(4, 5), 0
            )
