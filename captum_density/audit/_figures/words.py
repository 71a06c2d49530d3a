"""Names, verbs and numbers as findings say them."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from captum_density.audit._controls import TOO_FEW
from captum_density.audit._results import Finding, Measured, Results, by_method, number

__all__ = [
    "beside_controls",
    "compared_by",
    "cost_in_words",
    "counted_examples",
    "judged",
    "level_in_words",
    "listed",
    "span",
    "verb",
]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, those with a comma quoted: "IG, Saliency and 'FullGrad, complete'"."""
    quoted = [f"'{name}'" if "," in name else name for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def verb(infinitive: str, names: Collection[str]) -> str:
    """What one or several do: "ranks" or "rank"."""
    ending = "es" if infinitive.endswith("s") else "s"
    return infinitive + (ending if len(names) == 1 else "")


def span(values: Iterable[float]) -> str:
    """The smallest and the largest value, or what both round to."""
    ordered = sorted(values)
    low, high = f"{ordered[0]:.2g}", f"{ordered[-1]:.2g}"
    return low if low == high else f"{low} to {high}"


def counted_examples(n: int) -> str:
    """So many examples, in words."""
    return f"{n} example{'' if n == 1 else 's'}"


def cost_in_words(results: Results) -> str:
    """What the figures cost, beside the least."""
    cost = results.cost
    return (
        f"The model ran forward on {cost['forward_examples']:,} examples and backward on "
        f"{cost['backward_examples']:,}, copies included, of which {cost['different_forward_examples']:,} and "
        f"{cost['different_backward_examples']:,} were different, the least for these figures."
    )


def beside_controls(measured: Measured, methods: int) -> str:
    """How a figure stands beside its controls: "no better than a blob in the centre".

    Args:
        measured: The figure.
        methods: Among how many the best is looked for.
    """
    if not measured.controls:
        return "no controls"
    level = measured.strongest_control(methods)
    gain = f"{number(level.gain)} [{number(level.low)}, {number(level.high)}]"
    if measured.beats_every_control(methods):
        return f"beats every control: {gain} better than {level.name}"
    if level.low > 0 and level.gain < measured.least_gain:
        return f"better than {level.name} by next to nothing: {gain}, where {number(measured.least_gain)} would count"
    if level.low > 0:
        return f"not surely better than {level.name}: {gain}, where the best of {methods} is looked for"
    return f"{'worse' if level.high < 0 else 'no better'} than {level.name}: {gain}"


def compared_by(results: Results, figure: str) -> dict[str, Measured]:
    """The methods whose figure stands beside controls; none where there are too few examples for a word."""
    if results.settings["examples"] < TOO_FEW:
        return {}
    return {name: each for name, each in by_method(results, figure).items() if each.controls}


def level_in_words(level: Mapping[str, Measured], methods: int) -> str:
    """Which methods no better than which control are: "A and B are no better than a constant map; C is ...".

    Args:
        level: The methods, at least one.
        methods: Among how many the best is looked for.
    """
    by_control: dict[str, list[str]] = {}
    for name, each in level.items():
        by_control.setdefault(each.strongest_control(methods).name, []).append(name)
    return "; ".join(
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} no better than {control}"
        for control, names in by_control.items()
    )


def judged(
    figure: Measured,
    threshold: float,
    *,
    above: tuple[str, str],
    unclear: str,
    below: str,
    certain: float | None = None,
) -> Finding:
    """What follows from a figure of which less is better.

    Args:
        figure: With a value.
        threshold: Below it, nothing speaks against the model.
        above: What to say and to advise where the figure is above what is certain.
        unclear: What to say between.
        below: What to say below the threshold.
        certain: From where on it speaks against the model; None for the threshold.
    """
    assert figure.value is not None
    low, high = figure.low, figure.high
    if (figure.value if low is None else low) > (threshold if certain is None else certain):
        return Finding("warning", *above)
    return Finding("good", below) if (figure.value if high is None else high) < threshold else Finding("note", unclear)
