"""The interval of a mean over examples is that of means of examples drawn again."""

import numpy as np
import torch

from captum_density._display.intervals import mean_interval


def test_of_means_of_what_is_drawn():
    values = torch.randn(17)
    x = values.double().numpy()
    means = x[np.random.default_rng(3).integers(0, 17, (2000, 17))].mean(1)
    for options, ends in (({}, [0.025, 0.975]), ({"level": 0.5}, [0.25, 0.75])):
        assert np.allclose(mean_interval(values, 3, **options), np.quantile(means, ends), rtol=1e-12)
    assert np.allclose(mean_interval(torch.ones(4), 0), 1)
