"""CenteredLogits: the same softmax, no shift left, and digits left where the model is sure."""

import pytest
import torch
from captum.attr import Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import FullGrad
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift
from captum_density.testing import networks
from tests.softmax_shift.test_softmax_shift import SHIFTS, SIZES, gradient, normal


@settings(max_examples=30)
@given(networks(), st.sampled_from(sorted(SHIFTS)), SIZES, st.sampled_from(["mean", "logsumexp"]))
def test_has_the_same_softmax_and_no_shift(problem, kind, size, how):
    torch.manual_seed(problem.seed)
    x, model = problem.inputs, problem.model
    centered = CenteredLogits(model, how)
    values = centered(x)
    assert_close(values.softmax(1), model(x).softmax(1), rtol=0, atol=1e-12)
    constant = values.mean(1) if how == "mean" else values.exp().sum(1) - 1
    assert_close(constant, torch.zeros_like(constant), rtol=0, atol=1e-12)
    fooled = CenteredLogits(SoftmaxShift(model, SHIFTS[kind](model, x, size)), how)
    assert_close(fooled(x), values, rtol=0, atol=1e-11)
    own, result = [gradient(f, x, lambda f: f[:, 1]) for f in (centered, fooled)]
    largest = float(gradient(fooled.model, x, lambda f: f[:, 1]).abs().max() + own.abs().max())
    assert_close(result, own, rtol=0, atol=1e-10 * largest)


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_centers_along_the_classes(dim):
    logits = normal(2, 3, 4)
    mean, normalised = [CenteredLogits(lambda x: x, how, dim)(logits) for how in ("mean", "logsumexp")]
    assert_close(mean, logits - logits.mean(dim, keepdim=True))
    assert_close(normalised, logits.log_softmax(dim))
    for pick in (lambda f: f[:, 0, 0], lambda f: f[:, 1, 2], lambda f: f.amax(dim)):
        result = gradient(CenteredLogits(lambda x: x, "logsumexp", dim), logits, pick)
        assert_close(result, gradient(lambda x: x.log_softmax(dim), logits, pick))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [5.0, 5.0, -3.0], [3.0, -float("inf"), 1.0], [60.0, 0.0, -60.0]])
def test_log_probabilities_are_pytorchs(logits, dtype):
    # Ties, a masked class, certainty. The gradient of a masked class would be infinite less infinite: PyTorch's is NaN.
    z = torch.tensor([logits], dtype=dtype, requires_grad=True)
    result = CenteredLogits(lambda x: x, "logsumexp")(z)
    assert result.dtype == dtype
    expected = z.detach().double().log_softmax(1)
    assert_close(result.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-20)
    assert bool(torch.autograd.grad(result[0, 0], z)[0].isfinite().all())


def test_float32_keeps_its_digits_where_the_model_is_sure():
    # PyTorch's own log_softmax leaves 6e-8 of noise in 1 - p, here some 1e-9.
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        model[2].weight *= 40
    x = normal(300, 5)
    probability, target = model(x).softmax(1).max(1)
    sure = (1 - probability < 1e-8) & (1 - probability > 1e-12)
    assert int(sure.sum()) > 5
    x, target = x[sure], target[sure]
    exact = Saliency(CenteredLogits(model, "logsumexp")).attribute(x.clone(), target, abs=False)
    single = model.float()
    shifted = SoftmaxShift(single, LinearShift(10 * torch.randn(5)))
    for fooled in (single, shifted):
        result = Saliency(CenteredLogits(fooled, "logsumexp")).attribute(x.float(), target, abs=False).double()
        assert float(((result - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 1e-3
    noisy = Saliency(lambda x: shifted(x).log_softmax(1)).attribute(x.float(), target, abs=False).double()
    assert float(((noisy - exact).norm(dim=1) / exact.norm(dim=1)).max()) > 0.1


@pytest.mark.parametrize("how", ["mean", "logsumexp"])
def test_full_gradients_go_through(how):
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    full = FullGrad(CenteredLogits(model, how)).decompose(normal(6, 5), 1)
    assert_close(full.total(), full.output)
