"""For tests of attributors, yours as ours: a conformance suite, an assertion of completeness, random networks."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_density._conformance import (
    CAPTUM_DEPARTURES,
    ConformanceError,
    Failure,
    attribution_checks,
    check_attribution,
)

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "CAPTUM_DEPARTURES",
    "ConformanceError",
    "Failure",
    "Problem",
    "assert_complete",
    "attribution_checks",
    "check_attribution",
    "networks",
]

Draw = Callable[["SearchStrategy[Any]"], Any]
Kind = Literal["piecewise_linear", "smooth", "convolutional", "recurrent", "attention"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLASSES = 3
# Rounding of a sum over a network's terms, with room for ill-conditioned ones.
RELATIVE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class _Decomposition(Protocol):
    """Terms that know their own sum: what `FullGrad.decompose` returns."""

    def total(self) -> Tensor:
        """The sum of all terms, (N,)."""


def assert_complete(
    terms: Tensor | tuple[Tensor, ...] | _Decomposition, output: Tensor | None = None, *, rtol: float | None = None
) -> None:
    r"""Assert completeness: for each example the terms sum to the output.

    .. math:: |\sum_t t_n - f(x_n)| \le rtol \cdot \max(\sum_t |t_n|, |f(x_n)|)

    The tolerance is relative to the sum of absolute terms, for that is the size of the rounding error of their sum. The
    sum itself is taken in float64.

    Args:
        terms: Attributions, a tensor (N, ...) or a tuple of them; or an object with a method `total()` that returns
            (N,), whose `inputs` (tuple of tensors) and `biases` (dict of tensors), where it has them, give the sizes.
        output: What the terms should sum to, (N,) or (N, 1): the model's output at the target, or its change from a
            baseline. By default `terms.output`.
        rtol: Relative tolerance; by default that of the coarsest dtype among terms and output: 1e-10 for float64,
            1e-5 for float32, 2e-2 for float16, 1e-1 for bfloat16.

    Raises:
        AssertionError: If an example's gap is larger, or not a number; it names the worst example and its gap.
        TypeError: If `terms` is none of these, or there is no output to compare with.
        ValueError: If the batch sizes differ.

    Example:
        For a linear function without bias, input times gradient is complete; the gradient alone is not:

        >>> x, w = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])
        >>> assert_complete(x * w, x @ w)
        >>> assert_complete(w.expand(2, 2), x @ w)
        Traceback (most recent call last):
            ...
        AssertionError: the terms of example 1 sum to 11, but its output is 39: a gap of 28, or 0.72 of the larger ...
    """
    parts: tuple[Any, ...]
    if isinstance(terms, Tensor | tuple):
        parts = terms if isinstance(terms, tuple) else (terms,)
        if not parts or any(getattr(part, "ndim", 0) == 0 for part in parts):
            raise TypeError(f"terms must be tensors with a batch dimension; received {terms!r}")
        sums = None
    elif callable(getattr(terms, "total", None)):
        parts = (*getattr(terms, "inputs", ()), *dict(getattr(terms, "biases", {})).values())
        sums = terms.total()
        output = getattr(terms, "output", None) if output is None else output
    else:
        raise TypeError(f"terms must be a tensor, a tuple of tensors or have total(); received {type(terms).__name__}")
    if not isinstance(output, Tensor):
        raise TypeError(f"output must be a tensor (N,); received {type(output).__name__}")
    everything = [output, *parts] if sums is None else [output, sums, *parts]
    if output.dim() == 0 or output.numel() != len(output) or any(len(part) != len(output) for part in everything):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in everything[1:])
        raise ValueError(
            f"one output an example is expected, (N,), and terms of as many; received output {tuple(output.shape)} and "
            f"terms {shapes}. Select the target's output first"
        )
    if rtol is None:
        rtol = max(RELATIVE_TOLERANCE.get(tensor.dtype, 0.0) for tensor in everything)
    output = _example_sums(output)
    total = torch.stack([_example_sums(part) for part in parts]).sum(0) if sums is None else _example_sums(sums)
    absolute = torch.zeros_like(total)
    for part in parts:
        absolute += _example_sums(part.abs())
    gap, scale = (total - output).abs(), torch.maximum(absolute, output.abs())
    complete = gap.isfinite() & (gap <= rtol * scale)
    if bool(complete.all()):
        return
    worst = int(torch.where(gap.isfinite(), gap / scale.clamp_min(1e-300), torch.inf).argmax())
    raise AssertionError(
        f"the terms of example {worst} sum to {total[worst]:.6g}, but its output is {output[worst]:.6g}: a gap of "
        f"{gap[worst]:.3g}, or {gap[worst] / scale[worst]:.2g} of the larger of its output and the sum of its absolute "
        f"terms, where rtol allows {rtol:.2g}; {int((~complete).sum())} of {len(total)} examples are out"
    )


def _example_sums(part: Tensor) -> Tensor:
    return part.detach().cpu().double().reshape(len(part), -1).sum(1)


# ----------------------------------------------------------------------------------------------------------------------
# Random networks


@dataclass(frozen=True, eq=False)
class Problem:
    """A random network in eval mode with inputs (N, ...) and a target, for a property test.

    The model returns (N, K); `target` is an int, or N of them in a list or a tensor. The repr is short, as hypothesis
    prints it for a failing example.
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


