"""Whether maps depend on the model: what is left of them when its weights are drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from captum_density._display.rank_correlation import rank_correlation
from captum_density._model.refusals import on_host
from captum_density.audit._controls import (
    DRAWS,
    NO_WEIGHTS,
    RANDOM_WEIGHTS,
    importance,
    map_at_random_weights,
    random_weights,
    reach,
)
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.infidelity import INFIDELITY
from captum_density.audit._figures.pixel_perturbation import PIXEL_PERTURBATION
from captum_density.audit._figures.words import listed, span, verb
from captum_density.audit._results import Finding, Measured, Results, intervals_by_method, values_by_method
from captum_density.audit._subject import ELEMENTS

__all__ = ["FEW_PASSES", "RANDOMISATION", "UNCHANGED", "unchanged_by_random_weights"]

_NAME = "randomisation"
# Rank correlation. Products of normal inputs and independent weights have about 0.5, so that no honest linear model is
# far from it; guided backpropagation on networks for the digits has about 0.7.
UNCHANGED = 0.55
_BY_PLACE = 0.5  # share of a map's ranks that place decides: above it, what is left tells little
_FEWEST = 4  # elements
_AGAIN = 3  # draws of weights before maps are called alike
_AT_ONE_DRAW = 0.5  # at a draw whose interval reaches below, it is told that maps change
_BEYOND = "of what place does not decide"
_UNTOLD = (
    "it cannot be told, as at any weights the map is mostly decided by which {elements} the explained output depends "
    "on, or has too few"
)
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

    depths: list[int | None] = []
    notes: list[str] = []
    if spared or explanation.passes > FEW_PASSES:
        notes.append(f"all layers only: it takes {explanation.passes} passes")
    else:
        # The last layer alone is told and not judged, as what it makes of its inputs may be two numbers.
        depths += [1] if setting.budget.last_layer else []
        depths += [upper] if (upper := (layers + 1) // 2) > 1 else []
    depths.append(None)
    values = dict(zip(depths, on_host(torch.stack([likeness(top) for top in depths])), strict=True))
    if not notes:
        names = {1: "last layer", None: "all layers"}
        notes.append(", ".join(f"{names.get(top, 'upper half')} {_mean(values[top]):.2g}" for top in depths))
    values.pop(1, None)
    top = max(values, key=lambda each: _mean(values[each]))
    figure = of_examples(values[top], seed=setting.seed)
    if figure.high is not None and figure.high >= UNCHANGED:
        figure = _beyond_reach(explanation, own, top, may_draw=not spared)
    return replace(
        figure, note="; ".join([*notes, *filter(None, [figure.note])]) if figure.value is not None else figure.note
    )


def _beyond_reach(explanation: Explanation, own: Tensor, top: int | None, *, may_draw: bool) -> Measured:
    """The likeness that is left when what any weights have in common is taken out, as partial rank correlation.

    Args:
        explanation: The method.
        own: Its `importance`.
        top: How many layers' weights are random; None for all.
        may_draw: Whether maps must be alike at several draws of weights.
    """
    setting, place = explanation.setting, reach(explanation.setting)
    among = (place > 0) | (own > 0)
    by_place = rank_correlation(own, place, among)

    def of_draw(draw: int) -> Measured | None:
        other = importance(setting, map_at_random_weights(explanation, top, draw))
        raw, others = rank_correlation(own, other, among), rank_correlation(other, place, among)
        left = (1 - by_place**2).clamp(min=0) * (1 - others**2).clamp(min=0)
        beyond = (raw - by_place * others) / torch.where(left > 0, left, 1).sqrt()
        same = (own == other).flatten(1).all(dim=1)  # such a map does not depend on weights, wherever it lies
        told = (torch.maximum(by_place**2, others**2) <= _BY_PLACE) & (among.flatten(1).sum(dim=1) >= _FEWEST)
        is_map = (own > 0).flatten(1).any(dim=1)
        beyond, told = on_host(torch.stack([torch.where(same, 1.0, beyond), ((told | same) & is_map).double()]))
        beyond = beyond[told > 0]
        return of_examples(beyond, seed=setting.seed) if 2 * len(beyond) > len(told) else None

    figures = []
    # Where examples' maps are alike, as a linear model's are, one draw is like them or not by chance for all at once.
    for draw in [0, *range(DRAWS + 1, DRAWS + _AGAIN + 1)] if may_draw else [0]:
        figure = of_draw(draw)
        if figure is None:
            return Measured(None, note=_UNTOLD.format(elements=ELEMENTS[setting.kind]))
        figures.append(figure)
        if figure.low is None or figure.low <= _AT_ONE_DRAW:
            return replace(figure, note=_BEYOND)
    value, low, high = (sum(ends) / len(figures) for ends in zip(*map(_numbers, figures), strict=True))
    return replace(figures[0], value=value, low=low, high=high, note=_BEYOND)


def _numbers(figure: Measured) -> tuple[float, float, float]:
    return figure.value or 0.0, figure.low or 0.0, figure.high or 0.0


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
    "more alike; a map that does not depend on the model, such as an edge detector, has 1. Where that is not clearly "
    "below the threshold, what gradients at other random weights and other examples' inputs have in common (a region, "
    "padding, a place that outputs are read from) is taken out of both (partial correlation), and it must be above 0.5 "
    "at each of four draws of weights: honest models have as much in common, by place or by chance.",
    against=f"above {UNCHANGED:g}",
    measure=_measure,
    findings=_findings,
    priority=4,
    panel=Panel(signed=True, line=(1.0, "does not depend on the model")),
    shows_note=True,
)
