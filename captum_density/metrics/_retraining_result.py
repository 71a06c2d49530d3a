"""What retraining on masked data showed, how sure that is, and which controls say otherwise."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from captum_density.metrics._retraining_scores import RetrainingScores
from captum_density.metrics._retraining_text import conclusions, draw, rows_of, table, words_of

__all__ = ["RetrainingResult"]


@dataclass(frozen=True, eq=False, repr=False)
class RetrainingResult(RetrainingScores):
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

    @cached_property
    def conclusions(self) -> tuple[str, ...]:
        """What follows, in words: for each attribution, and where a control undoes it."""
        return conclusions(self)

    def table(self) -> str:
        """The figures as Markdown: each attribution and control by fraction, and what follows in words.

        Returns:
            Lines of text, without a newline at the end.
        """
        return table(self, self._words)

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

    @property
    def _words(self) -> list[str]:
        return words_of(self, self.conclusions, self.notes)

    def __repr__(self) -> str:
        shape = f"{len(self.attributions)} attributions, {len(self.fractions)} fractions, {self.correct.shape[3]} runs"
        return f"RetrainingResult({self.name}: {shape}; {'; '.join(self.conclusions)})"

    def _repr_html_(self) -> str:
        head, *rows = rows_of(self)
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        names = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        words = "".join(f"<li>{html.escape(line)}</li>" for line in self._words)
        return f"<table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table><ul>{words}</ul>"


def _figures(power: Tensor, score: Tensor, intervals: Tensor, means: Tensor) -> dict[str, Any]:
    return {
        "predictive_power": power.tolist(),
        "score": score.tolist(),
        "intervals": intervals.tolist(),
        "means": [[None if value != value else value for value in row] for row in means.tolist()],
    }
