"""The small models, inputs and targets that the checks run on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_density.testing._networks import as_if_trained
from captum_density.testing._violations import as_tuple

Inputs = Tensor | tuple[Tensor, ...]
CLASSES = 4
BATCH = 3


class ModelError(RuntimeError):
    """Raised by the models when told to, to see what an attributor leaves behind."""


class _RaiseInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise ModelError("the model raised in its backward pass")


class _Model(nn.Module):
    """The body, raising in its "forward" or its "backward" pass if `fuse` says so."""

    def __init__(self, body: nn.Module, fuse: str, name: str) -> None:
        super().__init__()
        self.body, self.fuse, self.name = body, fuse, name

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = self.body(*args)
        if self.fuse == "forward":
            raise ModelError("the model raised in its forward pass")
        if self.fuse == "backward" and output.requires_grad:
            output = _RaiseInBackward.apply(output)
        return output


def _mlp(*head: nn.Module, outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs), *head)


def _cnn() -> nn.Module:
    block = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Dropout(0.5))
    return nn.Sequential(*block, nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, CLASSES))


class _Sequence(nn.Module):
    """Reads (N, length, features) and transposes at once, so the gradient comes back with permuted strides."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(5, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(nn.functional.gelu(self.convolution(x.transpose(1, 2))).mean(2))
        return output


class _TwoInputs(nn.Module):
    """Of two inputs and two additional forward arguments, one with a row for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 6)
        self.right = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)
        self.hidden = nn.Identity()

    def forward(self, left: Tensor, right: Tensor, scale: Tensor, shift: float = 0.0) -> Tensor:
        hidden = torch.tanh(self.left(left) * scale + shift) + torch.sigmoid(self.right(right.flatten(1)))
        output: Tensor = self.head(self.hidden(hidden))
        return output


class Selected(nn.Module):
    """The model with a choice of output columns, and its last arguments, built in."""

    def __init__(self, model: nn.Module, columns: int | slice, last: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.model, self.columns, self.last = model, columns, last

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = self.model(*args, *self.last)
        return output[:, self.columns]


class _Spec(NamedTuple):
    body: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    layer: str = "1"  # that Layer methods are asked about
    neuron_layer: str = "1"  # made of every input
    neuron: int | tuple[int, ...] = 1  # one that the next layer lets through for every example
    target: int | tuple[int, ...] = 1
    has_args: bool = False


MODELS = {
    "mlp": _Spec(_mlp, ((5,),)),
    "cnn": _Spec(_cnn, ((3, 8, 8),), "0", "0", (0, 3, 4)),
    "sequence": _Spec(_Sequence, ((6, 5),), "convolution", "convolution", (1, 2)),
    "two_inputs": _Spec(_TwoInputs, ((5,), (2, 3)), "left", "hidden", has_args=True),
    "many_outputs": _Spec(  # of shape (N, 4, 3), so a target is a pair
        lambda: _mlp(nn.Unflatten(1, (CLASSES, 3)), outputs=CLASSES * 3), ((5,),), target=(1, 2)
    ),
}
VECTOR_OUTPUT = ("mlp", "cnn", "sequence", "two_inputs")


@dataclass
class Case:
    """A model in eval mode, inputs as `attribute` gets them, a good target and additional forward arguments."""

    name: str
    model: nn.Module
    inputs: Inputs
    target: Any
    args: tuple[Any, ...] | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs as a tuple, also of one."""
        return as_tuple(self.inputs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Case":
        """The case with each input changed."""
        changed = tuple(map(change, self.tensors))
        return replace(self, inputs=changed if isinstance(self.inputs, tuple) else changed[0])

    def row(self, index: int) -> "Case":
        """The case reduced to one example."""

        def cut(value: Any) -> Any:
            return value[index : index + 1] if isinstance(value, Tensor) else value

        return replace(self.map(cut), args=None if self.args is None else tuple(map(cut, self.args)))

    def to(self, dtype: torch.dtype) -> "Case":
        """The case in another dtype; the model itself is converted."""

        def convert(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) else value

        args = None if self.args is None else tuple(map(convert, self.args))
        return replace(self.map(convert), model=self.model.to(dtype), args=args)

    def output(self) -> Tensor:
        """The model's output (N,) at the target."""
        index = (slice(None), *as_tuple(self.target))
        with torch.no_grad():
            output: Tensor = self.model(*self.tensors, *(self.args or ()))
        return output[index]


def layer_of(model: nn.Module, of_neuron: bool = False) -> nn.Module:
    """The layer that Layer methods are asked about, or that of the neuron."""
    own = next(module for module in model.modules() if isinstance(module, _Model))
    spec = MODELS[own.name]
    return own.body.get_submodule(spec.neuron_layer if of_neuron else spec.layer)


def build_case(name: str, device: torch.device, dtype: torch.dtype, fuse: str = "") -> Case:
    """A case of the named model; weights, inputs and arguments come from the global random state."""
    spec = MODELS[name]
    with torch.device("cpu"):  # whatever the default: it is then the same case everywhere
        model = _Model(spec.body(), fuse, name).eval()
        as_if_trained(model)
    inputs = tuple(torch.randn(BATCH, *shape, device="cpu").to(device, dtype) for shape in spec.shapes)
    args = ((torch.rand(BATCH, 1, device="cpu") + 0.5).to(device, dtype), 0.25) if spec.has_args else None
    return Case(name, model.to(device, dtype), inputs if len(inputs) > 1 else inputs[0], spec.target, args)
