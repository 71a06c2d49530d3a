"""Single deletion: whether the cells that an attribution gives most are those whose loss the output feels most."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._display.rank_correlation import rank_correlation
from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.feature_masks import group_numbers, group_sums
from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density._model.validation import expanded_baselines

__all__ = ["in_domain_single_deletion"]


@takes_arrays
def in_domain_single_deletion(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    attributions: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""The in-domain single deletion score (IDSDS): do attributions of cells rank as what is lost without each?

    .. math:: \rho_c \left( \sum_{i \in c} a_i, \; f(x) - f(x_{-c}) \right)

    with Spearman's rank correlation over the cells c of an example, signs included, each of them away in turn. Where
    one cell is away, an input is far from the data only for a model that has never seen such: give the model that
    `fine_tune` returns with `single_deletion`, and attributions of it. With any other model this is the single deletion
    score, in-domain or not.

    Args:
        forward_func: As `group_perturbation`; in the paper, logits.
        inputs: As `group_perturbation`.
        attributions: As `group_perturbation`, with their signs.
        baselines: As `group_perturbation`, and the same as of `single_deletion`.
        additional_forward_args: As Captum's.
        target: As Captum's; in the paper, the true class.
        feature_mask: As `group_perturbation`: the cell of each element. The paper's are a grid of 4 by 4 on images,
            such as `patch_mask` makes: ``patch_mask(x, 56)`` of images of 224 pixels.
        max_examples_per_batch: As `group_perturbation`. The model runs once for each cell.

    Returns:
        (N,) in [-1, 1], float64; higher is better, random attributions have 0 on average. Equal values share their
        rank, and where all attributions or all losses are equal, the score is 0. A cell that holds its baseline already
        loses exactly 0. (The authors leave examples without a correlation out of the mean.)

    Raises:
        ValueError: As `group_perturbation`; cells of which there is only one.
        TypeError: As `group_perturbation`.

    References:
        R. Hesse, S. Schaub-Meyer and S. Roth, "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024,
        arXiv:2407.11910; checked against the authors' code (github.com/visinf/idsds, single_deletion.py).

    Example:
        >>> import torch
        >>> weights = torch.tensor([3.0, 2.0, 1.0, -4.0])
        >>> model, x = (lambda x: x @ weights), torch.ones(1, 4)
        >>> own, absolute = (in_domain_single_deletion(model, x, a[None]).item() for a in (weights, weights.abs()))
        >>> round(own, 3), round(absolute, 3)  # a linear model loses gradient x input; the sign counts
        (1.0, -0.2)
    """
    with looked_at_together(at_the_outermost=True):
        batch = ModelOnBatch(
            forward_func,
            inputs,
            target,
            additional_forward_args,
            max_examples_per_batch=max_examples_per_batch,
            differentiable=False,
        )
        xs, fills = batch.inputs, expanded_baselines(baselines, batch.inputs)
        groups, d = group_numbers(xs, feature_mask)
        if d < 2:
            raise ValueError(f"there must be cells to compare, but there is {d}; pass a feature_mask of several")
        scores, present = group_sums(xs, attributions, groups, d, signed=True)
        losses = _losses(batch, fills, groups, d)
        refuse_where(losses.isnan().any(), partial(ValueError, "the model returned NaN"))
    lowest = losses.masked_fill(~present, torch.inf).amin(1)
    highest = losses.masked_fill(~present, -torch.inf).amax(1)
    return rank_correlation(scores, losses, present).masked_fill(lowest == highest, 0)


def _losses(batch: ModelOnBatch, fills: tuple[Tensor, ...], groups: list[Tensor], d: int) -> Tensor:
    """(N, d) float64, by how much the output falls without each cell."""
    n, device = batch.n, batch.device
    left = []
    with torch.no_grad(), batch.evaluation(comparison=True):
        own = torch.cat([batch.selected(None, part) for part in batch.parts()])
        for part in batch.parts(n * d, unlimited=n):  # cell by cell, each of all examples
            at = torch.arange(part.start, part.stop, device=device)
            rows, cells = at % n, at.div(n, rounding_mode="floor")
            points = []
            for x, fill, group in zip(batch.inputs, fills, groups, strict=True):
                x = x[rows].detach()
                points.append(torch.where((group[rows] == cells[:, None]).view_as(x), fill[rows], x))
            left.append(batch.selected(tuple(points), rows))
    losses = own.double()[:, None] - torch.cat(left).double().view(d, n).T
    # Where nothing changes, nothing is lost: what rounding says otherwise, it does differently in other batches.
    changed = torch.zeros_like(losses)
    for x, fill, group in zip(batch.inputs, fills, groups, strict=True):
        changed.scatter_add_(1, group, (x != fill).double().flatten(1))
    return losses.masked_fill(changed == 0, 0)
