"""What all measurements of an audit share: the model, the examples, the noise, the seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._model.errors import one_line
from captum_density._model.generators import derived_seed, seed_generators
from captum_density._model.validation import are_probabilities
from captum_density.audit._examples import taken
from captum_density.metrics import pixel_perturbation

__all__ = ["Retraining", "Setting", "deviation", "logits_of"]

_RANDOM_RANKINGS = 5


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
                examples = taken(data, None, seed)
            except (TypeError, ValueError) as error:
                raise type(error)(f"the data to {what} models on: {error}") from error
            if examples.labels is None:
                raise ValueError(f"the data to {what} models on have no labels")
            pairs.append((examples.inputs, examples.labels))
            skipped += examples.skipped
        return replace(self, train=pairs[0], test=pairs[1]), tuple(skipped)


@dataclass(frozen=True)
class Setting:
    """Every measurement's common ground; each starts from the same seed.

    Args:
        model: (N, ...) to (N, classes), in evaluation mode.
        inputs: (N, ...).
        labels: (N,) or None.
        target: (N,) the explained classes.
        no_labels: Why there are none, or empty.
        logits: (N, classes) what the model returns.
        seed: Of everything drawn.
        noise_std: Of the Gaussian noise in the density's figures.
        perturb_radius: Of sensitivity.
        infidelity_samples: Perturbations of each example.
        sensitivity_samples: Perturbations of each example.
        batch: Most examples that run at once.
        proxy: The classifier that judges samples, or None.
        retraining: What DiffROAR needs, or None.
        cells: Where DiffROAR keeps finished models.
        show_progress: Whether long work shows a bar of its own.
    """

    model: Callable[..., Tensor]
    inputs: Tensor
    labels: Tensor | None
    target: Tensor
    no_labels: str
    logits: Tensor
    seed: int
    noise_std: float
    perturb_radius: float
    infidelity_samples: int
    sensitivity_samples: int
    batch: int
    proxy: Callable[..., Tensor] | None
    retraining: Retraining | None
    cells: Path | None
    show_progress: bool

    def chunks(self) -> Iterator[slice]:
        """Slices of the examples, none longer than the batch."""
        for start in range(0, len(self.inputs), self.batch):
            yield slice(start, start + self.batch)

    def generator(self) -> torch.Generator:
        """A new generator of the seed, on the CPU, so that every device is given the same noise."""
        return torch.Generator().manual_seed(self.seed)

    def reseed(self) -> None:
        """Seed every generator that a method may draw from."""
        seed_generators(self.seed, self.inputs.device)
        np.random.seed(self.seed % 2**32)  # GradientShap draws its baselines from NumPy
        random.seed(self.seed)

    @property
    def classes(self) -> int:
        """How many outputs the model has."""
        return self.logits.shape[1]

    @property
    def outputs(self) -> str:
        """What the outputs look like: "probabilities", "log-probabilities" or "logits"."""
        if self.classes == 1:
            return "logits"
        kinds = {"probabilities": self.logits, "log-probabilities": self.logits.exp()}
        return next((kind for kind, values in kinds.items() if are_probabilities(values, 1)), "logits")

    @property
    def has_channels(self) -> bool:
        """Whether the inputs are images, whose channels are ranked together."""
        return self.inputs.ndim == 4

    def kept_area(self, ranking: Tensor) -> Tensor:
        """(N,) float64 area under the explained class's probability when the highest-ranking pixels are kept."""
        fill = self.inputs.mean(dim=0, keepdim=True)
        areas = [
            pixel_perturbation(
                self.model,
                self.inputs[at],
                ranking[at],
                fill,
                target=self.target[at],
                channels="together" if self.has_channels else "singly",
                max_examples_per_batch=self.batch,
            ).area
            for at in self.chunks()
        ]
        return torch.cat(areas).double().cpu()

    @cached_property
    def random_area(self) -> Tensor:
        """(N,) the mean of that area over random rankings."""
        shape = (len(self.inputs), 1, *self.inputs.shape[2:]) if self.has_channels else self.inputs.shape
        rankings = torch.Generator().manual_seed(derived_seed(self.seed, "random rankings"))
        areas = [
            self.kept_area(torch.rand(shape, generator=rankings, dtype=torch.float64).to(self.inputs))
            for _ in range(_RANDOM_RANKINGS)
        ]
        return torch.stack(areas).mean(dim=0)


def deviation(inputs: Tensor) -> float:
    """Standard deviation of all values, and 1 where they do not differ."""
    return inputs.double().std().item() or 1.0 if inputs.numel() > 1 else 1.0


def logits_of(model: Callable[..., Any], inputs: Tensor, batch: int) -> Tensor:
    """(N, classes) the model's outputs, detached.

    Raises:
        TypeError: It returns no tensor.
        ValueError: It fails on the inputs, returns another shape, or NaN or infinity.
    """
    outputs = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        try:
            with torch.no_grad():
                found = model(part)
        except Exception as error:  # whatever a user's model does
            raise ValueError(
                f"the model fails on inputs of shape {tuple(part.shape)}: {one_line(error)}; if it is made for other "
                "inputs, give the data a transform"
            ) from error
        if not isinstance(found, Tensor):
            keys = f" with the keys {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
            raise TypeError(
                "the model must return a tensor of logits, but returns an object of class "
                f"{type(found).__name__}{keys}; wrap it in a module whose forward returns one, such as `return "
                "self.model(x)['logits']`"
            )
        if found.ndim != 2 or len(found) != len(part) or not found.is_floating_point():
            raise ValueError(
                f"the model must return logits of shape (N, classes), but gives {found.dtype} of shape "
                f"{tuple(found.shape)} for {len(part)} examples"
            )
        outputs.append(found.detach())
    logits = torch.cat(outputs)
    if not logits.isfinite().all():
        raise ValueError(f"the model returns {int((~logits.isfinite()).sum())} NaN or infinite logits")
    return logits
