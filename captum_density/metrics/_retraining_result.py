"""What retraining on masked data showed, how sure that is, and which controls say otherwise."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_density._display.intervals import Bootstrap, interval
from captum_density.metrics._retraining_text import conclusions, draw, rows_of, table, words_of

__all__ = ["RetrainingResult"]

_RESAMPLES = 2000
_NAMES = {"diff_roar": "DiffROAR", "roar": "ROAR", "kar": "KAR"}


@dataclass(frozen=True, eq=False, repr=False)
class RetrainingResult:
    """Predictive power of what attributions rank high or low, and of the controls.

    Predictive power is the accuracy on masked test examples of models retrained on masked training examples.

    Args:
        metric: "diff_roar", "roar" or "kar".
        attributions: A names.
        sides: What is kept: ("top", "bottom") for DiffROAR, ("bottom",) for ROAR, ("top",) for KAR.
        fractions: K of them, ascending: of the elements kept by each side of DiffROAR and by KAR, removed by ROAR.
        counts: The same as numbers of elements or groups, of `d`.
        d: How many there are.
        correct: (A, sides, K, R, M) bool, whether each test example is classified rightly, by run.
        controls: Control to (A, sides, K, R, M) bool: "input_agnostic", "mask_only" and "blurred"; "random" with A = 1.
        unmasked: (R, M) bool, of models trained on whole examples.
        chance: The share of the largest class in the test set, in [0, 1].
        engines: Engine to how many models it trained, and why it was taken.
        stored: How many models came from the store.
        seconds: Spent on training, by all workers together.
        constant: (A,) of each attribution, the share of examples whose attributions are equal everywhere, so that
            positions alone rank them.
        notes: What a reader ought to know of how this came about.
        level: Of the confidence intervals.

    Example:
        >>> import torch
        >>> from captum_density.metrics import diff_roar
        >>> from captum_density.retraining import FitConfig
        >>> x = torch.randn(200, 4)
        >>> train, test = (x[:150], (x[:150, 0] > 0).long()), (x[150:], (x[150:, 0] > 0).long())
        >>> importance = torch.tensor([4.0, 3.0, 2.0, 1.0])  # the first element decides
        >>> result = diff_roar(
        ...     lambda: torch.nn.Linear(4, 2), train, test, {"true": lambda x: importance.expand_as(x)},
        ...     fractions=(0.25, 1.0), runs=2, controls=(), fit=FitConfig(lr=0.1),
        ... )
        >>> result.score[0, 0].item() > 0.2, result.score[0, 1].item()
        (True, 0.0)
    """

    metric: Literal["diff_roar", "roar", "kar"]
    attributions: tuple[str, ...]
    sides: tuple[str, ...]
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    d: int
    correct: Tensor
    controls: Mapping[str, Tensor]
    unmasked: Tensor
    chance: float
    engines: Mapping[str, tuple[int, str]]
    stored: int
    seconds: float
    constant: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    level: float = 0.95
    _seed: int = field(default=0)

    @property
    def name(self) -> str:
        """How the metric is written."""
        return _NAMES[self.metric]

    @property
    def predictive_power(self) -> Tensor:
        """(A, sides, K, R) accuracies, in [0, 1]."""
        return self.correct.double().mean(-1)

    @property
    def score(self) -> Tensor:
        """(A, K) mean over runs.

        DiffROAR: top minus bottom, in [-1, 1]; higher is better, 0 is what a random ranking gets. ROAR: the accuracy
        left, in [0, 1], lower is better. KAR: the accuracy reached, higher is better.
        """
        return self._of(self.correct).double().mean(-1).mean(-1)

    @property
    def intervals(self) -> Tensor:
        """(A, K, 2) confidence intervals of the score, by the bootstrap over runs and test examples.

        They are as sure as they say where test examples are most of what varies, as is usual. Where runs are, five of
        them are few: 95% intervals then hold the truth about 88% of the time.
        """
        return interval(self._resampled(), self.level)

    def control_power(self, control: str) -> Tensor:
        """Predictive power of a control.

        Args:
            control: Its name, one of `controls`.

        Returns:
            (A, sides, K, R) in [0, 1]; of "random", A is 1.

        Raises:
            KeyError: There is no such control.
        """
        return self.controls[control].double().mean(-1)

    def control_score(self, control: str) -> Tensor:
        """The score of a control, as `score` is.

        Args:
            control: Its name, one of `controls`.

        Returns:
            (A, K); of "random", A is 1.

        Raises:
            KeyError: There is no such control.
        """
        return self._of(self.controls[control]).double().mean(-1).mean(-1)

    def control_intervals(self, control: str) -> Tensor:
        """The confidence intervals of a control's score.

        Args:
            control: Its name, one of `controls`.

        Returns:
            (A, K, 2); of "random", A is 1.

        Raises:
            KeyError: There is no such control.
        """
        return interval(self._resampled(control), self.level)

    def means(self, control: str | None = None) -> Tensor:
        """Score and interval of the mean over all fractions below 1, where the score can differ from that of a control.

        Args:
            control: One of `controls`; None for the attributions themselves.

        Returns:
            (A, 3): score, lower and upper end. NaN where 1 is the only fraction.

        Raises:
            KeyError: There is no such control.
        """
        correct = self.correct if control is None else self.controls[control]
        return self._summary(self._of(correct).double().mean(-1).mean(-1), self._resampled(control))

    def difference(self, control: str) -> Tensor:
        """How much higher the mean score of each attribution is than a control's, with a paired interval.

        Args:
            control: One of `controls`.

        Returns:
            (A, 3): difference, lower and upper end. NaN where 1 is the only fraction.

        Raises:
            KeyError: There is no such control.
        """
        scores = self.score - self.control_score(control)
        return self._summary(scores, self._resampled() - self._resampled(control))

    @cached_property
    def conclusions(self) -> tuple[str, ...]:
        """What follows, in words: for each attribution, and where a control undoes it."""
        return conclusions(self)

    @property
    def digest(self) -> str:
        """A hash of every prediction's correctness: equal where two calls found the same, to the last example."""
        found = hashlib.blake2b(digest_size=16)
        parts = {self.metric: self.correct, **dict(sorted(self.controls.items())), "unmasked": self.unmasked}
        for name, part in parts.items():
            found.update(f"{name}{tuple(part.shape)}".encode())
            found.update(np.packbits(part.numpy()).tobytes())
        return found.hexdigest()

    def table(self) -> str:
        """The figures as Markdown: each attribution and control by fraction, and what follows in words.

        Returns:
            Lines of text, without a newline at the end.
        """
        return table(self)

    def plot(self) -> Figure:
        """Draw the score over the fractions, attributions side by side, with their controls.

        Returns:
            A figure, free of pyplot's state. Save it with `figure.savefig("diff_roar.png")`.
        """
        return draw(self)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values.

        Returns:
            Lists, numbers and strings by name: what `to_json` writes.
        """
        main = _figures(self.predictive_power, self.score, self.intervals, self.means())
        return {
            "metric": self.metric,
            "attributions": list(self.attributions),
            "sides": list(self.sides),
            "fractions": list(self.fractions),
            "counts": list(self.counts),
            "d": self.d,
            "runs": self.correct.shape[3],
            "test_examples": self.correct.shape[4],
            "level": self.level,
            **main,
            "controls": {
                control: _figures(
                    self.control_power(control),
                    self.control_score(control),
                    self.control_intervals(control),
                    self.means(control),
                )
                for control in self.controls
            },
            "unmasked_accuracy": self.unmasked.double().mean(-1).tolist(),
            "chance": self.chance,
            "constant": list(self.constant),
            "engines": {engine: {"models": n, "reason": reason} for engine, (n, reason) in self.engines.items()},
            "models_from_store": self.stored,
            "seconds": self.seconds,
            "digest": self.digest,
            "notes": list(self.notes),
            "conclusions": list(self.conclusions),
        }

    def to_json(self) -> str:
        """Write all figures as JSON.

        Returns:
            Indented text.
        """
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        shape = f"{len(self.attributions)} attributions, {len(self.fractions)} fractions, {self.correct.shape[3]} runs"
        return f"RetrainingResult({self.name}: {shape}; {'; '.join(self.conclusions)})"

    def _repr_html_(self) -> str:
        head, *rows = rows_of(self)
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        names = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        words = "".join(f"<li>{html.escape(line)}</li>" for line in words_of(self))
        return f"<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table><ul>{words}</ul>"

    def _of(self, correct: Tensor) -> Tensor:
        """The score's share of each run and example, (A, K, R, M): of DiffROAR, the difference of the sides."""
        if self.metric == "diff_roar":
            return correct[:, 0].char() - correct[:, 1].char()
        return correct[:, 0]

    @cached_property
    def _remembered(self) -> dict[tuple[str, str | None], Tensor]:
        return {}

    def _means(self, what: str, control: str | None, correct: Tensor) -> Tensor:
        """Of the resamples, of which there is one drawing for all."""
        if (what, control) not in self._remembered:
            *_, runs, n = correct.shape
            self._remembered[what, control] = Bootstrap(runs, n, _RESAMPLES, self._seed).means(correct)
        return self._remembered[what, control]

    def _resampled(self, control: str | None = None) -> Tensor:
        """(A, K, resamples) scores."""
        correct = self.correct if control is None else self.controls[control]
        return self._means("score", control, self._of(correct))

    def _resampled_power(self, control: str | None = None) -> Tensor:
        """(A, sides, resamples) predictive power, mean over fractions below 1; in pairs with `_resampled`."""
        correct = self.correct if control is None else self.controls[control]
        return self._means("power", control, correct[:, :, self._below]).mean(2)

    @property
    def _below(self) -> list[int]:
        """Which fractions are below 1, of those of one count the first."""
        return [i for i, count in enumerate(self.counts) if count < self.d and count not in self.counts[:i]]

    def _summary(self, scores: Tensor, resampled: Tensor) -> Tensor:
        below = self._below
        if not below:
            return torch.full((len(scores), 3), float("nan"), dtype=torch.float64)
        ends = interval(resampled[:, below].mean(1), self.level)
        return torch.cat([scores[:, below].mean(1, keepdim=True), ends], dim=1)


def _figures(power: Tensor, score: Tensor, intervals: Tensor, means: Tensor) -> dict[str, Any]:
    return {
        "predictive_power": power.tolist(),
        "score": score.tolist(),
        "intervals": intervals.tolist(),
        "means": [[None if value != value else value for value in row] for row in means.tolist()],
    }
