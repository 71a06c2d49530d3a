"""Train many small models, on whatever computes, and remember them: what ROAR and DiffROAR stand on."""

from captum_density.retraining._adversarial import adversarial_fit as adversarial_fit
from captum_density.retraining._config import FitConfig as FitConfig
from captum_density.retraining._examples import Cell as Cell
from captum_density.retraining._examples import Examples as Examples
from captum_density.retraining._fit_many import fit_many as fit_many
from captum_density.retraining._fitted import Fitted as Fitted
from captum_density.retraining._imputation import noisy_linear_imputation as noisy_linear_imputation
from captum_density.retraining._pgd import pgd as pgd
from captum_density.retraining._work import StoppedError as StoppedError

__all__ = [
    "Cell",
    "Examples",
    "FitConfig",
    "Fitted",
    "StoppedError",
    "adversarial_fit",
    "fit_many",
    "noisy_linear_imputation",
    "pgd",
]


def __dir__() -> list[str]:
    return __all__
