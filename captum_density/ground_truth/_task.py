"""What tasks have in common: examples, rendered from what they are made of, and a network trained on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captum_density._model.generators import derived_seed
from captum_density.retraining import FitConfig, adversarial_fit

__all__ = ["Effects", "Latents", "Part", "Task", "TaskExamples", "Verification", "device_of"]

Latents = Mapping[str, npt.NDArray[Any]]
Part = Literal["deciding", "rest"]


class TaskExamples(NamedTuple):
    """Examples of a task, and which of their elements decide. See `Task`.

    Args:
        inputs: (N, ...) float32.
        targets: (N,) int64, the class of each, which a trained network predicts.
        masks: (N, ...) bool, true on the elements that decide; each dimension as the inputs' or 1.
        latents: What they are rendered from, arrays (N, ...) by name.
    """

    inputs: Tensor
    targets: Tensor
    masks: Tensor
    latents: Latents


class Effects(NamedTuple):
    """What parts of an example are worth, exactly. See `Task`.

    Args:
        values: (N, P) what the logit of the target owes to each part.
        masks: (N, P, ...) bool, the elements of each part; each dimension as the inputs' or 1.
    """

    values: Tensor
    masks: Tensor


class Verification(NamedTuple):
    """Whether a network decides by what is said to decide, by intervention. See `Task`.

    Args:
        accuracy: Share of examples whose class it predicts.
        changed: Share of its right predictions that become the new class when what decides is changed.
        unchanged: Share of its right predictions that stay when all the rest is drawn anew.
    """

    accuracy: float
    changed: float
    unchanged: float


class Task(ABC):
    """A classification problem of which it is known what decides: data, a network trained on them, and the answer.

    Examples are rendered from latents (a digit and its place, the words of a sentence), so that whatever decides can be
    changed and the rest left, or the reverse, and both stay examples such as the network was trained on. That is how
    the answer is proved (`verify`), not assumed.

    A task of one's own implements `draw`, `render`, `redraw` and `network`, and where inputs are not pixels or columns,
    `groups` and `baseline`. Everything a task may draw from is NumPy's legacy generator, whose stream is frozen.

    Attributes:
        name: In tables.
        fit: How networks are trained.
        training_examples: On how many.

    References:
        Y. Zhou, S. Booth, M. T. Ribeiro and J. Shah, "Do Feature Attribution Methods Correctly Attribute Features?",
        AAAI 2022, arXiv:2104.14403, for examples whose effective features are known by construction.

    Example:
        >>> import torch
        >>> from captum_density.ground_truth import SignalBlock
        >>> task = SignalBlock()
        >>> examples = task.examples(2, seed=1)
        >>> flipped = task.intervene(examples, "deciding")
        >>> (flipped.inputs != examples.inputs).equal(examples.masks), flipped.targets.equal(1 - examples.targets)
        (True, True)
    """

    name: ClassVar[str]
    fit: ClassVar[FitConfig] = FitConfig()
    training_examples: ClassVar[int] = 4000

    @abstractmethod
    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Draw what examples are made of.

        Args:
            n: Examples.
            random: What to draw from.
            training: Whether for training, with all that a network has to have met, such as tokens that are away.

        Returns:
            Arrays of n rows, (n, ...) each, by name.

        Raises:
            ImportError: What the data come from is not installed.
        """

    @abstractmethod
    def render(self, latents: Latents) -> TaskExamples:
        """Make examples of what they are made of.

        Args:
            latents: Arrays (N, ...), as `draw` returns them.

        Returns:
            Inputs (N, ...), targets and masks, with these latents.

        Raises:
            ImportError: As `draw`.
        """

    @abstractmethod
    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Change what examples are made of.

        Args:
            latents: Arrays (N, ...), as `draw` returns them.
            part: "deciding" for what decides, in each example so that another class is right; "rest" for all else.
            random: What to draw from.

        Returns:
            Others of the same form, (N, ...).

        Raises:
            ImportError: As `draw`.
        """

    @abstractmethod
    def network(self) -> nn.Module:
        """Make an untrained network of the inputs, (N, classes) logits."""

    @property
    def groups(self) -> Tensor:
        """Which elements are one unit: a tensor that broadcasts to an input, of integers from 0; by default pixels."""
        shape = self.render(self.draw(1, np.random.RandomState(0))).inputs.shape[1:]
        units = (1, *shape[1:]) if len(shape) == 3 else tuple(shape)
        return torch.arange(int(np.prod(units)), device="cpu").view(units)

    @property
    def baseline(self) -> Tensor:
        """What stands for a unit that is away, a tensor that broadcasts to an input: by default 0."""
        return torch.zeros((), device="cpu")

    def effects(self, model: nn.Module, examples: TaskExamples) -> Effects | None:
        """What parts are worth to the logit of the target, where that is known exactly; None elsewhere.

        Args:
            model: A trained network.
            examples: (N, ...) inputs and what belongs to them.

        Returns:
            Effects of P parts, (N, P), and where these are, (N, P, ...).

        Raises:
            ValueError: Examples of another task.
        """
        return None

    def examples(self, n: int, seed: int = 0) -> TaskExamples:
        """Draw examples that no network is trained on.

        Args:
            n: How many.
            seed: Of the draw; no global generator is touched.

        Returns:
            Inputs (n, ...), targets, masks and latents, on the CPU.

        Raises:
            ValueError: n is no positive integer.
            ImportError: As `draw`.
        """
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer of at least 1, but is {n!r}")
        return self.render(self.draw(n, _random(seed, self.name, "examples")))

    def intervene(self, examples: TaskExamples, part: Part, seed: int = 0) -> TaskExamples:
        """Change what decides, or all the rest.

        Args:
            examples: (N, ...) inputs and what belongs to them.
            part: "deciding": another class becomes right; "rest": the same class stays right.
            seed: Of what is drawn.

        Returns:
            Other examples, (N, ...), with the targets that are right now.

        Raises:
            ValueError: The part is neither.
            ImportError: As `draw`.
        """
        if part not in ("deciding", "rest"):
            raise ValueError(f"part must be 'deciding' or 'rest', but is {part!r}")
        return self.render(self.redraw(examples.latents, part, _random(seed, self.name, part)))

    def train(self, seed: int = 0) -> nn.Module:
        """Train a network, on the CPU.

        Args:
            seed: Of training examples, initial weights and order.

        Returns:
            The network in evaluation mode, the same for the same seed.

        Raises:
            ImportError: As `draw`.
        """
        drawn = self.render(self.draw(self.training_examples, _random(seed, self.name, "training"), training=True))
        model = adversarial_fit(self.network, (drawn.inputs, drawn.targets), radius=0.0, fit=self.fit, seed=seed)
        return model.requires_grad_(False)

    def verify(self, model: nn.Module, n: int = 200, seed: int = 0) -> Verification:
        """Ask a network, by intervention, whether what is said to decide does.

        Args:
            model: A trained network, on any device.
            n: Examples.
            seed: Of these and of what is changed.

        Returns:
            Three shares in [0, 1], each of which ought to be near 1.

        Raises:
            ValueError: n is no positive integer.
            ImportError: As `draw`.
        """
        examples = self.examples(n, seed)
        changed, same = (self.intervene(examples, part, seed) for part in ("deciding", "rest"))
        right, becomes, stays = (_predicts(model, other) for other in (examples, changed, same))
        share = [float(one.double().mean()) for one in (right, becomes[right], stays[right])]
        return Verification(*share)


def _predicts(model: nn.Module, examples: TaskExamples) -> Tensor:
    device = device_of(model)
    with torch.no_grad():
        return model(examples.inputs.to(device)).argmax(1).cpu() == examples.targets


def device_of(model: nn.Module) -> torch.device:
    """Where a network is."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _random(seed: int, *words: str) -> np.random.RandomState:
    return np.random.RandomState(derived_seed(seed, *words) % 2**32)
