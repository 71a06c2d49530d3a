"""Data and transforms by name: folders of images, and data sets of the user's."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.models import WeightsEnum
from torchvision.transforms import ToTensor

from captum_density._command.names import BadInput, call, import_object, required_arguments

__all__ = ["load_data"]

# Folders of these names are parts of a data set, the likeliest to test on first.
_SPLITS = ("test", "testing", "val", "valid", "validation", "eval", "dev", "train", "training")
# Pictures, or what stands for one, that are named and skipped rather than passed over.
_UNREAD = (
    *(".gif", ".apng", ".avif", ".heic", ".heif", ".jfif", ".jpe", ".jp2", ".jxl", ".svg", ".ico", ".psd", ".tga"),
    *(".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".dcm", ".nii", ".npy", ".npz", ".mat"),
)
_LEVELS = 65535  # of 16 bits
# Half a gigabyte of numbers. Pillow warns of more than 89 million.
_PIXELS = 40_000_000


def load_data(name: str, transform: str | None, what: str = "--data", *, seed: int) -> Any:
    """A folder of images, or a data set of the user's.

    Args:
        name: A folder with a folder of images for each class, as torchvision's `ImageFolder` reads it; or, as
            `import_object`'s, a data set, a loader, a tensor or pair of tensors, or a function without arguments, or a
            call, that returns one.
        transform: For a folder only: of torchvision weights, such as "ResNet18_Weights.DEFAULT", whose preset it is;
            or, as `import_object`'s, a transform, or a function without arguments, or a call, that returns one. None
            for plain values in [0, 1], of 8 bits or of 16.
        what: The argument's name in errors.
        seed: Of what the functions may draw.

    Returns:
        What `captum_density.audit` takes as data. A folder's `categories` are those of the weights, where it has any.

    Raises:
        BadInput: There is no such folder, data set or transform, no images, or images of one class only.
    """
    if os.path.isdir(name):
        return _folder(Path(name), transform, what, seed)
    if ":" not in name:
        raise BadInput(f"{what}: there is no folder {name!r}; give a folder of images, or package.module:dataset")
    if transform is not None:
        raise BadInput(f"--transform is for a folder of images; let {name} apply its own")
    data = import_object(name, what)
    is_data = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    return call(data, name, what, seed) if callable(data) and (isinstance(data, type) or not is_data) else data


def _transform(name: str, seed: int) -> tuple[Callable[..., Any], tuple[str, ...] | None]:
    """What makes a tensor of an image, and the weights' categories, where there are weights."""
    if ":" in name:
        transform = import_object(name, "--transform")
        if _makes(transform):
            transform = call(transform, name, "--transform", seed)
        if not callable(transform):
            raise BadInput(
                f"--transform: {name} must be a transform, or return one, but gives a "
                f"{type(transform).__name__}, which cannot be called"
            )
        return transform, None
    try:
        weights: WeightsEnum = models.get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise BadInput(
            f"--transform: torchvision has no weights {name!r}; give a name such as ResNet18_Weights.DEFAULT, or "
            "package.module:transform"
        ) from error
    return weights.transforms(), tuple(weights.meta.get("categories") or ()) or None


def _makes(transform: Any) -> bool:
    """Whether this makes a transform, rather than being one: a class, a call, a function that needs no image."""
    if isinstance(transform, type | partial):  # "my_package:resized(size=8)" may be either
        return isinstance(transform, type) or not required_arguments(transform)
    if not hasattr(transform, "__code__"):  # an object that is called, such as a Compose
        return False
    return not required_arguments(transform) and not transform.__code__.co_flags & inspect.CO_VARARGS


