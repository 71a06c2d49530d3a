"""ShiftFooledGradient: the gradient that a shift of all logits would show, beside the honest one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.validation import check_model, selected_output
from captum_density.attr._common import finish
from captum_density.attr._repr import shown
from captum_density.softmax_shift import NetworkShift, Shift

__all__ = ["ShiftFooledGradient"]


class ShiftFooledGradient(GradientAttribution):
    r"""The input-gradient of a logit after a shift that no prediction sees: \nabla f_i(x) + \nabla g(x).

    What `captum.attr.Saliency` shows on `SoftmaxShift(forward_func, shift)`, without the wrapper, and for any output
    that `Saliency` takes: a single class is shifted as well, though there is no softmax to hide it.

    Args:
        forward_func: The model, a module or a function, as for `Saliency`.
        shift: g: a `captum_density.softmax_shift.Shift`, or any function of the model's first argument.
        class_dim: Dimension of the classes, for a shift with one number for each of several softmaxes, as in
            `SoftmaxShift`.

    Raises:
        TypeError: If the model or the shift cannot be called.

    References:
        S. Srinivas and F. Fleuret, "Rethinking the Role of Gradient-Based Attribution Methods for Model
        Interpretability", ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> from captum_density.softmax_shift import LinearShift
        >>> model, pattern = torch.nn.Linear(3, 2), torch.tensor([0.0, 0.0, 50.0])
        >>> ShiftFooledGradient(model, LinearShift(pattern)).attribute(torch.randn(4, 3), target=1).argmax(1)
        tensor([2, 2, 2, 2])
    """

    def __init__(
        self, forward_func: Callable[..., Any], shift: Shift | Callable[..., Tensor], class_dim: int = 1
    ) -> None:
        check_model(forward_func)
        super().__init__(forward_func)
        self.shift = shift if isinstance(shift, Shift) else NetworkShift(shift)
        self.class_dim = class_dim

    def __repr__(self) -> str:
        return shown(self, self.forward_func, shift=self.shift, class_dim=self.class_dim)

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        abs: bool = True,
        additional_forward_args: object = None,
    ) -> TensorOrTupleOfTensorsGeneric:
        """Gradients of the shifted logit, of the inputs' shape.

        Args:
            inputs: Floating-point tensor (N, ...) or tuple of such.
            target: As Captum's `Saliency`: picks the output to explain.
            abs: Whether to return absolute values, as `Saliency` does.
            additional_forward_args: As Captum's: passed on after the inputs, to the model and to the shift.

        Returns:
            A tensor for a tensor, a tuple for a tuple, of the inputs' shapes and dtypes, contiguous; in output units
            per input unit. At least 0 for `abs=True`, else signed.

        Raises:
            ValueError: Empty batch, NaN or infinity, another device than the model's; a shift that is of the wrong
                shape or device, not finite, or does not depend on the inputs.
            TypeError: Inputs that are not floating-point tensors; a model or shift that returns no tensor.
        """
        batch = ModelOnBatch(self.forward_func, inputs, target, additional_forward_args)
        fixed = fixed_modules(self.forward_func, needs_statistics=False)
        with torch.inference_mode(False), torch.enable_grad(), fixed:
            # Copies, so that the caller's own tensors are neither marked nor given gradients.
            leaves = tuple(x.detach().clone().requires_grad_() for x in batch.inputs)
            output = batch.run(leaves)
            if isinstance(output, Tensor):
                output = self.shift.add_to(output, *leaves, *(batch.args or ()), class_dim=self.class_dim)
            selected = selected_output(output, target, batch.n, batch.span)
            gradients = torch.autograd.grad(selected.sum(), leaves, allow_unused=True, materialize_grads=True)
        return finish([g.abs() if abs else g for g in gradients], inputs)
