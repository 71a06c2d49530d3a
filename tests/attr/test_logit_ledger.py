"""The ledger of a logit: targets, sums, words, and what it looks like."""

import dataclasses
import json
import re
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient
from torch import nn
from torch.testing import assert_close

from captum_density._model.calls import map_tensors
from captum_density.attr import FullGrad, LogitLedger
from captum_density.rules import BalancedGradients
from tests.attr.language_models import language_model, padded, prompts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return language_model("gpt2")


@pytest.fixture(scope="module")
def ids():
    return prompts(2, 6)


@pytest.fixture(scope="module")
def ledger(model, ids):
    return LogitLedger(model).attribute(ids, targets=slice(3, None))


MANY = torch.tensor([[7, 8, 9], [1, 2, 3]])


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_next_token_is_the_largest_logit_at_the_last_token(model, ids):
    x, mask = padded(ids, [6, 4], "right")
    ledger = LogitLedger(model).attribute(x, attention_mask=mask)
    logits = logits_of(model, x)[torch.arange(2), torch.tensor([5, 3])]
    assert_close(ledger.output, logits.amax(1))
    assert [t.token for t in ledger.targets] == logits.argmax(1).tolist()
    assert [t.position for t in ledger.targets] == [5, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": 7}, lambda z: z[:, -1:, 7]),
        ({"targets": [7, 9]}, lambda z: z[[0, 1], -1, [7, 9]][:, None]),
        ({"targets": MANY}, lambda z: z[:, -1].gather(1, MANY)),
        ({"positions": [1, -2]}, lambda z: z[:, [1, 4]].amax(-1)),
        ({"targets": 7, "positions": [[0], [3]]}, lambda z: z[[0, 1], [0, 3], 7][:, None]),
        ({"targets": 7, "contrast": 8}, lambda z: z[:, -1:, 7] - z[:, -1:, 8]),
        ({"targets": 7, "log_prob": True}, lambda z: z.log_softmax(-1)[:, -1:, 7]),
        (
            {"targets": 7, "log_prob": True, "contrast": [1, 2]},
            lambda z: (z[:, -1, 7] - z[[0, 1], -1, [1, 2]])[:, None],
        ),
    ],
)  # fmt: skip
def test_targets(model, ids, options, expected):
    ledger = LogitLedger(model).attribute(ids, **options)
    wanted = expected(logits_of(model, ids))
    assert_close(ledger.output, wanted.flatten())
    assert_close(ledger.total(), ledger.output)
    assert [t.row for t in ledger.targets] == [i for i in range(2) for _ in range(wanted.size(1))]


def test_all_generated_tokens_equal_one_by_one(model, ids, ledger):
    logits = logits_of(model, ids)
    assert len(ledger) == 6
    for one, (row, position) in zip(ledger, [(i, p) for i in range(2) for p in (3, 4, 5)], strict=True):
        assert_close(one.output[0], logits[row, position - 1, ids[row, position]])
        single = LogitLedger(model).attribute(ids[row : row + 1, :position], targets=int(ids[row, position]))
        table = one.table()[0]
        assert_close(table[:, :position], single.table()[0, :, :-1])
        assert not table[:, position:].any()


def test_rows_with_fewer_generated_tokens(model, ids):
    x, mask = padded(ids, [6, 4], "right")
    ledger = LogitLedger(model).attribute(x, attention_mask=mask, targets=slice(3, None))
    assert [(t.row, t.position) for t in ledger.targets] == [(0, 2), (0, 3), (0, 4), (1, 2)]
    single = LogitLedger(model).attribute(ids[1:, :4], targets=slice(3, None))
    assert_close(ledger[3].table()[0, :, :4], single.table()[0, :, :4])


def test_the_model_runs_once(model, ids):
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    try:
        LogitLedger(model).attribute(ids, targets=slice(2, None))
    finally:
        handle.remove()
    assert len(runs) == 1
    assert not any(block._forward_pre_hooks for block in model.transformer.h)


