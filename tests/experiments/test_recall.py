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
    assert [name.partition(":")[0] for name in rows] == ["none", "none", "libragrad", "libragrad"]
    assert all(row["gap"] < 1e-12 and -1 <= row["rank correlation"] <= 1 for row in rows.values())
    lines = recall.table({name: {key: [value] for key, value in row.items()} for name, row in rows.items()})
    assert lines.count("\n") == 5


def test_what_a_linear_model_loses_is_what_correlates():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 5.0]])
    assert recall.correlation(scores, 2 * scores + 1) == pytest.approx(1)
    assert recall.correlation(recall.ranks(scores), recall.ranks(-scores)) == pytest.approx(-1)
    assert_close(recall.ranks(scores), torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 2.0]]).double())


def test_the_results_are_of_every_rule_set():
    results = json.loads(recall.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == [f"{rules}: {score}" for rules in recall.RULES for score in recall.SCORES]
    for name, row in results.items():
        assert all(len(values) == recall.SEEDS for values in row.values())
        assert max(row["gap"]) < 1e-6
        if name.endswith(": input") and not name.startswith("none"):
            assert row["on top"] == [1.0] * recall.SEEDS
