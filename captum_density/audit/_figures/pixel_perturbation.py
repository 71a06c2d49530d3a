"""Whether a ranking of pixels keeps what the model predicts by, better than maps do that know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from captum_density import metrics
from captum_density._model.errors import one_line
from captum_density._model.generators import derived_seed
from captum_density._model.refusals import on_host
from captum_density.audit._controls import (
    ANOTHER_EXAMPLE,
    CONSTANT,
    RANDOM_WEIGHTS,
    SPECTRUM,
    another_examples_map,
    common_maps,
    compared,
    importance,
    map_at_random_weights,
    of_same_spectrum,
)
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._kept import prediction_of
from captum_density.audit._results import Finding, Measured, Results, by_method
from captum_density.audit._setting import Setting
from captum_density.audit._subject import ELEMENTS

__all__ = ["PIXEL_PERTURBATION", "TOO_FEW", "compared_methods"]

_NAME = "pixel_perturbation"
TOO_FEW = 10  # examples: below, an interval means little


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    if len(setting.inputs) == 1:
        return Measured(None, note=f"one example is its own mean, which removed {ELEMENTS[setting.kind]} take")
    if prediction_of(setting).is_constant:
        return Measured(None, note="the outputs are all the same")
    at_random = setting.shared((_NAME, "random"), lambda: _random_area(setting))
    gain = _area(setting, explanation.attributions) - at_random
    compare = _Comparison(setting, gain, at_random)
    # A constant map's pixels come in a random order.
    compare.add({CONSTANT: torch.zeros_like(gain)})
    common = setting.shared((_NAME, "controls"), lambda: _gains(setting, common_maps(setting), at_random))
    compare.add(common)
    note = ""
    for name, maps in _own_maps(explanation).items():
        if not setting.budget.needless_controls and (cheaper := compare.settled()):
            note = f"not compared with {name} and what costs more, as {cheaper}"
            break
        try:
            compare.add(_gains(setting, {name: maps()}, at_random))
        except Exception as error:  # whatever a model or a method does with other weights
            if name != RANDOM_WEIGHTS:
                raise
            note = f"not compared with {RANDOM_WEIGHTS}: {one_line(error)}"
    own, at_random, controls = compare.on_host()
    return replace(
        of_examples(own, reference=at_random, seed=setting.seed),
        note=note,
        controls=compared(own, controls, setting.seed),
        values=tuple(round(value, 5) for value in own.tolist()),
    )


class _Comparison:
    """A method's gain over random rankings, (N,), and the same of the controls so far."""

    def __init__(self, setting: Setting, gain: Tensor, at_random: Tensor) -> None:
        self._setting, self._gain, self._at_random = setting, gain, at_random
        self._controls: dict[str, Tensor] = {}

    def add(self, controls: dict[str, Tensor]) -> None:
        """Compare with further controls."""
        self._controls |= controls

    def settled(self) -> str:
        """Why further controls cannot bring the method in favour; empty where they may."""
        if len(self._gain) < TOO_FEW:
            return f"{len(self._gain)} examples do not tell"
        own, _, controls = self.on_host()
        level = [each.name for each in compared(own, controls, self._setting.seed) if each.low <= 0]
        return f"{level[0]} is as good" if level else ""

    def on_host(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The method's gain, the area of random rankings and the controls' gains, on the CPU."""
        together = on_host(torch.stack([self._gain, self._at_random, *self._controls.values()]))
        return together[0], together[1], dict(zip(self._controls, together[2:], strict=True))


def _gains(setting: Setting, maps: dict[str, Tensor], at_random: Tensor) -> dict[str, Tensor]:
    return {name: _area(setting, each) - at_random for name, each in maps.items()}


def _own_maps(explanation: Explanation) -> dict[str, Callable[[], Tensor]]:
    """The controls that are made of a method's own map, the cheapest first."""
    setting, attributions = explanation.setting, explanation.attributions
    maps = {ANOTHER_EXAMPLE: partial(another_examples_map, setting, attributions)}
    if attributions.ndim > 2:
        maps[SPECTRUM] = partial(of_same_spectrum, setting, attributions)
    return {**maps, RANDOM_WEIGHTS: partial(map_at_random_weights, explanation)}


def _area(setting: Setting, attributions: Tensor) -> Tensor:
    """(N,) float64 area under the explained class's probability when the highest-ranking pixels are kept."""
    ends = setting.shared((_NAME, "ends"), lambda: _kept(setting, setting.inputs[:, :1], (0.0, 1.0)))
    fractions = setting.budget.fractions
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
    if results.settings["examples"] < TOO_FEW:
        return {}
    return {name: each for name, each in by_method(results, _NAME).items() if each.controls}


def _findings(results: Results) -> Iterator[Finding]:
    measured = compared_methods(results)
    better = [name for name, each in measured.items() if each.beats_every_control(len(measured))]
    if better:
        best = max(better, key=lambda name: measured[name].value or 0.0)
        which = f"best: {listed([best])}, " if len(better) > 1 else ""
        yield Finding(
            "good",
            f"{listed(better)} {verb('find', better)} the {results.elements} that the model uses better than every "
            f"control, maps that know nothing of it ({which}{measured[best].text()} beyond chance).",
        )
    level: dict[str, list[str]] = {}
    for name, each in measured.items():
        if name not in better:
            level.setdefault(each.strongest_control(len(measured)).name, []).append(name)
    if level:
        parts = [
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} no better than {control}"
            for control, names in level.items()
        ]
        yield Finding(
            "warning",
            f"At finding the {results.elements} that the model uses, {'; '.join(parts)}, as far as these examples "
            "tell.",
            f"Do not read single {results.elements} from such maps. Methods that multiply by the input lose here, as "
            f"removed {results.elements} take the mean of the examples: ask for diff_roar as well.",
        )


PIXEL_PERTURBATION = Figure(
    name=_NAME,
    title="{elements} beyond chance",
    better="higher is better",
    meaning="Area under {prediction} when only the {elements} of the largest attributions, by absolute value, are "
    "kept, minus the same for random rankings. Beside it stand controls, maps that know nothing of the model's "
    "reasons; a method in favour is better than each, in pairs of the same example. The other {elements} take the mean "
    "of the examples, so that a method that multiplies by the input loses where {elements} of value 0 matter.",
    measure=_measure,
    findings=_findings,
    priority=5,
    reference="area of a random ranking",
    panel=Panel(signed=True, line=(0.0, "chance")),
)
