"""Associative recall: which of the earlier tokens decides?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from captum_density.ground_truth._networks import Reader, one_hot
from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["AssociativeRecall"]

_AWAY = 0.05  # of the tokens in training, so that the network knows what stands for a token that is away


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Key, value, key, value, ..., and a key again, whose value is asked for.

    What decides is three tokens: the key that is asked for, the same key before, and the value after it. The other
    pairs may be any. Inputs are one-hot, so that a token is changed by changing the input, whatever the network.

    Args:
        keys: Different keys; there are as many values.
        pairs: In an example.

    Raises:
        ValueError: Fewer than 2 pairs, or more pairs than keys.

    References:
        J. Ba, G. Hinton, V. Mnih, J. Z. Leibo and C. Ionescu, "Using Fast Weights to Attend to the Recent Past",
        NeurIPS 2016, arXiv:1610.06258, section 4.1.

    Example:
        >>> import torch
        >>> task = AssociativeRecall(keys=5, pairs=3)
        >>> examples = task.examples(1)
        >>> examples.inputs.argmax(2), examples.masks[0, :, 0].nonzero().flatten(), examples.targets
        (tensor([[2, 9, 1, 5, 0, 6, 2]]), tensor([0, 1, 6]), tensor([4]))
    """

    keys: int = 6
    pairs: int = 4
    name: ClassVar[str] = "associative recall"
    fit: ClassVar[FitConfig] = FitConfig(epochs=5, batch_size=128, lr=6e-3)
    training_examples: ClassVar[int] = 8000

    def __post_init__(self) -> None:
        if not 2 <= self.pairs <= self.keys:
            raise ValueError(f"pairs must be in 2..{self.keys}, as there are {self.keys} keys, but is {self.pairs}")

    @property
    def _blank(self) -> int:
        return 2 * self.keys

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Keys, values, which pair is asked for, and which tokens are blank."""
        keys, values = (random.random_sample((n, self.keys)).argsort(1)[:, : self.pairs] for _ in range(2))
        away = random.random_sample((n, 2 * self.pairs + 1)) < (_AWAY if training else 0)
        return {"keys": keys, "values": values, "asked": random.randint(self.pairs, size=n), "away": away}

    def render(self, latents: Latents) -> TaskExamples:
        """One-hot tokens (N, 2 pairs + 1, V)."""
        keys, values, asked = latents["keys"], latents["values"], latents["asked"][:, None]
        pairs = np.stack([keys, self.keys + values], 2).reshape(len(keys), -1)
        ids = np.concatenate([pairs, np.take_along_axis(keys, asked, 1)], 1)
        masks = np.arange(2 * self.pairs + 1) // 2 == asked
        masks[:, -1] = True
        inputs = one_hot(np.where(latents["away"], self._blank, ids), self._blank + 1)
        targets = torch.from_numpy(np.take_along_axis(values, asked, 1)[:, 0]).long()
        return TaskExamples(inputs, targets, torch.from_numpy(masks)[:, :, None], latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Another value or another question; or other pairs beside."""
        others = self.draw(len(latents["asked"]), random)
        rows, asked = np.arange(len(latents["asked"])), latents["asked"]
        if part == "deciding":  # another value, or another of the keys is asked for
            values = latents["values"].copy()
            values[rows, asked] = (values[rows, asked] + random.randint(1, self.keys, size=len(rows))) % self.keys
            elsewhere = (asked + random.randint(1, self.pairs, size=len(rows))) % self.pairs
            is_value = random.random_sample(len(rows)) < 0.5
            return {
                **latents,
                "values": np.where(is_value[:, None], values, latents["values"]),
                "asked": np.where(is_value, asked, elsewhere),
            }
        keys, values = others["keys"].copy(), others["values"].copy()
        kept = latents["keys"][rows, asked]
        # Keys stay different: where the one that is kept was drawn elsewhere, the two change places.
        keys = np.where(keys == kept[:, None], keys[rows, asked][:, None], keys)
        keys[rows, asked], values[rows, asked] = kept, latents["values"][rows, asked]
        return {**latents, "keys": keys, "values": values}

    def network(self) -> nn.Module:
        """A transformer of two layers."""
        return Reader(self._blank + 1, 2 * self.pairs + 1, self.keys)

    @property
    def groups(self) -> Tensor:
        """Tokens: a tensor that broadcasts to an input."""
        return torch.arange(2 * self.pairs + 1, device="cpu")[:, None]

    @property
    def baseline(self) -> Tensor:
        """A blank token: a tensor that broadcasts to an input."""
        return one_hot(np.array([[self._blank]]), self._blank + 1)[0]
