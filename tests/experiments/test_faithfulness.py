"""The parts of the study of faithfulness, on models whose answers are known; the study itself runs by hand."""

import csv
import io
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

from captum_density.softmax_shift import CenteredLogits
from tests.experiments import faithfulness, faithfulness_tasks
from tests.experiments.faithfulness import METHODS
from tests.experiments.faithfulness_tasks import Task

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor", "ignore:Setting forward")  # Captum's


class Sum(nn.Module):
    """The first logit is the sum of the inputs, the second its negative."""

    def forward(self, x):
        total = x.flatten(1).sum(1)
        return torch.stack([total, -total], 1)


def tokens(values):
    """A task of one number a token, of which the model takes the sum; a token that is away is 0."""
    inputs = torch.tensor(values)[..., None]
    return Task(CenteredLogits(Sum()), inputs, torch.zeros(1), torch.zeros(inputs.shape[1], dtype=torch.bool))


@pytest.fixture
def recall(monkeypatch):
    monkeypatch.setattr(faithfulness_tasks, "EXAMPLES", 2)
    monkeypatch.setattr(faithfulness_tasks, "train", lambda model, steps, batch: model.requires_grad_(False).eval())
    return faithfulness_tasks.recall(seed=0)


def test_the_gap_of_a_sum_is_what_its_largest_terms_hold_longer():
    task, target = tokens([[1.0, 0.0]]), torch.tensor([0])
    # Tenths of two tokens: none at 0.2 and below, both at 0.8 and above, half to even: one from 0.3 to 0.7.
    assert faithfulness.gap(task, torch.tensor([[2.0, 1.0]]), target).item() == pytest.approx(5 / 9)
    assert faithfulness.gap(task, torch.tensor([[1.0, 2.0]]), target).item() == pytest.approx(-5 / 9)


def test_fixed_units_are_never_replaced():
    task = tokens([[5.0, 1.0, 0.0]])
    task = replace(task, fixed=torch.tensor([[True, False, False]]))
    assert faithfulness.gap(task, torch.tensor([[9.0, 2.0, 1.0]]), torch.tensor([0])).item() == pytest.approx(5 / 9)


def test_units_of_images_are_patches():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    task = Task(CenteredLogits(Sum()), image, torch.full((), -1.0), torch.zeros(4, dtype=torch.bool))
    black = task.without(torch.tensor([[False, True, False, False]]))
    assert torch.equal(black == -1, torch.arange(8)[None, :].ge(4) & torch.arange(8)[:, None].lt(4) & (image >= 0))
    assert torch.equal(task.per_unit((black == -1).float()), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_every_method_ranks_the_tokens_of_a_sum(monkeypatch):
    sized = [name for name in METHODS if name not in ("random", "Saliency", "SmoothGrad, 20 samples")]
    monkeypatch.setattr(faithfulness, "METHODS", {name: METHODS[name] for name in sized})
    task = replace(tokens([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]), deciding=torch.tensor([0, 2]))
    rows = faithfulness.measure(task)
    assert set(rows) == set(sized) - {"attention", "LayerGradCam"}
    for row in rows.values():
        assert torch.equal(row["gap"], rows["occlusion"]["gap"])
        assert (row["gap"] > 0).all()
        assert row["on top"].tolist() == [1, 1]


def test_methods_run_on_the_decoder_and_their_rows_are_summed_up(recall, monkeypatch):
    few = "random", "attention", "occlusion", "IntegratedGradients, 100 steps", "InputXGradient, attnlrp"
    monkeypatch.setattr(faithfulness, "METHODS", {name: METHODS[name] for name in few})
    rows = faithfulness.measure(recall)
    assert set(rows) == set(few)
    assert all(row["gap"].shape == (2,) and row["gap"].isfinite().all() for row in rows.values())
    summary = faithfulness.summary([rows, rows])
    assert summary["attention"]["on top"] == pytest.approx(float(rows["attention"]["on top"].mean()))
    assert summary["occlusion"]["gap"][0] == pytest.approx(float(rows["occlusion"]["gap"].mean()), abs=1e-4)
    assert "over occlusion" not in summary["occlusion"]
    lines = faithfulness.table({"recall": summary}, faithfulness.gap_cell).splitlines()
    assert len(lines) == 2 + len(few)
    assert lines[2].startswith("| random | {:.2f} [".format(summary["random"]["gap"][0]))


def test_a_difference_from_a_rival_is_that_on_the_same_examples():
    def rows(shift):
        gaps = torch.arange(4.0)
        return {name: {"gap": gaps + shift * (name == "random"), "seconds": gaps} for name in METHODS}

    summary = faithfulness.summary([rows(0.5), rows(0.5)])
    assert summary["random"]["over occlusion"] == [0.5, 0.5, 0.5]
    assert summary["random"]["gap"][1] < summary["random"]["gap"][0] < summary["random"]["gap"][2]


def test_a_method_that_does_not_run_is_left_out(monkeypatch):
    def failing(task, target):
        raise AssertionError("no module for this layer")

    monkeypatch.setattr(faithfulness, "METHODS", {"failing": failing, "occlusion": METHODS["occlusion"]})
    assert set(faithfulness.measure(tokens([[1.0, 0.0]]))) == {"occlusion"}


def test_prompts_say_where_their_answer_stands():
    ids, answer, deciding = faithfulness_tasks.prompts(50, torch.Generator().manual_seed(0))
    rows = torch.arange(50)
    assert torch.equal(ids[rows, deciding], answer)
    assert torch.equal(ids[rows, deciding - 1], ids[:, -1])
    assert (ids[:, :-1:2] == ids[:, -1:]).sum(1).eq(1).all()  # a key stands once


def test_drug_reviews_are_those_of_the_most_frequent_conditions(tmp_path):
    with zipfile.ZipFile(tmp_path / "drugsCom.zip", "w") as archive:
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("", "condition", "review"), (0, "a", "x"), (1, "b", "y"), (2, "b", "z"), (3, "c", "-")])
        archive.writestr("drugsComTest.tsv", file.getvalue())
    assert faithfulness_tasks.drug_reviews(tmp_path, conditions=2) == (["x", "y", "z"], [1, 0, 0])
