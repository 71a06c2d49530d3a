"""What fine-tuned fidelity measured, and how sure that is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_density._display.intervals import Bootstrap, interval
from captum_density._display.tables import markdown

__all__ = ["FFidelity"]

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False, repr=False)
class FFidelity:
    """FFid+ and FFid- of attributions, and of a random ranking. See `f_fidelity`.

    Args:
        attributions: A names. The B = A + 1 rows of all figures are theirs, and the last that of the random ranking.
        fractions: K sizes of explanations, ascending, of the elements.
        counts: The same as numbers of elements or groups, of `d`.
        removed: For each, how many are removed of the explanation, and how many of the rest.
        d: How many there are.
        alpha: As asked for.
        beta: As asked for.
        n_samples: How many removals were drawn for each example.
        right: (B, 2, K, R, M) of how many draws each test example is classified rightly, by side and run.
        whole: (R, M) bool, whether it is with nothing removed.
        given: (M,) bool, whether it is by the model before it was fine-tuned.
        chance: The share of the largest class in the test set, in [0, 1].
        constant: (A,) of each attribution, the share of examples ranked by position alone.
        stored: How many of the B R results came from the store.
        notes: What a reader ought to know of how this came about.
        level: Of the confidence intervals.
    """

    attributions: tuple[str, ...]
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    removed: tuple[tuple[int, int], ...]
    d: int
    alpha: float
    beta: float
    n_samples: int
    right: Tensor
    whole: Tensor
    given: Tensor
    chance: float
    constant: tuple[float, ...]
    stored: int
    notes: tuple[str, ...] = ()
    level: float = 0.95
    _seed: int = field(default=0)

    @property
    def plus(self) -> Tensor:
        """(B, K) FFid+, in [-1, 1]: accuracy lost without part of what ranks high; higher is better."""
        return self._values[:, 0].mean((-1, -2))

    @property
    def minus(self) -> Tensor:
        """(B, K) FFid-, in [-1, 1]: accuracy lost without part of the rest; lower is better."""
        return self._values[:, 1].mean((-1, -2))

    @property
    def intervals(self) -> Tensor:
        """(B, 2, K, 2) confidence intervals of FFid+ and FFid-, by the bootstrap over runs and test examples."""
        return interval(self._resampled, self.level)

    @property
    def means(self) -> Tensor:
        """(B, 3, 3) of FFid+, FFid- and their difference: the mean over fractions, lower and upper end."""
        return self._summary(self._values.mean((-1, -2)), self._resampled)

    @property
    def difference(self) -> Tensor:
        """(A, 3, 3) as `means`, less those of the random ranking, with paired intervals."""
        values = self._values.mean((-1, -2))
        return self._summary(values[:-1] - values[-1:], self._resampled[:-1] - self._resampled[-1:])

    @property
    def digest(self) -> str:
        """A hash of all counts: equal where two calls give the same, to the last example."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.right, self.whole, self.given):
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(part.long().numpy().tobytes())
        return digest.hexdigest()

    def table(self) -> str:
        """The figures as Markdown, and what they mean in words.

        Returns:
            Lines of text, without a newline at the end.
        """
        heads = [f"FFid+ / FFid- at {f:g} ({n})" for f, n in zip(self.fractions, self.counts, strict=True)]
        rows = [["ranking", "FFid+", "FFid-", "FFid+ - FFid-", *heads]]
        for i, name in enumerate((*self.attributions, "random")):
            means = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in self.means[i].tolist()]
            pairs = zip(self.plus[i].tolist(), self.minus[i].tolist(), strict=True)
            rows.append([name, *means, *(f"{plus:.3f} / {minus:.3f}" for plus, minus in pairs)])
        runs, examples = self.whole.shape
        words = [
            "FFid+: accuracy lost as part of what ranks high goes, higher is better; FFid-: as part of the rest goes, "
            f"lower is better. Means over sizes of explanations, with {self.level:.0%} intervals.",
            f"{runs} {'run' if runs == 1 else 'runs'}, {examples} test examples, {self.n_samples} draws. Accuracy with "
            f"nothing removed: {self.whole.double().mean():.3f}, before fine-tuning {self.given.double().mean():.3f}.",
            *self.notes,
        ]
        return "\n".join([markdown(rows), "", *words])

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values.

        Returns:
            Lists, numbers and strings by name: what `to_json` writes.
        """
        return {
            "rankings": [*self.attributions, "random"],
            "fractions": list(self.fractions),
            "counts": list(self.counts),
            "removed": [list(pair) for pair in self.removed],
            "d": self.d,
            "alpha": self.alpha,
            "beta": self.beta,
            "n_samples": self.n_samples,
            "runs": len(self.whole),
            "test_examples": self.whole.shape[1],
            "level": self.level,
            "plus": self.plus.tolist(),
            "minus": self.minus.tolist(),
            "intervals": self.intervals.tolist(),
            "means": self.means.tolist(),
            "difference": self.difference.tolist(),
            "whole_accuracy": self.whole.double().mean(-1).tolist(),
            "given_accuracy": self.given.double().mean().item(),
            "chance": self.chance,
            "constant": list(self.constant),
            "from_store": self.stored,
            "digest": self.digest,
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Write all figures as JSON.

        Returns:
            Indented text.
        """
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        means = "; ".join(
            f"{name}: FFid+ {plus:.3f}, FFid- {minus:.3f}"
            for name, (plus, minus, _) in zip((*self.attributions, "random"), self.means[:, :, 0].tolist(), strict=True)
        )
        return f"FFidelity({means})"

    @cached_property
    def _values(self) -> Tensor:
        """(B, 2, K, R, M) what each example loses."""
        return self.whole.double() - self.right.double() / self.n_samples

    @cached_property
    def _resampled(self) -> Tensor:
        """(B, 2, K, resamples)."""
        runs, n = self.whole.shape
        return Bootstrap(runs, n, _RESAMPLES, self._seed).means(self._values)

    def _summary(self, values: Tensor, resampled: Tensor) -> Tensor:
        mean, drawn = values.mean(-1), resampled.mean(2)  # over fractions
        mean, drawn = (torch.cat([t, t[:, :1] - t[:, 1:2]], dim=1) for t in (mean, drawn))
        return torch.cat([mean[..., None], interval(drawn, self.level)], dim=-1)
