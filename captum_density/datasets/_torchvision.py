"""Data sets that torchvision reads, whole, as tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["ImageSplits", "cifar10", "imagenet10", "mnist", "svhn"]

_FOLDER = "CAPTUM_DENSITY_DATA"


class ImageSplits(NamedTuple):
    """A data set split in two, as its authors did. See `mnist`.

    Args:
        train_images: (N, C, H, W) float32 in [0, 1].
        train_labels: (N,) int64, in 0..9.
        test_images: (M, C, H, W), alike.
        test_labels: (M,), alike.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def mnist(root: str | PathLike[str] | None = None, *, fashion: bool = False, download: bool = False) -> ImageSplits:
    """Load MNIST or Fashion-MNIST: 60,000 training and 10,000 test images, (N, 1, 28, 28).

    Args:
        root: The folder torchvision keeps its data sets in, of ``MNIST/raw`` and ``FashionMNIST/raw``; None for the one
            that the environment variable CAPTUM_DENSITY_DATA names.
        fashion: Fashion-MNIST instead.
        download: Whether to fetch what is missing.

    Returns:
        Both splits, on the CPU.

    Raises:
        FileNotFoundError: The data set is not under the root, or damaged.
        ValueError: There is no root, and the environment variable is not set.

    References:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc.
        IEEE, 1998; H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.

    Example:
        >>> import torch
        >>> mnist("data", download=True).train_images.shape  # doctest: +SKIP
        torch.Size([60000, 1, 28, 28])
    """
    name = "FashionMNIST" if fashion else "MNIST"
    train, test = (_load(name, root, download, train=train) for train in (True, False))
    return _splits(*((s.data.unsqueeze(1), s.targets) for s in (train, test)))


def svhn(root: str | PathLike[str] | None = None, *, download: bool = False) -> ImageSplits:
    """Load SVHN's cropped digits: 73,257 training and 26,032 test images, (N, 3, 32, 32), without the extra ones.

    Args:
        root: The folder of train_32x32.mat and test_32x32.mat; None as for `mnist`.
        download: Whether to fetch what is missing.

    Returns:
        Both splits, on the CPU; labels are the digits, 0 for 0. As float32 1.2 GB.

    Raises:
        FileNotFoundError: The data set is not in the root, or damaged.
        ValueError: There is no root, and the environment variable is not set.
        ImportError: SciPy is not installed; ``pip install 'captum-density[demo]'`` brings it.

    References:
        Y. Netzer et al., "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS Workshop, 2011.

    Example:
        >>> import torch
        >>> svhn("data", download=True).test_images.shape  # doctest: +SKIP
        torch.Size([26032, 3, 32, 32])
    """
    try:
        train, test = (_load("SVHN", root, download, split=split) for split in ("train", "test"))
    except ImportError as error:
        raise ImportError(
            "svhn() reads MATLAB files with SciPy, and SciPy is not installed; "
            "install it with: pip install 'captum-density[demo]'"
        ) from error
    return _splits(*((torch.from_numpy(s.data), torch.from_numpy(s.labels)) for s in (train, test)))


def cifar10(root: str | PathLike[str] | None = None, *, download: bool = False) -> ImageSplits:
    """Load CIFAR-10: 50,000 training and 10,000 test images, (N, 3, 32, 32).

    Args:
        root: The folder of cifar-10-batches-py; None as for `mnist`.
        download: Whether to fetch what is missing.

    Returns:
        Both splits, on the CPU. As float32 0.7 GB.

    Raises:
        FileNotFoundError: The data set is not under the root, or damaged.
        ValueError: There is no root, and the environment variable is not set.

    References:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Example:
        >>> import torch
        >>> cifar10("data", download=True).train_images.shape  # doctest: +SKIP
        torch.Size([50000, 3, 32, 32])
    """
    train, test = (_load("CIFAR10", root, download, train=train) for train in (True, False))
    return _splits(
        *((torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets, device="cpu")) for s in (train, test))
    )


