"""LangevinSampler: draws from the density a model implies, by its gradient and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from captum_density._density.langevin import Bounds, Langevin, Step, check_bounds, check_steps
from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density.samplers._samples import Sampler

__all__ = ["LangevinSampler"]


class LangevinSampler(Sampler):
    r"""Samples of p(x | y), or p(x), by Langevin dynamics: a step up the log-density, and noise.

    .. math:: x_{t+1} = x_t - \frac{\epsilon}{2} \nabla E(x_t) + \mathcal{N}(0, \epsilon),
        \qquad E(x) = -f_y(x) \ \text{or} \ -\log \sum_i e^{f_i(x)}

    Without `metropolis` (the unadjusted algorithm) the stationary distribution is off by an amount of the order of
    step_size; with it (MALA) it is exact, and a step is refused where it would not be. A step_size of a quarter of the
    smallest variance of the density is small; for MALA, aim at an acceptance near 0.57.

    Many chains run at once: one for each row of the initial points, each with its own target.

    Args:
        forward_func: Returns logits (N, C), or a log-density (N,) itself.
        step_size: epsilon, the variance of one step's noise, in squared units of the inputs.
        n_steps: Steps of each chain.
        temperature: T of the density sampled, p(x)^(1/T): below 1 sharper than the model's. The dynamics of Grathwohl
            et al. with gradient step a and noise s are step_size = s**2 and temperature = s**2 / (2 * a).
        bounds: (low, high), each a number for every element or a tensor that broadcasts to the input, such as (C, 1, 1)
            for images normalised by channel. Points are clamped to them; with `metropolis`, steps that lead outside
            are refused, so that the samples are of the density within.
        metropolis: Whether to accept or refuse each step after Metropolis and Hastings.
        generator: What the noise is drawn from; None for the global generator.

    Raises:
        ValueError: If a number is out of range.

    References:
        M. Welling and Y. W. Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011; G. O.
        Roberts and R. L. Tweedie, "Exponential convergence of Langevin distributions and their discrete
        approximations", Bernoulli 1996 (MALA); W. Grathwohl et al., ICLR 2020, arXiv:1912.03263.

    Example:
        >>> import torch
        >>> normal = lambda x: -0.5 * (x**2).sum(1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = LangevinSampler(normal, step_size=0.3, n_steps=50, metropolis=True, generator=generator)
        >>> result = sampler.sample(torch.zeros(2000, 2))
        >>> bool((result.samples.std(0) - 1).abs().max() < 0.1)
        True
    """

    _name = "Langevin"

    @takes_arrays
    def __init__(
        self,
        forward_func: Callable[..., Any],
        step_size: float,
        n_steps: int = 100,
        *,
        temperature: float = 1.0,
        bounds: Bounds | None = None,
        metropolis: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        check_steps(n_steps, step_size)
        check_bounds(bounds)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, but is {temperature}")
        super().__init__(forward_func, n_steps)
        self._langevin = Langevin(step_size, temperature, bounds, metropolis, generator)
        self._comparison = metropolis

    def _steps(self, density: LogDensity) -> Iterator[Step]:
        return self._langevin.chain(density, self.n_steps)
