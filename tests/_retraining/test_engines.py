"""A stack of models, trained at once, has the weights of models trained one by one.

Of private parts on purpose: a result shows which examples are classified rightly, not the weights.
"""

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density._cache.arrays import Arrays
from captum_density.retraining import Examples, _view
from captum_density.retraining._engines import correct_of, correct_of_stack, train_loop, train_stack
from captum_density.retraining._seeds import batches, count_batches, initial_model
from captum_density.retraining._view import ExamplesRef, View
from tests.retraining.small import ADAMW, PLAIN, SGD, D, Depth, cnn, examples, mlp, states

CPU = torch.device("cpu")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3)
        self.again.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.again(torch.tanh(self.first(x.flatten(1))))))


def tied():
    return Tied().double()


def frozen():
    model = mlp()
    model[1].weight.requires_grad_(False)
    return model


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(D, 3), nn.Linear(D, 3)

    def forward(self, x):
        return self.used(x.flatten(1))


def unused():
    return Unused().double()


BOTH = {
    "mlp": mlp,
    "cnn": cnn,
    "group norm": functools.partial(cnn, functools.partial(nn.GroupNorm, 2, 4)),
    "tied": tied,
    "frozen": frozen,
    "unused": unused,
}
# Adam divides by a gradient's size: where the gradient is nothing but rounding (before batch norm), so is the step.
CASES = [(name, config) for name in BOTH for config in (SGD, PLAIN, ADAMW)]
BOTH |= {"batch norm": functools.partial(cnn, functools.partial(nn.BatchNorm2d, 4))}
CASES += [("batch norm", SGD), ("batch norm", PLAIN)]
MIXED = [((0, 18), 0), ((0, 5), 0), ((5, 18), 1), ((3, 3), 1), ((0, 18), 2)]  # several runs in one stack


def view(data, seed=7):
    return View(ExamplesRef.of(data, Arrays(None)), CPU, seed)


@pytest.mark.parametrize(("name", "config"), CASES, ids=[f"{n}-{c.optimizer}-{c.schedule}" for n, c in CASES])
def test_a_stack_gives_what_a_loop_gives(name, config):
    make, inputs = BOTH[name], view(examples(mask_only=name == "cnn"))
    kept, runs = zip(*MIXED, strict=True)
    models = [initial_model(make, 7, run) for run in runs]
    stacked = train_stack([initial_model(make, 7, run) for run in runs], inputs, kept, runs, config, seed=7)
    values = {**stacked[1], **stacked[2]}
    for i, (places, run, model) in enumerate(zip(kept, runs, models, strict=True)):
        start = {key: value.clone() for key, value in model.state_dict().items()}
        train_loop(model, inputs.whole(0, places, run), inputs.labels[0], config, seed=7, run=run)
        moved = 0
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            assert_close(values[key][i], value.detach(), rtol=0, atol=1e-10)
            moved += not torch.equal(value, start[key])
        assert moved > 0
        assert name != "frozen" or torch.equal(model[1].weight, start["1.weight"])
    both = correct_of_stack(stacked, inputs, kept, lambda: None)
    alone = [correct_of(m, inputs, *job, lambda: None) for m, job in zip(models, MIXED, strict=True)]
    assert torch.equal(both, torch.stack(alone))


@pytest.mark.parametrize("runs", [(0, 0, 0), (0, 1, 1)], ids=["one order", "several orders"])
def test_inputs_made_batch_by_batch_are_those_made_at_once(runs, monkeypatch):
    inputs, weights = view(examples()), []
    for limit in (2**25, 0):
        monkeypatch.setattr(_view, "_BYTES_AT_ONCE", limit)
        models = [initial_model(mlp, 0, run) for run in runs]
        trained = train_stack(models, inputs, [(0, 18), (0, 7), (7, 18)], runs, SGD, seed=0)
        weights.append(trained[1]["1.weight"])
    assert torch.equal(*weights)


def test_python_draws_in_training_of_a_stack_are_seeded():
    """A trial takes some steps only: what draws later than that must not draw from the caller's numbers."""
    inputs, weights, draws = view(examples()), [], []

    def draw():
        draws[-1].append(random.random() * np.random.rand())
        return draws[-1][-1]

    for seed, runs in enumerate([(0, 1), (0, 1), (2, 3)]):
        random.seed(seed)
        np.random.seed(seed)
        before = states()
        draws.append([])
        models = [initial_model(lambda: Depth(draw).double(), 0, run) for run in runs]
        weights.append(train_stack(models, inputs, [(0, 7)] * 2, runs, SGD, seed=0)[1]["last.weight"])
        assert states() == before
    assert torch.equal(*weights[:2])
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]  # other runs draw numbers of their own


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 4))
def test_as_many_batches_are_counted_as_there_are(n, batch_size, epochs):
    assert len(list(batches(n, batch_size, epochs, 0, 1))) == count_batches(n, batch_size, epochs)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
@pytest.mark.parametrize("kept", [(120, 128), (0, 127), (128, 128)])
def test_what_is_kept_of_128_places_whose_ranks_are_bytes(dtype, kept):
    x, ranks = torch.randn(20, 128, dtype=torch.float64), torch.arange(128).flip(0).expand(20, 128)
    split = x, torch.zeros(20).long()
    rows = view(Examples(split, split, ranks=(ranks.to(dtype), ranks.to(dtype))))
    expected = x * ((ranks >= kept[0]) & (ranks < kept[1]))
    assert torch.equal(rows.rows(0, slice(None), kept), expected)
    low, high = (torch.tensor([place]) for place in kept)
    assert torch.equal(rows.stacked(0, slice(None), low, high)[0], expected)
