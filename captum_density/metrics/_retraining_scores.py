"""The figures of retraining on masked data, and how sure they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from captum_density._display.intervals import Bootstrap, interval

__all__ = ["RetrainingScores"]

_RESAMPLES = 2000
_NAMES = {"diff_roar": "DiffROAR", "roar": "ROAR", "kar": "KAR"}


@dataclass(frozen=True, eq=False, repr=False)
class RetrainingScores:
    """The numbers of a `RetrainingResult`, which describes the arguments, without words and pictures."""

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

    @property
    def digest(self) -> str:
        """A hash of every prediction's correctness: equal where two calls give the same, to the last example."""
        digest = hashlib.blake2b(digest_size=16)
        parts = {self.metric: self.correct, **dict(sorted(self.controls.items())), "unmasked": self.unmasked}
        for name, part in parts.items():
            digest.update(f"{name}{tuple(part.shape)}".encode())
            digest.update(np.packbits(part.numpy()).tobytes())
        return digest.hexdigest()

    def _of(self, correct: Tensor) -> Tensor:
        """The score's share of each run and example, (A, K, R, M): of DiffROAR, the difference of the sides."""
        if self.metric == "diff_roar":
            return correct[:, 0].char() - correct[:, 1].char()
        return correct[:, 0]

    @cached_property
    def _resamples(self) -> dict[tuple[str, str | None], Tensor]:
        return {}

    def _means(self, what: str, control: str | None, correct: Tensor) -> Tensor:
        """Of the resamples, of which there is one drawing for all."""
        if (what, control) not in self._resamples:
            *_, runs, n = correct.shape
            self._resamples[what, control] = Bootstrap(runs, n, _RESAMPLES, self._seed).means(correct)
        return self._resamples[what, control]

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
            return torch.full((len(scores), 3), float("nan"), dtype=torch.float64, device="cpu")
        ends = interval(resampled[:, below].mean(1), self.level)
        return torch.cat([scores[:, below].mean(1, keepdim=True), ends], dim=1)
