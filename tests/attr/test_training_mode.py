"""Batch norm in training mode: attributing does not move its statistics, or refuses to run."""

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from captum_density import attr, softmax_shift

X, TOKENS = torch.randn(4, 6), torch.randn(4, 3, 6)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 1, batch_first=True)
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.attention(x, x, x)[0].mean(1)))


CALLS = {
    "FullGrad": lambda model: attr.FullGrad(model).attribute(X, 0),
    "FullGrad.decompose": lambda model: attr.FullGrad(model).decompose(X, 0),
    "SimpleFullGrad": lambda model: attr.SimpleFullGrad(model).attribute(X, 0),
    "SmoothFullGrad": lambda model: attr.SmoothFullGrad(model).attribute(X, 0),
    "CompleteDeepLift": lambda model: attr.CompleteDeepLift(model).attribute(X, target=0),
    "CompleteDeepLiftShap": lambda model: attr.CompleteDeepLiftShap(model).attribute(X, X, target=0),
    "PathIntegratedGradients": lambda model: attr.PathIntegratedGradients(model).attribute(
        X, target=0, return_convergence_delta=True
    ),
    "ShiftFooledGradient": lambda model: attr.ShiftFooledGradient(
        model, softmax_shift.LinearShift(X[0])
    ).attribute(X, 0),
    "LayerFullGrad": lambda model: attr.LayerFullGrad(model, model[0]).attribute(X, 0),
    "NeuronFullGrad": lambda model: attr.NeuronFullGrad(model, model[0]).attribute(X, 0),
    "LayerCompleteDeepLift": lambda model: attr.LayerCompleteDeepLift(model, model[0]).attribute(X, target=0),
    "LayerPathIntegratedGradients": lambda model: attr.LayerPathIntegratedGradients(model, model[0]).attribute(
        X, target=0
    ),
    "LayerShiftFooledGradient": lambda model: attr.LayerShiftFooledGradient(
        model, model[0], softmax_shift.NetworkShift(lambda z: z.sum(1))
    ).attribute(X, 0),
    "LogitLedger": lambda model: attr.LogitLedger(model).attribute(inputs_embeds=TOKENS),
    "AttentionWeights": lambda model: attr.AttentionWeights(model, model.attention).attribute(TOKENS),
    "AttentionGradient": lambda model: attr.AttentionGradient(model, model.attention).attribute(TOKENS, 0),
}  # fmt: skip


def test_every_attribution_is_here():
    classes = [getattr(attr, name) for name in attr.__all__]
    named = {c.__name__ for c in classes if isinstance(c, type) and hasattr(c, "attribute")}
    assert named <= {*CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_statistics_stay(name):
    model: Any = Reader() if "Attention" in name else nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for function in (
        (model,) if "Attention" in name or name.startswith(("Layer", "Neuron")) else (model, lambda x: model(x))
    ):
        with suppress(ValueError):
            CALLS[name](function)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(module.training for module in model.modules())