PIECEWISE_LINEAR: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.1),
    nn.PReLU,
    nn.ReLU6,
    nn.Hardtanh,
    lambda: nn.Threshold(0.1, 0.3),
)
SMOOTH: tuple[Callable[[], nn.Module], ...] = (
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.SiLU,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.ELU,
    lambda: nn.SiLU(inplace=True),
    nn.SELU,
    nn.Mish,
    nn.Hardswish,
    nn.Softsign,
)


class _Add(nn.Module):
    """x + body(x), out of place or in place."""

    def __init__(self, body: nn.Module, inplace: bool) -> None:
        super().__init__()
        self.body, self.inplace = body, inplace

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if not self.inplace:
            return x + y
        y += x
        return y


class _Concatenate(nn.Module):
    """[x, body(x)], side by side in the features."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class _Gate(nn.Module):
    """x * sigmoid(body(x)): a product of activations."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.body(x)
        return x * torch.sigmoid(gate)


class _Twice(nn.Module):
    """The same module applied twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.body(x))
        return y


class _Offset(nn.Module):
    """x + a parameter used directly, beside a module that is never used."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(shape))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class _Recurrent(nn.Module):
    """A recurrent network over (N, length, features), read at the last step or averaged: (N, hidden)."""

    def __init__(self, cell: nn.RNNBase, last: bool) -> None:
        super().__init__()
        self.cell, self.last = cell, last

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.cell(x if self.cell.batch_first else x.transpose(0, 1))[0]
        steps = steps if self.cell.batch_first else steps.transpose(0, 1)
        return steps[:, -1] if self.last else steps.mean(1)


class _Tokens(nn.Module):
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


