"""Pixel perturbation: what a model still knows when only the most, or the least, important pixels are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density._model.validation import expanded_baselines
from captum_density.metrics._classifier import Classifier
from captum_density.metrics._masks import ranks, top_count

__all__ = ["PixelPerturbation", "pixel_perturbation"]

_FRACTIONS = tuple(i / 10 for i in range(11))


class PixelPerturbation(NamedTuple):
    """What is left of predictions when a fraction of the pixels is. See `pixel_perturbation`.

    Args:
        fractions: (K,) of pixels kept, ascending.
        correct: (K, N) whether the target is predicted.
        probability: (K, N) softmax probability of the target, in [0, 1].
        area: (N,) under each example's probability over the fractions, by the trapezoid rule, over their range, in
            [0, 1]. With the top kept, higher is better: the pixels kept carry the prediction. With the bottom kept,
            lower is.
        accuracy_area: (N,) the same of `correct`; its mean is the area under the accuracy curve.
    """

    fractions: Tensor
    correct: Tensor
    probability: Tensor
    area: Tensor
    accuracy_area: Tensor


@takes_arrays
def pixel_perturbation(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    attributions: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    channels: Literal["together", "singly"] = "together",
    fractions: Sequence[float] = _FRACTIONS,
    keep: Literal["top", "bottom"] = "top",
    signed: bool = False,
    max_examples_per_batch: int | None = None,
) -> PixelPerturbation:
    """Keep a fraction of the pixels, by attribution, set the others to a baseline, and see what the model says.

    It asks about the model and the attribution at once, and of inputs unlike any it was trained on: a model may fail
    because what is missing matters, or because the gaps are new to it. Compare attributions on one model, beside a
    random one; `diff_roar` retrains instead.

    Args:
        forward_func: A classifier, (N, C) logits. It runs without gradients, batch norm on its running statistics.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        attributions: Like the inputs; with channels together also (N, 1, ...).
        baselines: What a pixel is set to: a number, or a tensor that broadcasts to the input, or a tuple of them; None
            for 0.
        additional_forward_args: As Captum's.
        target: The classes that ought to be predicted, (N,) or one integer: labels, or the model's own predictions.
        channels: "together" ranks pixels, by the sum over dimension 1 of what is ranked, and keeps or removes a pixel
            in all its channels; "singly" ranks every element by itself, as inputs without channels need.
        fractions: Of the pixels (elements) kept, in [0, 1]. Counts are rounded to the nearest, and halves in favour of
            the top: of the same attributions, the bottom 1 - f is exactly what the top f leaves.
        keep: "top" keeps those with the largest attributions, "bottom" those with the smallest.
        signed: Whether to rank by the attribution as it is; else by its absolute value.
        max_examples_per_batch: How many examples run at once; None for the whole batch, one fraction after another.

    Returns:
        Correctness and probability for each fraction and example, and the areas under them. Several inputs are ranked
        together. Ties are broken by position, alike on every device.

    Raises:
        ValueError: If shapes do not fit, attributions or baselines are not finite, fractions are out of range or
            repeat, the target is no class for each example, or the model draws random numbers (dropout in training
            mode).
        TypeError: If inputs or attributions are not floating-point.

    References:
        W. Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", IEEE TNNLS 2017,
        arXiv:1509.06321; S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, experiments, which removes the least
        important pixels.

    Example:
        >>> import torch
        >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)  # class 0 where the first element is large
        >>> x, importance = torch.tensor([[2.0, 5.0]]), torch.tensor([[1.0, 0.0]])
        >>> result = pixel_perturbation(model, x, importance, target=0, channels="singly", fractions=[0, 0.5, 1])
        >>> result.correct[:, 0].tolist(), round(result.accuracy_area.item(), 4)
        ([False, True, True], 0.75)
    """
    _check_choices(channels, keep)
    kept_fractions = _checked_fractions(fractions)
    with looked_at_together(at_the_outermost=True):
        classifier = Classifier(forward_func, inputs, target, additional_forward_args, max_examples_per_batch)
        xs, maps = classifier.inputs, attributions if isinstance(attributions, tuple) else (attributions,)
        fills = expanded_baselines(baselines, xs)
        order, sizes = _order(xs, maps, together=channels == "together", signed=signed)

        d = order.shape[1]
        correct, probability = [], []
        for fraction in kept_fractions:
            k = top_count(fraction, d) if keep == "top" else d - top_count(1 - fraction, d)
            kept = order < k if keep == "top" else order >= d - k
            masked = tuple(
                torch.where(mask, x.detach(), fill)[None]
                for x, fill, mask in zip(xs, fills, _masks(kept, xs, sizes, channels == "together"), strict=True)
            )
            right, p = classifier(masked)
            correct.append(right[0])
            probability.append(p[0])
        hits, chances = torch.stack(correct), torch.stack(probability)
        classifier.refuse_nan(chances)
    at = torch.tensor(kept_fractions, dtype=torch.float64, device="cpu")
    area, accuracy_area = _areas(torch.stack([chances.double(), hits.double()]), at)
    return PixelPerturbation(at, hits, chances, area, accuracy_area)


def _order(
    xs: tuple[Tensor, ...], maps: tuple[Tensor, ...], *, together: bool, signed: bool
) -> tuple[Tensor, list[int]]:
    """(N, d) the place of each pixel over all inputs, and how many pixels each input has."""
    if len(maps) != len(xs):
        raise ValueError(f"there must be attributions of each of {len(xs)} inputs, but there are {len(maps)}")
    scores = []
    for x, m in zip(xs, maps, strict=True):
        if not isinstance(m, Tensor) or not m.is_floating_point():
            raise TypeError("attributions must be floating-point tensors")
        if together and x.ndim < 3:
            raise ValueError(f"an input of shape {tuple(x.shape)} has no channels; take channels='singly'")
        allowed = [tuple(x.shape)] + ([(len(x), 1, *x.shape[2:])] if together else [])
        if tuple(m.shape) not in allowed:
            raise ValueError(
                f"attributions must have shape {' or '.join(map(str, allowed))}, but have {tuple(m.shape)}"
            )
        refuse_where(~m.isfinite().all(), partial(ValueError, "attributions contain NaN or infinity"))
        importance = m.detach().to(x.device, torch.float64)
        importance = importance if signed else importance.abs()
        scores.append((importance.sum(1) if together else importance).flatten(1))
    return ranks(torch.cat(scores, dim=1)), [s.shape[1] for s in scores]


def _masks(kept: Tensor, xs: tuple[Tensor, ...], sizes: list[int], together: bool) -> list[Tensor]:
    parts = kept.split(sizes, dim=1)
    return [
        part.reshape(len(x), 1, *x.shape[2:]) if together else part.reshape(x.shape)
        for part, x in zip(parts, xs, strict=True)
    ]


def _checked_fractions(fractions: Sequence[float]) -> list[float]:
    kept = sorted(float(f) for f in fractions)
    if len(kept) < 2 or len(set(kept)) < len(kept) or not all(0 <= f <= 1 for f in kept):
        raise ValueError(f"fractions must be two or more different numbers in [0, 1], but are {list(fractions)}")
    return kept


def _check_choices(channels: str, keep: str) -> None:
    if channels not in ("together", "singly"):
        raise ValueError(f"channels must be 'together' or 'singly', but is {channels!r}")
    if keep not in ("top", "bottom"):
        raise ValueError(f"keep must be 'top' or 'bottom', but is {keep!r}")


def _areas(curves: Tensor, fractions: Tensor) -> Tensor:
    """(2, N) of two sets of curves, (2, K, N)."""
    return torch.trapezoid(curves, fractions.to(curves.device)[:, None], dim=1) / (fractions[-1] - fractions[0])
