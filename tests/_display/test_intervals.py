"""The interval of a mean over examples, or over runs and examples, is that of means of what is drawn again.

Of the private parts on purpose: the resamples are drawn again by hand, and how often an interval holds the truth takes
hundreds of them.
"""

import numpy as np
import pytest
import torch

from captum_density._display.intervals import Bootstrap, interval, mean_interval


def test_of_means_of_what_is_drawn():
    values = torch.randn(17)
    x = values.double().numpy()
    means = x[np.random.default_rng(3).integers(0, 17, (2000, 17))].mean(1)
    for options, ends in (({}, [0.025, 0.975]), ({"level": 0.5}, [0.25, 0.75])):
        assert np.allclose(mean_interval(values, 3, **options), np.quantile(means, ends), rtol=1e-12)
    assert np.allclose(mean_interval(torch.ones(4), 0), 1)


def test_resamples_are_means_of_what_is_drawn():
    torch.manual_seed(0)
    correct = torch.rand(2, 3, 7) < 0.5  # 3 runs, 7 examples
    result = Bootstrap(3, 7, 600, seed=5).means(correct)
    assert result.shape == (2, 600)
    random, expected = np.random.default_rng(5), []
    while len(expected) < 600:  # in portions of 250, runs first; of 3 runs, 2 are drawn
        size = min(250, 600 - len(expected))
        by_run, by_example = random.integers(0, 3, (size, 2)), random.integers(0, 7, (size, 7))
        for runs, examples in zip(by_run, by_example, strict=True):
            expected.append([c[np.ix_(runs, examples)].mean() for c in correct.numpy()])
    assert np.allclose(result.numpy(), np.array(expected).T)
    assert torch.equal(result, Bootstrap(3, 7, 600, seed=5).means(correct))
    # One run is all there is to draw.
    one = Bootstrap(1, 7, 100, seed=5).means(correct[:, :1])
    assert one.shape == (2, 100) and one.std() > 0


def test_intervals_are_quantiles():
    means = torch.arange(101, dtype=torch.float64)[None] / 100
    assert torch.allclose(interval(means, 0.95), torch.tensor([[0.025, 0.975]], dtype=torch.float64))
    assert torch.allclose(interval(means, 0.5), torch.tensor([[0.25, 0.75]], dtype=torch.float64))


def simulated(runs, examples, *, trials, example_sd, run_sd, seed, level=0.95):
    """How often the interval holds the accuracy of all runs on all examples, which a model of both gives."""
    random = np.random.default_rng(seed)

    def probability(easy, lucky):
        return 1 / (1 + np.exp(-(1 + easy + lucky)))

    easy, lucky = random.normal(size=(2, 100_000))
    truth = probability(example_sd * easy, run_sd * lucky).mean()
    held = 0
    for trial in range(trials):
        p = probability(example_sd * random.normal(size=(1, examples)), run_sd * random.normal(size=(runs, 1)))
        correct = torch.from_numpy(random.random((runs, examples)) < p)
        low, high = interval(Bootstrap(runs, examples, 250, trial).means(correct), level).tolist()
        held += low <= truth <= high
    return held / trials


@pytest.mark.parametrize(("runs", "run_sd"), [(5, 0.1), (2, 0.1), (10, 0.3)])
def test_about_95_percent_of_intervals_hold_the_truth(runs, run_sd):
    # 200 trials: 0.95 +- 0.015; few runs that differ much leave somewhat less, noise of single examples more.
    share = simulated(runs, 300, trials=200, example_sd=3, run_sd=run_sd, seed=runs)
    assert 0.9 <= share <= 0.995


@pytest.mark.slow
def test_intervals_where_runs_are_all_that_varies():
    """The hardest case: 1.96 deviations of 5 runs hold the truth as often as Student's t of 4 degrees says, 0.88."""
    share = simulated(5, 500, trials=400, example_sd=0.2, run_sd=0.7, seed=0)
    assert 0.83 <= share <= 0.93
