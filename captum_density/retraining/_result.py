"""What came of a job."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from captum_density.retraining._examples import Job

__all__ = ["JobResult"]


@dataclass(frozen=True, eq=False, repr=False)
class JobResult:
    """What came of one job. See `fit_many`.

    Args:
        job: The job.
        correct: (M,) bool, whether each test example's class is predicted by the model after the last epoch.
        engine: Which engine trained it: "loop", "channels_last", "vmap" or "fit", a function of yours.
        seconds: What it took; those of a stack are shared evenly. 0 where it came from the store.
        stored: Whether it came from the store.
        reason: Why this engine.
    """

    job: Job
    correct: Tensor
    engine: str
    seconds: float
    stored: bool
    reason: str

    @property
    def accuracy(self) -> float:
        """Share of the test examples whose class is predicted, in [0, 1]; higher is better."""
        return self.correct.double().mean().item()

    @property
    def cell(self) -> Job:
        """The former name of `job`."""
        warnings.warn("cell is called job now", DeprecationWarning, stacklevel=2)
        return self.job

    def __repr__(self) -> str:
        return f"JobResult({self.job}, accuracy={self.accuracy:.4f}, engine={self.engine!r}, stored={self.stored})"
