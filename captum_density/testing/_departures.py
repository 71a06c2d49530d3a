"""Where Captum's own methods break a law."""

from collections.abc import Mapping

__all__ = ["CAPTUM_DEPARTURES"]

_STRIDES = "returns the gradient's strides, which sensitivity_max then fails to view as (N, -1)"
_UNDONE = "undo_gradient_requirements is not in a finally: the caller's input keeps requires_grad=True"
_GRAPH = "multiplies with the input itself, so the result requires grad and .numpy() fails"
_LAYER_GRAPH = "multiplies with the layer's tensor itself, so the result requires grad and .numpy() fails"
_ATTRIBUTES = "leaves tensors in the attributes input and output of the model's activations"
_REDUCED = "weighs gradients by float32 step sizes, so bfloat16 becomes float32"
_GRADIENT = {
    "contiguous": _STRIDES,
    "requires_grad_after_bad_target": _UNDONE,
    "requires_grad_after_raising_model": _UNDONE,
}
#: Where Captum's own methods break a law of `check_attribution`, measured with Captum 0.8 and 0.9: the name of the
#: method to the name of the check that fails to what happens, in words. A method that is not in it passes all checks.
CAPTUM_DEPARTURES: Mapping[str, Mapping[str, str]] = {
    "Saliency": _GRADIENT,
    "InputXGradient": {**_GRADIENT, "detached": _GRAPH},
    "IntegratedGradients": {"reduced_precision": _REDUCED},
    "GuidedBackprop": _GRADIENT,
    "Deconvolution": _GRADIENT,
    "DeepLift": {
        **_GRADIENT,
        "detached": _GRAPH,
        "hooks_after_bad_target": _ATTRIBUTES,
        "hooks_after_raising_model": _ATTRIBUTES,
    },
    "LayerActivation": {"contiguous": "returns the layer's tensor with its strides"},
    "LayerGradientXActivation": {"contiguous": _STRIDES, "detached": _LAYER_GRAPH},
    "LayerIntegratedGradients": {"reduced_precision": _REDUCED},
    "LayerDeepLift": {
        "contiguous": _STRIDES,
        "detached": _LAYER_GRAPH,
        "hooks_after_bad_target": _ATTRIBUTES,
        "hooks_after_raising_model": _ATTRIBUTES,
    },
    "LayerConductance": {"detached": _LAYER_GRAPH},
    "InternalInfluence": {"reduced_precision": _REDUCED},
    "NeuronGradient": {"contiguous": _STRIDES, "requires_grad_after_raising_model": _UNDONE},
    "NeuronIntegratedGradients": {"reduced_precision": _REDUCED},
    "NeuronDeepLift": {
        "contiguous": _STRIDES,
        "detached": _GRAPH,
        "requires_grad_after_raising_model": _UNDONE,
        "hooks_after_success": _ATTRIBUTES,
        "hooks_after_raising_model": _ATTRIBUTES,
    },
    "NeuronConductance": {"reduced_precision": _REDUCED},
}
