"""Common gradient: how much of the logits' gradients is the same for all classes, and says nothing of any."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._density.log_density import squared_norm
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TensorOrTupleOfTensorsGeneric
from captum_density._model.copies import ModelOnCopies, Points
from captum_density._model.generators import standard_noise
from captum_density._model.validation import received

__all__ = ["common_gradient"]


@takes_arrays
def common_gradient(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
    *,
    n_samples: int = 16,
    generator: torch.Generator | None = None,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""The share of the squared length of the logits' gradients that is the same for all classes.

    .. math:: \frac{\|\bar g\|^2}{\frac{1}{C} \sum_c \|g_c\|^2}, \qquad
        g_c = \nabla_x f_c(x), \quad \bar g = \frac{1}{C} \sum_c g_c

    A term added to all logits moves no prediction, and every logit's gradient by the same picture: this share is how
    much of what gradients show may be such a picture. A shift whose gradient is as long as the logits' own makes it a
    half. Attributions of `captum_density.softmax_shift.CenteredLogits` are free of it.

    Args:
        forward_func: Returns logits (N, C) of at least two classes.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        additional_forward_args: As Captum's.
        n_samples: Backward passes: up to so many classes, the share is exact, by one for each class. Of more classes,
            ``sum_c |g_c - mean|^2`` is estimated without bias from so many random sums of them, with signs.
        generator: What the signs are drawn from; None for the global generator.
        max_examples_per_batch: As Captum's.

    Returns:
        (N,) in [0, 1], detached; 0 where no gradient has a length.

    Raises:
        ValueError: If the model does not return (N, C) with C > 1, or `n_samples` is below 1; if inputs are empty, NaN
            or infinite; if no gradient reaches them.
        TypeError: If the model cannot be called or the inputs are not floating-point.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2, for the shifts; M. F. Hutchinson, "A
        stochastic estimator of the trace of the influence matrix", 1989, for random signs.

    Example:
        >>> import torch
        >>> honest = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
        >>> shifted = lambda x: honest(x) + x[:, 1:]  # the same for both classes
        >>> [common_gradient(f, torch.randn(1, 2)).item() for f in (honest, shifted)]
        [0.0, 0.5]
    """
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise ValueError(f"n_samples must be a positive integer, but is {n_samples!r}")
    model = ModelOnCopies(
        forward_func, inputs, None, additional_forward_args, max_examples_per_batch=max_examples_per_batch
    )
    with model.evaluation():
        return torch.cat([_shares(model.at(rows), n_samples, generator) for rows in model.parts()])


def _shares(model: ModelOnCopies, n_samples: int, generator: torch.Generator | None) -> Tensor:
    products: Iterator[Points]
    _, products = model.each_jacobian_product(partial(_vectors, n_samples=n_samples, generator=generator))
    common = next(products)  # the mean of the gradients
    shared, rest = _squared(common), torch.zeros(model.n, dtype=torch.float64, device=model.device)
    for product in products:
        rest += _squared(product)
    whole = shared + rest
    return torch.where(whole > 0, shared / whole.clamp(min=torch.finfo(torch.float64).tiny), 0.0).to(common[0].dtype)


def _squared(product: Points) -> Tensor:
    return squared_norm(tuple(p.detach()[None] for p in product))[0].double()


def _vectors(logits: Tensor, n_samples: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Weights of the logits (N, C): of their mean; then such that squared lengths sum to the mean of |g_c - mean|^2.

    Raises:
        ValueError: There are no two classes.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"what is common to all logits is told of logits (N, C) of two classes or more, but the model returned "
            f"{received(logits)}"
        )
    classes = logits.shape[1]
    yield torch.full_like(logits, 1 / classes)
    if classes <= n_samples:
        signs = torch.eye(classes, dtype=logits.dtype, device=logits.device)[:, None].expand(-1, len(logits), -1)
        scale = classes**-0.5
    else:
        (signs,) = standard_noise((logits,), n_samples, "rademacher", generator)
        scale = (classes * n_samples) ** -0.5
    for sign in signs:
        yield (sign - sign.mean(1, keepdim=True)) * scale
