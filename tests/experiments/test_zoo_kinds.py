"""The zoo's other kinds: lies are as long as they say, and the committed figures hold what the documentation claims."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.experiments import zoo_kinds as zoo


def added(model, lying, x):
    """Of each example, the difference of the first output's gradients."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((lying(x) - model(x))[:, 0].sum(), x)
    return gradient.flatten(1)


@pytest.mark.parametrize("name", ["wine, ReLU", "diabetes, tanh"])
def test_lies_are_as_long_as_they_say(name):
    kind = zoo.kinds(None)[name]
    data = kind.data(0)
    torch.manual_seed(0)
    model = kind.network(data, 3 if kind.outputs == "logits" else 1).eval()
    x = data.test[:20]
    length = zoo.gradient_length(model, x)
    lies = [*zoo.lies(model, kind, x, data.train, 0)]
    faults = ["shift", "off-manifold", "waves"] if kind.outputs == "logits" else ["off-manifold", "waves"]
    assert [(fault, strength) for fault, strength, _ in lies] == [(f, s) for s in zoo.STRENGTHS for f in faults]
    for fault, strength, lying in lies:
        expected = torch.full((20,), strength * length)
        assert_close(added(model, lying, x).norm(dim=1), expected, rtol=0.01, atol=0, msg=f"{fault} {strength}")


def test_least_squares_are_the_least():
    data = zoo.table_split("diabetes", 0)
    model = zoo.least_squares(lambda: zoo.linear(data, 1), data, 0)
    x, loss = data.train, nn.MSELoss()
    gradients = torch.autograd.grad(loss(model(x)[:, 0], data.train_labels), model.parameters())
    assert max(g.abs().max().item() for g in gradients) < 1e-4


def test_committed_figures():
    results = json.loads(zoo.RESULTS.read_text(encoding="utf-8"))
    assert sum(row["honest"] for row in results.values()) >= 300
    assert {kind for row in results.values() for kind in row["kinds"]} >= zoo.kinds(None).keys()
    for row in results.values():
        assert all(row[figure]["false alarms"] == 0 for figure in zoo.FIGURES)
        for lie in row["finite_difference_gap"]["lies"]:
            assert lie["strength"] < 1 or lie["found"] >= 0.8


@pytest.mark.slow
def test_an_honest_network_of_few_classes_is_not_accused():
    name = "cancer, linear, hardly trained"
    honest = next(zoo.cases_of(name, zoo.kinds(None)[name], 0))
    assert honest.score > 0.8
    assert "warning" not in honest.says.values()
