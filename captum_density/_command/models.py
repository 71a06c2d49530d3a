"""Models by name, with weights from a file."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_density._command.names import BadInput, call, import_object
from captum_density._display.terminal import printable
from captum_density._model.errors import one_line

__all__ = ["load_model"]

# Under which training scripts save a state dict beside other things, the likeliest first; any other key will do.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
# Lightning's usual names for the model within a module that may have a loss's weights as well.
_INNER = ("model.", "net.", "network.", "module.")
_DEPTH, _FEW = 3, 3


def load_model(name: str, weights: str | None, *, seed: int, device: str, what: str = "--model") -> nn.Module:
    """Build a model and load its weights; say which, where a file holds more than one state dict.

    Args:
        name: As `import_object`'s, of a callable without arguments that returns a module, such as
            "torchvision.models:resnet18"; of a call; or of a module itself.
        weights: A file that `torch.save` wrote of a state dict, alone or among other things, as training scripts,
            Lightning, `DistributedDataParallel` and `AveragedModel` have it; read with ``weights_only=True``. None for
            those that the callable gives.
        seed: Of the random weights that the callable may give.
        device: Where to put it.
        what: The argument's name in errors.

    Returns:
        The model in evaluation mode.

    Raises:
        BadInput: There is no such callable, it fails or returns no module; the file cannot be read or does not fit.
    """
    build = import_object(name, what)
    if isinstance(build, nn.Module):
        model: Any = build
    elif callable(build):
        model = call(build, name, what, seed)
    else:
        raise BadInput(f"{what}: {name} must be a function that returns a model, but is a {type(build).__name__}")
    if not isinstance(model, nn.Module):
        raise BadInput(f"{what}: {name} must return a torch.nn.Module, but returns a {type(model).__name__}")
    if weights is not None:
        _load_weights(model, Path(weights))
    try:
        return model.to(device).eval()
    except RuntimeError as error:  # of a device that is full, or a model without values
        raise BadInput(f"{what}: {name} cannot be moved to {device}: {one_line(error)}") from error


class _State(OrderedDict[str, Any]):
    """A state dict; modules read from the metadata which version of them wrote it."""

    _metadata: Mapping[str, Any] | None

    def __init__(self, state: Mapping[str, Any], prefix: str = "") -> None:
        super().__init__((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))
        metadata = getattr(state, "_metadata", None)
        self._metadata = None
        if isinstance(metadata, Mapping):
            names = {f"{name}." if name else "": version for name, version in metadata.items()}
            self._metadata = OrderedDict(
                (name.removeprefix(prefix).removesuffix("."), version)
                for name, version in names.items()
                if name.startswith(prefix)
            )


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load the first state dict of a file that PyTorch loads into the model, and say which it was."""
    states = dict(_states(_content(path)))
    own, best = model.state_dict(), None
    for where, state in states.items():
        for how, reading in _readings(state, own):
            try:
                model.load_state_dict(reading)  # decides: modules read what older versions of them saved
            except Exception as error:  # of tensors that do not fit a RuntimeError, of a module's own hooks anything
                fit = len(own.keys() & reading.keys())
                if best is None or fit > best[0]:
                    best = (fit, reading, error)
                continue
            if where or how:
                others = [key for key in states if key != where]
                also = f"; beside it: {_few(others)}" if others else ""
                print(printable(f"--weights: of {path}, {', '.join(filter(None, (where, how)))}{also}"))
            return
    if best is None:
        raise BadInput(f"--weights: {path} holds no state dict; save model.state_dict()")
    reason = _misfit(best[1], own) or one_line(best[2])
    raise BadInput(f"--weights: {path} does not fit the model: {reason}") from best[2]


def _content(path: Path) -> Mapping[Any, Any]:
    try:
        # Arguments, which scripts save beside weights, are a plain record.
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(f"--weights: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are no weights fail in many ways
        raise BadInput(
            f"--weights: {path} holds no weights that torch.load(weights_only=True) reads; save model.state_dict()"
        ) from error
    if not any(_states(content)):
        keys = f" with the keys {_few(content)}" if isinstance(content, Mapping) else ""
        raise BadInput(
            f"--weights: {path} must hold a state dict, alone or under a key such as {', '.join(_KEYS)}, but holds a "
            f"{type(content).__name__}{keys}; save model.state_dict()"
        )
    mapping: Mapping[Any, Any] = content
    return mapping


def _states(content: Any, where: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts of a file, each with the keys that lead to it; the likeliest first."""
    if not isinstance(content, Mapping) or not depth:
        return
    if all(isinstance(key, str) for key in content):
        state = all(isinstance(value, torch.Tensor) or key.endswith("_extra_state") for key, value in content.items())
        if state and (content or not where):
            yield where, content
            return
    keys = [key for key in _KEYS if key in content]
    keys += [key for key in content if isinstance(key, str) and key not in _KEYS]
    for key in keys:
        # Of an optimizer, "state" holds tensors by the number of a parameter, which is no text.
        yield from _states(content[key], f"{where}[{key!r}]", depth - 1)


def _readings(state: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A state dict as it is, without the prefixes that wrappers put before all names, and what lies under one prefix.

    `AveragedModel` counts in "n_averaged"; Lightning's "model." may have a loss's weights beside it.
    """
    yield "", state
    whole = _State(state)
    if "n_averaged" not in own and any(key.startswith("module.") for key in whole):
        whole.pop("n_averaged", None)
    prefixes = ""
    while len(heads := {key.partition(".")[0] for key in whole}) == 1 and all("." in key for key in whole):
        prefix = f"{heads.pop()}."
        whole, prefixes = _State(whole, prefix), prefixes + prefix
        yield f"without the prefix {prefixes!r}", whole
    for prefix in _INNER:
        if part := _State(whole, prefix):
            others = [prefixes + key for key in whole if not key.startswith(prefix)]
            yield f"what begins with {prefixes + prefix!r}, without {_few(others)}", part


def _misfit(state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What weights lack, have too much, or in another shape, shorter than PyTorch says it."""
    reasons = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} is {_shape(state[key])} and should be {_shape(own[key])}"
            for key in own
            if key in state and _is_dense(state[key]) and _shape(state[key]) != _shape(own[key])
        ],
        "sparse, nested or quantised; save them dense": [
            key for key in own if key in state and not _is_dense(state[key])
        ],
    }
    return "; ".join(f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in reasons.items() if keys)


def _is_dense(value: Any) -> bool:
    """Whether it is no tensor that PyTorch cannot copy numbers from."""
    if not isinstance(value, torch.Tensor):
        return True
    return value.layout == torch.strided and not value.is_nested and not value.is_quantized


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _few(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:_FEW]) + (", ..." if len(shown) > _FEW else "")
