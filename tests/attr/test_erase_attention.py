"""Erased attention is zero, the rest is renormalised, and the model is as it was."""

import itertools
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import erase_attention
from tests.attr.test_attention import (
    CASES,
    HUGGING_FACE,
    IDS,
    WORDS,
    Classifier,
    H,
    MultiHead,
    N,
    Pooling,
    SelfAttention,
    T,
    Twice,
    case,
    hugging_face,
    normal,
    tolerance,
    unchanged,
    weights_by_hand,
)


def renormalised(erased):
    """alpha_j over the sum of those kept; a query that attended to nothing keeps doing so."""

    def change(weights):
        kept = weights.masked_fill(erased, 0)
        return kept / kept.sum(-1, keepdim=True).clamp_min(1e-300)

    return change


def leaving_one(erased, weights):
    """The mask without those that would leave a query nothing to attend to."""
    left = (weights.masked_fill(erased, 0) > 0).any(-1, keepdim=True) | ~(weights > 0).any(-1, keepdim=True)
    return erased & left


@pytest.mark.parametrize("name", CASES)
def test_erasing_is_what_it_is_by_hand(name):
    model, (x, *args) = case(name)
    weights = weights_by_hand(model, (x, *args))
    positions = weights.shape[-1] - {"multi-head, zero attention": 1, "multi-head, bias of keys": 2}.get(name, 0)
    plain = model(x, *args)
    for _ in range(3):
        erased = torch.rand(N, *weights.shape[1:3], positions) < 0.4
        erased = leaving_one(F.pad(erased, (0, weights.shape[-1] - positions)), weights)
        with erase_attention(model, "attention", erased):
            output = model(x, *args)
        assert_close(output, model.by_hand(renormalised(erased), x, *args), **tolerance(name))
        assert torch.equal(model(x, *args), plain)
        assert not torch.allclose(output, plain)


