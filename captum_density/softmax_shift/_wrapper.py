"""SoftmaxShift: a model with the same softmax and other gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_density.softmax_shift._logits import LogitsWrapper
from captum_density.softmax_shift._shifts import Shift, as_shift

__all__ = ["SoftmaxShift"]


class SoftmaxShift(LogitsWrapper):
    r"""A model whose logits are all shifted by the same number, so that every prediction stays.

    .. math:: \tilde f_i(x) = f_i(x) + g(x), \quad
        \mathrm{softmax}(\tilde f) = \mathrm{softmax}(f), \quad
        \nabla \tilde f_i = \nabla f_i + \nabla g

    Probabilities, cross-entropy, accuracy and top-k are the model's own; gradients of logits, and whatever is made of
    them, are the model's plus anything. It stands wherever the model does: under Captum's methods, with additional
    forward arguments. (LRP, which follows layers only, refuses all wrappers of logits.)

    Precision: each sum f_i + g is rounded to the logits' dtype, by at most u |f_i + g| (u is 2^-53 in float64, 2^-24 in
    float32, 2^-11 in float16, 2^-8 in bfloat16). So a probability changes by a factor within
    exp(±2 u max_i |f_i + g|), and the top class stays where it leads by more than 2 u max_i |f_i + g|: in bfloat16,
    |f + g| < 1 keeps probabilities within 1%, and |f + g| = 100 leaves little of them. A gradient is rounded to
    u |grad f_i + grad g|, so that a much longer grad g swallows the model's own.

    Args:
        model: Module or function that returns logits (not probabilities, whose sum a shift would spoil; their logarithm
            will do), (N, C) or with the classes elsewhere. A module is shared, not copied: its parameters and its mode
            are the wrapper's.
        shift: g: one of this module's shifts, or any function or module of the model's first argument (it is then
            taken as `NetworkShift`). Returns one number for each example, (N,), or for each softmax, the logits' shape
            without the class dimension or with 1 in its place.
        class_dim: Dimension of the classes: 1 for (N, C) and segmentation (N, C, H, W), 2 or -1 for tokens (N, L, C).

    Raises:
        TypeError: If the model or the shift cannot be called, or returns no floating-point tensor.
        ValueError: From a call: if the logits have no such class dimension or a single class in it; if the shift is of
            the wrong shape, on another device, not finite, or, where the first input requires grad, depends on none.

    Warns:
        UserWarning: From the first call: the model seems to return probabilities.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_density.softmax_shift import LinearShift
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
        >>> shifted = SoftmaxShift(model, LinearShift(torch.tensor([0.0, 0.0, 0.0, 100.0])))
        >>> torch.allclose(shifted(x).softmax(1), model(x).softmax(1), atol=1e-4)
        True
        >>> Saliency(shifted).attribute(x, target=0).argmax(1)  # wherever the model looks
        tensor([3, 3])
    """

    _harm = "whose sum a shift spoils"

    def __init__(self, model: Callable[..., Any], shift: Shift | Callable[..., Tensor], class_dim: int = 1) -> None:
        super().__init__(model, class_dim)
        self.shift = as_shift(shift)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's logits plus g, of the same shape and dtype.

        Args:
            args: The model's own arguments; the shift reads the leading ones.
            kwargs: The model's own keyword arguments.

        Returns:
            A tensor of the logits' shape and dtype.
        """
        logits, class_dim = self.logits(*args, **kwargs)
        return self.last(self.shift.add_to(logits, *args, class_dim=class_dim, **kwargs))
