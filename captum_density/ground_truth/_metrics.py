"""The metrics of the table and of their own examination; of all of them higher is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from captum.attr import InputXGradient
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_density._display.rank_correlation import rank_correlation
from captum_density._model.generators import derived_seed, seeded
from captum_density.ground_truth._trial import Trial, remembered
from captum_density.metrics import (
    GroupPerturbation,
    ParameterRandomisation,
    completeness_gap,
    group_perturbation,
    in_domain_single_deletion,
    parameter_randomisation,
    pixel_perturbation,
    pointing_game,
    relevance_mass,
    relevance_rank,
)

__all__ = ["AGAINST_THE_ANSWER", "METRICS"]

_FRACTIONS = tuple(part / 8 for part in range(9))
_ERASED = 0.2
_AT_ONCE = 1024

Metric = Callable[[Trial, Tensor], Tensor | None]


def _relevance_mass(trial: Trial, attributions: Tensor) -> Tensor:
    """The share of units' absolute scores on those that decide."""
    return relevance_mass(trial.scores(attributions), trial.decides)


def _relevance_rank(trial: Trial, attributions: Tensor) -> Tensor:
    """Of as many units with the largest absolute scores as decide, the share that does."""
    return relevance_rank(trial.scores(attributions), trial.decides)


def _pointing_game(trial: Trial, attributions: Tensor) -> Tensor:
    """Whether the unit with the largest absolute score decides."""
    return pointing_game(trial.scores(attributions), trial.decides).to(attributions)


def _effects(trial: Trial, attributions: Tensor) -> Tensor | None:
    """The rank correlation of parts' absolute scores with their exact effects, where these are known."""
    if trial.effects is None:
        return None
    values, masks = trial.effects
    scores = (attributions[:, None] * masks).flatten(2).sum(2)
    return rank_correlation(scores.abs(), values.abs())


def _perturbed(trial: Trial, attributions: Tensor) -> GroupPerturbation:
    """The logit as units go, in eighths of them."""
    last: list[Any] = remembered(trial, "perturbed", lambda: [None, None])
    if last[0] is not attributions:
        last[:] = [
            attributions,
            group_perturbation(
                trial.model,
                trial.inputs,
                attributions,
                trial.baselines,
                target=trial.targets,
                feature_mask=trial.groups,
                fractions=_FRACTIONS,
            ),
        ]
    result: GroupPerturbation = last[1]
    return result


def _deletion(trial: Trial, attributions: Tensor) -> Tensor:
    """Minus the area under the logit as units go from the most relevant on."""
    return -_perturbed(trial, attributions).deletion


def _insertion(trial: Trial, attributions: Tensor) -> Tensor:
    """The area under the logit as units come to the baseline, the most relevant first."""
    return _perturbed(trial, attributions).insertion


def _symmetric_gain(trial: Trial, attributions: Tensor) -> Tensor:
    """Insertion minus deletion."""
    return _perturbed(trial, attributions).symmetric_gain


def _single_deletion(trial: Trial, attributions: Tensor) -> Tensor:
    """The rank correlation of units' scores, with their signs, with what the logit loses without each."""
    return in_domain_single_deletion(
        trial.model,
        trial.inputs,
        attributions,
        trial.baselines,
        target=trial.targets,
        feature_mask=trial.groups,
        max_examples_per_batch=_AT_ONCE,
    )


def _pixel_perturbation(trial: Trial, attributions: Tensor) -> Tensor | None:
    """The target's probability with the top elements kept, less that with the bottom ones."""
    if trial.baselines.any():  # tokens, which are not elements
        return None
    areas = [
        pixel_perturbation(
            trial.model,
            trial.inputs,
            attributions,
            target=trial.targets,
            channels="together" if trial.inputs.ndim == 4 else "singly",
            keep=keep,
        ).area
        for keep in ("top", "bottom")
    ]
    return areas[0] - areas[1]


def _infidelity(trial: Trial, attributions: Tensor) -> Tensor:
    """Minus Captum's infidelity, scale fitted, when a fifth of the units go."""
    generator = torch.Generator().manual_seed(derived_seed(trial.seed, "infidelity"))

    def erase(inputs: Tensor) -> tuple[Tensor, Tensor]:
        shape = (len(inputs), int(trial.groups.max()) + 1)
        units = torch.rand(shape, generator=generator, device="cpu").to(inputs.device) < _ERASED
        away = units[:, trial.groups.flatten()].view_as(inputs)
        return away.to(inputs), torch.where(away, trial.baselines, inputs)

    return -infidelity(
        trial.model,
        erase,
        trial.inputs,
        attributions,
        target=trial.targets,
        n_perturb_samples=20,
        max_examples_per_batch=20 * len(trial.inputs),
        normalize=True,
    )


def _sensitivity_max(trial: Trial, attributions: Tensor) -> Tensor:
    """Minus Captum's maximal sensitivity, of the map as it is: one that hears of no perturbation."""

    def explain(inputs: tuple[Tensor, ...], **_: object) -> tuple[Tensor]:
        return (attributions.repeat_interleave(len(inputs[0]) // len(attributions), 0),)

    with seeded(derived_seed(trial.seed, "sensitivity") % 2**63, trial.inputs.device):
        return -sensitivity_max(explain, trial.inputs, n_perturb_samples=4)


def _completeness(trial: Trial, attributions: Tensor) -> Tensor:
    """Minus `completeness_gap`."""
    baselines = trial.baselines.expand_as(trial.inputs)
    return -completeness_gap(trial.model, trial.inputs, attributions, baselines, target=trial.targets)


def _randomised(trial: Trial, attributions: Tensor) -> ParameterRandomisation:
    """Of a method that attributes so by the trained weights, and as InputXGradient by random ones."""
    own = next(trial.model.parameters(), None)

    def make(model: nn.Module) -> Callable[..., Tensor]:
        if next(model.parameters(), None) is own:
            return lambda inputs, target: attributions
        return InputXGradient(model).attribute

    return parameter_randomisation(make, trial.model, trial.inputs, trial.targets, n_depths=1, seed=trial.seed)


def _parameter_randomisation(trial: Trial, attributions: Tensor) -> Tensor:
    """Minus the rank correlation with InputXGradient's map at random weights."""
    return -_randomised(trial, attributions).similarity[-1]


def _complexity_rise(trial: Trial, attributions: Tensor) -> Tensor:
    """By how much InputXGradient's map at random weights is more complex than this one."""
    return _randomised(trial, attributions).complexity_rise


AGAINST_THE_ANSWER: Mapping[str, Metric] = {
    "relevance rank": _relevance_rank,
    "relevance mass": _relevance_mass,
    "pointing game": _pointing_game,
    "effects": _effects,
}
#: The metrics of the table and of their examination, by name: each maps a `Trial` and attributions (N, ...) to (N,),
#: of which higher is better, or to None where it does not apply.
METRICS: Mapping[str, Metric] = {
    **AGAINST_THE_ANSWER,
    "symmetric gain": _symmetric_gain,
    "deletion": _deletion,
    "insertion": _insertion,
    "in_domain_single_deletion": _single_deletion,
    "pixel perturbation": _pixel_perturbation,
    "infidelity": _infidelity,
    "sensitivity_max": _sensitivity_max,
    "completeness gap": _completeness,
    "parameter_randomisation": _parameter_randomisation,
    "complexity rise": _complexity_rise,
}
