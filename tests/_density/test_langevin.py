"""A step of a Metropolis-adjusted chain is accepted by a ratio that is balanced, as a normal distribution has it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from captum_density._density.langevin import Langevin
from captum_density._density.log_density import LogDensity


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model(x):
    return torch.stack([x.sin().sum(1), (2 * x).cos().sum(1)], 1)


def score_at(x, target):
    """log p at one example, and its gradient."""
    leaf = x.clone().requires_grad_()
    value = model(leaf[None])[0, target]
    return value.item(), torch.autograd.grad(value, leaf)[0]


@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 0.3]))
def test_the_ratio_is_balanced(seed, step_size, temperature):
    x, new = normal(4, 3, seed=seed), normal(4, 3, seed=seed + 1)
    density = LogDensity(model, x, [0, 1, 1, 0], None)
    langevin = Langevin(step_size, temperature, None, True, None)
    states = [(points, *density.scores(points)) for points in ((x[None],), (new[None],))]
    forth, back = langevin._log_ratio(*states[0], *states[1]), langevin._log_ratio(*states[1], *states[0])
    assert_close(forth, -back)

    def q(start, slope):
        covariance = torch.eye(3, dtype=torch.float64) * step_size
        return torch.distributions.MultivariateNormal(start + step_size / (2 * temperature) * slope, covariance)

    for i, target in enumerate([0, 1, 1, 0]):
        (a, slope_a), (b, slope_b) = score_at(x[i], target), score_at(new[i], target)
        expected = (b - a) / temperature + q(new[i], slope_b).log_prob(x[i]) - q(x[i], slope_a).log_prob(new[i])
        assert_close(forth[0, i], expected)
