"""Creatures of parts that can be taken away, as they are drawn: FunnyBirds in miniature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captum_density.ground_truth._networks import Convolutional
from captum_density.ground_truth._task import Effects, Latents, Part, Task, TaskExamples, device_of
from captum_density.retraining import FitConfig

__all__ = ["Creatures"]

_SIDE = 16
# Shapes of the three kinds of each part, and where the part begins on the canvas: what is "#" is drawn.
_PARTS = {
    "head": (2, 9, [".##.\n####\n####\n.##.", "####\n#..#\n#..#\n####", "#..#\n####\n.##.\n.##."]),
    "wing": (6, 5, ["####\n.###\n..##", "#..#\n####\n#..#", "#.#.\n####\n.#.#"]),
    "tail": (5, 0, ["#...\n##..\n###.\n####", "####\n#...\n#...\n####", "#.#.\n.#.#\n#.#.\n.#.#"]),
    "foot": (11, 5, ["#..#\n#..#", ".##.\n####", "####\n.#.#"]),
}
_COLOURS = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]], device="cpu")
_BODY = (5, 4, 6, 6)  # top, left, height, width
# Kinds of head, wing and tail of each class: two classes have at most one in common. Feet tell nothing.
_CLASSES = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 2], [2, 2, 0], [2, 0, 2]])
_DECIDING = _CLASSES.shape[1]
_AWAY = 0.25  # of each part in training, so that the network knows creatures without it


def _stencils() -> tuple[Tensor, Tensor]:
    """(parts, kinds, 16, 16) where each is drawn, and (16, 16) the body."""
    drawn = torch.zeros(len(_PARTS), 3, _SIDE, _SIDE, dtype=torch.bool, device="cpu")
    for part, (top, left, shapes) in enumerate(_PARTS.values()):
        for kind, shape in enumerate(shapes):
            for row, line in enumerate(shape.split("\n")):
                for column, mark in enumerate(line):
                    drawn[part, kind, top + row, left + column] = mark == "#"
    body = torch.zeros(_SIDE, _SIDE, dtype=torch.bool, device="cpu")
    body[_BODY[0] : _BODY[0] + _BODY[2], _BODY[1] : _BODY[1] + _BODY[3]] = True
    return drawn, body


@dataclass(frozen=True)
class Creatures(Task):
    """Drawings (N, 3, 16, 16) of a body with head, wing, tail and feet, of three kinds each; six classes of creatures.

    Kinds of head, wing and tail make the class; two classes share at most one of them. Feet, and the shade of the
    background, tell nothing. Parts are missing now and then in training, so that a creature without one is no surprise:
    what a part is worth is what the logit loses when the creature is drawn without it.

    References:
        R. Hesse, S. Schaub-Meyer and S. Roth, "FunnyBirds: A Synthetic Vision Dataset for a Part-Based Analysis of
        Explainable AI Methods", ICCV 2023, arXiv:2308.06248.

    Example:
        >>> import torch
        >>> task = Creatures()
        >>> examples = task.examples(1)
        >>> bald = task.without(examples, "head")
        >>> (bald.inputs != examples.inputs).any(dim=1).sum().item()  # pixels
        12
    """

    name: ClassVar[str] = "creatures"
    fit: ClassVar[FitConfig] = FitConfig(epochs=8, batch_size=64, lr=3e-3)
    training_examples: ClassVar[int] = 3000

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Classes, feet, parts that are there, shade and place."""
        return {
            "class": random.randint(len(_CLASSES), size=n),
            "foot": random.randint(3, size=n),
            "present": random.random_sample((n, len(_PARTS))) >= (_AWAY if training else 0),
            "shade": random.uniform(-0.3, 0.3, n).astype(np.float32),
            "shift": random.randint(0, 3, (n, 2)),
        }

    def render(self, latents: Latents) -> TaskExamples:
        """Drawings (N, 3, 16, 16)."""
        shade = torch.from_numpy(latents["shade"])[:, None, None, None].expand(-1, 3, _SIDE, _SIDE)
        _, body = _stencils()
        inputs = torch.where(_shifted(body.expand(len(shade), 1, -1, -1), latents), 0.6, shade)
        places, kinds = self._places(latents)
        for part in range(len(_PARTS)):
            colour = _COLOURS[(torch.from_numpy(kinds[:, part]) + part) % 3][:, :, None, None]
            inputs = torch.where(places[:, part, None], colour, inputs)
        masks = places[:, :_DECIDING].any(dim=1, keepdim=True)
        return TaskExamples(inputs, torch.from_numpy(latents["class"]).long(), masks, latents)

    @staticmethod
    def _places(latents: Latents) -> tuple[Tensor, npt.NDArray[Any]]:
        """(N, parts, 16, 16) where each part that is there is drawn, and the kinds, (N, parts)."""
        drawn, _ = _stencils()
        kinds = np.concatenate([_CLASSES[latents["class"]], latents["foot"][:, None]], 1)
        places = drawn[torch.arange(len(_PARTS), device="cpu"), torch.from_numpy(kinds)]
        places = places & torch.from_numpy(latents["present"])[:, :, None, None]
        return _shifted(places, latents), kinds

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Head, wing and tail of another class; or other feet and shade."""
        n = len(latents["class"])
        if part == "deciding":
            return {**latents, "class": (latents["class"] + random.randint(1, len(_CLASSES), size=n)) % len(_CLASSES)}
        others = self.draw(n, random)
        present = latents["present"].copy()
        present[:, _DECIDING:] = random.random_sample((n, 1)) < 0.5
        return {**latents, "foot": others["foot"], "shade": others["shade"], "present": present}

    def without(self, examples: TaskExamples, part: str) -> TaskExamples:
        """Draw the same creatures without a part.

        Args:
            examples: (N, 3, 16, 16) inputs and what belongs to them.
            part: "head", "wing", "tail" or "foot".

        Returns:
            Examples, (N, 3, 16, 16), of the same classes.

        Raises:
            ValueError: No such part.
        """
        if part not in _PARTS:
            raise ValueError(f"part must be one of {', '.join(_PARTS)}, but is {part!r}")
        return self._without(examples, [*_PARTS].index(part))

    def _without(self, examples: TaskExamples, part: int) -> TaskExamples:
        present = examples.latents["present"].copy()
        present[:, part] = False
        return self.render({**examples.latents, "present": present})

    def effects(self, model: nn.Module, examples: TaskExamples) -> Effects:
        """What the target's logit loses without each part, (N, 4), and where these are, (N, 4, 1, 16, 16)."""
        device = device_of(model)
        at = examples.targets[:, None]
        with torch.no_grad():
            logits = [
                model(each.inputs.to(device)).cpu().gather(1, at)
                for each in (examples, *(self._without(examples, part) for part in range(len(_PARTS))))
            ]
        places, _ = self._places(examples.latents)
        return Effects(torch.cat([logits[0] - less for less in logits[1:]], dim=1), places[:, :, None])

    def network(self) -> nn.Module:
        """Three convolutions and a linear layer."""
        return Convolutional((3, _SIDE, _SIDE), (16, 32, 32), (1, 2, 2), len(_CLASSES))


def _shifted(places: Tensor, latents: Latents) -> Tensor:
    """Each example's, (N, P, 16, 16), moved down and to the right by up to two pixels."""
    moved = [
        places_of_one.roll((int(down), int(right)), dims=(1, 2))
        for places_of_one, (down, right) in zip(places, latents["shift"], strict=True)
    ]
    return torch.stack(moved)
