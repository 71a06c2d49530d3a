"""What DiffROAR retrains in an audit, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from captum_density._model.arrays import as_tensors
from captum_density.audit._sample import draw_sample

__all__ = ["Retraining"]


@dataclass(frozen=True)
class Retraining:
    """What DiffROAR needs beside a model: something to retrain, and data to do it on.

    Args:
        make_model: Returns a new, untrained classifier, (N, C) logits.
        train: Inputs (N, ...) and labels (N,); or a data set or loader of such, of which all is read into memory.
        test: Inputs (M, ...) and labels (M,), or the same; some hundreds, as accuracies of fewer tell little apart.
        options: Further arguments of `captum_density.metrics.diff_roar`, such as ``fractions``, ``runs`` or ``fit``.

    Example:
        >>> import torch
        >>> x, y = torch.rand(100, 4), torch.randint(2, (100,))
        >>> retraining = Retraining(lambda: torch.nn.Linear(4, 2), (x[:50], y[:50]), (x[50:], y[50:]), {"runs": 3})
        >>> retraining.options["runs"]
        3
    """

    make_model: Callable[[], nn.Module]
    train: Any
    test: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def gathered(self, seed: int) -> tuple[Retraining, tuple[str, ...]]:
        """Return the same with tensors for data.

        Args:
            seed: Of the order, which matters nowhere.

        Returns:
            A `Retraining` of pairs (inputs, labels), and a line for each example that could not be read.

        Raises:
            TypeError: Data of a wrong kind.
            ValueError: Data without labels, or that cannot be read.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        skipped: list[str] = []
        for what, data in (("train", self.train), ("test", self.test)):
            try:
                sample = draw_sample(as_tensors(data), None, seed)
            except (TypeError, ValueError) as error:
                raise type(error)(f"the data to {what} models on: {error}") from error
            if sample.labels is None:
                raise ValueError(f"the data to {what} models on have no labels")
            pairs.append((sample.tensors[0], sample.labels))
            skipped += sample.skipped
        return replace(self, train=pairs[0], test=pairs[1]), tuple(skipped)