@pytest.mark.parametrize("rules", [None, "libragrad", "attnlrp"])
def test_the_input_column_is_gradient_times_input(model, ids, rules):
    embeddings = model.get_input_embeddings()(ids).detach()
    view = model if rules is None else BalancedGradients(model, rules)
    expected = InputXGradient(lambda x: view(inputs_embeds=x).logits[:, -1]).attribute(embeddings, target=5)
    ledger = LogitLedger(model, rules=rules).attribute(inputs_embeds=embeddings, targets=5)
    assert_close(ledger.inputs, expected.sum(2))
    assert_close(ledger.by_position()[:, :-1, 0], expected.sum(2))


def test_terms_are_those_of_full_grad(model, ids):
    embeddings = model.get_input_embeddings()(ids).detach()
    terms = FullGrad(lambda x: model(inputs_embeds=x).logits[:, -1]).decompose(embeddings, target=5).biases
    ledger = LogitLedger(model).attribute(ids, targets=5)
    sums = {}
    for i, term in enumerate(ledger.terms):
        sums[term.name] = sums.get(term.name, 0) + ledger.sums[:, i].sum(1)
    assert sums.keys() <= terms.keys()
    for name, own in sums.items():
        assert_close(own, terms[name].flatten(1).sum(1))


class Affine(nn.Module):
    """Of a bias at every place where one can stand."""

    def __init__(self):
        super().__init__()
        self.before, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.layers = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)])
        self.positions = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        x = self.before(x) + self.positions
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def test_biases_are_the_constants_that_operations_add():
    torch.manual_seed(0)
    model, x = Affine().double(), torch.randn(2, 5, 4).double()
    for norm in (model.layers[0][0], model.layers[1][0]):
        nn.init.normal_(norm.bias)
    balanced = LogitLedger(model, rules="libragrad").attribute(inputs_embeds=x, targets=1)
    assert balanced.layers == ["embedding", "0", "1", "final"]
    assert not balanced.table()[..., 2].any()  # all that is left are constants
    assert_close(balanced.by_layer()[:, -1, 1], model.head.bias[1].detach().expand(2))
    assert {t.name for t in balanced.terms if t.layer == 0} == {"before:linear", "add"}
    # A norm's own derivative leaves the same beta, beside what it does not carry.
    plain = LogitLedger(model).attribute(inputs_embeds=x, targets=1)
    kinds = {(t.name, t.kind) for t in plain.terms}
    assert {("layers.0.0:layer_norm", "bias"), ("layers.0.0:layer_norm", "remainder")} <= kinds
    last = [i for i, t in enumerate(plain.terms) if t.module == "layers.1.0" and t.kind == "bias"]
    through = model.layers[1][1].weight.T @ model.head.weight[1]
    assert_close(plain.sums[:, last].sum((1, 2)), (model.layers[1][0].bias @ through).detach().expand(2))


def test_sums_agree(ledger):
    table = ledger.table()
    assert table.shape == (6, 4, 7, 3)
    assert_close(ledger.by_layer(), table.sum(2))
    assert_close(ledger.by_position(), table.sum(1))
    assert_close(sum(ledger.by_module().values()), table.sum((1, 2)))
    assert_close(table.sum((1, 2, 3)), ledger.output)
    assert float(ledger.gap().max()) < 1e-12
    assert list(ledger.by_module())[:2] == ["input", "transformer"]


def test_top_cells(ledger):
    entries = ledger.top(3)[0]
    table = ledger.table()[0]
    assert [abs(e.value) for e in entries] == table.abs().flatten().sort(descending=True).values[:3].tolist()
    first = entries[0]
    kind = ("input", "bias", "remainder").index(first.kind)
    assert float(table[ledger.layers.index(first.layer), first.position, kind]) == first.value
    assert first.kind in str(first)
    with pytest.raises(ValueError, match="at least 1"):
        ledger.top(0)


class Tokenizer:
    def __init__(self, names):
        self.names = names

    def convert_ids_to_tokens(self, ids):
        return [self.names[i % len(self.names)] for i in ids]


