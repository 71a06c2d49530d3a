"""attention_erasure and fraction_to_flip: references written out, masks, conventions, models left alone, bad input."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import AttentionGradient, AttentionWeights
from captum_density.metrics import AttentionErasure, FractionToFlip, attention_erasure, fraction_to_flip

LOG_2 = math.log(2)


class Reader(nn.Module):
    """Reads numbers (N, L, 2): weights softmax of the first, logits of what is read of the second and its negative."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, x, hidden=None):
        read = self.attention(x, hidden)
        return torch.stack([read, -read], 1)


class Attention(nn.Module):
    def forward(self, x, hidden):
        scores = x[..., 0] if hidden is None else x[..., 0].masked_fill(hidden, -torch.inf)
        return (scores.softmax(1) * x[..., 1]).sum(1)


class Encoder(nn.Module):
    """Token ids to three classes, read at the first position, or of a causal model at the last."""

    def __init__(self, causal=False, nested=False, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.out = nn.Linear(8, 3)
        self.causal = causal

    def forward(self, tokens, mask=None):
        x = self.embedding(tokens)
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1) if self.causal else None
        hidden = None if mask is None else ~mask
        states = self.encoder(x, mask=causal, src_key_padding_mask=hidden, is_causal=self.causal)
        return self.out(states[:, -1 if self.causal else 0]) * 4


LAYER = "encoder.layers.1.self_attn"


