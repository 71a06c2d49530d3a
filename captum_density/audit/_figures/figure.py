"""What a figure of an audit is: how it is measured, told, drawn and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from captum_density._display.intervals import mean_interval
from captum_density._model.refusals import on_host
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting, Task

__all__ = ["Figure", "Panel", "measured_share", "of_examples"]

_Z = NormalDist().inv_cdf(0.975)
Subject = TypeVar("Subject")


def of_examples(values: Tensor, *, reference: Tensor | None = None, seed: int | None = None) -> Measured:
    """Mean and standard deviation of a figure over examples; with a seed, a bootstrap interval of the mean as well.

    Args:
        values: (N,).
        reference: (N,), whose mean is that of `Measured`.
        seed: Of the bootstrap.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    both = [values] if reference is None else [values, reference]
    x, *references = on_host(torch.stack([each.detach().double() for each in both]))
    if not x.isfinite().all():
        raise ValueError("the figure is NaN or infinite")
    mean, spread = x.mean().item(), x.std().item() if len(x) > 1 else None
    low, high = (None, None) if seed is None or len(x) < 2 else mean_interval(x, seed)
    return Measured(mean, spread, low, high, references[0].mean().item() if references else None)


def measured_share(right: int, n: int, reference: float | None = None) -> Measured:
    """A share with its 95% score interval (E. B. Wilson, JASA 1927), which holds at 0 and 1 as well.

    Args:
        right: How many of n.
        n: At least 1.
        reference: As in `Measured`.
    """
    share, weight = right / n, _Z**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return Measured(share, low=max(0.0, middle - half), high=min(1.0, middle + half), reference=reference)


@dataclass(frozen=True)
class Panel:
    """How a figure of the methods is drawn, in a panel of its own.

    Args:
        logarithmic: Whether values are compared by their order of magnitude.
        logarithmic_below: Where the smallest value is positive and below this, they are so too: dots would lie on each
            other.
        signed: Whether values below 0 have a meaning, which a deviation may reach otherwise as well.
        relative: Whether values are drawn in units of their reference.
        line: Where chance, no effect or the scale is marked, and its name.
    """

    logarithmic: bool = False
    logarithmic_below: float = 0.0
    signed: bool = False
    relative: bool = False
    line: tuple[float, str] | None = None


def _nothing(_: Any) -> tuple[()]:
    return ()


def _no_obstacle(_: Any) -> str:
    return ""


@dataclass(frozen=True)
class Figure(Generic[Subject]):
    """A number that an audit measures, of the model or of each method.

    Args:
        name: As in ``metrics`` and in the report.
        title: As people read it.
        better: Which way is better, in words.
        meaning: One sentence.
        measure: Measures it, of a model's `Setting` or of a method's `Explanation`; whatever it raises is reported as
            the figure's failure.
        task: Which task it is of; None for any.
        obstacle: What keeps it from being measured of this model and these data, in words; empty if nothing does.
        findings: What follows from it, in words, given everything that was measured.
        priority: Findings of methods' figures are told in this order, the highest first.
        needs: The argument of `audit` that it needs beside a model and data; such a figure is measured only where it
            is asked for by name.
        identity: What it alone depends on beside the setting, as JSON, so that a store tells it from another.
        reference: What its `Measured.reference` is, in a word or two; empty where it has none.
        against: Where it speaks against the model or the method, in words; empty where it never does.
        panel: How it is drawn.
        shows_note: Whether a note stands below a value in the page's table.
    """

    name: str
    title: str
    better: str
    meaning: str
    measure: Callable[[Subject], Measured]
    task: Task | None = None
    obstacle: Callable[[Setting], str] = _no_obstacle
    findings: Callable[[Results], Iterable[Finding]] = _nothing
    priority: int = 0
    needs: Literal["proxy", "retraining"] | None = None
    identity: Callable[[Setting], Any] | None = None
    reference: str = ""
    against: str = ""
    panel: Panel = Panel()
    shows_note: bool = False

    def worded(self, results: Results) -> Figure[Subject]:
        """The same in the words of the inputs: "pixels", "tokens", "features"."""
        words = {"elements": results.elements, "prediction": results.prediction}
        return replace(self, title=self.title.format(**words), meaning=self.meaning.format(**words))
