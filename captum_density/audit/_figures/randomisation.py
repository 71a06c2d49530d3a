"""Whether maps depend on the model: what is left of them when its weights are drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from captum_density._display.rank_correlation import rank_correlation
from captum_density._model.refusals import on_host
from captum_density.audit._controls import NO_WEIGHTS, RANDOM_WEIGHTS, importance, map_at_random_weights, random_weights
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.infidelity import INFIDELITY
from captum_density.audit._figures.pixel_perturbation import PIXEL_PERTURBATION
from captum_density.audit._figures.words import listed, span, verb
from captum_density.audit._results import Finding, Measured, Results, intervals_by_method, values_by_method

__all__ = ["FEW_PASSES", "RANDOMISATION", "UNCHANGED", "unchanged_by_random_weights"]

_NAME = "randomisation"
UNCHANGED = 0.5  # rank correlation
FEW_PASSES = 4  # runs of the model for an example: at more, one depth has to do


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    layers = len(random_weights(setting))
    if not layers:
        return Measured(None, note=NO_WEIGHTS)
    # The map at random weights is there where it was the last control to be beaten.
    beside = [explanation.row[name] for name in (INFIDELITY.name, PIXEL_PERTURBATION.name) if name in explanation.row]
    is_there = any(control.name == RANDOM_WEIGHTS for measured in beside for control in measured.controls)
    if (spared := setting.budget.spares(explanation.passes)) and not is_there:
        return Measured(None, note=spared)
    own = importance(setting, explanation.attributions)

    def likeness(top: int | None) -> Tensor:
        return rank_correlation(own, importance(setting, map_at_random_weights(explanation, top)))

    whole = likeness(None)
    if spared or explanation.passes > FEW_PASSES:
        whole = on_host(whole)
        note = f"all layers only: it takes {explanation.passes} passes"
        return replace(of_examples(whole, seed=setting.seed), note=note)
    last = [likeness(1)] if setting.budget.last_layer else []
    *last, half, whole = on_host(torch.stack([*last, likeness((layers + 1) // 2), whole]))
    note = f"upper half {_mean(half):.2g}, all layers {_mean(whole):.2g}"
    note = f"last layer {_mean(last[0]):.2g}, {note}" if last else note
    return replace(of_examples(max(half, whole, key=_mean), seed=setting.seed), note=note)


def _mean(values: Tensor) -> float:
    return values.mean().item()


def unchanged_by_random_weights(results: Results) -> dict[str, float]:
    """The methods whose maps are much the same at random weights, and how alike."""
    intervals, values = intervals_by_method(results, _NAME), values_by_method(results, _NAME)
    return {name: values[name] for name, (low, _) in intervals.items() if low > UNCHANGED}


def _findings(results: Results) -> Iterator[Finding]:
    unchanged = unchanged_by_random_weights(results)
    if unchanged:
        yield Finding(
            "warning",
            f"{listed([*unchanged])} {verb('show', unchanged)} much the same when the model's weights are random "
            f"(rank correlation {span(unchanged.values())}): such maps are of the input more than of the model.",
            "Do not read them as what the model learned.",
        )


RANDOMISATION = Figure(
    name=_NAME,
    title="likeness at random weights",
    better="lower is better",
    meaning="Rank correlation (Spearman) of a map's absolute values with those of the same method's map when "
    "weights of the model are drawn anew, in the upper half of the layers or in all of them, whichever is "
    "more alike; a map that does not depend on the model, such as an edge detector, has 1.",
    against=f"above {UNCHANGED:g}",
    measure=_measure,
    findings=_findings,
    priority=4,
    panel=Panel(signed=True, line=(1.0, "does not depend on the model")),
    shows_note=True,
)
