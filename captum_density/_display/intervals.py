"""Bootstrap intervals, which tables and pictures show beside a figure."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Bootstrap", "interval", "mean_interval"]

_AT_ONCE = 250


class Bootstrap:
    """The same resamples for everything that was measured on the same runs and examples, both drawn again.

    Whatever is compared is so in pairs: the difference of two figures varies less than each of them.

    Args:
        runs: R.
        examples: n.
        resamples: How many data sets to draw.
        seed: Of the drawing.
    """

    def __init__(self, runs: int, examples: int, resamples: int, seed: int) -> None:
        self._sizes, self._resamples, self._seed = (runs, examples), resamples, seed

    def means(self, values: Tensor) -> Tensor:
        """The mean over runs and examples of each resample.

        Args:
            values: (..., R, n) numbers, or bools, whose mean is a share.

        Returns:
            (..., resamples) float64.
        """
        runs, n = self._sizes
        random = np.random.default_rng(self._seed)
        flat = values.reshape(-1, runs, n).double()
        means = []
        for start in range(0, self._resamples, _AT_ONCE):
            size = min(_AT_ONCE, self._resamples - start)
            # Of the few runs, R, one less: the mean of R draws varies by (R - 1) / R of what the mean of R runs does.
            by_run = _weights(random, runs, max(1, runs - 1), size)
            by_example = _weights(random, n, n, size)
            means.append(torch.einsum("xrb,br->xb", flat @ by_example.T, by_run))
        return torch.cat(means, dim=1).reshape(*values.shape[:-2], self._resamples)


def _weights(random: np.random.Generator, k: int, drawn: int, size: int) -> Tensor:
    """(size, k) how often each of k is drawn, as a share."""
    # Counted: `Generator.multinomial` draws k binomials each time, which takes ten times as long.
    at = random.integers(0, k, (size, drawn)) + k * np.arange(size)[:, None]
    return torch.from_numpy(np.bincount(at.reshape(-1), minlength=size * k).reshape(size, k) / drawn)


def interval(means: Tensor, level: float) -> Tensor:
    """The percentile interval of resampled figures, (..., 2) from (..., resamples)."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype, device=means.device)
    return means.quantile(ends, dim=-1).movedim(0, -1)


def mean_interval(values: Tensor, seed: int, *, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """The interval of the mean over examples, of one run.

    Args:
        values: (n,).
        seed: Of the drawing.
        level: The share of resampled means within.
        resamples: How many data sets to draw.
    """
    means = Bootstrap(1, len(values), resamples, seed).means(values.detach().cpu()[None])
    low, high = interval(means, level).tolist()
    return low, high
