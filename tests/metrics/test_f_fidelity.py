"""F-Fidelity by hand, its controls, what stays as it was, and what is measured once."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, Saliency
from torch import nn

from captum_density.metrics import f_fidelity
from captum_density.retraining import FitConfig, fine_tune, random_deletion
from tests.metrics.retrained import perceptron, some_data

torch.manual_seed(0)
TRAIN, TEST = some_data(1, 2, 4)
MODEL = perceptron(8, 3)().eval()
MAPS = torch.randn_like(TEST[0])
QUICK = FitConfig(epochs=1, batch_size=8, lr=0.03)
FEW = {"fractions": [0.25, 0.5], "runs": 2, "n_samples": 3, "fit": QUICK}


class Sending(ThreadPoolExecutor):
    """Gives its workers what a process would be sent."""

    def submit(self, function, work):
        return super().submit(function, pickle.loads(pickle.dumps(work)))


def right(model, x):
    with torch.no_grad():
        return (model(x).argmax(1) == TEST[1]).double()


def tuned(run, fraction, **options):
    delete = partial(random_deletion, fraction=fraction, **options)
    return fine_tune(MODEL, TRAIN, delete, fit=QUICK, run=run)


@pytest.mark.parametrize(("groups", "fill"), [(None, 0.0), ((2, 2), 0.5)])
def test_without_chance_it_is_what_is_computed_by_hand(groups, fill):
    # With alpha and beta of 1, all of the explanation goes, or all of the rest.
    result = f_fidelity(
        MODEL, TRAIN, TEST, {"maps": MAPS}, fractions=[0.25, 0.5], alpha=1.0, beta=1.0, runs=2, n_samples=2,
        groups=groups, baselines=fill, fit=QUICK,
    )  # fmt: skip
    numbers = torch.arange(8) if groups is None else torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    d = int(numbers.max()) + 1
    importance = torch.stack([MAPS.abs().flatten(1)[:, numbers == g].mean(1) for g in range(d)], 1)
    place = importance.argsort(1, descending=True).argsort(1)[:, numbers].view_as(MAPS)
    for run in range(2):
        copy = tuned(run, 1.0, baselines=fill)
        assert torch.equal(result.whole[run].double(), right(copy, TEST[0]))
        for k, count in enumerate(result.counts):
            for side, gone in enumerate((place < count, place >= count)):
                lost = right(copy, TEST[0].masked_fill(gone, fill))
                assert torch.equal(result.right[0, side, k, run].double(), 2 * lost)
    assert result.counts == ((2, 4) if groups is None else (1, 1))
    both = torch.stack([result.plus, result.minus], 1)
    assert torch.allclose(both, (result.whole.double() - result.right / 2).mean((-1, -2)))
    assert torch.equal(result.given.double(), right(MODEL, TEST[0]))


def test_what_is_removed_is_drawn_alike_and_never_more_than_was_learned():
    result = f_fidelity(
        MODEL, TRAIN, TEST, {"maps": MAPS}, fractions=[0.25, 0.75], alpha=0.5, beta=0.25, n_samples=150, runs=1,
        fit=QUICK,
    )  # fmt: skip
    assert result.removed == ((1, 2), (2, 1))
    place, copy = MAPS.abs().flatten(1).argsort(1, descending=True).argsort(1), tuned(0, 0.25)
    lost = []
    for gone in range(2):  # one of the two that rank highest
        lost.append(right(copy, TEST[0].masked_fill((place == gone).view_as(MAPS), 0)))
    expected = torch.stack(lost).mean(0)
    assert (result.right[0, 0, 0, 0] / 150 - expected).abs().max() < 0.2
    fixed = lost[0] == lost[1]
    assert torch.equal(result.right[0, 0, 0, 0][fixed] / 150, expected[fixed])


def test_what_decides_is_told_from_what_does_not():
    labels = torch.arange(200) % 2
    x = torch.randn(200, 8)
    x[:, 0] = 2.0 * labels - 1
    model = fine_tune(nn.Linear(8, 2), (x, labels), fit=FitConfig(epochs=20, lr=0.1))
    rest = torch.ones(200, 8)
    rest[:, 0] = 0
    result = f_fidelity(
        model, (x, labels), (x, labels), {"decides": 1 - rest, "rest": rest, "constant": torch.ones(200, 8)},
        fractions=[0.125], beta=0.125, runs=2, fit=QUICK, n_samples=5,
    )  # fmt: skip
    plus, minus = result.plus[:, 0].tolist(), result.minus[:, 0].tolist()
    assert plus[0] > 0.3 and minus[0] < 0.02
    assert plus[1] < 0.02 and minus[1] < plus[3] + 0.1
    assert plus[0] > plus[3] > plus[1]  # random is between
    assert result.difference[0, 2, 1] > 0 > result.difference[1, 2, 2]
    assert result.constant == (0, 0, 1) and "ranked by position" in result.table()
    assert plus[2] == plus[0]  # whose first position decides
    assert json.loads(result.to_json())["rankings"] == ["decides", "rest", "constant", "random"]


def test_everything_is_an_explanation_without_a_rest():
    result = f_fidelity(MODEL, TRAIN, TEST, {"maps": MAPS}, **{**FEW, "fractions": [1.0]}, beta=0.5)
    assert result.removed == ((4, 0),) and (result.minus == 0).all()
    assert torch.equal(result.right[0, 1, 0], 3 * result.whole)


def test_batches_workers_and_the_store_change_nothing(tmp_path):
    state = torch.get_rng_state()
    MODEL.train()
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    maps = {"maps": MAPS, "attribution": InputXGradient(MODEL), "class": Saliency}
    call = partial(f_fidelity, MODEL, TRAIN, TEST, beta=0.25, **FEW)
    one = call(maps)
    assert torch.equal(torch.get_rng_state(), state) and MODEL.training
    MODEL.eval()
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert call(maps, max_examples_per_batch=7).digest == one.digest
    some = call({"maps": MAPS}, store=tmp_path)
    assert some.stored == 0 and torch.equal(some.right, one.right[[0, 3]])
    with Sending(2) as executor:
        more = call(maps, store=tmp_path, executor=executor)
    assert more.stored == 4 and more.digest == one.digest  # what was measured, and random
    again = call(maps, store=tmp_path)
    assert again.stored == 8 and again.digest == one.digest
    assert call(maps, seed=1, store=tmp_path).stored == 0
    other = nn.Sequential(*perceptron(8, 3)())
    assert f_fidelity(other, TRAIN, TEST, {"maps": MAPS}, beta=0.25, store=tmp_path, **FEW).stored == 0


def test_a_class_attributes_each_copy():
    by_class = f_fidelity(MODEL, TRAIN, TEST, {"a": Saliency}, beta=0.25, target="true", **FEW)
    for run in range(2):
        maps = Saliency(tuned(run, 0.25)).attribute(TEST[0].clone(), target=TEST[1])
        ready = f_fidelity(MODEL, TRAIN, TEST, {"a": maps}, beta=0.25, **FEW)
        assert torch.equal(by_class.right[0, :, :, run], ready.right[0, :, :, run])


def test_arrays():
    arrays = [tuple(part.numpy() for part in split) for split in (TRAIN, TEST)]
    result = f_fidelity(MODEL, *arrays, {"maps": MAPS.numpy()}, beta=0.25, baselines=np.zeros((1, 2, 4)), **FEW)
    assert result.digest == f_fidelity(MODEL, TRAIN, TEST, {"maps": MAPS}, beta=0.25, **FEW).digest


@pytest.mark.parametrize(
    ("change", "error", "remedy"),
    [
        ({"beta": 0.01}, ValueError, "larger"),
        ({"alpha": 0.0}, ValueError, "alpha must be in"),
        ({"fractions": [0.5, 0.5]}, ValueError, "different numbers"),
        ({"runs": 0}, ValueError, "runs must be"),
        ({"target": "best"}, ValueError, "'predicted' or 'true'"),
        ({"attributions": {"random": MAPS}}, ValueError, "another name"),
        ({"attributions": {}}, TypeError, "at least one name"),
        ({"attributions": {"a": MAPS[:3]}}, ValueError, "examples"),
        ({"attributions": {"a": MAPS * torch.nan}}, ValueError, "NaN"),
        ({"model": lambda x: x}, TypeError, "torch.nn.Module"),
        ({"fit": "fast"}, TypeError, "FitConfig"),
        ({"baselines": lambda x, kept, generator: x}, ValueError, "number"),
    ],
)
def test_bad_arguments(change, error, remedy):
    call = {"model": MODEL, "train": TRAIN, "test": TEST, "attributions": {"a": MAPS}, "beta": 0.25, "runs": 1}
    with pytest.raises(error, match=remedy):
        f_fidelity(**{**call, **change})


@pytest.mark.cuda
def test_cuda():
    here = f_fidelity(MODEL, TRAIN, TEST, {"maps": MAPS}, beta=0.25, **FEW)
    try:
        there = f_fidelity(MODEL.cuda(), TRAIN, TEST, {"maps": MAPS, "class": Saliency}, beta=0.25, **FEW)
    finally:
        MODEL.cpu()
    assert (here.plus[0] - there.plus[0]).abs().max() < 0.2
