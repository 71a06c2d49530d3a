"""Random networks for property tests, and the layers of theirs that `torch.nn` does not have."""

import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Problem", "as_if_trained", "networks"]

Kind = Literal["piecewise_linear", "smooth", "convolutional", "recurrent", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = 3
Choose = Callable[..., Any]  # one of its arguments; hypothesis shrinks towards the first
Make = Callable[..., nn.Module]
PIECEWISE_LINEAR: tuple[Make, ...] = (
    nn.ReLU,
    partial(nn.ReLU, inplace=True),
    partial(nn.LeakyReLU, 0.1),
    nn.PReLU,
    nn.ReLU6,
    nn.Hardtanh,
    partial(nn.Threshold, 0.1, 0.3),
)
SMOOTH: tuple[Make, ...] = (
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.SiLU,
    nn.GELU,
    partial(nn.GELU, approximate="tanh"),
    nn.ELU,
    partial(nn.SiLU, inplace=True),
    nn.SELU,
    nn.Mish,
    nn.Hardswish,
    nn.Softsign,
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A random network in eval mode with inputs (N, ...) and a target, for a property test.

    See `networks`, which draws it. The repr is short, as hypothesis prints it for a failing example.

    Args:
        kind: Of network, one of those that `networks` draws.
        model: Maps the inputs to (N, K).
        inputs: (N, ...), in the dtype of the weights.
        target: Of the K outputs: an int, N of them in a list, or a tensor (N,).
        seed: Of weights and inputs.
    """

    kind: Kind
    model: nn.Module
    inputs: Tensor
    target: int | list[int] | Tensor
    seed: int

    def output(self) -> Tensor:
        """The model's output at the target, (N,)."""
        logits: Tensor = self.model(self.inputs)
        target = torch.as_tensor(self.target, device=logits.device).expand(len(logits))
        return logits.gather(1, target[:, None]).squeeze(1)

    def __repr__(self) -> str:
        leaves = [str(m) for m in self.model.modules() if not list(m.children())]
        inputs = f"{str(self.inputs.dtype).removeprefix('torch.')} {tuple(self.inputs.shape)}"
        return f"Problem({self.kind}, {' > '.join(leaves)}, {inputs}, target={self.target!r}, seed={self.seed})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis would else print a dataclass field by field, weights and all."""
        printer.text(repr(self))


def _extra(
    choose: Choose, layer: Make, activations: Sequence[Make], norms: Sequence[Make], offset: tuple[int, ...]
) -> nn.Module:
    """One thing that networks do beside stacking layers, around layers that keep their input's shape."""

    def body() -> nn.Module:
        return nn.Sequential(layer(), choose(*activations)())

    parts: dict[str, Callable[[], nn.Module]] = {
        "nothing": nn.Identity,
        "addition": lambda: Combined("addition", body()),
        # An activation's output may be saved for its backward pass, so what is written to must come from a layer.
        "addition in place": lambda: Combined("addition in place", nn.Sequential(body(), layer())),
        "concatenation": lambda: Combined("concatenation", body()),
        "reuse": lambda: nn.Sequential(*[body()] * 2),
        "parameter": lambda: Offset(*offset),
        "normalisation": lambda: choose(*norms)(),
        "dropout": lambda: nn.Dropout(0.5),
    }
    if activations is not PIECEWISE_LINEAR:
        parts["product"] = lambda: Combined("product", body())
    part = parts[choose(*parts)]()
    return part


def _width(extra: nn.Module, width: int) -> int:
    return 2 * width if isinstance(extra, Combined) and extra.combination == "concatenation" else width


def _dense(choose: Choose, activations: Sequence[Make]) -> tuple[nn.Module, tuple[int, ...]]:
    features = width = choose(3, 1, 5)
    layers: list[nn.Module] = []
    for _ in range(choose(1, 2, 3)):
        wide = choose(2, 4, 6)
        layers += [nn.Linear(width, wide, bias=choose(True, False)), choose(*activations)()]
        norms: list[Make] = [partial(nn.BatchNorm1d, wide), partial(nn.BatchNorm1d, wide, affine=False)]
        if activations is SMOOTH:
            norms += [
                partial(nn.LayerNorm, wide),
                partial(nn.GroupNorm, 2 if wide > 2 else 1, wide),
                partial(nn.Softmax, dim=-1),
            ]
        layers.append(_extra(choose, partial(nn.Linear, wide, wide), activations, norms, (wide,)))
        width = _width(layers[-1], wide)
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)), (features,)