class _Images(ImageFolder):
    """A folder of images for each class; hidden files and folders, such as .ipynb_checkpoints, are none.

    Args:
        root: The folder.
        transform: Of an image of 8 bits a channel; None for its values in [0, 1], which 16 bits keep.
        categories: Which the audit reads, where the model has an output for each.
    """

    def __init__(self, root: Path, transform: Callable[..., Any] | None, categories: tuple[str, ...] | None) -> None:
        self.categories = categories
        super().__init__(
            str(root),
            transform=transform,
            loader=_values if transform is None else _picture,
            is_valid_file=lambda path: _is_image(Path(path), root),
        )

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """The classes, and their numbers."""
        classes = [name for name in super().find_classes(directory)[0] if not _hidden(name)]
        if not classes:
            raise FileNotFoundError(f"couldn't find any class folder in {directory}")
        return classes, {name: i for i, name in enumerate(classes)}


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_image(path: Path, root: Path) -> bool:
    """Whether a file is an image, of a kind that is read or of one that is named."""
    if any(map(_hidden, path.relative_to(root).parts)):
        return False
    return path.suffix.lower() in (*IMG_EXTENSIONS, *_UNREAD)


def _values(path: str) -> Tensor:
    """An image's values in [0, 1], (3, H, W)."""
    with _opened(path) as image:
        levels = _deep_levels(image)
        if levels is None:
            rgb: Tensor = ToTensor()(image.convert("RGB"))
            return rgb
        return torch.from_numpy(levels).float().div(_LEVELS).expand(3, -1, -1)


def _picture(path: str) -> Image.Image:
    """An image of 8 bits a channel, as transforms take it."""
    with _opened(path) as image:
        levels = _deep_levels(image)
        if levels is not None:
            return Image.fromarray(np.rint(levels * (255 / _LEVELS)).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def _opened(path: str) -> Image.Image:
    suffix = Path(path).suffix.lower()
    if suffix not in IMG_EXTENSIONS:
        raise ValueError(f"{suffix} files are not read; save it as .png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit that follows is lower
        image = Image.open(path)  # reads no pixels yet
    if image.width * image.height > _PIXELS:
        image.close()
        raise ValueError(f"it has {image.width} x {image.height} pixels; make it smaller, at most {_PIXELS:,}")
    return image


def _deep_levels(image: Image.Image) -> np.ndarray[Any, Any] | None:
    """Levels of a grey image of 16 bits, which Pillow would cut at 255; None for 8 bits a channel.

    Raises:
        ValueError: The image has 32 bits a pixel, whose range no file says.
    """
    # Pillow reads PGM of 16 bits, and older versions of it PNG of 16 bits, as 32-bit numbers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image).astype(np.int32)
    if image.mode in ("I", "F"):
        raise ValueError("images of 32 bits a pixel are not read, as their range is not known; save it with 16")
    return None


def _folder(path: Path, transform: str | None, what: str, seed: int) -> ImageFolder:
    apply, categories = (None, None) if transform is None else _transform(transform, seed)
    try:
        _check_splits(path, what)
        folder = _Images(path, apply, categories)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{what}: {path} must hold a folder of images for each class, such as {path / 'cat' / '1.png'}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if len(folder.classes) < 2:
        raise BadInput(
            f"{what}: {path} holds images of one class only, {folder.classes[0]!r}; give the folder that holds the "
            "folders of all classes"
        )
    return folder


def _check_splits(path: Path, what: str) -> None:
    """Refuse a folder whose folders are not classes, but parts to train and to test on."""
    folders = [each for each in sorted(path.iterdir()) if each.is_dir() and not _hidden(each.name)]
    splits = [each for each in folders if each.name.lower() in _SPLITS]
    if not splits or (len(splits) < len(folders) and not any(map(_holds_folders_only, splits))):
        return  # "train" may be a class, beside "car"
    first = sorted(splits, key=lambda each: _SPLITS.index(each.name.lower()), reverse=what == "--train")[0]
    names = " and ".join(each.name for each in splits)
    raise BadInput(
        f"{what}: {path} holds the parts {names} of a data set, not a folder for each class; give one of them, as in "
        f"{what} {first}"
    )


def _holds_folders_only(folder: Path) -> bool:
    entries = [each for each in folder.iterdir() if not _hidden(each.name)]
    return any(each.is_dir() for each in entries) and not any(_is_image(each, folder) for each in entries)
