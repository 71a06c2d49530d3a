"""Remainders in closed form against the definition, y - jvp(op, u, u), whichever operands are activations."""

from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.utils._python_dispatch import TorchDispatchMode

from captum_density._linear import closed_forms, remainders
from captum_density._linear.jacobian import jacobian_products
from captum_density._linear.trace import Trace
from captum_density._model.calls import tensors_in
from captum_density.attr import FullGrad
from captum_density.testing import assert_complete

DOUBLE = torch.float64


def infinite_mask(*shape):
    mask = torch.zeros(shape, dtype=DOUBLE)
    mask.view(-1)[::3] = -torch.inf
    return mask


def some_keys(*shape):
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1, 2:] = False
    mask[..., 2, :] = False  # a query without keys
    return mask


def attention(**options):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


QUERY, KEY, VALUE = (2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3)
# A function, and the shapes of its operands.
OPERATIONS = {
    "linear": (F.linear, (3, 4), (5, 4), (5,)),
    "linear_without_bias": (F.linear, (3, 4), (5, 4)),
    "conv2d": (F.conv2d, (2, 3, 5, 5), (4, 3, 2, 2), (4,)),
    "conv2d_of_one_image": (F.conv2d, (3, 5, 5), (4, 3, 2, 2), (4,)),
    "conv_transpose1d": (F.conv_transpose1d, (2, 3, 5), (3, 4, 2), (4,)),
    "bilinear": (F.bilinear, (3, 4), (3, 5), (6, 4, 5), (6,)),
    "addmm": (lambda b, u, v: torch.addmm(b, u, v, beta=3, alpha=0.5), (6,), (4, 5), (5, 6)),
    "addmm_in_place": (lambda b, u, v: (2 * b).addmm_(u, v, beta=3), (4, 6), (4, 5), (5, 6)),
    "baddbmm": (torch.baddbmm, (1, 4, 6), (2, 4, 5), (2, 5, 6)),
    "masked_baddbmm": (lambda u, v: torch.baddbmm(infinite_mask(2, 4, 6), u, v), (2, 4, 5), (2, 5, 6)),
    "baddbmm_of_an_unread_summand": (
        lambda u, v: torch.baddbmm(torch.full((2, 4, 6), torch.nan, dtype=DOUBLE), u, v, beta=0), (2, 4, 5), (2, 5, 6),
    ),
    "addbmm": (torch.addbmm, (4, 6), (2, 4, 5), (2, 5, 6)),
    "addmv": (torch.addmv, (4,), (4, 5), (5,)),
    "addr": (torch.addr, (4, 5), (4,), (5,)),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (4, 5), w, b, 0.3), (3, 4, 5), (4, 5), (4, 5)),
    "plain_layer_norm": (lambda x: torch.layer_norm(x, (5,)), (3, 4, 5)),
    "scaled_layer_norm": (lambda x, w: F.layer_norm(x, (5,), weight=w, eps=0.3), (3, 4, 5), (5,)),
    "rms_norm": (lambda x, w: F.rms_norm(x, (5,), w, 0.3), (3, 4, 5), (5,)),
    "rms_norm_with_least_eps": (lambda x, w: F.rms_norm(x, (5,), w), (3, 4, 5), (5,)),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b, 0.3), (3, 4, 5, 6), (4,), (4,)),
    "plain_group_norm": (lambda x: F.group_norm(x, 2), (3, 4, 5)),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=0.3), (3, 4, 5, 6), (4,), (4,)),
    "attention": (attention(), QUERY, KEY, VALUE),
    "attention_without_batch": (attention(scale=0.7), QUERY[2:], KEY[2:], VALUE[2:]),
    "causal_attention": (attention(is_causal=True), QUERY, KEY, VALUE),
    "causal_attention_to_few": (attention(is_causal=True), KEY, QUERY, (2, 4, 5, 3)),
    "attention_in_groups": (attention(enable_gqa=True), QUERY, (2, 2, 7, 6), (2, 2, 7, 3)),
    "attention_of_broadcast_keys": (attention(), QUERY, (1, 4, 7, 6), (2, 1, 7, 3)),
    "masked_attention": (attention(attn_mask=some_keys(2, 1, 5, 7)), QUERY, KEY, VALUE),
    "attention_with_added_mask": (attention(attn_mask=infinite_mask(5, 7)), QUERY, KEY, VALUE),
    "attention_with_learned_bias": (
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias), QUERY, KEY, VALUE, (4, 5, 7),
    ),
    "attention_with_infinite_bias": (
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias + infinite_mask(5, 7)),
        QUERY, KEY, VALUE, (4, 5, 7),
    ),
}  # fmt: skip


