"""Infidelity from shared evaluations is Captum's own."""

import pytest
import torch
from captum.attr import InputXGradient, Saliency
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import nn
from torch.testing import assert_close

from captum_density.audit import Method, audit
from captum_density.softmax_shift import CenteredLogits

METHODS = {
    "contribution": Method(InputXGradient),
    "slope": Method(Saliency, {"abs": False}),
    "one channel": Method(lambda model: OneChannel(model)),
    "centered": Method(InputXGradient, view=CenteredLogits),
    "another view": Method(InputXGradient, view=lambda model: lambda x: 3 * model(x + 1)),
}


class OneChannel(Saliency):
    def attribute(self, inputs, target=None):
        return super().attribute(inputs, target=target).sum(1, keepdim=True)


@pytest.mark.parametrize("batch", [4, 32])
@pytest.mark.parametrize("name", METHODS)
def test_infidelity_is_that_of_captum(name, batch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(6, 2, 4, 4)
    x[:, :, 0] = 0  # what is erased already
    target, method = model(x).argmax(1), METHODS[name]
    options = {"metrics": ["infidelity"], "infidelity_samples": 11, "max_examples_per_batch": batch, "seed": 3}
    measured = audit(model, x, METHODS, **options).methods[name]["infidelity"]
    function = model if method.view is None else method.view(model)
    attribution = method.make(function)
    generator = torch.Generator().manual_seed(3)

    @infidelity_perturb_func_decorator(attribution.multiplies_by_inputs)
    def erase(inputs):
        return inputs.masked_fill(torch.rand(inputs.shape, generator=generator) < 0.2, 0)

    values = [
        infidelity(
            function,
            erase,
            x[at],
            attribution.attribute(x[at], target=target[at], **method.options).expand_as(x[at]).contiguous(),
            target=target[at],
            n_perturb_samples=11,
            max_examples_per_batch=max(batch, len(x[at])),
            normalize=True,
        )
        for at in (slice(i, i + batch) for i in range(0, 6, batch))
    ]
    assert_close(measured.value, torch.cat(values).double().mean().item(), rtol=1e-4, atol=0)


def test_sensitivity_is_that_of_captum():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(6, 2, 4, 4)
    target = model(x).argmax(1)
    report = audit(model, x, {"any": Saliency}, metrics=["sensitivity_max"], perturb_radius=0.1, seed=3)
    torch.manual_seed(3)
    expected = sensitivity_max(
        Saliency(model).attribute, x, perturb_radius=0.1, n_perturb_samples=5, target=target, max_examples_per_batch=30
    )
    assert_close(report.methods["any"]["sensitivity_max"].value, expected.mean().item(), rtol=1e-6, atol=0)
