"""Metrics of attributions and models, in the manner of `captum.metrics`: per example, with their direction."""

from captum_density.metrics._shift_sensitivity import ShiftSensitivity as ShiftSensitivity
from captum_density.metrics._shift_sensitivity import shift_sensitivity as shift_sensitivity

__all__ = ["ShiftSensitivity", "shift_sensitivity"]
