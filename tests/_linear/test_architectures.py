"""Completeness on real architectures, on small images; `tutorials/guides/completeness.md` has the table itself."""

import pytest
import torch

from captum_density.attr import FullGrad
from tests._linear.architectures import NAMES, build, gaps

# Whose operations smaller ones of the same family have as well; `tests/acceptance` runs them too.
LARGE = {
    *("alexnet", "vgg11", "vgg11_bn", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v2", "efficientnet_v2_s", "regnet_x_400mf"),
}


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LARGE)) for one in NAMES])
def test_every_example_is_complete(name):
    gap, _, terms = gaps(build(name, torch.float64, small=True, narrow=True))
    assert terms > 0
    assert gap < (1e-6 if name == "llama" else 1e-14)  # whose RMS norm computes in float32 whatever the dtype


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "maxvit_t", "bert", "llama", "gru"])
def test_every_example_is_complete_in_single_precision(name):
    assert gaps(build(name, small=True, narrow=True))[0] < 1e-6


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t", "bert", "gpt2", "llama", "vit", "lstm"])
def test_a_batch_gives_what_its_examples_give(name):
    model, inputs, target = build(name, torch.float64, small=True, narrow=True)
    for complete in (False, True):
        attribution = FullGrad(model, complete=complete)
        alone = [attribution.attribute(inputs[i : i + 1], target[i]) for i in range(len(inputs))]
        torch.testing.assert_close(attribution.attribute(inputs, target), torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit", "swin_t", "bert", "lstm"])
def test_maps_have_the_inputs_form(name):
    model, inputs, target = build(name, small=True, narrow=True)
    saliency = FullGrad(model).attribute(inputs, target)
    assert saliency.shape == inputs.shape
    assert bool(torch.isfinite(saliency).all()) and float(saliency.min()) >= 0
    parts, delta = FullGrad(model, complete=True).attribute(inputs, target, return_convergence_delta=True)
    output = torch.stack([y[t] for y, t in zip(model(inputs), target, strict=True)])
    torch.testing.assert_close(parts.flatten(1).sum(1), output, rtol=1e-4, atol=1e-4)
    assert float(delta.detach().abs().max()) < 1e-4
