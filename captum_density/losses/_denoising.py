"""DenoisingScoreMatchingLoss: the score that points from noisy examples back to clean ones."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._density.hessian_trace import check_noise
from captum_density._density.log_density import LogDensity, squared_norm
from captum_density._model.generators import standard_noise
from captum_density.losses._density_loss import DensityLoss, Log, share_in_words

__all__ = ["DenoisingScoreMatchingLoss"]


class DenoisingScoreMatchingLoss(DensityLoss):
    r"""Denoising score matching: matches the score of the data smoothed by Gaussian noise, without a Hessian.

    .. math:: \frac{1}{N} \sum_n \mathbb{E}_v \frac{1}{2} \left\| \nabla f(x_n + v) + \frac{v}{\sigma^2} \right\|^2

    with v Gaussian of standard deviation sigma. At its minimum grad f is the score of the data's density convolved with
    that Gaussian. It works for ReLU networks as for any other, and takes one double backpropagation.

    Args:
        noise_std: sigma, in the inputs' units. The smaller, the closer to the data's own score and the noisier.
        Other arguments: As `ScoreMatchingLoss`.

    Attributes:
        gradient_norm: Root of the mean squared gradient norm at the noisy points, of the last call, detached.

    Raises:
        ValueError: If an argument is out of range.

    References:
        P. Vincent, "A Connection Between Score Matching and Denoising Autoencoders", Neural Computation 2011,
        section 4 (its objective with Gaussian noise).

    Example:
        >>> import torch
        >>> smoothed = lambda x: -0.5 * ((x / 0.5) ** 2).sum(1)  # data at 0, noise of 0.5
        >>> round(DenoisingScoreMatchingLoss(0.5)(smoothed, torch.zeros(8, 3)).item(), 4)
        0.0
    """

    gradient_norm: Tensor | None
    _evaluates_examples = False

    def __init__(
        self,
        noise_std: float = 0.1,
        n_samples: int = 1,
        *,
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(max_examples_per_batch, share=share, generator=generator, second_derivatives=True)
        check_noise(n_samples, noise_std, generator)
        self.noise_std, self.n_samples = noise_std, n_samples
        self.gradient_norm = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        noise = standard_noise(density.inputs, self.n_samples, "gaussian", self.generator)
        points = density.displaced(tuple(self.noise_std * u for u in noise))
        _, gradients = density.scores(points, create_graph=create_graph)
        residuals = tuple(g + u / self.noise_std for g, u in zip(gradients, noise, strict=True))
        loss = 0.5 * squared_norm(residuals).mean()
        return loss, {"gradient_norm": squared_norm(gradients).mean().sqrt()}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"noise_std={self.noise_std}, n_samples={self.n_samples}{share_in_words(self.share)}"
