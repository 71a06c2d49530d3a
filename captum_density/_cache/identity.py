"""Names by content: what work depends on, written down so that a changed experiment is other work."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captum_density._cache.arrays import content_name
from captum_density._model.evaluation import grad_mode
from captum_density._model.generators import seeded
from captum_density._model.sparse import dense_parts

__all__ = [
    "attributes_of",
    "described",
    "identity_of_imputation",
    "identity_of_model",
    "name_of",
    "of_library",
    "rounded",
    "state_name",
]


def name_of(identity: Mapping[str, Any]) -> str:
    """The key of some work: the hash of its identity."""
    return _hash(json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# What is being described, as functions and objects may name themselves or each other.
_underway: ContextVar[frozenset[int]] = ContextVar("_underway", default=frozenset())  # by thread


def described(value: Any) -> Any:
    """A value as JSON that is equal for what computes the same, in every process of one version of Python.

    Functions are told by their name, instructions, defaults, what they close over and the globals they name, functions
    of their own module among them; objects by their class and attributes.

    Raises:
        TypeError: An object of which nothing is known but where it lies in memory.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | bytes | type(Ellipsis)):
        return repr(value)
    if isinstance(value, Tensor) and len(parts := dense_parts(value)) > 1:
        return [str(value.layout), list(value.shape), [described(part) for part in parts]]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16:  # NumPy has none
            return f"bfloat16 {described(value.detach().view(torch.int16))}"
        plain = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        return f"array {content_name(plain)}"
    if isinstance(value, torch.dtype | torch.device | PurePath):
        return str(value)
    if id(value) in _underway.get():
        return "itself"
    before = _underway.set(_underway.get() | {id(value)})
    try:
        return _described_parts(value)
    finally:
        _underway.reset(before)


def _described_parts(value: Any) -> Any:
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
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        return _named(value)
    if isinstance(value, nn.Module):
        state = sorted([*value.named_parameters(), *value.named_buffers()], key=lambda pair: pair[0])
        return [_class(type(value)), described(state), attributes_of(value)]
    if dataclasses.is_dataclass(value):
        fields = [[f.name, described(getattr(value, f.name))] for f in dataclasses.fields(value)]
        return [_class(type(value)), fields]
    if getattr(value, "__dict__", None):
        return [_class(type(value)), described(vars(value))]
    if " at 0x" not in repr(value):
        return [_class(type(value)), repr(value)]
    raise TypeError(
        f"{value!r} cannot be told from another {type(value).__name__} in a later process, so nothing in the store can "
        "be recognised; give its class a __repr__ that tells, or do without a store"
    )


def of_library(module: str) -> bool:
    """Whether a module is of an installed package, whose insides are not looked into."""
    if module == "__main__":  # whatever runs it, such as `python -m pytest`
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file or module == "builtins"


def _function(value: types.FunctionType) -> Any:
    if of_library(value.__module__):
        return _named(value)
    closed = []
    for cell in value.__closure__ or ():
        try:
            closed.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    defaults = [value.__defaults__, value.__kwdefaults__]
    code = _instructions(value.__code__)
    return ["function", _named(value), code, described(closed), described(defaults), _globals(value)]


def _globals(function: types.FunctionType) -> Any:
    """What a function finds in its module by name: values, and the functions and classes made there."""
    values = []
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        value = function.__globals__[name]
        defined = isinstance(value, types.FunctionType | type)
        if isinstance(value, types.ModuleType) or (defined and value.__module__ != function.__module__):
            continue
        try:
            values.append([name, described(value)])
        except TypeError:  # such as a logger, which no result depends on
            values.append([name, _named(type(value))])
    return values


def _names(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if inspect.iscode(c)))


def _class(kind: type) -> Any:
    """A class by its name and its methods' instructions: what runs, not what a file says by now."""
    methods = {name: value for name, value in vars(kind).items() if isinstance(value, types.FunctionType)}
    if of_library(kind.__module__):
        return _named(kind)
    return [_named(kind), [[name, _instructions(value.__code__)] for name, value in sorted(methods.items())]]


def _instructions(code: types.CodeType) -> Any:
    constants = [_instructions(c) if inspect.iscode(c) else described(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _named(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"


def attributes_of(model: nn.Module) -> Any:
    """What modules hold beside parameters, buffers and each other: numbers, settings, tensors kept as plain attributes.

    What cannot be described is left out.
    """
    attributes = []
    for name, module in model.named_modules():
        for key, value in sorted(vars(module).items()):
            if key in ("_parameters", "_buffers", "_modules", "training") or "_hooks" in key:
                continue
            try:
                attributes.append([name, key, described(value)])
            except TypeError:
                continue
    return attributes


def state_name(model: nn.Module) -> str:
    """Hash a model's parameters and buffers, and which of them are trained."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name} {value.requires_grad} {described(value)}".encode())
    return digest.hexdigest()


def identity_of_model(make_model: Callable[[], nn.Module], model: nn.Module, example: Tensor) -> dict[str, Any]:
    """What tells a run's model before training from another: factory, text, values, and what it computes.

    Args:
        make_model: The factory.
        model: What it made for the run; its mode and gradients are changed.
        example: A few inputs (N, ...), on the CPU.

    Returns:
        JSON. The outputs, in evaluation and in training, and the gradients tell apart models whose modules and values
        are alike and whose computations are not, whatever makes them so: hooks, globals, rates of dropout. They are
        rounded to three digits, so that other processors find the same.
    """
    device = next(model.parameters()).device
    x = example.to(device, copy=True)
    computed: list[str] = []
    for mode in (False, True):
        try:
            with seeded(0, device):
                model.train(mode)
                with grad_mode(mode):
                    output = model(x.clone())
                computed += rounded(output)
                if mode:
                    cross_entropy(output, output.new_zeros(len(output), dtype=torch.int64)).backward()
                    gradients = [p.grad for p in model.parameters() if p.grad is not None]
                    computed += rounded(torch.stack([g.double().norm().cpu() for g in gradients]))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            computed.append(type(error).__name__)  # training says what is wrong
    factory: Any = make_model.func if isinstance(make_model, functools.partial) else make_model
    return {
        "factory": _named(factory if hasattr(factory, "__qualname__") else type(factory)),
        "text": _hash(json.dumps([repr(model) if " at 0x" not in repr(model) else "", attributes_of(model)])),
        "state": state_name(model),
        "computed": _hash(" ".join(computed)),
    }


def identity_of_imputation(impute: Callable[..., Tensor], example: Tensor) -> Any:
    """What tells an imputation from another: what it makes of a few examples with every second element removed."""
    kept = (torch.arange(example[0].numel(), device="cpu") % 2 == 0).view(example.shape[1:]).expand(example.shape)
    try:
        with seeded(0, torch.device("cpu")):
            imputed = impute(example.masked_fill(~kept, 0), kept.clone(), generator=torch.Generator().manual_seed(0))
        computed = _hash(" ".join(rounded(imputed)))
    except Exception as error:  # training says what is wrong
        computed = type(error).__name__
    try:
        return [described(impute), computed]
    except TypeError:
        return [_named(type(impute)), computed]


def rounded(values: Any) -> list[str]:
    """To three digits; what is small beside the largest is rounding of other things, and nothing."""
    if not isinstance(values, Tensor) or values.numel() == 0:
        return []
    flat = values.detach().double().flatten()
    small = flat.abs() < 1e-4 * flat.abs().max()
    return [f"{v:.3g}" for v in flat.masked_fill(small, 0.0).tolist()]
