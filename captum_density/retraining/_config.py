"""How a model is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

__all__ = ["Fit", "FitConfig", "FitFunction"]

# Trains a model in place on inputs (N, ...) and labels (N,); the seed is for whatever it draws itself.
FitFunction = Callable[[nn.Module, Tensor, Tensor, int], object]


@dataclass(frozen=True)
class FitConfig:
    """How each of many models is trained: the mean cross-entropy of shuffled batches, every example once an epoch.

    Args:
        epochs: Passes over the training examples. The model after the last one counts: to choose the best by the test
            examples would be optimistic.
        batch_size: Examples a step; what is left over makes a smaller last batch, but never one of a single example.
        lr: Learning rate at the first step.
        optimizer: "adamw", or "sgd" with `momentum`.
        momentum: Of "sgd"; 0 for none.
        weight_decay: As `torch.optim.AdamW`'s (decoupled) or `torch.optim.SGD`'s.
        schedule: "linear" lowers the learning rate to 0 step by step, "constant" does not.
        stack_size: How many models are trained at once at most, where they are stacked.
        threads: PyTorch's threads while a model is trained on the CPU. 1 gives the same numbers on every number of
            cores; to use more cores, give an executor.
        devices: Where to train, such as ``("cuda:0", "cuda:1")``: work is dealt over them in turn. Empty for the device
            of the training inputs.

    Raises:
        ValueError: A figure that is out of range; the message names it.

    Example:
        >>> import torch
        >>> FitConfig(epochs=3, optimizer="sgd", lr=0.1).optimizer
        'sgd'
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["linear", "constant"] = "linear"
    stack_size: int = 32
    threads: int = 1
    devices: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "stack_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, but is {value!r}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, but is {value!r}")
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer must be 'adamw' or 'sgd', but is {self.optimizer!r}")
        if self.schedule not in ("linear", "constant"):
            raise ValueError(f"schedule must be 'linear' or 'constant', but is {self.schedule!r}")
        if isinstance(self.devices, str):
            raise ValueError(f"devices must be a sequence of names, but is {self.devices!r}; write [{self.devices!r}]")
        try:
            devices = tuple(str(torch.device(device)) for device in self.devices)
        except RuntimeError as error:
            raise ValueError(f"devices must be names such as 'cuda:0', but are {self.devices!r}: {error}") from error
        object.__setattr__(self, "devices", devices)


class Fit:
    """The optimizer of one model, or of a stack of them: each of its steps is elementwise.

    Args:
        config: What to do.
        parameters: What to change; their gradients are given to `step`.
        steps: How many there will be.
        may_lay_out: Whether parameters may be laid out in memory as their first gradients are, which spares a copy of
            each later one.
    """

    def __init__(
        self, config: FitConfig, parameters: Sequence[Tensor], steps: int, *, may_lay_out: bool = False
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._config, self._steps, self._step = config, steps, 0
        # Fused, and by PyTorch's functions, whose classes take as long again to prepare a step: on models this small
        # its time is that of starting operations.
        self._fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in self._parameters)
        self._may_lay_out = may_lay_out
        self._states = [self._start(p) for p in self._parameters]

    def _start(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Averages, the second one for "adamw" alone, and a count of steps."""
        average = torch.zeros_like(parameter)
        second = torch.zeros_like(parameter) if self._config.optimizer == "adamw" else average
        count = torch.zeros((), dtype=torch.float32, device=parameter.device if self._fused else None)
        return average, second, count

    def step(self, loss: Tensor) -> None:
        """Descend: the loss is a scalar, the sum over models of what each of them minimises."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        if self._step == 0 and self._may_lay_out:
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.data = torch.empty_like(gradient).copy_(parameter.detach())
            self._states = [self._start(p) for p in self._parameters]
        updates = [
            (parameter, _in_order_of(parameter, gradient), *state)
            for parameter, gradient, state in zip(self._parameters, gradients, self._states, strict=True)
            if gradient is not None
        ]
        config = self._config
        lr = config.lr * (1 - self._step / self._steps) if config.schedule == "linear" else config.lr
        self._step += 1
        parameters, descents, first, second, counts = (list(tensors) for tensors in zip(*updates, strict=True))
        with torch.no_grad():
            if config.optimizer == "adamw":
                adamw(
                    parameters,
                    descents,
                    first,
                    second,
                    [],
                    counts,
                    fused=self._fused,
                    amsgrad=False,
                    beta1=0.9,
                    beta2=0.999,
                    lr=lr,
                    weight_decay=config.weight_decay,
                    eps=1e-8,
                    maximize=False,
                )
            else:
                # An average starts at 0, as the first gradient then makes it what PyTorch's class does; a fused step
                # could not start it where a layer has its first gradient later than others.
                sgd(
                    parameters,
                    descents,
                    [average if config.momentum else None for average in first],
                    fused=self._fused,
                    weight_decay=config.weight_decay,
                    momentum=config.momentum,
                    lr=lr,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )


def _in_order_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    # Fused steps go through memory in order, and gradients of a vmapped product may lie transposed.
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
