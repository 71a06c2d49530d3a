"""The questions that an audit asks, each with its answer and the figures that give it; and what no figure answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from captum_density.audit._figures import FIGURES, LIES, titled
from captum_density.audit._figures.accuracy import predicts_better_than_chance
from captum_density.audit._figures.pixel_perturbation import PIXEL_PERTURBATION, TOO_FEW, compared_methods
from captum_density.audit._figures.r_squared import predicts_better_than_the_mean
from captum_density.audit._figures.randomisation import RANDOMISATION, UNCHANGED, unchanged_by_random_weights
from captum_density.audit._figures.words import counted_examples, listed, span
from captum_density.audit._findings import findings
from captum_density.audit._results import Finding, Measured, Results, by_method, intervals_by_method, number

__all__ = ["Answer", "answers", "unanswered"]

_FAULTS = (
    "A shortcut, such as a watermark that gives labels away: gradients show it as what the model uses, which it is. "
    "Look for it in the maps, and on data without it.",
    "Labels learned by heart: audit data that the model was not trained on, and look at its accuracy.",
    "A gradient laid over the model's own that is a third as long or shorter, or that is another picture for every "
    "example: figures find what gradients share, from about their own length on.",
)


@dataclass(frozen=True)
class Answer:
    """What an audit says to one of its questions.

    Args:
        question: As people ask it.
        text: The answer in a sentence; empty where the findings are all there is.
        findings: What follows from the question's figures.
        figures: Their names, measured or not.
    """

    question: str
    text: str
    findings: tuple[Finding, ...]
    figures: tuple[str, ...] = ()


def answers(results: Results) -> Iterator[Answer]:
    """The answer to each question of which a figure was asked for; last, what is to be said of the audit itself."""
    left = list(findings(results))
    for question in _QUESTIONS:
        names = tuple(name for name in question.figures if name in results.model or _rows(results, name))
        about = tuple(finding for name in names for finding in FIGURES[name].findings(results))
        left = [finding for finding in left if finding not in about]
        text = question.answer(results) if names else ""
        if not text and not about:
            text = _measured(results, names)
        if text or about:
            yield Answer(question.text, text, about, names)
    if left:
        yield Answer("What is there to know of this audit?", "", tuple(left))


def unanswered(results: Results) -> list[str]:
    """Figures without a value, and why; then faults that no figure finds."""
    lines: dict[str, None] = {}
    for row in (results.model, *results.methods.values()):
        for name, measured in row.items():
            if measured.value is None and measured.note and not measured.failed:
                somewhere = by_method(results, name)
                lines[f"{titled(name, results).title}{' of some methods' if somewhere else ''}: {measured.note}."] = (
                    None
                )
    return [_begun(line) for line in lines] + (list(_FAULTS) if results.model or lines else [])


def _rows(results: Results, name: str) -> list[Measured]:
    return [row[name] for row in results.methods.values() if name in row]


def _measured(results: Results, names: Sequence[str]) -> str:
    """Where nothing follows from figures, what they are."""
    texts = []
    for name in names:
        values = [measured.value for measured in by_method(results, name).values() if measured.value is not None]
        if values:
            texts.append(f"{titled(name, results).title} {span(values)}")
        elif name in results.model and results.model[name].value is not None:
            texts.append(f"{titled(name, results).title} {results.model[name].text()}")
    return f"{_begun('; '.join(texts))}." if texts else ""


def _begun(sentence: str) -> str:
    return f"{sentence[0].upper()}{sentence[1:]}"


def _cannot_tell(results: Results) -> str:
    return f"Cannot be told from {counted_examples(results.settings['examples'])}."


def _without_value(figures: Collection[Measured]) -> str:
    """Why figures have no value; empty where there are none."""
    notes = list(dict.fromkeys(each.note for each in figures if each.note and not each.failed))
    if notes:
        return f"Not measured: {'; '.join(notes)}."
    return "It could not be measured." if figures else ""


def _knows(results: Results) -> str:
    for name in ("accuracy", "r_squared"):
        figure = results.model.get(name)
        if figure is None:
            continue
        if figure.value is None:
            return _without_value([figure])
        if name == "accuracy":
            chance = number(1 / max(2, results.settings["classes"]))
            knows, beside = predicts_better_than_chance(results), f"where chance is {chance}"
        else:
            knows, beside = predicts_better_than_the_mean(results), "where the labels' mean has 0"
        if knows:
            return f"Yes: {titled(name, results).title} {figure.text()}, {beside}."
        return "No." if knows is False else _cannot_tell(results)
    return ""


def _is_common(results: Results) -> str:
    return _of_the_model(results, "common_gradient", warning="Yes, mostly.", good="No, little of it.")


def _was_made_to_lie(results: Results) -> str:
    """All three lies count: what is common to all outputs may have been put there as well."""
    figures = {figure.name: results.model[figure.name] for figure in LIES if figure.name in results.model}
    kinds = [finding.kind for name in figures for finding in FIGURES[name].findings(results)]
    if "warning" in kinds:
        return "There are signs of it."
    if "good" not in kinds:
        return _cannot_tell(results) if any(each.value is not None for each in figures.values()) else ""
    return "No sign of it." if kinds.count("good") == len(figures) else "No sign of it in what could be measured."


def _depend(results: Results) -> str:
    """By the interval of the likeness: changed, much the same, or neither for sure."""
    name = RANDOMISATION.name
    values, intervals = by_method(results, name), intervals_by_method(results, name)
    if not values:
        return _without_value(_rows(results, name))
    same = unchanged_by_random_weights(results)
    other = [method for method, (_, high) in intervals.items() if high < UNCHANGED]
    unclear = [method for method in values if method not in same and method not in other]
    likeness = span(values[method].value or 0.0 for method in other) if other else ""
    random = f"when the model's weights are random (rank correlation {likeness}, where 1 is the same map)"
    if len(other) == len(values):
        return f"Yes: {'the map comes' if len(values) == 1 else 'all maps come'} out otherwise {random}."
    if len(same) == len(values):
        return "No."
    if len(unclear) == len(values):
        return _cannot_tell(results)
    some = f"Those of {len(other)} of {len(values)} methods do: they come out otherwise {random}"
    some = some if other else f"Those of {len(same)} of {len(values)} methods do not"
    return some + (f"; of {listed(unclear)} it cannot be told." if unclear else ".")


def _find(results: Results) -> str:
    name = PIXEL_PERTURBATION.name
    measured = compared_methods(results)
    n = len(measured)
    better = sum(each.beats_every_control(n) for each in measured.values())
    if measured:
        if n == 1:
            return "Yes." if better else "No better than maps that know nothing of the model."
        if not better:
            return f"No: none of {n} methods does better than maps that know nothing of the model."
        return f"Yes, by {better if better < n else 'all'} of {n} methods."
    values = by_method(results, name)
    if values and results.settings["examples"] < TOO_FEW:
        return f"{_cannot_tell(results)[:-1]}: it takes {TOO_FEW}."
    return "" if values else _without_value(_rows(results, name))


def _fits(results: Results) -> str:
    return _of_the_model(results, "density_ratio", warning="No.", good="Yes.")


def _of_the_model(results: Results, name: str, *, warning: str, good: str) -> str:
    """An answer by what follows from a figure of the model."""
    figure = results.model.get(name)
    if figure is None:
        return ""
    if figure.value is None:
        return _without_value([figure])
    kinds = {finding.kind for finding in FIGURES[name].findings(results)}
    return warning if "warning" in kinds else good if "good" in kinds else _cannot_tell(results)


@dataclass(frozen=True)
class _Question:
    text: str
    figures: tuple[str, ...]
    answer: Callable[[Results], str] = lambda _: ""


_QUESTIONS = (
    _Question("Does the model know these data?", ("accuracy", "r_squared"), _knows),
    _Question("Is its gradient mostly common to all outputs?", ("common_gradient", "shift_sensitivity"), _is_common),
    _Question("Were its gradients made to lie?", ("off_manifold_gradient", "finite_difference_gap"), _was_made_to_lie),
    _Question("Do the maps depend on the model?", ("randomisation", "class_likeness"), _depend),
    _Question("Do the maps find what the model uses?", ("pixel_perturbation", "infidelity", "diff_roar"), _find),
    _Question(
        "Does the model's density fit the data?", ("density_ratio", "hessian_trace", "gradient_norm", "gan_test"), _fits
    ),
    _Question("What else is there to know of the methods?", ("completeness_gap", "sensitivity_max", "seconds")),
)
