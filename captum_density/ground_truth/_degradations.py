"""Explanations whose order is known: the known answer, degraded step by step to noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captum_density._model.generators import derived_seed
from captum_density.ground_truth._trial import Trial

__all__ = ["degradations"]

_JITTER = 0.01


def degradations(trial: Trial, steps: int) -> list[Tensor]:
    """The known answer, (N, ...), then versions of which a growing share of the units, at last all, change places.

    Units that have changed places at one step have at all later ones. All versions have the same values, so that a
    metric can tell them apart by where these are alone.

    Args:
        trial: Whose answer.
        steps: How many versions, 2 or more.
    """
    scores = trial.scores(trial.answer).cpu()
    random = np.random.RandomState(derived_seed(trial.seed, trial.task.name, "degradation") % 2**32)
    n, d = scores.shape
    # Units that the answer does not tell apart get an order, or metrics would order them by position.
    scores += _JITTER * scores.abs().amax(1, keepdim=True) * torch.from_numpy(random.random_sample((n, d))).float()
    order = torch.from_numpy(random.random_sample((n, d)).argsort(1))
    places = torch.from_numpy(random.random_sample((n, d)).argsort(1))
    versions = []
    for step in range(steps):
        count = round(d * step / (steps - 1))
        version = scores.clone()
        # The first `count` units of the order, in the sequence in which `places` has them.
        chosen = order[:, :count]
        shuffled = chosen.gather(1, places.gather(1, chosen).argsort(1))
        version.scatter_(1, chosen, scores.gather(1, shuffled))
        versions.append(trial.spread(version.to(trial.inputs.device)))
    return versions
