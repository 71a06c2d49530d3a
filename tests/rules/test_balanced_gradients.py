"""BalancedGradients: the model's values, gradients that conserve them, the published numbers, and what is refused."""

import copy
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    LayerGradientXActivation,
    NoiseTunnel,
    Saliency,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_density.attr import FullGrad
from captum_density.rules import BalancedGradients
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift
from captum_density.testing import CAPTUM_DEPARTURES, assert_complete, check_attribution, networks
from tests.rules.networks import IMAGES, TOKENS, Attention, Block, Gated, RMSNorm, without_additive_parameters

REFERENCE = Path(__file__).parents[1] / "data" / "attnlrp_reference.npz"
NETWORKS = {**TOKENS, **IMAGES}
CONSERVING = ("libragrad", "cp-lrp")


def made(name):
    torch.manual_seed(1)
    model = without_additive_parameters(NETWORKS[name]())
    shape = (2, 5, 16) if name in TOKENS else (2, 3, 32, 32)
    return model, torch.randn(shape, dtype=torch.float64)


def gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y.sum(), x)[0]


def gradient_times_input(model, x, target=1):
    return InputXGradient(model).attribute(x, target).flatten(1).sum(1)


# -- values and sums


@pytest.mark.parametrize("rules", ["libragrad", "attnlrp", "cp-lrp", "jacobian"])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_the_models_to_the_bit(name, rules):
    model, x = made(name)
    x.requires_grad_()
    assert torch.equal(BalancedGradients(model, rules)(x), model(x))
    with torch.no_grad():
        assert torch.equal(BalancedGradients(model, rules)(x), model(x))


@pytest.mark.parametrize("rules", CONSERVING)
@pytest.mark.parametrize("name", NETWORKS)
def test_without_additive_parameters_the_inputs_are_all_of_the_output(name, rules):
    """LibraGrad's FullGrad-completeness and CP-LRP's conservation, in float64."""
    model, x = made(name)
    sums, output = gradient_times_input(BalancedGradients(model, rules), x), model(x)[:, 1]
    torch.testing.assert_close(sums, output, rtol=1e-10, atol=1e-12)
    if name != "RNN":
        assert ((gradient_times_input(model, x) - output).abs() > 0.01 * output.abs()).any()


