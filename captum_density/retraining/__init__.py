"""Train many small models, on whatever computes, and remember them: what ROAR and DiffROAR stand on."""

import warnings
from typing import Any

from captum_density.retraining._adversarial import adversarial_fit as adversarial_fit
from captum_density.retraining._config import FitConfig as FitConfig
from captum_density.retraining._deletion import random_deletion as random_deletion
from captum_density.retraining._deletion import single_deletion as single_deletion
from captum_density.retraining._examples import Examples as Examples
from captum_density.retraining._examples import Job as Job
from captum_density.retraining._fine_tune import fine_tune as fine_tune
from captum_density.retraining._fit_many import fit_many as fit_many
from captum_density.retraining._imputation import noisy_linear_imputation as noisy_linear_imputation
from captum_density.retraining._pgd import pgd as pgd
from captum_density.retraining._result import JobResult as JobResult
from captum_density.retraining._work import StoppedError as StoppedError

__all__ = [
    "Examples",
    "FitConfig",
    "Job",
    "JobResult",
    "StoppedError",
    "adversarial_fit",
    "fine_tune",
    "fit_many",
    "noisy_linear_imputation",
    "pgd",
    "random_deletion",
    "single_deletion",
]


def __dir__() -> list[str]:
    return __all__


_FORMER = {"Cell": Job, "Fitted": JobResult}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warnings.warn(f"{name} is called {_FORMER[name].__name__} now", DeprecationWarning, stacklevel=2)
        return _FORMER[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
