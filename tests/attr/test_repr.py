"""What attributions and paths show of themselves."""

import pytest
import torch
from torch import nn

from captum_density import attr
from captum_density.attr import (
    AttentionGradient,
    AttentionWeights,
    FullGrad,
    FunctionPath,
    PathIntegratedGradients,
    PiecewiseLinearPath,
    PowerPath,
    ShiftFooledGradient,
    SimpleFullGrad,
    SmoothFullGrad,
)
from captum_density.softmax_shift import LinearShift


def line(alpha, baseline, x):
    return baseline + alpha * (x - baseline)


LINEAR = nn.Linear(3, 2)
ENCODER = nn.TransformerEncoderLayer(8, 2)


@pytest.mark.parametrize(
    ("instance", "text"),
    [
        (FullGrad(LINEAR, complete=True), "FullGrad(Linear, complete=True)"),
        (SimpleFullGrad(line), "SimpleFullGrad(line)"),
        (SmoothFullGrad(LINEAR), "SmoothFullGrad(Linear)"),
        (
            ShiftFooledGradient(LINEAR, LinearShift(torch.ones(3)), class_dim=2),
            "ShiftFooledGradient(Linear, shift=LinearShift, class_dim=2)",
        ),
        (
            PathIntegratedGradients(LINEAR, multiply_by_inputs=False),
            "PathIntegratedGradients(Linear, path=StraightPath(), multiply_by_inputs=False)",
        ),
        (PowerPath(2), "PowerPath(2)"),
        (PowerPath((torch.ones(3), 1.5)), "PowerPath((tensor of shape (3,), 1.5))"),
        (PiecewiseLinearPath(torch.zeros(2, 3)), "PiecewiseLinearPath(tensor of shape (2, 3))"),
        (FunctionPath(line), "FunctionPath(line, derivative=None)"),
        (AttentionWeights(ENCODER, ENCODER.self_attn), "AttentionWeights(TransformerEncoderLayer, layer='self_attn')"),
        (
            AttentionGradient(lambda x: ENCODER(x), ENCODER.self_attn, multiply_by_weights=False),
            "AttentionGradient(<lambda>, layer=MultiheadAttention, multiply_by_weights=False)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr(instance, text):
    assert repr(instance) == text


def test_each_class_has_a_repr_of_its_own():
    classes = [value for name in attr.__all__ if isinstance(value := getattr(attr, name), type)]
    assert len(classes) > 10
    assert not [
        c.__name__
        for c in classes
        if not any("__repr__" in vars(base) for base in c.__mro__ if "captum_density" in base.__module__)
    ]
