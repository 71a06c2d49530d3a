"""Off-manifold gradient: how much of the gradients points where no data lie, all of them the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_density._density.off_manifold import off_manifold_gradients
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType

__all__ = ["off_manifold_gradient"]


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
