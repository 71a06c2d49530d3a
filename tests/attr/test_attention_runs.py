"""Of a layer that runs several times in a pass: which run is read or erased, and where the pass ends."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from captum_density.attr import AttentionGradient, AttentionWeights, erase_attention
from captum_density.metrics import attention_erasure, fraction_to_flip
from tests.attr.test_attention import Classifier, E, H, N, SelfAttention, T, case, normal
from tests.attr.test_erase_attention import renormalised, state_of

RUNS = 3


class Shared(nn.Module):
    """One layer of attention, used by each of several blocks."""

    def __init__(self, kind="softmax"):
        super().__init__()
        self.attention, self.head = SelfAttention(kind), nn.Linear(E, 3)

    def forward(self, x, after=lambda x, block: x):
        for block in range(RUNS):
            x = after(x + self.attention(x), block)
        return self.head(x.mean(1))

    def by_hand(self, x, change, run):
        """With changed weights in one run."""
        for block in range(RUNS):
            x = x + self.attention.by_hand(change if block == run else lambda w: w, x)
        return self.head(x.mean(1))


@pytest.fixture
def shared():
    return Shared().double().eval(), normal(N, T, E)


def weights_of(model, x, run):
    calls = []
    model.by_hand(x, lambda w: calls.append(w) or w, run)
    return calls[0].detach()


EVERY = {"query": "all", "heads": "all"}


@pytest.mark.parametrize("kind", ["softmax", "sdpa", "softmax, folded"])
@pytest.mark.parametrize("run", [0, 1, 2, -1, -3])
def test_a_run_is_read(kind, run):
    model, x = Shared(kind).double().eval(), normal(N, T, E)
    expected = weights_of(model, x, run % RUNS)
    assert_close(AttentionWeights(model, "attention").attribute(x, run=run, **EVERY), expected)
    leaves = []
    output = model.by_hand(x, lambda w: leaves.append(w.detach().requires_grad_()) or leaves[0], run % RUNS)
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), leaves)
    attribution = AttentionGradient(model, "attention", multiply_by_weights=False)
    assert_close(attribution.attribute(x, 1, run=run, **EVERY), gradient)


@pytest.mark.parametrize("run", [None, 0, 1, 2])
def test_a_run_is_erased(shared, run):
    model, x = shared
    erased = torch.rand(N, H, T, T).argsort(-1) < 2
    with erase_attention(model, "attention", erased, run=run):
        outputs = [model(x), model(x)]  # runs are counted anew in each pass
        assert run is None or torch.equal(model(x[:N]), outputs[0])
    for output in outputs:
        if run is not None:
            assert_close(output, model.by_hand(x, renormalised(erased), run))
    function = lambda x: model(x)  # noqa: E731
    with erase_attention(function, model.attention, erased, run=run):
        assert torch.equal(function(x), outputs[0])


@pytest.mark.parametrize("run", [1, -1])
def test_metrics_of_a_run(shared, run):
    model, x = shared
    weights = AttentionWeights(model, "attention").attribute(x, query=0, run=run)
    result = attention_erasure(model, "attention", x, query=0, run=run)
    assert torch.equal(result.top, weights.argmax(1))
    with erase_attention(model, "attention", result.top, query=0, run=run % RUNS):
        after = model(x).argmax(1)
    assert torch.equal(result.flips_top, after != model(x).argmax(1))
    flips = fraction_to_flip(model, "attention", x, query=0, run=run, rankings=["attention", "gradient"])
    same = fraction_to_flip(
        lambda x: model(x), model.attention, x, query=0, run=run, rankings=["attention", "gradient"]
    )
    assert torch.equal(flips.fraction, same.fraction)


def test_without_a_run_the_argument_is_named(shared):
    model, x = shared
    for kind in (AttentionWeights, AttentionGradient):
        with pytest.raises(
            ValueError, match=r"ran 3 times in one pass; say whose attention is meant by run=0 to run=2"
        ):
            kind(model, "attention").attribute(x)
    with pytest.raises(ValueError, match="run=0 to run=2"):
        attention_erasure(model, "attention", x)


@pytest.mark.parametrize(
    ("run", "error", "words"),
    [
        (3, ValueError, "ran 3 times in a pass, so that run must be below 3"),
        (-4, ValueError, "so that run must be -3 or above"),
        ("last", TypeError, "run must be an integer"),
        (True, TypeError, "run must be an integer"),
        (1.0, TypeError, "run must be an integer"),
    ],
)
def test_runs_that_there_are_not(shared, run, error, words):
    model, x = shared
    before = state_of(model)
    for call in (
        lambda: AttentionWeights(model, "attention").attribute(x, run=run),
        lambda: AttentionGradient(model, "attention").attribute(x, 0, run=run),
        lambda: attention_erasure(model, "attention", x, run=run),
    ):
        with pytest.raises(error, match=words):
            call()
    words = "run must be 0 or above, not -4: which run" if run == -4 else words
    with pytest.raises(error, match=words), erase_attention(model, "attention", 0, run=run):
        model(x)
    assert state_of(model) == before


def test_the_pass_ends_with_the_run_that_is_read(shared):
    model, x = shared
    blocks = []

    def after(x, block):
        blocks.append(block)
        return x

    attribution = AttentionWeights(model, "attention")
    for run, expected in ((0, []), (1, [0]), (-1, [0, 1, 2, 0, 1])):
        blocks.clear()
        attribution.attribute(x, (after,), run=run)
        assert blocks == expected
    blocks.clear()
    AttentionGradient(model, "attention").attribute(x, 0, (after,), run=0)
    assert blocks == [0, 1, 2]


def test_a_pass_that_ends_early_leaves_nothing(shared):
    model, x = shared
    plain, before = model(x), state_of(model)
    AttentionWeights(model, "attention").attribute(x, run=1)
    assert state_of(model) == before
    assert torch._C._len_torch_function_stack() == 0
    assert torch.is_grad_enabled() and torch.equal(model(x), plain)


def test_a_model_does_not_take_the_end_of_the_pass_for_an_error_of_its_own():
    class Careful(Classifier):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                raise AssertionError("taken for an error") from None

    class Careless(Classifier):
        def forward(self, x):
            try:
                return super().forward(x)
            except BaseException:
                return x.sum((1, 2))

    for kind in (Careful, Careless):
        model, x = kind(SelfAttention("softmax")).double().eval(), normal(N, T, E)
        read = AttentionWeights(model, "attention").attribute(x, run=0)
        assert torch.equal(read, AttentionWeights(model, "attention").attribute(x))


def test_a_layer_that_raises_after_its_attention_is_heard():
    class Raises(SelfAttention):
        def forward(self, x):
            super().forward(x)
            raise KeyError("by itself")

    model = Classifier(Raises("softmax")).double()
    with pytest.raises(KeyError, match="by itself"):
        AttentionWeights(model, "attention").attribute(normal(N, T, E), run=0)


def test_an_erased_model_that_was_read_within_goes_on():
    # The pass that is read ends within the modules that erasing follows.
    for run in (None, 0):
        model, (x, *_) = case("softmax")
        with erase_attention(model, "attention", 0, run=run):
            expected = model(x)
            weights = AttentionWeights(model, "attention").attribute(x, run=0)
            assert bool((weights[:, 0] == 0).all())
            assert torch.equal(model(x), expected)
            assert_close(model(x[:2]), expected[:2])


@pytest.mark.parametrize("run", [None, 0])
def test_an_interrupt_in_the_layer_is_over_with_its_pass(run):
    class After(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = SelfAttention("softmax"), SelfAttention("sdpa")

        def forward(self, x):
            return self.other(self.one(x))

    def interrupt(*_):
        raise KeyboardInterrupt

    model, x = Classifier(After()).double().eval(), normal(N, T, E)
    with erase_attention(model, "attention.other", 0, run=run):
        expected = model(x)
        handle = model.attention.other.o.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
        handle.remove()
        assert torch.equal(model(x), expected)  # where the other attention runs first


def test_a_layer_with_several_attention_calls_in_the_run():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = SelfAttention("softmax"), SelfAttention("sdpa")

        def forward(self, x):
            return self.other(self.one(x))

    model = Classifier(Both()).double()
    with pytest.raises(ValueError, match="runs attention more than once"):
        AttentionWeights(model, "attention").attribute(normal(N, T, E), run=0)


def test_erasing_a_run_that_is_checkpointed_is_refused():
    class Checkpointed(Shared):
        def forward(self, x):
            for _ in range(RUNS):
                x = x + torch.utils.checkpoint.checkpoint(self.attention, x, use_reentrant=False)
            return self.head(x.mean(1))

    model, x = Checkpointed().double(), normal(N, T, E)
    with erase_attention(model, "attention", 0, run=1):
        output = model(x).sum()
        with pytest.raises(ValueError, match="turn activation checkpointing off"):
            output.backward()


def test_names_of_a_module_that_several_blocks_have():
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True)
    other = nn.TransformerEncoderLayer(E, H, 16, batch_first=True)
    other.self_attn = layer.self_attn
    model, x = nn.Sequential(layer, other).eval(), torch.randn(N, T, E)
    second = AttentionWeights(model, "1.self_attn").attribute(x, run=1, query="all")
    y = layer(x)
    assert_close(second, layer.self_attn(y, y, y)[1].detach())
    assert torch.equal(second, AttentionWeights(model, "1").attribute(x, query="all"))  # the block runs once


def test_a_decoder_that_goes_step_by_step():
    class Decoder(nn.Module):
        """Each state attends to those before it, one step after the other."""

        def __init__(self):
            super().__init__()
            self.attention, self.head = SelfAttention("softmax, without heads"), nn.Linear(E, 3)

        def forward(self, x):
            states = x[:, :1]
            for step in range(1, x.shape[1]):
                states = torch.cat([states, x[:, step : step + 1] + self.attention(states)[:, -1:]], 1)
            return self.head(states[:, -1])

    model, x = Decoder().double().eval(), normal(N, T, E)
    for run in range(T - 1):
        weights = AttentionWeights(model, "attention").attribute(x, query=-1, run=run)
        assert weights.shape == (N, run + 1)
    states = x[:, :1]
    for step in range(1, T):
        one = weights_by_hand_of(model.attention, states)
        states = torch.cat([states, x[:, step : step + 1] + model.attention(states)[:, -1:]], 1)
    assert_close(weights, one[:, 0, -1])


def weights_by_hand_of(attention, x):
    calls = []
    attention.by_hand(lambda w: calls.append(w.detach()) or w, x)
    return calls[0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_albert(implementation):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
    config = transformers.AlbertConfig(vocab_size=50, embedding_size=8, attn_implementation=implementation, **size)
    model = transformers.AlbertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    ids, words = torch.tensor([[7, 8, 9, 10], [3, 4, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention"
    weights = [AttentionWeights(model, layer).attribute(ids, words, run=run, **EVERY) for run in range(3)]
    with torch.no_grad(), erase_attention(model, layer, 1, run=2):
        erased = model(ids, words).logits
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids, words, output_attentions=True).attentions
    for run in range(3):
        assert_close(weights[run], expected[run])
    module = model.get_submodule(layer)
    with torch.no_grad(), erase_attention(lambda *a: model(*a), module, 1, run=2):
        assert_close(model(ids, words).logits, erased)
    assert not torch.allclose(erased, model(ids, words).logits)