@pytest.mark.parametrize(
    ("tokens", "words", "expected"),
    [
        (["[CLS]", "un", "##believ", "##able", "is", "[SEP]"], None, ["[CLS]", "unbelievable", "is", "[SEP]"]),
        (["<s>", "▁un", "believ", "able", "▁is", "</s>"], None, ["<s>", "unbelievable", "is", "</s>"]),
        (["Un", "believ", "able", "Ġis", "Ċ", "Ġso"], None, ["Unbelievable", "is", "Ċ", "so"]),
        (["a", "b", "c", "d", "e", "f"], None, ["a", "b", "c", "d", "e", "f"]),
        (["a", "b", "c", "d", "e", "f"], [None, 0, 0, 1, 1, None], ["a", "bc", "de", "f"]),
    ],
)
def test_words(model, tokens, words, expected):
    ledger = LogitLedger(model, tokenizer=Tokenizer(tokens)).attribute(torch.tensor([[30, 31, 32, 33, 34, 35]]))
    merged = ledger.merge(words)
    assert merged.tokens == [expected]
    assert_close(merged.by_layer(), ledger.by_layer())
    assert merged.targets[0].position == len(expected) - 1
    start = tokens.index(expected[0]) if expected[0] in tokens else 0
    assert_close(
        merged.inputs[0, 0], ledger.inputs[0, start : start + len(tokens)][: tokens_in(expected[0], tokens)].sum()
    )


def tokens_in(word, tokens):
    """How many tokens the first word has."""
    text, count = "", 0
    while text != word:
        text += tokens[count].replace("##", "").lstrip("▁Ġ")
        count += 1
    return count


def test_words_of_several_rows_are_refused(ledger):
    with pytest.raises(ValueError, match=re.escape("ledger[i].merge")):
        ledger.merge()
    with pytest.raises(ValueError, match="word_ids"):
        ledger[0].merge([0, 1])


def test_page_escapes_and_loads_nothing(model, ids):
    tokenizer = Tokenizer(["<script>alert(1)</script>", "a&b", '"'])
    ledger = LogitLedger(model, tokenizer=tokenizer).attribute(ids)
    html = ledger.to_html()
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "a&amp;b" in html
    assert not re.search(r"https?:|src=|href=|url\(|@import", html)
    assert html.count("<section>") == 2
    assert ledger._repr_html_() == html


def test_dictionary_is_json(ledger):
    told = json.loads(json.dumps(ledger.to_dict()))
    assert told["layers"] == ["embedding", "0", "1", "final"] and told["kinds"] == ["input", "bias", "remainder"]
    one = told["ledgers"][1]
    assert one["target"]["position"] == 3 and len(one["tokens"]) == 7
    assert_close(torch.tensor(one["table"], dtype=torch.float64), ledger.table()[1])


def test_picture(ledger):
    figure = ledger.plot(1)
    above, below = figure.axes[:2]
    assert_close(torch.from_numpy(above.images[0].get_array().data), ledger.table()[1].sum(2))
    assert [label.get_text() for label in above.get_yticklabels()] == ledger.layers
    heights = torch.tensor([bar.get_height() for bar in below.patches], dtype=torch.float64)
    assert_close(heights.view(3, 7).T, ledger.by_position()[1])


def test_shows_as_a_table(ledger):
    lines = repr(ledger).splitlines()
    assert len(lines) == 8 and "remainder" in lines[1] and "row 1" in lines[-1]
    long = torch.full_like(ledger.sums[:, :2, :1], -1.2345e-05)  # the widest that a number is
    terms = [next(t for t in ledger.terms if t.kind == kind) for kind in ("bias", "remainder")]
    wide = dataclasses.replace(ledger, inputs=long[:, 0], terms=terms, sums=F.pad(long, (0, 1)))
    assert repr(wide).splitlines()[2].split()[-4:-1] == [f"{-1.2345e-05:.4g}"] * 3
    assert repr(LogitLedger(nn.Linear(2, 2), rules="cp-lrp")) == "LogitLedger(Linear, rules='cp-lrp')"


def test_parts(ledger):
    assert [one.targets[0] for one in ledger] == ledger.targets
    assert ledger[-1].targets == ledger.targets[-1:] and len(ledger[1:3]) == 2
    assert ledger[torch.tensor(2)].targets == ledger.targets[2:3]
    with pytest.raises(IndexError, match="6 tokens"):
        ledger[6]


