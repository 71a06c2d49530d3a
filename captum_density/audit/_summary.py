"""What follows from an audit's figures, in words: nothing is said that a figure does not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from captum_density.audit._measures import MEASURES, Measured, counted_examples

__all__ = ["Finding", "findings", "verdict"]

Figures = Mapping[str, Measured]

# 1 - cosine: 0.01 is an angle of 8 degrees. A share of the sum: the second decimal of a figure that is read.
_MOVED, _INCOMPLETE = 0.01, 0.05
# Of a map's own length, and of a map of zeros: where little of a map is left to read.
_UNSTEADY, _NO_BETTER = 0.5, 0.9
# Area under a probability: where a gain over chance is worth a word. Examples: below 10 an interval means little.
_HARDLY, _TOO_FEW, _FEW = 0.01, 10, 30
_CENTERED = ", centered"
_AT_CHANCE = "The model predicts these labels no better than chance"
_ENOUGH = 3  # findings for a yes


@dataclass(frozen=True)
class Finding:
    """One conclusion of an audit. See `audit`.

    Args:
        kind: "good", "warning", or "note" for what is neither.
        text: What the figures show.
        advice: What to do about it; empty where there is nothing to do.
    """

    kind: Literal["good", "warning", "note"]
    text: str
    advice: str = ""


def findings(
    methods: Mapping[str, Figures],
    model: Figures,
    examples: int,
    classes: int,
    *,
    outputs: str = "logits",
    explained: int | None = None,
) -> tuple[Finding, ...]:
    """All conclusions, those about the model first.

    Args:
        methods: Name of the method to name of the figure to what was measured.
        model: The same of the model itself.
        examples: How many were audited.
        classes: How many outputs the model has.
        outputs: What they look like, "logits", "probabilities" or "log-probabilities".
        explained: How many classes' outputs were explained, where it is known.
    """
    found = [
        *_outputs(outputs, classes),
        *_accuracy(model, classes),
        *_density(model),
        *_samples(model),
        *_shift(methods),
        *_pixels(methods, examples),
        *_retrained(methods),
        *_complete(methods),
        *_unsteady(methods),
        *_unfaithful(methods),
        *_failed({**methods, "the model": model}),
    ]
    if explained == 1 and min(classes, examples) > 1:
        found.append(Finding("note", "All examples are explained as one class.", "Audit examples of several classes."))
    if examples < _FEW:
        found.append(
            Finding(
                "note",
                f"{counted_examples(examples)} make{'s' if examples == 1 else ''} rough figures.",
                f"Audit {_FEW} or more before you rely on them.",
            )
        )
    return tuple(found)


def verdict(found: tuple[Finding, ...], failed: bool = False) -> str:
    """The answer in one sentence, or two where something failed."""
    answer = _answer(found)
    return f"{answer} Some of it could not be measured." if failed else answer


def _answer(found: tuple[Finding, ...]) -> str:
    against, good = (sum(finding.kind == kind for finding in found) for kind in ("warning", "good"))
    if any(finding.text.startswith(_AT_CHANCE) for finding in found):
        return "No: it predicts these data no better than chance, so that there is nothing to explain."
    if not against and not good:
        return "These figures do not tell."
    if not against and good < _ENOUGH:
        return "These figures do not tell: nothing speaks against it, but few checks could speak for it."
    if not against:
        return "As far as these checks go, yes: none of them found anything against it."
    told = sum(finding.kind != "note" for finding in found)
    if told == 1:
        return "Not without care: the one finding speaks against it."
    return f"Not without care: {against} of {told} findings speak{'s' if against == 1 else ''} against it."


def _where(methods: Mapping[str, Figures], measure: str, holds: Callable[[Measured], bool]) -> list[str]:
    named = {name: figures[measure] for name, figures in methods.items() if measure in figures}
    return [name for name, figure in named.items() if figure.value is not None and holds(figure)]


def _listed(names: list[str]) -> str:
    quoted = [f"'{name}'" if "," in name else name for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _s(names: list[str]) -> str:
    return "s" if len(names) == 1 else ""


def _span(methods: Mapping[str, Figures], names: list[str], measure: str) -> str:
    values = sorted(methods[name][measure].value or 0.0 for name in names)
    low, high = (f"{value:.2g}" for value in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _outputs(outputs: str, classes: int) -> Iterator[Finding]:
    if outputs != "logits":
        yield Finding(
            "warning",
            f"The model's outputs look like {outputs}: figures of the density and of shifts are not of its logits.",
            "Audit the model without its last softmax.",
        )
    elif classes == 1:
        yield Finding(
            "note",
            "The model has one output, whose softmax is constant: shifts and pixels are not measured.",
            "See it as two classes, by a module that returns the output beside a zero.",
        )


def _accuracy(model: Figures, classes: int) -> Iterator[Finding]:
    figure = model.get("accuracy")
    if figure is not None and figure.value is None and figure.note and not figure.failed:
        yield Finding("note", f"There is no accuracy: {figure.note}.")
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return
    chance = 1 / max(2, classes)
    if figure.high > chance and figure.value > chance and figure.low <= chance:
        yield Finding("note", f"Whether the model predicts these labels cannot be told (accuracy {figure.text()}).")
    elif figure.low <= chance:
        yield Finding(
            "warning",
            f"{_AT_CHANCE} (accuracy {figure.text()}).",
            "Check that labels and outputs have one order and inputs are preprocessed as in training, or train it: "
            "there is no knowledge of these data to explain.",
        )


def _density(model: Figures) -> Iterator[Finding]:
    ratio, trace = model.get("density_ratio"), model.get("hessian_trace")
    if ratio is None or ratio.value is None:
        return
    shown = f"log density ratio {ratio.text()}"
    if trace is not None and trace.value is not None:
        shown += f", Hessian trace {trace.text()}"
    if ratio.low is not None and ratio.low > 0:
        yield Finding(
            "warning",
            f"The density in the logits takes noise for likelier than the data ({shown}): their gradients point away "
            "from what the classes look like.",
            "Train with captum_density.losses.ScoreMatchingLoss or GradientNormLoss added to the cross-entropy.",
        )
    elif ratio.high is not None and ratio.high < 0:
        yield Finding(
            "good", f"The density in the logits takes noise for less likely than the data, as it ought to ({shown})."
        )
    else:
        yield Finding("note", f"Whether the density in the logits prefers data to noise cannot be told ({shown}).")


def _samples(model: Figures) -> Iterator[Finding]:
    figure = model.get("gan_test")
    if figure is None or figure.low is None or figure.high is None or figure.reference is None:
        return
    shown = f"what climbing the model's logits makes (GAN-test {figure.text()}; on data {figure.reference:.2g})."
    if figure.high < figure.reference / 2:
        yield Finding(
            "warning",
            f"Another classifier hardly recognises {shown}",
            "Train with captum_density.losses.ScoreMatchingLoss added to the cross-entropy.",
        )
    elif figure.low > figure.reference / 2:
        yield Finding("good", f"Another classifier recognises {shown}")
    else:
        yield Finding("note", f"It cannot be told whether another classifier recognises {shown}")


def _shift(methods: Mapping[str, Figures]) -> Iterator[Finding]:
    moved = _where(methods, "shift_sensitivity", lambda figure: (figure.value or 0.0) > _MOVED)
    still = _where(methods, "shift_sensitivity", lambda figure: (figure.value or 0.0) < 1e-6)
    if moved:
        cured = [name.removesuffix(_CENTERED) for name in still if name.endswith(_CENTERED)]
        seen = f" ({_listed([f'{name}{_CENTERED}' for name in cured])}: no change here)" if cured else ""
        yield Finding(
            "warning",
            f"A term added to all logits changes no prediction, and moves the maps of {_listed(moved)} (1 - cosine "
            f"{_span(methods, moved, 'shift_sensitivity')}): of these, what speaks for a class cannot be told from "
            "what is added to all.",
            "Attribute centred logits: give the method `captum_density.softmax_shift.CenteredLogits(model)` in "
            f"place of the model{seen}.",
        )
    elif still:
        yield Finding("good", f"What is added to all logits does not move {_listed(still)}.")


def _pixels(methods: Mapping[str, Figures], examples: int) -> Iterator[Finding]:
    measure = "pixel_perturbation"
    if examples < _TOO_FEW:
        return
    better = _where(methods, measure, lambda figure: figure.low is not None and figure.low > _HARDLY)
    worse = _where(methods, measure, lambda figure: figure.high is not None and figure.high < 0)
    level = [
        name for name in _where(methods, measure, lambda figure: figure.low is not None) if name not in better + worse
    ]
    if better:
        best = max(better, key=lambda name: methods[name][measure].value or 0.0)
        which = f"best: {_listed([best])}, " if len(better) > 1 else ""
        yield Finding(
            "good",
            f"{_listed(better)} rank{_s(better)} pixels better than chance ({which}{methods[best][measure].text()}).",
        )
    if level:
        yield Finding(
            "warning",
            f"{_listed(level)} rank{_s(level)} pixels hardly better than chance, if at all, as far as these examples "
            "tell.",
            "Do not read single pixels from such maps; audit more examples, or train with a gradient-norm or "
            "score-matching loss. Methods that multiply by the input lose here, as removed pixels take the mean of the "
            "examples: ask for diff_roar as well.",
        )
    if worse:
        yield Finding(
            "warning",
            f"{_listed(worse)} rank{_s(worse)} pixels worse than chance.",
            "Do not read these maps as what matters.",
        )


def _retrained(methods: Mapping[str, Figures]) -> Iterator[Finding]:
    high = _where(methods, "diff_roar", lambda figure: figure.low is not None and figure.low > 0)
    low = _where(methods, "diff_roar", lambda figure: figure.high is not None and figure.high < 0)
    if high:
        yield Finding(
            "good", f"Retrained models predict better from what {_listed(high)} rank{_s(high)} high than what low."
        )
    if low:
        yield Finding(
            "warning",
            f"Retrained models predict worse from what {_listed(low)} rank{_s(low)} high than what low.",
            "Train the model robustly, as captum_density.retraining.adversarial_fit does, and ask again.",
        )


def _complete(methods: Mapping[str, Figures]) -> Iterator[Finding]:
    missing = _where(methods, "completeness_gap", lambda figure: (figure.value or 0.0) > _INCOMPLETE)
    gaps = [figures["completeness_gap"] for figures in methods.values() if "completeness_gap" in figures]
    whole = _where(methods, "completeness_gap", lambda figure: (figure.value or 0.0) <= _INCOMPLETE)
    if missing:
        yield Finding(
            "warning",
            f"{_listed(missing)} miss{'es' if len(missing) == 1 else ''} part of what the attributions ought to sum "
            f"to (gap {_span(methods, missing, 'completeness_gap')}).",
            "Give integrated gradients more n_steps, or use FullGrad(complete=True), which is exact for any model.",
        )
    if whole:
        yield Finding(
            "good",
            f"{_listed(whole)} account{_s(whole)} for what is explained (gap "
            f"{_span(methods, whole, 'completeness_gap')}).",
        )
    elif not missing and gaps and not any(figure.failed for figure in gaps):
        yield Finding(
            "note",
            "None of the methods promises a sum.",
            "captum_density.attr.FullGrad(complete=True) sums to the output.",
        )


def _unsteady(methods: Mapping[str, Figures]) -> Iterator[Finding]:
    names = _where(methods, "sensitivity_max", lambda figure: (figure.value or 0.0) > _UNSTEADY)
    if names:
        yield Finding(
            "warning",
            f"A change of the input too small to matter moves the maps of {_listed(names)} by "
            f"{_span(methods, names, 'sensitivity_max')} of their length.",
            "Average over noise (Captum's NoiseTunnel, SmoothFullGrad), or train with "
            "captum_density.losses.GradientNormLoss.",
        )


def _unfaithful(methods: Mapping[str, Figures]) -> Iterator[Finding]:
    names = _where(methods, "infidelity", lambda figure: bool(figure.reference) and _share(figure) >= _NO_BETTER)
    others = _where(methods, "infidelity", lambda figure: bool(figure.reference) and _share(figure) < _NO_BETTER)
    if names:
        best = min(others, key=lambda name: _share(methods[name]["infidelity"]), default="")
        yield Finding(
            "warning",
            f"{_listed(names)} foretell{_s(names)} what erasing part of the input does hardly better than a map of "
            "zeros.",
            f"For such questions, {_listed([best])} does best here." if best else "",
        )


def _share(figure: Measured) -> float:
    """Of a map of zeros, whose own infidelity is another for logits than for a view of them."""
    return (figure.value or 0.0) / (figure.reference or 1.0)


def _failed(rows: Mapping[str, Figures]) -> Iterator[Finding]:
    for name, figures in rows.items():
        failures = {measure: figure.note for measure, figure in figures.items() if figure.failed}
        notes = list(dict.fromkeys(failures.values()))
        for note in notes:
            at = [MEASURES[measure].title for measure, text in failures.items() if text == note]
            what = "" if len(at) == len(figures) else f" at {', '.join(at)}"
            yield Finding("note", f"{name} failed{what}: {note}")
