"""CompleteDeepLift: the sum is met on any model, and nothing else about it surprises a user of Captum's DeepLift."""

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import DeepLift, DeepLiftShap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

from captum_density.attr import CompleteDeepLift, CompleteDeepLiftShap
from captum_density.testing import check_attribution, networks
from tests._linear.architectures import build
from tests.rules.networks import IMAGES, TOKENS

Model = Callable[[Tensor], Tensor]


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def assert_complete(model: Model, x: Any, baseline: Any, target: Any = 1, rtol: float = 1e-10, **options: Any) -> Any:
    """The sum is f(x) - f(x') for each example, which differ; returns the attributions."""
    attributions = CompleteDeepLift(model).attribute(x, baseline, target=target, **options)
    parts = attributions if isinstance(attributions, tuple) else (attributions,)
    arguments = options.get("additional_forward_args", ())
    pairs = (x, baseline) if isinstance(x, tuple) else ((x,), (baseline,))
    with torch.no_grad():
        ends = [model(*inputs, *arguments) for inputs in pairs]
    change = (ends[0] - ends[1])[..., target] if target is not None else ends[0] - ends[1]
    assert change.abs().max() > 1e-6 * ends[0].abs().max()
    gap = (sum(a.flatten(1).sum(1) for a in parts) - change).abs()
    assert (gap <= rtol * sum(a.flatten(1).abs().sum(1) for a in parts)).all(), gap
    return attributions


# -- the sum


@pytest.mark.parametrize("name", TOKENS)
def test_complete_on_tokens(name):
    assert_complete(seeded(TOKENS[name]), double(3, 5, 16), double(3, 5, 16, seed=1))


@pytest.mark.parametrize("name", ["squeeze and excitation", "ViT"])
def test_complete_on_images(name):
    model = seeded(IMAGES[name])
    if hasattr(model, "heads"):
        nn.init.normal_(model.heads[-1].weight)
    assert_complete(model, double(2, 3, 32, 32), double(2, 3, 32, 32, seed=1))


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "regnet_y_400mf", "swin_v2_t", "bert", "gpt2", "vit", "lstm", "gru"]
)
@pytest.mark.filterwarnings("ignore:GPT2ForSequenceClassification")
def test_complete_on_architectures(name):
    case = build(name, torch.float64, small=True, narrow=True)
    baseline = double(*case.inputs.shape, seed=1)
    attributor = CompleteDeepLift(case.model)
    attributions, delta = attributor.attribute(case.inputs, baseline, case.target, return_convergence_delta=True)
    assert (delta.abs() <= 1e-10 * attributions.flatten(1).abs().sum(1)).all()


@settings(max_examples=20)
@given(networks(), st.sampled_from([0.0, 0.5, "other"]))
def test_complete_on_random_networks(problem, baseline):
    x = problem.inputs
    start = x.flip(-1) * 0.5 if baseline == "other" else torch.full_like(x, baseline)
    attributions = CompleteDeepLift(problem.model).attribute(x, start, problem.target)
    ends = [dataclasses.replace(problem, inputs=at).output().detach() for at in (x, start)]
    gap = (attributions.flatten(1).sum(1) - (ends[0] - ends[1])).abs()
    rounding = 1e-14 * (1 + ends[0].abs() + ends[1].abs())
    assert (gap <= 1e-10 * attributions.flatten(1).abs().sum(1) + rounding).all()


# What Captum's and SHAP's users reported: sums that are missed by DeepLift on ordinary models.


class Reused(nn.Module):
    """One ReLU module in three places, and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.relu, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.relu(layer(x))
        return self.head(x)


class Functional(nn.Module):
    """Activations that are no modules, in place too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x) * 2, inplace=True)
        x += 1
        x *= x.sigmoid()
        x[:, 0] = torch.tanh(x[:, 1])
        x.clamp_(max=1.5)
        return F.gelu(self.second(x))


def _mlp(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 3))


REPORTED: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: _mlp(nn.LayerNorm(6)),
    "GroupNorm": lambda: _mlp(nn.GroupNorm(2, 6)),
    "GELU": lambda: _mlp(nn.GELU()),
    "SiLU": lambda: _mlp(nn.SiLU()),
    "softmax inside": lambda: _mlp(nn.Softmax(1)),
    "log_softmax at the end": lambda: nn.Sequential(_mlp(nn.ReLU()), nn.LogSoftmax(1)),
    "reused ReLU, residual": Reused,
    "functional, in place": Functional,
}


