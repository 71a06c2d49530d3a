"""How far attributions move when a term is added to all logits, which changes no prediction."""

from collections.abc import Iterator

import torch

from captum_density import metrics
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.words import listed, span
from captum_density.audit._methods import CENTERED
from captum_density.audit._results import Finding, Measured, Results, values_by_method

__all__ = ["SHIFT_SENSITIVITY", "moved_by_a_shift"]

_NAME = "shift_sensitivity"
# 1 - cosine: 0.01 is an angle of 8 degrees.
_MOVED, _STILL = 0.01, 1e-6


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    if setting.classes == 1:
        return Measured(None, note="one output has no softmax to shift")
    options = explanation.options
    setting.reseed()
    values = [
        metrics.shift_sensitivity(
            explanation.attribute_of,
            setting.model,
            setting.inputs[at],
            target=setting.target[at],
            **setting.arguments(at),
            **options,
        ).cosine_distance
        for at in setting.chunks()
    ]
    return of_examples(torch.cat(values))


def moved_by_a_shift(results: Results) -> dict[str, float]:
    """The methods whose maps move under a softmax shift, and how far."""
    return {name: distance for name, distance in values_by_method(results, _NAME).items() if distance > _MOVED}


def _findings(results: Results) -> Iterator[Finding]:
    # A property of methods: they move on any model, or on none.
    moved = moved_by_a_shift(results)
    still = [name for name, distance in values_by_method(results, _NAME).items() if distance < _STILL]
    if moved:
        cures = [name for name in still if name.endswith(CENTERED)]
        here = f" ({listed(cures)}: no change here)" if cures else ""
        yield Finding(
            "note",
            "Of the methods, on any model: a term added to all logits changes no prediction, and moves the maps of "
            f"{listed([*moved])} (1 - cosine {span(moved.values())}), which do not tell it from what speaks for "
            "a class.",
            "Where that matters, give the method `captum_density.softmax_shift.CenteredLogits(model)` in place of the "
            f"model{here}.",
        )
    elif still:
        yield Finding(
            "note", f"Of the methods, on any model: what is added to all logits does not move {listed(still)}."
        )


SHIFT_SENSITIVITY = Figure(
    name=_NAME,
    title="shift sensitivity",
    better="lower is better",
    meaning="1 - cosine of the attributions before and after a term is added to all logits, which changes no "
    "prediction; what moves says nothing about predictions. Small is not 0: maps of positive values look alike.",
    measure=_measure,
    findings=_findings,
    priority=6,
)
