"""How far attributions move when a term is added to all logits, which changes no prediction."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor

from captum_density import metrics
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.obstacles import no_softmax
from captum_density.audit._figures.words import listed, span
from captum_density.audit._methods import CENTERED
from captum_density.audit._results import Finding, Measured, Results, values_by_method
from captum_density.audit._setting import Setting
from captum_density.softmax_shift import LinearShift

__all__ = ["SHIFT_SENSITIVITY", "moved_by_a_shift"]

_NAME = "shift_sensitivity"
_LINEAR = (IntegratedGradients, InputXGradient, GradientShap, Occlusion, FeatureAblation)
# 1 - cosine: 0.01 is an angle of 8 degrees.
_MOVED, _STILL = 0.01, 1e-6


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    shift = setting.shared((_NAME, "shift"), lambda: _shift(setting))
    spared = setting.budget.spares(explanation.passes)  # the first look at the attributions: before anything is drawn
    if spared and not _is_linear(explanation):
        return Measured(None, note=spared)

    def distance(at: slice) -> Tensor:
        setting.reseed(at)
        return metrics.shift_sensitivity(
            partial(_attribute_of, explanation, at, shift),
            setting.model,
            setting.inputs[at],
            shift,
            target=setting.target[at],
            **setting.arguments(at),
            **explanation.options,
        ).cosine_distance

    examples = setting.budget.shift_examples
    parts = setting.chunks() if examples is None else [slice(0, min(examples, setting.batch))]
    return of_examples(torch.cat([distance(at) for at in parts]))


def _shift(setting: Setting) -> LinearShift:
    """The default one of `metrics.shift_sensitivity`, for all examples and methods."""
    length = setting.gradients.double().flatten(1).norm(dim=1).quantile(0.5).item()
    noise = torch.Generator("cpu").manual_seed(0)
    pattern = torch.randn(setting.inputs.shape[1:], generator=noise, dtype=torch.float64, device="cpu")
    return LinearShift(pattern.to(setting.inputs), (length or 1.0) / pattern.norm().item())


def _attribute_of(explanation: Explanation, at: slice, shift: LinearShift, model: Any) -> Callable[..., Any]:
    """What attributes the model or its shifted twin; the model's attributions are there."""
    if model is explanation.setting.model:
        return lambda *_, **__: explanation.attributions[at]
    if not _is_linear(explanation):
        return explanation.attribution_of(model).attribute
    # The attributions of f + g are those of f and those of g.
    classes = explanation.setting.classes
    alone = explanation.attribution_of(lambda x, *rows: shift.add_to(x.new_zeros(len(x), classes), x, *rows))
    return lambda *args, **kwargs: explanation.attributions[at] + alone.attribute(*args, **kwargs)


def _is_linear(explanation: Explanation) -> bool:
    """Whether the attributions of a sum of models are known to be the sum of their attributions."""
    attribution, options = explanation.attribution, explanation.options
    if type(attribution) is NoiseTunnel and options.get("nt_type", "smoothgrad") == "smoothgrad":
        attribution = attribution.attribution_method
    is_linear = type(attribution) in _LINEAR or (type(attribution) is Saliency and options.get("abs") is False)
    return is_linear and attribution.forward_func is explanation.setting.model


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
    obstacle=no_softmax,
    findings=_findings,
    priority=6,
)