def imagenet10(
    root: str | PathLike[str],
    classes: Sequence[str | Sequence[str]] | None = None,
    transform: Callable[[Any], Any] | None = None,
    *,
    split: str = "train",
) -> Any:
    """Ten classes of ImageNet, or of any folder of folders, read one image at a time.

    The paper's ImageNet-10 is "mixed_10" of MadryLab's robustness: ten superclasses, each of as many ImageNet classes
    as the smallest has. Their WordNet ids are n02084071 (dog), n01503061 (bird), n02159955 (insect), n02484322
    (monkey), n02958343 (car), n02120997 (feline), n04490091 (truck), n13134947 (fruit), n12992868 (fungus) and
    n02858304 (boat). Which of ImageNet's folders lie below each only WordNet tells: name them in ``classes``.

    Args:
        root: The folder of ``train`` and ``val``.
        classes: Ten entries, for the labels 0 to 9: the name of a folder, or several names that share the label. None
            takes the folders there are, by name, if they are ten.
        transform: From a PIL image. None is the paper's for test images: the shorter side to 128, the middle 112 x 112,
            a float tensor (3, 112, 112) in [0, 1].
        split: The folder in the root.

    Returns:
        A `torchvision.datasets.ImageFolder` of (image, label); `classes` names each label, `class_to_idx` has the label
        of each folder. Other folders are not looked into.

    Raises:
        FileNotFoundError: If the split's folder, or one that is named, does not exist, or a class has no images.
        ValueError: If the classes are not ten, or name a folder twice.

    References:
        H. Shah, P. Jain and P. Netrapalli, NeurIPS 2021, arXiv:2102.12781; L. Engstrom et al., "Robustness (Python
        Library)", 2019, https://github.com/MadryLab/robustness.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from torchvision.utils import save_image
        >>> with TemporaryDirectory() as root:
        ...     for label in range(10):
        ...         folder = Path(root) / "train" / f"class {label}"
        ...         folder.mkdir(parents=True)
        ...         save_image(torch.rand(3, 160, 128), folder / "0.png")
        ...     image, label = imagenet10(root)[9]
        >>> image.shape, label
        (torch.Size([3, 112, 112]), 9)
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; root must hold {split!r}, or split=... name another")
    folders = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    entries = folders if classes is None else classes
    groups = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in entries]
    if len(groups) != 10:
        what = f"{folder} holds {len(groups)} folders" if classes is None else f"classes has {len(groups)} entries"
        raise ValueError(
            f"{what}, not 10; pass classes=[...], a folder's name or several for each of the labels 0 to 9"
        )
    names = [name for group in groups for name in group]
    if missing := sorted(set(names) - set(folders)):
        raise FileNotFoundError(f"{folder} has no folder {', '.join(missing)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"classes names more than once: {', '.join(twice)}")
    from captum_density.datasets._image_folder import GroupedFolders

    return GroupedFolders(fspath(folder), groups, transform)


def _load(name: str, root: str | PathLike[str] | None, download: bool, **split: Any) -> Any:
    """One split of one of torchvision's data sets, whose `data` holds all images as bytes."""
    folder = os.environ.get(_FOLDER, "") if root is None else fspath(root)
    if not folder:
        raise ValueError(
            f"{name} needs the folder that torchvision keeps it in; pass it as root, or let {_FOLDER} name it"
        )
    from torchvision import datasets

    try:
        return getattr(datasets, name)(folder, download=download, **split)
    except RuntimeError as error:
        if download:  # torchvision says which address failed
            raise
        raise FileNotFoundError(
            f"{name} is not under {folder!r}, or is damaged; pass the folder that torchvision keeps it in, or "
            "download=True"
        ) from error


def _splits(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> ImageSplits:
    """Splits of (bytes, labels) as tensors of one kind."""
    # Put in order as bytes, and divided in place: the floats exist once.
    (x, y), (x_test, y_test) = ((x.contiguous().to(torch.float32).div_(255), y) for x, y in (train, test))
    return ImageSplits(x, y, x_test, y_test)