def divergence(p, q):
    """Jensen and Shannon's, of two lists of probabilities."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    kl = [sum(a * math.log(a / m) for a, m in zip(r, middle, strict=True) if a > 0) for r in (p, q)]
    return (kl[0] + kl[1]) / 2


def read(scores, values, kept):
    """What a Reader predicts of some positions, in plain Python: (probabilities, class)."""
    total = sum(math.exp(scores[i]) for i in kept)
    z = sum(math.exp(scores[i]) / total * values[i] for i in kept)
    p = 1 / (1 + math.exp(-2 * z))
    return [p, 1 - p], int(z < 0)


def examples(n=12, length=6):
    """Numbers, and which positions are hidden: at least none, and all but one of the last example."""
    x = torch.randn(n, length, 2, dtype=torch.float64) * torch.tensor([1.0, 3.0])
    lengths = torch.randint(2, length + 1, (n,))
    lengths[0], lengths[-1] = length, 1
    return x, torch.arange(length) >= lengths[:, None]


# ----------------------------------------------------------------------------------------------------------------------
# Against references in plain Python


@pytest.mark.parametrize("limit", [None, 1, 5])
def test_erasure_against_a_reference(limit):
    x, hidden = examples()
    result = attention_erasure(Reader(), "attention", x, hidden, max_examples_per_batch=limit)
    assert isinstance(result, AttentionErasure) and result.compared.tolist() == [True] * 11 + [False]
    counts = dict.fromkeys(["both", "top only", "other only", "neither"], 0)
    for i in range(11):
        scores, values = x[i, :, 0].tolist(), x[i, :, 1].tolist()
        live = [j for j in range(6) if not hidden[i, j]]
        top, other = max(live, key=scores.__getitem__), int(result.other[i])
        assert result.top[i] == top and other in live and other != top
        total = sum(math.exp(scores[j]) for j in live)
        delta = (math.exp(scores[top]) - math.exp(scores[other])) / total
        assert result.delta_attention[i].item() == pytest.approx(delta, abs=1e-12)
        before, decision = read(scores, values, live)
        flips = []
        for erased, js in ((top, result.js_top), (other, result.js_other)):
            after, now = read(scores, values, [j for j in live if j != erased])
            assert js[i].item() == pytest.approx(divergence(before, after), abs=1e-12)
            flips.append(now != decision)
        assert [result.flips_top[i].item(), result.flips_other[i].item()] == flips
        assert result.delta_js[i] == result.js_top[i] - result.js_other[i]
        cell = {(True, True): "both", (True, False): "top only", (False, True): "other only"}.get(tuple(flips))
        counts[cell or "neither"] += 1
    assert result.flip_table == pytest.approx({cell: 100 * count / 11 for cell, count in counts.items()})
    assert result.flips_top.any() and not result.flips_top.all()  # else nothing is told
    assert result.js_top[-1].isnan() and result.js_other[-1].isnan() and result.delta_js[-1].isnan()
    assert not result.flips_top[-1] and not result.flips_other[-1]


def test_small_divergences_of_single_precision_are_not_lost():
    x, _ = examples()
    x[..., 1] = 0.5 + 0.01 * torch.randn(12, 6)
    expected, result = (attention_erasure(Reader(), "attention", x.to(d)) for d in (torch.float64, torch.float32))
    assert expected.js_top.max() < 1e-5
    assert_close(result.js_top, expected.js_top, rtol=0.01, atol=1e-11)


def first_flip(scores, values, order):
    """The fraction erased when the decision changes, and whether it does."""
    before = read(scores, values, order)[1]
    for count in range(1, len(order)):
        if read(scores, values, order[count:])[1] != before:
            return count / len(order), True
    return 1.0, False


@pytest.mark.parametrize("limit", [None, 1, 5])
def test_fractions_against_a_reference(limit):
    x, hidden = examples(20)
    ranking = torch.randn(20, 6, dtype=torch.float64)
    rankings = {name: name for name in ("attention", "gradient", "gradient x attention")} | {"given": ranking}
    rankings["tied"] = (ranking > 0).long()
    result = fraction_to_flip(Reader(), "attention", x, hidden, rankings=rankings, max_examples_per_batch=limit)
    assert isinstance(result, FractionToFlip) and result.names == tuple(rankings)
    assert result.fraction.shape == result.flipped.shape == (5, 20)
    for i in range(20):
        scores, values = x[i, :, 0].tolist(), x[i, :, 1].tolist()
        live = [j for j in range(6) if not hidden[i, j]]
        sign = -1 if read(scores, values, live)[1] else 1
        importance = [
            scores,
            [sign * v for v in values],  # of log p by a weight: positive times its value
            [sign * v * math.exp(s) for s, v in zip(scores, values, strict=True)],
            ranking[i].tolist(),
            [float(g > 0) for g in ranking[i].tolist()],
        ]
        for k, by in enumerate(importance):
            order = sorted(live, key=lambda j, by=by: -by[j])  # stable: equal ones by position
            fraction, flipped = first_flip(scores, values, order)
            assert result.fraction[k, i].item() == pytest.approx(fraction, abs=1e-12), (result.names[k], i)
            assert result.flipped[k, i].item() == flipped
    assert result.flipped.any(1).all() and not result.flipped.all(1).any()
    assert result.fraction[:, -1].tolist() == [1.0] * 5  # one position


def test_the_smallest_fraction_is_one_position_of_those_left_by_the_mask():
    x = torch.tensor([[[2.0, 1.0], [0.0, -1.0], [0.0, -1.0], [9.0, 9.0]]], dtype=torch.float64)
    hidden = torch.tensor([[False, False, False, True]])
    rankings = {"first": torch.tensor([[3, 2, 1, 9]]), "last": torch.tensor([[1, 2, 3, 9]])}
    result = fraction_to_flip(Reader(), "attention", x, hidden, rankings=rankings)
    assert result.fraction.tolist() == [[1 / 3], [1.0]]
    assert result.flipped.tolist() == [[True], [False]]


def test_what_a_mask_hides_may_hold_anything_in_a_ranking():
    x, hidden = examples()
    ranking = torch.randn(12, 6).masked_fill(hidden, torch.nan)
    result = fraction_to_flip(Reader(), "attention", x, hidden, rankings={"a": ranking})
    expected = fraction_to_flip(Reader(), "attention", x, hidden, rankings={"a": ranking.nan_to_num(1e9)})
    assert torch.equal(result.fraction, expected.fraction) and result.flipped.any()


def test_one_position_each_is_nothing_to_compare():
    x, _ = examples()
    hidden = torch.arange(6) > torch.zeros(12, 1)
    result = attention_erasure(Reader(), "attention", x, hidden)
    assert not result.compared.any() and result.js_top.isnan().all() and not result.flips_other.any()
    assert all(math.isnan(share) for share in result.flip_table.values())
    assert fraction_to_flip(Reader(), "attention", x, hidden).fraction.eq(1).all()


# ----------------------------------------------------------------------------------------------------------------------
# Jensen and Shannon's divergence


class Switch(nn.Module):
    """Says p while it reads the position of the largest weight, q once that is erased."""

    def __init__(self, p, q):
        super().__init__()
        self.attention = Attention()
        self.p, self.q = (x.log().clamp_min(-1000) for x in (p, q))  # logits are finite

    def forward(self, x):
        return torch.where(self.attention(x, None)[:, None] > 0, self.p, self.q)


def jensen_shannon(p, q):
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    return attention_erasure(Switch(p, q), "attention", x.expand(len(p), 3, 2), max_examples_per_batch=len(p)).js_top


@st.composite
def _probabilities(draw):
    n, classes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    logits = st.lists(st.floats(-60, 60), min_size=classes, max_size=classes)
    rows = st.lists(logits, min_size=n, max_size=n)
    return tuple(torch.tensor(draw(rows), dtype=torch.float64).softmax(1) for _ in range(2))


@given(pair=_probabilities())
def test_the_divergence_is_symmetric_between_zero_and_log_2_and_zero_only_for_equals(pair):
    p, q = pair
    js = jensen_shannon(p, q)
    assert js.shape == (len(p),) and ((js >= 0) & (js <= LOG_2)).all()
    assert_close(js, jensen_shannon(q, p), rtol=0, atol=1e-15)
    assert (jensen_shannon(p, p) == 0).all()
    expected = [divergence(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert_close(js, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14)
    # Pinsker: zero for equals only.
    assert (js >= (p - q).abs().sum(1) ** 2 / 8 - 1e-14).all()


def test_the_divergence_of_near_equals_is_not_rounded_below_zero():
    logits = torch.randn(1000, 5, dtype=torch.float64)
    p, q = logits.softmax(1), (logits + 1e-12 * torch.randn_like(logits)).softmax(1)
    js = jensen_shannon(p, q)
    assert js.min() == 0 and js.max() < 1e-15


def test_the_divergence_of_what_has_nothing_in_common_is_log_2():
    p = torch.eye(3, dtype=torch.float64)
    assert_close(jensen_shannon(p, p.roll(1, 0)), torch.full((3,), LOG_2, dtype=torch.float64), rtol=1e-15, atol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Seeds and random numbers


def test_the_other_position_is_any_but_the_top_and_drawn_from_the_seed():
    x = torch.zeros(4000, 4, 2, dtype=torch.float64)
    x[:, 1, 0] = 1.0
    first, again, second = (attention_erasure(Reader(), "attention", x, seed=seed).other for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    shares = first.bincount(minlength=4) / 4000
    assert shares[1] == 0
    assert_close(shares[[0, 2, 3]], torch.full((3,), 1 / 3), rtol=0, atol=0.04)  # 5 standard deviations


def test_the_random_ranking_is_uniform_and_drawn_from_the_seed():
    # The decision flips when the one position for it is gone: after 1, 2 or 3 of 4, or, where it is last, never.
    x = torch.tensor([[1.0, 10.0], [0.0, -1.0], [0.0, -1.0], [0.0, -1.0]], dtype=torch.float64).expand(4000, 4, 2)
    first, again, second = (
        fraction_to_flip(Reader(), "attention", x, rankings=["random"], seed=seed).fraction for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert_close((first * 4).long().flatten().bincount()[1:] / 4000, torch.full((4,), 0.25), rtol=0, atol=0.035)


@pytest.mark.parametrize("function", [attention_erasure, fraction_to_flip])
def test_global_random_numbers_and_the_number_of_examples_at_once_do_not_matter(function):
    x, hidden = examples()
    before = torch.get_rng_state()
    first = function(Reader(), "attention", x, hidden)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert_close(tuple(function(Reader(), "attention", x, hidden, max_examples_per_batch=3))[-2:], tuple(first)[-2:])


# ----------------------------------------------------------------------------------------------------------------------
# Models


@pytest.fixture
def tokens():
    return torch.randint(1, 20, (9, 7)), torch.arange(7) < torch.tensor([7, 6, 5, 4, 3, 2, 7, 1, 6])[:, None]


def test_a_class_token_s_query_alone_is_ranked_and_erased(tokens):
    x, mask = tokens
    model = Encoder().double().eval()
    result = attention_erasure(model, LAYER, x, mask, query=0)
    weights = AttentionWeights(model, LAYER).attribute(x, mask, query=0)
    assert torch.equal(result.top, weights.argmax(1))
    assert_close(
        result.delta_attention,
        (weights.gather(1, result.top[:, None]) - weights.gather(1, result.other[:, None]))[:, 0],
    )
    assert result.compared.tolist() == (mask.sum(1) > 1).tolist() and (result.js_top[result.compared] > 0).all()
    everyone = attention_erasure(model, "encoder.layers.0.self_attn", x, mask)
    weights = AttentionWeights(model, "encoder.layers.0.self_attn").attribute(x, mask)
    assert torch.equal(everyone.top, weights.argmax(1))
    # In the last layer only the first query is read.
    ranked = {"same": weights}
    of_one, of_all = (fraction_to_flip(model, LAYER, x, mask, rankings=ranked, query=query) for query in (0, None))
    assert torch.equal(of_one.fraction, of_all.fraction)


def test_gradients_are_of_the_predicted_class_s_log_probability(tokens):
    x, mask = tokens
    model = Encoder().double().eval()
    predicted = model(x, mask).argmax(1)
    assert len(predicted.unique()) > 1

    def log_probability(*given):
        return model(*given).log_softmax(1)

    for name, multiply in (("gradient", False), ("gradient x attention", True)):
        attribution = AttentionGradient(log_probability, model.get_submodule(LAYER), multiply)
        importance = attribution.attribute(x, predicted, mask, query=0)
        assert importance.abs().max() > 0.01
        rankings = {"ours": name, "given": importance, "reversed": -importance}
        result = fraction_to_flip(model, LAYER, x, mask, rankings=rankings, query=0)
        assert torch.equal(result.fraction[0], result.fraction[1])
        assert not torch.equal(result.fraction[0], result.fraction[2])


def test_a_causal_model_is_read_at_its_last_query(tokens):
    model = Encoder(causal=True).double().eval()
    result = attention_erasure(model, LAYER, tokens[0], query=-1)
    assert result.compared.all() and (result.js_top > 0).all()
    assert fraction_to_flip(model, LAYER, tokens[0], query=-1).flipped.any()
    for function in (attention_erasure, fraction_to_flip):
        with pytest.raises(ValueError, match=r"query 0 of example \d attends to are erased"):
            function(model, LAYER, tokens[0])


def test_a_fused_encoder_is_compared_with_itself(tokens):
    # PyTorch's fused path sets padding to zero, which a model that averages over all positions reads.
    x, mask = tokens

    class Averaging(Encoder):
        def forward(self, tokens, mask):
            return self.out(self.encoder(self.embedding(tokens), src_key_padding_mask=~mask).mean(1)) * 4

    torch.manual_seed(0)
    fused, plain = Averaging(nested=True).double().eval(), Averaging().double().train()
    plain.load_state_dict(fused.state_dict())
    for result, expected in zip(*(attention_erasure(m, LAYER, x, mask) for m in (fused, plain)), strict=True):
        assert_close(result, expected, equal_nan=True)
    for result, expected in zip(*(fraction_to_flip(m, LAYER, x, mask)[1:] for m in (fused, plain)), strict=True):
        assert_close(result, expected)


def test_erasing_what_is_not_read_changes_nothing():
    # Positions of the same value: nothing moves whichever is gone.
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    x[..., 1] = x[:, :1, 1]
    result = attention_erasure(Reader(), "attention", x)
    assert_close(result.js_top, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-15)
    assert not result.flips_top.any() and not result.flips_other.any()
    assert result.flip_table == {"both": 0.0, "top only": 0.0, "other only": 0.0, "neither": 100.0}


def test_a_function_and_several_inputs_and_outputs_with_logits(tokens):
    x, hidden = examples()
    model = Reader()
    expected = attention_erasure(model, "attention", x, hidden)

    def wrapped(scores, values, hidden):
        return SimpleNamespace(logits=model(torch.stack([scores, values], 2), hidden))

    pair = (x[..., 0], x[..., 1])
    for result, value in zip(
        attention_erasure(wrapped, model.attention, pair, hidden, max_examples_per_batch=5), expected, strict=True
    ):
        assert_close(result, value, equal_nan=True)
    fractions = fraction_to_flip(wrapped, model.attention, pair, hidden)
    assert_close(fractions.fraction, fraction_to_flip(model, "attention", x, hidden).fraction)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_hugging_face_classifier(implementation, tokens):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).double().eval()
    x, mask = tokens
    layer = "bert.encoder.layer.1.attention.self"
    result = attention_erasure(model, layer, x, mask.long(), query=0, max_examples_per_batch=4)
    assert result.compared.tolist() == (mask.sum(1) > 1).tolist() and (result.js_top[result.compared] > 1e-9).all()
    assert (
        mask.gather(1, result.top[:, None]).all()
        and mask[result.compared].gather(1, result.other[result.compared, None]).all()
    )
    flips = fraction_to_flip(model, layer, x, mask.long(), query=0)
    assert flips.flipped.any() and (flips.fraction[~flips.flipped] == 1).all()
    # Example by example, without padding.
    for i in (0, 2, 5):
        alone = fraction_to_flip(model, layer, x[i : i + 1, : mask[i].sum()], query=0, rankings=flips.names[:3])
        assert_close(alone.fraction[:, 0], flips.fraction[:3, i])


# ----------------------------------------------------------------------------------------------------------------------
# What is left as it was


class Counting(nn.Module):
    """Batch norm in training mode, with parameters that have a gradient."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.BatchNorm1d(2), Attention()
        self.scale = nn.Parameter(torch.ones(()))
        self.scale.grad = torch.tensor(7.0)
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x, hidden=None):
        read = self.attention(self.norm(x.transpose(1, 2)).transpose(1, 2), hidden) * self.scale * self.frozen
        return torch.stack([read, -read], 1)


