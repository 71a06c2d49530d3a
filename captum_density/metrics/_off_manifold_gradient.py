"""Off-manifold gradient: how much of the gradients points where no data lie, all of them the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType

__all__ = ["OffManifold", "off_manifold_gradient", "off_manifold_gradients"]

# Of their variance: what a subspace found in one half of the data must explain of the other half.
_HELD_OUT = 0.9


class OffManifold(NamedTuple):
    """Gradients beside the directions in which data vary.

    Args:
        shares: (N,), as `off_manifold_gradient` returns them.
        alike_off: How much the parts off the data are of one direction: the share of their squared length on it.
        alike_on: The same of the parts along the data, each brought to length 1, and their own direction. 1 where all
            gradients are one, as a linear model's with one output or two: then that parts are alike tells nothing.
        directions: How many there are off the data.
    """

    shares: Tensor
    alike_off: float
    alike_on: float
    directions: int


@takes_arrays
def off_manifold_gradient(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    data: Tensor,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    explained_variance: float = 0.99,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""The share of each gradient's squared length that lies on one direction in which the data hardly vary.

    .. math:: \frac{\langle w, \nabla f(x) \rangle^2}{\|\nabla f(x)\|^2}

    The data vary along their first principal components, as many as explain `explained_variance`. Of what is left of
    the gradients without these, w is the direction that most of it shares (the first singular vector, each gradient
    brought to length 1). What happens along w is seen in no data: a model can be given any gradient there and predicts
    all data as before (Anders et al. 2020). An honest network keeps some of its initial weights in such directions,
    spread over many. A manipulation as long as the gradient itself puts a half on one. Projected on the principal
    components, the gradient is free of it.

    Args:
        forward_func: Returns outputs of which `target` picks one. With logits, give
            ``CenteredLogits(model)``, unless what is common to all of them is meant as well.
        inputs: Floating-point tensor (N, ...), at which the gradients are taken; 16 or more, since of N unrelated
            gradients one in N lies on w by chance.
        data: (M, ...) examples that show how data vary, of the inputs' shape; `inputs` may be among them.
        target: As Captum's.
        additional_forward_args: As Captum's, for the inputs.
        explained_variance: Of the data, by the directions in which they vary; in (0, 1).
        max_examples_per_batch: As Captum's.

    Returns:
        (N,) in [0, 1], detached; 0 where the gradient is zero, or data vary in all directions.

    Raises:
        ValueError: If `data` are too few to tell how they vary: if the directions found in one half of them do not
            explain 0.9 of the variance of the other half. If shapes differ, or `explained_variance` is not in (0, 1);
            as `captum_density.density.class_log_density` otherwise.
        TypeError: As there.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        C. J. Anders, P. Pasliev, A.-K. Dombrowski, K.-R. Müller and P. Kessel, "Fairwashing Explanations with
        Off-Manifold Detergent", ICML 2020, arXiv:2007.09969, for the manipulation and the projection; the measure is
        derived above.

    Example:
        >>> import torch
        >>> data = torch.randn(200, 5) * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
        >>> honest = lambda x: x[:, :1]
        >>> manipulated = lambda x: x[:, :1] + x[:, 4:]  # where the data are zero
        >>> [round(off_manifold_gradient(f, data[:16], data, 0).mean().item(), 3) for f in (honest, manipulated)]
        [0.0, 0.5]
    """
    return off_manifold_gradients(
        forward_func,
        inputs,
        data,
        target,
        additional_forward_args,
        explained_variance=explained_variance,
        max_examples_per_batch=max_examples_per_batch,
    ).shares


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
    """As `off_manifold_gradient`, and how alike gradients are, off the data and along them."""
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
    components = _components(data.detach().flatten(1).double(), explained_variance)
    with density.evaluation():
        gradients = torch.cat([_unit_gradients(density.at(rows)) for rows in density.parts()])
    along = gradients @ components
    off = gradients - along @ components.mT
    _, sizes, directions = torch.linalg.svd(off, full_matrices=False)
    shares = (off @ directions[0]).square().to(inputs.dtype)
    alike_on = _first_share(torch.linalg.svdvals(normalize(along, dim=1)))
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
