"""What a classifier makes of copies of a batch: right or not, and with what probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density._model.captum import (
    ExpansionTypes,
    TargetType,
    expand_additional_forward_args,
    format_additional_forward_args,
    run_forward,
)
from captum_density._model.evaluation import full_precision, refuse_random_numbers
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_limit, check_model, class_targets, validate_inputs

__all__ = ["Classifier"]


class Classifier:
    """A model (N, C), and the class that each of N examples ought to have.

    Args:
        model: Returns logits.
        inputs: The examples, which tell shapes and devices.
        target: A class, or one for each example.
        additional_forward_args: As Captum's.
        max_examples_per_batch: How many rows run at once; None for all.

    Raises:
        TypeError: A model that cannot be called, inputs that are not floating-point.
        ValueError: Inputs that are empty, NaN or infinite, a target that is no class for each example.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        max_examples_per_batch: int | None,
    ) -> None:
        check_model(model, "the classifier")
        check_limit(max_examples_per_batch)
        if not inputs:
            raise TypeError("inputs must be a tensor or a non-empty tuple of tensors")
        validate_inputs(model, inputs)
        self.n = len(inputs[0])
        self.model = model
        self._classes = class_targets(target, self.n, inputs[0].device)
        self._args = format_additional_forward_args(additional_forward_args)
        self._limit = max_examples_per_batch

    def __call__(self, points: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Whether right, and the softmax probability of the class, (K, N) each.

        Args:
            points: K copies of the batch, (K, N, ...) for each input.

        Raises:
            ValueError: If the model does not return (K * N, C), or fewer classes than there are, or what has no
                softmax, or draws random numbers.
        """
        copies = len(points[0])
        rows = copies * self.n
        flat = tuple(p.flatten(0, 1) for p in points)
        classes = self._classes.repeat(copies)
        args = expand_additional_forward_args(self._args, copies, expansion_type=ExpansionTypes.repeat)
        size = rows if self._limit is None else self._limit
        correct, probability = [], []
        with torch.no_grad(), full_precision(flat[0].device), fixed_modules(self.model, compared=True):
            for part in (slice(start, start + size) for start in range(0, rows, size)):
                with refuse_random_numbers(flat[0]):
                    logits = run_forward(self.model, tuple(f[part] for f in flat), None, _rows(args, part, rows))
                wanted = classes[part]
                self._check(logits, wanted)
                chances = logits.to(accumulation_dtype(logits)).softmax(1)
                if bool(chances.isnan().any()):
                    raise ValueError("the classifier returned NaN or infinite logits, which have no softmax")
                correct.append(logits.argmax(1) == wanted)
                probability.append(chances.gather(1, wanted[:, None])[:, 0])
        return torch.cat(correct).reshape(copies, self.n), torch.cat(probability).reshape(copies, self.n)

    def _check(self, logits: Any, wanted: Tensor) -> None:
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(wanted):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the classifier must return logits ({len(wanted)}, C), but returned {shape}")
        if logits.shape[1] < 2:
            raise ValueError(
                "the classifier has one output, which is always the largest; make two classes of it, such as "
                "`lambda x: torch.cat([torch.zeros_like(model(x)), model(x)], dim=1)`"
            )
        if int(wanted.max()) >= logits.shape[1]:
            raise ValueError(f"target holds class {int(wanted.max())}, the classifier knows {logits.shape[1]}")


def _rows(args: Any, part: slice, rows: int) -> Any:
    if args is None:
        return None
    return tuple(a[part] if isinstance(a, Tensor) and a.ndim > 0 and len(a) == rows else a for a in args)
