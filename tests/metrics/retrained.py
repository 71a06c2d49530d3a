"""Small data, models and a quick training, for what retrains."""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from captum_density.metrics import diff_roar, kar, roar
from captum_density.retraining import Examples, FitConfig, Job, fit_many

METRICS = {"diff_roar": diff_roar, "roar": roar, "kar": kar}


SIDES = {"diff_roar": ["top", "bottom"], "roar": ["bottom"], "kar": ["top"]}


QUICK = FitConfig(epochs=1, batch_size=8, lr=0.03)


def linear(d, classes=3, dtype=torch.float32):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(d, classes, dtype=dtype))


def perceptron(d, classes, hidden=16):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def some_data(*shape, n=40, m=24, classes=3, dtype=torch.float32):
    def split(size):
        labels = torch.arange(size) % classes
        x = torch.rand(size, *shape, dtype=dtype)
        x.flatten(1)[:, :classes] += 0.7 * nn.functional.one_hot(labels, classes)
        return x, labels

    return split(n), split(m)


def some_maps(train, test, ties=False):
    draw = (lambda x: torch.randint(-2, 3, x.shape).float()) if ties else torch.randn_like
    return draw(train[0]), draw(test[0])


def kept_by_hand(importance, numbers, low, high):
    """Where the elements of the groups ranked low..high-1 are, by numpy's sort of pairs (-importance, position)."""
    kept = np.zeros((len(importance), *numbers.shape), dtype=bool)
    for row, out in zip(importance, kept, strict=True):
        order = np.lexsort((np.arange(len(row)), -row))
        out[np.isin(numbers, order[low:high])] = True
    return kept


def by_group(maps, numbers):
    flat, numbers = maps.double().abs().numpy().reshape(len(maps), -1), numbers.reshape(-1)
    return np.stack([flat[:, numbers == g].mean(1) for g in range(numbers.max() + 1)], axis=1)


def by_hand(metric, make_model, train, test, importance, numbers, fill, fractions, runs, seed=0, mask_only=False):
    """(sides, K, R, M) correctness of models trained on data that were masked beforehand, without ranks.

    Args:
        importance: For each run, that of (training, test) examples, (N, d).
        fill: What removed elements become, or a function of the inputs and what is kept.
    """
    d, jobs = int(numbers.max()) + 1, []
    for side in SIDES[metric]:
        for fraction in sorted(fractions):
            count = max(1, math.floor(Fraction(str(fraction)) * d + Fraction(1, 2)))
            places = {"top": (0, count), "bottom": (count if metric == "roar" else d - count, d)}[side]
            for run in range(runs):
                masked = []
                for (x, labels), values in zip((train, test), importance[run], strict=True):
                    kept = torch.from_numpy(kept_by_hand(values, numbers, *places))
                    filled = fill(x, kept) if callable(fill) else torch.where(kept, x, torch.as_tensor(fill).to(x))
                    masked.append((kept.to(x) if mask_only else filled, labels))
                jobs.append(Job(Examples(*masked), run=run))
    fitted = fit_many(make_model, jobs, fit=QUICK, seed=seed, strategy="loop")
    return torch.stack([f.correct for f in fitted]).reshape(len(SIDES[metric]), len(fractions), runs, -1)
