"""Whether a ranking of pixels keeps what the model predicts by, better than maps do that know nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from captum_density import metrics
from captum_density._model.generators import derived_seed
from captum_density.audit._controls import CONSTANT, TOO_FEW, Comparison, common_maps, importance, own_maps
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import compared_by, level_in_words, listed, verb
from captum_density.audit._kept import prediction_of
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting
from captum_density.audit._subject import ELEMENTS

__all__ = ["PIXEL_PERTURBATION", "TOO_FEW", "compared_methods"]

_NAME = "pixel_perturbation"
_LEAST_PROBABILITY = 0.001  # of a gain: below, nobody reads anything in it


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    if len(setting.inputs) == 1:
        return Measured(None, note=f"one example is its own mean, which removed {ELEMENTS[setting.kind]} take")
    if prediction_of(setting).is_constant:
        return Measured(None, note="the outputs are all the same")
    at_random = setting.shared((_NAME, "random"), lambda: _random_area(setting))
    gain = _area(setting, explanation.attributions) - at_random
    comparison = Comparison(setting, gain, at_random)
    # A constant map's pixels come in a random order.
    comparison.add({CONSTANT: torch.zeros_like(gain)})
    comparison.add(setting.shared((_NAME, "controls"), lambda: _gains(setting, common_maps(setting), at_random)))
    comparison.add_own(own_maps(explanation), lambda each: _area(setting, each) - at_random, explanation.passes)
    own, at_random, controls = comparison.result()
    return replace(
        of_examples(own, reference=at_random, seed=setting.seed),
        note=comparison.note,
        controls=controls,
        values=tuple(round(value, 5) for value in own.tolist()),
        least_gain=_least_gain(setting),
    )


def _least_gain(setting: Setting) -> float:
    """A hundredth of what all that can be removed changes, and of a probability a thousandth at least."""
    none, every = _ends(setting)
    gain = 0.01 * (every - none).abs().mean().item()
    return gain if setting.task == "regression" else max(gain, _LEAST_PROBABILITY)


def _ends(setting: Setting) -> Tensor:
    """(2, N) float64 what is predicted with none and with all of the pixels kept."""
    return setting.shared((_NAME, "ends"), lambda: _kept(setting, setting.inputs[:, :1], (0.0, 1.0)))


def _gains(setting: Setting, maps: dict[str, Tensor], at_random: Tensor) -> dict[str, Tensor]:
    return {name: _area(setting, each) - at_random for name, each in maps.items()}


def _area(setting: Setting, attributions: Tensor) -> Tensor:
    """(N,) float64 area under the explained class's probability when the highest-ranking pixels are kept."""
    ends, fractions = _ends(setting), setting.budget.fractions
    within = _kept(setting, _ranking(setting, attributions), fractions[1:-1])
    curve = torch.cat([ends[:1], within, ends[1:]])
    return torch.trapezoid(curve, torch.tensor(fractions, dtype=curve.dtype, device=curve.device), dim=0)


def _kept(setting: Setting, ranking: Tensor, fractions: tuple[float, ...]) -> Tensor:
    """(fractions, N) float64 the explained class's probability when so many pixels are kept."""
    x, fill = setting.inputs, setting.inputs.mean(dim=0, keepdim=True)
    together, prediction = setting.has_channels, prediction_of(setting)
    parts = [
        metrics.pixel_perturbation(
            prediction.model,
            x[at],
            ranking[at] if together else ranking[at].expand_as(x[at]),
            fill,
            target=prediction.target[at],
            channels="together" if together else "singly",
            fractions=fractions,
            max_examples_per_batch=setting.batch,
            **prediction.arguments(at),
        ).probability
        for at in setting.chunks()
    ]
    return torch.cat(parts, dim=1).double()


def _ranking(setting: Setting, attributions: Tensor) -> Tensor:
    """What is ranked, with ties in a random order: in that of places, they would favour the top left corner."""
    values = importance(setting, attributions).expand(_ranked_shape(setting)).flatten(1)
    shuffled = setting.shared((_NAME, "ties"), lambda: _random_rankings(setting)[0].flatten(1).argsort(dim=1))
    shuffled = shuffled.to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, stable=True))
    places = torch.arange(values.shape[1], dtype=torch.float64, device="cpu").to(values.device)
    return torch.empty_like(values).scatter_(1, order, places.expand_as(values)).view(_ranked_shape(setting))


def _ranked_shape(setting: Setting) -> tuple[int, ...]:
    x = setting.inputs
    return (len(x), 1, *x.shape[2:]) if setting.has_channels else tuple(x.shape)


def _random_rankings(setting: Setting) -> Tensor:
    """(K, N, ...) values in [0, 1], which have no ties."""
    generator = torch.Generator().manual_seed(derived_seed(setting.seed, "random rankings"))
    shape = (setting.budget.random_rankings, *_ranked_shape(setting))
    return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")


def _random_area(setting: Setting) -> Tensor:
    """(N,) the mean of that area over random rankings."""
    areas = [_area(setting, each.to(setting.inputs.device)) for each in _random_rankings(setting)]
    return torch.stack(areas).mean(dim=0)


def compared_methods(results: Results) -> dict[str, Measured]:
    """The methods that were measured beside controls; none where there are too few examples for a word."""
    return compared_by(results, _NAME)


def _findings(results: Results) -> Iterator[Finding]:
    measured = compared_methods(results)
    better = [name for name, each in measured.items() if each.beats_every_control(len(measured))]
    level = {name: each for name, each in measured.items() if name not in better}
    if better:
        best = max(better, key=lambda name: measured[name].value or 0.0)
        which = f"best: {listed([best])}, " if len(better) > 1 else ""
        yield Finding(
            "good",
            f"{listed(better)} {verb('find', better)} the {results.elements} that the model uses better than every "
            f"control, maps that know nothing of it ({which}{measured[best].text()} beyond chance).",
        )
    if level:
        yield Finding(
            "warning",
            f"At finding the {results.elements} that the model uses, {level_in_words(level, len(measured))}, as far "
            "as these examples tell.",
            f"Do not read single {results.elements} from such maps. Methods that multiply by the input lose here, as "
            f"removed {results.elements} take the mean of the examples: ask for diff_roar as well.",
        )


PIXEL_PERTURBATION = Figure(
    name=_NAME,
    title="{elements} beyond chance",
    better="higher is better",
    meaning="Area under {prediction} when only the {elements} of the largest attributions, by absolute value, are "
    "kept, minus the same for random rankings. Beside it stand controls, maps that know nothing of the model's "
    "reasons; a method in favour is better than each, in pairs of the same example, by a hundredth at least of what "
    "removing all {elements} changes, and by 0.001 of a probability. The other {elements} take the mean "
    "of the examples, so that a method that multiplies by the input loses where {elements} of value 0 matter.",
    against="where a control does as well",
    measure=_measure,
    findings=_findings,
    priority=5,
    reference="area of a random ranking",
    panel=Panel(signed=True, line=(0.0, "chance")),
)
