"""A model that runs once on the same values, of private parts, as an audit shows how much was run only."""

import torch
from torch import nn

from captum_density.audit import _runs
from captum_density.audit._runs import Remembered


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, numbers=None):
        self.rows.append(len(x))
        return x.exp() if numbers is None else x.exp() + numbers[:, None]


def test_the_same_batch_runs_once():
    model, x = Counted(), torch.randn(6, 3)
    remembered = Remembered(model)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(remembered(x), x.exp()) and torch.equal(remembered(x[:4]), x[:4].exp())
        remembered(x).zero_()  # as a user of the outputs may
        assert torch.equal(remembered(x), x.exp())
    assert model.rows == [6, 4]
    x.requires_grad_()
    assert remembered(x).requires_grad and model.rows[-1] == 6


def test_what_stands_beside_the_values_counts():
    model, x = Counted(), torch.randn(2, 3)
    remembered = Remembered(model)
    with torch.no_grad():
        for numbers in (torch.tensor([0, 1]), torch.tensor([1, 1])):
            assert torch.equal(remembered(x, numbers), x.exp() + numbers[:, None])
    assert model.rows == [2, 2]


def test_memory_has_an_end(monkeypatch):
    monkeypatch.setattr(_runs, "_REMEMBERED", 9)
    model, x = Counted(), torch.randn(5, 3)
    remembered = Remembered(model)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(remembered(x[:3]), x[:3].exp()) and torch.equal(remembered(x[2:]), x[2:].exp())
    assert model.rows == [3, 3, 3]
