"""Captum's feature masks: which elements are one group, and what attributions give to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._model.refusals import refuse_where

__all__ = ["group_numbers", "group_sums"]


def group_numbers(xs: tuple[Tensor, ...], feature_mask: Any) -> tuple[list[Tensor], int]:
    """(N, elements) the group of each element of each input, numbered without gaps, and how many there are.

    Args:
        xs: The inputs, (N, ...) each.
        feature_mask: As Captum's, one for each input; None for every element singly.

    Raises:
        ValueError: As many as there are inputs are not given, no integers, or of shapes that do not broadcast; inputs
            of unequal numbers of rows.
    """
    for i, x in enumerate(xs):
        if len(x) != len(xs[0]):
            raise ValueError(
                f"inputs and their attributions must have a row for each example, but input {i} has {len(x)} and input "
                f"0 has {len(xs[0])}; expand what is the same for all examples"
            )
    if feature_mask is None:
        first, flat = 0, []
        for x in xs:
            elements = x[0].numel()
            flat.append(torch.arange(first, first + elements, device=x.device).expand(len(x), elements))
            first += elements
        return flat, first
    masks = list(feature_mask) if isinstance(feature_mask, tuple) else [feature_mask]
    if len(masks) != len(xs):
        raise ValueError(f"feature_mask must have a tensor for each of {len(xs)} inputs, but has {len(masks)}")
    rows, parts = 1, []
    for x, mask in zip(xs, masks, strict=True):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            raise ValueError("feature_mask must hold integers, the group of each element")
        # One row where it is the same for all examples, which is all that has to be numbered then.
        n = len(x) if mask.ndim == x.ndim and len(mask) > 1 else 1
        try:
            parts.append(mask.to(x.device).expand(n, *x.shape[1:]).flatten(1))
        except RuntimeError as error:
            raise ValueError(
                f"feature_mask must broadcast to the input {tuple(x.shape)}, but has shape {tuple(mask.shape)}"
            ) from error
        rows = max(rows, n)
    names, numbers = torch.cat([part.expand(rows, -1) for part in parts], dim=1).unique(return_inverse=True)
    whole = numbers.expand(len(xs[0]), -1)
    return list(whole.split([part.shape[1] for part in parts], dim=1)), len(names)


def group_sums(
    xs: tuple[Tensor, ...], attributions: Any, groups: list[Tensor], d: int, *, signed: bool
) -> tuple[Tensor, Tensor]:
    """(N, d) the sum of each group's attributions, float64, and whether the example has the group.

    Args:
        xs: The inputs, (N, ...) each.
        attributions: Like the inputs.
        groups: As of `group_numbers`.
        d: Likewise.
        signed: Whether to add attributions as they are; else their absolute values.

    Raises:
        TypeError: Attributions that are not floating-point.
        ValueError: Attributions of other shapes, or not finite.
    """
    maps = attributions if isinstance(attributions, tuple) else (attributions,)
    if len(maps) != len(xs):
        raise ValueError(f"there must be attributions of each of {len(xs)} inputs, but there are {len(maps)}")
    scores = torch.zeros(len(xs[0]), d, dtype=torch.float64, device=xs[0].device)
    sizes = torch.zeros_like(scores)
    for x, m, at in zip(xs, maps, groups, strict=True):
        if not isinstance(m, Tensor) or not m.is_floating_point():
            raise TypeError("attributions must be floating-point tensors")
        if m.shape != x.shape:
            raise ValueError(f"attributions must have shape {tuple(x.shape)}, but have {tuple(m.shape)}")
        refuse_where(~m.isfinite().all(), partial(ValueError, "attributions contain NaN or infinity"))
        values = m.detach().to(x.device, torch.float64).flatten(1)
        scores.scatter_add_(1, at, values if signed else values.abs())
        sizes.scatter_add_(1, at, torch.ones_like(values))
    return scores, sizes > 0
