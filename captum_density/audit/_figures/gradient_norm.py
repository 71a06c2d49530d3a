"""How steep the model is at the data."""

import torch
from torch import Tensor

from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._results import Measured
from captum_density.audit._setting import Setting
from captum_density.density import class_score

__all__ = ["GRADIENT_NORM"]


def _measure(setting: Setting) -> Measured:
    def squared(at: slice) -> Tensor:
        score = class_score(setting.model, setting.inputs[at], setting.target[at], **setting.arguments(at))
        return score.double().flatten(1).square().sum(dim=1)

    return of_examples(torch.cat([squared(at) for at in setting.chunks()]), seed=setting.seed)


GRADIENT_NORM = Figure(
    name="gradient_norm",
    title="squared gradient norm",
    better="lower is smoother",
    meaning="Squared length of the explained logit's gradient by the input: how steep the model is at the data.",
    measure=_measure,
)
