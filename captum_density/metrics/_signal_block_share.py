"""How much of an attribution is on the part of the input that is known to matter."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays

__all__ = ["signal_block_share"]


@takes_arrays
def signal_block_share(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""Share of each attribution's absolute mass that lies inside a mask, such as the signal block of `BlockImages`.

    .. math:: \frac{\sum_{i \in \mathrm{mask}} |a_i|}{\sum_i |a_i|}

    An attribution that is alike everywhere has the share of the elements that the mask has, 1/2 for two blocks. Near
    that, it tells a model's signal block no better than chance: the block where other examples carry the signal is
    marked as well ("feature leakage").

    Args:
        attributions: (N, ...) of finite floating-point numbers, such as (N, C, H, W), (N, 1, H, W) or (N, D).
        masks: Boolean, true where the signal is; of as many dimensions, each as the attributions' or 1, such as
            (N, 1, H, W). On any device.

    Returns:
        (N,) in [0, 1], of the attributions' dtype; higher is better. An attribution that is zero everywhere prefers no
        element, so it counts as one that is alike everywhere.

    Raises:
        ValueError: If the attributions are empty, NaN or infinite, or the masks' shape does not fit.
        TypeError: If the attributions are not floating-point or the masks not boolean.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, BlockMNIST and feature leakage, which this puts a number on.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[True, True, False, False]])
        >>> attributions = torch.tensor([[2.0, -1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        >>> signal_block_share(attributions, masks)
        tensor([0.7500, 0.5000])
    """
    if not attributions.is_floating_point():
        raise TypeError(f"attributions must be floating-point, but are {attributions.dtype}")
    if masks.dtype != torch.bool:
        raise TypeError(f"masks must be boolean, but are {masks.dtype}; pass masks > 0, or masks.bool()")
    if attributions.ndim < 2 or attributions.numel() == 0:
        raise ValueError(f"attributions must be (N, ...) and not empty, but have shape {tuple(attributions.shape)}")
    if masks.ndim != attributions.ndim or any(
        m not in (1, a) for m, a in zip(masks.shape, attributions.shape, strict=True)
    ):
        raise ValueError(
            f"masks must have shape {tuple(attributions.shape)} like the attributions, or 1 in some dimensions, but "
            f"have {tuple(masks.shape)}"
        )
    if not bool(attributions.isfinite().all()):
        raise ValueError("attributions contain NaN or infinity, which has no share")
    mass = attributions.detach().double().abs().flatten(1)
    # Against the largest, as the sum of very large numbers is infinite.
    largest = mass.amax(dim=1, keepdim=True)
    mass = torch.where(largest > 0, mass / largest, 1.0)
    inside = masks.to(attributions.device).expand_as(attributions).flatten(1)
    return ((mass * inside).sum(dim=1) / mass.sum(dim=1)).to(attributions.dtype)
