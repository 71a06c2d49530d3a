"""Models whose outputs are not the logits that a wrapper takes them for: probabilities, tokens, a sigmoid's one."""

import pytest
import torch
from captum.attr import Saliency
from torch import nn

from captum_density.softmax_shift import BoundedShift, CenteredLogits, CounterShift, LinearShift, SoftmaxShift

WRAPPERS = {
    "SoftmaxShift": lambda model: SoftmaxShift(model, LinearShift(torch.ones(4))),
    "CenteredLogits": CenteredLogits,
    "log p": lambda model: CenteredLogits(model, "logsumexp"),
    "BoundedShift": lambda model: BoundedShift(model, 0.1, 10.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_probabilities_are_warned_of_once(name):
    x, model = torch.randn(2, 4), nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    wrapper = WRAPPERS[name](model)
    with pytest.warns(UserWarning, match="without its softmax, or the logarithm") as record:
        wrapper(x)
        wrapper(x)
        Saliency(wrapper).attribute(x, target=0)
    assert sum("softmax" in str(one.message) for one in record) == 1
    with pytest.warns(UserWarning, match="without its softmax"):
        WRAPPERS[name](model)(x)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("last", [nn.Identity(), nn.LogSoftmax(1), nn.Sigmoid(), nn.ReLU()])
def test_logits_are_not(name, last):
    wrapper = WRAPPERS[name](nn.Sequential(nn.Linear(4, 3), last))
    wrapper(torch.randn(2, 4))


def test_probabilities_of_tokens_and_under_vmap():
    x = torch.randn(2, 5, 4)
    with pytest.warns(UserWarning, match="without its softmax"):
        SoftmaxShift(nn.Softmax(-1), lambda x: x.flatten(1).sum(1))(x)
    # Values cannot be looked at.
    wrapper = CenteredLogits(nn.Softmax(1))
    torch.func.vmap(lambda one: wrapper(one[None])[0])(x[:, 0])


def test_values_are_looked_at_in_the_first_call_only(monkeypatch):
    """A look waits for the device."""
    looks = []
    item = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: looks.append(1) or item(self))
    wrapper, x = CenteredLogits(nn.Linear(4, 3), "logsumexp"), torch.randn(2, 4)
    wrapper(x)
    assert looks
    looks.clear()
    wrapper(x)
    assert not looks


def by_default():
    yield "CenteredLogits", CenteredLogits
    yield "BoundedShift", lambda model: BoundedShift(model, 0.1, 10.0)
    yield "CounterShift", lambda model: SoftmaxShift(model, CounterShift(model), class_dim=2)


@pytest.mark.parametrize("make", [make for _, make in by_default()], ids=[name for name, _ in by_default()])
def test_of_two_dimensions_that_could_be_classes_one_is_asked_for(make):
    with pytest.raises(ValueError, match="class_dim=2 for tokens"):
        make(nn.Linear(4, 3))(torch.randn(2, 5, 4))


def test_one_that_could_be_is_centered_over():
    x = torch.randn(2, 1, 4)
    torch.testing.assert_close(CenteredLogits(nn.Identity())(x), x - x.mean(2, keepdim=True))
    x = x.transpose(1, 2)
    torch.testing.assert_close(CenteredLogits(nn.Identity())(x), x - x.mean(1, keepdim=True))
    x = torch.randn(2, 3, 4, 5)  # segmentation
    torch.testing.assert_close(CenteredLogits(nn.Identity())(x), x - x.mean(1, keepdim=True))
    x = torch.randn(2, 3, 4)
    for dim in (1, 2):
        torch.testing.assert_close(CenteredLogits(nn.Identity(), class_dim=dim)(x), x - x.mean(dim, keepdim=True))