def test_of_a_function():
    w = torch.randn(16, 3, dtype=torch.float64)

    def function(x):
        x = x / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return (torch.sigmoid(x.roll(1, -1)) * x) @ w

    x = torch.randn(4, 16, dtype=torch.float64)
    sums = gradient_times_input(BalancedGradients(function), x)
    torch.testing.assert_close(sums, function(x)[:, 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rules", ["libragrad", "attnlrp", "cp-lrp", {"gelu": "jacobian", "softmax": "share"}])
@pytest.mark.parametrize("name", NETWORKS)
def test_full_grad_sums_to_the_output_under_every_rule(name, rules):
    model, x = made(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    terms = FullGrad(BalancedGradients(model, rules)).decompose(x, 1)
    assert_complete(terms)
    assert not any("Function" in term or "Backward" in term for term in terms.biases)  # nothing had to be guessed
    torch.testing.assert_close(terms.output, model(x)[:, 1])


RULES = ("libragrad", "attnlrp", "cp-lrp", {"softmax": "share", "tanh": "jacobian", nn.LayerNorm: "jacobian"})


@settings(max_examples=40)
@given(networks(), st.sampled_from(RULES))
def test_on_random_networks_values_stay_and_full_grad_is_complete(problem, rules):
    balanced = BalancedGradients(problem.model, rules)
    x = problem.inputs.requires_grad_()
    assert torch.equal(balanced(x), problem.model(x))
    assert_complete(FullGrad(balanced).decompose(problem.inputs, problem.target))


def test_a_remainder_is_what_the_rule_leaves():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Sigmoid(), nn.Linear(4, 2)).double()
    nn.init.normal_(model[1].bias)
    x = torch.randn(2, 3, dtype=torch.float64)
    terms = FullGrad(BalancedGradients(model)).decompose(x, 0).biases
    assert terms.keys() == {"0:linear", "1:layer_norm", "2:sigmoid", "3:linear"}
    assert torch.allclose(terms["2:sigmoid"], 0.5 * model[3].weight[0])  # sigma(0), sent back through the last layer


def test_packed_sequences():
    layer = nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True, bias=False).double()

    def function(x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [3, 6, 1], batch_first=True, enforce_sorted=False)
        outputs, (h, _) = layer(packed)
        return nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)[0].sum((1, 2)) + h.sum((0, 2))

    x = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    y = BalancedGradients(function)(x)
    assert torch.equal(y, function(x))
    (g,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((g * x).sum((1, 2)), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x @ x).sum((1, 2)),
        lambda x: torch.einsum("nij,njk->n", x, x),
        lambda x: x.prod(-1).sum(-1),
        lambda x: (x * (torch.ones(3, dtype=x.dtype) / x.square().mean(-1, keepdim=True).sqrt())).sum((1, 2)),
        lambda x: (torch.special.softmax(x, -1) @ x).sum((1, 2)),
        lambda x: (F.softmin(x, -1) @ x).sum((1, 2)),
        lambda x: torch.addcmul(x, x, x.roll(1, 0)).sum((1, 2)),
        lambda x: F.glu(torch.cat([x, x], -1), -1).sum((1, 2)),
        lambda x: F.cosine_similarity(x, x.roll(1, 1), dim=2).sum(1),
        lambda x: F.local_response_norm(x, 2).sum((1, 2)),
        lambda x: torch.lerp(x, x.roll(1, 2), torch.sigmoid(x.roll(1, 1))).sum((1, 2)),
        lambda x: F.scaled_dot_product_attention(x, x, x).sum((1, 2)),
    ],
)
def test_sums_of_single_operations(function):
    x = torch.rand(2, 3, 3, dtype=torch.float64) + 0.5
    parts = gradient(BalancedGradients(function), x) * x
    torch.testing.assert_close(parts.sum((1, 2)), function(x), rtol=1e-9, atol=1e-9)
    assert_complete(FullGrad(BalancedGradients(function, "attnlrp")).decompose(x))


# -- published numbers


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("rules", ["attnlrp", "cp-lrp"])
def test_numbers_of_the_authors_package(reference, family, rules, attention):
    transformers = pytest.importorskip("transformers")
    made = json.loads(str(reference[f"{family}.config"]))
    # Token ids beyond the small vocabulary are GPT-2's defaults, of which transformers warns.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), 0) if family == "gpt2" else {}
    if not hasattr(transformers, made["config"]):
        pytest.skip(f"this transformers has no {made['config']}")
    config = getattr(transformers, made["config"])(**made["arguments"], **ids, use_cache=False)
    model = getattr(transformers, made["model"])._from_config(config, attn_implementation=attention).double().eval()
    prefix = f"{family}.weights."
    model.load_state_dict(
        {name.removeprefix(prefix): torch.from_numpy(w) for name, w in reference.items() if name.startswith(prefix)}
    )
    x = torch.from_numpy(reference[f"{family}.embeds"]).requires_grad_()
    logits = BalancedGradients(model, rules)(inputs_embeds=x).logits[:, -1]
    output = logits[torch.arange(len(x)), torch.from_numpy(reference[f"{family}.target"])]
    (g,) = torch.autograd.grad(output.sum(), x)
    expected = torch.from_numpy(reference[f"{family}.{rules.replace('-', '')}"])
    relevance = (g * x).sum(-1).detach()
    assert (relevance - expected).abs().max() < 1e-6 * expected.abs().max()


# -- each rule a second time, slowly, in the papers' form


def relevance_of_secant(function, u, relevance):
    """A pointwise function that is 0 at 0 passes relevance on as it is (AttnLRP, proposition on activations)."""
    return relevance


def relevance_of_linear(w, u, y, relevance):
    """The 0-rule: R_i = sum_j u_i w_ji / y_j R_j."""
    out = torch.zeros_like(u)
    for i in range(u.shape[-1]):
        for j in range(y.shape[-1]):
            out[..., i] += u[..., i] * w[j, i] / y[..., j] * relevance[..., j]
    return out


def relevance_of_softmax(scores, weights, relevance):
    """AttnLRP: R_i = x_i (R_i - s_i sum_j R_j)."""
    return scores * (relevance - weights * relevance.sum(-1, keepdim=True))


