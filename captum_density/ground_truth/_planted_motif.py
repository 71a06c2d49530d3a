"""Signals with a planted motif."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["PlantedMotif"]

_LENGTH, _SPAN = 64, 8
_T = torch.linspace(-1, 1, _SPAN, device="cpu")
# Four motifs, one of each class, and a bump that is in every signal and tells nothing.
_MOTIFS = 2 * torch.stack([_T, -_T, (torch.pi * _T).cos(), (2 * torch.pi * _T).sin(), 1 - _T.abs()])
_CLASSES = len(_MOTIFS) - 1


@dataclass(frozen=True)
class PlantedMotif(Task):
    """Noise (N, 1, 64) with one of four motifs of 8 steps somewhere, which is the class, and a bump elsewhere.

    What decides is the motif. The bump is in every signal, as large, and tells nothing.

    References:
        A. A. Ismail, M. Gunady, H. Corrada Bravo and S. Feizi, "Benchmarking Deep Learning Interpretability in Time
        Series Predictions", NeurIPS 2020, arXiv:2010.13924, for signals of which it is known which steps decide.

    Example:
        >>> import torch
        >>> examples = PlantedMotif().examples(2)
        >>> examples.inputs.shape, examples.masks.sum(dim=2).flatten().tolist()
        (torch.Size([2, 1, 64]), [8, 8])
    """

    name: ClassVar[str] = "planted motif"
    fit: ClassVar[FitConfig] = FitConfig(epochs=8, batch_size=64, lr=5e-3)
    training_examples: ClassVar[int] = 3000

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Classes, where motif and bump begin, and noise."""
        # Two of the eight spans of the signal, so that motif and bump do not meet, each moved within its span's half.
        spans = random.random_sample((n, _LENGTH // (2 * _SPAN))).argsort(1)[:, :2]
        return {
            "class": random.randint(_CLASSES, size=n),
            "start": 2 * _SPAN * spans + random.randint(_SPAN, size=(n, 2)),
            "noise": (0.4 * random.standard_normal((n, 1, _LENGTH))).astype(np.float32),
        }

    def render(self, latents: Latents) -> TaskExamples:
        """Signals (N, 1, 64)."""
        noise, start = torch.from_numpy(latents["noise"]), torch.from_numpy(latents["start"])
        targets = torch.from_numpy(latents["class"]).long()
        steps = torch.arange(_LENGTH, device="cpu") - start[:, :, None]
        inside = (steps >= 0) & (steps < _SPAN)
        kinds = torch.stack([targets, torch.full_like(targets, _CLASSES)], 1)
        planted = _MOTIFS[kinds].gather(2, steps.clamp(0, _SPAN - 1)) * inside
        return TaskExamples(noise + planted.sum(1, keepdim=True), targets, inside[:, :1], latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Another motif; or other noise, and the bump elsewhere."""
        n = len(latents["class"])
        if part == "deciding":
            return {**latents, "class": (latents["class"] + random.randint(1, _CLASSES, size=n)) % _CLASSES}
        inside = self.render(latents).masks.numpy()
        noise = np.where(inside, latents["noise"], self.draw(n, random)["noise"])
        # The bump goes to a span, of those that are left, that is not the motif's.
        spans = latents["start"] // (2 * _SPAN)
        other = (spans[:, 0] + random.randint(1, _LENGTH // (2 * _SPAN), size=n)) % (_LENGTH // (2 * _SPAN))
        start = np.stack([latents["start"][:, 0], 2 * _SPAN * other + random.randint(_SPAN, size=n)], 1)
        return {**latents, "noise": noise, "start": start}

    def network(self) -> nn.Module:
        """Two convolutions, a maximum over time and a linear layer."""
        return nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4),
            nn.ReLU(),
            nn.Conv1d(16, 16, 9, padding=4),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(16, _CLASSES),
        )
