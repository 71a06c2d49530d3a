"""What is deleted at random in training, so that a model knows inputs with holes."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.feature_masks import group_numbers
from captum_density._model.validation import expanded_baselines

__all__ = ["random_deletion", "single_deletion"]


@takes_arrays
def single_deletion(
    inputs: Tensor,
    feature_mask: Tensor,
    baselines: float | Tensor | None = None,
    *,
    share: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Delete one cell, drawn at random, of some of the examples: what makes `in_domain_single_deletion` in-domain.

    Call it on each batch of a training loop of yours, or give it to `fine_tune`.

    Args:
        inputs: (N, ...), floating-point.
        feature_mask: As `in_domain_single_deletion`: the cell of each element, (1, ...) or (N, ...) integers.
        baselines: As `in_domain_single_deletion`: what a deleted element becomes; None for 0.
        share: Of the examples that lose a cell, on average, in [0, 1]; the authors' is a half.
        generator: What is drawn from; None for the global generator of the inputs' device.

    Returns:
        (N, ...), a new tensor.

    Raises:
        ValueError: Shapes that do not fit, masks that are no integers, a share outside [0, 1].

    References:
        R. Hesse, S. Schaub-Meyer and S. Roth, "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024,
        arXiv:2407.11910; checked against the authors' code (github.com/visinf/idsds, train.py).

    Example:
        >>> import torch
        >>> pairs = torch.tensor([[0, 0, 1, 1]])
        >>> single_deletion(torch.ones(3, 4), pairs, share=1.0, generator=torch.Generator().manual_seed(0)).sum(1)
        tensor([2., 2., 2.])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], but is {share}")
    (fill,), ((groups,), d) = expanded_baselines(baselines, (inputs,)), group_numbers((inputs,), feature_mask)
    device = inputs.device if generator is None else generator.device
    shape = (len(inputs), 1)
    cell = torch.randint(d, shape, generator=generator, device=device).to(inputs.device)
    chosen = torch.rand(shape, generator=generator, device=device).to(inputs.device) < share
    return torch.where(((groups == cell) & chosen).view_as(inputs), fill, inputs)


@takes_arrays
def random_deletion(
    inputs: Tensor,
    fraction: float,
    feature_mask: Tensor | None = None,
    baselines: float | Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Delete a fraction of the elements of each example, drawn at random: what `f_fidelity` fine-tunes with.

    Args:
        inputs: As `single_deletion`.
        fraction: Of the elements, or groups, that is deleted, in [0, 1]; rounded to the nearest number of them.
        feature_mask: The group of each element, (1, ...) or (N, ...) integers; None for every element singly.
        baselines: As `single_deletion`.
        generator: As `single_deletion`.

    Returns:
        (N, ...), a new tensor.

    Raises:
        ValueError: As `single_deletion`; a fraction outside [0, 1].

    References:
        X. Zheng et al., "F-Fidelity: A Robust Framework for Faithfulness Evaluation of Explainable AI", ICLR 2025,
        arXiv:2410.02970; checked against the authors' code (github.com/AslanDing/Finetune-Fidelity, train_model.py,
        which deletes in the first channel only: here, give a `feature_mask` for pixels in all channels).

    Example:
        >>> import torch
        >>> random_deletion(torch.ones(3, 8), 0.25).sum(1)
        tensor([6., 6., 6.])
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], but is {fraction}")
    (fill,), ((groups,), d) = expanded_baselines(baselines, (inputs,)), group_numbers((inputs,), feature_mask)
    device = inputs.device if generator is None else generator.device
    count = int(fraction * d + 0.5)
    order = torch.rand((len(inputs), d), generator=generator, device=device).argsort(1).to(inputs.device)
    gone = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return torch.where(gone.gather(1, groups).view_as(inputs), fill, inputs)
