"""Sums that PyTorch's own corners stand in the way of: no gradient, no number, lengths that differ, faulty kernels."""

from functools import partial

import pytest
import torch
from torch import nn

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
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


def test_classes_predicted_in_inference_mode():
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    with torch.inference_mode():
        full = FullGrad(model).decompose(x, model(x).argmax(1))
    assert_complete(full)


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


class OwnLengths(nn.Module):
    """A network of sequences, each taken at its own length."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(6, 5, 3), nn.Linear(5, 3)

    def forward(self, x, lengths):
        return torch.cat([self.head(self.conv(a[None, :n].mT).tanh().sum(2)) for a, n in zip(x, lengths, strict=True)])


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.recurrent, self.head = nn.Conv1d(6, 6, 1), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, lengths):
        y = self.conv(x.mT).mT
        packed = nn.utils.rnn.pack_padded_sequence(y, lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return self.head(y.tanh().sum(1))


@pytest.mark.parametrize("model", [OwnLengths, Packed])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_smoothed_maps_of_examples_of_different_lengths(model, at_once):
    # Such examples are taken one by one: each gets the map that it gets alone.
    model, x, lengths = model().double(), torch.randn(4, 7, 6, dtype=torch.float64), torch.tensor([7, 3, 5, 4])
    smooth = SmoothFullGrad(model)
    options = {"nt_samples": 3, "nt_samples_batch_size": at_once, "stdevs": 0.0}
    together = smooth.attribute(x, [0, 1, 2, 0], (lengths,), **options)
    alone = [smooth.attribute(x[i : i + 1], [0, 1, 2, 0][i], (lengths[i : i + 1],), **options) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    "norm, grid", [(nn.BatchNorm2d, (5, 6)), (nn.InstanceNorm2d, (5, 6)), (nn.BatchNorm3d, (2, 3, 5))]
)
def test_normalisation_of_one_example_whose_gradient_is_channels_last(norm, grid):
    # PyTorch's own gradient is wrong for one example: the right one is that of the example beside another.
    layer = norm(4, affine=True).double().eval()
    nn.init.normal_(layer.weight)
    weights = torch.randn(7, 30, dtype=torch.float64)

    def model(x):
        return (weights @ layer(x).flatten(2).mT).tanh().square().sum(1)

    x = torch.randn(2, 4, *grid, dtype=torch.float64)
    alone, pair = FullGrad(model).decompose(x[:1], 1), FullGrad(model).decompose(x, 1)
    assert_complete(alone)
    torch.testing.assert_close(alone.inputs[0], pair.inputs[0][:1])
    complete = FullGrad(model, complete=True)
    torch.testing.assert_close(complete.attribute(x[:1], 1), complete.attribute(x, 1)[:1])
    torch.testing.assert_close(complete.attribute(x[:1], 1, create_graph=True), complete.attribute(x, 1)[:1])


class Distance(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.root = nn.Linear(4, 4), Root()

    def forward(self, x):
        y = self.layer(x).relu()
        return self.root((y - y).pow(2).sum(1)) + x.exp().sum(1)


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize(
    "model, name",
    [
        (lambda x: (x - x).pow(2).sum(1).sqrt(), "from sqrt on"),
        (Distance(), "from root:sqrt on"),
        (lambda x: (x - x).norm(dim=1).add(1).log() + (x - x).abs().pow(0.3).sum(1), "from pow on"),
        (lambda x: torch.where(x > 9, (x - x).sqrt(), x).sum(1), "from sqrt on"),
        (lambda x: (x - x).sqrt_().sum(1), "from sqrt on"),
        (lambda x: (x.exp() - 1e3).log().sum(1), "nan, which arises in log"),
        (lambda x: (x * 1e6).exp().add(1).sum(1) / 2, "inf, which arises in exp"),
    ],
    ids=["distance", "in_a_module", "power", "where", "in_place", "output", "infinite"],
)
def test_the_operation_where_numbers_stop_being_finite_is_named(model, name):
    with pytest.raises(RuntimeError, match=name):
        FullGrad(model).attribute(torch.rand(3, 4))


def test_a_wrong_remainder_that_a_rule_tells_is_named(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    nn.init.ones_(model[1].bias)
    monkeypatch.setattr("captum_density.rules._mode.bias_of", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="1:layer_norm"):
        FullGrad(BalancedGradients(model)).attribute(torch.randn(3, 4), 0)


def test_what_rounding_leaves_of_f_beside_a_large_shift_is_reported():
    # 1e6 is added and subtracted again: float32 keeps steps of 1/16 of that, for an f of about 1.
    layer, x = nn.Linear(5, 3), torch.rand(4, 5)

    def model(x):
        return layer(x) + 1e6 * x.sum(1, keepdim=True) - 1e6 * x.detach().sum(1, keepdim=True)

    full = FullGrad(model).decompose(x, 0)
    attributions, delta = FullGrad(model, complete=True).attribute(x, 0, return_convergence_delta=True)
    exact = torch.tensor([float(sum(map(float, row))) for row in attributions])
    torch.testing.assert_close(delta, exact - full.output, rtol=0, atol=0.25)
    assert float(delta.abs().max()) > 0.01 * float(full.output.abs().max())
    assert float(full.gap().max()) < 1e-6


@pytest.mark.parametrize("kind", [FullGrad, partial(FullGrad, complete=True), SimpleFullGrad])
def test_small_terms_that_are_reduced_together(kind, monkeypatch):
    layer = nn.Conv1d(3, 3, 3, padding=1).double()

    def model(x):
        for _ in range(5):
            x = x + layer(x).tanh() + 0.1
        return x.square().mean(2)

    x = torch.randn(4, 3, 7, dtype=torch.float64)
    together = kind(model).attribute(x, 1)
    monkeypatch.setattr("captum_density._linear.sweep._SMALL", 0)
    torch.testing.assert_close(together, kind(model).attribute(x, 1))
    monkeypatch.setattr("captum_density._linear.sweep._SMALL", 100)
    monkeypatch.setattr("captum_density._linear.sweep._TOGETHER", 200)
    torch.testing.assert_close(together, kind(model).attribute(x, 1))


@pytest.mark.parametrize("overwrite", [False, True])
def test_large_remainders_that_wait_for_the_backward_pass(overwrite, monkeypatch):
    layer = nn.Linear(6, 18).double()

    def model(x):
        q, k, v = layer(x).chunk(3, -1)
        y = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        y = nn.functional.layer_norm(y, (6,), eps=0.1)
        if overwrite:
            y.add_(1)  # as layer_norm does not keep it
        y = nn.functional.gelu(y)
        y = nn.functional.hardswish(nn.functional.silu(y, inplace=overwrite), inplace=overwrite)
        if overwrite:
            y.add_(1)  # of whose argument autograd keeps a copy
        z = y * nn.functional.silu(2 * q, inplace=True)
        if overwrite:
            z.mul_(2)
        return z.square().mean(2)

    x = torch.randn(3, 5, 6, dtype=torch.float64)
    expected = FullGrad(model).decompose(x, 1)
    monkeypatch.setattr("captum_density._linear.trace._LARGE", 0)
    full = FullGrad(model).decompose(x, 1)
    assert_complete(full)
    torch.testing.assert_close(full.biases, expected.biases)


def overwritten_mask(x):
    mask = torch.ones(5, 5, dtype=torch.bool)
    y = nn.functional.scaled_dot_product_attention(x, 2 * x, x, mask)
    mask.tril_()
    return nn.functional.scaled_dot_product_attention(y, 2 * y, y, mask)


def overwritten_operand(x):
    y = (2 * x).transpose(1, 2)
    z = nn.functional.instance_norm(y)  # of which autograd keeps a copy in another order
    return z * y.add_(z.sin())


@pytest.mark.parametrize("function", [overwritten_mask, overwritten_operand])
def test_large_remainders_of_what_is_overwritten_before_the_backward_pass(function, monkeypatch):
    model, x = (lambda x: function(x).square().sum((1, 2))), torch.randn(2, 2, 5, 8)
    expected = FullGrad(model).decompose(x, 1)
    monkeypatch.setattr("captum_density._linear.trace._LARGE", 0)
    full = FullGrad(model).decompose(x, 1)
    torch.testing.assert_close(full.biases, expected.biases)
