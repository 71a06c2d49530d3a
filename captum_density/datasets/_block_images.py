"""Images of two blocks, one that tells the class and one that tells nothing."""

from __future__ import annotations

from os import PathLike
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_density._model.arrays import takes_arrays
from captum_density.datasets._digits import Digits, digits
from captum_density.datasets._seeds import LAST_SEED, random_state
from captum_density.datasets._torchvision import ImageSplits, mnist

__all__ = ["BlockImages", "BlockSplits", "block_digits", "block_mnist"]

Null = Literal["square", "mean"] | Tensor
Position = Literal["random", "top"]


class BlockImages(Dataset[tuple[Tensor, Tensor]]):
    """Each image, the signal block, above or below one null block that is the same for all.

    An explanation of a model that classifies them ought to mark the signal block, and `signal_masks` says where it
    is. With random positions both halves matter somewhere in the data, and the gradients of an ordinarily trained
    network mark both in each example ("feature leakage"); with the signal always on top they need not.

    Args:
        images: (N, C, H, W), floating-point, of any range.
        labels: (N, ...), kept as they are.
        null: "square" for the outline of a square, with its two diagonals where 14 pixels give room, drawn in the
            images' largest value on their smallest; "mean" for the mean image; or an image (C, H, W).
        position: "random" puts the signal in either half with probability 1/2, "top" always in the upper one
            (BlockMNIST-Top).
        seed: Of the positions, in 0..2^32 - 1. They are the same on every machine, and no global generator is touched.

    Attributes:
        images: (N, C, 2H, W), the images and the null block, stacked.
        labels: (N, ...), as they came.
        null: (C, H, W), the null block.
        signal_on_top: (N,) bool, whether the signal block is the upper one.

    Indexing gives (image, label), one or several, as `torch.utils.data.TensorDataset` does.

    Raises:
        ValueError: If images are not (N, C, H, W), there are not as many labels, the null image has another shape, or
            null, position or seed are none of the above.
        TypeError: If images are not floating-point.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, BlockMNIST. The pixels of its null block are in no text we could read: ours is alike in kind.

    Example:
        >>> import torch
        >>> data = BlockImages(torch.ones(2, 1, 1, 2), torch.tensor([3, 4]), null=torch.zeros(1, 1, 2), position="top")
        >>> data.images[0]
        tensor([[[1., 1.],
                 [0., 0.]]])
        >>> data.signal_masks[0]
        tensor([[[ True,  True],
                 [False, False]]])
    """

    @takes_arrays
    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        null: Null = "square",
        position: Position = "random",
        seed: int = 0,
    ) -> None:
        if images.ndim != 4 or images.numel() == 0:
            raise ValueError(f"images must be (N, C, H, W) and not empty, but have shape {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating-point, but are {images.dtype}; take images.float() / 255")
        n, channels, height, width = images.shape
        if labels.ndim == 0 or len(labels) != n:
            raise ValueError(f"labels must be (N, ...) for {n} images, but have shape {tuple(labels.shape)}")
        if position not in ("random", "top"):
            raise ValueError(f"position must be 'random' or 'top', but is {position!r}")
        upper = random_state(seed).random_sample(n) < (0.5 if position == "random" else 1)
        self.null = _null_block(images, null)
        self.labels = labels
        self.signal_on_top = torch.from_numpy(upper).to(images.device)
        blocks = self.null[:, None].repeat(n, 1, 2, 1, 1)  # (N, C, half, H, W)
        blocks[torch.arange(n, device=images.device), :, (~self.signal_on_top).long()] = images
        self.images = blocks.view(n, channels, 2 * height, width)

    @property
    def signal_masks(self) -> Tensor:
        """(N, 1, 2H, W) bool, true on the signal block of each example; expanded, so clone it before writing."""
        n, _, rows, width = self.images.shape
        upper = torch.arange(rows, device=self.images.device) < rows // 2
        return (upper == self.signal_on_top[:, None])[:, None, :, None].expand(n, 1, rows, width)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


class BlockSplits(NamedTuple):
    """Block images for training and for testing, with the same null block and positions of their own.

    See `block_digits`.

    Args:
        train: For training.
        test: For testing.
    """

    train: BlockImages
    test: BlockImages