class ComparingTrace(Trace):
    """Holds every remainder against the definition, which the closed forms must not fall back on."""

    def _factors(self, remainder, call, outputs):
        factors = super()._factors(remainder, call, outputs)
        for r, y, product in zip(factors, outputs, jacobian_products(call, False), strict=True):
            if y.requires_grad:
                expected = (y - product).detach().nan_to_num(posinf=0, neginf=0)
                r = torch.zeros_like(y) if r is None else r
                assert r.ndim == y.ndim
                torch.testing.assert_close(r.detach().expand_as(y), expected, rtol=1e-12, atol=1e-12)
                self.compared = call.name
        return factors


IN_BLOCKS = [(name, 16) for name in OPERATIONS if "attention" in name]


@pytest.mark.parametrize("name, block", [*((name, closed_forms._BLOCK) for name in OPERATIONS), *IN_BLOCKS])
def test_closed_forms_equal_the_derivative(name, block, monkeypatch):
    function, *shapes = OPERATIONS[name]
    monkeypatch.setattr(closed_forms, "_BLOCK", block)
    monkeypatch.setattr(closed_forms, "_LEAST", 2)
    monkeypatch.setattr(remainders, "jacobian_products", None)
    torch.manual_seed(0)
    operands = [torch.randn(shape, dtype=DOUBLE) for shape in shapes]
    for count in range(1, len(operands) + 1):
        for active in combinations(range(len(operands)), count):
            trace = ComparingTrace()
            tracked = iter(trace.track([operands[i].clone().requires_grad_() for i in active]))
            with trace:
                function(*(next(tracked) if i in active else u for i, u in enumerate(operands)))
            assert trace.compared in name or trace.compared == "scaled_dot_product_attention"


SMOOTH = [
    torch.sigmoid, torch.tanh, torch.exp, F.gelu, partial(F.gelu, approximate="tanh"), F.silu, F.hardswish,
    partial(F.softmax, dim=1),
]  # fmt: skip


@pytest.mark.parametrize("operation", [*((function, (3, 4)) for function in SMOOTH), *OPERATIONS.values()])
def test_remainders_have_derivatives(operation):
    function, *shapes = operation

    def remainder(*operands):
        trace = Trace(create_graph=True)
        tracked = trace.track(operands)
        with trace, sdpa_kernel(SDPBackend.MATH):
            function(*tracked)
        return trace.operations[-1].factor.nan_to_num()

    torch.manual_seed(0)
    operands = [torch.randn(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(remainder, operands, fast_mode=True)


class Layers(nn.Module):
    """Attention and a recurrent layer, whose fused kernels have no second derivatives."""

    def __init__(self):
        super().__init__()
        self.attention, self.recurrent = nn.MultiheadAttention(4, 2, batch_first=True), nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.recurrent(self.attention(x, x, x, need_weights=False)[0])[0][:, -1]


def test_maps_through_attention_and_recurrent_layers_have_derivatives():
    torch.manual_seed(0)
    full_grad, x = FullGrad(Layers().double(), complete=True), torch.randn(2, 5, 4, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: full_grad.attribute(x, 1, create_graph=True), x, fast_mode=True)


def test_one_activation_in_several_places():
    u = torch.randn(4, 4, dtype=DOUBLE)
    functions = [
        lambda u: torch.addmm(u, u, u, beta=2), lambda u: F.linear(u, u), lambda u: F.layer_norm(u, (4,), u[0], u[0]),
        lambda u: F.scaled_dot_product_attention(u, u, u), lambda u: F.scaled_dot_product_attention(u, u, u, u),
    ]  # fmt: skip
    for function in functions:
        trace = ComparingTrace()
        (tracked,) = trace.track([u.clone().requires_grad_()])
        with trace:
            function(tracked)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=["one", "two"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
def test_recurrent_layers_equal_the_derivative(kind, batch_first, options, monkeypatch):
    monkeypatch.setattr(remainders, "jacobian_products", None)
    torch.manual_seed(0)
    layer = kind(3, 4, batch_first=batch_first, dtype=DOUBLE, **options)
    x = torch.randn(2, 5, 3, dtype=DOUBLE)
    states = [torch.randn(4 if options else 1, 5 if not batch_first else 2, 4, dtype=DOUBLE) for _ in range(2)]
    operands = [x, *states[: 2 if kind is nn.LSTM else 1]]
    for count in range(1, len(operands) + 1):
        for active in combinations(range(len(operands)), count):
            trace = ComparingTrace()
            tracked = iter(trace.track([operands[i].clone().requires_grad_() for i in active]))
            with trace:
                x, *state = (next(tracked) if i in active else u for i, u in enumerate(operands))
                layer(x, tuple(state) if kind is nn.LSTM else state[0])
            assert trace.compared in ("lstm", "gru", "rnn_tanh", "rnn_relu")


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.LayerNorm(5)])
def test_second_derivatives_through_a_normalisation_that_is_overwritten(norm):
    norm, x = norm.double(), torch.randn(3, 4, 5, dtype=DOUBLE, requires_grad=True)

    def slope(function):
        model = lambda x: function(norm(x)).square().mean(2)  # noqa: E731
        full = FullGrad(model).decompose(x, 1, create_graph=True)
        (slope,) = torch.autograd.grad(sum(term.square().sum() for term in full.biases.values()), x)
        return slope

    torch.testing.assert_close(slope(F.relu_), slope(F.relu))


def test_a_sum_that_starts_at_nothing_has_no_term():
    x = torch.randn(3, 4, dtype=DOUBLE)
    assert list(FullGrad(lambda x: sum([x.exp(), x.sin()])).decompose(x, 1).biases) == ["exp", "sin"]


def test_attention_to_no_keys():
    model = lambda x: (x + F.scaled_dot_product_attention(x, x[:, :0], x[:, :0])).sin().sum(1)  # noqa: E731
    assert_complete(FullGrad(model).decompose(torch.randn(2, 3, 4, dtype=DOUBLE), 1))


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t.numel() for t in tensors_in(result)]
        self.elements = max(self.elements, *made, 0)
        return result


