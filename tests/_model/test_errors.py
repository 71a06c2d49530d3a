"""Errors as one line of a report; where warnings point."""

import warnings

import pytest
import torch
from torch import nn

from captum_density._model.errors import one_line
from captum_density.losses import GradientNormLoss
from captum_density.softmax_shift import CenteredLogits


def test_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "ValueError: a b c"
    assert one_line(ValueError("y" * 300)) == "ValueError: " + "y" * 300
    assert one_line(ValueError("y" * 301)) == "ValueError: " + "y" * 297 + "..."


@pytest.mark.parametrize("called", [GradientNormLoss(), lambda model, x: CenteredLogits(model)(x)])
def test_warnings_point_at_the_code_of_the_user(called):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        called(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), torch.randn(4, 3))
    assert [warning.filename for warning in caught] == [__file__]
