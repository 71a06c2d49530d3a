"""The common gradient of linear models, exactly and by random signs, with shifts and without what they add."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import common_gradient
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift


def linear(classes=5, d=7):
    return nn.Linear(d, classes).double()


def share_of(weights):
    return weights.mean(0).square().sum() / weights.square().sum(1).mean()


def inputs(n=3, d=7):
    return torch.randn(n, d, dtype=torch.float64)


def test_linear_models_in_closed_form():
    model = linear()
    assert_close(common_gradient(model, inputs()), share_of(model.weight.detach()).expand(3))


@pytest.mark.parametrize("strength", [0.3, 1.0, 10.0])
def test_a_shift_adds_what_its_length_says(strength):
    model = linear()
    model.weight.data -= model.weight.data.mean(0)
    length = model.weight.detach().square().sum(1).mean().sqrt()
    picture = torch.zeros(1, 7, dtype=torch.float64)
    picture[0, 2] = strength * length
    shifted = SoftmaxShift(model, LinearShift(picture))
    expected = torch.tensor(strength**2 / (1 + strength**2), dtype=torch.float64).expand(3)
    assert_close(common_gradient(shifted, inputs()), expected)
    assert common_gradient(CenteredLogits(shifted), inputs()).max() < 1e-12


def test_random_signs_estimate_the_rest_without_bias():
    model = linear(classes=40)
    exact = share_of(model.weight.detach())
    # of the inverse, as the numerator is exact
    estimates = 1 / common_gradient(model, inputs(500), n_samples=8, generator=torch.Generator().manual_seed(0))
    error = estimates.std() / 500**0.5
    assert estimates.std() > 0
    assert (estimates.mean() - 1 / exact).abs() < 4 * error


def test_several_inputs_additional_arguments_and_batches():
    first, second = linear(4, 3), linear(4, 2)

    def model(x, y, scale):
        return scale[:, None] * (first(x) + second(y)).tanh()

    args = (inputs(5, 3), inputs(5, 2)), torch.rand(5, dtype=torch.float64) + 0.5
    whole = common_gradient(model, *args)
    assert whole.shape == (5,)
    assert_close(common_gradient(model, *args, max_examples_per_batch=2), whole)
    alone = [common_gradient(model, tuple(x[i : i + 1] for x in args[0]), args[1][i : i + 1]) for i in range(5)]
    assert_close(torch.cat(alone), whole)


def test_constant_logits_have_nothing_in_common():
    assert common_gradient(lambda x: 0 * x[:, :2], inputs()).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "model, kwargs, remedy",
    [
        (lambda x: x[:, :1], {}, "two classes or more"),
        (lambda x: x.sum(1), {}, "two classes or more"),
        (lambda x: x, {"n_samples": 0}, "positive integer"),
    ],
)
def test_refusals(model, kwargs, remedy):
    with pytest.raises(ValueError, match=remedy):
        common_gradient(model, inputs(), **kwargs)


@pytest.mark.cuda
def test_cuda():
    model, x = linear(40), inputs(6)
    expected = common_gradient(model, x, generator=torch.Generator().manual_seed(0))
    measured = common_gradient(model.cuda(), x.cuda(), generator=torch.Generator().manual_seed(0))
    assert measured.is_cuda
    assert_close(measured.cpu(), expected)
