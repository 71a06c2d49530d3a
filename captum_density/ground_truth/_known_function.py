"""A table whose function is known, interactions included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.generators import derived_seed, seeded
from captum_density.ground_truth._task import Effects, Latents, Part, Task, TaskExamples

__all__ = ["KnownFunction"]

_COLUMNS, _USED = 10, 6
_STEPS, _LR = 1500, 1e-2


@dataclass(frozen=True)
class KnownFunction(Task):
    r"""Ten columns, uniform in [-1, 1], of which six make a function whose Shapley values are known.

    .. math:: f(x) = 2 x_0 - \sin(\pi x_1) + 3 x_2 x_3 + 3 \max(x_4, 0)\, x_5

    The class is 1 where f is positive; the network learns f itself, as the difference of its two logits. Against the
    baseline 0 the Shapley value of a column is its own term and half of each product that it is in, and 0 for the last
    four columns.

    References:
        M. Liu, S. Khandagale, C. White and W. Neiswanger, "Synthetic Benchmarks for Scientific Research in Explainable
        Machine Learning", NeurIPS Datasets and Benchmarks 2021, arXiv:2106.12543, for data of known functions; L. S.
        Shapley, "A Value for n-Person Games", 1953.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.5, 0.5, 1.0, 1.0, -1.0, 1.0, 0.3, 0.3, 0.3, 0.3]])
        >>> KnownFunction().function(x), KnownFunction().shapley_values(x)[0, :6]
        (tensor([3.]), tensor([ 1.0000, -1.0000,  1.5000,  1.5000,  0.0000,  0.0000]))
    """

    name: ClassVar[str] = "known function"

    @staticmethod
    @takes_arrays
    def function(x: Tensor) -> Tensor:
        """What is learned.

        Args:
            x: (N, 10).

        Returns:
            f(x), (N,).

        Raises:
            ValueError: x has another shape.
        """
        return KnownFunction.shapley_values(x).sum(1)

    @staticmethod
    @takes_arrays
    def shapley_values(x: Tensor) -> Tensor:
        """Exact Shapley values of f against the baseline 0.

        Args:
            x: (N, 10).

        Returns:
            (N, 10), which sum to f(x).

        Raises:
            ValueError: x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != _COLUMNS:
            raise ValueError(f"x must be (N, {_COLUMNS}), but has shape {tuple(x.shape)}")
        one, two = 3 * x[:, 2] * x[:, 3], 3 * x[:, 4].clamp(min=0) * x[:, 5]
        values = [2 * x[:, 0], -(math.pi * x[:, 1]).sin(), one / 2, one / 2, two / 2, two / 2]
        return torch.stack([*values, *(4 * [torch.zeros_like(one)])], dim=1)

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Columns, uniform in [-1, 1]."""
        return {"x": random.uniform(-1, 1, (n, _COLUMNS)).astype(np.float32)}

    def render(self, latents: Latents) -> TaskExamples:
        """Columns (N, 10)."""
        x = torch.from_numpy(latents["x"])
        masks = (torch.arange(_COLUMNS, device="cpu") < _USED).expand(len(x), -1)
        return TaskExamples(x, (self.function(x) > 0).long(), masks, latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Other columns of the function; or the four that it does not have."""
        x, used = latents["x"], np.arange(_COLUMNS) < _USED
        if part == "rest":
            return {"x": np.where(used, x, self.draw(len(x), random)["x"])}
        # The other class's are drawn until each example has one.
        sign = self.function(torch.from_numpy(x)).sign()
        candidates = torch.from_numpy(self.draw(64, random)["x"])
        worth = self.function(candidates)[None] * -sign[:, None] + torch.from_numpy(random.random_sample((len(x), 64)))
        return {"x": np.where(used, candidates[worth.argmax(1)].numpy(), x)}

    def effects(self, model: nn.Module, examples: TaskExamples) -> Effects:
        """Shapley values of the target's logit by column, (N, 10), where each is, (N, 10, 10)."""
        values = self.shapley_values(examples.inputs) * (2 * examples.targets[:, None] - 1) / 2
        masks = torch.eye(_COLUMNS, dtype=torch.bool, device="cpu").expand(len(values), -1, -1)
        return Effects(values, masks)

    def network(self) -> nn.Module:
        """A perceptron with two hidden layers."""
        return nn.Sequential(nn.Linear(_COLUMNS, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))

    def train(self, seed: int = 0) -> nn.Module:
        """Train a network's logits to be -f / 2 and f / 2, on fresh columns in each step."""
        with seeded(derived_seed(seed, self.name, "network"), torch.device("cpu")):
            model = self.network()
        random = np.random.RandomState(derived_seed(seed, self.name, "training") % 2**32)
        optimizer = torch.optim.Adam(model.parameters(), _LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=_STEPS)
        with torch.enable_grad():
            for _ in range(_STEPS):
                x = self.render(self.draw(256, random, training=True)).inputs
                half = self.function(x)[:, None] / 2
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), torch.cat([-half, half], 1)).backward()
                optimizer.step()
                schedule.step()
        return model.requires_grad_(False).eval()
