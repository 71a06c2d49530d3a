"""Symmetry: whether features that are interchangeable get the same attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.attribution import attribute_function
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density.metrics._axioms._feature_vectors import FeatureVectors, explaining, quotient

__all__ = ["symmetry_gap"]

_POINTS = 4


@takes_arrays
def symmetry_gap(
    explanation_func: Callable[..., Any],
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    pairs: Sequence[tuple[int, int]],
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    **kwargs: Any,
) -> Tensor:
    """How much the attributions of two features differ that the function is symmetric in.

    The axiom is about inputs and baselines with equal values in the two; the largest |a_i - a_j| / (|a_i| + |a_j|) of
    all pairs counts. That f is symmetric is tried at random points between baseline and input.

    Args:
        explanation_func, forward_func: As `sensitivity_gap`.
        inputs, baselines, additional_forward_args, target: As `completeness_gap`.
        pairs: Indices (i, j) of elements, counted over all inputs of an example, flattened.
        kwargs: Further arguments of the attribute function, such as `n_steps`.

    Returns:
        (N,) float64 in [0, 1], lower is better: 0 for equal attributions, 1 where one of them is zero or has the other
        sign. A pair whose attributions are both lost in the rounding of the example's largest has 0.

    Raises:
        ValueError: No pairs, or indices out of range; inputs or baselines that differ within a pair; a function that is
            not symmetric; shapes that do not fit; values that are not finite; or a model that draws random numbers
            (dropout in training mode).
        TypeError: `explanation_func` is no function or returns no tensors; inputs that are not floating-point.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4.

    Example:
        >>> import torch
        >>> f, x = (lambda x: x[:, 0] * x[:, 1]), torch.tensor([[3.0, 3.0]])
        >>> symmetry_gap(lambda x: f(x)[:, None] * torch.tensor([[0.75, 0.25]]), f, x, [(0, 1)]).item()
        0.5
    """
    attribute = attribute_function(explanation_func, "explanation_func", model=forward_func)
    vectors = FeatureVectors(forward_func, inputs, baselines, additional_forward_args, target)
    i, j = _checked(pairs, vectors.d).to(vectors.x.device)
    for values, what in ((vectors.x, "inputs"), (vectors.baselines, "baselines")):
        differs = (values[:, i] != values[:, j]).any(0)
        if bool(differs.any()):
            at = int(differs.nonzero()[0])
            raise ValueError(
                f"the {what} differ in features {int(i[at])} and {int(j[at])}; the axiom asks for equal ones"
            )
    for first, second in zip(i.tolist(), j.tolist(), strict=True):
        _check_symmetric(vectors, first, second)
    with explaining(forward_func, vectors.x.device):
        a = vectors.attributions(attribute, vectors.x, None, kwargs)
    size = a[:, i].abs() + a[:, j].abs()
    size = size.where(size > 64 * vectors.eps * a.abs().amax(1, keepdim=True), 0.0)
    return quotient((a[:, i] - a[:, j]).abs(), size).amax(1)


def _checked(pairs: Sequence[tuple[int, int]], d: int) -> Tensor:
    """(2, pairs) indices."""
    pairs = pairs.tolist() if isinstance(pairs, Tensor) else pairs
    if any(not isinstance(pair, Sequence) for pair in pairs):
        raise TypeError(f"pairs must be pairs of indices, such as [(0, 1)], but are {pairs}")
    chosen = [tuple(int(index) for index in pair) for pair in pairs]
    if not chosen or not all(len(p) == 2 and p[0] != p[1] and all(0 <= index < d for index in p) for p in chosen):
        raise ValueError(f"pairs must be pairs of different indices from 0 to {d - 1}, at least one, but are {chosen}")
    return torch.tensor(chosen, device="cpu").T


def _check_symmetric(vectors: FeatureVectors, first: int, second: int) -> None:
    """Swap two features where they differ."""
    generator = torch.Generator("cpu").manual_seed(0)
    x, baselines = vectors.x, vectors.baselines
    reach = (x - baselines).abs().amax(1, keepdim=True)
    reach = reach.where(reach > 0, 1.0)
    scale, differences = 0.0, 0.0
    for _ in range(_POINTS):
        along, off = torch.rand(2, *x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
        points = baselines + along * (x - baselines)
        both = [first, second]
        points[:, both] = (baselines + off * reach)[:, both]
        swapped = points.clone()
        swapped[:, both] = points[:, both[::-1]]
        outputs, others = vectors.outputs(points), vectors.outputs(swapped)
        scale = max(scale, float(outputs.abs().max()), float(others.abs().max()))
        differences = max(differences, float((outputs - others).abs().max()))
    if differences > vectors.eps**0.5 * scale:
        raise ValueError(
            f"the function is not symmetric in features {first} and {second}: swapping them changes an output by "
            f"{differences:.2g}"
        )
