"""Attention weights and their gradients are those of a model written out by hand."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import AttentionGradient, AttentionWeights, erase_attention
from captum_density.testing import attribution_checks, check_attribution

N, T, E, H, CLASSES = 3, 5, 8, 4, 3


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def unchanged(weights):
    return weights


SPELLINGS = {
    "F.softmax": lambda scores, dim: F.softmax(scores, dim),
    "F.softmax by keywords": lambda scores, dim: F.softmax(input=scores, dim=dim),
    "F.softmax in float64": lambda scores, dim: F.softmax(scores.float(), dim=dim, dtype=torch.float64),
    "torch.special.softmax": lambda scores, dim: torch.special.softmax(scores, dim),
    "torch.softmax": torch.softmax,
    "torch.softmax by keywords": lambda scores, dim: torch.softmax(input=scores, dim=dim),
    "Tensor.softmax": lambda scores, dim: scores.softmax(dim),
    "nn.Softmax": lambda scores, dim: nn.Softmax(dim)(scores),
}
# From the scores (N, T) to the softmax's own layout with the dimension of the positions, and back.
LAYOUTS = {
    "(N, T)": (lambda s: s, 1, lambda w: w),
    "(N, T, 1)": (lambda s: s[:, :, None], 1, lambda w: w[:, :, 0]),
    "(N, 1, T)": (lambda s: s[:, None], -1, lambda w: w[:, 0]),
    "(T, N)": (lambda s: s.t(), 0, lambda w: w.t()),
    "(T, N, 1)": (lambda s: s.t()[:, :, None], 0, lambda w: w[:, :, 0].t()),
    "(1, N, T)": (lambda s: s[None], 2, lambda w: w[0]),
}


class Weigh(nn.Module):
    def __init__(self, layout, spelling):
        super().__init__()
        self.layout, self.spelling = layout, spelling

    def forward(self, scores):
        arrange, dim, back = LAYOUTS[self.layout]
        return back(SPELLINGS[self.spelling](arrange(scores), dim))


class Pooling(nn.Module):
    """A GRU, of whose states a classifier sees a weighted mean."""

    def __init__(self, layout="(N, T)", spelling="F.softmax"):
        super().__init__()
        self.gru, self.score, self.head = nn.GRU(E, 6, batch_first=True), nn.Linear(6, 1), nn.Linear(6, CLASSES)
        self.attention = Weigh(layout, spelling)

    def scores(self, x, lengths):
        states, _ = self.gru(x)
        scores = self.score(states).squeeze(-1)
        if lengths is not None:
            scores = scores.masked_fill(torch.arange(x.shape[1]) >= lengths[:, None], -torch.inf)
        return states, scores

    def forward(self, x, lengths=None):
        states, scores = self.scores(x, lengths)
        return self.head((self.attention(scores)[:, :, None] * states).sum(1))

    def by_hand(self, change, x, lengths=None):
        states, scores = self.scores(x, lengths)
        weights = change((scores.exp() / scores.exp().sum(1, keepdim=True))[:, None, None])
        return self.head((weights[:, 0, 0, :, None] * states).sum(1))


class SelfAttention(nn.Module):
    """Of H heads, by one of the ways there are to compute it."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.key_heads = 2 if "grouped" in kind else H
        self.q, self.o = nn.Linear(E, E), nn.Linear(E, E)
        self.k, self.v = nn.Linear(E, self.key_heads * E // H), nn.Linear(E, self.key_heads * E // H)
        self.bias = nn.Parameter(torch.randn(H, 1, T))
        self.heads = 1 if "without heads" in kind else H

    def project(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.heads == 1:
            return q, k, v
        return tuple(t.unflatten(-1, (-1, E // H)).transpose(-3, -2) for t in (q, k, v))

    def forward(self, x, mask=None):
        kind, (q, k, v) = self.kind, self.project(x)
        scale, folded = q.shape[-1] ** -0.5, "folded" in kind
        shape = q.shape
        if folded:
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        if "softmax" in kind:
            scores = q @ k.transpose(-2, -1) * scale
            weights = F.softmax(scores if mask is None else scores.masked_fill(~mask, torch.finfo(x.dtype).min), -1)
            if "in place" in kind:
                weights *= 1
            out = weights @ v
        elif "keywords" in kind:
            out = F.scaled_dot_product_attention(query=q, value=v, key=k, attn_mask=mask)
        elif "causal" in kind:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif "bias" in kind:
            out = F.scaled_dot_product_attention(q, k, v, self.bias)
        elif "scale" in kind:
            out = F.scaled_dot_product_attention(q, k, v, scale=0.7)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa="grouped" in kind)
        out = out.view(shape) if folded else out
        return self.o(out if self.heads == 1 else out.transpose(-3, -2).flatten(-2))

    def by_hand(self, change, x, mask=None):
        q, k, v = self.project(x)
        if self.key_heads < H:
            k, v = (torch.stack([t[..., i * self.key_heads // H, :, :] for i in range(H)], -3) for t in (k, v))
        if self.heads == 1:
            q, k, v = (t[:, None] for t in (q, k, v))
        scores = torch.einsum("...hld,...hsd->...hls", q, k) * (0.7 if "scale" in self.kind else q.shape[-1] ** -0.5)
        if "causal" in self.kind:
            mask = torch.arange(T)[:, None] >= torch.arange(T)
        elif "bias" in self.kind:
            mask = self.bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        exp = scores.exp()
        weights = (exp / exp.sum(-1, keepdim=True)).nan_to_num(0)
        weights = change(weights if weights.ndim == 4 else weights[None])
        out = torch.einsum("...hls,...hsd->...lhd", weights if x.ndim == 3 else weights[0], v)
        return self.o(out.flatten(-2))


class MultiHead(nn.Module):
    """`nn.MultiheadAttention`, with or without masks."""

    def __init__(self, calls=None, memory=False, **options):
        super().__init__()
        self.first = options.setdefault("batch_first", True)
        self.calls, self.memory = {"need_weights": False, **(calls or {})}, memory
        self.mha = nn.MultiheadAttention(E, H, **options)

    def ends(self, x):
        if not self.memory:
            return x, x, x
        memory = torch.cat([x, x.roll(1, -1)], -2)  # twice as many positions as queries
        return x, memory[..., : self.mha.kdim], memory[..., : self.mha.vdim]

    def forward(self, x, **masks):
        ends = self.ends(x) if self.first or x.ndim == 2 else (t.transpose(0, 1) for t in self.ends(x))
        out = self.mha(*ends, **self.calls, **masks)[0]
        return out if self.first or x.ndim == 2 else out.transpose(0, 1)

    def by_hand(self, change, x, attn_mask=None, key_padding_mask=None, **_):
        mha, batch = self.mha, x if x.ndim == 3 else x[None]
        n, length = batch.shape[:2]
        if mha.in_proj_weight is None:
            matrices = mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight
        else:
            matrices = mha.in_proj_weight.chunk(3)
        biases = mha.in_proj_bias.chunk(3)
        q, k, v = (e @ w.t() + b for e, w, b in zip(self.ends(batch), matrices, biases, strict=True))
        if mha.bias_k is not None:
            k, v = (torch.cat([t, b.expand(n, 1, E)], 1) for t, b in ((k, mha.bias_k), (v, mha.bias_v)))
        if mha.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(n, 1, E)], 1) for t in (k, v))
        q, k, v = (t.view(n, -1, H, E // H).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / (E // H) ** 0.5
        more = scores.shape[-1] - self.ends(batch)[1].shape[1]
        for mask in (attn_mask, key_padding_mask):
            if mask is None:
                continue
            mask = torch.where(mask, -torch.inf, 0.0) if mask.dtype == torch.bool else mask
            if mask is attn_mask or mask.shape[-2:] == (length, scores.shape[-1] - more):
                mask = mask if mask.ndim == 2 else mask.view(n, H, *mask.shape[1:])
            else:
                mask = mask.view(n, 1, 1, -1)
            scores = scores + F.pad(mask, (0, more))
        exp = scores.exp()
        weights = change(exp / exp.sum(-1, keepdim=True))
        out = mha.out_proj((weights @ v).transpose(1, 2).reshape(n, -1, E))
        return out if x.ndim == 3 else out[0]


class Classifier(nn.Module):
    """Of the mean of what a layer of attention returns."""

    def __init__(self, attention):
        super().__init__()
        self.attention, self.head = attention, nn.Linear(E, CLASSES)

    def forward(self, x, *args):
        return self._logits(self.attention(x, *args[:-1], **(args[-1] if args else {})))

    def by_hand(self, change, x, *args):
        return self._logits(self.attention.by_hand(change, x, *args[:-1], **(args[-1] if args else {})))

    def _logits(self, values):
        logits = self.head(torch.tanh(values).mean(-2))
        return logits if logits.ndim == 2 else logits[None]


KEEP = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, False, True, False, True]])
BIAS = torch.linspace(-1, 1, T * T, dtype=torch.float64).view(T, T).sin()
LOWER = torch.ones(T, T, dtype=torch.bool).tril()
PER_HEAD = torch.linspace(-2, 2, N * H * T * T, dtype=torch.float64).view(N * H, T, T).cos()
NEED = {"need_weights": True}
MULTI_HEAD = {
    "sequence first": ({"batch_first": False}, {}),
    "weights needed": ({"calls": NEED}, {}),
    "weights of each head needed": ({"calls": {**NEED, "average_attn_weights": False}}, {}),
    "bool mask": ({}, {"attn_mask": ~LOWER}),
    "causal": ({"calls": {"is_causal": True}}, {"attn_mask": ~LOWER}),
    "float mask": ({}, {"attn_mask": BIAS}),
    "a mask for each head": ({}, {"attn_mask": PER_HEAD}),
    "padding": ({}, {"key_padding_mask": ~KEEP}),
    "float padding": ({"calls": NEED}, {"key_padding_mask": KEEP.double() * 2}),
    "both": ({"batch_first": False}, {"attn_mask": BIAS, "key_padding_mask": KEEP.double().log()}),
    "zero attention": ({"add_zero_attn": True}, {"attn_mask": BIAS}),
    "bias of keys": ({"add_bias_kv": True, "add_zero_attn": True}, {"key_padding_mask": ~KEEP}),
    "other memory": ({"memory": True, "kdim": 6, "vdim": 7}, {}),
    "other memory of the same size": ({"memory": True, "calls": NEED}, {}),
}
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
PADDING = KEEP[:, None, None]
SELF = {
    "softmax": (),
    "softmax with a mask": (PADDING,),
    "softmax, folded": (),
    "softmax, in place": (),
    "softmax, without heads": (),
    "sdpa": (),
    "sdpa, bool mask": (PADDING,),
    "sdpa, float mask": (BIAS,),
    "sdpa, queries that see nothing": (PADDING & (torch.arange(T) > 0)[:, None],),
    "sdpa, keywords": (CAUSAL,),
    "sdpa, causal": (),
    "sdpa, bias": (),
    "sdpa, scale": (),
    "sdpa, grouped": (PADDING,),
    "sdpa, folded": (),
    "sdpa, folded, causal": (),
    "sdpa, without heads": (),
}


def case(name):
    """A model in float64 and eval mode with the arguments of a call."""
    if name.startswith("pooling"):
        _, layout, spelling = name.split(": ")
        return Pooling(layout, spelling).double().eval(), (normal(N, T, E), torch.tensor([5, 3, 1]))
    if name.startswith("multi-head, "):
        options, masks = MULTI_HEAD[name.removeprefix("multi-head, ")]
        model = Classifier(MultiHead(**options)).double().eval()
        for parameter in model.parameters():  # biases of zero would hide a mistake
            parameter.data.normal_(std=0.5)
        return model, (normal(N, T, E), masks)
    masks = {"mask": SELF[name][0]} if SELF[name] else {}
    return Classifier(SelfAttention(name)).double().eval(), (normal(N, T, E), masks)


CASES = (
    *(f"pooling: {layout}: F.softmax" for layout in LAYOUTS),
    *(f"pooling: (N, T, 1): {spelling}" for spelling in SPELLINGS),
    *SELF,
    *(f"multi-head, {name}" for name in MULTI_HEAD),
)


def weights_by_hand(model, args):
    calls = []
    model.by_hand(lambda w: calls.append(w.detach()) or w, *args)
    return calls[0]


def tolerance(name):
    """Of scores that the model itself rounds to float32."""
    return {"rtol": 1e-4, "atol": 1e-6} if "in float64" in name else {"rtol": 1e-7, "atol": 1e-9}


# Weights.


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_by_hand(name):
    model, (x, *args) = case(name)
    plain = model(x, *args)
    assert_close(plain, model.by_hand(unchanged, x, *args), **tolerance(name))
    expected = weights_by_hand(model, (x, *args))
    attributions = AttentionWeights(model, "attention").attribute(x, tuple(args), query="all", heads="all")
    assert_close(attributions, expected, **tolerance(name))
    sums = attributions.sum(-1)
    assert_close(sums, (expected.sum(-1) > 0).to(sums), **tolerance(name))
    assert_close(model(x, *args), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["softmax", "sdpa, grouped", "multi-head, both", "pooling: (N, T): F.softmax"])
def test_queries_and_heads_as_asked_for(name):
    model, (x, *args) = case(name)
    attribution = AttentionWeights(model, model.attention)  # the module will do as well as its name
    every = attribution.attribute(x, tuple(args), query="all", heads="all")
    heads, queries = every.shape[1:3]
    assert_close(attribution.attribute(x, tuple(args)), every.mean((1, 2)))
    for query in (0, queries - 1, -1, "mean", "all"):
        for head in (0, heads - 1, -1, "mean", "all"):
            attributions = attribution.attribute(x, tuple(args), query=query, heads=head)
            of_heads = every if head == "all" else every.mean(1) if head == "mean" else every[:, head]
            all_and_mean = {"all": of_heads, "mean": of_heads.mean(-2)}
            assert_close(attributions, all_and_mean[query] if query in all_and_mean else of_heads.select(-2, query))
            assert attributions.is_contiguous() and not attributions.requires_grad


@pytest.mark.parametrize("name", ["multi-head, padding", "multi-head, sequence first", "multi-head, bias of keys"])
def test_weights_are_what_need_weights_returns(name):
    model, (x, masks) = case(name)
    layer = model.attention
    ends = layer.ends(x) if layer.first else (t.transpose(0, 1) for t in layer.ends(x))
    _, mean = layer.mha(*ends, **masks, need_weights=True)
    assert_close(AttentionWeights(model, "attention.mha").attribute(x, masks, query="all"), mean.detach())


def test_weights_after_dropout_of_multi_head_attention():
    # As need_weights=True returns them in training mode.
    model = Classifier(MultiHead(dropout=0.5)).double()
    x = normal(N, T, E)
    torch.manual_seed(1)
    _, expected = model.attention.mha(x, x, x, need_weights=True, average_attn_weights=False)
    torch.manual_seed(1)
    attributions = AttentionWeights(model, "attention.mha").attribute(x, query="all", heads="all")
    assert_close(attributions, expected.detach())
    assert bool((attributions == 0).any())


def test_gradients_by_weights_after_dropout_of_multi_head_attention():
    model, x, leaves = Classifier(MultiHead(dropout=0.5)).double(), normal(N, T, E), []

    def dropped(weights):
        leaves.append(F.dropout(weights, 0.5).detach().requires_grad_())
        return leaves[0]

    torch.manual_seed(1)
    output = model.by_hand(dropped, x)[:, 1].sum()
    (expected,) = torch.autograd.grad(output, leaves)
    for multiply in (True, False):
        torch.manual_seed(1)
        attribution = AttentionGradient(model, "attention", multiply_by_weights=multiply)
        attributions = attribution.attribute(x, 1, query="all", heads="all")
        assert_close(attributions, expected * leaves[0].detach() if multiply else expected)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_of_scaled_dot_products_is_after_the_weights(training):
    class Dropping(SelfAttention):
        def forward(self, x):
            q, k, v = self.project(x)
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)
            return self.o(out.transpose(1, 2).flatten(2))

    model, x = Classifier(Dropping("sdpa")).double().train(training), normal(N, T, E)
    attributions = AttentionWeights(model, "attention").attribute(x, query="all", heads="all")
    assert_close(attributions, weights_by_hand(model, (x,)))
    maps = [AttentionGradient(model, "attention").attribute(x, 0) for _ in range(2)]
    assert torch.equal(*maps) is not training


@pytest.mark.parametrize("in_place", [torch.Tensor.mul_, torch.Tensor.masked_fill_])
def test_weights_that_the_model_overwrites(in_place):
    class Overwriting(Pooling):
        def forward(self, x):
            states, scores = self.scores(x, None)
            weights = self.attention(scores)
            self.seen = weights.detach().clone()
            in_place(weights, *((torch.tensor(0.5),) if in_place is torch.Tensor.mul_ else (x[:, :, 0] > 0, 0.0)))
            return self.head((weights[:, :, None] * states).sum(1))

    model, x = Overwriting().double().eval(), normal(N, T, E)
    plain, calls = model(x), model.seen
    assert_close(AttentionWeights(model, "attention").attribute(x), calls)
    attributions = AttentionGradient(model, "attention").attribute(x, 0)
    states, _ = model.scores(x, None)
    kept = torch.full((N, T), 0.5) if in_place is torch.Tensor.mul_ else (x[:, :, 0] <= 0)
    assert_close(attributions, (calls * kept * (states @ model.head.weight[0])).detach())
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("kind", ["softmax", "softmax, folded", "sdpa, folded"])
def test_batches_of_any_size(kind, n):
    # 5 is the number of positions, 2 and 1 divide the number of heads.
    model, x = Classifier(SelfAttention(kind)).double().eval(), normal(n, T, E)
    if n == T and "folded" in kind:  # (N * heads, T, T) might have the examples in the middle
        with pytest.raises(ValueError, match=r"do not show .* 5 examples .*another number of examples at once"):
            AttentionWeights(model, "attention").attribute(x)
        return
    attributions = AttentionWeights(model, "attention").attribute(x, query="all", heads="all")
    assert_close(attributions, weights_by_hand(model, (x,)))


class Einsum(nn.Module):
    """Scores of queries, examples, positions, as models that put sequences first have."""

    def forward(self, q, k):
        return torch.einsum("qne,kne->qnk", q, k).softmax(-1)


@pytest.mark.parametrize(("n", "t", "clear"), [(2, 3, True), (2, 4, False), (3, 5, True), (1, 4, False), (3, 6, False)])
def test_examples_in_the_middle(n, t, clear):
    attention, x = Einsum(), normal(n, t, 4)
    explain = AttentionWeights(lambda x: attention(*[x.transpose(0, 1)] * 2).sum((0, 2)), attention).attribute
    if clear:
        assert_close(explain(x, query="all"), (x @ x.transpose(1, 2)).softmax(-1))
    else:
        with pytest.raises(ValueError, match="do not show which dimension holds"):
            explain(x)


def test_windows_are_not_examples():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    windows = lambda x: attention(*[x.reshape(-1, 2, 4)] * 3)[0].sum((1, 2)).view(len(x), -1)  # noqa: E731
    with pytest.raises(ValueError, match="attends in 6 sequences, but there are 3 examples"):
        AttentionWeights(windows, attention).attribute(normal(3, 4, 4).float())


def test_half_precision_does_not_overflow_where_the_kernel_does_not():
    class Dot(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    x = 160 * torch.randn(2, 2, 5, 64)
    attributions = AttentionWeights(model := Dot(), model).attribute(x.half(), query="all", heads="all")
    assert_close(attributions.float(), (x.half().float() @ x.half().float().mT / 8).softmax(-1), rtol=1e-2, atol=1e-3)


def test_a_query_of_each_example():
    model, (x, *_) = case("softmax")
    own = torch.tensor([0, -1, 2])
    for attribution in (AttentionWeights(model, "attention"), AttentionGradient(model, "attention")):
        extra = {} if type(attribution) is AttentionWeights else {"target": 1}
        every = attribution.attribute(x, query="all", heads="all", **extra)
        attributions = attribution.attribute(x, query=own, heads="all", **extra)
        assert torch.equal(attributions, every[torch.arange(N), :, own])
        assert torch.equal(attribution.attribute(x, query=np.int64(1), **extra), every[:, :, 1].mean(1))
        with pytest.raises(ValueError, match="query is for 2 examples, but there are 3"):
            attribution.attribute(x, query=own[:2], **extra)


@pytest.mark.parametrize("layout", ["(N, T)", "(N, T, 1)", "(N, 1, T)", "(T, N)", "(T, N, 1)", "(1, N, T)"])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_pooling_of_any_number_of_examples(layout, n):
    model, x = Pooling(layout).double().eval(), normal(n, T, E)
    assert_close(AttentionWeights(model, "attention").attribute(x), weights_by_hand(model, (x,))[:, 0, 0])


@pytest.mark.parametrize("name", ["softmax", "sdpa, causal", "multi-head, float mask", "multi-head, zero attention"])
def test_a_sequence_without_a_batch(name):
    model, (x, *args) = case(name)
    one = x[0]
    attributions = AttentionWeights(lambda x: model(x[0], *args), model.attention).attribute(one[None], query="all")
    assert_close(attributions, weights_by_hand(model, (one, *args)).mean(1))


def test_a_sequence_of_one_head_without_a_batch():
    layer, scores = nn.Softmax(1), normal(T, T)
    attributions = AttentionWeights(lambda x: layer(x[0]), layer).attribute(scores[None], query="all")
    assert_close(attributions[0], scores.softmax(1))


@given(st.data())
@settings(max_examples=25)
def test_weights_sum_to_one_and_do_not_depend_on_the_batch(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    model, (x, *_) = case(data.draw(st.sampled_from(["softmax", "softmax, folded", "sdpa", "multi-head, float mask"])))
    attribution = AttentionWeights(model, "attention")
    attributions = attribution.attribute(3 * x, query="all", heads="all")
    assert bool((attributions >= 0).all()) and bool((attributions <= 1).all())
    assert_close(attributions.sum(-1), torch.ones_like(attributions[..., 0]))
    i = data.draw(st.integers(0, N - 1))
    assert_close(attribution.attribute(3 * x[i : i + 1], query="all", heads="all")[0], attributions[i])


# Gradients.


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_by_hand(name):
    model, (x, *args) = case(name)
    leaves = []

    def leaf(weights):
        leaves.append(weights.detach().requires_grad_())
        return leaves[0]

    output = model.by_hand(leaf, x, *args)[:, 1].sum()
    (expected,) = torch.autograd.grad(output, leaves)
    for multiply in (True, False):
        attribution = AttentionGradient(model, "attention", multiply_by_weights=multiply)
        attributions = attribution.attribute(x, 1, tuple(args), query="all", heads="all")
        assert_close(attributions, expected * leaves[0].detach() if multiply else expected, **tolerance(name))


@pytest.mark.parametrize(
    "name", ["pooling: (T, N): torch.softmax", "softmax, folded", "sdpa, grouped", "multi-head, both"]
)
def test_gradients_are_finite_differences(name):
    model, (x, *args) = case(name)
    attributions = AttentionGradient(model, "attention", multiply_by_weights=False).attribute(
        x, [0, 1, 2], tuple(args), query="all", heads="all"
    )
    h, rows = 1e-6, torch.arange(N)
    direction = torch.randn(attributions.shape, dtype=attributions.dtype)
    ends = [model.by_hand(lambda w, s=s: w + s * h * direction, x, *args)[rows, rows] for s in (1, -1)]
    assert_close(
        (attributions * direction).sum((1, 2, 3)), ((ends[0] - ends[1]) / (2 * h)).detach(), rtol=1e-6, atol=1e-8
    )


def test_gradient_by_a_weight_that_nothing_depends_on():
    model, (x, *_) = case("softmax")
    blind = lambda x: torch.stack([model(x).detach()[:, 0], x.sum((1, 2))], 1)  # noqa: E731
    for target in (0, 1):
        with pytest.raises(ValueError, match="no gradient by the attention weights"):
            AttentionGradient(blind, model.attention).attribute(x, target)


def test_gradients_of_frozen_models_leave_no_trace():
    for name in ("softmax", "sdpa, causal", "multi-head, padding"):
        model, (x, *args) = case(name)
        expected = AttentionGradient(model, "attention").attribute(x, 0, tuple(args))
        model.requires_grad_(False)
        assert_close(AttentionGradient(model, "attention").attribute(x, 0, tuple(args)), expected)
        model.requires_grad_(True)
        marks = [torch.ones_like(p) for p in model.parameters()]
        for p, mark in zip(model.parameters(), marks, strict=True):
            p.grad = mark
        x.requires_grad_()
        attributions = AttentionGradient(model, "attention").attribute(x, 0, tuple(args))
        assert_close(attributions, expected)
        assert x.grad is None and not attributions.requires_grad
        assert all(
            p.grad is mark and bool((mark == 1).all()) for p, mark in zip(model.parameters(), marks, strict=True)
        )


@pytest.mark.parametrize("name", ["softmax", "sdpa, bool mask", "multi-head, padding", "multi-head, float padding"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(name, mode):
    model, (x, *args) = case(name)
    expected = [
        AttentionWeights(model, "attention").attribute(x, tuple(args)),
        AttentionGradient(model, "attention").attribute(x, 0, tuple(args)),
    ]
    with mode():
        copies = tuple({k: v.clone() for k, v in a.items()} if isinstance(a, dict) else a.clone() for a in args)
        attributions = [
            AttentionWeights(model, "attention").attribute(x.clone(), copies),
            AttentionGradient(model, "attention").attribute(x.clone(), 0, copies),
        ]
    for f, e in zip(attributions, expected, strict=True):
        assert_close(f, e)
        assert not f.is_inference()


# What the models are.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["softmax with a mask", "sdpa, bool mask", "multi-head, padding"])
def test_reduced_precision(name, dtype):
    model, (x, *args) = case(name)
    expected = [
        AttentionWeights(model, "attention").attribute(x, tuple(args)),
        AttentionGradient(model, "attention").attribute(x, 0, tuple(args)),
    ]
    model.to(dtype)
    attributions = [
        AttentionWeights(model, "attention").attribute(x.to(dtype), tuple(args)),
        AttentionGradient(model, "attention").attribute(x.to(dtype), 0, tuple(args)),
    ]
    coarse = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5}[dtype]
    for f, e in zip(attributions, expected, strict=True):
        assert f.dtype == dtype
        assert_close(f.double(), e, rtol=coarse, atol=coarse)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_encoder_with_padding_in_eval_mode(norm_first):
    # Which takes PyTorch's fused path, with nested tensors, when nobody is looking.
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = torch.randn(N, T, E), ~torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    whole = lambda x: model(x, src_key_padding_mask=padding)  # noqa: E731
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            plain = whole(x)
            attributions = AttentionWeights(whole, model.layers[0].self_attn).attribute(x, query="all")
            first = model.layers[0]
            y = first.norm1(x) if norm_first else x
            assert_close(attributions, first.self_attn(y, y, y, padding)[1].detach())
            later = AttentionWeights(whole, model.layers[1].self_attn).attribute(x, query=0)
            assert_close(later.sum(1), torch.ones(N))
            assert bool((later[padding] == 0).all())
            assert torch.equal(whole(x), plain)
    gradient = AttentionGradient(whole, model.layers[0].self_attn).attribute(x, (0, 2), query=0)
    assert bool(gradient.any()) and bool((gradient[padding] == 0).all())


def test_compiled_models_and_wrappers():
    for name in ("softmax", "sdpa, bool mask", "multi-head, padding"):
        model, (x, *args) = case(name)
        expected = AttentionWeights(model, "attention").attribute(x, tuple(args))
        compiled = torch.compile(model, backend="eager")
        with torch.no_grad():
            plain = compiled(x, *args)
        for wrapped in (compiled, nn.DataParallel(model)):
            assert_close(AttentionWeights(wrapped, "attention").attribute(x, tuple(args)), expected)
        inner = Classifier(torch.compile(model.attention, backend="eager"))
        inner.head = model.head
        assert_close(AttentionWeights(inner, "attention").attribute(x, tuple(args)), expected)
        in_place, _ = case(name)
        in_place.load_state_dict(model.state_dict())
        in_place.compile(backend="eager")
        assert_close(AttentionWeights(in_place, "attention").attribute(x, tuple(args)), expected)
        with torch.no_grad():
            assert_close(compiled(x, *args), plain)


def hugging_face(name, implementation):
    """A classifier and the name of the attention of its second layer."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    common = {"vocab_size": 50, "num_labels": CLASSES, "attn_implementation": implementation}
    torch.manual_seed(0)
    if name == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**size, **common))
        layer = "bert.encoder.layer.1.attention.self"
    elif name == "distilbert":
        config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=37, **common)
        model = transformers.DistilBertForSequenceClassification(config)
        layer = "distilbert.transformer.layer.1.attention"
    elif name == "gpt2":
        ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **ends, **common)
        model, layer = transformers.GPT2ForSequenceClassification(config), "transformer.h.1.attn"
    else:
        config = transformers.LlamaConfig(num_key_value_heads=2, pad_token_id=0, **size, **common)
        model, layer = transformers.LlamaForSequenceClassification(config), "model.layers.1.self_attn"
    with torch.no_grad():  # as drawn, all attention weights are nearly equal
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    return model.eval(), layer


IDS = torch.tensor([[7, 8, 9, 10, 11, 12], [3, 4, 5, 6, 0, 0]])
WORDS = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
HUGGING_FACE = ("bert", "distilbert", "gpt2", "llama")


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hugging_face(name, implementation):
    model, name_of_layer = hugging_face(name, implementation)
    eager, _ = hugging_face(name, "eager")
    layer = model.get_submodule(name_of_layer)

    def call(ids, words):
        return model(input_ids=ids, attention_mask=words)

    with torch.no_grad():
        expected = eager(input_ids=IDS, attention_mask=WORDS, output_attentions=True).attentions[1]
        plain = call(IDS, WORDS).logits
    attributions = AttentionWeights(call, layer).attribute(IDS, WORDS, query="all", heads="all")
    words = WORDS.bool()[:, None, :, None].expand_as(attributions)
    assert_close(attributions[words], expected[words])
    gradient = AttentionGradient(call, layer, multiply_by_weights=False).attribute(IDS, 1, WORDS, query="all")
    run = eager(input_ids=IDS, attention_mask=WORDS, output_attentions=True)
    (by_hand,) = torch.autograd.grad(run.logits[:, 1].sum(), run.attentions[1])
    assert_close(gradient[words[:, 0]], by_hand.mean(1)[words[:, 0]], rtol=1e-4, atol=1e-6)
    assert float(gradient.abs().max()) > 1e-3 < float(attributions.std())
    with torch.no_grad():
        assert torch.equal(call(IDS, WORDS).logits, plain)
    if name == "bert":
        assert_close(
            AttentionWeights(model, name_of_layer).attribute(IDS, WORDS, query="all", heads="all"), attributions
        )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hugging_face_encoder_and_decoder(implementation):
    transformers = pytest.importorskip("transformers")
    size = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    common = {"vocab_size": 50, "decoder_start_token_id": 0}
    config = transformers.T5Config(**size, **common, attn_implementation=implementation)
    model = transformers.T5ForConditionalGeneration(config).eval()
    decoder_ids = IDS[:, :3]

    def run(ids, words, **more):
        return model(input_ids=ids, attention_mask=words, decoder_input_ids=decoder_ids, **more)

    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = run(IDS, WORDS, output_attentions=True)
    model.set_attn_implementation(implementation)
    for layer, weights in (
        (model.encoder.block[1].layer[0].SelfAttention, expected.encoder_attentions[1]),
        (model.decoder.block[1].layer[0].SelfAttention, expected.decoder_attentions[1]),
        (model.decoder.block[0].layer[1].EncDecAttention, expected.cross_attentions[0]),
    ):
        attributions = AttentionWeights(run, layer).attribute(IDS, WORDS, query="all", heads="all")
        assert_close(attributions, weights)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hugging_face_images(implementation):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    config = transformers.ViTConfig(image_size=16, patch_size=8, attn_implementation=implementation, **size)
    model = transformers.ViTForImageClassification(config).eval()
    images = torch.randn(2, 3, 16, 16)
    layer = next(m for m in reversed(list(model.modules())) if type(m).__name__ in ("ViTSelfAttention", "ViTAttention"))
    attributions = AttentionWeights(model, layer).attribute(images, query=0, heads="all")
    assert attributions.shape == (2, 4, 5)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert_close(attributions, model(images, output_attentions=True).attentions[0][:, :, 0])


# How it is called.


class OfFeatures(nn.Module):
    """The suite's model of x times attention weights over its features: as many positions as features."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        # The same each time, and drawn from no generator.
        self.score = nn.Parameter(torch.arange(25, dtype=torch.float64).view(5, 5).sin())

    def forward(self, x):
        return self.model(x * torch.softmax(x @ self.score.to(x.dtype) + 0.3, 1))


def of_features(kind):
    return lambda model: kind(OfFeatures(model), "")


# A tensor of positions is returned also for a tuple of one input, which these two pass.
SKIPPED = ("output_form", "sensitivity_max")


def test_gradients_keep_every_law():
    ran = check_attribution(of_features(AttentionGradient), models=("mlp",), skip=SKIPPED)
    of_other_models = {"target_tuples", "additional_forward_args"}
    of_deltas = {"convergence_delta_value"}
    assert set(attribution_checks()) - set(ran) == {*SKIPPED, *of_other_models, *of_deltas}


def test_weights_keep_every_law():
    ran = check_attribution(of_features(AttentionWeights), models=("mlp",), skip=SKIPPED)
    missing = set(attribution_checks()) - set(ran) - {*SKIPPED, "additional_forward_args", "convergence_delta_value"}
    assert {name for name in missing if "target" not in name} == set()  # they have no target


def test_under_a_noise_tunnel():
    model, (x, *_) = case("sdpa")
    attributions = NoiseTunnel(AttentionGradient(model, "attention")).attribute(x, nt_samples=3, stdevs=0.0, target=1)
    assert_close(attributions, AttentionGradient(model, "attention").attribute(x, 1))


def test_several_inputs():
    model, (x, *_) = case("softmax")

    def both(a, b, c=None):
        return model(a + b if c is None else a + b * c)

    expected = AttentionGradient(model, "attention").attribute(x, 2)
    assert_close(AttentionGradient(both, model.attention).attribute((x / 2, x / 2), 2), expected)
    assert_close(AttentionGradient(both, model.attention).attribute((x / 2, x / 4), 2, 2.0), expected)


def test_other_threads_are_not_seen():
    model, (x, *_) = case("softmax")
    other = normal(N, T, E)
    expected = AttentionWeights(model, "attention").attribute(x)
    started, stop, errors = threading.Event(), threading.Event(), []

    def run_elsewhere():
        try:
            while not stop.is_set():
                model(other)
                started.set()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run_elsewhere)
    thread.start()
    started.wait(10)
    try:
        for _ in range(20):
            assert torch.equal(AttentionWeights(model, "attention").attribute(x), expected)
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("attribution", [AttentionWeights, AttentionGradient])
def test_a_model_that_raises_is_left_as_it_was(attribution):
    class Raises(Classifier):
        def forward(self, x):
            super().forward(x)
            raise KeyError("by itself")

    model, x = Raises(SelfAttention("softmax")).double(), normal(N, T, E)
    with pytest.raises(KeyError, match="by itself"):
        attribution(model, "attention").attribute(x)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch._C._len_torch_function_stack() == 0
    assert torch.is_grad_enabled()


# What is refused.


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = SelfAttention("softmax"), MultiHead()

    def forward(self, x):
        return self.one(x) + self.other(x)


@pytest.mark.parametrize("kind", [AttentionWeights, AttentionGradient])
@pytest.mark.parametrize(
    ("make", "layer", "words"),
    [
        (Twice, "", r"runs attention more than once, first softmax in 'attention.one', then multi_head_attention"),
        (Twice, "head", r"layer 'head' has no attention: .*There is some in 'attention.one', 'attention.other.mha'"),
        (Twice, "attention.none", "the model has no layer 'attention.none'; it has "),
        (Twice, nn.Linear(2, 2), r"the Linear that was given did not run; is it a module of this model"),
    ],
)
def test_layers_that_do_not_do(kind, make, layer, words):
    model = Classifier(make()).double()
    with pytest.raises(ValueError, match=words):
        kind(model, layer).attribute(normal(N, T, E))


def test_a_layer_that_runs_twice():
    model, (x, *_) = case("softmax")
    with pytest.raises(ValueError, match=r"the SelfAttention that was given ran 2 times|layer 'attention' ran 2 times"):
        AttentionWeights(lambda x: model(x) + model(x), model.attention).attribute(x)
    assert not model.attention._forward_hooks


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m, x: AttentionWeights("m", "a"), TypeError, "model must be a torch.nn.Module or a function"),
        (lambda m, x: AttentionWeights(m, 3), TypeError, "layer must be a module of the model or its name, but is int"),
        (
            lambda m, x: AttentionWeights(lambda x: m(x), "attention"),
            TypeError,
            "a function, which has no named layers",
        ),
        (lambda m, x: AttentionWeights(m, "attention").attribute([x]), TypeError, "but is list"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x[:0]), ValueError, "at least one example"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x, query=T), ValueError, "query must be below 5"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x, query=-6), ValueError, "query must be"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x, query=True), TypeError, "but is True"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x, heads="sum"), ValueError, "heads must be .*'sum'"),
        (lambda m, x: AttentionWeights(m, "attention").attribute(x, heads=H), ValueError, "heads must be below 4"),
        (lambda m, x: AttentionGradient(m, "attention").attribute(x), AssertionError, "Target not provided"),
        (
            lambda m, x: AttentionGradient(lambda x: [m(x)], m.attention).attribute(x, 0),
            TypeError,
            "the model returned list",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, words):
    model, (x, *_) = case("sdpa")
    with pytest.raises(error, match=words):
        make(model, x)
    assert not model.attention._forward_hooks