def block_mnist(
    root: str | PathLike[str] | None = None,
    *,
    fashion: bool = False,
    null: Null = "square",
    position: Position = "random",
    seed: int = 0,
    download: bool = False,
) -> BlockSplits:
    """BlockMNIST: MNIST's digits, (N, 1, 56, 28), each above or below a null block.

    Args:
        root: As `mnist`.
        fashion: Fashion-MNIST instead.
        null: As `BlockImages` takes it; the mean is that of the training images, in both splits.
        position: "random" or "top".
        seed: Of the positions; the two splits draw theirs from streams of their own.
        download: Whether to fetch what is missing.

    Returns:
        ``train`` and ``test``, each `BlockImages` with pixels in [0, 1] and labels in 0..9; as float32 0.4 GB.

    Raises:
        FileNotFoundError: The data set is not under the root, or damaged.
        ValueError: As `BlockImages`; as `mnist`.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781.

    Example:
        >>> import torch
        >>> data = block_mnist("data", download=True)  # doctest: +SKIP
        >>> data.train.images.shape  # doctest: +SKIP
        torch.Size([60000, 1, 56, 28])
    """
    return _splits(mnist(root, fashion=fashion, download=download), null, position, seed)


def block_digits(*, null: Null = "square", position: Position = "random", seed: int = 0) -> BlockSplits:
    """BlockMNIST in small: scikit-learn's embedded digits, (N, 1, 16, 8), each above or below a null block.

    Args:
        null: As `BlockImages` takes it; the mean is that of the training images, in both splits.
        position: "random" or "top".
        seed: Of the positions; the two splits draw theirs from streams of their own. The split is that of `digits`.

    Returns:
        ``train`` (1,437) and ``test`` (360), each `BlockImages` with pixels in [0, 1] and labels in 0..9.

    Raises:
        ImportError: scikit-learn is not installed; ``pip install 'captum-density[demo]'`` brings it.
        ValueError: As `BlockImages`.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, for the construction; E. Alpaydin and C. Kaynak, 1998, for the digits.

    Example:
        >>> import torch
        >>> data = block_digits(null="mean")
        >>> data.train.images.shape, data.test.signal_masks.shape
        (torch.Size([1437, 1, 16, 8]), torch.Size([360, 1, 16, 8]))
    """
    return _splits(digits(), null, position, seed)


def _splits(data: Digits | ImageSplits, null: Null, position: Position, seed: int) -> BlockSplits:
    train = BlockImages(data.train_images, data.train_labels, null=null, position=position, seed=seed)
    # From the other end of the seeds: no small seed gives the test images positions that another gives the training's.
    test_seed = LAST_SEED - seed
    test = BlockImages(data.test_images, data.test_labels, null=train.null, position=position, seed=test_seed)
    return BlockSplits(train, test)


def _null_block(images: Tensor, null: Null) -> Tensor:
    """The block without a class, (C, H, W), like the images."""
    if isinstance(null, Tensor):
        if null.shape != images.shape[1:]:
            raise ValueError(
                f"the null image must be (C, H, W), {tuple(images.shape[1:])} like the images, but has shape "
                f"{tuple(null.shape)}"
            )
        return null.to(images)
    if null == "mean":
        return images.mean(0)
    if null == "square":
        lines = _square(*images.shape[2:]).to(images.device)
        return torch.where(lines, images.max(), images.min()).expand(images.shape[1:])
    raise ValueError(f"null must be 'square', 'mean' or an image (C, H, W), but is {null!r}")


def _square(height: int, width: int) -> Tensor:
    """(H, W) bool: a square in the middle; on 28 x 28 it fills 20 x 20, as MNIST's digits do."""
    short = min(height, width)
    side, line = short - 2 * (short // 7), max(1, short // 14)
    rows, columns = torch.arange(side, device="cpu")[:, None], torch.arange(side, device="cpu")
    square = torch.minimum(rows, columns) < line
    square = square | square.flip(0, 1)
    if short >= 14:  # on less there is no room inside
        diagonal = (rows - columns).abs() < line
        square = square | diagonal | diagonal.flip(0)
    top, left = (height - side) // 2, (width - side) // 2
    block = torch.zeros(height, width, dtype=torch.bool, device="cpu")
    block[top : top + side, left : left + side] = square
    return block