@pytest.mark.parametrize("function", [attention_erasure, fraction_to_flip])
@pytest.mark.parametrize("raising", [False, True])
def test_model_and_inputs_are_left_as_they_were(function, raising):
    model = Counting().double()
    x, hidden = examples()
    x.requires_grad_()
    state, original = copy.deepcopy(model.state_dict()), x.detach().clone()
    calls = []

    def run(*args):
        calls.append(1)
        if raising and len(calls) > 2:
            raise RuntimeError("enough")
        return model(*args)

    if raising:
        with pytest.raises(RuntimeError, match="enough"):
            function(run, model.attention, x, hidden)
    else:
        result = function(run, model.attention, x, hidden)
        assert not any(value.requires_grad for value in result if isinstance(value, torch.Tensor))
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert model.scale.requires_grad and model.scale.grad == 7 and not model.frozen.requires_grad
    assert torch.equal(x, original) and x.requires_grad and x.grad is None
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(context, tokens):
    model = Encoder().double().eval()
    expected = fraction_to_flip(model, LAYER, *tokens, query=0), attention_erasure(model, LAYER, *tokens, query=0)
    with context():
        inside = tuple(t.clone() for t in tokens)
        flips = fraction_to_flip(model, LAYER, *inside, query=0)
        erasure = attention_erasure(model, LAYER, *inside, query=0)
    assert_close(flips.fraction, expected[0].fraction)
    assert_close(erasure.js_top, expected[1].js_top, equal_nan=True)


