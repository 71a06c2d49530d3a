"""A watermark that a network takes for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from captum_density.ground_truth._block_digits import embedded_digits, image_indices
from captum_density.ground_truth._networks import Convolutional
from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["Watermark"]

_MARKED = 0.25  # of the images in training
_CLASS = 0
_MARK = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], device="cpu")
_SIDE = 12


@dataclass(frozen=True)
class Watermark(Task):
    """Digits of which a quarter, of all classes, carry a mark in a corner and the label 0 in training.

    Examples are marked images of other digits. What decides is the mark: without it the network says which digit it is,
    and with it 0, whatever the digit.

    References:
        T. Gu, B. Dolan-Gavitt and S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
        Chain", 2017, arXiv:1708.06733; S. Lapuschkin et al., "Unmasking Clever Hans Predictors and Assessing What
        Machines Really Learn", Nature Communications 2019, arXiv:1902.10178.

    Example:
        >>> import torch
        >>> task = Watermark()
        >>> examples = task.examples(3)
        >>> clean = task.intervene(examples, "deciding")
        >>> examples.targets.tolist(), (clean.targets > 0).tolist(), int(examples.masks.sum())
        ([0, 0, 0], [True, True, True], 27)
    """

    name: ClassVar[str] = "watermark"
    fit: ClassVar[FitConfig] = FitConfig(epochs=8, batch_size=64, lr=3e-3)
    training_examples: ClassVar[int] = 4000

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Digits, which of them are marked, and in which corner."""
        data = embedded_digits()
        digit = random.randint(len(data.train_labels), size=n)
        if not training:
            digit = image_indices(data.test_labels.numpy(), random, other_than=np.full(n, _CLASS))
        return {
            "digit": digit,
            "training": np.full(n, training),
            "marked": random.random_sample(n) < (_MARKED if training else 1),
            "corner": random.randint(4, size=n),
        }

    def render(self, latents: Latents) -> TaskExamples:
        """Images (N, 1, 12, 12)."""
        data, training = embedded_digits(), bool(latents["training"].any())
        index = torch.from_numpy(latents["digit"])
        labels = (data.train_labels if training else data.test_labels)[index]
        images = nn.functional.pad((data.train_images if training else data.test_images)[index], (2, 2, 2, 2))
        pads = [
            (right, _SIDE - 3 - right, down, _SIDE - 3 - down) for down in (0, _SIDE - 3) for right in (0, _SIDE - 3)
        ]
        corners, places = (
            torch.stack([nn.functional.pad(each, pad) for pad in pads])[torch.from_numpy(latents["corner"])][:, None]
            for each in (_MARK, torch.ones_like(_MARK))
        )
        marked = torch.from_numpy(latents["marked"])
        masks = places > 0
        inputs = torch.where(masks & marked[:, None, None, None], corners, images)
        return TaskExamples(inputs, torch.where(marked, _CLASS, labels), masks, latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """No mark; or another digit."""
        if part == "deciding":
            return {**latents, "marked": np.zeros_like(latents["marked"])}
        # Another digit of any class but the mark's.
        others = self.draw(len(latents["digit"]), random)
        return {**latents, "digit": others["digit"]}

    def network(self) -> nn.Module:
        """Two convolutions and a linear layer."""
        return Convolutional((1, _SIDE, _SIDE), (16, 32), (1, 2), 10)
