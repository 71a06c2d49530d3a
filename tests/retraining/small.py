"""Examples, models and trainings of moments, which tests of retraining share."""

import random

import numpy as np
import torch
from torch import nn

from captum_density.retraining import Examples, FitConfig, Job

SHAPE = (2, 3, 3)


D = 18


def split(n, seed, shape=SHAPE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, dtype=dtype, generator=generator)
    flat = x.flatten(1)
    return x, (flat[:, 0] > 0).long() + (flat[:, 1] > 0.5).long()


def order(n, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(d, generator=generator) for _ in range(n)])


def examples(n=40, m=60, *, ranked=True, shape=SHAPE, dtype=torch.float64, **options):
    d = int(np.prod(shape))
    ranks = (order(n, d, 1), order(m, d, 2)) if ranked else None
    return Examples(split(n, 3, shape, dtype), split(m, 4, shape, dtype), **{"ranks": ranks, **options})


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)), random.getstate()


def cnn(norm=nn.Identity):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm(), nn.ReLU(), *head).double()


SGD = FitConfig(epochs=3, batch_size=16, lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=0.01)


PLAIN = FitConfig(epochs=3, batch_size=16, lr=0.1, optimizer="sgd", momentum=0.0, schedule="constant")


ADAMW = FitConfig(epochs=3, batch_size=16, lr=0.02, weight_decay=0.1)


def eight(data, fit_runs=4):
    """As many jobs as a stack takes to gain."""
    return [Job(data, kept, run) for run in range(fit_runs) for kept in ((0, 9), (9, 18))]


class Depth(nn.Module):
    """Skips a layer now and then, as Python's generator, or NumPy's, has it."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.first, self.last = draw, nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.last(self.first(x) if not self.training or self.draw() < 0.5 else x)
