"""Small networks with their layers by name, for tests of Layer and Neuron methods.

`python -m tests.attr.layered` measures the table of layers in `tutorials/guides/completeness.md`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_density.attr import LayerFullGrad


class Network(NamedTuple):
    """A model, inputs it takes, additional arguments, and the names of layers to cut it at."""

    model: nn.Module
    inputs: Any
    args: Any
    layers: tuple[str, ...]

    def layer(self, name: str) -> nn.Module:
        """A layer by name, "" for all of the model."""
        return self.model.get_submodule(name)


class Residual(nn.Module):
    """A block with a convolution in its skip connection, and an in-place ReLU after the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu, self.skip = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.relu(self.norm(self.first(x))))
        return self.head(F.gelu(y + self.skip(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """Token ids, an embedding and an LSTM, the batch or the time first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 4, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(4, 3), batch_first

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        y = self.lstm(x if self.batch_first else x.transpose(0, 1))[0]
        return self.head(y.mean(1 if self.batch_first else 0))


class Encoder(nn.Module):
    """Token ids, learnt positions, and PyTorch's transformer layers under a mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


class Decoder(nn.Module):
    """Embeddings as inputs, causal attention and a gated block around residual connections; a second input scales."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.RMSNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x)) * scale[:, None]
        return self.head(x[:, -1])


def _patches() -> nn.Module:
    attention = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, activation="gelu")
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Flatten(2), Turned(), attention, Mean(), nn.Linear(8, 3))


class Turned(nn.Module):
    """(N, C, L) to (N, L, C), a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    """(N, L, C) to (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Pair(nn.Module):
    """A layer that returns two tensors and a number, and a layer that is called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.named, self.head = Two(), Named(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, (b, _) = self.two(x)
        return self.head(self.named(x=torch.tanh(a) * b))


class Two(nn.Module):
    """Two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, int]]:
        return self.a(x), (self.b(x), 3)


class Named(nn.Module):
    """An activation."""

    def forward(self, *, x: Tensor) -> Tensor:
        return F.softplus(x)


def _convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4, 3)),
    )


def _images() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def _ids() -> Tensor:
    return torch.randint(11, (2, 6))


_PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Any, tuple[str, ...]]] = {
    "convolutional": (_convolutional, _images, None, ("0", "1", "2", "4", "6", "")),
    "residual": (Residual, _images, None, ("first", "second", "relu", "skip", "head")),
    "patches": (_patches, _images, None, ("0", "2", "3", "3.linear1", "3.self_attn")),
    "recurrent": (lambda: Recurrent(True), _ids, None, ("embedding", "lstm")),
    "time first": (lambda: Recurrent(False), _ids, None, ("embedding", "lstm")),
    "encoder": (Encoder, _ids, _PADDING, ("tokens", "positions", "encoder.layers.0", "encoder.layers.1.linear1")),
    "decoder": (
        Decoder, lambda: (torch.randn(2, 4, 8), torch.rand(2, 1)), None, ("norm", "qkv", "out", "up", "down")
    ),
    "pair": (Pair, lambda: torch.randn(3, 5), None, ("two", "named")),
}  # fmt: skip
NETWORKS = tuple(_NETWORKS)


def network(name: str) -> Network:
    """A network in float64, the same each time."""
    make, inputs, args, layers = _NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():  # biases and statistics start at 0 and 1, which hide mistakes
            for name_of, values in model.state_dict().items():
                if values.ndim == 1 and values.is_floating_point():
                    values += torch.rand_like(values) if name_of.endswith("var") else torch.randn_like(values) / 2
        xs = inputs()
    xs = tuple(_double(x) for x in xs) if isinstance(xs, tuple) else _double(xs)
    return Network(model.double().eval(), xs, args, layers)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


CUTS = [(name, layer) for name, (_, _, _, layers) in _NETWORKS.items() for layer in layers]


def _table() -> None:
    print("| network | layer | layer | after | around | f(x) | gap |\n|---|---|---|---|---|---|---|")
    for name, layer in CUTS:
        net = network(name)
        terms = LayerFullGrad(net.model, net.layer(layer)).decompose(net.inputs, 1, net.args)
        sums = [*terms.parts().values(), terms.output]
        means = " | ".join(f"{float(values.detach().mean()):+.3f}" for values in sums)
        print(f"| {name} | {layer or 'the model'} | {means} | {float(terms.gap().max()):.0e} |")


if __name__ == "__main__":
    _table()
