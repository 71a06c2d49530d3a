"""FiniteDifferenceScoreMatchingLoss: score matching from values alone."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._density.hessian_trace import TraceEstimator, displaced_values
from captum_density._density.log_density import LogDensity
from captum_density.losses._density_loss import DensityLoss, Log, check_weight, share_in_words

__all__ = ["FiniteDifferenceScoreMatchingLoss"]


class FiniteDifferenceScoreMatchingLoss(DensityLoss):
    r"""Score matching whose gradient norm, too, comes from evaluations: no double backpropagation.

    .. math:: \frac{1}{N} \sum_n \mathbb{E}_v \left[ \frac{f(x_n + v) + f(x_n - v) - 2 f(x_n)}{\sigma^2} +
        \frac{(f(x_n + v) - f(x_n - v))^2}{8 \sigma^2} \right] + \mu (\dots)^2

    with v Gaussian of standard deviation sigma: the first term has the trace as its mean, the second half the squared
    gradient norm, both up to the order of sigma^2; mu times the first one squared is the stability regulariser. A step
    costs 2 * n_samples + 1 evaluations in one batch and one backward pass, and works for models that cannot be
    differentiated twice: compiled ones, fused attention and recurrence, custom functions.

    Args:
        noise_std: sigma, in the inputs' units.
        Other arguments: As `ScoreMatchingLoss`.

    Attributes:
        trace: Mean over the batch of the first term, of the last call, detached.
        gradient_norm: Root of twice the mean of the second, detached.
        stability_penalty: The last term, detached.

    Raises:
        ValueError: If an argument is out of range.

    References:
        T. Pang, K. Xu, C. Li, Y. Song, S. Ermon and J. Zhu, "Efficient Learning of Generative Models via
        Finite-Difference Score Matching", NeurIPS 2020, arXiv:2007.03317 (FD-SSM), with v Gaussian in place of
        uniform on a sphere.

    Example:
        >>> import torch
        >>> log_density = lambda x: -0.5 * (x**2).sum(1)  # a standard normal in one dimension
        >>> loss = FiniteDifferenceScoreMatchingLoss(noise_std=0.1, stability=0.0, distribution="rademacher")
        >>> x = torch.tensor([[2.0]])
        >>> round(loss(log_density, x).item(), 4)  # -1 + 0.5 * 2**2
        1.0
    """

    trace: Tensor | None
    gradient_norm: Tensor | None
    stability_penalty: Tensor | None

    def __init__(
        self,
        n_samples: int = 1,
        noise_std: float = 0.1,
        stability: float = 1e-4,
        *,
        distribution: str = "gaussian",
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(max_examples_per_batch, share=share, generator=generator, comparison=True)
        check_weight("stability", stability)
        self.estimator = TraceEstimator("antithetic", n_samples, noise_std, distribution, generator)
        self.stability = stability
        self.trace = self.gradient_norm = self.stability_penalty = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        variance = self.estimator.noise_std**2
        noise = tuple(self.estimator.noise_std * u for u in self.estimator.directions(density))
        plus, minus, middle = displaced_values(density, None, noise)
        assert minus is not None
        trace = ((plus - middle) + (minus - middle)).mean(0) / variance
        squared = ((plus - minus) ** 2).mean() / (4 * variance)
        penalty = (self.stability * trace**2).mean()
        log = {"trace": trace.mean(), "gradient_norm": squared.sqrt(), "stability_penalty": penalty}
        return trace.mean() + 0.5 * squared + penalty, log

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.estimator}, stability={self.stability}{share_in_words(self.share)}"
