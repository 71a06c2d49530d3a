"""Metrics of attributions and models, in the manner of `captum.metrics`: per example, with their direction."""

from captum_density.metrics._density_ratio import density_ratio as density_ratio
from captum_density.metrics._gan_test import GanTest as GanTest
from captum_density.metrics._gan_test import gan_test as gan_test
from captum_density.metrics._kernel_stein import kernel_stein_discrepancy as kernel_stein_discrepancy
from captum_density.metrics._pixel_perturbation import PixelPerturbation as PixelPerturbation
from captum_density.metrics._pixel_perturbation import pixel_perturbation as pixel_perturbation
from captum_density.metrics._shift_sensitivity import ShiftSensitivity as ShiftSensitivity
from captum_density.metrics._shift_sensitivity import shift_sensitivity as shift_sensitivity

__all__ = [
    "GanTest",
    "PixelPerturbation",
    "ShiftSensitivity",
    "density_ratio",
    "gan_test",
    "kernel_stein_discrepancy",
    "pixel_perturbation",
    "shift_sensitivity",
]
