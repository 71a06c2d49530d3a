"""Losses of models whose outputs are not the logits of several classes: probabilities, one output."""

import pytest
import torch
from torch import nn

from captum_density.density import class_score
from captum_density.losses import DistillationLoss, GradientNormLoss, JacobianMatchingLoss, ScoreMatchingLoss
from tests.losses.distributed_step import LOSSES, SIDE

OF_DENSITY = [name for name in LOSSES if name not in ("jacobian matching", "distillation", "attention maps")]
X = torch.rand(4, 1, SIDE, SIDE, dtype=torch.float64)
REMEDY = r"torch.cat\(\[torch.zeros_like\(z := model\(x\)\), z\], dim=1\)"


def network(outputs, *last):
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.Tanh(), nn.Linear(5, outputs), *last).double()


@pytest.mark.parametrize("name", OF_DENSITY)
def test_probabilities_are_warned_of_once(name):
    loss, model = LOSSES[name](), network(3, nn.Softmax(1))
    with pytest.warns(UserWarning, match="without its softmax, or the logarithm") as record:
        for target in (0, torch.tensor([0, 1, 2, 0])):
            loss(model, X, target)
    assert len(record) == 1


def test_of_the_marginal_density_too():
    with pytest.warns(UserWarning, match="without its softmax"):
        ScoreMatchingLoss()(network(3, nn.Softmax(1)), X)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 1, 0]], ids=["zeros", "both"])
@pytest.mark.parametrize("name", OF_DENSITY)
def test_labels_of_one_output_are_refused(name, labels):
    for target in (labels, torch.tensor(labels)):
        with pytest.raises(ValueError, match=REMEDY):
            LOSSES[name]()(network(1), X, target)
        with pytest.raises(ValueError, match=REMEDY):
            LOSSES[name]()(network(1, nn.Flatten(0)), X, target)


def test_one_output_without_labels_is_a_log_density():
    model = network(1)
    expected = GradientNormLoss()(lambda x: model(x)[:, 0], X)
    for target in (None, 0, torch.tensor(0), (0,)):
        torch.testing.assert_close(GradientNormLoss()(model, X, target), expected)
    torch.testing.assert_close(class_score(model, X, 0), class_score(model, X, (0,)))
    with pytest.raises(ValueError, match=REMEDY):
        GradientNormLoss()(model, X, 1)


def test_two_classes_of_one_output():
    """What the advice gives: the score of class 1 against 0."""
    model = network(1)
    both = GradientNormLoss()(lambda x: torch.cat([torch.zeros_like(z := model(x)), z], dim=1), X, 1)
    torch.testing.assert_close(both, GradientNormLoss()(model, X))


def test_teachers_of_one_output():
    with pytest.raises(ValueError, match=REMEDY):
        DistillationLoss(network(1))(network(1), X)
    for labels in ([0, 0, 0, 0], [0, 1, 1, 0]):
        with pytest.raises(ValueError, match=REMEDY):
            JacobianMatchingLoss(network(1))(network(1), X, torch.tensor(labels))
    assert JacobianMatchingLoss(network(1))(network(1), X, 0).isfinite()