# -- models of other kinds


def test_classes_of_rows():
    model = language_model("bert")
    ids = prompts(3, 5)
    ledger = LogitLedger(model, rules="libragrad").attribute(ids, targets=[0, 1, 2])
    assert_close(ledger.output, model(ids).logits.diagonal().detach())
    assert [t.position for t in ledger.targets] == [None] * 3
    assert_close(ledger.total(), ledger.output)
    with pytest.raises(ValueError, match="leave positions out"):
        LogitLedger(model).attribute(ids, positions=1)


def test_a_continuation_of_an_encoder_decoder():
    model = language_model("t5")
    ids, answer = prompts(2, 6), torch.cat([torch.zeros(2, 1, dtype=torch.int64), prompts(2, 3, seed=1)], 1)
    ledger = LogitLedger(model, rules="libragrad").attribute(ids, decoder_input_ids=answer, targets=slice(1, None))
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=answer).logits
    assert_close(ledger.output, logits[:, :-1].gather(2, answer[:, 1:, None]).flatten())
    assert ledger.inputs.shape == (6, 10) and [t.position for t in ledger.targets] == [6, 7, 8] * 2
    assert ledger.layers[:4] == ["encoder embedding", "encoder 0", "encoder 1", "encoder final"]
    assert ledger.layers[4:] == ["decoder embedding", "decoder 0", "decoder 1", "decoder final"]
    plain = LogitLedger(model).attribute(ids, decoder_input_ids=answer)
    layers = {t.module: plain.layers[t.layer] for t in plain.terms}
    assert layers["encoder.final_layer_norm"] == "encoder final"
    assert layers["decoder.final_layer_norm"] == "decoder final"
    assert layers["decoder.block.1.layer.1.EncDecAttention"] == "decoder 1"


def test_the_start_of_an_encoder_decoder_has_its_own_position():
    ledger = LogitLedger(language_model("t5")).attribute(prompts(2, 6))
    assert ledger.inputs.shape == (2, 7)
    of_decoder = [i for i, t in enumerate(ledger.terms) if t.name.startswith("decoder")]
    assert not ledger.sums[:, of_decoder, -1].any()
    assert_close(ledger.total(), ledger.output.double(), rtol=1e-5, atol=1e-5)


def test_functions_and_modules_of_embeddings():
    torch.manual_seed(0)
    weight = torch.randn(3, 4)
    x = torch.randn(2, 5, 4)
    ledger = LogitLedger(lambda e: e @ weight.T).attribute(inputs_embeds=x, targets=1)
    assert ledger.layers == ["embedding", "final"] and not ledger.terms
    assert_close(ledger.inputs[:, -1], x[:, -1] @ weight[1])
    pooled = LogitLedger(lambda e: e.mean(1) @ weight.T + 1).attribute(inputs_embeds=x, targets=1)
    assert_close(pooled.table()[:, 1, -1, 1], torch.ones(2))  # what has no position


def test_outputs_that_autograd_does_not_keep_are_not_kept():
    head = nn.Linear(300, 3).requires_grad_(False)  # a frozen layer's input is no longer needed
    kept = []

    def gated(x):
        product = x * x.sigmoid()
        reference = weakref.ref(product)
        logits = head(product)
        del product
        kept.append(reference() is not None)
        return logits

    x = torch.randn(1, 64, 300)
    ledger = LogitLedger(gated).attribute(inputs_embeds=x, targets=[[1, 2]])
    assert kept == [False]
    assert_close(ledger.total().float(), gated(x)[0, -1, 1:])


def test_heads_that_share_keys():
    def shared(x):  # expanded, as queries of one key are in grouped attention
        heads = x[:, None].expand(-1, 2, -1, -1)
        return F.scaled_dot_product_attention(heads * torch.tensor([1.0, 2.0])[:, None, None], heads, heads).sum(1)

    ledger = LogitLedger(shared, rules="attnlrp").attribute(inputs_embeds=torch.randn(2, 5, 4), targets=1)
    assert [term.kind for term in ledger.terms] == ["remainder"]
    assert float(ledger.gap().max()) < 1e-6


