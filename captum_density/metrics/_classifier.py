"""What a classifier makes of copies of a batch: right or not, and with what probability."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType
from captum_density._model.precision import accumulation_dtype
from captum_density._model.refusals import are_looked_at_together, refuse_where
from captum_density._model.validation import class_targets, received

__all__ = ["Classifier"]


class Classifier(ModelOnBatch):
    """A model (N, C), and the class that each of N examples ought to have.

    Args:
        model: Returns logits.
        inputs: The examples, which tell shapes and devices.
        target: A class, or one for each example.
        additional_forward_args: As Captum's.
        max_examples_per_batch: How many rows run at once; None for all.

    Raises:
        TypeError: As `ModelOnBatch`.
        ValueError: As `ModelOnBatch`; a target that is no class for each example.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Any,
        target: TargetType,
        additional_forward_args: object,
        max_examples_per_batch: int | None,
    ) -> None:
        super().__init__(
            model,
            inputs,
            None,
            additional_forward_args,
            max_examples_per_batch=max_examples_per_batch,
            name="the classifier",
        )
        self.classes = class_targets(target, self.n, self.device)
        self._width = 0  # the number of classes of the model, when the highest is known to be one of them

    def __call__(self, points: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Whether right, and the softmax probability of the class, (K, N) each.

        Args:
            points: K copies of the batch, (K, N, ...) for each input.

        Raises:
            ValueError: If the model does not return (K * N, C), or fewer classes than there are, or what has no
                softmax, or draws random numbers.
        """
        shape = points[0].shape[:2]
        flat, rows = tuple(p.flatten(0, 1) for p in points), torch.arange(self.n, device=self.device).repeat(shape[0])
        correct, probability = [], []
        with torch.no_grad(), self.evaluation(comparison=True):
            for part in self.parts(len(rows)):
                logits, classes = self.run(tuple(f[part] for f in flat), rows[part]), self.classes[rows[part]]
                self._check(logits, classes)
                if are_looked_at_together(classes):
                    classes = classes.clamp_max(logits.shape[1] - 1)
                probabilities = logits.to(accumulation_dtype(logits)).softmax(1)
                correct.append(logits.argmax(1) == classes)
                probability.append(probabilities.gather(1, classes[:, None])[:, 0])
        return torch.cat(correct).reshape(shape), torch.cat(probability).reshape(shape)

    @staticmethod
    def refuse_nan(probability: Tensor) -> None:
        """Refuse probabilities that are none, once for all that were asked for: a GPU is waited for at each look.

        Raises:
            ValueError: Logits were NaN or infinite.
        """
        text = "the classifier returned NaN or infinite logits, which have no softmax"
        refuse_where(probability.isnan().any(), partial(ValueError, text))

    def _check(self, logits: Any, classes: Tensor) -> None:
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(classes):
            raise ValueError(f"the classifier must return logits ({len(classes)}, C), but returned {received(logits)}")
        width = logits.shape[1]
        if width < 2:
            raise ValueError(
                "the classifier has one output, which is always the largest; make two classes of it, such as "
                "`lambda x: torch.cat([torch.zeros_like(model(x)), model(x)], dim=1)`"
            )
        if width != self._width:  # once, as a GPU is waited for at each look
            highest = self.classes.max()
            refuse_where(
                highest >= width,
                lambda: ValueError(f"target holds class {int(highest)}, the classifier knows {width}"),
            )
            self._width = width