def relevance_of_matmul(a, b, relevance):
    """AttnLRP: each summand a_ij b_jk of an output O_ik gets its share, half to each factor."""
    ra, rb, o = torch.zeros_like(a), torch.zeros_like(b), a @ b
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            for k in range(b.shape[1]):
                part = a[i, j] * b[j, k] * relevance[i, k] / (2 * o[i, k])
                ra[i, j] += part
                rb[j, k] += part
    return ra, rb


def test_a_block_in_the_paper_of_attnlrps_form():
    w_q, w_k, w_v, w_1, w_2 = torch.randn(5, 4, 4, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)

    def forward(x):
        normed = F.layer_norm(x, (4,))
        q, k, v = normed @ w_q.T, normed @ w_k.T, normed @ w_v.T
        mixed = (q @ k.T).softmax(-1) @ v
        return F.gelu(mixed @ w_1.T) @ w_2.T

    # Backwards, operation by operation; the layer norm is a linear map with a constant divisor.
    normed = F.layer_norm(x, (4,))
    q, k, v = normed @ w_q.T, normed @ w_k.T, normed @ w_v.T
    scores = q @ k.T
    weights = scores.softmax(-1)
    mixed, hidden = weights @ v, (weights @ v) @ w_1.T
    y = F.gelu(hidden) @ w_2.T
    relevance = torch.zeros_like(y)
    relevance[0, 2] = y[0, 2]
    relevance = relevance_of_linear(w_2, F.gelu(hidden), y, relevance)
    relevance = relevance_of_secant(F.gelu, hidden, relevance)
    relevance = relevance_of_linear(w_1, mixed, hidden, relevance)
    of_weights, of_values = relevance_of_matmul(weights, v, relevance)
    of_queries, of_keys = relevance_of_matmul(q, k.T, relevance_of_softmax(scores, weights, of_weights))
    relevance = sum(
        relevance_of_linear(w, normed, u, r)
        for w, u, r in ((w_q, q, of_queries), (w_k, k, of_keys.T), (w_v, v, of_values))
    )
    centering = (torch.eye(4) - 0.25) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt().unsqueeze(-1)
    expected = torch.zeros_like(x)
    for n in range(3):
        expected[n] = relevance_of_linear(centering[n].double(), x[n], normed[n], relevance[n])

    found = x * gradient(lambda u: BalancedGradients(forward, "attnlrp")(u)[0, 2], x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# -- chains of pointwise functions, however they are spelt

SPELLINGS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_new": lambda x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0)))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "softsign": lambda x: x / (1 + x.abs()),
    "hardswish": lambda x: x * F.relu6(x + 3) / 6,
    "squared relu": lambda x: F.relu(x) ** 2,
    "x * x": lambda x: x * x,
    "tanh of sinh": lambda x: torch.tanh(torch.sinh(x)),
    "in place": lambda x: (x * 1.0).mul_(x.sigmoid()),
    "shifted sigmoid": lambda x: torch.sigmoid(x + 1) - 0.25,
    "through a double": lambda x: x.double() * x.sigmoid().double(),
}


