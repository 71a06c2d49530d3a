"""Work that was interrupted goes on where it was, to the same numbers."""

import pytest
import torch
from torch import nn

from captum_density.metrics import diff_roar


class Trainings:
    """How many there were, and after how many the next is broken off; no argument of `fit`, which a store knows by."""

    count, most = 0, 1000


def fit(model, inputs, labels, seed):
    if Trainings.count == Trainings.most:
        raise KeyboardInterrupt
    Trainings.count += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def network():
    return nn.Linear(4, 2)


def importance(inputs):
    return torch.tensor([4.0, 3.0, 2.0, 1.0]).expand_as(inputs)


def study(store=None):
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    options = {"fractions": [0.25, 0.5], "runs": 2, "controls": ["random"], "fit": fit, "store": store}
    return diff_roar(network, (x[:80], y[:80]), (x[80:], y[80:]), {"true": importance}, **options)


def test_an_interrupted_study_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainings, "count", 0)
    whole = study()
    of_whole = Trainings.count
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainings, "most", of_whole + 5)
        study(tmp_path)
    resumed = study(tmp_path)
    assert Trainings.count == 2 * of_whole
    again = study(tmp_path)
    assert Trainings.count == 2 * of_whole
    for other in (resumed, again):
        assert torch.equal(other.predictive_power, whole.predictive_power)
        assert torch.equal(other.score, whole.score)
