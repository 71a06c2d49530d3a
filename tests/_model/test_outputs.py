"""What models return that is no tensor of one number an example: the same advice wherever it is met."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.density import class_log_density, hessian_trace
from captum_density.losses import ScoreMatchingLoss
from captum_density.metrics import completeness_gap, density_ratio
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift

LINEAR = nn.Linear(4, 3)
X = torch.randn(2, 4)


@dataclasses.dataclass
class Record:
    name: str
    scores: Tensor


class Pair(NamedTuple):
    hidden: None
    scores: Tensor


OUTPUTS = {
    "dict": (lambda x: {"loss": LINEAR(x).sum(), "logits": LINEAR(x)}, r"model\(x\)\['logits'\]"),
    "dataclass": (lambda x: Record("a", LINEAR(x)), r"model\(x\)\.scores"),
    "named tuple": (lambda x: Pair(None, LINEAR(x)), r"model\(x\)\.scores"),
    "tuple": (lambda x: (None, LINEAR(x)), r"model\(x\)\[1\]"),
    "list": (lambda x: [LINEAR(x)], r"model\(x\)\[0\]"),
}
USES = {
    "FullGrad": lambda model: FullGrad(model).attribute(X, 0),
    "SimpleFullGrad": lambda model: SimpleFullGrad(model).attribute(X, 0),
    "SmoothFullGrad": lambda model: SmoothFullGrad(model).attribute(X, 0),
    "class_log_density": lambda model: class_log_density(model, X, 0),
    "hessian_trace": lambda model: hessian_trace(model, X, 0),
    "density_ratio": lambda model: density_ratio(model, X, [0.1], target=0),
    "ScoreMatchingLoss": lambda model: ScoreMatchingLoss()(model, X, 0),
    "completeness_gap": lambda model: completeness_gap(model, X, X, target=0),
    "CenteredLogits": lambda model: CenteredLogits(model)(X),
    "SoftmaxShift": lambda model: SoftmaxShift(model, LinearShift(torch.ones(4)))(X),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("use", USES)
def test_outputs_that_are_no_tensor_get_the_advice_that_fits(use, output):
    model, advice = OUTPUTS[output]
    with pytest.raises(TypeError, match=advice):
        USES[use](model)


@pytest.mark.parametrize("attributor", [FullGrad, SmoothFullGrad])
def test_a_target_that_selects_more_than_one_number_is_told_what_is_missing(attributor):
    model = nn.Conv2d(1, 3, 1)
    with pytest.raises(AssertionError, match=r"selects \(4, 5\) values .* such as \(0, 0, 0\)"):
        attributor(model).attribute(torch.randn(2, 1, 4, 5), target=1)
    with pytest.raises(AssertionError, match="Target not provided"):
        attributor(model).attribute(torch.randn(2, 1, 4, 5))
