"""Balanced views of any model, on whose gradients Captum's methods explain what the model computes with."""

from captum_density.rules._balanced_gradients import BalancedGradients as BalancedGradients

__all__ = ["BalancedGradients"]


def __dir__() -> list[str]:
    return __all__
