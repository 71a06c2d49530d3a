"""Which of the audited methods to use on this model and these data: one of them, or none."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from captum_density._display.intervals import Bootstrap, interval
from captum_density.audit._figures.pixel_perturbation import PIXEL_PERTURBATION, TOO_FEW, compared_methods
from captum_density.audit._figures.randomisation import unchanged_by_random_weights
from captum_density.audit._figures.shift_sensitivity import moved_by_a_shift
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._methods import CENTERED
from captum_density.audit._results import Control, Measured, Results, number

__all__ = ["Recommendation", "recommend"]

_RESAMPLES = 2000
_LIMITS = (
    "This cannot tell whether the maps' signs and sizes are right, nor how it is on other data; and removed {elements} "
    "take the mean of the examples, which is hard on methods that multiply by the input."
)


@dataclass(frozen=True)
class Recommendation:
    """Which of the audited methods to use. See `audit`, and `AuditReport.recommendation`.

    Args:
        method: Its name; None for none of these, and where nothing tells.
        answer: The same as a sentence.
        reasons: Why, how sure that is, what to do as well, and what it cannot tell, a sentence or two each.
        candidates: The methods that beat every control, the best first.
        measured: Whether the methods were measured by what it takes; if not, `method` is None for that reason.
    """

    method: str | None
    answer: str
    reasons: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    measured: bool = True

    def __str__(self) -> str:
        return " ".join((self.answer, *self.reasons))


def recommend(results: Results) -> Recommendation:
    """The method that finds best what the model uses, among those that beat every control. See `AuditReport`."""
    measured = compared_methods(results)
    if not measured:
        return Recommendation(
            None,
            "These figures do not tell which method to use.",
            (f"That takes the metric {PIXEL_PERTURBATION.name}, and {TOO_FEW} examples or more.",),
            measured=False,
        )
    unchanged = unchanged_by_random_weights(results)
    able = [name for name, each in measured.items() if each.beats_every_control(len(measured))]
    candidates = sorted((name for name in able if name not in unchanged), key=lambda name: -_value(measured[name]))
    limits = _LIMITS.format(elements=results.elements)
    if not candidates:
        return Recommendation(None, _none(measured), (*_why_none(measured, able), limits))
    best = candidates[0]
    reasons = (_why(results, measured, best), *_how_sure(results, measured, candidates), *_cure(results, best), limits)
    return Recommendation(best, f"Use {listed([best])}.", reasons, tuple(candidates))


def _value(measured: Measured) -> float:
    return measured.value or 0.0


def _why(results: Results, measured: dict[str, Measured], best: str) -> str:
    strongest = measured[best].strongest_control(len(measured))
    kept = "the prediction" if results.settings.get("task") == "regression" else "the class's probability"
    among = f"Of {len(measured)} methods it" if len(measured) > 1 else "It"
    return (
        f"{among} finds best what the model uses: kept alone, the {results.elements} that it ranks highest leave more "
        f"of {kept} than random ones, by {measured[best].text()}, which is {_gain(strongest)}, the strongest of "
        f"{len(measured[best].controls)} controls, maps that know nothing of the model."
    )


def _gain(control: Control) -> str:
    return f"{number(control.gain)} [{number(control.low)}, {number(control.high)}] beyond {control.name}"


def _how_sure(results: Results, measured: dict[str, Measured], candidates: list[str]) -> list[str]:
    """How often the best one is so when examples are drawn again, and which ones cannot be told from it."""
    if len(candidates) < 2:
        return ["No other method beats every control."] if len(measured) > 1 else []
    rows = [measured[name].values for name in candidates]
    if not all(rows):
        return []
    values = torch.tensor(rows, dtype=torch.float64, device="cpu")
    means = Bootstrap(1, values.shape[1], _RESAMPLES, results.settings["seed"]).means(values[:, None])
    share = (means.argmax(dim=0) == 0).double().mean().item()
    alike = [name for name, row in zip(candidates[1:], values[1:], strict=True) if torch.equal(row, values[0])]
    ends = interval(means[:1] - means[1:], 0.95)
    close = [
        name for name, (low, _) in zip(candidates[1:], ends.tolist(), strict=True) if low <= 0 and name not in alike
    ]
    also = f"; {listed(alike)} {verb('find', alike)} the same here" if alike else ""
    also += f"; {listed(close)} cannot be told from it by these examples" if close else ""
    return [f"It stays the best in {share:.0%} of resamples of the examples{also}."]


def _cure(results: Results, best: str) -> list[str]:
    if best not in moved_by_a_shift(results):
        return []
    twin = f"{best}{CENTERED}"
    here = f" ({listed([twin])} here)" if twin in results.methods else ""
    return [
        "What is added to all logits moves its map: give it `captum_density.softmax_shift.CenteredLogits(model)` in "
        f"place of the model{here}."
    ]


def _none(measured: dict[str, Measured]) -> str:
    return "Use none of these." if len(measured) > 1 else f"Do not use {listed([*measured])}."


def _why_none(measured: dict[str, Measured], able: list[str]) -> list[str]:
    if able:
        return [f"{listed(able)} {verb('show', able)} much the same when the model's weights are random."]
    closest = max(measured, key=lambda name: measured[name].strongest_control(len(measured)).gain)
    gain = _gain(measured[closest].strongest_control(len(measured)))
    if len(measured) == 1:
        return [f"It finds what the model uses no better than a control, a map that knows nothing of it: {gain}."]
    return [
        "None finds what the model uses better than every control, maps that know nothing of it. The closest, "
        f"{listed([closest])}, has {gain}; the best of {len(measured)} methods needs more than that."
    ]