@pytest.mark.parametrize("name", REPORTED)
def test_complete_where_deep_lift_was_reported_not_to_be(name):
    assert_complete(seeded(REPORTED[name]), double(3, 4), double(3, 4, seed=1))


def test_complete_on_an_encoder_where_captum_misses_half():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = seeded(lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    head = seeded(lambda: nn.Linear(8, 3))
    model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, 3)).double().eval()
    x, baseline = double(3, 5, 8), double(3, 5, 8, seed=1)
    assert_complete(model, x, baseline)
    assert_complete(lambda x: head(encoder(x).mean(1)), x, baseline)


def _written_into_a_constant(x: Tensor) -> Tensor:
    y = torch.ones(len(x), 4, dtype=x.dtype)
    old = y[:, 2]
    y[:, 1] += x[:, 0].exp()
    y[:, 2:] *= x[:, :2]
    return y * old[:, None]


OPERATIONS: dict[str, Model] = {
    "quotient": lambda x: x[:, :2] / (x[:, 2:].square() + 1),
    "a number over x": lambda x: 3 / (x.square() + 1),
    "powers": lambda x: (x.square() + 1) ** 1.5 + 2**x + x**3,
    "power of two": lambda x: (x.square() + 1).pow(x),
    "three factors": lambda x: torch.einsum("ni,nj,nk->nk", x, x.sin(), x.cos()),
    "product over a dimension": lambda x: x.prod(1, keepdim=True).expand(-1, 3),
    "bilinear": lambda x: F.bilinear(x, x.tanh(), torch.ones(3, 4, 4, dtype=x.dtype)),
    "baddbmm": lambda x: torch.baddbmm(x[:, None], x[:, None].exp(), x[:, :, None] * x[:, None])[:, 0],
    "convolution by an activation": lambda x: F.conv1d(x[:1, None], x[:1, None, :2].sin()).expand(len(x), 1, 3)[:, 0],
    "maximum of two": lambda x: torch.maximum(x[:, :2], x[:, 2:].sin()),
    "clamp by a tensor": lambda x: torch.minimum(x, torch.zeros_like(x)) + x.clamp(-0.3, 0.4),
    "max over a dimension": lambda x: torch.stack([x.max(1).values, x.amin(1)], 1) * 2,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "a mask as a factor": lambda x: x * (x > -0.5),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True) + F.normalize(x, dim=1),
    "standard deviation": lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "logsumexp": lambda x: torch.stack([x.logsumexp(1), torch.logsumexp(2 * x, 1)], 1),
    "sorted": lambda x: x.sort(1).values * torch.arange(4.0, dtype=x.dtype),
    "cumulative product": lambda x: x.cumprod(1),
    "an operation that is in no table": lambda x: torch.special.i0e(x),
    "rounded": lambda x: torch.round(3 * x) + x,
    "detached": lambda x: x.exp() / x.exp().sum(1, keepdim=True).detach() + x.data,
    "max pooling": lambda x: F.max_pool1d(x[:, None], 3, 1, 1)[:, 0] + F.adaptive_max_pool1d(x[:, None], 4)[:, 0],
    "cosine": lambda x: F.cosine_similarity(x, x.roll(1, 1) ** 2, dim=1)[:, None].expand(-1, 3),
    "written into a constant": _written_into_a_constant,
    "added to a buffer": lambda x: x.new_zeros(x.shape).index_add_(1, torch.tensor([0, 1, 1, 3]), x.exp()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_complete_on_operations(name):
    n = 1 if name.startswith("convolution") else 3
    assert_complete(OPERATIONS[name], double(n, 4), double(n, 4, seed=1))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": 2}, (7, 6)),
        ({"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}, (8, 9)),
        ({"kernel_size": 3, "stride": 2, "ceil_mode": True}, (8, 8)),
    ],
)
def test_complete_on_max_pooling_and_in_its_windows(options, shape):
    x, baseline = double(2, 3, *shape), double(2, 3, *shape, seed=1)
    assert_complete(lambda x: F.max_pool2d(x, **options).sum((2, 3)), x, baseline)
    # One output has nothing to do with what lies out of its window.
    inside = CompleteDeepLift(lambda x: F.max_pool2d(x, **options)).attribute(x, baseline, target=(0, -1, -1))
    assert inside[..., 0, 0].abs().max() == 0 < inside.abs().max()


def test_minus_infinite_masks():
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)

    def model(x: Tensor) -> Tensor:
        scores = x @ x.mT
        added = scores + torch.zeros(5, 5, dtype=x.dtype).masked_fill(mask, -math.inf)
        by_hand = added - added.amax(-1, keepdim=True)
        weights = added.softmax(-1) + by_hand.exp() / by_hand.exp().sum(-1, keepdim=True)
        y = weights @ x + F.scaled_dot_product_attention(x, x, x, is_causal=True)
        y = y + F.scaled_dot_product_attention(x, x, x, ~mask)
        return (y + scores.masked_fill(mask, -math.inf).log_softmax(-1).masked_fill(mask, 0) @ x).sum(1)

    attributions = assert_complete(model, double(3, 5, 4), double(3, 5, 4, seed=1))
    assert attributions.isfinite().all()


