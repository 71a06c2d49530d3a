"""The questions that an audit asks, each with the figures that answer it; and what no figure answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from captum_density.audit._figures import FIGURES, titled
from captum_density.audit._figures.words import span
from captum_density.audit._findings import findings
from captum_density.audit._results import Finding, Results, values_by_method

__all__ = ["answers", "unanswered"]

_QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Does it know these data?", ("accuracy", "r_squared")),
    ("Is its gradient mostly common to all outputs?", ("common_gradient", "shift_sensitivity")),
    ("Was it made to lie?", ("off_manifold_gradient", "finite_difference_gap")),
    ("Do its maps depend on it?", ("randomisation", "class_likeness")),
    ("Do its maps find what it uses?", ("pixel_perturbation", "infidelity", "diff_roar")),
    ("Does its density fit?", ("density_ratio", "hessian_trace", "gradient_norm", "gan_test")),
    ("What else is there to know of the methods?", ("completeness_gap", "sensitivity_max", "seconds")),
)
_REST = "What is there to know of this audit?"
_FAULTS = (
    "A shortcut, such as a watermark that gives labels away: gradients show it as what the model uses, which it is. "
    "Look for it in the maps, and on data without it.",
    "Labels learned by heart: audit data that the model was not trained on, and look at its accuracy.",
    "A gradient laid over the model's own that is a third as long or shorter, or that is another picture for every "
    "example: figures find what gradients share, from about their own length on.",
)


def answers(results: Results) -> Iterator[tuple[str, list[Finding], str]]:
    """Each question about which there is something to say: its findings; where there are none, its figures."""
    left = list(findings(results))
    for question, names in _QUESTIONS:
        told = [finding for name in names for finding in FIGURES[name].findings(results)]
        left = [finding for finding in left if finding not in told]
        measured = "" if told else "; ".join(_measured(results, names))
        if told or measured:
            yield question, told, measured
    if left:
        yield _REST, left, ""


def _measured(results: Results, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        values = values_by_method(results, name)
        figure: Any = results.model.get(name)
        if values:
            yield f"{titled(name, results).title} {span(values.values())}"
        elif figure is not None and figure.value is not None:
            yield f"{titled(name, results).title} {figure.text()}"


def unanswered(results: Results) -> list[str]:
    """Figures without a value, and why; then faults that no figure finds."""
    lines: dict[str, None] = {}
    for row in (results.model, *results.methods.values()):
        for name, measured in row.items():
            if measured.value is None and measured.note and not measured.failed:
                title = titled(name, results).title
                somewhere = values_by_method(results, name)
                lines[f"{title}{' of some methods' if somewhere else ''}: {measured.note}."] = None
    return [f"{line[0].upper()}{line[1:]}" for line in lines] + (list(_FAULTS) if results.model or lines else [])