@pytest.mark.parametrize("windows", [2, 4])
def test_windows_folded_into_the_examples_are_refused(windows):
    # (N * windows, heads, L, S): with as many heads as examples, these must not be taken for them.
    class Windows(SelfAttention):
        def forward(self, x):
            return super().forward(x.unflatten(1, (windows, -1)).flatten(0, 1)).view(len(x), -1, E)

    for n in (1, 2, H, 2 * H):
        model = Classifier(Windows("softmax")).double()
        with pytest.raises(ValueError, match=r"do not show which dimension holds the"):
            AttentionWeights(model, "attention").attribute(normal(n, 2 * windows, E))


def test_erased_weights_are_seen():
    for name in ("softmax, folded", "sdpa, bool mask", "multi-head, float mask"):
        model, (x, *args) = case(name)
        expected = weights_by_hand(model, (x, *args))
        expected[..., 0] = 0
        expected /= expected.sum(-1, keepdim=True)
        for frozen in (False, True):
            model.requires_grad_(not frozen)
            with erase_attention(model, "attention", 0):
                attributions = AttentionWeights(model, "attention").attribute(x, tuple(args), query="all", heads="all")
                gradient = AttentionGradient(model, "attention").attribute(x, 0, tuple(args))
            assert_close(attributions, expected)
            assert bool((gradient[:, 0] == 0).all()) and bool(gradient[:, 1:].any())