ATTENTION = {
    "plain": {},
    "causal, scaled": {"is_causal": True, "scale": 0.3},
    "padding": {"attn_mask": (torch.arange(5) < torch.tensor([[5], [3], [5]]))[:, None, None]},
    "each query its own": {
        "attn_mask": double(3, 1, 5, 5, seed=5).masked_fill(torch.ones(5, 5).triu(2) > 0, -math.inf)
    },
    "grouped queries": {"enable_gqa": True},
    "constant keys": {},
    "a mask that depends on the inputs": {},
}


@pytest.mark.parametrize("block", [2**18, 7], ids=["one block", "blocks"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_in_blocks_equals_attention_step_by_step(monkeypatch, name, block):
    monkeypatch.setattr("captum_density._linear.discrete._BLOCK", block)
    options = ATTENTION[name]
    weights = [double(6, 24 // (2 if i and "enable_gqa" in options else 1), seed=i) for i in range(3)]

    def model(x: Tensor, fused: bool) -> Tensor:
        q, k, v = ((x @ w).unflatten(-1, (-1, 6)).transpose(1, 2) for w in weights)
        k = double(*k.shape) if name == "constant keys" else k
        mask = options.get("attn_mask")
        mask = q @ double(3, 4, 6, 5) if "depends" in name else mask
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, **{**options, "attn_mask": mask})
        else:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
            scores = q @ k.mT * options.get("scale", 6**-0.5)
            if options.get("is_causal"):
                scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            y = scores.softmax(-1) @ v
        return y.sin().sum((1, 2))

    x, baseline = double(3, 5, 6), double(3, 5, 6, seed=1)
    attributions = assert_complete(functools.partial(model, fused=True), x, baseline)
    step_by_step = assert_complete(functools.partial(model, fused=False), x, baseline)
    assert torch.allclose(attributions, step_by_step, rtol=0, atol=1e-12)


def overwritten_mask(x: Tensor) -> Tensor:
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    y = F.scaled_dot_product_attention(x, 2 * x, x, mask)
    mask.fill_(True)
    return y


def overwritten_operand(x: Tensor) -> Tensor:
    x = x.sin()
    x += F.scaled_dot_product_attention(x, 2 * x, x)
    return x


OTHER_ATTENTION = {
    "overwritten mask": overwritten_mask,
    "overwritten operand": overwritten_operand,
    "mask of a class of its own": lambda x: F.scaled_dot_product_attention(
        x[:, None, :3], 2 * x[:, None], x[:, None], causal_lower_right(3, 5)
    )[:, 0],
    "operands of other ranks": lambda x: F.scaled_dot_product_attention(x, double(4, 6), double(4, 6, seed=1)),
    "no queries": lambda x: torch.cat([F.scaled_dot_product_attention(x[:, :0], x, x), x.exp()], 1),
}


@pytest.mark.parametrize("name", OTHER_ATTENTION)
def test_attention_that_is_not_made_in_blocks(name):
    function = OTHER_ATTENTION[name]
    assert_complete(lambda x: function(x).sin().sum(1), double(3, 5, 6), double(3, 5, 6, seed=1))


def test_a_query_that_attends_to_nothing_has_no_attribution():
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    model = lambda x: F.scaled_dot_product_attention(x, x, x, mask).nan_to_num().sum(1)  # noqa: E731
    assert assert_complete(model, double(2, 4, 3), double(2, 4, 3, seed=1)).isfinite().all()


def test_baselines_at_which_f_is_no_number():
    with pytest.raises(RuntimeError, match="other baselines"):
        CompleteDeepLift(lambda x: F.layer_norm(x, (4,), eps=0.0)).attribute(double(2, 4), target=1)


def test_scores_far_apart_leave_no_nan():
    x = torch.tensor([[800.0, -800.0, 0.0]], dtype=torch.float64)
    attributions = assert_complete(lambda x: x.softmax(1), x, -x, target=0)
    assert attributions.isfinite().all()
    assert_complete(lambda x: x.log_softmax(1), x, -x, target=0)


# -- against Captum, formulas and single calls


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus])
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_equals_captum_where_captum_is_complete(activation):
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            activation(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 6, 2),
            activation(),
            nn.Flatten(),
            nn.Linear(24, 5),
            activation(),
            nn.Linear(5, 3),
        )
    )
    x, baseline = double(5, 1, 8, 8), double(1, 1, 8, 8, seed=1)
    expected, delta = DeepLift(model).attribute(x, baseline, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-6
    attributions = CompleteDeepLift(model).attribute(x, baseline, target=1)
    assert torch.allclose(attributions, expected, atol=1e-10)
    many = double(4, 1, 8, 8, seed=2)
    expected, delta = DeepLiftShap(model).attribute(x, many, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-6
    attributions, ours = CompleteDeepLiftShap(model).attribute(x, many, target=1, return_convergence_delta=True)
    assert torch.allclose(attributions, expected, atol=1e-10) and ours.shape == delta.shape


def test_formulas():
    x, baseline = double(3, 4), double(3, 4, seed=1)

    def attributions(model: Model) -> Tensor:
        return CompleteDeepLift(model).attribute(x, baseline)

    product = attributions(lambda x: x[:, 0] * x[:, 1])
    middle, change = (x + baseline) / 2, x - baseline
    assert torch.allclose(product[:, 0], middle[:, 1] * change[:, 0])
    assert torch.allclose(product[:, 1], middle[:, 0] * change[:, 1])
    assert torch.allclose(attributions(lambda x: x.exp().sum(1)), x.exp() - baseline.exp())
    largest = attributions(lambda x: x.max(1).values)
    pick = F.one_hot(middle.argmax(1), 4)
    rest = x.max(1).values - baseline.max(1).values - (pick * change).sum(1)
    share = change.square() / change.square().sum(1, keepdim=True)
    assert torch.allclose(largest, pick * change + rest[:, None] * share)


def test_softmax_and_normalisations_are_their_elementary_steps():
    x, baseline = double(3, 4), double(3, 4, seed=1)
    lift = {
        "softmax": (lambda x: x.softmax(1), lambda x: (x - x.exp().sum(1, keepdim=True).log()).exp()),
        "log_softmax": (lambda x: x.log_softmax(1), lambda x: x - x.exp().sum(1, keepdim=True).log()),
        "logsumexp": (lambda x: x.logsumexp(1, keepdim=True), lambda x: x.exp().sum(1, keepdim=True).log()),
        "layer_norm": (
            lambda x: F.layer_norm(x, (4,), x.new_full((4,), 2.0)),
            lambda x: (
                2
                * (x - x.mean(1, keepdim=True))
                * ((x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True) + 1e-5).rsqrt()
            ),
        ),
        "rms_norm": (
            lambda x: F.rms_norm(x, (4,), eps=1e-3),
            lambda x: x * (x.square().mean(1, keepdim=True) + 1e-3).rsqrt(),
        ),
    }
    for fused, steps in lift.values():
        a, b = (CompleteDeepLift(f).attribute(x, baseline, target=0) for f in (fused, steps))
        assert torch.allclose(a, b, rtol=1e-9)


def test_is_the_gradient_where_input_and_baseline_coincide():
    model = seeded(lambda: Reused())
    x = double(3, 4)
    multipliers = CompleteDeepLift(model, multiply_by_inputs=False).attribute(x, x, target=1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.allclose(multipliers, gradient)


def test_secants_of_rounding_are_derivatives():
    x = torch.full((1, 1), 0.7)
    near = x + 6e-8
    multipliers = CompleteDeepLift(lambda x: torch.sigmoid(x), multiply_by_inputs=False).attribute(x, near, target=0)
    assert multipliers.item() == pytest.approx(0.2217, abs=1e-3)


def test_shap_is_the_mean_over_baselines_given_in_any_form():
    model = seeded(REPORTED["LayerNorm"])
    x, baselines = double(3, 4), double(5, 4, seed=1)
    targets = [0, 1, 2]
    shap, delta = CompleteDeepLiftShap(model).attribute(x, baselines, targets, return_convergence_delta=True)
    single = [CompleteDeepLift(model).attribute(x, b[None], targets) for b in baselines]
    assert torch.allclose(shap, torch.stack(single).mean(0))
    assert delta.shape == (15,) and delta.abs().max() < 1e-12
    for form in (lambda: baselines, lambda inputs: baselines[: len(inputs) + 2]):
        assert torch.equal(CompleteDeepLiftShap(model).attribute(x, form, targets), shap)
    with pytest.raises(TypeError, match="CompleteDeepLift"):
        CompleteDeepLiftShap(model).attribute(x, 0.0, targets)
    with pytest.raises(ValueError, match="shape"):
        CompleteDeepLiftShap(model).attribute(x, double(5, 3), targets)


def test_two_inputs_arguments_and_one_by_one():
    layer = seeded(lambda: nn.Linear(4, 3))

    def model(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        return layer(a.tanh() * b.sum(1, keepdim=True)) * scale

    x, baseline = (double(3, 4), double(3, 2)), (double(3, 4, seed=1), double(3, 2, seed=1))
    scale = double(3, 1, seed=2)
    whole = assert_complete(model, x, baseline, additional_forward_args=(scale,))
    for i in range(3):
        alone = CompleteDeepLift(model).attribute(
            tuple(a[i : i + 1] for a in x), tuple(b[i : i + 1] for b in baseline), 1, scale[i : i + 1]
        )
        assert all(torch.allclose(a, w[i : i + 1], atol=1e-12) for a, w in zip(alone, whole, strict=True))


def test_examples_that_do_not_come_first_inside():
    # sorted() is taken for each example by itself, and here they lie in the second dimension
    def model(x: Tensor) -> Tensor:
        return (x.T.sort(0).values.T * torch.arange(3.0, dtype=x.dtype)).exp()

    assert_complete(model, double(3, 3), double(3, 3, seed=1))
    assert_complete(model, double(4, 3), double(4, 3, seed=1))


def test_packed_sequences():
    recurrent = seeded(lambda: nn.LSTM(4, 5, batch_first=True))

    def model(x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2, 1]), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(recurrent(packed)[0], batch_first=True)[0].sum(1)

    attributions = assert_complete(model, double(3, 3, 4), double(3, 3, 4, seed=1))
    assert not attributions[2, 1:].any()


def test_complex_numbers_are_one_step_where_they_are_not_linear():
    with pytest.warns(UserWarning, match="complex"):
        assert_complete(lambda x: torch.fft.rfft(x).abs(), double(3, 4), double(3, 4, seed=1))
    assert_complete(
        lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x)), double(3, 4), double(3, 4, seed=1)
    )


def test_custom_attribution_func():
    model, x, baseline = seeded(REPORTED["GELU"]), double(3, 4), double(3, 4, seed=1)
    attributor = CompleteDeepLift(model)
    default = attributor.attribute(x, baseline, 1)

    def product(multipliers: Any, inputs: Any, baselines: Any) -> tuple[Tensor, ...]:
        return tuple(m * (a - b) for m, a, b in zip(multipliers, inputs, baselines, strict=True))

    assert torch.equal(attributor.attribute(x, baseline, 1, custom_attribution_func=product), default)
    multipliers = attributor.attribute(x, baseline, 1, custom_attribution_func=lambda m: m)
    assert torch.allclose(multipliers * (x - baseline), default)
    with pytest.raises(ValueError, match="multipliers"):
        attributor.attribute(x, baseline, 1, custom_attribution_func=lambda a, b, c, d: a)


# -- where the runs at x and x' part


class Routed(nn.Module):
    """Two experts, of which the input's sum picks one for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.gate(x).softmax(1).topk(1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = torch.where(index[:, 0] == i)[0]
            y[rows] = weights[rows] * expert(x[rows])
        return y


class Branch(nn.Module):
    """Python decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() if x.sum() > 0 else x * 2


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Hidden(nn.Module):
    """An autograd Function, which is no torch function."""

    def forward(self, x: Tensor) -> Tensor:
        return Custom.apply(x).sin()


class Threshold(nn.Module):
    """A step function, which has no secant in its own steps."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype) * 2


class Inside(nn.Module):
    """Another module between two layers."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), middle, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)) + x)


@pytest.mark.parametrize("middle", [Routed, Branch, Hidden, Threshold])
def test_the_smallest_module_is_one_step_where_the_runs_part(middle):
    model = seeded(lambda: Inside(middle()))
    x, baseline = double(1, 4), -double(1, 4)
    if middle is Routed:
        x, baseline = double(4, 4), -double(4, 4)
    with pytest.warns(UserWarning, match=r"one step.*: middle \("):
        attributions = CompleteDeepLift(model).attribute(x, baseline, 1)
    change = (model(x) - model(baseline))[:, 1].detach()
    assert torch.allclose(attributions.sum(1), change, atol=1e-12)


def test_the_whole_model_is_one_step_where_nothing_smaller_is_known():
    def model(x: Tensor) -> Tensor:
        y = x.exp()
        return torch.from_numpy(y.detach().numpy() ** 2) * x if y.sum() > 0 else y

    x, baseline = double(3, 4), double(3, 4, seed=1)
    with pytest.warns(UserWarning, match="the model"):
        assert_complete(model, x, baseline)


def test_no_warning_where_the_runs_do_not_part():
    model = Inside(Branch()).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = double(1, 4)
        CompleteDeepLift(model).attribute(x, 0.99 * x, 1)


def test_a_sum_that_is_missed_is_refused_and_the_operation_named(monkeypatch):
    import captum_density._linear.discrete as discrete

    right = discrete.log_softmax

    def wrong(*args: Any) -> Tensor:
        y = right(*args)
        return y.detach() + 2 * (y - y.detach())

    monkeypatch.setattr(discrete, "log_softmax", wrong)
    model = seeded(REPORTED["log_softmax at the end"])
    with pytest.raises(RuntimeError, match="log_softmax"):
        CompleteDeepLift(model).attribute(double(3, 4), double(3, 4, seed=1), 1)


# -- a guest in Captum


def test_conforms():
    assert check_attribution(CompleteDeepLift)
    check_attribution(
        CompleteDeepLiftShap,
        models=("mlp", "two_inputs"),
        attribute_kwargs=lambda inputs: {
            "baselines": tuple(torch.zeros_like(x[:1]) for x in inputs)
            if isinstance(inputs, tuple)
            else torch.zeros_like(inputs[:1])
        },
    )


def test_nothing_is_left_behind():
    model = seeded(lambda: Inside(Threshold()))
    before, hooks = copy.deepcopy(model.state_dict()), dict(torch.nn.modules.module._global_forward_hooks)
    x = double(2, 4).requires_grad_()

    def raises(x: Tensor) -> Tensor:
        raise KeyError("its own")

    with pytest.warns(UserWarning, match="middle"):
        CompleteDeepLift(model).attribute(x, 0, 1)
    with pytest.raises(KeyError, match="its own"):
        CompleteDeepLift(raises).attribute(x, 0, 1)
    with pytest.raises(AssertionError):
        CompleteDeepLift(model).attribute(x)
    assert x.grad is None and dict(torch.nn.modules.module._global_forward_hooks) == hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(vars(p).keys() for p in (*model.parameters(), x) if hasattr(p, "__dict__"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_refusals():
    x = double(2, 4)
    with pytest.raises(ValueError, match="eval"):
        CompleteDeepLift(nn.Sequential(nn.Linear(4, 3), nn.Dropout()).double().train()).attribute(x, 0, 1)
    for reentrant in (True, False):
        model = functools.partial(checkpoint, nn.Linear(4, 3).double(), use_reentrant=reentrant)
        with pytest.raises(NotImplementedError, match="switch it off"):
            CompleteDeepLift(lambda x, model=model: model(x)).attribute(x, 0, 1)
    with pytest.raises(NotImplementedError, match="FeatureAblation"):
        CompleteDeepLift(lambda x: torch.igamma(x.exp(), x.exp() + 1)).attribute(x, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer PyTorch says that TorchScript is deprecated
        scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(TypeError, match="it was made from"):
        CompleteDeepLift(scripted).attribute(x, 0, 1)
    with pytest.raises(ValueError, match="broadcast"):
        CompleteDeepLift(nn.Linear(4, 3).double()).attribute(x, double(2, 3), 1)
    with pytest.raises(TypeError, match="function"):
        CompleteDeepLift(3)  # type: ignore[arg-type]
    assert repr(CompleteDeepLift(nn.Linear(4, 3))) == "CompleteDeepLift(Linear, multiply_by_inputs=True)"