def test_fused_attention_whose_output_is_gone_stays_fused():
    """Its weights are made in blocks, and its output again by the kernel that made it."""
    heads, n, d = 16, 256, 8

    def model(x):
        return F.scaled_dot_product_attention(x, x, x).mT.flatten(1).sin()[:, :3]

    with Largest() as largest:
        FullGrad(model).attribute(torch.randn(1, heads, n, d), 1)
    assert heads * n * d <= largest.elements < heads * n * n / 2


FIVES = torch.full((4,), 5.0)


@pytest.mark.parametrize(
    "function", [lambda x: torch.add(x, 3, FIVES), lambda x: torch.addmm(3, FIVES, 0.5, x, torch.ones(4, 4))]
)
@pytest.mark.filterwarnings("ignore:This overload")
def test_factors_where_old_signatures_have_them(function):
    full = FullGrad(lambda x: function(x).sin()).decompose(torch.randn(3, 4), 1)
    assert_complete(full)


@pytest.mark.parametrize("mask", [causal_lower_right, causal_upper_left])
def test_attention_with_masks_of_a_class_of_their_own(mask):
    def model(x):
        x = x[:, None]
        return F.scaled_dot_product_attention(x[:, :, :3], 2 * x, x, mask(3, 5)).sin().sum((1, 2))

    assert_complete(FullGrad(model).decompose(torch.randn(2, 5, 4, dtype=DOUBLE), 1))


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh, torch.exp, F.hardsigmoid])
def test_nothing_comes_from_where_a_function_is_bounded_at_infinity(function):
    mask = infinite_mask(4)
    full = FullGrad(lambda x: function(x + mask).sum(1)).decompose(torch.randn(3, 4, dtype=DOUBLE))
    assert_complete(full)
    assert all(bool(term.isfinite().all()) for term in full.biases.values())


@pytest.mark.parametrize("kind", [FullGrad, partial(FullGrad, complete=True)])
def test_multi_head_attention_is_what_it_is_made_of(kind):
    module, head = nn.MultiheadAttention(6, 2, batch_first=True).double(), nn.Linear(6, 3).double()
    nn.init.normal_(module.in_proj_bias)

    def as_module(x):
        return head(module(x, x, x, need_weights=False)[0].tanh().sum(1))

    def by_hand(x):
        q, k, v = (
            F.linear(x, module.in_proj_weight, module.in_proj_bias).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        )
        return head(module.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).tanh().sum(1))

    x = torch.randn(4, 5, 6, dtype=DOUBLE)
    torch.testing.assert_close(kind(as_module).attribute(x, 1), kind(by_hand).attribute(x, 1))