class _MultiheadAttention(nn.Module):
    """nn.MultiheadAttention of tokens to themselves, batch or length first, with or without weights returned."""

    def __init__(self, width: int, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


class _DotProductAttention(nn.Module):
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


class _Pick(nn.Module):
    """One vector of a sequence of tokens: the first token's, or the mean."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.first else x.mean(1)


def _choose(draw: Draw, *options: Any) -> Any:
    return draw(_strategies().sampled_from(options))


def _strategies() -> Any:
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise ImportError("random networks need hypothesis: pip install 'captum-density[test]'") from error
    return strategies


def _extra(
    draw: Draw,
    smooth: bool,
    layer: Callable[[], nn.Module],
    activations: Sequence[Callable[[], nn.Module]],
    norms: Sequence[Callable[[], nn.Module]],
    offset: tuple[int, ...],
) -> nn.Module:
    """One thing that networks do beside stacking layers, around layers that keep their input's shape."""

    def body() -> nn.Module:
        return nn.Sequential(layer(), _choose(draw, *activations)())

    parts: dict[str, Callable[[], nn.Module]] = {
        "nothing": nn.Identity,
        "addition": lambda: _Add(body(), inplace=False),
        # An activation's output may be saved for its backward pass, so what is written to must come from a layer.
        "addition in place": lambda: _Add(nn.Sequential(body(), layer()), inplace=True),
        "concatenation": lambda: _Concatenate(body()),
        "reuse": lambda: _Twice(body()),
        "parameter": lambda: _Offset(*offset),
        "normalisation": lambda: _choose(draw, *norms)(),
        "dropout": lambda: nn.Dropout(0.5),
    }
    if smooth:
        parts["product"] = lambda: _Gate(body())
    made = parts[_choose(draw, *parts)]()
    return made


def _dense(draw: Draw, smooth: bool) -> tuple[nn.Module, tuple[int, ...]]:
    activations = SMOOTH if smooth else PIECEWISE_LINEAR
    features = width = _choose(draw, 3, 1, 5)
    layers: list[nn.Module] = []
    for _ in range(_choose(draw, 1, 2, 3)):
        wide = _choose(draw, 2, 4, 6)
        layers += [nn.Linear(width, wide, bias=_choose(draw, True, False)), _choose(draw, *activations)()]
        norms: list[Callable[[], nn.Module]] = [
            partial(nn.BatchNorm1d, wide),
            partial(nn.BatchNorm1d, wide, affine=False),
        ]
        if smooth:
            norms += [partial(nn.LayerNorm, wide), partial(nn.GroupNorm, 2, wide), partial(nn.Softmax, dim=-1)]
        layers.append(_extra(draw, smooth, partial(nn.Linear, wide, wide), activations, norms, (wide,)))
        width = 2 * wide if isinstance(layers[-1], _Concatenate) else wide
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)), (features,)


