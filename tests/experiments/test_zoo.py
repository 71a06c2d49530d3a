"""The zoo lays over a network what it says, and its committed figures hold what the documentation claims."""

import json

import pytest
import torch
from torch.testing import assert_close

from captum_density._command.network import perceptron
from captum_density.datasets import digits
from tests.experiments import zoo


@pytest.fixture(scope="module")
def data():
    return digits()


def added(model, lying, x):
    """Of each example, the difference of the first logit's gradients."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((lying(x) - model(x))[:, 0].sum(), x)
    return gradient.flatten(1)


def test_lies_are_as_long_as_they_say(data):
    torch.manual_seed(0)
    model = perceptron().eval()
    x, length = data.test_images[:20], zoo.gradient_length(model, data.test_images)
    strengths = [(fault, strength) for fault, strength, _ in zoo.lies(model, data, 0)]
    assert {(f, s) for f, each in zoo.STRENGTHS.items() for s in each} == {*strengths}
    for fault, strength, lying in zoo.lies(model, data, 0):
        expected = torch.full((20,), strength * length)
        assert_close(added(model, lying, x).norm(dim=1), expected, rtol=0.01, atol=0, msg=f"{fault} {strength}")


def test_what_is_off_the_data_changes_no_value_there(data):
    torch.manual_seed(0)
    model = perceptron().eval()
    flat = data.train_images.flatten(1)
    lying = zoo.off_manifold(model, data, 1.0, 0)
    with torch.no_grad():
        change = (lying(data.train_images) - model(data.train_images))[:, 0]
    assert change.std() < 0.03 * flat.std(dim=0).norm()


def test_auc_counts_pairs():
    assert zoo.auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0, 3.0])) == (1 + 2 + 0.5) / 6


def test_committed_figures():
    for name, part in json.loads(zoo.RESULTS.read_text(encoding="utf-8")).items():
        assert part["honest"] >= (60 if name == "held out" else 40)
        assert part["false_alarms"] == 0
        lies = [row for row in part["faults"] if row["fault"] in zoo.LIES and (row["strength"] or 1) >= 1]
        assert len(lies) >= 7
        for row in lies:
            assert row["auc_interval"][0] >= 0.95
            assert row[zoo.LIES[row["fault"]]] >= (0.9 if row["fault"] == "waves" else 1.0)  # the rate found


@pytest.mark.slow
def test_a_network_of_the_zoo(data):
    by_fault = {}
    for case in zoo.cases_of("perceptron", 0, data, trained=True):
        by_fault.setdefault((case.fault, case.strength), []).append(case)
    assert not by_fault["honest", 0.0][0].against
    for (fault, strength), cases in by_fault.items():
        if fault in zoo.LIES and (strength or 1) >= 1:
            assert all(zoo.LIES[fault] in case.against for case in cases)
