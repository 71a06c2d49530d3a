"""Blocks of noise, one of which carries the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from captum_density.datasets import feature_leakage
from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["SignalBlock"]


@dataclass(frozen=True)
class SignalBlock(Task):
    """Numbers, one of which, among the first half, is the signal, -1 or +1, and the others noise: `feature_leakage`.

    What decides is the signal. Gradients of trained networks mark all places where it may be, in every example.

    Args:
        blocks: Numbers of an example, even.
        eta: The noise is uniform in [-eta, eta].

    Raises:
        ValueError: An odd number of blocks, or eta that is not in [0, 1).

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, equation (2).

    Example:
        >>> import torch
        >>> examples = SignalBlock(blocks=4, eta=0.0).examples(2, seed=1)
        >>> examples.inputs, examples.targets
        (tensor([[0., 1., 0., 0.],
                [0., 1., 0., 0.]]), tensor([1, 1]))
    """

    blocks: int = 10
    eta: float = 0.3
    name: ClassVar[str] = "signal block"
    fit: ClassVar[FitConfig] = FitConfig(epochs=20, batch_size=100, lr=0.01)
    training_examples: ClassVar[int] = 2000

    def __post_init__(self) -> None:
        if self.blocks < 2 or self.blocks % 2:
            raise ValueError(f"blocks must be an even number of at least 2, but is {self.blocks}")
        if not 0 <= self.eta < 1:
            raise ValueError(f"eta must be in [0, 1), so that the signal stands out, but is {self.eta}")

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Labels, places of the signal, and noise."""
        data = feature_leakage(n, self.blocks, eta=self.eta, seed=int(random.randint(2**31)))
        signal = (2 * data.labels[:, None] - 1) * data.signal_masks
        return {
            "label": data.labels.numpy(),
            "block": data.signal_block.numpy(),
            "noise": (data.inputs - signal).numpy(),
        }

    def render(self, latents: Latents) -> TaskExamples:
        """Numbers (N, blocks)."""
        labels, noise = torch.from_numpy(latents["label"]), torch.from_numpy(latents["noise"])
        masks = torch.from_numpy(latents["block"])[:, None] == torch.arange(self.blocks, device="cpu")
        return TaskExamples(noise + (2 * labels[:, None] - 1) * masks, labels, masks, latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """The other sign; or other noise."""
        if part == "deciding":
            return {**latents, "label": 1 - latents["label"]}
        others = self.draw(len(latents["label"]), random)["noise"]
        own = latents["block"][:, None] == np.arange(self.blocks)
        return {**latents, "noise": np.where(own, latents["noise"], others)}

    def network(self) -> nn.Module:
        """A perceptron with one hidden layer."""
        return nn.Sequential(nn.Linear(self.blocks, 64), nn.ReLU(), nn.Linear(64, 2))
