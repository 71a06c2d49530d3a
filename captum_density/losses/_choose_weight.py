"""choose_weight: how much of a loss to add, decided on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["WeightChoice", "choose_weight"]


class WeightChoice(NamedTuple):
    """A weight, and what it was chosen by. See `choose_weight`.

    Args:
        weight: The one to take.
        weights: All that were tried, ascending.
        accuracies: Validation accuracy of each, in [0, 1].
        figures: What was compared, of each: the figure that was returned, or else the weight.
    """

    weight: float
    weights: tuple[float, ...]
    accuracies: tuple[float, ...]
    figures: tuple[float, ...]


def choose_weight(
    measure: Callable[[float], float | tuple[float, float]],
    weights: Sequence[float],
    *,
    tolerance: float = 0.01,
) -> WeightChoice:
    r"""Of several weights of a loss, the best one among those that cost next to no validation accuracy.

    .. math:: w^* = \operatorname{argmax} \; \{ q(w) : a(w) \ge \max_v a(v) - \mathrm{tolerance} \}

    a is the accuracy on validation data and q a figure of what the loss is for, such as the accuracy of
    `captum_density.metrics.gan_test` on samples. Without a figure, q(w) = w: the largest weight that the accuracy
    allows. Heavier is not always better: score matching that is pushed far finds pixels without noise, and samples get
    worse; give a figure then.

    The models may have learned from validation data as little as from test data, and a test figure is honest only of
    models trained anew, with other seeds.

    Args:
        measure: Trains a model with a weight and returns its validation accuracy, in [0, 1], or a pair of this and the
            figure, higher is better. A model whose figure is not finite, after training that diverged, is not taken.
        weights: Different numbers of at least 0, each tried once, in ascending order. With 0 among them, plain training
            sets the bar, too, and is what is returned where no other weight has a better figure.
        tolerance: How much accuracy may be given up, from 0 to 1: two standard errors of the accuracy are a good value,
            0.01 for 96% right of 2,000 examples.

    Returns:
        The weight, and all accuracies and figures. Of equal figures, the smaller weight's is taken.

    Raises:
        ValueError: If weights are none, negative, not finite or not different, the tolerance is out of range, a
            measured accuracy is not in [0, 1], or no model whose accuracy suffices has a finite figure.

    References:
        The rule is ours. S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, compare networks of similar accuracy.

    Example:
        >>> import torch
        >>> weights = [0.0, 0.01, 0.1, 1.0]  # of which models had these accuracies and GAN-tests:
        >>> accuracy = dict(zip(weights, torch.tensor([0.97, 0.98, 0.975, 0.6]).tolist()))
        >>> recognised = dict(zip(weights, torch.tensor([0.5, 0.8, 0.7, 0.9]).tolist()))
        >>> choose_weight(lambda weight: accuracy[weight], weights).weight
        0.1
        >>> choose_weight(lambda weight: (accuracy[weight], recognised[weight]), weights).weight
        0.01
    """
    candidates = sorted(float(weight) for weight in weights)
    if not candidates or len(set(candidates)) < len(candidates) or not all(0 <= w < math.inf for w in candidates):
        raise ValueError(f"weights must be different finite numbers of at least 0, but are {list(weights)}")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must be in [0, 1], but is {tolerance}; 0.01 gives up one example in a hundred")
    accuracies, figures = [], []
    for weight in candidates:
        measured = measure(weight)
        accuracy, figure = measured if isinstance(measured, tuple) else (measured, weight)
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy must be in [0, 1], but measure({weight}) returned {accuracy}")
        accuracies.append(float(accuracy))
        figures.append(float(figure))
    # A rounding error below the bar is not below it.
    bar = max(accuracies) - tolerance - 1e-9
    eligible = [i for i, a in enumerate(accuracies) if a >= bar and math.isfinite(figures[i])]
    if not eligible:
        raise ValueError("no model of sufficient accuracy has a finite figure; try smaller weights")
    best = max(eligible, key=lambda i: figures[i])
    return WeightChoice(candidates[best], tuple(candidates), tuple(accuracies), tuple(figures))
