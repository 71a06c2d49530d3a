"""The ledger against baselines: what each token adds to the baselines' logit."""

import pytest
import torch
from torch.testing import assert_close

from captum_density.attr import CompleteDeepLift, LogitLedger
from tests.attr.language_models import language_model, padded, prompts

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return language_model("gpt2")


def seeded():
    return torch.Generator().manual_seed(3)


def test_shares_are_those_of_complete_deep_lift_and_the_rest_is_the_baseline(model):
    ids, table = prompts(2, 5), model.get_input_embeddings()
    ledger = LogitLedger(model).attribute(ids, targets=[7, 9], baselines=4)
    x, starts = (table(t).detach() for t in (ids, torch.full_like(ids, 4)))

    def logits(x):
        return model(inputs_embeds=x).logits[:, -1]

    expected = CompleteDeepLift(logits).attribute(x, starts, target=torch.tensor([7, 9]))
    assert_close(ledger.inputs, expected.sum(2))
    base = logits(starts).detach()[[0, 1], [7, 9]]
    assert_close(ledger.by_module()["baseline"][:, 1], base)
    assert_close(ledger.table()[:, 0, -1, 1], base)
    assert_close(ledger.total(), logits(x).detach()[[0, 1], [7, 9]])


@pytest.mark.parametrize("halves", [0, 2])
def test_forms_of_baselines(model, halves):
    ids, table = prompts(2, 5), model.get_input_embeddings()
    forms = [4, torch.full((5,), 4), torch.full((2, 5), 4), table.weight[4].detach(), table.weight[4].detach().numpy()]
    ledgers = [
        LogitLedger(model).attribute(ids, baselines=form, halves=halves, generator=seeded(), log_prob=True, contrast=3)
        for form in forms
    ]
    for ledger in ledgers[1:]:
        assert_close(ledger.table(), ledgers[0].table())
    assert float(ledgers[0].gap().max()) < 1e-13


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_equal_single_rows_and_continuations_single_calls(model, side):
    method, ids, lengths = LogitLedger(model), prompts(2, 6), [6, 4]
    x, mask = padded(ids, lengths, side)
    options = {"baselines": 4, "halves": 1}
    together = method.attribute(x, attention_mask=mask, generator=seeded(), **options)
    for i, length in enumerate(lengths):
        alone = method.attribute(ids[i : i + 1, :length], generator=seeded(), **options)
        assert_close(together.inputs[i, mask[i].bool()], alone.inputs[0])
        assert not together.inputs[i, ~mask[i].bool()].any()
    answer = method.attribute(ids, targets=slice(4, None), baselines=4)
    single = method.attribute(ids[1:, :5], targets=int(ids[1, 5]), baselines=4)
    assert_close(answer[3].inputs[0, :5], single.inputs[0])


def test_halves_are_the_mean_over_ways(model):
    ids = prompts(1, 2)  # of two tokens one half is one token, so that ways are both orders
    x = model.get_input_embeddings()(ids).detach()
    blank = model.get_input_embeddings().weight[4].detach().expand_as(x)
    first, second = (torch.where(torch.tensor(on)[None, :, None], x, blank) for on in ([True, False], [False, True]))

    def f(x):
        return model(inputs_embeds=x).logits[0, -1, 7].detach()

    one, ways = (LogitLedger(model).attribute(ids, targets=7, baselines=4, halves=halves) for halves in (0, 1))
    shapley = torch.stack([f(first) - f(blank) + f(x) - f(second), f(second) - f(blank) + f(x) - f(first)]) / 2
    assert_close(ways.inputs[0], (one.inputs[0] + shapley) / 2)


def test_an_encoder_decoder_has_baselines_for_both():
    model, ids = language_model("t5"), prompts(2, 5)
    both = LogitLedger(model).attribute(ids, targets=7, baselines=(4, None), halves=1)
    assert both.inputs.shape == (2, 6)
    assert not both.inputs[:, -1].any()
    assert float(both.gap().max()) < 1e-6


@pytest.mark.parametrize(
    ("rules", "options", "remedy"),
    [
        ("libragrad", {"baselines": 4}, "leave out baselines, or rules"),
        (None, {"halves": 2}, "pass baselines"),
        (None, {"baselines": 4, "halves": -1}, "0 or more"),
        (None, {"baselines": (4, 4)}, "one for each of 1 inputs"),
        (None, {"baselines": torch.zeros(3, dtype=torch.int64)}, "ids of L = 5"),
        (None, {"baselines": torch.zeros(3)}, "broadcast"),
    ],
)
def test_refused(model, rules, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        LogitLedger(model, rules=rules).attribute(prompts(2, 5), **options)


@pytest.mark.cuda
def test_on_a_device(model):
    ids = prompts(2, 5)
    expected = LogitLedger(model).attribute(ids, targets=7, baselines=4, halves=1, generator=seeded())
    own = language_model("gpt2").to("cuda")
    ledger = LogitLedger(own).attribute(ids.cuda(), targets=7, baselines=4, halves=1, generator=seeded())
    assert ledger.inputs.is_cuda
    assert_close(ledger.table().cpu(), expected.table())
