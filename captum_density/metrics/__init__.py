"""Metrics of attributions and models, in the manner of `captum.metrics`: per example, with their direction."""

from captum_density.metrics._attention_erasure import AttentionErasure as AttentionErasure
from captum_density.metrics._attention_erasure import attention_erasure as attention_erasure
from captum_density.metrics._axioms._completeness import completeness_gap as completeness_gap
from captum_density.metrics._axioms._implementation import implementation_gap as implementation_gap
from captum_density.metrics._axioms._sensitivity import sensitivity_gap as sensitivity_gap
from captum_density.metrics._axioms._symmetry import symmetry_gap as symmetry_gap
from captum_density.metrics._axioms._table import AxiomTable as AxiomTable
from captum_density.metrics._axioms._table import axiom_table as axiom_table
from captum_density.metrics._common_gradient import common_gradient as common_gradient
from captum_density.metrics._control_comparison import ControlComparison as ControlComparison
from captum_density.metrics._control_comparison import compare_with_controls as compare_with_controls
from captum_density.metrics._control_maps import control_maps as control_maps
from captum_density.metrics._density_ratio import density_ratio as density_ratio
from captum_density.metrics._diff_roar import diff_roar as diff_roar
from captum_density.metrics._diff_roar import kar as kar
from captum_density.metrics._diff_roar import roar as roar
from captum_density.metrics._f_fidelity import f_fidelity as f_fidelity
from captum_density.metrics._f_fidelity_result import FFidelity as FFidelity
from captum_density.metrics._finite_difference_gap import finite_difference_gap as finite_difference_gap
from captum_density.metrics._fraction_to_flip import FractionToFlip as FractionToFlip
from captum_density.metrics._fraction_to_flip import fraction_to_flip as fraction_to_flip
from captum_density.metrics._gan_test import GanTest as GanTest
from captum_density.metrics._gan_test import gan_test as gan_test
from captum_density.metrics._group_perturbation import GroupPerturbation as GroupPerturbation
from captum_density.metrics._group_perturbation import group_perturbation as group_perturbation
from captum_density.metrics._group_perturbation import patch_mask as patch_mask
from captum_density.metrics._in_domain_single_deletion import in_domain_single_deletion as in_domain_single_deletion
from captum_density.metrics._kernel_stein import kernel_stein_discrepancy as kernel_stein_discrepancy
from captum_density.metrics._known_masks import pointing_game as pointing_game
from captum_density.metrics._known_masks import relevance_mass as relevance_mass
from captum_density.metrics._known_masks import relevance_rank as relevance_rank
from captum_density.metrics._off_manifold_gradient import off_manifold_gradient as off_manifold_gradient
from captum_density.metrics._parameter_randomisation import ParameterRandomisation as ParameterRandomisation
from captum_density.metrics._parameter_randomisation import parameter_randomisation as parameter_randomisation
from captum_density.metrics._pixel_perturbation import PixelPerturbation as PixelPerturbation
from captum_density.metrics._pixel_perturbation import pixel_perturbation as pixel_perturbation
from captum_density.metrics._random_weights_map import random_weights_map as random_weights_map
from captum_density.metrics._retraining_result import RetrainingResult as RetrainingResult
from captum_density.metrics._shift_sensitivity import ShiftSensitivity as ShiftSensitivity
from captum_density.metrics._shift_sensitivity import shift_sensitivity as shift_sensitivity
from captum_density.metrics._signal_block_share import signal_block_share as signal_block_share

__all__ = [
    "AttentionErasure",
    "AxiomTable",
    "ControlComparison",
    "FFidelity",
    "FractionToFlip",
    "GanTest",
    "GroupPerturbation",
    "ParameterRandomisation",
    "PixelPerturbation",
    "RetrainingResult",
    "ShiftSensitivity",
    "attention_erasure",
    "axiom_table",
    "common_gradient",
    "compare_with_controls",
    "completeness_gap",
    "control_maps",
    "density_ratio",
    "diff_roar",
    "f_fidelity",
    "finite_difference_gap",
    "fraction_to_flip",
    "gan_test",
    "group_perturbation",
    "implementation_gap",
    "in_domain_single_deletion",
    "kar",
    "kernel_stein_discrepancy",
    "off_manifold_gradient",
    "parameter_randomisation",
    "patch_mask",
    "pixel_perturbation",
    "pointing_game",
    "random_weights_map",
    "relevance_mass",
    "relevance_rank",
    "roar",
    "sensitivity_gap",
    "shift_sensitivity",
    "signal_block_share",
    "symmetry_gap",
]


def __dir__() -> list[str]:
    return __all__
