"""Small networks with known answers, on which the table of axioms stands."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.generators import seeded
from captum_density.rewriting import fold_batch_norm, insert_identity, permute_hidden_units, split_layer

__all__ = ["AXIOMS", "Network", "networks_by_axiom"]

AXIOMS = ("completeness", "completeness to output", "sensitivity", "implementation invariance", "symmetry")


@dataclass(frozen=True)
class Network:
    """A network, in double precision and with one output, and what an axiom is tried on.

    Args:
        name: What it is.
        model: The network.
        inputs: (N, ...); the baseline is 0.
        rewritten: Another network that computes the same function, for implementation invariance.
        pairs: Features the function is symmetric in, for symmetry.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    rewritten: nn.Module | None = None
    pairs: tuple[tuple[int, int], ...] = ()


def networks_by_axiom() -> dict[str, tuple[Network, ...]]:
    """The networks by axiom, made anew and alike in every call."""
    with torch.device("cpu"), seeded(0, torch.device("cpu")):
        clipped = Network("min(x, 1) at 2", _clipped(), _row(2))
        beyond = Network("max(0, x - 10) at 15", _beyond(), _row(15))
        smooth = Network("tanh network", _smooth(), torch.randn(3, 3, dtype=torch.float64, device="cpu"))
        images = torch.randn(3, 1, 2, 2, dtype=torch.float64, device="cpu")
        network = _ConvolutionalNetwork().double().eval()
        rectified = Network("convolutional network", network, images)
        general = (clipped, beyond, smooth, rectified)
        return {
            "completeness": general,
            "completeness to output": general,
            "sensitivity": general,
            "implementation invariance": (
                Network("figure 7", _figure_7(early=False), _row(3, 1), _figure_7(early=True)),
                Network("split layer", network, images, split_layer(network, "hidden")),
                Network("permuted units", network, images, permute_hidden_units(network, "convolution", "hidden")),
                Network("max(x1, x2) at (2, 1)", _maximum(0), _row(2, 1), _maximum(1)),
                Network("inserted identity", network, images, insert_identity(network, "convolution")),
                Network("rotated identity", network, images, _rotated_identity(network, "hidden")),
                Network("folded batch norm", network, images, fold_batch_norm(network)),
                Network("dense convolution", network, images, _dense(network)),
            ),
            "symmetry": _symmetric_networks(),
        }


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64, device="cpu")


def _linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(weight, device="cpu"), "bias": torch.tensor(bias, device="cpu")})
    return layer


def _clipped() -> nn.Module:
    """min(x, 1) = 1 - relu(1 - x): flat beyond 1."""
    return nn.Sequential(_linear([[-1.0]], [1.0]), nn.ReLU(), _linear([[-1.0]], [1.0]))


def _beyond() -> nn.Module:
    """max(0, x - 10): its baseline is where it is flat."""
    return nn.Sequential(_linear([[1.0]], [-10.0]), nn.ReLU())


def _figure_7(*, early: bool) -> nn.Module:
    """relu(relu(x1) - 1 - relu(x2)), or with the 1 subtracted early, relu(relu(x1 - 1) - relu(x2)).

    Equal: for x1 >= 1 both are relu(x1 - 1 - relu(x2)), for x1 < 1 both are 0.
    """
    one = [-1.0, 0.0]
    return nn.Sequential(
        _linear([[1.0, 0.0], [0.0, 1.0]], one if early else [0.0, 0.0]),
        nn.ReLU(),
        _linear([[1.0, -1.0]], [0.0 if early else -1.0]),
        nn.ReLU(),
    )


def _smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def _minimum() -> nn.Module:
    """min(x1, x2) = (x1 + x2 - |x1 - x2|) / 2, written alike in both."""
    hidden = _linear([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], [0.0] * 4)
    return nn.Sequential(hidden, nn.ReLU(), _linear([[0.5, -0.5, -0.5, -0.5]], [0.0]))


def _maximum(first: int) -> nn.Module:
    """max(x1, x2) = a + relu(b - a), where a is either of them and a = relu(a) - relu(-a)."""
    a, b = [1.0, 0.0][:: 1 - 2 * first], [0.0, 1.0][:: 1 - 2 * first]
    hidden = _linear([a, [-u for u in a], [v - u for u, v in zip(a, b, strict=True)]], [0.0] * 3)
    return nn.Sequential(hidden, nn.ReLU(), _linear([[1.0, -1.0, 1.0]], [0.0]))


def _symmetric(nonlinearity: type[nn.Module]) -> nn.Module:
    """Random, and symmetric in its first two inputs: hidden units come in pairs that read them the other way round."""
    hidden, last = nn.Linear(3, 8), nn.Linear(8, 1)
    with torch.no_grad():
        hidden.weight[4:] = hidden.weight[:4][:, [1, 0, 2]]
        hidden.bias[4:] = hidden.bias[:4]
        last.weight[:, 4:] = last.weight[:, :4]
    return nn.Sequential(hidden, nonlinearity(), last).double()


def _symmetric_networks() -> tuple[Network, ...]:
    x, pairs = torch.randn(3, 3, dtype=torch.float64, device="cpu")[:, [0, 0, 1]], ((0, 1),)
    rectified, smooth = _symmetric(nn.ReLU), _symmetric(nn.Tanh)
    return (
        Network("min(x1, x2) at (2, 2)", _minimum(), _row(2, 2), pairs=pairs),
        Network("symmetric ReLU network", rectified, x, pairs=pairs),
        Network("symmetric tanh network", smooth, x, pairs=pairs),
        # The function is as symmetric as before; the hidden units are not.
        Network("symmetric network, rotated identity", _rotated_identity(rectified, "0"), x, pairs=pairs),
    )


def _rotated_identity(model: nn.Module, name: str) -> nn.Module:
    """A layer split in two, and an identity inserted between."""
    return insert_identity(split_layer(model, name), f"{name}.0")


class _ConvolutionalNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.first = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.hidden, self.second, self.last = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1)
        statistics: Any = self.norm
        nn.init.uniform_(statistics.running_var, 0.5, 1.5)
        for values in (statistics.weight, statistics.bias, statistics.running_mean):
            nn.init.normal_(values)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.norm(self.convolution(x)))
        return self.last(self.second(self.hidden(torch.flatten(x, 1))))


class _Dense(nn.Module):
    """A linear layer in the place of a convolution."""

    def __init__(self, layer: nn.Linear, shape: torch.Size) -> None:
        super().__init__()
        self.layer, self._shape = layer, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.flatten(x, 1)).reshape(len(x), *self._shape)


def _dense(model: nn.Module) -> nn.Module:
    """The convolution written out as one matrix, a column for each pixel."""
    rewritten: Any = copy.deepcopy(model)
    with torch.no_grad():
        unit = torch.eye(4, dtype=torch.float64, device="cpu").reshape(4, 1, 2, 2)
        constant = rewritten.convolution(torch.zeros_like(unit[:1]))
        columns = (rewritten.convolution(unit) - constant).flatten(1)
    layer = _linear(columns.T.tolist(), constant.flatten().tolist())
    rewritten.convolution = _Dense(layer, constant.shape[1:])
    return rewritten