@pytest.mark.parametrize("name", SPELLINGS)
@settings(max_examples=20)
@given(values=st.lists(st.floats(-4, 4).filter(lambda v: abs(v) > 1e-3), min_size=3, max_size=3))
def test_a_chain_has_the_secant_of_the_whole(name, values):
    function, u = SPELLINGS[name], torch.tensor(values, dtype=torch.float64)
    expected = (function(u) - function(torch.zeros(3, dtype=torch.float64))) / u
    torch.testing.assert_close(gradient(BalancedGradients(function), u), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_zero_a_secant_is_the_derivative_and_no_rounding(dtype):
    u = torch.tensor([0.0, 1e-12, -1e-9, 1e-7, 1e-5], dtype=dtype)
    torch.testing.assert_close(
        gradient(BalancedGradients(torch.sigmoid), u), torch.full_like(u, 0.25), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(gradient(BalancedGradients(F.gelu), u), torch.full_like(u, 0.5), rtol=1e-4, atol=0)


def test_a_chain_ends_at_tensors_that_are_no_numbers():
    shift = torch.full((3,), 5.0, dtype=torch.float64)
    u = torch.tensor([6.0, 4.0, 7.0], dtype=torch.float64)
    # relu after a bias: its Jacobian, not the secant through relu(-5).
    assert gradient(BalancedGradients(lambda x: F.relu(x - shift)), u).tolist() == [1.0, 0.0, 1.0]


def test_a_gate_is_constant_only_as_a_factor():
    u = torch.randn(4, dtype=torch.float64)
    for function in (torch.sigmoid, lambda x: x.softmax(0), lambda x: x.log_softmax(0)):
        assert gradient(lambda x, f=function: BalancedGradients(f)(x)[0], u).abs().sum() > 0
    gate = torch.randn(4, dtype=torch.float64, requires_grad=True)
    y = BalancedGradients(lambda g, x: 2 * (1 - torch.sigmoid(g)).view(4) * x)(gate, u.requires_grad_())
    assert torch.autograd.grad(y.sum(), gate, allow_unused=True)[0] is None


# -- choices


def test_choices_for_operations_and_modules():
    first, second = nn.GELU(), nn.GELU()
    model = nn.Sequential(nn.Linear(3, 3), first, second)
    x = torch.randn(2, 3)
    plain = gradient(model, x)
    assert torch.equal(gradient(BalancedGradients(model, "jacobian"), x), plain)
    for rules in (
        *({key: "jacobian"} for key in ("gelu", F.gelu, nn.GELU, "default")),
        {first: "jacobian", second: "jacobian"},
    ):
        assert torch.equal(gradient(BalancedGradients(model, rules), x), plain)
    balanced = gradient(BalancedGradients(model), x)
    one = gradient(BalancedGradients(model, {first: "jacobian"}), x)
    assert not torch.allclose(one, plain)
    assert not torch.allclose(one, balanced)
    assert torch.equal(gradient(BalancedGradients(model, {"default": "jacobian", "gelu": "secant"}), x), balanced)


@pytest.mark.parametrize("spelling", ["sdpa", "matmul"])
def test_attention_can_be_chosen_apart(spelling):
    model = Block(Attention(spelling), Gated(F.silu), RMSNorm).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    names = ("scaled_dot_product_attention", "softmax", "matmul")
    shared = gradient(BalancedGradients(model, dict.fromkeys(names, "share")), x)
    torch.testing.assert_close(shared, gradient(BalancedGradients(model, "attnlrp"), x))
    constant = {"default": "attnlrp", **dict.fromkeys(names[:2], "constant")}
    torch.testing.assert_close(gradient(BalancedGradients(model, constant), x), gradient(BalancedGradients(model), x))
    by_class = {Attention: "share"}
    torch.testing.assert_close(gradient(BalancedGradients(model, by_class), x), shared)


def test_a_rule_of_ones_own():
    def doubled(call):
        y = call()
        return (2 * y) - y.detach()

    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3)
    expected = 2 * gradient(BalancedGradients(model, "jacobian"), x)
    for key in ("tanh", torch.tanh, nn.Tanh, model[1]):
        found = gradient(BalancedGradients(model, {"default": "jacobian", key: doubled}), x)
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="detach"):
        gradient(BalancedGradients(model, {"tanh": lambda call: 2 * call()}), x)


def test_repr_lists_the_rules():
    shown = repr(BalancedGradients(nn.Linear(2, 2), {"gelu": "jacobian", nn.LayerNorm: "constant"}))
    assert all(part in shown for part in ("Linear", "libragrad", "gelu: jacobian", "LayerNorm: constant"))


# -- in Captum's methods, and as a model


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.gelu(self.norm(self.conv(x))).mean((2, 3)))


