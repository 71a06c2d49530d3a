"""Completeness on real architectures, in float32 and float64: the table of `tutorials/guides/completeness.md`, held."""

import pytest
import torch

from captum_density.attr import FullGrad
from tests._linear.architectures import NAMES, build, gaps


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=["float32", "float64"]
)
def test_every_example_is_complete(name, dtype, bound):
    if name == "llama":
        bound = 1e-6  # its RMS norm computes in float32 whatever the model's dtype
    case = build(name, dtype)
    gap, _, terms = gaps(case)
    assert terms > 0
    assert gap < bound


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t", "bert", "gpt2", "llama", "vit", "lstm"])
def test_a_batch_gives_what_its_examples_give(name):
    model, inputs, target = build(name, torch.float64)
    for make in (FullGrad, lambda m: FullGrad(m, complete=True)):
        together = make(model).attribute(inputs, target)
        alone = [make(model).attribute(inputs[i : i + 1], target[i]) for i in range(len(inputs))]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit", "swin_t", "bert", "lstm"])
def test_maps_have_the_inputs_form(name):
    model, inputs, target = build(name)
    saliency = FullGrad(model).attribute(inputs, target)
    assert saliency.shape == inputs.shape
    assert bool(torch.isfinite(saliency).all()) and float(saliency.min()) >= 0
    parts, delta = FullGrad(model, complete=True).attribute(inputs, target, return_convergence_delta=True)
    output = torch.stack([y[t] for y, t in zip(model(inputs), target, strict=True)])
    torch.testing.assert_close(parts.flatten(1).sum(1), output, rtol=1e-4, atol=1e-4)
    assert float(delta.detach().abs().max()) < 1e-4
