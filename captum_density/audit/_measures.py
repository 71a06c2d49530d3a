"""What an audit measures: the name of each figure, which way is better, and what it says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

__all__ = [
    "MEASURES",
    "METHOD_MEASURES",
    "MODEL_MEASURES",
    "Measure",
    "Measured",
    "chosen",
    "counted_examples",
    "of_examples",
]


@dataclass(frozen=True)
class Measure:
    """One figure of an audit.

    Args:
        name: As in ``metrics`` and in the report.
        title: As people read it.
        better: Which way is better, in words.
        meaning: One sentence.
        asked: Whether it is measured only where it is asked for, because it needs more than a model and data.
        reference: What its `Measured.reference` is, in a word or two; empty where it has none.
    """

    name: str
    title: str
    better: str
    meaning: str
    asked: bool = False
    reference: str = ""


METHOD_MEASURES = (
    Measure(
        "completeness_gap",
        "completeness gap",
        "lower is better",
        "Share of what the attributions ought to sum to that is missing or too much; '-' where a method promises no "
        "sum.",
    ),
    Measure(
        "infidelity",
        "infidelity",
        "lower is better",
        "Mean squared error of the change in output that the attributions foretell, in squared units of the output, "
        "when a random fifth of the input is set to 0, the attributions' scale and sign fitted; a map of zeros is "
        "what to compare with.",
        reference="a map of zeros",
    ),
    Measure(
        "sensitivity_max",
        "sensitivity",
        "lower is better",
        "Captum's sensitivity_max: the largest relative change of the attributions under a change of the input too "
        "small to matter; at 1 the map has moved by its own length.",
    ),
    Measure(
        "shift_sensitivity",
        "shift sensitivity",
        "lower is better",
        "1 - cosine of the attributions before and after a term is added to all logits, which changes no "
        "prediction; what moves says nothing about predictions. Small is not 0: maps on a positive floor look alike.",
    ),
    Measure(
        "pixel_perturbation",
        "pixels beyond chance",
        "higher is better",
        "Area under the explained class's probability when only the pixels of the largest attributions, by absolute "
        "value, are kept, minus the same for random rankings; with 0 in the interval, the ranking is no better than "
        "chance. The other pixels take the mean of the examples, so that a method that multiplies by the input "
        "loses where pixels of value 0 matter.",
        reference="area of a random ranking",
    ),
    Measure(
        "diff_roar",
        "DiffROAR",
        "higher is better",
        "Accuracy of models retrained on what ranks highest minus that of models retrained on what ranks lowest, "
        "mean over the fractions kept; below 0 the method points away from what matters.",
        asked=True,
        reference="a random ranking",
    ),
    Measure("seconds", "seconds", "lower is better", "Time to attribute all examples."),
)
MODEL_MEASURES = (
    Measure("accuracy", "accuracy", "higher is better", "Share of the audited examples whose label is predicted."),
    Measure(
        "density_ratio",
        "log density ratio at noise",
        "below 0 is right",
        "log p(x + noise | y) - log p(x | y) of the density in the logits; above 0, it takes noise for likelier "
        "than the data, and its gradients point towards noise.",
    ),
    Measure(
        "gradient_norm",
        "squared gradient norm",
        "lower is smoother",
        "Squared length of the explained logit's gradient by the input: how steep the model is at the data.",
    ),
    Measure(
        "hessian_trace",
        "Hessian trace",
        "below 0 is right",
        "Trace of the explained logit's Hessian by the input, at the scale of the noise; below 0 data lie on peaks "
        "of the density, above 0 in its valleys.",
    ),
    Measure(
        "gan_test",
        "GAN-test accuracy",
        "higher is better",
        "Share of images made by climbing the model's logits that another classifier recognises.",
        asked=True,
        reference="the other classifier on the data",
    ),
)
MEASURES = {measure.name: measure for measure in (*METHOD_MEASURES, *MODEL_MEASURES)}


@dataclass(frozen=True)
class Measured:
    """One figure as it was found. See `audit`.

    Args:
        value: The figure, a mean over examples unless its meaning says otherwise; None where there is none.
        spread: Standard deviation over the examples; of seconds, over repeated calls.
        low: Lower end of a 95% confidence interval of the value, where there is one.
        high: Its upper end.
        reference: What to compare the value with, where `Measure.reference` names it.
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
        """Write the figure as a table's cell.

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


def of_examples(values: Tensor, *, reference: float | None = None, seed: int | None = None) -> Measured:
    """Mean and standard deviation of a figure over examples; with a seed, a bootstrap interval of the mean as well.

    Args:
        values: (N,).
        reference: As in `Measured`.
        seed: Of the bootstrap.
    """
    x = values.detach().double().cpu().numpy()
    if not np.isfinite(x).all():
        raise ValueError("the figure is NaN or infinite")
    mean, spread = float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else None
    if seed is None or len(x) < 2:
        return Measured(mean, spread, reference=reference)
    random = np.random.default_rng(seed)
    means = x[random.integers(0, len(x), (2000, len(x)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Measured(mean, spread, float(low), float(high), reference)


def counted_examples(n: int) -> str:
    """So many examples, in words."""
    return f"{n} example{'' if n == 1 else 's'}"


def chosen(metrics: Iterable[str] | None) -> tuple[str, ...]:
    """The names of what is to be measured, in the catalogue's order.

    Args:
        metrics: Names, "default" for what needs nothing but model and data, "all"; None for the default.

    Raises:
        ValueError: An unknown name, or none.
    """
    names = ["default"] if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in (*MEASURES, "default", "all")]
    if unknown or not names:
        what = f"there is no metric {unknown[0]!r}" if unknown else "metrics is empty"
        raise ValueError(f"{what}; there are default, all, {', '.join(MEASURES)}")
    return tuple(
        name
        for name, measure in MEASURES.items()
        if name in names or "all" in names or ("default" in names and not measure.asked)
    )
