"""SlicedScoreMatchingLoss: score matching along random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._density.hessian_trace import TraceEstimator, warn_if_flat
from captum_density._density.log_density import LogDensity, squared_norm
from captum_density.losses._density_loss import DensityLoss, Log, share_in_words

__all__ = ["SlicedScoreMatchingLoss"]


class SlicedScoreMatchingLoss(DensityLoss):
    r"""Sliced score matching: the score projected on random directions u, by exact second derivatives.

    .. math:: \frac{1}{N} \sum_n \mathbb{E}_u \left[ u^\top H(x_n) u + \frac{1}{2} (u^\top \nabla f(x_n))^2 \right]

    With `variance_reduced` the square is replaced by its mean over u, |grad f|^2 (SSM-VR). It sees no curvature of a
    ReLU network, whose second derivatives are zero, and warns; `ScoreMatchingLoss` does, at a finite distance.

    Args:
        n_samples: Directions for each example.
        variance_reduced: Whether to take the square's mean.
        distribution: "rademacher" (1 or -1) or "gaussian", of the directions.
        Other arguments: As `ScoreMatchingLoss`.

    Attributes:
        trace: Mean of u'Hu, of the last call, detached.
        gradient_norm: Root of the mean of the square, projected or not, detached.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Y. Song, S. Garg, J. Shi and S. Ermon, "Sliced Score Matching", UAI 2019, arXiv:1905.07088 (SSM and SSM-VR).

    Example:
        >>> import torch
        >>> log_density = lambda x: -0.5 * (x**2).sum(1)  # standard normal: trace -4, gradient -x
        >>> x = torch.randn(8, 4)
        >>> loss = SlicedScoreMatchingLoss()(log_density, x)
        >>> bool(torch.isclose(loss, -4 + 0.5 * (x**2).sum(1).mean()))
        True
    """

    trace: Tensor | None
    gradient_norm: Tensor | None

    def __init__(
        self,
        n_samples: int = 1,
        variance_reduced: bool = True,
        *,
        distribution: str = "rademacher",
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(max_examples_per_batch, share=share, generator=generator, second_derivatives=True)
        self.estimator = TraceEstimator("hutchinson", n_samples, distribution=distribution, generator=generator)
        self.variance_reduced = variance_reduced
        self.trace = self.gradient_norm = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        directions = self.estimator.directions(density)
        _, gradients = density.clean_scores(create_graph=create_graph)
        curvatures = density.curvatures(directions, create_graph=create_graph)
        warn_if_flat(curvatures)
        if self.variance_reduced:
            squared = squared_norm(gradients)
        else:
            projected = [(u * g).reshape(*u.shape[:2], -1).sum(2) for u, g in zip(directions, gradients, strict=True)]
            squared = torch.stack(projected).sum(0) ** 2
        loss = curvatures.mean() + 0.5 * squared.mean()
        return loss, {"trace": curvatures.mean(), "gradient_norm": squared.mean().sqrt()}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.estimator}, variance_reduced={self.variance_reduced}{share_in_words(self.share)}"
