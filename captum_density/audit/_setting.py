"""What all measurements of an audit share: the model, the examples, the noise, the seeds."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from captum_density._model.batch import ModelOnBatch
from captum_density._model.generators import derived_seed, seed_generators
from captum_density._model.validation import are_probabilities
from captum_density.audit._budget import THOROUGH, Budget
from captum_density.audit._retraining import Retraining
from captum_density.audit._runs import Remembered, Runs
from captum_density.density import class_score

__all__ = ["Setting", "Task"]

_FEW = 8
T = TypeVar("T")
Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Setting:
    """Every measurement's common ground; each starts from the same seed.

    Args:
        model: (N, ...) to (N, classes), in evaluation mode.
        inputs: (N, ...).
        rows: (N,) their numbers, which the model takes beside them where it needs more of an example; or None.
        labels: (N,), of a regression floating-point and of the explained output; or None.
        target: (N,) the explained classes, or outputs.
        task: Whether outputs are logits of classes, or numbers.
        kind: What the inputs are: "image", "volume", "signal", "table", "text", "inputs" of several tensors, "layer".
        no_labels: Why there are none, or empty.
        logits: (N, classes) what the model returns.
        pool: (M, ...) inputs that show how data vary; None to take the audited ones.
        seed: Of everything drawn.
        noise_std: Of the Gaussian noise in the density's figures.
        perturb_radius: Of sensitivity.
        infidelity_samples: Perturbations of each example.
        sensitivity_samples: Perturbations of each example.
        batch: Most examples that run at once.
        proxy: The classifier that judges samples, or None.
        retraining: What DiffROAR needs, or None.
        jobs: Where DiffROAR keeps finished models.
        show_progress: Whether long work shows a bar of its own.
        budget: How much is measured.
        runs: What counts the examples that the model runs, or None.
    """

    model: Callable[..., Tensor]
    inputs: Tensor
    rows: Tensor | None
    labels: Tensor | None
    target: Tensor
    task: Task
    kind: str
    no_labels: str
    logits: Tensor
    pool: Tensor | None
    seed: int
    noise_std: float
    perturb_radius: float
    infidelity_samples: int
    sensitivity_samples: int
    batch: int
    proxy: Callable[..., Tensor] | None
    retraining: Retraining | None
    jobs: Path | None
    show_progress: bool
    budget: Budget = THOROUGH
    runs: Runs | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def examples(self) -> ModelOnBatch:
        """The model on the examples."""
        return _examples(self.model, self.inputs, self.batch, **self.arguments())

    @functools.cached_property
    def remembered(self) -> Remembered:
        """The model for figures without gradients, which ask it for the same values."""
        return Remembered(self.model)

    def arguments(self, at: slice = slice(None)) -> dict[str, Any]:
        """What a call of Captum's form names beside some of the examples: their numbers, where the model takes them."""
        return {} if self.rows is None else {"additional_forward_args": (self.rows[at],)}

    def chunks(self) -> Iterator[slice]:
        """Slices of the examples, none longer than the batch."""
        return self.examples.parts()

    def generator(self) -> torch.Generator:
        """A new generator of the seed, on the CPU, so that every device is given the same noise."""
        return torch.Generator().manual_seed(self.seed)

    def reseed(self, at: slice | None = None) -> None:
        """Seed every generator that a method may draw from; for some of the examples each time alike."""
        seed = derived_seed(self.seed, "from example", at.start) if at is not None and at.start else self.seed
        seed_generators(seed, self.inputs.device)
        np.random.seed(seed % 2**32)  # GradientShap draws its baselines from NumPy
        random.seed(seed)

    @functools.cached_property
    def gradients(self) -> Tensor:
        """(N, ...) of the explained outputs."""
        parts = [
            class_score(self.model, self.inputs[at], self.target[at], **self.arguments(at)) for at in self.chunks()
        ]
        return torch.cat(parts)

    @property
    def classes(self) -> int:
        """How many outputs the model has."""
        return self.logits.shape[1]

    @functools.cached_property
    def predicted(self) -> Tensor:
        """(N,) the predicted classes; of one output, whether it is on the side of the second."""
        logits = self.logits
        if self.classes > 1:
            return logits.argmax(dim=1)
        return (logits[:, 0] >= 0.5).long() if self.ends_in_a_sigmoid else (logits[:, 0] > 0).long()

    @property
    def ends_in_a_sigmoid(self) -> bool:
        """Whether the one output looks like what a sigmoid returns."""
        return self.classes == 1 and bool(((self.logits >= 0) & (self.logits <= 1)).all())

    @property
    def outputs(self) -> str:
        """What the outputs look like: "probabilities", "log-probabilities" or "logits"; of a regression "numbers"."""
        if self.task == "regression":
            return "numbers"
        if self.classes == 1:
            return "logits"
        kinds = {"probabilities": self.logits, "log-probabilities": self.logits.exp()}
        return next((kind for kind, values in kinds.items() if are_probabilities(values, 1)), "logits")

    @property
    def has_channels(self) -> bool:
        """Whether dimension 1 holds channels, of images or signals, which are ranked together."""
        return self.inputs.ndim > 2

    @property
    def few(self) -> Tensor:
        """(n, ...) the first examples, whose outputs tell one model from another."""
        return self.inputs[:_FEW]

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What figures of several methods have in common, made when the first of them needs it."""
        if key not in self._shared:
            self._shared[key] = make()
        value: T = self._shared[key]
        return value

    def at_once(self, at: slice, samples: int) -> int:
        """What Captum's metrics take for most examples at once without a warning: no more than there are."""
        return min(self.batch, samples * len(self.inputs[at]))

    def elapsed(self, start: float) -> float:
        """Seconds since `time.perf_counter` gave the start, all work on the device done."""
        if self.inputs.is_cuda:
            torch.cuda.synchronize(self.inputs.device)
        return time.perf_counter() - start


def _examples(model: Callable[..., Any], inputs: Tensor, batch: int, **arguments: Any) -> ModelOnBatch:
    """A model on examples, which `draw_sample` has checked to be finite numbers."""
    return ModelOnBatch(model, inputs, max_examples_per_batch=batch, differentiable=False, name="model", **arguments)
