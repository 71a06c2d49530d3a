"""What an audit measured, as tables, findings, pictures and pages are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from captum_density.audit._maps import Maps

__all__ = ["Finding", "Measured", "Results", "by_method", "intervals_by_method", "values_by_method"]


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
    """

    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    note: str = ""
    failed: bool = False

    def text(self) -> str:
        """Write the figure as it stands in a table.

        Returns:
            The value with its interval, else its spread; "-" for none, "failed" for an error.
        """
        if self.value is None:
            return "failed" if self.failed else "-"
        if self.low is not None and self.high is not None:
            return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"
        # What is nothing but rounding has nothing to compare in it.
        if 0 < abs(self.value) < 1e-6:
            return "<1e-6"
        return _short(self.value) + (f" ± {_short(self.spread)}" if self.spread else "")


def _short(value: float) -> str:
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
    """

    methods: Mapping[str, Mapping[str, Measured]]
    model: Mapping[str, Measured]
    settings: Mapping[str, Any]
    skipped: tuple[str, ...] = ()
    shown: Maps | None = field(default=None, repr=False)


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
