"""Samples of the density hidden in a classifier, to look at what its gradients are gradients of."""

from captum_density.samplers._activation_maximization import ActivationMaximization as ActivationMaximization
from captum_density.samplers._langevin import LangevinSampler as LangevinSampler
from captum_density.samplers._samples import Samples as Samples

__all__ = ["ActivationMaximization", "LangevinSampler", "Samples"]


def __dir__() -> list[str]:
    return __all__