def _convolutional(choose: Choose) -> tuple[nn.Module, tuple[int, ...]]:
    activations = (*PIECEWISE_LINEAR, *SMOOTH)
    channels = width = choose(3, 2)
    layers: list[nn.Module] = []
    for _ in range(choose(1, 2)):
        wide = choose(2, 4, 6)
        convolution = choose(
            {"kernel_size": 3, "padding": 1},
            {"kernel_size": 3, "padding": 1, "stride": 2},
            {"kernel_size": 3, "padding": 2, "dilation": 2},
            {"kernel_size": 3, "padding": 1, "groups": math.gcd(width, wide)},
            {"kernel_size": 1, "bias": False},
            {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        )
        layers += [nn.Conv2d(width, wide, **convolution), choose(*activations)()]
        norms = (
            partial(nn.BatchNorm2d, wide),
            partial(nn.BatchNorm2d, wide, affine=False),
            partial(nn.GroupNorm, 1, wide),
            partial(nn.InstanceNorm2d, wide, affine=True),
        )
        same = partial(nn.Conv2d, wide, wide, 3, padding=1)
        layers.append(_extra(choose, same, activations, norms, (wide, 1, 1)))
        width = _width(layers[-1], wide)
        pool = choose(
            nn.Identity,
            partial(nn.MaxPool2d, 2),
            partial(nn.AvgPool2d, 2),
            partial(nn.MaxPool2d, 3, stride=1, padding=1),
            partial(nn.Upsample, scale_factor=2, mode="bilinear"),
        )
        layers.append(pool())
    side = choose(1, 2)
    head = (nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(width * side**2, CLASSES))
    return nn.Sequential(*layers, *head), (channels, 12, 12)  # halved up to four times, and no norm meets one pixel


def _recurrent(choose: Choose) -> tuple[nn.Module, tuple[int, ...]]:
    features, length, hidden = choose(2, 3), choose(3, 1, 5), choose(3, 4)
    cell, special = choose(
        (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.GRU, {}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 2})
    )
    directions = choose(1, 2)
    network = cell(
        features,
        hidden,
        num_layers=choose(1, 2),
        bidirectional=directions == 2,
        batch_first=choose(True, False),
        bias=choose(True, False),
        **special,
    )
    width = directions * special.get("proj_size", hidden)
    return nn.Sequential(Recurrent(network, last=choose(True, False)), nn.Linear(width, CLASSES)), (length, features)


def _attention(choose: Choose) -> tuple[nn.Module, tuple[int, ...]]:
    features, length, width = choose(3, 2), choose(4, 2), 4
    layers: list[nn.Module] = [Tokens(features, width, length, class_token=choose(False, True))]
    for _ in range(choose(1, 2)):
        a, b = choose(False, True), choose(False, True)
        dot_product = partial(DotProductAttention, width, fused=a, causal=b)
        multihead = partial(SelfAttention, width, batch_first=a, need_weights=b)
        block = choose(
            dot_product,
            lambda make=dot_product: Combined("addition", make()),
            multihead,
            lambda make=multihead: Combined("addition in place", make()),
            partial(
                nn.TransformerEncoderLayer,
                *(width, 2),
                dim_feedforward=5,
                activation="gelu" if a else "relu",
                norm_first=b,
                batch_first=True,
            ),
        )
        layers += [block(), choose(nn.Identity, partial(nn.LayerNorm, width))()]
    head = (Pick(first=choose(True, False)), nn.Linear(width, CLASSES))
    return nn.Sequential(*layers, *head), (length, features)


BUILDERS: dict[Kind, Callable[[Choose], tuple[nn.Module, tuple[int, ...]]]] = {
    "piecewise_linear": partial(_dense, activations=PIECEWISE_LINEAR),
    "smooth": partial(_dense, activations=SMOOTH),
    "convolutional": _convolutional,
    "recurrent": _recurrent,
    "attention": _attention,
}


