"""How far attributions move when a term is added to all logits, which changes no prediction."""

from collections.abc import Iterator

import torch

from captum_density import metrics
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.words import listed, span
from captum_density.audit._methods import CENTERED
from captum_density.audit._results import Finding, Measured, Results, values_by_method

__all__ = ["SHIFT_SENSITIVITY"]

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
            **options,
        ).cosine_distance
        for at in setting.chunks()
    ]
    return of_examples(torch.cat(values))


def _findings(results: Results) -> Iterator[Finding]:
    distances = values_by_method(results, _NAME)
    moved = {name: distance for name, distance in distances.items() if distance > _MOVED}
    still = [name for name, distance in distances.items() if distance < _STILL]
    if moved:
        cures = [name for name in still if name.endswith(CENTERED)]
        here = f" ({listed(cures)}: no change here)" if cures else ""
        yield Finding(
            "warning",
            f"A term added to all logits changes no prediction, and moves the maps of {listed([*moved])} (1 - cosine "
            f"{span(moved.values())}): of these, what speaks for a class cannot be told from what is added to all.",
            "Attribute centered logits: give the method `captum_density.softmax_shift.CenteredLogits(model)` in "
            f"place of the model{here}.",
        )
    elif still:
        yield Finding("good", f"What is added to all logits does not move {listed(still)}.")


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
