"""How many examples a model is run on, forward and backward: what an audit costs on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_density._model.fixed_modules import modules_of

__all__ = ["Remembered", "Runs", "counted_runs", "rows_of_the_outermost"]

_REMEMBERED = 2**23  # outputs: 32 MB
# Integers as wide as the numbers that are read as such.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Runs:
    """Examples, copies included, that a model was run on.

    Attributes:
        forward: In forward passes.
        backward: In backward passes from its outputs.
        weights: What tells the model's weights from others that it is given for a time.
    """

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self.weights = 0
        self._forward_keys: list[Tensor] = []
        self._backward_keys: list[Tensor] = []

    def add_forward(self, tensors: list[Tensor]) -> Tensor | None:
        """Count a forward pass on tensors of a row for each example; returns what tells the rows apart."""
        self.forward += len(tensors[0])
        keys = _keys(tensors, self.weights)
        if keys is not None:
            self._forward_keys.append(keys)
        return keys

    def add_backward(self, gradients: Tensor, inputs: Tensor | None) -> None:
        """Count a backward pass of gradients by the outputs of a forward pass."""
        self.backward += len(gradients)
        if inputs is not None and len(inputs) == len(gradients):
            keys = _keys([gradients], self.weights)
            self._backward_keys += [] if keys is None else [keys * 31 + inputs]

    def counts(self) -> dict[str, int]:
        """All passes of an example, and how many were different, which is the least that gives the same."""
        forward, backward = (
            len(torch.cat([torch.cat(each).cpu() for each in _by_device(keys)]).unique()) if keys else 0
            for keys in (self._forward_keys, self._backward_keys)
        )
        return {
            "forward_examples": self.forward,
            "backward_examples": self.backward,
            "different_forward_examples": forward,
            "different_backward_examples": backward,
        }


class Remembered(nn.Module):
    """A model that runs once on a batch that is given to it several times without gradients, as far as memory allows.

    Whole batches: outputs of the same example among others differ by rounding, so that figures would depend on what was
    measured before.

    Args:
        model: (N, ...), and numbers of rows where there are such, to (N, outputs), in evaluation mode.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self._outputs: dict[tuple[int, ...], Tensor] = {}
        self._size = 0

    def forward(self, x: Tensor, *rows: Tensor) -> Tensor:
        """The model's outputs."""
        # A GPU would be waited for at each look.
        keys = None if torch.is_grad_enabled() or x.device.type != "cpu" else _keys([x, *rows], 0)
        if keys is None:
            return self.model(x, *rows)
        name = tuple(keys.tolist())
        if name in self._outputs:
            return self._outputs[name].clone()
        outputs = self.model(x, *rows)
        if self._size + outputs.numel() <= _REMEMBERED:
            self._outputs[name] = outputs.clone()
            self._size += outputs.numel()
        return outputs


def _by_device(keys: list[Tensor]) -> list[list[Tensor]]:
    """As a model may lie on several devices, each of which is waited for once."""
    return [[each for each in keys if each.device == device] for device in {each.device for each in keys}]


@contextmanager
def counted_runs(model: Callable[..., Any]) -> Iterator[Runs | None]:
    """Counts for as long as it lasts; None of a function that is no module's, which nothing can be hooked to."""
    module = next(iter(modules_of(model)), None)
    if module is None or isinstance(module, torch.jit.ScriptModule):
        yield None
        return
    runs = Runs()

    def count(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        tensors = [each for each in (*arguments, *named.values()) if isinstance(each, Tensor) and each.ndim]
        if not tensors:
            return
        with torch._C.DisableTorchFunction():  # within a trace, too, which is of the model's operations
            keys = runs.add_forward([each for each in tensors if len(each) == len(tensors[0])])
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradients: runs.add_backward(gradients, keys))

    hook = module.register_forward_hook(count, with_kwargs=True, prepend=True)
    try:
        yield runs
    finally:
        hook.remove()


def _keys(tensors: list[Tensor], start: int) -> Tensor | None:
    """(N,) int64 that are equal where all values of the rows are, to the bit; None where values cannot be read."""
    try:
        with torch.no_grad():
            keys = torch.full((len(tensors[0]),), start, dtype=torch.int64, device=tensors[0].device)
            for tensor in tensors:
                rows = tensor.detach().contiguous().flatten(1) if tensor.ndim > 1 else tensor.detach()[:, None]
                integers = rows.view(_INTEGERS[rows.element_size()]).long()
                places = torch.arange(1, integers.shape[1] + 1, device=integers.device)
                mixed = (integers + places) * 0x5851F42D4C957F2D  # overflows wrap around
                keys = keys * 0x14057B7EF767814F + ((mixed ^ (mixed >> 29)) * (2 * places + 1)).sum(dim=1)
    except (KeyError, RuntimeError):  # complex numbers; tensors under `torch.func`
        return None
    return keys


@contextmanager
def rows_of_the_outermost() -> Iterator[dict[nn.Module, int]]:
    """A dict of modules to how many rows they ran, the outermost first, which runs first; it fills as they run."""
    rows: dict[nn.Module, int] = {}

    def count(module: nn.Module, arguments: tuple[object, ...]) -> None:
        size = len(arguments[0]) if arguments and isinstance(arguments[0], Tensor) and arguments[0].ndim else 1
        rows[module] = rows.get(module, 0) + size

    hook = register_module_forward_pre_hook(count)
    try:
        yield rows
    finally:
        hook.remove()