def test_fully_sharded_models_are_refused(ids):
    sharded = type("FSDPModule", (nn.Linear,), {})(4, 3)  # known by its class, as PyTorch's is
    with pytest.raises(NotImplementedError, match="before that"):
        LogitLedger(sharded).attribute(inputs_embeds=torch.randn(1, 3, 4))


def test_half_precision_tells_a_norms_bias():
    model = Affine().to(torch.bfloat16)
    ledger = LogitLedger(model).attribute(inputs_embeds=torch.randn(1, 5, 4).to(torch.bfloat16), targets=1)
    assert ("layers.0.0:layer_norm", "bias") in {(term.name, term.kind) for term in ledger.terms}


def test_layers_by_name():
    model = Affine()
    assert LogitLedger(model, layers="layers").attribute(inputs_embeds=torch.randn(1, 5, 4)).layers[1:3] == ["0", "1"]
    with pytest.raises(ValueError, match="'layers'"):
        LogitLedger(model, layers="blocks")


def test_checkpointing(ids):
    plain, model = language_model("llama"), language_model("llama")
    expected = LogitLedger(plain).attribute(ids, targets=slice(4, None))
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    again = LogitLedger(model).attribute(ids, targets=slice(4, None))
    assert_close(again.table(), expected.table())
    with pytest.raises(NotImplementedError, match="gradient_checkpointing_disable"):
        LogitLedger(model, rules="libragrad").attribute(ids)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rules", [None, "libragrad"])
def test_half_precision(family, rules, ids):
    model = language_model(family).to(torch.bfloat16)
    ledger = LogitLedger(model, rules=rules).attribute(ids)
    assert ledger.inputs.dtype == torch.float32
    assert float(ledger.gap().max()) < 0.02