def _convolutional(draw: Draw) -> tuple[nn.Module, tuple[int, ...]]:
    activations = (*PIECEWISE_LINEAR, *SMOOTH)
    channels = _choose(draw, 3, 2)
    shape, width = (channels, 12, 12), channels  # halved up to four times, and no norm may meet a single pixel
    layers: list[nn.Module] = []
    for _ in range(_choose(draw, 1, 2)):
        wide = _choose(draw, 2, 4, 6)
        options: tuple[dict[str, Any], ...] = (
            {"kernel_size": 3, "padding": 1},
            {"kernel_size": 3, "padding": 1, "stride": 2},
            {"kernel_size": 3, "padding": 2, "dilation": 2},
            {"kernel_size": 3, "padding": 1, "groups": math.gcd(width, wide)},
            {"kernel_size": 1, "bias": False},
            {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        )
        layers += [nn.Conv2d(width, wide, **_choose(draw, *options)), _choose(draw, *activations)()]
        norms: tuple[Callable[[], nn.Module], ...] = (
            partial(nn.BatchNorm2d, wide),
            partial(nn.BatchNorm2d, wide, affine=False),
            partial(nn.GroupNorm, 1, wide),
            partial(nn.InstanceNorm2d, wide, affine=True),
        )
        same = partial(nn.Conv2d, wide, wide, 3, padding=1)
        layers.append(_extra(draw, True, same, activations, norms, (wide, 1, 1)))
        width = 2 * wide if isinstance(layers[-1], _Concatenate) else wide
        pools: tuple[Callable[[], nn.Module], ...] = (
            nn.Identity,
            partial(nn.MaxPool2d, 2),
            partial(nn.AvgPool2d, 2),
            partial(nn.MaxPool2d, 3, stride=1, padding=1),
            partial(nn.Upsample, scale_factor=2, mode="bilinear"),
        )
        layers.append(_choose(draw, *pools)())
    side = _choose(draw, 1, 2)
    head = (nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(width * side**2, CLASSES))
    return nn.Sequential(*layers, *head), shape


def _recurrent(draw: Draw) -> tuple[nn.Module, tuple[int, ...]]:
    features, length, hidden = _choose(draw, 2, 3), _choose(draw, 3, 1, 5), _choose(draw, 3, 4)
    cell, special = _choose(
        draw, (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.GRU, {}), (nn.LSTM, {}), (nn.LSTM, {"proj_size": 2})
    )
    directions = _choose(draw, 1, 2)
    network = cell(
        features,
        hidden,
        num_layers=_choose(draw, 1, 2),
        bidirectional=directions == 2,
        batch_first=_choose(draw, True, False),
        bias=_choose(draw, True, False),
        **special,
    )
    read = _Recurrent(network, last=_choose(draw, True, False))
    width = directions * special.get("proj_size", hidden)
    return nn.Sequential(read, nn.Linear(width, CLASSES)), (length, features)


def _attention(draw: Draw) -> tuple[nn.Module, tuple[int, ...]]:
    features, length, width = _choose(draw, 3, 2), _choose(draw, 4, 2), 4
    layers: list[nn.Module] = [_Tokens(features, width, length, class_token=_choose(draw, False, True))]
    for _ in range(_choose(draw, 1, 2)):
        flags = [_choose(draw, False, True) for _ in range(2)]
        blocks: tuple[Callable[[bool, bool], nn.Module], ...] = (
            lambda a, b: _DotProductAttention(width, fused=a, causal=b),
            lambda a, b: _Add(_DotProductAttention(width, fused=a, causal=b), inplace=False),
            lambda a, b: _MultiheadAttention(width, batch_first=a, need_weights=b),
            lambda a, b: _Add(_MultiheadAttention(width, batch_first=a, need_weights=b), inplace=True),
            lambda a, b: nn.TransformerEncoderLayer(
                width, 2, dim_feedforward=5, activation="gelu" if a else "relu", norm_first=b, batch_first=True
            ),
        )
        layers.append(_choose(draw, *blocks)(*flags))
        layers.append(_choose(draw, nn.Identity, partial(nn.LayerNorm, width))())
    return nn.Sequential(*layers, _Pick(first=_choose(draw, True, False)), nn.Linear(width, CLASSES)), (
        length,
        features,
    )


BUILDERS: dict[Kind, Callable[[Draw], tuple[nn.Module, tuple[int, ...]]]] = {
    "piecewise_linear": partial(_dense, smooth=False),
    "smooth": partial(_dense, smooth=True),
    "convolutional": _convolutional,
    "recurrent": _recurrent,
    "attention": _attention,
}


def _as_if_trained(model: nn.Module) -> None:
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


def networks(kinds: Collection[Kind] = KINDS, *, dtype: torch.dtype = torch.float64) -> "SearchStrategy[Problem]":
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
        The strategy.

    Raises:
        ValueError: For an unknown kind, or none.
        ImportError: Without hypothesis, which the extra `captum-density[test]` installs.

    Example:
        >>> from hypothesis import given, settings
        >>> @settings(max_examples=5, database=None, deadline=None)
        ... @given(networks(["piecewise_linear", "smooth"]))
        ... def test_one_value_an_example(problem):
        ...     assert problem.output().shape == (len(problem.inputs),)
        >>> test_one_value_an_example()
    """
    names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not names or not set(names) <= set(KINDS):
        raise ValueError(f"kinds takes a collection of {', '.join(KINDS)}; received {kinds!r}")
    st = _strategies()

    def problem(draw: Draw) -> Problem:
        kind: Kind = _choose(draw, *names)
        seed = draw(st.integers(0, 2**16))
        generator_state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)  # of the CPU alone, where torch.manual_seed reseeds CUDA's too
            model, shape = BUILDERS[kind](draw)
            _as_if_trained(model)
            batch = _choose(draw, 2, 1, 3)
            inputs = torch.randn(batch, *shape, dtype=torch.float64).to(dtype)
        finally:
            torch.set_rng_state(generator_state)
        one, each = st.integers(0, CLASSES - 1), st.lists(st.integers(0, CLASSES - 1), min_size=batch, max_size=batch)
        target = draw(st.one_of(one, each, each.map(torch.tensor)))
        return Problem(kind, model.to(dtype).eval(), inputs, target, seed)

    strategy: SearchStrategy[Problem] = st.composite(problem)()
    return strategy
