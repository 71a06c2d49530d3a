"""Models, weights, data and transforms by name, as a command line gives them; every error is one line."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.models import WeightsEnum
from torchvision.transforms import ToTensor

from captum_density._model.errors import one_line
from captum_density._model.generators import seeded

__all__ = ["BadInput", "load_data", "load_model", "load_transform", "resolved"]

# Under which training scripts save a state dict beside other things.
_KEYS = ("state_dict", "model_state_dict", "model")
_FEW = 3


class BadInput(Exception):
    """What was given does not do; the text is one line that says why, and what would."""


def resolved(name: str, what: str) -> Any:
    """Import what "package.module:attribute" names.

    Raises:
        BadInput: There is no such module or attribute, or the module fails.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise BadInput(f"{what} must be package.module:name, but is {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a user's module does, such as read the command line
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what}: there is no module {module_name!r} in the current folder or among the installed packages"
            ) from error
        raise BadInput(f"{what}: importing {module_name!r} fails: {one_line(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise BadInput(f"{what}: {module_name!r} has no {path!r}")
        found = getattr(found, part)
    return found


def load_model(name: str, weights: str | None, *, seed: int, device: str, what: str = "--model") -> nn.Module:
    """Build a model and load its weights.

    Args:
        name: "package.module:build", a callable without arguments that returns a module, such as
            "torchvision.models:resnet18"; or a module itself.
        weights: A file that `torch.save` wrote of a state dict, alone or under "state_dict", "model_state_dict" or
            "model"; read with ``weights_only=True``. None for those that the callable gives.
        seed: Of the random weights that the callable may give.
        device: Where to put it.
        what: The argument's name in errors.

    Returns:
        The model in evaluation mode.

    Raises:
        BadInput: There is no such callable, it fails or returns no module; the file cannot be read or does not fit.
    """
    build = resolved(name, what)
    if isinstance(build, nn.Module):
        model: Any = build
    elif callable(build):
        try:
            with seeded(seed, torch.device("cpu")):
                model = build()
        except (Exception, SystemExit) as error:
            raise BadInput(f"{what}: {name}() fails: {one_line(error)}") from error
    else:
        raise BadInput(f"{what}: {name} must be a function that returns a model, but is a {type(build).__name__}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"{what}: {name}() must return a torch.nn.Module, but returns a {type(model).__name__}")
    if weights is not None:
        _load_weights(model, Path(weights))
    try:
        return model.to(device).eval()
    except RuntimeError as error:  # of a device that is full, or a model without values
        raise BadInput(f"{what}: {name} cannot be moved to {device}: {one_line(error)}") from error


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"--weights: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no weights fail in many ways
        raise BadInput(
            f"--weights: {path} holds no weights that torch.load(weights_only=True) reads; save model.state_dict()"
        ) from error
    for key in _KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        also = f" with the keys {_few(found)}" if isinstance(found, Mapping) else ""
        raise BadInput(
            f"--weights: {path} must hold a state dict, alone or under {', '.join(_KEYS)}, but holds a "
            f"{type(found).__name__}{also}; save model.state_dict()"
        )
    # As DistributedDataParallel and torch.compile name them.
    prefixes = ("module.", "_orig_mod.")
    state, own = dict(found), model.state_dict()
    while prefix := next((each for each in prefixes if state and all(key.startswith(each) for key in state)), None):
        if all(key.startswith(prefix) for key in own):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    try:
        model.load_state_dict(state)  # decides: modules read what older versions of them saved
    except RuntimeError as error:
        raise BadInput(f"--weights: {path} does not fit the model: {_misfit(state, own) or one_line(error)}") from error


def _misfit(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """What weights lack, have too much, or in another shape, shorter than PyTorch says it."""
    reasons = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} is {tuple(state[key].shape)} and should be {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    return "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in reasons.items() if keys)


def load_transform(name: str | None) -> tuple[Callable[..., Any], tuple[str, ...] | None]:
    """What makes a tensor of an image, and the classes it is for, where that is known.

    Args:
        name: Of torchvision weights, such as "ResNet18_Weights.DEFAULT", whose preset it is; or
            "package.module:transform"; None for plain values in [0, 1].

    Returns:
        The transform; the weights' categories, or None.

    Raises:
        BadInput: There is no such transform.
    """
    if name is None:
        return ToTensor(), None
    if ":" in name:
        transform = resolved(name, "--transform")
        if not callable(transform):
            raise BadInput(f"--transform: {name} cannot be called")
        return transform, None
    try:
        weights: WeightsEnum = models.get_weight(name)
    except (ValueError, KeyError, AttributeError) as error:
        raise BadInput(
            f"--transform: torchvision has no weights {name!r}; give a name such as ResNet18_Weights.DEFAULT, or "
            "package.module:transform"
        ) from error
    return weights.transforms(), tuple(weights.meta.get("categories") or ()) or None


def load_data(name: str, transform: str | None, what: str = "--data", *, seed: int) -> Any:
    """A folder of images, or a data set of the user's.

    Args:
        name: A folder with a folder of images for each class, as torchvision's `ImageFolder` reads it; or
            "package.module:dataset", a data set, a loader, a tensor or pair of tensors, or a function without arguments
            that returns one.
        transform: As for `load_transform`; for a folder only.
        what: The argument's name in errors.
        seed: Of what the function may draw.

    Returns:
        What `captum_density.audit` takes as data. A folder's `categories` are those of the weights, where it has any.

    Raises:
        BadInput: There is no such folder or data set, no images, or images of one class only.
    """
    if os.path.isdir(name):
        return _folder(Path(name), transform, what)
    if ":" not in name:
        raise BadInput(f"{what}: there is no folder {name!r}; give a folder of images, or package.module:dataset")
    if transform is not None:
        raise BadInput(f"--transform is for a folder of images; let {name} apply its own")
    data = resolved(name, what)
    is_data = isinstance(data, Iterable) or hasattr(data, "__getitem__")
    if callable(data) and (isinstance(data, type) or not is_data):
        try:
            with seeded(seed, torch.device("cpu")):
                data = data()
        except (Exception, SystemExit) as error:
            raise BadInput(f"{what}: {name}() fails: {one_line(error)}") from error
    return data


class _Images(ImageFolder):
    """A folder of images for each class; hidden folders, such as .ipynb_checkpoints, are none."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        """The classes, and their numbers."""
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"couldn't find any class folder in {directory}")
        return classes, {name: i for i, name in enumerate(classes)}


def _folder(path: Path, transform: str | None, what: str) -> ImageFolder:
    apply, categories = load_transform(transform)
    try:
        folder = _Images(str(path), transform=apply)
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
    folder.categories = categories  # which the audit reads, where the model has an output for each
    return folder


def _few(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:_FEW]) + (", ..." if len(shown) > _FEW else "")
