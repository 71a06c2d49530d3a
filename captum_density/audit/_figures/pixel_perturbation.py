"""Whether a ranking of pixels keeps what the model predicts by, better than chance does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from captum_density import metrics
from captum_density._model.generators import derived_seed
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._results import Finding, Measured, Results, by_method, intervals_by_method, values_by_method
from captum_density.audit._setting import Setting

__all__ = ["PIXEL_PERTURBATION"]

_NAME = "pixel_perturbation"
_RANDOM_RANKINGS = 5
# Area under a probability: where a gain over chance is worth a word.
_HARDLY = 0.01
_TOO_FEW = 10  # examples: below, an interval means little


def _measure(explanation: Explanation) -> Measured:
    setting = explanation.setting
    if setting.classes == 1:
        return Measured(None, note="one output has no softmax")
    if len(setting.inputs) == 1:
        return Measured(None, note="one example is its own mean, which removed pixels take")
    at_random = setting.shared(_NAME, lambda: _random_area(setting))
    gain = _area(setting, explanation.attributions) - at_random
    return of_examples(gain, reference=at_random, seed=setting.seed)


def _area(setting: Setting, ranking: Tensor) -> Tensor:
    """(N,) float64 area under the explained class's probability when the highest-ranking pixels are kept."""
    fill = setting.inputs.mean(dim=0, keepdim=True)
    areas = [
        metrics.pixel_perturbation(
            setting.model,
            setting.inputs[at],
            ranking[at],
            fill,
            target=setting.target[at],
            channels="together" if setting.has_channels else "singly",
            max_examples_per_batch=setting.batch,
        ).area
        for at in setting.chunks()
    ]
    return torch.cat(areas).double()


def _random_area(setting: Setting) -> Tensor:
    """(N,) the mean of that area over random rankings."""
    x = setting.inputs
    shape = (len(x), 1, *x.shape[2:]) if setting.has_channels else x.shape
    generator = torch.Generator().manual_seed(derived_seed(setting.seed, "random rankings"))
    areas = [
        _area(setting, torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").to(x))
        for _ in range(_RANDOM_RANKINGS)
    ]
    return torch.stack(areas).mean(dim=0)


def _findings(results: Results) -> Iterator[Finding]:
    if results.settings["examples"] < _TOO_FEW:
        return
    measured, intervals = by_method(results, _NAME), intervals_by_method(results, _NAME)
    better = [name for name, (low, _) in intervals.items() if low > _HARDLY]
    worse = [name for name, (_, high) in intervals.items() if high < 0]
    level = [name for name in intervals if name not in better + worse]
    if better:
        best = max(better, key=values_by_method(results, _NAME).__getitem__)
        which = f"best: {listed([best])}, " if len(better) > 1 else ""
        yield Finding(
            "good",
            f"{listed(better)} {verb('rank', better)} pixels better than chance ({which}{measured[best].text()}).",
        )
    if level:
        yield Finding(
            "warning",
            f"{listed(level)} {verb('rank', level)} pixels hardly better than chance, if at all, as far as these "
            "examples tell.",
            "Do not read single pixels from such maps; audit more examples, or train with a gradient-norm or "
            "score-matching loss. Methods that multiply by the input lose here, as removed pixels take the mean of the "
            "examples: ask for diff_roar as well.",
        )
    if worse:
        yield Finding(
            "warning",
            f"{listed(worse)} {verb('rank', worse)} pixels worse than chance.",
            "Do not read these maps as what matters.",
        )


PIXEL_PERTURBATION = Figure(
    name=_NAME,
    title="pixels beyond chance",
    better="higher is better",
    meaning="Area under the explained class's probability when only the pixels of the largest attributions, by "
    "absolute value, are kept, minus the same for random rankings; with 0 in the interval, the ranking is no better "
    "than chance. The other pixels take the mean of the examples, so that a method that multiplies by the input loses "
    "where pixels of value 0 matter.",
    measure=_measure,
    findings=_findings,
    priority=5,
    reference="area of a random ranking",
    panel=Panel(signed=True, line=(0.0, "chance")),
)
