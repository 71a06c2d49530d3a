"""Sensitivity (a): whether the one feature that changes the output gets any attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.attribution import attribute_function
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density.metrics._axioms._feature_vectors import FeatureVectors, explaining, quotient

__all__ = ["sensitivity_gap"]


@takes_arrays
def sensitivity_gap(
    explanation_func: Callable[..., Any],
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    features: Sequence[int] | None = None,
    tolerance: float = 1e-6,
    max_examples_per_batch: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """How many of the features that change the output by themselves get no attribution for it.

    For each feature i, takes the input that is x_i there and the baseline elsewhere. Where its output differs from the
    baseline's, the axiom asks for a nonzero attribution at i. A gradient has none where the function is flat, as
    min(x, 1) is at 2.

    It says nothing of features that act together only, such as each factor of a product with baseline 0, nor whether
    attributions are of the right size.

    Args:
        explanation_func: The method: a Captum class, an attribution, a function of the model that returns one, or an
            attribute function, as `captum.metrics.sensitivity_max` takes it. It is given `baselines` (of the inputs'
            shape), `target` and `additional_forward_args` as far as it takes them.
        forward_func: f, which the method explains. It runs with batch norm on its running statistics.
        inputs, baselines, additional_forward_args, target: As `completeness_gap`.
        features: Which elements to try, counted over all inputs of an example, flattened; None for all of them, each
            of which costs an evaluation and up to one attribution a batch.
        tolerance: An attribution is zero if it is at most so many times both the change of the output and the change a
            unit of input, so that contributions and slopes are judged alike.
        max_examples_per_batch: How many points run at once; None for N.
        kwargs: Further arguments of the attribute function, such as `n_steps`.

    Returns:
        (N,) float64 in [0, 1], lower is better: the share of features without attribution among those that change the
        output; 0 where none does.

    Raises:
        ValueError: Shapes that do not fit, features or a tolerance out of range, inputs, baselines, attributions or
            outputs that are not finite, or a model that draws random numbers (dropout in training mode).
        TypeError: `explanation_func` is no function or returns no tensors; inputs that are not floating-point.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 2.1.

    Example:
        >>> import torch
        >>> from captum.attr import IntegratedGradients, Saliency
        >>> f, x = (lambda x: x[:, 0].clamp(max=1) + x[:, 1]), torch.tensor([[2.0, 1.0]])
        >>> sensitivity_gap(Saliency(f).attribute, f, x).item()
        0.5
        >>> sensitivity_gap(IntegratedGradients(f).attribute, f, x).item()
        0.0
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), but is {tolerance}")
    attribute = attribute_function(explanation_func, "explanation_func", model=forward_func)
    vectors = FeatureVectors(forward_func, inputs, baselines, additional_forward_args, target, max_examples_per_batch)
    candidates = _checked(features, vectors.d).to(vectors.x.device)
    at_baseline = vectors.outputs(vectors.baselines)

    with explaining(forward_func, vectors.x.device):
        missed, changing = torch.zeros(2, vectors.n, dtype=torch.float64, device=vectors.x.device)
        # So many features at a time as fill a batch.
        for part in candidates.split(max(1, (max_examples_per_batch or 1) // vectors.n)):
            feature, rows = part.repeat_interleave(vectors.n), vectors.rows.repeat(len(part))
            points = vectors.baselines[rows]
            points.scatter_(1, feature[:, None], vectors.x[rows, feature][:, None])
            outputs = vectors.outputs(points, rows)
            change = (outputs - at_baseline[rows]).abs()
            changes = change > 64 * vectors.eps * torch.maximum(outputs.abs(), at_baseline[rows].abs())
            if not bool(changes.any()):
                continue
            feature, rows, points, change = feature[changes], rows[changes], points[changes], change[changes]
            a = vectors.attributions(attribute, points, rows, kwargs)
            moved = (vectors.x[rows, feature].double() - vectors.baselines[rows, feature].double()).abs()
            smallest = torch.minimum(change, change / moved)
            zero = a[torch.arange(len(rows), device=rows.device), feature].abs() <= tolerance * smallest
            changing.index_add_(0, rows, torch.ones_like(change))
            missed.index_add_(0, rows, zero.to(missed))
    return quotient(missed, changing)


def _checked(features: Sequence[int] | None, d: int) -> Tensor:
    if features is None:
        return torch.arange(d, device="cpu")
    chosen = [int(i) for i in features]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < d for i in chosen):
        raise ValueError(f"features must be different indices from 0 to {d - 1}, at least one, but are {chosen}")
    return torch.tensor(chosen, device="cpu")