@settings(max_examples=60)
@given(st.data())
def test_positions_queries_and_heads_in_every_form(data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    model, (x, *args) = case(
        data.draw(st.sampled_from(["softmax, folded", "sdpa, scale", "sdpa, bias", "multi-head, sequence first"]))
    )
    lists = st.lists(st.integers(-T, T - 1), max_size=2)
    positions = data.draw(
        st.integers(-T, T - 1)
        | lists
        | lists.map(tuple)
        | st.lists(st.integers(-T, T - 1), min_size=N, max_size=N).map(torch.tensor)
        | st.integers(0, 3).map(lambda count: torch.randint(-T, T, (N, count)))
        | st.integers(0, 2).map(lambda count: torch.rand(T).argsort() < count)
        | st.integers(0, 2).map(lambda count: torch.rand(N, T).argsort(1) < count)
        | st.just(None).map(lambda _: torch.rand(N, H, T, T).argsort(-1) < 2)
        | st.just(None).map(lambda _: torch.rand(N, 1, T, T).argsort(-1) < 2)
    )
    query = data.draw(st.none() | st.integers(-T, T - 1))
    heads = data.draw(
        st.none() | st.integers(-H, H - 1) | st.lists(st.integers(-H, H - 1), max_size=3) | st.just(()) | st.just((1,))
    )
    by_hand = torch.zeros(N, H, T, T, dtype=torch.bool)
    for n, h, q, p in itertools.product(range(N), range(H), range(T), range(T)):
        if isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
            shape = {1: (1, 1, 1, -1), 2: (N, 1, 1, -1)}.get(positions.ndim, positions.shape)
            here = bool(positions.view(shape).expand(N, H, T, T)[n, h, q, p])
        else:
            row = positions[n].reshape(-1).tolist() if isinstance(positions, torch.Tensor) else positions
            here = p in [i % T for i in ([row] if isinstance(row, int) else row)]
        chosen = [heads] if isinstance(heads, int) else heads
        by_hand[n, h, q, p] = (
            here and (query is None or q == query % T) and (chosen is None or h in [i % H for i in chosen])
        )
    with erase_attention(model, "attention", positions, query=query, heads=heads):
        output = model(x, *args)
    assert_close(output, model.by_hand(renormalised(by_hand), x, *args))


@pytest.mark.parametrize("name", CASES)
def test_erasing_nothing_changes_nothing_to_the_last_bit(name):
    model, (x, *args) = case(name)
    plain = model(x, *args)
    empty = torch.zeros(N, 0, dtype=torch.long)
    for positions, heads in (([], None), (empty, None), (torch.zeros(T, dtype=torch.bool), None), (0, []), (0, ())):
        with erase_attention(model, "attention", positions, heads=heads):
            assert torch.equal(model(x, *args), plain)
    # Of one example alone: those of the others are as they were, where the kernel is the same.
    only_first = torch.zeros(N, T, dtype=torch.bool)
    only_first[0, T - 1] = True
    with erase_attention(model, "attention.mha" if "multi-head" in name else "attention", _fit(only_first, model, x)):
        output = model(x, *args)
    assert not torch.equal(output[0], plain[0])
    same = "softmax" in name
    assert_close(output[1:], plain[1:], rtol=0 if same else 1e-10, atol=0 if same else 1e-12)


def _fit(mask, model, x):
    inner = model.attention
    more = inner.ends(x)[1].shape[1] - T if isinstance(inner, MultiHead) else 0
    if isinstance(inner, MultiHead):
        more += int(inner.mha.bias_k is not None) + int(inner.mha.add_zero_attn)
    return F.pad(mask, (0, more))


@pytest.mark.parametrize("name", ["softmax, without heads", "sdpa, without heads", "pooling: (T, N): F.softmax"])
def test_erasing_is_deleting_where_positions_meet_only_in_attention(name):
    # The erased position's own query is another matter, so it is left out of the mean.
    model, (x, *_) = case(name)
    if name.startswith("pooling"):
        model.gru = Each().double()
        with erase_attention(model, "attention", 2):
            output = model(x)
        assert_close(output, model(torch.cat([x[:, :2], x[:, 3:]], 1)))
        return
    with erase_attention(model.attention, "", 2):
        output = model.attention(x)
    kept = torch.cat([x[:, :2], x[:, 3:]], 1)
    assert_close(torch.cat([output[:, :2], output[:, 3:]], 1), model.attention(kept))


class Each(nn.Module):
    """Of each step by itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 6)

    def forward(self, x):
        return torch.tanh(self.linear(x)), None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name, implementation):
    model, layer = hugging_face(name, implementation)
    masked, _ = hugging_face(name, implementation)

    def call(model, words):
        with torch.no_grad():
            return model(input_ids=IDS, attention_mask=words).logits

    plain = call(model, WORDS)
    with erase_attention(model, layer, 1):
        output = call(model, WORDS)
        more = call(model, WORDS)
    assert torch.equal(output, more) and not torch.allclose(output, plain)
    assert torch.equal(call(model, WORDS), plain)
    if name in ("bert", "distilbert"):
        # In every layer, it is the model's own attention mask.
        without = WORDS.clone()
        without[:, 1] = 0
        layers = layer.replace("1", "0", 1), layer
        with erase_attention(model, layers[0], 1), erase_attention(model, layers[1], 1):
            output = call(model, WORDS)
        assert_close(output, call(masked, without), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("grad", [True, False])
def test_a_transformer_encoder_with_padding_in_eval_mode(grad):
    layer = nn.TransformerEncoderLayer(8, H, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(N, T, 8)
    padding = ~torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    more = padding.clone()
    more[:, 1] = True
    with torch.set_grad_enabled(grad):
        plain = model(x, src_key_padding_mask=padding)
        with erase_attention(model, "layers.0.self_attn", 1), erase_attention(model, "layers.1.self_attn", 1):
            output = model(x, src_key_padding_mask=padding)
        assert torch.equal(model(x, src_key_padding_mask=padding), plain)
        expected = model.train()(x, src_key_padding_mask=more) if grad else None
    model.eval()
    if grad:
        layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        assert layers
        for module in layers:
            module.p = 0.0
        for each in model.layers:
            each.self_attn.dropout = 0.0
        expected = model.train()(x, src_key_padding_mask=more)
        assert_close(output[~more], expected[~more], rtol=1e-4, atol=1e-5)
    else:
        assert_close(output[~more], model(x, src_key_padding_mask=more)[~more], rtol=1e-4, atol=1e-5)


# Several at once, gradients, modes and wrappers.


@pytest.mark.parametrize("name", ["softmax, folded", "sdpa", "sdpa, bias", "sdpa, causal", "multi-head, both"])
def test_the_same_layer_twice(name):
    model, (x, *args) = case(name)
    with erase_attention(model, "attention", 1), erase_attention(model, "attention", [3], query=4):
        both = model(x, *args)
    erased = torch.zeros(N, H, T, T, dtype=torch.bool)
    erased[..., 1] = True
    erased[:, :, 4, 3] = True
    assert_close(both, model.by_hand(renormalised(erased), x, *args))
    with (
        pytest.raises(ValueError, match="all positions that query 0 of example 0 attends to are erased"),
        erase_attention(model, "attention", [0, 1, 2]),
        erase_attention(model, "attention", [3, 4]),
    ):
        model(x, *args)
    assert_close(model(x, *args), model.by_hand(unchanged, x, *args))


def test_two_layers_at_once():
    model, x = Classifier(Twice()).double().eval(), normal(N, T, 8)
    one, other = model.attention.one, model.attention.other
    first, second = torch.rand(2, N, H, T, T).argsort(-1) < 2
    with erase_attention(model, one, first), erase_attention(model, "attention.other", second):
        output = model(x)
    expected = one.by_hand(renormalised(first), x) + other.by_hand(renormalised(second), x)
    assert_close(output, model._logits(expected))


@pytest.mark.parametrize("name", ["softmax", "sdpa, float mask", "sdpa, bias", "sdpa, grouped", "multi-head, both"])
def test_gradients_through_an_erased_model(name):
    model, (x, *args) = case(name)
    erased = leaving_one(torch.rand(N, H, T, T) < 0.4, weights_by_hand(model, (x, *args)))
    x.requires_grad_()
    leaves = [
        x,
        *(p for p in model.parameters() if name == "sdpa, bias" or p is not getattr(model.attention, "bias", 0)),
    ]
    with erase_attention(model, "attention", erased):
        gradients = torch.autograd.grad(model(x, *args)[:, 0].sum(), leaves)
    expected = torch.autograd.grad(model.by_hand(renormalised(erased), x, *args)[:, 0].sum(), leaves)
    for f, e in zip(gradients, expected, strict=True):
        assert_close(f, e)


def test_gradients_by_a_learned_mask_of_multi_head_attention():
    model, (x, masks) = case("multi-head, float mask")
    erased = torch.rand(N, H, T, T).argsort(-1) < 2
    mask = masks["attn_mask"].clone().requires_grad_()
    with erase_attention(model, "attention", erased):
        (gradients,) = torch.autograd.grad(model(x, {"attn_mask": mask})[:, 0].sum(), mask)
    outputs = model.by_hand(renormalised(erased), x, {"attn_mask": mask})
    assert_close(gradients, torch.autograd.grad(outputs[:, 0].sum(), mask)[0])


@pytest.mark.parametrize("name", ["softmax", "sdpa", "multi-head, padding"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(name, mode):
    model, (x, *args) = case(name)
    with erase_attention(model, "attention", 0):
        expected = model(x, *args).detach()
    with mode(), erase_attention(model, "attention", 0):
        assert_close(model(x, *args), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["softmax with a mask", "sdpa, bool mask", "multi-head, padding"])
def test_reduced_precision(name, dtype):
    model, (x, *args) = case(name)
    with erase_attention(model, "attention", 0):
        expected = model(x, *args)
        output = model.to(dtype)(x.to(dtype), *args)
    assert output.dtype == dtype
    assert_close(output.double(), expected, rtol=0.05, atol=0.02)


def test_dropout_in_training_mode():
    class Dropping(SelfAttention):
        def forward(self, x):
            q, k, v = self.project(x)
            weights = F.dropout(torch.softmax(q @ k.transpose(2, 3) / 2**0.5, -1), 0.5, self.training)
            return self.o((weights @ v).transpose(1, 2).flatten(2))

    x, erased = normal(N, T, 8), torch.rand(N, H, T, T).argsort(-1) < 2
    for model in (Classifier(Dropping("softmax")).double(), Classifier(MultiHead({"need_weights": True}, dropout=0.5))):
        model = model.double().train()

        def dropped(weights):
            return F.dropout(renormalised(erased)(weights), 0.5)

        torch.manual_seed(1)
        with erase_attention(model, "attention", erased):
            output = model(x)
        torch.manual_seed(1)
        assert_close(output, model.by_hand(dropped, x))
        assert model.training


def test_compiled_models_and_wrappers():
    for name in ("softmax", "multi-head, padding"):
        model, (x, *args) = case(name)
        with erase_attention(model, "attention", 0):
            expected = model(x, *args)
        compiled = torch.compile(model, backend="eager")
        plain = compiled(x, *args)
        for wrapped in (compiled, nn.DataParallel(model)):
            with erase_attention(wrapped, "attention", 0):
                assert_close(wrapped(x, *args), expected)
        assert_close(compiled(x, *args), plain)
        assert not torch.allclose(plain, expected)


def test_functions_and_keywords():
    model, (x, *_) = case("softmax")
    expected = model.by_hand(renormalised(torch.tensor([False, True, False, False, False])), x)
    with erase_attention(lambda x: model(x), model.attention, 1):
        assert_close(model(x), expected)
    with erase_attention(model, "attention", 1):
        assert_close(model(x=x), expected)
        assert_close(model(x[:1]), expected[:1])  # positions of all examples are of any number of them
        assert_close(model(x[:2].repeat(4, 1, 1)), expected[:2].repeat(4, 1))


def test_a_layer_that_runs_again_and_again_is_erased_each_time():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = SelfAttention("sdpa")

        def forward(self, x):
            return self.attention(self.attention(x))

    model, x = Shared().double(), normal(N, T, 8)
    erased = torch.rand(N, H, T, T).argsort(-1) < 2
    with erase_attention(model, "attention", erased):
        output = model(x)
    by_hand = lambda x: model.attention.by_hand(renormalised(erased), x)  # noqa: E731
    assert_close(output, by_hand(by_hand(x)))


def test_other_threads_are_not_changed():
    model, (x, *_) = case("softmax")
    plain, result = model(x), []
    with erase_attention(model, "attention", 0):
        thread = threading.Thread(target=lambda: result.append(model(x)))
        thread.start()
        thread.join()
        erased = model(x)
    assert torch.equal(result[0], plain) and not torch.allclose(erased, plain)


def test_another_thread_that_is_still_at_work():
    model, (x, *_) = case("softmax")
    with erase_attention(model, "attention", 0):
        expected = model(x)
    there, done, here = threading.Event(), threading.Event(), threading.get_ident()

    def wait(*_):
        if threading.get_ident() != here:
            there.set()
            done.wait(10)

    handle = model.head.register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: model(x))
    with erase_attention(model, "attention", 0):
        thread.start()
        assert there.wait(10)
        try:
            assert torch.equal(model(x), expected)
        finally:
            done.set()
            thread.join()
    handle.remove()


# What is left behind.


def state_of(model):
    modules = list(model.modules())
    return (
        [(dict(m._forward_hooks), dict(m._forward_pre_hooks), m.training, sorted(vars(m))) for m in modules],
        [(id(p), p.requires_grad, p.grad, p._version) for p in model.parameters()],
    )


@pytest.mark.parametrize("name", ["softmax", "sdpa, grouped", "multi-head, both", "pooling: (N, T): F.softmax"])
@pytest.mark.parametrize("where", ["nowhere", "in the context", "in the model", "before the layer", "all erased"])
def test_the_model_is_as_it_was(name, where):
    model, (x, *args) = case(name)
    args = [] if name.startswith("pooling") else args  # of all one length
    plain, before, random_state = model(x, *args), state_of(model), torch.get_rng_state()
    handle = None
    error = {"nowhere": None, "all erased": ValueError}.get(where, KeyError)
    if where in ("in the model", "before the layer"):
        at = model.head if where == "in the model" else model.attention

        def fail(*_):
            raise KeyError(where)

        handle = at.register_forward_pre_hook(fail)
    with (
        pytest.raises(error) if error else nullcontext(),
        erase_attention(model, "attention", range(T) if where == "all erased" else 0),
    ):
        model(x, *args)
        if where == "in the context":
            raise KeyError(where)
    if handle is not None:
        handle.remove()
    assert state_of(model) == before
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model(x, *args), plain)


def test_what_raised_within_can_be_run_again_within():
    model, (x, *_) = case("softmax")
    with erase_attention(model, "attention", 0):
        expected = model(x)
        with pytest.raises(RuntimeError):
            model(x[:, :, :3])
        assert torch.equal(model(x), expected)
        assert_close(model(x[:2]), expected[:2])  # whose number is read anew


# What is refused.


@pytest.mark.parametrize("name", CASES)
def test_all_positions_erased(name):
    model, (x, *args) = case(name)
    keys = _fit(torch.ones(1, T), model, x).shape[1]
    if name in ("multi-head, zero attention", "multi-head, bias of keys"):  # which have one or two of their own
        own = 1 if "zero" in name else 2
        with erase_attention(model, "attention", range(keys - own)):
            output = model(x, *args)
        erased = torch.arange(keys) < keys - own
        assert_close(output, model.by_hand(renormalised(erased), x, *args))
        return
    with (
        pytest.raises(
            ValueError, match=r"all positions that query \d of example \d attends to are erased; leave it one"
        ),
        erase_attention(model, "attention", range(keys)),
    ):
        model(x, *args)
    if name.startswith("pooling"):  # whose examples have 5, 3 and 1
        with (
            pytest.raises(ValueError, match="query 0 of example 2 attends"),
            erase_attention(model, "attention", 0),
        ):
            model(x, *args)


@pytest.mark.parametrize("name", ["softmax with a mask", "sdpa, bool mask", "multi-head, padding"])
def test_all_that_is_no_padding_is_erased(name):
    model, (x, *args) = case(name)
    words = "query 0 of example 1 attends to"
    with pytest.raises(ValueError, match=words), erase_attention(model, "attention", [0, 1, 2]):
        model(x, *args)


@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float64).min, -torch.inf])
def test_all_that_a_mask_of_ones_own_leaves_is_erased(value):
    class Masked(Pooling):
        def scores(self, x, lengths):
            states, scores = super().scores(x, None)
            return states, scores.masked_fill(torch.arange(T) >= lengths[:, None], value)

    model, x, lengths = Masked().double(), normal(2, T, 8), torch.tensor([4, 2])
    with pytest.raises(ValueError, match="query 0 of example 1"), erase_attention(model, "attention", [0, 1]):
        model(x, lengths)
    with erase_attention(model, "attention", [0]):
        output = model(x, lengths)
    assert_close(output[1], model.head(model.scores(x, lengths)[0][1, 1]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"positions": T}, ValueError, r"positions \[5\] are not all among the 5 attended to"),
        ({"positions": [0, -6]}, ValueError, r"positions \[-6, 0\] are not all among the 5"),
        ({"positions": 1.0}, TypeError, "positions must be"),
        ({"positions": [True]}, TypeError, "positions must be an integer or integers"),
        ({"positions": ["0"]}, TypeError, "positions must be an integer or integers"),
        ({"positions": torch.ones(N)}, TypeError, r"but is \(3,\) of torch.float32"),
        ({"positions": torch.ones(N, H, T, dtype=torch.bool)}, TypeError, r"but is \(3, 4, 5\) of torch.bool"),
        ({"positions": torch.zeros(4, dtype=torch.long)}, ValueError, "positions are for 4 examples, but .* 3"),
        ({"positions": torch.ones(2, T, dtype=torch.bool)}, ValueError, "positions are for 2 examples, but .* 3"),
        ({"positions": torch.ones(H, T, dtype=torch.bool)}, ValueError, "positions are for 4 examples, but .* 3"),
        ({"positions": torch.ones(4, dtype=torch.bool)}, ValueError, r"positions of shape \(4,\) do not fit attention"),
        ({"positions": torch.ones(N, 2, T, T, dtype=torch.bool)}, ValueError, "do not fit attention of shape"),
        ({"query": T}, ValueError, r"query must be below 5"),
        ({"heads": [0, H]}, ValueError, r"heads must be below 4"),
        ({"layer": "attention.none"}, ValueError, "has no layer 'attention.none'"),
        ({"layer": "head"}, ValueError, "layer 'head' has no attention: .* There is some in 'attention'"),
        ({"layer": nn.Linear(2, 2)}, ValueError, "did not run"),
        ({"layer": 3}, TypeError, "a module of the model or its name, but is int"),
        ({"model": "model"}, TypeError, "a torch.nn.Module or a function, but is str"),
    ],
)
@pytest.mark.parametrize("name", ["softmax", "sdpa", "multi-head, float mask"])
def test_bad_arguments_are_refused(name, options, error, words):
    model, (x, *args) = case(name)
    before = state_of(model)
    options = {"model": model, "layer": "attention", "positions": 0, **options}
    if options["layer"] == "head" and "multi" in name:
        words = "There is some in 'attention.mha'"
    with pytest.raises(error, match=words), erase_attention(**options):
        model(x, *args)
    assert state_of(model) == before
    assert torch._C._len_torch_function_stack() == 0


def test_a_layer_with_several_attention_calls():
    model = Classifier(Twice()).double()
    words = (
        "'attention' runs attention more than once, first softmax in 'attention.one', then multi_head_attention_forw"
    )
    with pytest.raises(ValueError, match=words), erase_attention(model, "attention", 0):
        model(normal(N, T, 8))


def test_positions_that_attention_adds_are_not_erased():
    model, (x, *args) = case("multi-head, zero attention")
    with pytest.raises(ValueError, match="the last ones, cannot be erased"), erase_attention(model, "attention", -1):
        model(x, *args)


def test_a_query_of_each_example_is_erased():
    model, (x, *args) = case("sdpa, bias")
    own = torch.tensor([0, -1, 2])
    mask = torch.zeros(N, 1, T, T, dtype=torch.bool)
    mask[torch.arange(N), :, own, 3] = True
    with erase_attention(model, "attention", mask.expand(N, weights_by_hand(model, (x, *args)).shape[1], T, T)):
        expected = model(x, *args)
    for positions in (3, np.int64(3), torch.tensor(3), torch.full((N,), 3, dtype=torch.uint8)):
        with erase_attention(model, "attention", positions, query=own):
            assert torch.equal(model(x, *args), expected)


def test_examples_are_those_of_the_scores_where_the_model_is_given_sequences_first():
    class First(nn.Module):
        def forward(self, x):
            q = x.view(*x.shape[:2], 2, -1).permute(1, 2, 0, 3)
            return F.scaled_dot_product_attention(q, q, q)

    model, x = First(), torch.randn(5, 3, 8)
    with erase_attention(model, model, 1, query=0):
        changed = (model(x) != First()(x)).any(-1)
    assert bool(changed[:, :, 0].all()) and not bool(changed[:, :, 1:].any())
