"""How steep the model is at the data."""

from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._results import Measured
from captum_density.audit._setting import Setting

__all__ = ["GRADIENT_NORM"]


def _measure(setting: Setting) -> Measured:
    return of_examples(setting.gradients.double().flatten(1).square().sum(dim=1), seed=setting.seed)


GRADIENT_NORM = Figure(
    name="gradient_norm",
    title="squared gradient norm",
    better="lower is smoother",
    meaning="Squared length of the explained output's gradient by the input: how steep the model is at the data.",
    measure=_measure,
)