def test_predictions_keep_no_graph(tokens):
    graphs = []
    model = Encoder().double().eval()
    model.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
    attention_erasure(model, LAYER, *tokens, query=0)
    assert graphs and not any(graphs)


@pytest.mark.cuda
def test_the_same_positions_on_a_gpu():
    x, hidden = examples()
    for function in (attention_erasure, fraction_to_flip):
        here, there = (function(Reader(), "attention", x.to(d), hidden.to(d)) for d in ("cpu", "cuda"))
        for result, expected in zip(there, here, strict=True):
            if isinstance(result, torch.Tensor):
                assert result.is_cuda
                assert_close(result.cpu(), expected, equal_nan=True)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input

BOTH = pytest.mark.parametrize("function", [attention_erasure, fraction_to_flip])


@BOTH
@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda z: z[:, None], r"at least two classes, \(12, C\), but returned \(12, 1\)"),
        (lambda z: z, r"returned \(12,\)"),
        (lambda z: torch.stack([z, -z]), r"returned \(2, 12\)"),
        (lambda z: (z,), "tuple"),
        (lambda z: torch.stack([z, z / 0], 1), "NaN or infinite logits"),
    ],
)
def test_models_without_two_classes_are_refused(function, output, words):
    class Wrong(Reader):
        def forward(self, x):
            return output(self.attention(x, None))

    with pytest.raises(ValueError, match=words):
        function(Wrong(), "attention", examples()[0])


