"""Finite-difference gap: whether the output changes as its gradient promises."""

from __future__ import annotations

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
    changes: float | Sequence[float] | Tensor = 0.1,
    signed: bool = False,
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
            several the largest gap counts. A tensor (K, N) holds K for each example.
        signed: Whether to return what is missing of each promise, 1 - (...) / (2 delta), in place of the largest
            absolute value: positive where the output changes less than promised, as with waves, and negative where it
            changes more, as a saturated output does.
        max_examples_per_batch: As Captum's.

    Returns:
        (N,) >= 0, detached: 0 where the output changes as promised, and where the gradient is zero; or (K, N) for K
        changes if `signed`. In float32, outputs of size F leave rounding of about 1e-7 F / delta.

    Raises:
        ValueError: If a change is not positive and finite, or the model draws random numbers; if there are not as many
            as examples; as `captum_density.density.class_log_density` otherwise.
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
    deltas = torch.as_tensor(changes, dtype=torch.float64, device="cpu")
    deltas = deltas if deltas.ndim == 2 else deltas.reshape(-1, 1)
    if not deltas.numel() or not (deltas > 0).all() or not deltas.isfinite().all():
        raise ValueError(f"changes must be positive and finite, but are {changes!r}")
    density = LogDensity(
        forward_func,
        inputs,
        target,
        additional_forward_args,
        max_examples_per_batch=max_examples_per_batch,
        marginal=False,
    )
    if deltas.shape[1] not in (1, density.n):
        raise ValueError(
            f"changes must be numbers, or of shape (K, {density.n}) for {density.n} examples, but have shape "
            f"{tuple(deltas.shape)}"
        )
    deltas = deltas.expand(-1, density.n)
    with density.evaluation(comparison=True):
        missing = torch.cat([_missing(density.at(rows), deltas[:, rows]) for rows in density.parts()], dim=1)
    return missing if signed else missing.abs().amax(dim=0)


def _missing(density: LogDensity, deltas: Tensor) -> Tensor:
    """(K, N) what is missing of each promise."""
    _, gradients = density.scores(density.points())
    squared = squared_norm(tuple(g.detach() for g in gradients))[0]
    deltas = deltas.to(squared)
    steps = tuple(_over(g[0].detach(), squared.clamp(min=torch.finfo(squared.dtype).tiny)) for g in gradients)
    missing = torch.zeros_like(deltas)
    with torch.no_grad():
        for row, delta in zip(missing, deltas, strict=True):
            up, down = (density.values(_displaced(density, steps, sign * delta))[0] for sign in (1, -1))
            row.copy_(1 - (up - down) / (2 * delta))
    return torch.where(squared > 0, missing, 0.0)


def _over(gradient: Tensor, squared: Tensor) -> Tensor:
    """grad f / |grad f|^2: the step along the gradient of which it promises a change of 1."""
    return (gradient.to(squared.dtype) / squared.view(-1, *[1] * (gradient.ndim - 1))).to(gradient.dtype)


def _displaced(density: LogDensity, steps: Points, by: Tensor) -> Points:
    sizes = (by.to(step).view(-1, *[1] * (step.ndim - 1)) for step in steps)
    return density.displaced(tuple((size * step)[None] for size, step in zip(sizes, steps, strict=True)))
