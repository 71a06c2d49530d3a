"""The figures of an audit, one file each. A new one is a file that makes a `Figure`, and a line in a list below."""

from collections.abc import Iterable
from typing import Any

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.accuracy import ACCURACY
from captum_density.audit._figures.class_likeness import CLASS_LIKENESS
from captum_density.audit._figures.common_gradient import COMMON_GRADIENT
from captum_density.audit._figures.completeness_gap import COMPLETENESS_GAP
from captum_density.audit._figures.density_ratio import DENSITY_RATIO
from captum_density.audit._figures.diff_roar import DIFF_ROAR
from captum_density.audit._figures.figure import Figure
from captum_density.audit._figures.finite_difference_gap import FINITE_DIFFERENCE_GAP
from captum_density.audit._figures.gan_test import GAN_TEST
from captum_density.audit._figures.gradient_norm import GRADIENT_NORM
from captum_density.audit._figures.hessian_trace import HESSIAN_TRACE
from captum_density.audit._figures.infidelity import INFIDELITY
from captum_density.audit._figures.off_manifold_gradient import OFF_MANIFOLD_GRADIENT
from captum_density.audit._figures.pixel_perturbation import PIXEL_PERTURBATION
from captum_density.audit._figures.r_squared import R_SQUARED
from captum_density.audit._figures.randomisation import RANDOMISATION
from captum_density.audit._figures.seconds import SECONDS
from captum_density.audit._figures.sensitivity_max import SENSITIVITY_MAX
from captum_density.audit._figures.shift_sensitivity import SHIFT_SENSITIVITY
from captum_density.audit._results import Results
from captum_density.audit._setting import Setting

__all__ = ["FIGURES", "LIES", "METHOD_FIGURES", "MODEL_FIGURES", "columns", "selected", "titled"]

# In the order of tables and pictures.
METHOD_FIGURES: tuple[Figure[Explanation], ...] = (
    COMPLETENESS_GAP,
    INFIDELITY,
    SENSITIVITY_MAX,
    SHIFT_SENSITIVITY,
    PIXEL_PERTURBATION,
    RANDOMISATION,
    CLASS_LIKENESS,
    DIFF_ROAR,
    SECONDS,
)
# Whether the model's gradients were made to lie.
LIES: tuple[Figure[Setting], ...] = (COMMON_GRADIENT, OFF_MANIFOLD_GRADIENT, FINITE_DIFFERENCE_GAP)
MODEL_FIGURES: tuple[Figure[Setting], ...] = (
    ACCURACY,
    R_SQUARED,
    *LIES,
    DENSITY_RATIO,
    GRADIENT_NORM,
    HESSIAN_TRACE,
    GAN_TEST,
)
_ALL: tuple[Figure[Any], ...] = (*METHOD_FIGURES, *MODEL_FIGURES)
FIGURES = {figure.name: figure for figure in _ALL}


def selected(metrics: Iterable[str] | None) -> tuple[str, ...]:
    """The names of what is to be measured, in the figures' order.

    Args:
        metrics: Names, "default" for what needs nothing but model and data, "all"; None for the default.

    Raises:
        ValueError: An unknown name, or none.
    """
    names = ["default"] if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in (*FIGURES, "default", "all")]
    if unknown or not names:
        what = f"there is no metric {unknown[0]!r}" if unknown else "metrics is empty"
        raise ValueError(f"{what}; there are default, all, {', '.join(FIGURES)}")
    return tuple(
        name
        for name, figure in FIGURES.items()
        if name in names or "all" in names or ("default" in names and figure.needs is None)
    )


def columns(results: Results) -> list[Figure[Explanation]]:
    """The figures of methods that were measured, in the order of a table's columns."""
    names = {name for row in results.methods.values() for name in row}
    return [figure.worded(results) for figure in METHOD_FIGURES if figure.name in names]


def titled(name: str, results: Results) -> Figure[Any]:
    """The figure of this name, in the words of the inputs."""
    return FIGURES[name].worded(results)
