"""CenteredLogits: logits in which no shift is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_density._model.refusals import refuse_where
from captum_density.softmax_shift._logits import LogitsWrapper

__all__ = ["CenteredLogits"]

Centre = Literal["mean", "logsumexp"]


class CenteredLogits(LogitsWrapper):
    r"""A model's logits minus what softmax ignores, so that nothing attributed through it can be fooled by a shift.

    .. math:: c_i(x) = f_i(x) - \frac{1}{C} \sum_j f_j(x)
        \qquad\text{or}\qquad \log p_i(x) = f_i(x) - \log \sum_j \exp f_j(x)

    Both have f's softmax, and both are the same for f and for f + g, whatever g. A gradient of c_i asks what speaks for
    class i against the average class; one of log p_i asks what makes class i likely, and is near zero where the model
    is sure (its factor is 1 - p_i), which is why "mean" is the default. "mean" is affine in the logits, so that methods
    which treat nonlinear layers specially (DeepLift, FullGrad) go through it unchanged; so is the sum that
    IntegratedGradients and FullGrad promise, of c_i instead of f_i. LRP follows layers only and refuses; for it,
    subtract from the last layer's weights and biases their mean over the classes.

    It does not help against perturbations that differ from class to class, such as `BoundedShift`: those change the
    predictions too, if ever so little.

    A class masked with -inf leaves no mean, and is refused; "logsumexp" keeps the mask.

    Precision: the shift cancels in the dtype of the logits. Gradients of g cancel to their own rounding; methods of
    differences (Occlusion, FeatureAblation) to rounding of g.

    Args:
        model: Module or function that returns logits. A module is shared, not copied.
        how: "mean" or "logsumexp".
        class_dim: Dimension of the classes: 1 for (N, C) and segmentation (N, C, H, W), which None stands for; 2 or -1
            for tokens (N, L, C). Of logits of three dimensions, of which either may be the classes', it has to be said.

    Raises:
        TypeError: If the model cannot be called, or returns no floating-point tensor.
        ValueError: If `how` is neither; from a call: if the logits have no such class dimension, a single class or two
            dimensions that could be the classes', or, for "mean", a class is masked with -inf.

    Warns:
        UserWarning: From the first call: the model seems to return probabilities.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2, for the shifts that it undoes.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
        >>> fooled = lambda x: model(x) + 100 * x.sum(1, keepdim=True)
        >>> honest = Saliency(CenteredLogits(model)).attribute(x, target=0)
        >>> torch.allclose(Saliency(CenteredLogits(fooled)).attribute(x, target=0), honest, atol=1e-4)
        True
    """

    _harm = "whose mean never changes, so that centering takes nothing of a shift away"

    def __init__(self, model: Callable[..., Any], how: Centre = "mean", class_dim: int | None = None) -> None:
        if how not in get_args(Centre):
            raise ValueError(f'how must be "mean" or "logsumexp", but is {how!r}')
        super().__init__(model, class_dim)
        self.how = how

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The centred logits, of the same shape and dtype.

        Args:
            args: The model's own arguments.
            kwargs: The model's own keyword arguments.

        Returns:
            A tensor of the logits' shape and dtype.
        """
        logits, class_dim = self.logits(*args, **kwargs)
        if self.how == "logsumexp":
            return self.last(_log_softmax(logits, class_dim))
        refuse_where(~(logits.detach() > -math.inf).all(), _masked)
        return self.last(logits - logits.mean(class_dim, keepdim=True))

    def extra_repr(self) -> str:
        """What `print` shows beside the model."""
        return f"how={self.how!r}, {super().extra_repr()}"


def _masked() -> ValueError:
    return ValueError('a logit is -inf, a class masked out, which leaves no mean; pass how="logsumexp"')


def _log_softmax(logits: Tensor, dim: int) -> Tensor:
    """log p, whose gradient keeps its digits where p is nearly 1.

    PyTorch's takes the factor 1 - p_i from the rounded p_i, which in float32 leaves noise from p_i = 0.9999 on, and
    that noise changes with the shift. Here, with the top class m, log p_i = f_i - f_m - log(1 + sum_{j != m}
    exp(f_j - f_m)): no difference of nearly equal numbers, in the value or in the gradient.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    top = wide.detach().argmax(dim, keepdim=True)
    # The top's own 0 is put there: as a difference its gradients, 1 and -1, would swallow those of the others.
    below = (wide - wide.gather(dim, top)).scatter(dim, top, 0.0)
    others = below.exp().scatter(dim, top, 0.0).sum(dim, keepdim=True)
    return (below - others.log1p()).to(logits.dtype)
