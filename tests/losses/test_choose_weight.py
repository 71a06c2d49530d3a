"""The rule by which a weight is chosen."""

import math

import pytest

from captum_density.losses import choose_weight

ACCURACY = {0.0: 0.97, 0.01: 0.98, 0.1: 0.971, 1.0: 0.6}


def test_the_largest_weight_that_accuracy_allows():
    tried = []

    def measure(weight):
        tried.append(weight)
        return ACCURACY[weight]

    choice = choose_weight(measure, [1.0, 0.1, 0.0, 0.01])
    assert tried == [0.0, 0.01, 0.1, 1.0]
    assert choice == (0.1, tuple(tried), tuple(ACCURACY.values()), tuple(tried))
    assert choose_weight(measure, ACCURACY, tolerance=0.0).weight == 0.01
    assert choose_weight(measure, ACCURACY, tolerance=0.38).weight == 1.0  # exactly as much as it costs


@pytest.mark.parametrize(
    ("figures", "weight"),
    [
        ((1, 3, 2, 9), 0.01),
        ((4, 3, 2, 9), 0.0),
        ((1, 2, 2, 9), 0.01),
        ((1, 2, math.nan, 9), 0.01),
        ((-3, -2, -1, 9), 0.1),
    ],
)
def test_the_best_figure_that_accuracy_allows(figures, weight):
    of = dict(zip(ACCURACY, figures, strict=True))
    assert choose_weight(lambda w: (ACCURACY[w], of[w]), ACCURACY).weight == weight


@pytest.mark.parametrize(
    ("measure", "weights", "tolerance", "match"),
    [
        (ACCURACY.get, [], 0.01, "weights must be"),
        (ACCURACY.get, [0.1, 0.1], 0.01, "weights must be different"),
        (ACCURACY.get, [-1.0, 0.1], 0.01, "at least 0"),
        (ACCURACY.get, [0.1, math.inf], 0.01, "finite"),
        (ACCURACY.get, [0.1], -0.1, "tolerance must be in"),
        (lambda weight: 97.0, [0.1], 0.01, r"accuracy must be in \[0, 1\]"),
        (lambda weight: math.nan, [0.1], 0.01, r"accuracy must be in \[0, 1\]"),
        (lambda weight: (0.9, math.nan), [0.1], 0.01, "try smaller weights"),
    ],
)
def test_refusals(measure, weights, tolerance, match):
    with pytest.raises(ValueError, match=match):
        choose_weight(measure, weights, tolerance=tolerance)
