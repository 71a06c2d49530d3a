"""Finite-difference gap: whether the output changes as its gradient promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_density._density.log_density import LogDensity, squared_norm
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.copies import Points

__all__ = ["finite_difference_gap"]


@takes_arrays
def finite_difference_gap(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    changes: float | Sequence[float] = 0.1,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""How far the output's change along its own gradient is from what the gradient promises.

    .. math:: \max_\delta \left| 1 - \frac{f(x + h u) - f(x - h u)}{2 \delta} \right|, \qquad
        u = \frac{\nabla f(x)}{\|\nabla f(x)\|}, \quad h = \frac{\delta}{\|\nabla f(x)\|}

    Of a step so short that the gradient promises a change of delta, the output ought to change by delta. Waves too low
    to matter for values and too steep for gradients to show anything else (`captum_density.softmax_shift.BoundedShift`)
    give changes of which the promise is a multiple: 0.5 for waves as steep as the output itself. So does a network
    whose gradient holds in the smallest neighbourhood only, made to or not; what it explains is as small.

    Args:
        forward_func: Returns outputs of which `target` picks one.
        inputs: Floating-point tensor (N, ...) or tuple of such; all of them move together.
        target: As Captum's.
        additional_forward_args: As Captum's.
        changes: delta, in the output's unit: larger than what waves would do to values, smaller than what matters; of
            several the largest gap counts.
        max_examples_per_batch: As Captum's.

    Returns:
        (N,) >= 0, detached: 0 where the output changes as promised, and where the gradient is zero. In float32, outputs
        of size F leave rounding of about 1e-7 F / delta.

    Raises:
        ValueError: If a change is not positive and finite, or the model draws random numbers; as
            `captum_density.density.class_log_density` otherwise.
        TypeError: As there.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        A. Athalye, N. Carlini and D. Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018,
        arXiv:1802.00420, for gradients that do not show what the output does; the measure is derived above.

    Example:
        >>> import torch
        >>> from captum_density.softmax_shift import BoundedShift
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
        >>> waved = BoundedShift(model, amplitude=1e-3, frequency=1e5)
        >>> [bool((finite_difference_gap(f, x, target=0) > 0.5).all()) for f in (model, waved)]
        [False, True]
    """
    deltas = [float(delta) for delta in (changes if isinstance(changes, Sequence | Tensor) else [changes])]
    if not deltas or not all(0 < delta < math.inf for delta in deltas):
        raise ValueError(f"changes must be positive and finite, but are {changes!r}")
    density = LogDensity(
        forward_func,
        inputs,
        target,
        additional_forward_args,
        max_examples_per_batch=max_examples_per_batch,
        marginal=False,
    )
    with density.evaluation(comparison=True):
        return torch.cat([_gaps(density.at(rows), deltas) for rows in density.parts()])


def _gaps(density: LogDensity, deltas: Sequence[float]) -> Tensor:
    _, gradients = density.scores(density.points())
    squared = squared_norm(tuple(g.detach() for g in gradients))[0]
    moves = squared > 0
    steps = tuple(_over(g[0].detach(), squared.clamp(min=torch.finfo(squared.dtype).tiny)) for g in gradients)
    gaps = torch.zeros_like(squared)
    with torch.no_grad():
        for delta in deltas:
            up, down = (density.values(_displaced(density, steps, sign * delta))[0] for sign in (1, -1))
            gaps = torch.maximum(gaps, (1 - (up - down) / (2 * delta)).abs())
    return torch.where(moves, gaps, 0.0)


def _over(gradient: Tensor, squared: Tensor) -> Tensor:
    """grad f / |grad f|^2: the step along the gradient of which it promises a change of 1."""
    return (gradient.to(squared.dtype) / squared.view(-1, *[1] * (gradient.ndim - 1))).to(gradient.dtype)


def _displaced(density: LogDensity, steps: Points, by: float) -> Points:
    return density.displaced(tuple((by * step)[None] for step in steps))
