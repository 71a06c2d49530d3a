"""What follows from an audit's figures, in words: nothing is said that a figure does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from captum_density.audit._figures import LIES, METHOD_FIGURES, MODEL_FIGURES, titled
from captum_density.audit._figures.accuracy import predicts_better_than_chance
from captum_density.audit._figures.figure import Figure
from captum_density.audit._figures.r_squared import predicts_better_than_the_mean
from captum_density.audit._figures.words import counted_examples, listed
from captum_density.audit._recommendation import recommend
from captum_density.audit._results import Finding, Results

__all__ = ["KINDS", "findings", "verdict"]

KINDS = {"good": "in favour", "warning": "against", "note": "note"}
_FEW = 30  # examples
_ENOUGH = 3  # findings in favour of the model, where no method was tested by what it finds


def findings(results: Results) -> tuple[Finding, ...]:
    """All conclusions: those about the model, about the methods, and about the audit itself."""
    figures: list[Figure[Any]] = [*MODEL_FIGURES, *sorted(METHOD_FIGURES, key=lambda figure: -figure.priority)]
    of_figures = (finding for figure in figures for finding in figure.findings(results))
    return (*_of_outputs(results), *of_figures, *_failures(results), *_of_examples(results))


def verdict(results: Results) -> str:
    """The answer in one sentence, or two where something failed."""
    rows = (results.model, *results.methods.values())
    failed = any(measured.failed for row in rows for measured in row.values())
    answer = _answer(results)
    return f"{answer} Some of it could not be measured." if failed else answer


def _answer(results: Results) -> str:
    """By what is found of the model first, then by whether a method can be relied on; then by what there is."""
    if predicts_better_than_the_mean(results) is False:
        return "No: it predicts these data no better than their mean, so that there is nothing to explain."
    if predicts_better_than_chance(results) is False:
        return "No: it predicts these data no better than chance, so that there is nothing to explain."
    lies = _counted(finding for figure in LIES for finding in figure.findings(results))["warning"]
    if lies:
        return (
            "No, not as they are: what they show is mostly what no prediction depends on, whether put there or not; "
            f"{'each finding' if lies > 1 else 'the finding'} about it names a cure."
        )
    about_model = [
        *_of_outputs(results),
        *(finding for figure in MODEL_FIGURES for finding in figure.findings(results)),
    ]
    of_model, of_all = _counted(about_model), _counted(findings(results))
    choice = recommend(results)
    if of_model["warning"]:
        return _not_without_care(of_model, "about the model ")
    if choice.measured and choice.method is None:
        return "Not without care: none of these methods shows what the model uses."
    if choice.method is not None and of_model["good"]:
        return f"As far as these checks go, yes, by {listed([choice.method])}: nothing was found against the model."
    if of_all["warning"]:
        return _not_without_care(of_all, "")
    if of_model["good"] >= _ENOUGH:
        return "As far as these checks go, yes: nothing was found against the model."
    if of_all["good"]:
        return "These figures do not tell: nothing speaks against it, but few checks could speak for it."
    return "These figures do not tell."


def _counted(conclusions: Iterable[Finding]) -> Counter[str]:
    return Counter(finding.kind for finding in conclusions)


def _not_without_care(kinds: Counter[str], about: str) -> str:
    against, both = kinds["warning"], kinds["warning"] + kinds["good"]
    if both == 1:
        return f"Not without care: the one finding {about}speaks against it."
    return f"Not without care: {against} of {both} findings {about}speak{'s' if against == 1 else ''} against it."


def _of_outputs(results: Results) -> Iterator[Finding]:
    outputs = results.settings.get("outputs", "logits")
    if outputs not in ("logits", "numbers"):
        yield Finding(
            "warning",
            f"The model's outputs look like {outputs}: figures of the density and of shifts are not of its logits.",
            "Audit the model without its last softmax.",
        )
    elif results.settings["classes"] == 1 and outputs == "logits":
        yield Finding(
            "note",
            "The model has one output, taken for the logit of the second of two classes: what a softmax ignores, and "
            "another class's map, are not measured.",
        )
    if results.settings.get("unlike_scales"):
        yield Finding(
            "note",
            "The features differ in scale, and were counted in one unit: a change that is small for one is large for "
            "another, so that sensitivity and the figures of the density say little.",
            "Leave standardize out, so that each counts in its own deviation.",
        )
    if "scales" in results.settings:
        what = "channels" if results.settings["kind"] == "signal" else "features"
        times = float(f"{results.settings['scales']:.1g}")
        yield Finding(
            "note",
            f"The {what} differ in scale, up to {times:,.0f} times: each was counted in its own deviation, from its "
            "mean, here and in what the methods explain.",
            "Do so where you explain, too: give methods standardised inputs, or baselines of means, and multiply "
            "gradients by deviations.",
        )


def _failures(results: Results) -> Iterator[Finding]:
    for name, row in {**results.methods, "the model": results.model}.items():
        failures = {figure: measured.note for figure, measured in row.items() if measured.failed}
        for note in dict.fromkeys(failures.values()):
            titles = [titled(figure, results).title for figure, text in failures.items() if text == note]
            where = "" if len(titles) == len(row) else f" at {', '.join(titles)}"
            yield Finding("note", f"{listed([name])} failed{where}: {note}")


def _of_examples(results: Results) -> Iterator[Finding]:
    examples, classes = results.settings["examples"], results.settings["classes"]
    outputs = results.settings.get("outputs", "logits")
    if results.settings.get("explained_classes") == 1 and min(classes, examples) > 1 and outputs != "numbers":
        yield Finding("note", "All examples are explained as one class.", "Audit examples of several classes.")
    left_out = results.settings.get("left_out")
    if left_out:
        yield Finding(
            "note",
            f"{listed(left_out)} were left out, as they run this large model 20 to 50 times for each example.",
            'Ask for them by name, or for everything by effort="thorough" (--thorough).',
        )
    if examples < _FEW:
        yield Finding(
            "note",
            f"{counted_examples(examples)} make{'s' if examples == 1 else ''} rough figures.",
            f"Audit {_FEW} or more before you rely on them.",
        )
