"""Attributions beside masks of what is known to decide."""

from __future__ import annotations

from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density.metrics._masks import ranks
from captum_density.metrics._signal_block_share import signal_block_share

__all__ = ["pointing_game", "relevance_mass", "relevance_rank"]


@takes_arrays
def relevance_mass(attributions: Tensor, masks: Tensor, *, positive: bool = False) -> Tensor:
    r"""Relevance mass accuracy: the share of an attribution that lies on what is known to decide.

    .. math:: \frac{\sum_{i \in \mathrm{mask}} R_i}{\sum_i R_i}, \qquad R_i = |a_i| \text{ or } \max(a_i, 0)

    Args:
        attributions: As `signal_block_share`.
        masks: As `signal_block_share`.
        positive: Whether to count what speaks for the output alone, the positive part; else the absolute value, which
            makes it `signal_block_share`.

    Returns:
        (N,) in [0, 1], of the attributions' dtype; higher is better, and an attribution that is alike everywhere, or
        zero, has the masks' share of the elements.

    Raises:
        ValueError: As `signal_block_share`.
        TypeError: As `signal_block_share`.

    References:
        L. Arras, A. Osman and W. Samek, "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural
        Network Explanations", Information Fusion 2022, arXiv:2003.07258, relevance mass accuracy.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[True, True, False, False]])
        >>> attributions = torch.tensor([[2.0, -1.0, 0.0, 1.0]])
        >>> relevance_mass(attributions, masks), relevance_mass(attributions, masks, positive=True)
        (tensor([0.7500]), tensor([0.6667]))
    """
    return signal_block_share(attributions.clamp_min(0) if positive else attributions, masks)


@takes_arrays
def relevance_rank(attributions: Tensor, masks: Tensor, *, signed: bool = False) -> Tensor:
    r"""Relevance rank accuracy: of as many elements as decide, those ranked highest, the share that does decide.

    .. math:: \frac{|\mathrm{top}_K(a) \cap \mathrm{mask}|}{K}, \qquad K = |\mathrm{mask}|

    Args:
        attributions: As `signal_block_share`.
        masks: As `signal_block_share`, with something in each.
        signed: Whether to rank by the attribution as it is; else by its absolute value.

    Returns:
        (N,) in [0, 1], of the attributions' dtype; higher is better, and random rankings have the masks' share of the
        elements. Ties are broken by position, alike on every device.

    Raises:
        ValueError: As `signal_block_share`, or a mask is empty.
        TypeError: As `signal_block_share`.

    References:
        L. Arras, A. Osman and W. Samek, arXiv:2003.07258, relevance rank accuracy, as `relevance_mass`.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[True, True, False, False]])
        >>> relevance_rank(torch.tensor([[2.0, 0.5, 0.0, 1.0]]), masks)
        tensor([0.5000])
    """
    importance, inside = _checked(attributions, masks, signed)
    size = inside.sum(1)
    top = ranks(importance) < size[:, None]
    return ((top & inside).sum(1) / size).to(attributions.dtype)


@takes_arrays
def pointing_game(attributions: Tensor, masks: Tensor, *, signed: bool = False) -> Tensor:
    """The pointing game: whether the largest attribution lies on what is known to decide.

    Args:
        attributions: As `signal_block_share`.
        masks: As `signal_block_share`, with something in each. The paper counts points within 15 pixels of an object as
            hits: widen the masks for that.
        signed: As `relevance_rank`.

    Returns:
        (N,) boolean; the mean is the accuracy, and random points have the masks' share of the elements. Of equal
        attributions the first counts.

    Raises:
        ValueError: As `relevance_rank`.
        TypeError: As `signal_block_share`.

    References:
        J. Zhang, S. A. Bargal, Z. Lin, J. Brandt, X. Shen and S. Sclaroff, "Top-Down Neural Attention by Excitation
        Backprop", IJCV 2018, arXiv:1608.00507, section 4.

    Example:
        >>> import torch
        >>> masks = torch.tensor([[True, True, False, False]])
        >>> pointing_game(torch.tensor([[2.0, 0.5, 0.0, -3.0]]), masks), pointing_game(
        ...     torch.tensor([[2.0, 0.5, 0.0, -3.0]]), masks, signed=True
        ... )
        (tensor([False]), tensor([True]))
    """
    importance, inside = _checked(attributions, masks, signed)
    return (inside & (ranks(importance) == 0)).any(1)


def _checked(attributions: Tensor, masks: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """(N, d) what is ranked, and what decides."""
    signal_block_share(attributions, masks)  # for what it refuses
    inside = masks.to(attributions.device).expand_as(attributions).flatten(1)
    if not bool(inside.any(1).all()):
        raise ValueError("each mask must mark something; leave out the examples of which nothing is known to decide")
    importance = attributions.detach().double().flatten(1)
    return importance if signed else importance.abs(), inside
