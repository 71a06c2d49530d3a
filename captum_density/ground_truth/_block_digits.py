"""Digits beside a block that tells nothing: BlockMNIST, small or whole."""

from __future__ import annotations

import functools
import zipfile
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from captum_density.datasets import BlockImages, Digits, digits, mnist
from captum_density.ground_truth._networks import Convolutional
from captum_density.ground_truth._task import Latents, Part, Task, TaskExamples
from captum_density.retraining import FitConfig

__all__ = ["BlockDigits", "BlockMNIST", "embedded_digits", "image_indices"]


@dataclass(frozen=True)
class BlockDigits(Task):
    """scikit-learn's digits, (N, 1, 16, 8), each above or below a square that says nothing of its class.

    What decides is the digit's block. The square is more or less faint in each image, down to nothing, so that its
    change is an example such as the network was trained on, too.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, BlockMNIST.

    Example:
        >>> import torch
        >>> examples = BlockDigits().examples(4)
        >>> examples.inputs.shape, examples.masks.sum(dim=(1, 2, 3)).tolist()
        (torch.Size([4, 1, 16, 8]), [64, 64, 64, 64])
    """

    name: ClassVar[str] = "block digits"
    fit: ClassVar[FitConfig] = FitConfig(epochs=8, batch_size=64, lr=3e-3)
    training_examples: ClassVar[int] = 4000

    def _images(self) -> Digits:
        """The digits, for training and for examples, (N, 1, H, W) each."""
        return embedded_digits()

    def draw(self, n: int, random: np.random.RandomState, *, training: bool = False) -> Latents:
        """Digits, which half they are in, and how faint the square is."""
        data = self._images()
        return {
            "digit": random.randint(len(data.train_labels if training else data.test_labels), size=n),
            "training": np.full(n, training),
            "on_top": random.random_sample(n) < 0.5,
            "faintness": random.random_sample(n).astype(np.float32),
        }

    def render(self, latents: Latents) -> TaskExamples:
        """Images (N, 1, 2H, W)."""
        data = self._images()
        training = bool(latents["training"].any())
        index = torch.from_numpy(latents["digit"])
        images = (data.train_images if training else data.test_images)[index]
        labels = (data.train_labels if training else data.test_labels)[index]
        null = BlockImages(data.test_images[:1], data.test_labels[:1]).null
        faint = torch.from_numpy(latents["faintness"])[:, None, None, None] * null
        on_top = torch.from_numpy(latents["on_top"])[:, None, None, None]
        inputs = torch.where(on_top, torch.cat([images, faint], 2), torch.cat([faint, images], 2))
        rows = torch.arange(inputs.shape[2], device="cpu")[:, None] < images.shape[2]
        masks = (rows == on_top).expand(-1, 1, *inputs.shape[2:])
        return TaskExamples(inputs, labels, masks, latents)

    def redraw(self, latents: Latents, part: Part, random: np.random.RandomState) -> Latents:
        """Another digit; or another faintness."""
        if part == "rest":
            return {**latents, "faintness": random.random_sample(len(latents["digit"])).astype(np.float32)}
        labels = self._images().test_labels.numpy()
        return {**latents, "digit": image_indices(labels, random, other_than=labels[latents["digit"]])}

    def network(self) -> nn.Module:
        """Two convolutions and a linear layer."""
        return Convolutional((1, 16, 8), (16, 32), (1, 2), 10)


@dataclass(frozen=True)
class BlockMNIST(BlockDigits):
    """MNIST's digits, (N, 1, 56, 28), each above or below a square, as `BlockDigits`; units are patches of 4 x 4.

    Args:
        root: As `mnist`, or an .npz file of images ``x``, (N, 28, 28) bytes, and labels ``y``,
            every fifth of which is for examples.

    Raises:
        FileNotFoundError: From a call: MNIST is not there, or damaged.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, BlockMNIST.

    Example:
        >>> import torch
        >>> BlockMNIST("data").network()(torch.zeros(2, 1, 56, 28)).shape
        torch.Size([2, 10])
    """

    root: str | PathLike[str] | None = None
    name: ClassVar[str] = "BlockMNIST"
    fit: ClassVar[FitConfig] = FitConfig(epochs=6, batch_size=64, lr=3e-3)
    training_examples: ClassVar[int] = 8000

    def _images(self) -> Digits:
        """The digits, for training and for examples, (N, 1, H, W) each."""
        return _mnist(None if self.root is None else Path(self.root))

    def network(self) -> nn.Module:
        """Two convolutions and a linear layer."""
        return Convolutional((1, 56, 28), (16, 32), (2, 2), 10)

    @property
    def groups(self) -> Tensor:
        """Patches of 4 x 4 pixels: a tensor that broadcasts to an input."""
        rows, columns = torch.arange(14, device="cpu")[:, None], torch.arange(7, device="cpu")
        return (7 * rows + columns).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]


@functools.cache
def embedded_digits() -> Digits:
    """`digits`, read once."""
    return digits()


@functools.lru_cache(maxsize=2)
def _mnist(root: Path | None) -> Digits:
    if root is None or root.suffix != ".npz":
        return Digits(*mnist(root))
    try:
        with np.load(root, allow_pickle=False) as arrays:
            images = torch.from_numpy(arrays["x"]).float().div_(255)[:, None]
            labels = torch.from_numpy(arrays["y"]).long()
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FileNotFoundError(f"{root} must be an .npz file of images x and labels y, but is not: {error}") from error
    if images.shape[1:] != (1, 28, 28) or labels.shape != images.shape[:1]:
        raise FileNotFoundError(
            f"{root} must have images x, (N, 28, 28), and labels y, (N,), but has {tuple(images[:, 0].shape)} and "
            f"{tuple(labels.shape)}"
        )
    test = torch.arange(len(labels), device="cpu") % 5 == 4  # in whatever order the classes are
    return Digits(images[~test], labels[~test], images[test], labels[test])


def image_indices(
    labels: npt.NDArray[Any], random: np.random.RandomState, other_than: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """(N,) images of another class each."""
    drawn = random.random_sample((len(other_than), len(labels)))
    return np.where(labels == other_than[:, None], -1, drawn).argmax(1)