@BOTH
def test_a_model_that_draws_or_changes_itself_is_refused(function, tokens):
    model, state = Encoder(dropout=0.5).train(), torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers"):
        function(model, LAYER, *tokens, query=0)
    assert torch.equal(torch.get_rng_state(), state) and model.training

    class Drifting(Reader):
        def __init__(self):
            super().__init__()
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, x):
            self.runs += 1
            return super().forward(x) * self.runs

    with pytest.raises(ValueError, match="changes its buffer 'runs'"):
        function(Drifting(), "attention", examples()[0])


def test_additive_masks_and_one_row_for_all_may_be_inputs():
    x, hidden = examples()
    module, places = Reader(), torch.linspace(-1, 1, x.shape[1], dtype=x.dtype)[None]

    def model(x, mask, places):
        return module(torch.stack([x[..., 0], x[..., 1] + places], 2), mask == -torch.inf)

    mask = torch.zeros_like(x[..., 0]).masked_fill(hidden, -torch.inf)
    expected = attention_erasure(model, module.attention, x, (mask, places))
    for size in (None, 1):
        result = attention_erasure(model, module.attention, (x, mask, places), max_examples_per_batch=size)
        assert_close(result, expected, equal_nan=True)


@BOTH
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module or a function"),
        ({"layer": "atention"}, ValueError, "no layer 'atention'"),
        ({"layer": 3}, TypeError, "layer must be a module of the model or its name"),
        ({"layer": nn.Linear(2, 2)}, ValueError, "did not run"),
        ({"inputs": torch.zeros(0, 6, 2)}, ValueError, "at least one example"),
        ({"inputs": [torch.zeros(3, 6, 2)]}, TypeError, "inputs must be a tensor"),
        ({"inputs": ()}, TypeError, "inputs must be a tensor"),
        ({"inputs": torch.tensor(1.0)}, ValueError, "the first dimension must hold"),
        ({"query": 1}, ValueError, "query must be"),
        ({"query": "mean"}, TypeError, "query must be a position, .*or None"),
        ({"query": True}, TypeError, "query must be a position, .*or None"),
        ({"max_examples_per_batch": 0}, ValueError, "max_examples_per_batch"),
    ],
)
def test_arguments_that_are_refused(function, changed, error, words):
    arguments = {"model": Reader(), "layer": "attention", "inputs": torch.rand(3, 6, 2)} | changed
    with pytest.raises(error, match=words):
        function(**arguments)


