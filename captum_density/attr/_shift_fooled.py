"""ShiftFooledGradient: the gradient that a shift of all logits would show, beside the honest one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution, LayerAttribution
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.validation import check_model, selected_output
from captum_density.attr._common import finish
from captum_density.attr._layer import Cut, check_layers, layers_of
from captum_density.attr._repr import shown
from captum_density.softmax_shift import NetworkShift, Shift

__all__ = ["LayerShiftFooledGradient", "ShiftFooledGradient"]


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


class LayerShiftFooledGradient(LayerAttribution, GradientAttribution):
    r"""The gradient of a logit by what a layer returns, or takes, after a shift that no prediction sees.

    With z for the layer's tensors, it is \nabla_z f_i + \nabla g(z): all logits are shifted by g(z), as the function of
    z that the rest of the model is would be.

    Args:
        forward_func: As `ShiftFooledGradient`. Token ids may be its inputs.
        layer: A module of the model that runs once in a pass, or a list of modules, each of which is explained by
            itself.
        shift: g: as `ShiftFooledGradient`, of the layer's first tensor, examples first. Its further arguments are the
            layer's other tensors and what the model is given.
        class_dim: As `ShiftFooledGradient`.
        device_ids: As `LayerFullGrad`.

    Raises:
        TypeError: If the model or the shift cannot be called, or the layer is no module.

    References:
        S. Srinivas and F. Fleuret, "Rethinking the Role of Gradient-Based Attribution Methods for Model
        Interpretability", ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from captum_density.softmax_shift import LinearShift
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> shift = LinearShift(torch.tensor([0.0, 0.0, 50.0, 0.0]))
        >>> fooled = LayerShiftFooledGradient(model, model[1], shift)
        >>> fooled.attribute(torch.randn(4, 3), target=1).argmax(1)
        tensor([2, 2, 2, 2])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | list[nn.Module],
        shift: Shift | Callable[..., Tensor],
        class_dim: int = 1,
        device_ids: list[int] | None = None,
    ) -> None:
        check_model(forward_func)
        check_layers(layer)
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        self.shift = shift if isinstance(shift, Shift) else NetworkShift(shift)
        self.class_dim = class_dim

    def __repr__(self) -> str:
        return shown(self, self.forward_func, self.layer, shift=self.shift, class_dim=self.class_dim)

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        abs: bool = True,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Gradients of the shifted logit, of the shapes of the layer's tensors.

        Args:
            inputs: Tensor (N, ...) or tuple of such, floating-point or integer.
            target: As in `ShiftFooledGradient.attribute`.
            abs: As in `ShiftFooledGradient.attribute`.
            additional_forward_args: As in `ShiftFooledGradient.attribute`.
            attribute_to_layer_input: As in `LayerFullGrad.attribute`.

        Returns:
            As Captum's: a tensor, (N, ...) where examples come first in the layer's, or a tuple where it has several; a
            list of these for a list of layers. Of the tensors' shapes and dtypes, as `ShiftFooledGradient.attribute`.

        Raises:
            ValueError: As `ShiftFooledGradient.attribute`; a layer that does not run, or runs several times.
            TypeError: Inputs that are no tensors; a model or shift that returns no tensor.
        """
        results = []
        for layer in layers_of(self):
            cut = Cut(
                self.forward_func, [layer], attribute_to_layer_input, inputs, additional_forward_args, lookups=False
            )
            fixed = fixed_modules(self.forward_func, needs_statistics=False)
            with torch.inference_mode(False), fixed, cut.hooked():
                values, floats = cut.tensors()
                cut.refuse_shared(values, floats)
                fooled = ShiftFooledGradient(cut, self.shift, self.class_dim)
                parts = fooled.attribute(values, target, abs, (*floats, *(cut.rest or ())) or None)
            results.append(cut.in_form(parts))
        return results if isinstance(self.layer, list) else results[0]
