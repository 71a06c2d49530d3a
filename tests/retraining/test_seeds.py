"""What a model, or an attack on it, draws in training: the same for jobs of a run, other numbers in other runs."""

import random

import pytest
import torch
from torch import nn

from captum_density.retraining import Examples, FitConfig, Job, adversarial_fit, fit_many

# Inputs that are all alike, so that what is seen does not depend on the order of the examples.
ALIKE = torch.zeros(8, 3), torch.arange(8) % 2
DRAWS = {"torch": lambda: torch.rand(()).item(), "Python": random.random}


class Recorder(nn.Linear):
    """A linear model that keeps what it draws in training, or else what it is given."""

    def __init__(self, record, draw=None):
        super().__init__(3, 2)
        self.record, self.draw = record, draw

    def forward(self, x):
        if self.draw is None:
            self.record.append(x.detach().clone())
        elif self.training:
            self.record.append(self.draw())
        return super().forward(x)


@pytest.mark.parametrize(("strategy", "name"), [("loop", "torch"), ("loop", "Python"), ("channels_last", "torch")])
def test_each_run_draws_numbers_of_its_own_in_training(strategy, name):
    draws = {}
    for i, run in enumerate((0, 0, 1)):
        draws[i] = []
        jobs = [Job(Examples(ALIKE, ALIKE), run=run)]
        make = lambda record=draws[i]: Recorder(record, DRAWS[name])  # noqa: E731
        fit_many(make, jobs, fit=FitConfig(epochs=2, batch_size=4), strategy=strategy)
    assert draws[0] == draws[1]
    assert draws[0][-1] != draws[2][-1]
    assert len({*draws[0]}) == 4


def test_a_function_that_trains_draws_numbers_of_its_runs_own():
    draws = []

    def fit(model, inputs, labels, seed):
        draws.append((seed, torch.rand(()).item()))

    fit_many(lambda: nn.Linear(3, 2), [Job(Examples(ALIKE, ALIKE), run=run) for run in (0, 1)], fit=fit)
    assert all(first != second for first, second in zip(*draws, strict=True))


def test_each_run_is_attacked_from_starts_of_its_own():
    starts = []
    for run in (0, 0, 1):
        record = []
        options = {"radius": 0.5, "n_steps": 1, "fit": FitConfig(epochs=1, batch_size=8), "run": run}
        adversarial_fit(lambda record=record: Recorder(record), ALIKE, **options)
        starts.append(record[0])
    assert starts[0].any()
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