def networks(kinds: Collection[Kind] = KINDS, *, dtype: torch.dtype = torch.float64) -> Any:
    """A hypothesis strategy of small random networks, with inputs and a target: a `Problem` each.

    Biases and the statistics of batch norms are random too. Structure and weights follow from what hypothesis draws,
    so a failing example replays and shrinks; the global random state is not touched. Networks are in eval mode and give
    3 outputs for each of 1 to 3 examples.

    Args:
        kinds: What to draw from:
            "piecewise_linear": fully connected, of ReLU and its relatives, dropout and batch norm;
            "smooth": fully connected, of smooth activations, normalisations and products of activations;
            "convolutional": images (N, C, 12, 12), strided, dilated and grouped convolutions, norms and pooling;
            "recurrent": sequences (N, length, features), in RNN, GRU or LSTM, bidirectional or length-first;
            "attention": sequences (N, length, features), with class token, nn.MultiheadAttention,
            scaled_dot_product_attention, attention written out, or nn.TransformerEncoderLayer.
            All but the last two may add (in place or not), concatenate, reuse a module, use a parameter directly or
            hold a module that is never used.
        dtype: Of weights and inputs; float64 by default, where no tolerance hides a mistake.

    Returns:
        A `hypothesis.strategies.SearchStrategy` of problems.

    Raises:
        ValueError: For an unknown kind, or none.
        ImportError: Without hypothesis, which the extra `captum-density[test]` installs.

    Example:
        >>> import torch
        >>> from hypothesis import given, settings
        >>> shapes = set()
        >>> @settings(max_examples=5, database=None, deadline=None)
        ... @given(networks(["piecewise_linear", "smooth"]))
        ... def one_value_an_example(problem):
        ...     shapes.add(problem.output().shape[1:])
        >>> one_value_an_example()
        >>> shapes
        {torch.Size([])}
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds takes a collection of {', '.join(KINDS)}; received {kinds!r}")
    try:
        from hypothesis import strategies as st
    except ImportError as error:
        raise ImportError("random networks need hypothesis: pip install 'captum-density[test]'") from error

    def problem(draw: Callable[[Any], Any]) -> Problem:
        def choose(*options: Any) -> Any:
            return draw(st.sampled_from(options))

        kind, seed = choose(*kinds), draw(st.integers(0, 2**16))
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone, where torch.manual_seed reseeds CUDA's too
            model, shape = BUILDERS[kind](choose)
            as_if_trained(model)
            batch = choose(2, 1, 3)
            inputs = torch.randn(batch, *shape, dtype=torch.float64, device="cpu").to(dtype)
        one = st.integers(0, CLASSES - 1)
        each = st.lists(one, min_size=batch, max_size=batch)
        target = draw(st.one_of(one, each, each.map(torch.tensor)))
        return Problem(kind, model.to(dtype).eval(), inputs, target, seed)

    return st.composite(problem)()


_COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addition": operator.add,
    "addition in place": lambda x, y: operator.iadd(y, x),
    "concatenation": lambda x, y: torch.cat([x, y], dim=1),
    "product": lambda x, y: x * torch.sigmoid(y),
}


class Combined(nn.Module):
    """x and body(x), combined: added (in place or not), side by side in the features, or one gating the other."""

    def __init__(self, combination: str, body: nn.Module) -> None:
        super().__init__()
        self.combination, self.body = combination, body

    def forward(self, x: Tensor) -> Tensor:
        return _COMBINATIONS[self.combination](x, self.body(x))


class Offset(nn.Module):
    """x + a parameter used directly, beside a module that is never used."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(shape))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class Recurrent(nn.Module):
    """A recurrent network over (N, length, features), read at the last step or averaged: (N, hidden)."""

    def __init__(self, cell: nn.RNNBase, last: bool) -> None:
        super().__init__()
        self.cell, self.last = cell, last

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.cell(x if self.cell.batch_first else x.transpose(0, 1))[0]
        steps = steps if self.cell.batch_first else steps.transpose(0, 1)
        return steps[:, -1] if self.last else steps.mean(1)


class Tokens(nn.Module):
    """Projects tokens to a width, puts a class token before them and adds a position embedding."""

    def __init__(self, features: int, width: int, length: int, class_token: bool) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.position = nn.Parameter(torch.randn(1, length + class_token, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return x + self.position


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of tokens to themselves, batch or length first, with or without weights returned."""

    def __init__(self, width: int, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


class DotProductAttention(nn.Module):
    """Attention in two heads, written out or by scaled_dot_product_attention."""

    def __init__(self, width: int, fused: bool, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fused, self.causal = fused, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            if self.causal:
                ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(ahead, -torch.inf)
            y = scores.softmax(-1) @ v
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Pick(nn.Module):
    """One vector of a sequence of tokens: the first token's, or the mean."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.first else x.mean(1)


def as_if_trained(model: nn.Module) -> None:
    """Move biases, norms and running statistics off the zeros and ones they start at, which hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
