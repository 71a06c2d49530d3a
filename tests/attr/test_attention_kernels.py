"""Attention that is no softmax by hand over positions alone: flex and flash kernels, sinks, heads before examples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import flex_attention as flex
from torch.testing import assert_close

from captum_density.attr import AttentionGradient, AttentionWeights, erase_attention
from captum_density.metrics import attention_erasure
from tests.attr.test_attention import IDS, WORDS, Classifier, E, H, N, SelfAttention, T, hugging_face, normal
from tests.attr.test_erase_attention import leaving_one, renormalised

EVERY = {"query": "all", "heads": "all"}

# Flex attention.

uncompiled = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class Flex(SelfAttention):
    """Flex attention, and the same by hand: a function of each score, and a mask of blocks."""

    def __init__(self, kind):
        super().__init__(kind)
        self.slope = nn.Parameter(torch.linspace(-1, 1, H), requires_grad=False)

    def score(self, score, example, head, query, position):
        return score + self.slope[head] * (query - position) if "score" in self.kind else score

    def keep(self, example, head, query, position):
        return (query >= position) & (position != 1) & (query > 0 if "blind" in self.kind else query >= 0)

    def forward(self, x):
        q, k, v = self.project(x)
        score, keep = (lambda *at: self.score(*at)), (lambda b, h, q, k: self.keep(b, h, q, k))
        block = flex.create_block_mask(keep, None, None, T, T, device="cpu") if "mask" in self.kind else None
        with torch.compiler.set_stance("force_eager"):
            out = flex.flex_attention(q, k, v, score, block, enable_gqa=self.key_heads < H, scale=0.5)
        return self.o(out.transpose(1, 2).flatten(2))

    def by_hand(self, change, x):
        q, k, v = self.project(x)
        k, v = (t.repeat_interleave(H // self.key_heads, 1) for t in (k, v))
        query, position = torch.arange(T)[:, None], torch.arange(T)
        scores = 0.5 * q @ k.mT
        if "score" in self.kind:
            scores = scores + self.slope.view(-1, 1, 1) * (query - position)
        if "mask" in self.kind:
            scores = scores.masked_fill(~self.keep(0, 0, query, position), -torch.inf)
        weights = change(scores.softmax(-1).nan_to_num(0))
        return self.o((weights @ v).transpose(1, 2).flatten(2))


FLEX = ("flex", "flex, score", "flex, mask", "flex, blind mask", "flex, grouped, score, mask")


def flex_case(name):
    # Parameters that require no gradient, as flex attention has none on a CPU.
    return Classifier(Flex(name)).double().eval().requires_grad_(False), normal(N, T, E)


@uncompiled
@pytest.mark.parametrize("name", FLEX)
def test_flex_attention(name):
    model, x = flex_case(name)
    leaves = []
    by_hand = model.by_hand(lambda w: leaves.append(w.detach().requires_grad_()) or leaves[0], x)
    assert_close(model(x), by_hand.detach())
    weights = AttentionWeights(model, "attention").attribute(x, **EVERY)
    assert_close(weights, leaves[0].detach())
    (expected,) = torch.autograd.grad(by_hand[:, 1].sum(), leaves)
    gradient = AttentionGradient(model, "attention", multiply_by_weights=False).attribute(x, 1, **EVERY)
    assert_close(gradient, expected)
    erased = leaving_one(torch.rand(N, H, T, T) < 0.4, weights)
    with erase_attention(model, "attention", erased):
        assert_close(model(x), model.by_hand(renormalised(erased), x))


@uncompiled
def test_flex_attention_of_which_nothing_is_left():
    model, x = flex_case("flex, mask")
    with (
        pytest.raises(ValueError, match="query 0 of example 0 attends to are erased; leave it one"),
        erase_attention(model, "attention", 0),
    ):
        model(x)


@pytest.mark.slow  # transformers loads the compiler
@uncompiled
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask")  # of transformers' own
def test_hugging_face_flex_attention():
    name = "llama"
    layer = hugging_face(name, "eager")[1]
    expected = AttentionWeights(*of_words(name, "eager", layer)).attribute(IDS, WORDS, **EVERY)
    model, module = of_words(name, "flex_attention", layer)
    read = AttentionWeights(model, module).attribute(IDS, WORDS, **EVERY)
    words = WORDS.bool()[:, None, :, None].expand_as(read)
    assert_close(read[words], expected[words])
    outputs = []
    for implementation in ("eager", "flex_attention"):
        model, module = of_words(name, implementation, layer)
        with torch.no_grad(), erase_attention(model, module, 0, query=-3):
            outputs.append(model(IDS, WORDS).logits)
    assert_close(*outputs, rtol=1e-4, atol=1e-5)


def of_words(name, implementation, layer):
    model, _ = hugging_face(name, implementation)
    model.requires_grad_(False)
    return lambda ids, words: model(input_ids=ids, attention_mask=words), model.get_submodule(layer)


# Kernels that show nothing.


def test_flash_attention_is_refused_by_its_operation():
    with torch.library._scoped_library("flash_attn", "FRAGMENT") as library:
        library.define("_flash_attn_forward(Tensor q, Tensor k, Tensor v) -> Tensor")
        library.impl(
            "_flash_attn_forward", lambda q, k, v: torch.ops.aten.bmm(q, k.mT) @ v, "CompositeImplicitAutograd"
        )

        class Flash(nn.Module):
            def forward(self, x):
                return torch.ops.flash_attn._flash_attn_forward(x, x, x)

        model, x = Classifier(Flash()).double(), normal(N, T, E)
        words = r'a kernel that shows no weights; .*attn_implementation="sdpa"'
        with pytest.raises(ValueError, match=words):
            AttentionWeights(model, "attention").attribute(x)
        with pytest.raises(ValueError, match=words), erase_attention(model, "attention", 0):
            model(x)


def test_flash_attention_is_refused_by_its_configuration(monkeypatch):
    transformers = pytest.importorskip("transformers")
    model, layer = hugging_face("llama", "eager")

    def attend(module, query, key, value, mask, **options):  # in no operation that is known
        return query.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS, "flash_attention_2", attend)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r'attends in flash_attention_2, .*attn_implementation="sdpa"'):
        AttentionWeights(lambda ids: model(input_ids=ids), model.get_submodule(layer)).attribute(IDS)


# Sinks.


class Sinks(SelfAttention):
    """As in GPT-OSS: a score more for each head, which takes part in the softmax and has no value."""

    def __init__(self, kind="sinks"):
        super().__init__(kind)
        self.sinks = nn.Parameter(torch.randn(H))

    def with_sinks(self, x):
        q, k, v = self.project(x)
        scores = q @ k.mT / 2**0.5
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(len(x), -1, x.shape[1], -1)
        return scores, sinks, v

    def forward(self, x):
        scores, sinks, v = self.with_sinks(x)
        together = torch.cat([scores, sinks], dim=-1)
        together = together - together.max(-1, keepdim=True).values
        weights = F.softmax(together, dim=-1)[..., :-1]
        return self.o((weights @ v).transpose(1, 2).flatten(2))

    def by_hand(self, change, x):
        scores, sinks, v = self.with_sinks(x)
        return self.o((change(scores.exp(), sinks.exp()) @ v).transpose(1, 2).flatten(2))


def of_sinks(erased):
    def change(scores, sinks):
        kept = scores.masked_fill(erased, 0)
        return kept / (kept.sum(-1, keepdim=True) + sinks)

    return change


NOTHING = torch.zeros((), dtype=torch.bool)


@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("length", [1, T])
def test_sinks_take_their_share_and_have_no_position(n, length):
    model, x = Classifier(Sinks()).double().eval(), normal(n, length, E)
    leaves = []

    def leaf(scores, sinks):
        leaves.append(of_sinks(NOTHING)(scores, sinks).detach().requires_grad_())
        return leaves[0]

    output = model.by_hand(leaf, x)
    assert_close(output.detach(), model(x).detach())
    weights = AttentionWeights(model, "attention").attribute(x, **EVERY)
    assert_close(weights, leaves[0].detach())
    assert weights.shape[-1] == length and bool((weights.sum(-1) < 1).all())
    (expected,) = torch.autograd.grad(output[:, 1].sum(), leaves)
    gradient = AttentionGradient(model, "attention", multiply_by_weights=False).attribute(x, 1, **EVERY)
    assert_close(gradient, expected)


def test_erasing_beside_sinks():
    model, x = Classifier(Sinks()).double().eval(), normal(N, T, E)
    for positions in (torch.rand(N, H, T, T) < 0.4, torch.rand(N, T) < 0.4, -1, range(T)):  # sinks are always left
        erased = positions
        if not isinstance(positions, torch.Tensor):
            erased = torch.zeros(T, dtype=torch.bool)
            erased[positions] = True
        erased = erased[:, None, None] if erased.ndim == 2 else erased
        with erase_attention(model, "attention", positions):
            assert_close(model(x), model.by_hand(of_sinks(erased), x))
    with pytest.raises(ValueError, match="not all among the 5"), erase_attention(model, "attention", T):
        model(x)


def test_positions_that_are_concatenated_are_no_sinks():
    class Memory(SelfAttention):
        def forward(self, x):
            q, k, v = self.project(x)
            scores = torch.cat([q @ k[:, :, 1:].mT, q @ k[:, :, :1].mT], -1)
            return self.o((scores.softmax(-1) @ v.roll(-1, 2)).transpose(1, 2).flatten(2))

    model, x = Classifier(Memory("softmax")).double(), normal(N, T, E)
    weights = AttentionWeights(model, "attention").attribute(x, query="all")
    assert_close(weights.sum(-1), torch.ones(N, T, dtype=torch.float64))


def test_gpt_oss():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16, "head_dim": 8}
    config = transformers.GptOssConfig(
        vocab_size=50, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0, **size
    )
    config._attn_implementation = "eager"
    model = transformers.GptOssForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    layer = model.model.layers[1].self_attn
    layer.sinks.data.normal_(0, 3)

    def run(ids, words):
        return model(input_ids=ids, attention_mask=words)

    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=WORDS, output_attentions=True).attentions[1]
    read = AttentionWeights(run, layer).attribute(IDS, WORDS, **EVERY)
    assert_close(read, expected)
    assert bool((read.sum(-1) < 0.999).any())
    result = attention_erasure(lambda *a: run(*a).logits[:, -1], layer, IDS, torch.ones_like(IDS), query=-1)
    assert bool((result.js_top > 0).all())


# Heads folded into the examples.


class Folded(SelfAttention):
    """(N * heads, L, L), with the examples or the heads first, by a softmax or a fused kernel."""

    def forward(self, x):
        q, k, v = self.project(x)
        if "heads first" in self.kind:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        shape = q.shape
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        out = (
            F.scaled_dot_product_attention(q, k, v)
            if "sdpa" in self.kind
            else torch.softmax(q @ k.mT / (E // H) ** 0.5, -1) @ v
        ).view(shape)
        out = out.transpose(0, 1) if "heads first" in self.kind else out
        return self.o(out.transpose(1, 2).flatten(2))


def case_of_folded(kind, order):
    return Classifier(Folded(f"{kind}, {order} first")).double().eval(), normal(N, T, E)


@pytest.mark.parametrize("kind", ["softmax", "sdpa"])
@pytest.mark.parametrize("order", ["examples", "heads"])
def test_foldings_are_told_apart(kind, order):
    model, x = case_of_folded(kind, order)
    leaves = []
    output = model.by_hand(lambda w: leaves.append(w.detach().requires_grad_()) or leaves[0], x)
    (expected,) = torch.autograd.grad(output[:, 1].sum(), leaves)
    before = torch.get_rng_state()
    for form, layer in ((model, "attention"), (lambda x: model(x), model.attention)):
        weights = AttentionWeights(form, layer).attribute(x, **EVERY)
        assert_close(weights, leaves[0].detach())
        gradient = AttentionGradient(form, layer, multiply_by_weights=False).attribute(x, 1, **EVERY)
        assert_close(gradient, expected)
        for erased in (torch.rand(N, H, T, T).argsort(-1) < 2, (torch.rand(N, T).argsort(1) < 2)[:, None, None]):
            mask = erased if erased.shape[1] == H else erased[:, 0, 0]
            with erase_attention(form, layer, mask):
                assert_close(form(x), model.by_hand(renormalised(erased), x))
    assert not torch.equal(before, torch.get_rng_state())  # by this test alone:
    torch.set_rng_state(before)
    AttentionWeights(model, "attention").attribute(x)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("order", ["examples", "heads"])
def test_versions_of_one_example_are_told_apart(order):
    model, x = case_of_folded("softmax", order)
    x = x[:1].expand(N, -1, -1)
    erased = torch.tensor([0, 1, 2])
    with erase_attention(model, "attention", erased):
        output = model(x)
    mask = (torch.arange(T) == erased[:, None])[:, None, None]
    assert_close(output, model.by_hand(renormalised(mask), x))


def test_foldings_that_cannot_be_told_apart_are_refused():
    model, x = case_of_folded("softmax", "examples")
    nn.init.zeros_(model.attention.q.weight), nn.init.zeros_(model.attention.q.bias)
    refused = pytest.raises(ValueError, match="explain one example at a time")
    with refused:
        AttentionWeights(model, "attention").attribute(x)
    assert_close(AttentionWeights(model, "attention").attribute(x[:1]), torch.full((1, T), 1 / T, dtype=torch.float64))
    erased = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="explain one example at a time"), erase_attention(model, "attention", erased):
        model(x)
    with erase_attention(model, "attention", [0, 1]):  # in all examples and heads
        assert_close(model(x), model.by_hand(renormalised(torch.arange(T) < 2), x))


def test_a_cache_is_not_passed_twice():
    class Cached(Classifier):
        def forward(self, x, cache):
            cache.append(len(x))
            return super().forward(x)

    class Cache:
        def __init__(self):
            self.sizes = []

        def append(self, size):
            self.sizes.append(size)

    model, x, cache = Cached(Folded("softmax, heads first")).double(), normal(N, T, E), Cache()
    with pytest.raises(ValueError, match="explain one example at a time"):
        AttentionWeights(model, "attention").attribute(x, (cache,))
    assert cache.sizes == [N]