def test_the_cache_is_off_and_the_configuration_untouched(model, ids):
    before = model.config.to_dict()
    seen = []
    handle = model.register_forward_pre_hook(lambda m, a, k: seen.append(k["use_cache"]), with_kwargs=True)
    try:
        LogitLedger(model).attribute(ids)
    finally:
        handle.remove()
    assert seen == [False] and model.config.to_dict() == before


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "options", "error", "remedy"),
    [
        ((), {}, TypeError, "pass either input_ids or inputs_embeds"),
        ((torch.zeros(6),), {}, ValueError, r"tensor \(N, L\) of token ids"),
        (None, {"targets": "last"}, ValueError, '"next", token ids or a slice'),
        (None, {"targets": 40}, ValueError, "below 40"),
        (None, {"targets": -1}, ValueError, "at least 0"),
        (None, {"targets": [1, 2, 3]}, ValueError, "for 2 rows"),
        (None, {"targets": 0.5}, ValueError, "integers"),
        (None, {"targets": slice(0, 3)}, ValueError, "from 1 to 5"),
        (None, {"targets": slice(3, 4), "positions": 2}, ValueError, "leave positions out"),
        (None, {"positions": 6}, ValueError, "below 6"),
        (None, {"labels": torch.zeros(2, 6).long()}, ValueError, "say targets"),
        (None, {"positions": [0, 1, 2], "targets": [[1, 2], [3, 4]]}, ValueError, "as many for each row"),
        (None, {"positions": 5, "attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0]])}, ValueError, "mask is 0"),
        (None, {"attention_mask": torch.ones(2, 5)}, ValueError, "shape"),
        (None, {"attention_mask": torch.tensor([[1] * 6, [0] * 6])}, ValueError, "leave it out"),
        ((torch.zeros(2, 0, dtype=torch.int64),), {}, ValueError, "at least one token"),
        (({"input_ids": torch.zeros(2, 6)},), {}, ValueError, r"attribute\(\*\*encoding\)"),
    ],
)
def test_refused(model, ids, arguments, options, error, remedy):
    with pytest.raises(error, match=remedy):
        LogitLedger(model).attribute(*((ids,) if arguments is None else arguments), **options)


def test_a_decoder_without_a_start_token_is_asked_for():
    model, ids = language_model("t5"), prompts(2, 6)
    start, model.config.decoder_start_token_id = model.config.decoder_start_token_id, None
    with pytest.raises(ValueError, match="pass decoder_input_ids"):
        LogitLedger(model).attribute(ids)
    given = LogitLedger(model).attribute(ids, decoder_input_ids=torch.full((2, 1), start))
    assert float(given.gap().max()) < 1e-5


def test_ids_made_in_inference_mode(model, ids, ledger):
    with torch.inference_mode():
        found = LogitLedger(model).attribute(ids.clone(), targets=slice(3, None), attention_mask=torch.ones(2, 6))
        chosen = LogitLedger(model).attribute(ids.clone(), targets=torch.tensor([1, 2]), log_prob=True)
    assert_close(found.table(), ledger.table())
    assert_close(chosen.table(), LogitLedger(model).attribute(ids, targets=[1, 2], log_prob=True).table())


def test_models_without_logits_or_embeddings_are_refused(model, ids):
    with pytest.raises(TypeError, match="no logits"):
        LogitLedger(lambda inputs_embeds: {"hidden": inputs_embeds}).attribute(inputs_embeds=torch.randn(1, 2, 3))
    with pytest.raises(TypeError, match="pass inputs_embeds"):
        LogitLedger(lambda inputs_embeds: inputs_embeds).attribute(ids)


def test_a_model_that_reads_its_padding_is_said():
    model = language_model("bert")
    x, mask = padded(prompts(2, 6), [6, 3], "left")
    with pytest.warns(UserWarning, match="pad on the other side"):
        LogitLedger(model).attribute(x, attention_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LogitLedger(model).attribute(*padded(prompts(2, 6), [6, 3], "right")[:1], attention_mask=mask.flip(1))


def test_a_sum_that_is_not_met_is_refused(model, ids):
    def hooked(inputs_embeds):
        logits = model(inputs_embeds=inputs_embeds).logits
        logits.register_hook(lambda gradient: 2 * gradient)
        return logits

    with pytest.raises(RuntimeError, match="do hooks change gradients"):
        LogitLedger(hooked).attribute(inputs_embeds=model.get_input_embeddings()(ids).detach())


@pytest.mark.parametrize("options", [{}, {"baselines": 4}])
def test_a_decoder_that_classifies_answers_at_the_last_token_that_is_no_padding(options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, num_labels=3, pad_token_id=0
    )
    model, ids = transformers.GPT2ForSequenceClassification(config).double().eval(), prompts(2, 6)
    x, mask = padded(ids, [6, 4], "right")
    ledger = LogitLedger(model).attribute(x, targets=1, attention_mask=mask, **options)
    assert_close(ledger.output, model(x, attention_mask=mask).logits[:, 1].detach())
    assert_close(ledger.total(), ledger.output)
    alone = LogitLedger(model).attribute(ids[1:, :4], targets=1, **options)
    assert_close(ledger.inputs[1, :4], alone.inputs[0])
    assert not ledger.inputs[1, 4:].any()
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("rules", "options"),
    [(None, {}), ("libragrad", {}), (None, {"baselines": 4})],
    ids=["none", "libragrad", "baselines"],
)
@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_model_whose_layers_lie_on_two_devices(first, rules, options):
    model, ids = language_model("llama"), prompts(2, 6)
    expected = LogitLedger(model, rules=rules).attribute(ids, targets=7, **options)
    second = "cpu" if first == "cuda" else "cuda"
    model.to(first)
    layer = model.model.layers[1].to(second)

    def moved(tree, device):
        return map_tensors(lambda t: t.to(device), tree)

    layer.register_forward_pre_hook(lambda _, *given: moved(given, second), with_kwargs=True)
    layer.register_forward_hook(lambda _, args, output: moved(output, first))
    ledger = LogitLedger(model, rules=rules).attribute(ids.to(first), targets=7, **options)
    assert ledger.inputs.device.type == first
    assert_close(ledger.table().cpu(), expected.table())
