"""Whether a map of the predicted class is another than that of the class which comes second."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from captum_density._display.rank_correlation import rank_correlation
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.obstacles import no_softmax
from captum_density.audit._figures.randomisation import FEW_PASSES
from captum_density.audit._figures.words import listed, span, verb
from captum_density.audit._results import Finding, Measured, Results, intervals_by_method, values_by_method

__all__ = ["CLASS_LIKENESS"]

_NAME = "class_likeness"
_ALIKE = 0.9  # rank correlation


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    if spared := setting.budget.spares(explanation.passes):
        return Measured(None, note=spared)
    if explanation.passes > FEW_PASSES:
        return Measured(None, note=f"only of methods that take at most {FEW_PASSES} passes")
    others = setting.logits.scatter(1, setting.target[:, None], -torch.inf)
    second = others.argmax(dim=1)
    maps = explanation.attribute_all(second)
    return of_examples(rank_correlation(explanation.attributions, maps), seed=setting.seed)


def _findings(results: Results) -> Iterator[Finding]:
    intervals, values = intervals_by_method(results, _NAME), values_by_method(results, _NAME)
    alike = {name: values[name] for name, (low, _) in intervals.items() if low > _ALIKE}
    if alike:
        yield Finding(
            "note",
            f"{listed([*alike])} {verb('show', alike)} nearly the same for the second class as for the explained one "
            f"(rank correlation {span(alike.values())}): such maps do not say what speaks for a class.",
        )


CLASS_LIKENESS = Figure(
    name=_NAME,
    title="likeness of second class",
    better="lower is better",
    meaning="Rank correlation (Spearman) of a map with the same method's map of the class that comes next after the "
    "explained one; at 1, the map does not depend on the class.",
    measure=_measure,
    obstacle=no_softmax,
    findings=_findings,
    priority=1,
    panel=Panel(signed=True, line=(1.0, "does not depend on the class")),
)
