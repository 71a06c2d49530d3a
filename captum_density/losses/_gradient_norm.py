"""GradientNormLoss: flat logits around the data."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._density.log_density import LogDensity, squared_norm
from captum_density.losses._density_loss import DensityLoss, Log, share_in_words

__all__ = ["GradientNormLoss"]


class GradientNormLoss(DensityLoss):
    r"""Half the squared norm of the input-gradient of the log-density, averaged over the batch.

    .. math:: \frac{1}{N} \sum_n \frac{1}{2} \|\nabla f(x_n)\|^2

    The second term of score matching alone. By a Taylor expansion it is what training with noise of small variance asks
    for, too, up to the trace. Dropout in training mode is differentiated as drawn.

    Args:
        share: As `ScoreMatchingLoss`.
        generator: What the share is drawn from; None for the global generator.

    Attributes:
        gradient_norm: Root of the batch's mean squared gradient norm, of the last call, detached.

    Raises:
        ValueError: If the share is out of range.

    References:
        H. Drucker and Y. Le Cun, "Improving generalization performance using double backpropagation", IEEE
        Transactions on Neural Networks 1992; S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> loss = GradientNormLoss()(model, torch.randn(8, 4), target=1)
        >>> bool(torch.isclose(loss, 0.5 * (model.weight[1] ** 2).sum()))
        True
    """

    gradient_norm: Tensor | None

    def __init__(self, *, share: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__(share=share, generator=generator, second_derivatives=True)
        self.gradient_norm = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        _, gradients = density.clean_scores(create_graph=create_graph)
        squared = squared_norm(gradients).mean()
        return 0.5 * squared, {"gradient_norm": squared.sqrt()}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return share_in_words(self.share).removeprefix(", ")
