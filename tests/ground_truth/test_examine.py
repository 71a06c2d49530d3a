"""Metrics examined: who recovers a known order passes, and who does not is told."""

import json

import pytest
import torch

from captum_density.ground_truth import METRICS, KnownFunction, examine
from tests.ground_truth.small import Small, SmallSentences


def correlation_with_the_answer(trial, attributions):
    return (trial.answer * attributions).flatten(1).sum(1)


def constant(trial, attributions):
    return torch.ones(len(attributions))


def backwards(trial, attributions):
    return -correlation_with_the_answer(trial, attributions)


@pytest.fixture(scope="module")
def examination():
    metrics = {"good": correlation_with_the_answer, "constant": constant, "backwards": backwards}
    return examine(metrics, [Small()], seeds=range(5), examples=60)


def test_who_recovers_the_order_passes(examination):
    assert examination.recovery("good", "small")[0] > 0.97 and examination.passes("good", "small")
    assert examination.recovery("constant", "small") == (0, 0, 0) and not examination.passes("constant", "small")
    assert examination.recovery("backwards", "small")[0] < -0.97 and not examination.passes("backwards", "small")


def test_an_example_alone_tells_less(examination):
    assert 0 < examination.recovery_by_example("good", "small")[0] < examination.recovery("good", "small")[0]


def test_tables_mark_who_passes(examination):
    lines = {line.split("|")[1].strip(): line for line in examination.table().splitlines()[2:]}
    assert f"{examination.recovery_by_example('good', 'small')[0]:.2f}" in examination.table(by_example=True)
    assert "**" in lines["good"] and "**" not in lines["constant"] + lines["backwards"]
    row = json.loads(json.dumps(examination.to_dict()))["rows"]["good"]["small"]
    assert row["passes"] and len(row["seeds"]) == 5 and len(row["steps"]) == 6
    assert row["steps"] == sorted(row["steps"], reverse=True)


@pytest.mark.parametrize("make", [Small, KnownFunction], ids=["mask", "effects"])
def test_degradations_move_the_answers_values_step_by_step(make):
    class Quick(make):
        def train(self, seed=0):
            return self.network().eval().requires_grad_(False)

    seen = []
    examine({"spy": lambda trial, a: seen.append((trial, a))}, [Quick()], seeds=[0], examples=40, steps=5)
    maps = torch.stack([attributions for _, attributions in seen])
    largest = seen[0][0].answer.abs().amax(1, keepdim=True)
    assert ((maps[0] - seen[0][0].answer).abs() <= 0.011 * largest).all()  # the answer, its ties broken
    assert torch.equal(maps.sort(2)[0], maps[:1].sort(2)[0].expand_as(maps))  # the same values
    moved = [(maps[step] != maps[0]).double().mean().item() for step in range(5)]
    assert moved[0] == 0 and moved == sorted(moved) and moved[-1] > 0.1
    # At last, what decides has no more than its share.
    decides = seen[0][0].decides
    share = (maps.abs() * decides).flatten(1).sum(1) / maps.abs().flatten(1).sum(1)
    assert share[0] > 0.9 and abs(share[-1] - decides.double().mean()) < 0.15


def test_finished_examinations_are_not_made_again(tmp_path):
    options = {"tasks": [Small()], "seeds": [0], "examples": 4, "store": tmp_path}
    first = examine(["relevance mass", "effects"], **options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    again = examine(["relevance mass", "effects", "deletion"], **options)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert torch.equal(again.values["relevance mass"]["small"], first.values["relevance mass"]["small"])
    assert again.values["effects"] == {}  # where no effects are known


def test_metrics_of_the_table_are_examined():
    examination = examine(METRICS, [Small()], seeds=[0], examples=3)
    for name, rows in examination.values.items():
        assert name == "effects" or rows["small"].shape == (1, 6, 3)


class Tiny(Small):
    name = "tiny"
    training_examples = 100


@pytest.fixture(scope="module")
def retrained():
    return examine(["diff_roar", "roar", "f_fidelity"], [Tiny()], seeds=[0], examples=3, steps=3)


def test_metrics_that_retrain_judge_maps_of_a_data_set(retrained):
    values = {name: rows["tiny"] for name, rows in retrained.values.items()}
    assert all(each.shape == (1, 3, 500) for each in values.values())
    # A network that is given the half with the signal, or the other.
    assert values["diff_roar"][0, 0].mean() > 0.2 > 0.1 > values["diff_roar"][0, -1].mean().abs()
    assert values["f_fidelity"][0, 0].mean() > 0.1 > values["f_fidelity"][0, -1].mean().abs()
    assert values["roar"].max() <= 0 and values["roar"][0, 0].mean() > values["roar"][0, -1].mean()


def test_retraining_on_images_and_tokens_is_left_out():
    assert examine(["diff_roar"], [SmallSentences()], seeds=[0], examples=2, steps=3).values["diff_roar"] == {}


@pytest.mark.cuda
def test_metrics_that_retrain_do_so_beside_a_gpu(retrained):
    there = examine(["diff_roar", "f_fidelity"], [Tiny()], seeds=[0], examples=3, steps=3, device="cuda")
    for name, rows in there.values.items():
        assert (rows["tiny"] - retrained.values[name]["tiny"]).mean().abs() < 0.05


def test_fewer_than_three_steps_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        examine(tasks=[Small()], steps=2)
