"""The trace of the log-density's Hessian: exact, or estimated from derivatives or from values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density._density.hessian_trace import TraceEstimator
from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import grad_mode, without_compilation

__all__ = ["hessian_trace"]

# Examples of one run of the exact trace, which takes as many copies as an example has elements.
_EXACT_EXAMPLES = 1024


@without_compilation
@takes_arrays
def hessian_trace(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType = None,
    estimator: str = "antithetic",
    n_samples: int = 1,
    noise_std: float = 0.1,
    generator: torch.Generator | None = None,
    additional_forward_args: object = None,
    *,
    distribution: str = "gaussian",
    max_examples_per_batch: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    r"""Trace of the Hessian of log p(x | y), or of log p(x), by x: how fast the score changes, summed over directions.

    ============  ==================================================================  =================================
    estimator     one sample, u of mean 0 and covariance 1, v = noise_std * u          cost of K samples
    ============  ==================================================================  =================================
    "antithetic"  :math:`(f(x + v) + f(x - v) - 2 f(x)) / \sigma^2`                     2K + 1 evaluations
    "taylor"      :math:`2 (f(x + v) - f(x)) / \sigma^2`, the paper's                   K + 1 evaluations
    "hutchinson"  :math:`u^\top H u`, by derivatives                                    K Hessian-vector products
    "exact"       :math:`\sum_i e_i^\top H e_i`                                         one product for each element
    ============  ==================================================================  =================================

    The one-sided estimate contains the gradient's 2 <grad f, u> / noise_std, which has mean 0 and a variance that
    drowns the trace as noise_std falls; the antithetic pair cancels it, and every other odd order. With Gaussian noise
    the mean of both is the trace of f smoothed by noise, averaged over the noise's variances from 0 to noise_std^2 (the
    heat equation). That makes sense of ReLU networks: their logits are piecewise linear, all second derivatives are
    zero where there are any, and "exact" and "hutchinson" return zeros and warn. Rounding sets a floor of about
    4 eps |f| / noise_std^2: for float32, |f| = 10 and noise_std = 0.03, that is 5e-3.

    Args:
        forward_func: Returns logits, (N, C) or with further dimensions.
        inputs: Floating-point tensor (N, ...) or tuple of such; the trace is over all of them.
        target: y, as Captum's; None for log p(x), the logsumexp of logits (N, C).
        estimator: "antithetic", "taylor", "hutchinson" or "exact".
        n_samples: K, averaged over. Not for "exact".
        noise_std: sigma, in the inputs' units. For "antithetic" and "taylor" only.
        generator: What the noise is drawn from; None for the global generator.
        additional_forward_args: As Captum's.
        distribution: "gaussian" or "rademacher" (1 or -1), which has less variance for a Hessian near diagonal.
        max_examples_per_batch: As Captum's: how many examples, copies included, run at once; one copy of the inputs
            runs in any case. None for all, and 1,024 for "exact".
        create_graph: Whether the result can be differentiated, by the model's parameters.

    Returns:
        (N,) in nats per squared unit of the input: negative at a peak of the density, positive in a valley.

    Raises:
        ValueError: If an argument is out of range or has no meaning for the estimator; if the model draws random
            numbers (dropout in training mode) where values are compared; if no gradient reaches the inputs; as
            `class_log_density` otherwise.
        TypeError: As `class_log_density`.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 4 ("taylor"); M. F. Hutchinson, "A
        stochastic estimator of the trace of the influence matrix", Communications in Statistics 1989. "antithetic" is
        the second difference of numerical analysis.

    Example:
        >>> import torch
        >>> weight = torch.tensor([1.0, 2.0, 3.0])
        >>> log_density = lambda x: -0.5 * (weight * x**2).sum(1)  # a Gaussian of precision 1, 2, 3
        >>> hessian_trace(log_density, torch.randn(1, 3), estimator="exact")
        tensor([-6.])
        >>> x = torch.randn(1, 3, dtype=torch.float64)
        >>> estimate = hessian_trace(log_density, x, n_samples=10, distribution="rademacher")
        >>> bool(torch.isclose(estimate, torch.tensor(-6.0, dtype=torch.float64)))
        True
    """
    estimate = TraceEstimator(estimator, n_samples, noise_std, distribution, generator)
    if estimator == "exact" and max_examples_per_batch is None:
        max_examples_per_batch = _EXACT_EXAMPLES
    density = LogDensity(
        forward_func, inputs, target, additional_forward_args, max_examples_per_batch=max_examples_per_batch
    )
    differences = estimate.by_differences
    with (
        density.evaluation(second_derivatives=not differences, comparison=differences),
        grad_mode(create_graph),
    ):
        return estimate(density, None, create_graph=create_graph)
