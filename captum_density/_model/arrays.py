"""NumPy arrays wherever tensors are taken, at the doors of the package: what is inside knows tensors only."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._model.interrupts import CleanInterrupts

__all__ = ["as_tensor", "as_tensors", "takes_arrays"]

F = TypeVar("F", bound=Callable[..., Any])


def takes_arrays(function: F) -> F:
    """A function that may be given NumPy arrays wherever it takes tensors; its type says tensors.

    They go where the model is: the first module with parameters among the arguments, or which one of them explains. As
    this is the door to most of the package, it is also where Ctrl-C is told to leave nothing behind.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        values = [as_tensors(value) for value in given]
        if not all(map(operator.is_, values, given)):
            device = _device_of_model(given)
            values = [as_tensors(value, device) for value in given]
        with CleanInterrupts():
            return function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))

    return cast(F, wrapper)


def as_tensors(value: Any, device: torch.device | None = None) -> Any:
    """The same value with a tensor for each NumPy array, also within tuples, lists and mappings.

    NumPy's numbers become Python's, as Captum wants them for targets.

    Args:
        value: Anything.
        device: Where the tensors are put; None for the CPU.

    Raises:
        TypeError: An array of something else than numbers.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _of_array(value).to(device=device)
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        items = [as_tensors(item, device) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    if isinstance(value, Mapping):
        converted = {key: as_tensors(item, device) for key, item in value.items()}
        return value if all(map(operator.is_, converted.values(), value.values())) else converted
    return value


def as_tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as it is, and anything else as one on the host, whatever PyTorch's default device."""
    return value.to(dtype=dtype) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype, device="cpu")


def _of_array(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of the same memory where PyTorch can share it: not what is read only, runs backwards or is foreign."""
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"an array must hold numbers, but is of dtype {array.dtype}; convert it, as array.astype(np.float32) does"
        )
    if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _device_of_model(values: Iterable[Any]) -> torch.device | None:
    for value in values:
        model = getattr(value, "forward_func", value)
        is_made = isinstance(model, nn.Module) and hasattr(model, "_parameters")  # and not on its way to be
        parameter = next(model.parameters(), None) if is_made else None
        if parameter is not None:
            return parameter.device
    return None