def test_under_captums_methods():
    model, x = Small(), torch.randn(2, 1, 6, 6)
    balanced = BalancedGradients(model)
    expected = gradient(lambda u: balanced(u)[:, 0], x)
    torch.testing.assert_close(Saliency(balanced).attribute(x, 0, abs=False), expected)
    torch.testing.assert_close(Saliency(balanced.forward).attribute(x, 0, abs=False), expected)
    torch.testing.assert_close(InputXGradient(balanced).attribute(x, 0), expected * x)
    tunnel = NoiseTunnel(Saliency(balanced))
    torch.testing.assert_close(
        tunnel.attribute(x, nt_samples=2, stdevs=1e-6, target=0, abs=False), expected, atol=1e-4, rtol=1e-3
    )
    assert GradientShap(balanced).attribute(x, torch.zeros_like(x), n_samples=2, target=0).shape == x.shape
    assert LayerGradCam(balanced, model.conv).attribute(x, 0).shape == (2, 1, 4, 4)
    by_layer = LayerGradientXActivation(balanced, model.conv).attribute(x, 0)
    at_conv = LayerGradientXActivation(model, model.conv).attribute(x, 0)
    assert by_layer.shape == at_conv.shape
    assert not torch.allclose(by_layer, at_conv)
    # The gradient of no function: integrated along a path it does not give the difference of the ends.
    _, delta = IntegratedGradients(balanced).attribute(x, target=0, return_convergence_delta=True)
    assert delta.abs().max() > 1e-3


def test_conforms():
    departures = CAPTUM_DEPARTURES["InputXGradient"]
    check_attribution(lambda model: InputXGradient(BalancedGradients(model)), skip=departures)


@pytest.mark.slow
def test_full_grad_of_it_conforms():
    assert check_attribution(lambda model: FullGrad(BalancedGradients(model), complete=True))


def test_with_shifts_and_centered():
    model, x = Small().double(), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    shift = LinearShift(torch.randn(1, 6, 6, dtype=torch.float64))
    expected = gradient(lambda u: CenteredLogits(BalancedGradients(model))(u)[:, 0], x)
    for view in (
        BalancedGradients(CenteredLogits(model)),
        CenteredLogits(BalancedGradients(SoftmaxShift(model, shift))),
        CenteredLogits(SoftmaxShift(BalancedGradients(model), shift)),
    ):
        torch.testing.assert_close(gradient(lambda u, view=view: view(u)[:, 0], x), expected)


def test_is_the_model_to_whoever_looks_at_it():
    model = Small()
    model.config = {"name": "small"}
    balanced = BalancedGradients(model)
    assert balanced.config is model.config
    assert dict(balanced.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert [name for name, _ in balanced.named_modules()] == [name for name, _ in model.named_modules()]
    assert balanced.conv is model.conv
    assert balanced.state_dict().keys() == model.state_dict().keys()
    balanced.eval()
    assert not model.training and not model.norm.training
    assert balanced.double() is balanced
    assert model.conv.weight.dtype == torch.float64
    x = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    for other in (copy.deepcopy(balanced), pickle.loads(pickle.dumps(balanced))):
        assert torch.equal(gradient(other, x), gradient(balanced, x))
    with pytest.raises(AttributeError):
        _ = balanced.nothing


def test_a_layer_over_token_ids():
    model = nn.Sequential(nn.Embedding(7, 16), without_additive_parameters(TOKENS["rms norm by hand"]())).double()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    parts = LayerGradientXActivation(BalancedGradients(model), model[0]).attribute(ids, 1)
    torch.testing.assert_close(parts.sum((1, 2)), model(ids)[:, 1].detach(), rtol=1e-10, atol=1e-12)


def test_captums_llm_attribution_takes_it():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    captum_attr = pytest.importorskip("captum.attr")
    words = "a small decoder explains the next word <pad>".split()
    spoken = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    spoken.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=spoken, pad_token="<pad>")
    config = transformers.LlamaConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=7
    )
    balanced = BalancedGradients(transformers.LlamaForCausalLM(config).eval())
    method = captum_attr.LayerGradientXActivation(balanced, balanced.get_input_embeddings())
    text = captum_attr.TextTokenInput("a small decoder explains", tokenizer)
    result = captum_attr.LLMGradientAttribution(method, tokenizer).attribute(text, target="the next word")
    assert result.token_attr.shape == (3, 4)
    assert result.token_attr.abs().sum() > 0


@pytest.mark.parametrize("layer", [nn.GELU(), nn.LayerNorm(64), nn.RMSNorm(64), nn.GroupNorm(1, 50)], ids=str)
def test_the_backward_pass_keeps_no_more_than_that_of_the_model(layer):
    model, x = nn.Sequential(nn.Linear(32, 64), layer, nn.Linear(64, 32)), torch.randn(2, 50, 32, requires_grad=True)

    def kept(function):
        sizes = {}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = function(x)  # which lives, so that no memory is counted twice
        assert y.requires_grad
        return sum(sizes.values())

    assert kept(BalancedGradients(model)) <= 1.05 * kept(model)


