"""Gradients beside the directions in which data vary, and how alike they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from captum_density._density.log_density import LogDensity
from captum_density._model.captum import TargetType

__all__ = ["OffManifold", "off_manifold_gradients"]

# Of their variance: what a subspace found in one half of the data must explain of the other half.
_HELD_OUT = 0.9
# Of their variance: the directions that are theirs beyond doubt. Other data tilt the last of those that explain more,
# so that what points off the data leaks into them.
_SURE = 0.9


class OffManifold(NamedTuple):
    """Gradients beside the directions in which data vary.

    Args:
        shares: (N,), as `captum_density.metrics.off_manifold_gradient` returns them.
        alike_off: How much the parts off the data are of one direction: the share of their squared length on it.
        alike_on: The same of the parts along the directions that explain 90% of the variance, each brought to length 1,
            and their own direction. 1 where all gradients are one, as a linear model's with one output or two: then
            that parts are alike tells nothing.
        directions: How many there are off the data.
    """

    shares: Tensor
    alike_off: float
    alike_on: float
    directions: int


def off_manifold_gradients(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    data: Tensor,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    explained_variance: float = 0.99,
    max_examples_per_batch: int | None = None,
) -> OffManifold:
    """As `captum_density.metrics.off_manifold_gradient`, and how alike gradients are, off the data and along them."""
    if not 0 < explained_variance < 1:
        raise ValueError(f"explained_variance must be in (0, 1), but is {explained_variance!r}")
    density = LogDensity(
        forward_func,
        inputs,
        target,
        additional_forward_args,
        max_examples_per_batch=max_examples_per_batch,
        marginal=False,
    )
    if density.is_tuple or data.shape[1:] != inputs.shape[1:] or not data.isfinite().all():
        raise ValueError(
            f"data must be finite and of the inputs' shape, (M, {', '.join(map(str, inputs.shape[1:]))}), but are "
            f"{tuple(data.shape)}; several inputs are not supported"
        )
    flat = data.detach().flatten(1).double()
    components, sure = _components(flat, explained_variance), _directions(flat, min(_SURE, explained_variance))
    with density.evaluation():
        gradients = torch.cat([_unit_gradients(density.at(rows)) for rows in density.parts()])
    off = gradients - gradients @ components @ components.mT
    _, sizes, directions = torch.linalg.svd(off, full_matrices=False)
    shares = (off @ directions[0]).square().to(inputs.dtype)
    alike_on = _first_share(torch.linalg.svdvals(normalize(gradients @ sure, dim=1)))
    return OffManifold(shares, _first_share(sizes), alike_on, components.shape[0] - components.shape[1])


def _first_share(sizes: Tensor) -> float:
    squares = sizes.square()
    return (squares[0] / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)).item()


def _unit_gradients(density: LogDensity) -> Tensor:
    _, (gradients,) = density.scores(density.points())
    return normalize(gradients[0].detach().flatten(1).double(), dim=1)


def _components(data: Tensor, explained: float) -> Tensor:
    """(d, k) orthonormal directions in which the data (M, d) vary.

    Raises:
        ValueError: They are too few to tell.
    """
    if len(data) > 3:
        # Every second one: data are often sorted.
        some, others = _directions(data[::2], explained), data[1::2] - data[1::2].mean(0)
        variance = others.square().sum()
        if (others @ some).square().sum() >= _HELD_OUT * variance:
            return _directions(data, explained)
    raise ValueError(
        f"{len(data)} examples do not tell in which of {data.shape[1]} dimensions the data vary: what half of them "
        f"shows explains less than {_HELD_OUT:g} of the variance of the others; give more data"
    )


def _directions(data: Tensor, explained: float) -> Tensor:
    """(d, k) the first principal components, from the smaller one of the two matrices of products: faster than an SVD.

    Their squares cost digits of the last components only, which explain less than is left out.
    """
    centred = data - data.mean(0)
    are_few = len(centred) < centred.shape[1]
    variances, vectors = torch.linalg.eigh(centred @ centred.mT if are_few else centred.mT @ centred)
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    shares = variances.cumsum(0) / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
    first = vectors[:, : int((shares < explained).sum()) + 1]
    return normalize(centred.mT @ first, dim=0) if are_few else first