@pytest.mark.parametrize(
    ("rankings", "words"),
    [
        ("attention", "rankings must be names"),
        (torch.rand(3, 6), "rankings must be names"),
        ([torch.rand(3, 6)], "rankings must be names"),
        ([], "rankings must be names"),
        ({}, "rankings must be names"),
        (["attention", "lime"], "ranking 'lime' must be one of attention, gradient,.*but is 'lime'"),
        ({"mine": "lime"}, "ranking 'mine' must be one of.*but is 'lime'"),
        ({"mine": torch.rand(3, 5)}, r"ranking 'mine' must hold importances \(3, 6\), but is \(3, 5\)"),
        ({"mine": torch.rand(3, 6, 2)}, r"'mine' must hold importances \(3, 6\), but is \(3, 6, 2\)"),
        ({"mine": [1, 2]}, r"'mine' must hold importances \(3, 6\), but is list"),
        ({"mine": torch.full((3, 6), torch.nan)}, "ranking 'mine' contains NaN or infinity"),
        ({"mine": torch.eye(6)[:3].log()}, "ranking 'mine' contains NaN or infinity"),
    ],
)
def test_rankings_that_are_refused(rankings, words):
    with pytest.raises(ValueError, match=words):
        fraction_to_flip(Reader(), "attention", torch.rand(3, 6, 2), rankings=rankings)


