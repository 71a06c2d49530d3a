"""Names by content: what a cell depends on, written down so that a changed experiment is another cell."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._random import seeded
from captum_density.retraining._arrays import content_name

__all__ = ["described", "identity_of_model", "name_of", "state_name"]


def name_of(identity: Mapping[str, Any]) -> str:
    """A cell's key: the hash of its identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def described(value: Any) -> Any:
    """A value as JSON that is equal for what computes the same, in every process: functions by name and code.

    Raises:
        TypeError: An object of which nothing is known but where it lies in memory.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:  # NumPy has none
            return f"bfloat16 {described(value.detach().view(torch.int16))}"
        plain = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        return f"array {content_name(plain)}"
    if isinstance(value, torch.dtype | torch.device | PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(described(item)) for item in value)
    if isinstance(value, Mapping):
        return [[described(key), described(item)] for key, item in value.items()]
    if isinstance(value, functools.partial):
        return ["partial", described(value.func), described(value.args), described(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", described(value.__func__), described(value.__self__)]
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return _named(value)
    if isinstance(value, nn.Module):
        return ["module", _named(type(value)), repr(value), described(list(value.state_dict().items()))]
    # What is called is told by its code as well.
    kind = [_named(type(value)), *([_source(type(value))] if callable(value) else [])]
    if dataclasses.is_dataclass(value):
        return [kind, [[f.name, described(getattr(value, f.name))] for f in dataclasses.fields(value)]]
    if getattr(type(value), "__repr__", None) is object.__repr__ and hasattr(value, "__dict__"):
        return [kind, described(vars(value))]
    if " at 0x" not in repr(value):
        return [kind, repr(value)]
    raise TypeError(
        f"{value!r} cannot be told from another {type(value).__name__} in a later process, so no cell in the store can "
        "be recognised; give its class a __repr__ that tells, or do without a store"
    )


def _function(value: types.FunctionType) -> Any:
    # Its text, where there is one; what it closes over; its defaults. Not the functions it calls: of a model's factory
    # those show in the model.
    code: Any
    try:
        code = inspect.getsource(value.__code__)
    except (OSError, TypeError):
        code = _instructions(value.__code__)
    if value.__name__ == "<lambda>":  # several may stand on one line
        code = [code, _instructions(value.__code__)]
    closed = []
    for cell in value.__closure__ or ():
        try:
            closed.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    defaults = [value.__defaults__, value.__kwdefaults__]
    return ["function", _named(value), code, described([c for c in closed if c is not value]), described(defaults)]


def _instructions(code: types.CodeType) -> Any:
    constants = [_instructions(c) if inspect.iscode(c) else described(c) for c in code.co_consts if c is not Ellipsis]
    return [code.co_code.hex(), code.co_names, constants]


def state_name(model: nn.Module) -> str:
    """Hash a model's parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name} {described(value)}".encode())
    return digest.hexdigest()


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # of a notebook's class there is no file
        methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
        return json.dumps([_named(kind), *([name, _function(value)] for name, value in sorted(methods.items()))])


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


def identity_of_model(make_model: Callable[[], nn.Module], model: nn.Module, example: Tensor) -> dict[str, Any]:
    """What tells a run's model before training from another: factory, text, values, and what it computes.

    Args:
        make_model: The factory.
        model: What it made for the run.
        example: A few inputs (N, ...), on the CPU.

    Returns:
        JSON. The output tells apart models whose modules and values are alike and whose forward passes are not; it is
        rounded to three digits, so that other processors find the same.
    """
    was_training = [module.training for module in model.modules()]
    parameter = next(model.parameters())
    try:
        with seeded(0, parameter.device), torch.no_grad():
            output = model.eval()(example.to(parameter.device))
    finally:
        for module, training in zip(model.modules(), was_training, strict=True):
            module.training = training
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    own = sorted(_source(kind) for kind in classes if not kind.__module__.startswith(("torch.", "builtins")))
    # What training may use and no output shows, such as a rate of dropout.
    settings = [
        f"{name} {key} {value!r}"
        for name, module in model.named_modules()
        for key, value in sorted(vars(module).items())
        if not key.startswith("_") and key != "training" and isinstance(value, bool | int | float | str | tuple | list)
    ]
    shown = [f"{v:.3g}" for v in output.double().flatten().tolist()] if isinstance(output, Tensor) else []
    factory: Any = make_model.func if isinstance(make_model, functools.partial) else make_model
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", "\n".join([repr(model), *own, *settings]))
    return {
        "factory": _named(factory if hasattr(factory, "__qualname__") else type(factory)),
        "text": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        "state": state_name(model),
        "output": hashlib.blake2b(" ".join(shown).encode(), digest_size=16).hexdigest(),
    }
