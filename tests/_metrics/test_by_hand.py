"""Every figure of a result is that of data masked beforehand.

Of private parts on purpose: the rankings of two controls, the random and the blurred one, are made inside.
"""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from captum_density._model.generators import derived_seed
from captum_density.metrics._ranking import _blurred, random_ranks
from captum_density.retraining import Examples, Job, fit_many, noisy_linear_imputation
from tests.metrics.retrained import (
    METRICS,
    QUICK,
    SIDES,
    by_group,
    by_hand,
    linear,
    some_data,
    some_maps,
)

SETUPS = {
    # inputs, groups, the number of each element's group, baselines, what they are
    "tabular": ((7,), None, np.arange(7), 0.3, 0.3),
    "image": ((1, 4, 5), None, np.arange(20).reshape(1, 4, 5), "mean", "mean"),
    "sequence": ((2, 9), None, np.arange(18).reshape(2, 9), "mean", "mean"),
    "channels": ((3, 3, 4), "channels", np.tile(np.arange(12).reshape(1, 3, 4), (3, 1, 1)), "mean", "mean"),
    "patches": (
        (2, 5, 4),
        (2, 3),
        np.tile(np.array([[0, 0, 0, 1], [0, 0, 0, 1], [2, 2, 2, 3], [2, 2, 2, 3], [4, 4, 4, 5]]), (2, 1, 1)),
        torch.arange(4.0),
        torch.arange(4.0),
    ),
    "tensor": (
        (1, 4, 4),
        torch.arange(4)[:, None],
        np.tile(np.arange(4)[:, None], (1, 1, 4)),
        torch.linspace(0, 1, 16).reshape(1, 4, 4),
        torch.linspace(0, 1, 16).reshape(1, 4, 4),
    ),
    "imputed": (
        (1, 5, 5),
        2,
        (np.arange(5)[:, None] // 2 * 3 + np.arange(5) // 2)[None],
        functools.partial(noisy_linear_imputation, noise_std=0),
        functools.partial(noisy_linear_imputation, noise_std=0),
    ),
}


@pytest.mark.parametrize(
    ("metric", "setup"),
    [*(("diff_roar", setup) for setup in SETUPS), ("roar", "image"), ("roar", "imputed"), ("kar", "tabular")],
)
def test_results_are_those_of_data_masked_beforehand(tmp_path, metric, setup):
    shape, groups, numbers, baselines, fill = SETUPS[setup]
    train, test = some_data(*shape, n=24, m=15)
    if isinstance(fill, str):  # the training set's, of each channel of an image, or of each element
        fill = train[0].double().mean([0, *range(2, 4)] if len(shape) > 2 else 0, keepdim=True)[0].float()
    maps = {"a": some_maps(train, test), "ties": some_maps(train, test, ties=True)}
    make_model, d = linear(math.prod(shape)), int(numbers.max()) + 1
    runs = 2 if setup in ("tabular", "image") else 1
    fractions = [0.5, 0.05, 1.0] if metric != "kar" else [0.35]  # not in order; 0.05 of few is none, so one
    result = METRICS[metric](
        make_model,
        train,
        test,
        maps,
        fractions=fractions,
        runs=runs,
        fit=QUICK,
        baselines=baselines,
        groups=groups,
        seed=5,
        strategy="loop",
        max_examples_per_batch=7,
    )
    options = {"fractions": fractions, "runs": runs, "seed": 5}
    assert result.metric == metric and result.sides == tuple(SIDES[metric]) and result.d == d
    assert result.fractions == tuple(sorted(fractions)) and result.attributions == ("a", "ties")
    assert result.counts == tuple(max(1, math.floor(Fraction(str(f)) * d + Fraction(1, 2))) for f in sorted(fractions))
    image = len(shape) > 2
    assert list(result.controls) == ["random", "input_agnostic", "mask_only"] + ["blurred"] * image

    for i, pair in enumerate(maps.values()):
        importance = [by_group(m, numbers) for m in pair]
        plain = by_hand(metric, make_model, train, test, [importance] * runs, numbers, fill, **options)
        assert torch.equal(result.correct[i], plain)
        assert torch.equal(result.predictive_power[i], plain.double().mean(-1))
        # One ranking, of the training examples' mean, for the test examples too.
        mean = by_group(pair[0].double().abs().mean(0, keepdim=True), numbers)
        agnostic = [mean.repeat(len(x), 0) for x, _ in (train, test)]
        agnostic = by_hand(metric, make_model, train, test, [agnostic] * runs, numbers, fill, **options)
        assert torch.equal(result.controls["input_agnostic"][i], agnostic)
        bare = by_hand(metric, make_model, train, test, [importance] * runs, numbers, fill, **options, mask_only=True)
        assert torch.equal(result.controls["mask_only"][i], bare)
        if image:
            smooth = [by_group(_blurred(m.abs()), numbers) for m in pair]  # itself tested in test_ranking.py
            blurred = by_hand(metric, make_model, train, test, [smooth] * runs, numbers, fill, **options)
            assert torch.equal(result.controls["blurred"][i], blurred)
    scores = [
        [-np.array(r) for r in random_ranks(tmp_path, (train, test), d, derived_seed(5, "random ranking", run))]
        for run in range(runs)
    ]
    assert runs == 1 or not any(np.array_equal(a, b) for a, b in zip(*scores, strict=True))
    random = by_hand(metric, make_model, train, test, scores, numbers, fill, **options)
    assert result.controls["random"].shape[0] == 1 and torch.equal(result.controls["random"][0], random)
    whole = fit_many(make_model, [Job(Examples(train, test), run=run) for run in range(runs)], fit=QUICK, seed=5)
    assert torch.equal(result.unmasked, torch.stack([f.correct for f in whole]))
    assert result.chance == 1 / 3
    # Every model once: what keeps everything sees no mask, and DiffROAR's sides are the same there, but for bare masks.
    rankings = 1 + 2 * (len(result.controls) - 1)  # random; of each attribution, its own and the others, but for masks
    jobs = len(SIDES[metric]) * len(fractions) * runs
    masks = 2 * (jobs - runs * (metric == "diff_roar"))
    whole = {"diff_roar": 2, "roar": 0, "kar": 0}[metric] * runs
    assert result.engines["loop"][0] == rankings * (jobs - whole) + masks + runs
