"""Deletion and insertion over groups of elements: what a model's output loses as they go, in order of attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.feature_masks import group_numbers, group_sums
from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density._model.validation import expanded_baselines
from captum_density.metrics._masks import ranks, top_counts

__all__ = ["GroupPerturbation", "group_perturbation", "patch_mask"]

_FRACTIONS = tuple(i / 10 for i in range(11))


class GroupPerturbation(NamedTuple):
    """What is left of an output as groups of elements go. See `group_perturbation`.

    Args:
        fractions: (K,) of the groups that are gone, ascending.
        most_relevant_first: (K, N) the output as the groups with the largest attributions go first.
        least_relevant_first: (K, N) the output as those with the smallest go first.
        deletion: (N,) area under `most_relevant_first` over the fractions, by the trapezoid rule, over their range:
            lower is better.
        insertion: (N,) area under the output as groups come to the baseline, those with the largest attributions first,
            which is that under `least_relevant_first` read backwards: higher is better.
        symmetric_gain: (N,) insertion minus deletion: higher is better, 0 for random rankings on average, whatever
            removing elements does by itself.
    """

    fractions: Tensor
    most_relevant_first: Tensor
    least_relevant_first: Tensor
    deletion: Tensor
    insertion: Tensor
    symmetric_gain: Tensor


@takes_arrays
def group_perturbation(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    attributions: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    fractions: Sequence[float] = _FRACTIONS,
    signed: bool = True,
    max_examples_per_batch: int | None = None,
) -> GroupPerturbation:
    """Take groups of elements away in the order of their attributions, from both ends, and follow the output.

    Pixels, patches, superpixels, tokens or features are groups by `feature_mask`, as in Captum's `FeatureAblation`. The
    order from the most relevant group on is pixel flipping, or deletion; the reverse is insertion; their difference
    cancels what any removal does to the model, so that it compares across baselines and shapes of groups.

    Args:
        forward_func: Returns (N,), or outputs of which `target` names one: a probability, to read areas as parts of 1,
            or a logit. It runs without gradients, batch norm on its running statistics.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        attributions: Like the inputs.
        baselines: What an element that is gone is set to: a number, or a tensor that broadcasts to the input, or a
            tuple of them; None for 0.
        additional_forward_args: As Captum's.
        target: As Captum's.
        feature_mask: As Captum's: the group of each element, integers (1, ...) or (N, ...) that broadcast to the input,
            one tensor for each input; equal numbers are one group, across inputs too. None for each element by itself.
            See `patch_mask`.
        fractions: Of the groups, that are gone, in [0, 1]. Counts are rounded to the nearest.
        signed: Whether groups are ranked by the sum of their attributions; else by the sum of absolute values.
        max_examples_per_batch: How many examples run at once; None for the whole batch.

    Returns:
        Curves and areas, in the output's unit.

    Raises:
        ValueError: If shapes do not fit, attributions or baselines are not finite, groups are no integers, fractions
            are out of range or repeat, outputs are NaN, or the model draws random numbers (dropout in training mode).
        TypeError: If inputs or attributions are not floating-point.

    References:
        W. Samek et al., IEEE TNNLS 2017, arXiv:1509.06321 (most and least relevant first); V. Petsiuk, A. Das and K.
        Saenko, "RISE", BMVC 2018, arXiv:1806.07421 (deletion and insertion); S. Bluecher, J. Vielhaben and N.
        Strodthoff, "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks", TMLR 2024,
        arXiv:2401.06654 (symmetric relevance gain).

    Example:
        >>> import torch
        >>> weights = torch.tensor([3.0, 2.0, 1.0, 0.0])
        >>> model, x = (lambda x: x @ weights), torch.ones(1, 4)
        >>> pairs, halves = torch.tensor([[0, 0, 1, 1]]), [0, 0.5, 1]
        >>> result = group_perturbation(model, x, weights[None], feature_mask=pairs, fractions=halves)
        >>> result.most_relevant_first[:, 0].tolist(), result.least_relevant_first[:, 0].tolist()
        ([6.0, 1.0, 0.0], [6.0, 5.0, 0.0])
        >>> result.deletion.item(), result.insertion.item(), result.symmetric_gain.item()
        (2.0, 4.0, 2.0)
    """
    gone = sorted(float(f) for f in fractions)
    if len(gone) < 2 or len(set(gone)) < len(gone) or not all(0 <= f <= 1 for f in gone):
        raise ValueError(f"fractions must be two or more different numbers in [0, 1], but are {list(fractions)}")
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
        scores, present = group_sums(xs, attributions, groups, d, signed=signed)
        # Groups that an example does not have come last, so that the others keep their places.
        order = ranks(scores.masked_fill(~present, -torch.inf))
        sizes = present.sum(1, keepdim=True)

        curves = []
        with torch.no_grad(), batch.evaluation(comparison=True):
            for fraction in gone:
                count = top_counts(fraction, sizes)
                points = [
                    tuple(
                        torch.where(away.gather(1, at).view_as(x), fill, x.detach())
                        for x, fill, at in zip(xs, fills, groups, strict=True)
                    )
                    for away in (order < count, order >= sizes - count)
                ]
                curves.append([_outputs(batch, point) for point in points])
        most, least = (torch.stack([pair[side] for pair in curves]) for side in (0, 1))
        refuse_where(most.isnan().any() | least.isnan().any(), partial(ValueError, "the model returned NaN"))
    at = torch.tensor(gone, dtype=torch.float64, device="cpu")
    deletion, insertion = (
        torch.trapezoid(curve.double(), at.to(curve.device)[:, None], dim=0) / (at[-1] - at[0]).item()
        for curve in (most, least)
    )
    return GroupPerturbation(at, most, least, deletion, insertion, insertion - deletion)


@takes_arrays
def patch_mask(inputs: Tensor, size: int | tuple[int, ...]) -> Tensor:
    """A `feature_mask` of patches: neighbours along the dimensions behind the channels are one group.

    Args:
        inputs: (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        size: Of a patch, in each of these dimensions, or one for all; those at the end are smaller where it does not
            fit.

    Returns:
        Integers (1, 1, ...), 0 to the number of patches - 1, row by row; on the inputs' device.

    Raises:
        ValueError: Inputs of fewer dimensions, sizes below 1 or of another number.

    Example:
        >>> import torch
        >>> patch_mask(torch.zeros(2, 3, 2, 4), 2)
        tensor([[[[0, 0, 1, 1],
                  [0, 0, 1, 1]]]])
    """
    sides = tuple(inputs.shape[2:])
    steps = (size,) * len(sides) if isinstance(size, int) else tuple(size)
    if not sides or len(steps) != len(sides) or any(step < 1 for step in steps):
        raise ValueError(
            f"inputs of shape {tuple(inputs.shape)} need a size of at least 1 for each of their {max(len(sides), 1)} "
            f"dimensions behind the channels, but got {size!r}"
        )
    mask = torch.zeros(sides, dtype=torch.long, device=inputs.device)
    for dim, (side, step) in enumerate(zip(sides, steps, strict=True)):
        at = torch.arange(side, device=inputs.device) // step
        mask = mask * -(-side // step) + at.view([-1 if i == dim else 1 for i in range(len(sides))])
    return mask[None, None]


def _outputs(batch: ModelOnBatch, points: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([batch.selected(tuple(p[part] for p in points), part) for part in batch.parts()])
