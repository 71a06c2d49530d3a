"""What an audit measured, as tables, findings, pictures and pages are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from captum_density._controls.comparison import widened
from captum_density.audit._maps import Maps
from captum_density.audit._subject import ELEMENTS

__all__ = [
    "Control",
    "Finding",
    "Measured",
    "Results",
    "as_json",
    "by_method",
    "from_json",
    "has_controls",
    "intervals_by_method",
    "number",
    "values_by_method",
]


@dataclass(frozen=True)
class Control:
    """A map that knows nothing of the model's reasons, measured in a method's place. See `audit`.

    Args:
        name: As it ends a sentence: "a blob in the centre".
        value: Its figure.
        gain: By how much the method's figure is better, mean over examples; below 0, it is worse.
        low: Lower end of the 95% confidence interval of the gain, in pairs of the same example.
        high: Its upper end.
    """

    name: str
    value: float
    gain: float
    low: float
    high: float

    def text(self) -> str:
        """Write the control as it stands in a table.

        Returns:
            Its name and figure.
        """
        return f"{self.name}, {number(self.value)}"

    def lower_end(self, methods: int) -> float:
        """The gain's lower end where the best of several methods is looked for.

        Args:
            methods: How many; the level is C. E. Bonferroni's (1936), 1 - 0.05 / methods. The interval of 95% is
                widened as that of a normal distribution is.

        Returns:
            A number below `low`, or `low` of one method.
        """
        return widened(self.gain, self.low, methods)


@dataclass(frozen=True)
class Measured:
    """One figure as it was found. See `audit`.

    Args:
        value: The figure, a mean over examples unless its meaning says otherwise; None where there is none.
        spread: Standard deviation over the examples; of seconds, over repeated calls.
        low: Lower end of a 95% confidence interval of the value, where there is one.
        high: Its upper end.
        reference: What to compare the value with, where the figure names such a thing.
        note: Why there is no value, or what to know about it.
        failed: Whether measuring it failed; `note` then says how.
        controls: Maps that know nothing in the method's place, the strongest first, where the figure has such.
        values: The figure of each example, where methods are compared in pairs.
        least_gain: From which gain over a control on the method counts as better, however narrow the interval.
    """

    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    note: str = ""
    failed: bool = False
    controls: tuple[Control, ...] = ()
    values: tuple[float, ...] = ()
    least_gain: float = 0.0

    def beats_every_control(self, methods: int = 1) -> bool:
        """Whether the method is better than each control, so than the strongest.

        Each is tested at the level of all: that every one of several hypotheses is false needs no correction (the
        intersection-union test: R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling",
        Technometrics 24, 1982).

        Args:
            methods: Among how many methods this one was picked; see `Control.lower_end`.

        Returns:
            False as well where there are no controls.
        """
        return bool(self.controls) and all(self._beats(control, methods) for control in self.controls)

    def _beats(self, control: Control, methods: int) -> bool:
        return control.lower_end(methods) > 0 and control.gain >= self.least_gain

    def strongest_control(self, methods: int = 1) -> Control:
        """The control of the best figure, among those that the method does not beat where there are such.

        Args:
            methods: As `beats_every_control`'s.

        Returns:
            A `Control`.

        Raises:
            ValueError: There are no controls.
        """
        if not self.controls:
            raise ValueError("this figure has no controls; those of audit's pixel_perturbation and infidelity have")
        return next((each for each in self.controls if not self._beats(each, methods)), self.controls[0])

    def text(self) -> str:
        """Write the figure as it stands in a table.

        Returns:
            The value with its interval, else its spread; "-" for none, "failed" for an error.
        """
        if self.value is None:
            return "failed" if self.failed else "-"
        ends = () if self.low is None or self.high is None else (self.low, self.high)
        # What is nothing but rounding has nothing to compare in it.
        if 0 < abs(self.value) < 1e-6 and all(abs(end) < 1e-6 for end in ends):
            return "<1e-6"
        if ends:
            return f"{number(self.value)} [{', '.join(map(number, ends))}]"
        return number(self.value) + (f" ± {number(self.spread)}" if self.spread else "")


def as_json(measured: Measured) -> dict[str, Any]:
    """What `json` can write, without the lists that a figure does not have; `from_json` reads it."""
    content = asdict(measured)
    for name in ("controls", "values"):
        content[name] = list(content[name])
        if not content[name]:
            del content[name]
    if not content["least_gain"]:
        del content["least_gain"]
    return content


def from_json(content: Mapping[str, Any]) -> Measured:
    """A figure of what `as_json` returned, in this version or an earlier one, which knew no controls.

    Raises:
        TypeError: It is none.
    """
    given = dict(content)
    controls = tuple(Control(**each) for each in given.pop("controls", ()))
    values = tuple(given.pop("values", ()))
    measured = Measured(**given, controls=controls, values=values)
    numbers = [
        measured.value,
        measured.spread,
        measured.low,
        measured.high,
        measured.reference,
        *measured.values,
        measured.least_gain,
    ]
    numbers += [number for each in controls for number in (each.value, each.gain, each.low, each.high)]
    texts = [measured.note, *(each.name for each in controls)]
    are_numbers = all(number is None or type(number) in (int, float) for number in numbers)
    if not are_numbers or any(type(text) is not str for text in texts) or type(measured.failed) is not bool:
        raise TypeError("a figure is of numbers, a note and whether it failed")
    return measured


def number(value: float | None) -> str:
    """A number as it stands in a table; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.1e}"


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


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Args:
        methods: Name of the method to name of the figure to what was measured.
        model: The same of the model itself.
        settings: What was audited, and how: model, examples, seed, noise.
        skipped: A line for each example that could not be read.
        shown: What is drawn of images and attributions.
        cost: How many examples the model was run on, copies included, in this run of the audit: "forward_examples" and
            "backward_examples", and "different_" followed by each, without what was run before on the same values, the
            least for these figures. Empty where it cannot be counted. Two reports with the same figures are equal
            whatever they cost.
    """

    methods: Mapping[str, Mapping[str, Measured]]
    model: Mapping[str, Measured]
    settings: Mapping[str, Any]
    skipped: tuple[str, ...] = ()
    shown: Maps | None = field(default=None, repr=False)
    cost: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def elements(self) -> str:
        """What an input consists of, in words."""
        kind = self.settings.get("kind", "image" if len(self.settings["shape"]) == 3 else "table")
        return ELEMENTS.get(kind, "features")

    @property
    def prediction(self) -> str:
        """What is kept of a prediction where parts of the input are removed, in words."""
        if self.settings.get("task") != "regression":
            return "the explained class's probability"
        moved = "how many deviations of the outputs the output has moved from that of the whole input"
        return f"exp(-d^2 / 2), d being {moved},"


def has_controls(results: Results, figure: str) -> bool:
    """Whether a figure of a method stands beside controls."""
    return any(figure in row and row[figure].controls for row in results.methods.values())


def by_method(results: Results, figure: str) -> dict[str, Measured]:
    """A figure of the methods that have a value of it, by the method's name."""
    rows = {name: row[figure] for name, row in results.methods.items() if figure in row}
    return {name: measured for name, measured in rows.items() if measured.value is not None}


def values_by_method(results: Results, figure: str) -> dict[str, float]:
    """The values alone."""
    measured = by_method(results, figure)
    return {name: each.value for name, each in measured.items() if each.value is not None}


def intervals_by_method(results: Results, figure: str) -> dict[str, tuple[float, float]]:
    """Both ends of the figure's interval, of the methods that have one."""
    measured = by_method(results, figure)
    return {
        name: (each.low, each.high) for name, each in measured.items() if each.low is not None and each.high is not None
    }