def test_nothing_is_left_behind():
    class Raises(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    for rules in ("libragrad", {nn.GELU: "jacobian"}):
        with pytest.raises(RuntimeError, match="no"):
            BalancedGradients(nn.Sequential(nn.GELU(), Raises()), rules)(torch.ones(2, 3, requires_grad=True))
    # conftest compares the global hooks and the stack of modes.


# -- what is refused


@pytest.mark.parametrize(
    ("rules", "error", "remedy"),
    [
        ("lrp", ValueError, "libragrad"),
        ({"gelu": "half"}, ValueError, "secant"),
        ({"gleu": "secant"}, ValueError, "layer_norm"),
        ({"default": "lrp"}, ValueError, "attnlrp"),
        ({3: "secant"}, TypeError, "by name"),
        (3, TypeError, "mapping"),
    ],
)
def test_unknown_rules(rules, error, remedy):
    with pytest.raises(error, match=remedy):
        BalancedGradients(nn.Linear(2, 2), rules)


def test_what_hides_operations_is_refused():
    x = torch.randn(2, 3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer PyTorch says that TorchScript is deprecated
        scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="it was made from"):
        BalancedGradients(scripted)
    for no_model in (3, nn.Linear, Saliency(nn.Linear(3, 3))):
        with pytest.raises(TypeError, match="or a function"):
            BalancedGradients(no_model)
    with pytest.raises(NotImplementedError, match="whole batch"):
        BalancedGradients(lambda x: torch.vmap(torch.tanh)(x))(x)
    for reentrant in (True, False):
        with pytest.raises(NotImplementedError, match="gradient_checkpointing_disable"):
            model = BalancedGradients(
                lambda x, r=reentrant: checkpoint(lambda u: torch.tanh(u).sin(), x * 1, use_reentrant=r)
            )
            model(x).sum().backward()
    (g,) = torch.autograd.grad(BalancedGradients(F.gelu)(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="jacobian"):
        g.sum().backward()


def test_an_operation_without_derivative_is_refused_and_can_be_given_a_rule():
    def model(x):
        return torch.igamma(x, x + 1) * x

    def half(call):
        u = call.args[0]
        return call().detach() + 0.5 * (u - u.detach())

    x = torch.rand(3) + 0.5
    with pytest.raises(NotImplementedError, match=r"igamma.*give it a rule"):
        gradient(BalancedGradients(model), x)
    torch.testing.assert_close(gradient(BalancedGradients(model, {"igamma": half, "default": "jacobian"}), x),
                               model(x) / x + 0.5 * x)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of quantisation is deprecated
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
        with pytest.raises(NotImplementedError, match="before it was quantised"):
            gradient(BalancedGradients(quantised), torch.rand(2, 3))


def test_a_custom_function_has_its_own_derivative_and_is_named():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    x = torch.randn(3)
    with pytest.warns(UserWarning, match="CubeBackward"):
        found = gradient(BalancedGradients(lambda x: F.gelu(Cube.apply(x * 1)) * 1), x)
    cubed = x**3
    torch.testing.assert_close(found, F.gelu(cubed) / cubed * 3 * x**2)


@pytest.mark.parametrize(
    "function",
    [
        lambda u: torch.exp(u.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)) * u,
        lambda u: torch.rsqrt(u.square() + 1e-5) * (1 + u),
        lambda u: torch.sigmoid(100 * u) * u,
    ],
    ids=["masked", "a narrow curve", "a steep gate"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_secants_leave_of_masked_and_of_narrow_functions(function, dtype):
    torch.manual_seed(0)
    x = 10.0 ** -torch.arange(8).view(2, 1, 4).to(dtype) * torch.randn(2, 4, 4, dtype=dtype)
    terms = FullGrad(BalancedGradients(lambda x: function(x).sum((1, 2)), {"mul": "share"})).decompose(x)
    assert float(terms.gap().max()) < (1e-5 if dtype == torch.float32 else 1e-12)