def test_rankings_are_detached_and_of_any_precision():
    x, _ = examples()
    ranking = torch.randn(12, 6)
    expected = fraction_to_flip(Reader(), "attention", x, rankings={"a": ranking.bfloat16().double()})
    result = fraction_to_flip(Reader(), "attention", x, rankings={"a": ranking.bfloat16().requires_grad_()})
    assert torch.equal(result.fraction, expected.fraction) and not result.fraction.requires_grad


class LastWord(nn.Module):
    """Reads its answer where each example ends, as causal classifiers of inputs padded on the right do."""

    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x, ends):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        states = self.attention(x, x, x, attn_mask=causal)[0]
        return self.out(states[torch.arange(len(x)), ends])


def test_each_example_has_its_own_query():
    model, x, ends = LastWord().double().eval(), torch.randn(4, 6, 8).double(), torch.tensor([5, 3, 1, 4])
    result = attention_erasure(model, "attention", x, ends, query=ends)
    flips = fraction_to_flip(model, "attention", x, ends, query=ends, rankings=["gradient", "attention"])
    assert bool((result.js_top > 0).all()) and bool((result.top <= ends).all())
    for limit in (1, 3):
        parts = attention_erasure(model, "attention", x, ends, query=ends, max_examples_per_batch=limit)
        torch.testing.assert_close(parts.js_top, result.js_top)
        again = fraction_to_flip(
            model, "attention", x, ends, query=ends, rankings=["gradient", "attention"], max_examples_per_batch=limit
        )
        assert torch.equal(again.fraction, flips.fraction)
    alone = attention_erasure(model, "attention", x[1:2], ends[1:2], query=3)
    torch.testing.assert_close(alone.js_top, result.js_top[1:2])
    with pytest.raises(ValueError, match=r"query has shape \(2,\), but must be one position or \(4,\)"):
        attention_erasure(model, "attention", x, ends, query=ends[:2])
