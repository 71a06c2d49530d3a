"""Balanced gradients and CompleteDeepLift on real architectures: what is on the inputs, and sums that are met.

Published relevances are held by tests/rules; the cells of the page on compatibility too.
"""

import warnings

import pytest
import torch
from captum.attr import InputXGradient
from torch import nn

from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.rules import BalancedGradients
from tests._linear.architectures import NAMES, build

CONSERVING = ("libragrad", "cp-lrp")
# Additive parameters; what adds to attention scores alone (relative positions) is a constant in these rules.
ADDITIVE = ("bias", "pos_embed", "position_embeddings", "token_type_embeddings", "wpe", "class_token", "cls_token")


def module_of(model):
    """The module, where the case is a function of one."""
    return model if isinstance(model, nn.Module) else model.__closure__[0].cell_contents


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def without_additive_parameters(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ADDITIVE) and "relative_position" not in name:
                parameter.zero_()
        for norm in batch_norms(model):
            norm.running_mean.zero_()


def fit_batch_norms(model, x):
    """Statistics of a batch; with random ones the input hardly reaches the output, and f(x) - f(x') is rounding."""
    for norm in batch_norms(model):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if batch_norms(model):
        with torch.no_grad():
            model(x)
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("rules", CONSERVING)
@pytest.mark.parametrize("name", NAMES)
def test_without_additive_parameters_the_inputs_are_all_of_the_output(name, rules):
    model, x, target = build(name, small=True)
    without_additive_parameters(module_of(model))
    parts = InputXGradient(BalancedGradients(model, rules)).attribute(x, target).detach().flatten(1).double()
    output = model(x).detach()[torch.arange(len(x)), target].double()
    assert ((parts.sum(1) - output).abs() <= 1e-5 * parts.abs().sum(1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["libragrad", "attnlrp", "cp-lrp", {"softmax": "share", "gelu": "jacobian"}])
@pytest.mark.parametrize("name", NAMES)
def test_full_grad_is_complete_under_rules(name, rules):
    model, x, target = build(name, small=True)
    terms = FullGrad(BalancedGradients(model, rules)).decompose(x, target)
    assert terms.gap().max() < 1e-6
    torch.testing.assert_close(terms.output, model(x).detach()[torch.arange(len(x)), target])


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["zero", "random"])
@pytest.mark.parametrize("name", NAMES)
def test_complete_deep_lift_is_complete(name, baseline):
    model, x, target = build(name)
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(x.shape, generator=generator) if baseline == "random" else torch.zeros_like(x)
    fit_batch_norms(module_of(model), torch.randn(8, *x.shape[1:], generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing has to be taken as one step
        parts = CompleteDeepLift(model).attribute(x, start, target).flatten(1).double()
    with torch.no_grad():
        ends = [model(u)[torch.arange(len(x)), target].double() for u in (x, start)]
    assert ((parts.sum(1) - (ends[0] - ends[1])).abs() <= 1e-5 * parts.abs().sum(1)).all()
