"""The parts of the experiment on recall, on a decoder that has not learnt; the experiment itself runs by hand."""

import json

import pytest
import torch
from torch.testing import assert_close

from tests.experiments import recall
from tests.experiments.faithfulness_tasks import Decoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder(width=8).requires_grad_(False).eval()


def test_every_ledger_is_met(model, monkeypatch):
    monkeypatch.setattr(recall, "EXAMPLES", 2)
    rows = recall.measures(model, 0, {"none": None, "libragrad": "libragrad"})
    ledgers = {name: row for name, row in rows.items() if name not in recall.BOUNDS}
    assert [name.partition(":")[0] for name in ledgers] == ["none", "none", "libragrad", "libragrad", *recall.HALVES]
    assert all(row["gap"] < 1e-12 for row in ledgers.values())
    assert all(-1 <= row["rank correlation"] <= 1 for row in rows.values())
    lines = recall.table({name: {key: [value] for key, value in row.items()} for name, row in rows.items()})
    assert lines.count("\n") == 1 + len(rows)


def test_shapley_values_sum_to_what_all_tokens_change(model):
    ids, _, _ = recall.prompts(2)
    x, answers = model.embed(ids), torch.tensor([3, 4])
    blanks = model.embed.weight[recall.BLANK].expand_as(x)
    values = recall.shapley_values(model, x, answers, torch.Generator().manual_seed(0), orders=2)
    assert_close(values.sum(1), (model(x) - model(blanks))[[0, 1], answers], rtol=1e-4, atol=1e-5)


def test_what_a_linear_model_loses_is_what_correlates():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 5.0]])
    assert recall.correlation(scores, 2 * scores + 1) == pytest.approx(1)
    assert recall.correlation(recall.ranks(scores), recall.ranks(-scores)) == pytest.approx(-1)
    assert_close(recall.ranks(scores), torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 2.0]]).double())


def test_the_results_are_of_every_rule_set():
    results = json.loads(recall.RESULTS.read_text(encoding="utf-8"))
    ledgers = [f"{rules}: {score}" for rules in recall.RULES for score in recall.SCORES]
    ledgers += [f"{name}: input" for name in recall.HALVES]
    assert list(results) == [*ledgers, *recall.BOUNDS]
    assert all(len(values) == recall.SEEDS for row in results.values() for values in row.values())
    for name in ledgers:
        assert max(results[name]["gap"]) < 1e-6
        if name.endswith(": input") and not name.startswith("none"):
            assert results[name]["on top"] == [1.0] * recall.SEEDS
    for name in ("against blanks, 1 half: input", "against blanks, 4 halves: input"):
        assert min(results[name]["rank correlation"]) >= 0.7
