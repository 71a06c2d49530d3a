"""What came of a cell."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from captum_density.retraining._examples import Cell

__all__ = ["Fitted"]


@dataclass(frozen=True, eq=False, repr=False)
class Fitted:
    """What came of one cell. See `fit_many`.

    Args:
        cell: The cell.
        correct: (M,) bool, whether each test example's class is predicted by the model after the last epoch.
        engine: Which engine trained it: "loop", "channels_last", "vmap" or "fit", a function of yours.
        seconds: What it took; those of a stack are shared evenly. 0 where it came from the store.
        stored: Whether it came from the store.
        reason: Why this engine.
    """

    cell: Cell
    correct: Tensor
    engine: str
    seconds: float
    stored: bool
    reason: str

    @property
    def accuracy(self) -> float:
        """Share of the test examples whose class is predicted, in [0, 1]; higher is better."""
        return self.correct.double().mean().item()

    def __repr__(self) -> str:
        return f"Fitted({self.cell}, accuracy={self.accuracy:.4f}, engine={self.engine!r}, stored={self.stored})"
