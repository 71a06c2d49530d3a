"""The methods of the table: Captum's, ours, and controls that know nothing of the model's reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from captum.attr import (
    LRP,
    Attribution,
    Deconvolution,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    FeaturePermutation,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor, nn

from captum_density._controls.maps import ANOTHER_EXAMPLE, BLOB, EDGES, INPUT, SPECTRUM
from captum_density.attr import (
    AttentionGradient,
    AttentionWeights,
    CompleteDeepLift,
    CompleteDeepLiftShap,
    FullGrad,
    PathIntegratedGradients,
    SimpleFullGrad,
    SmoothFullGrad,
)
from captum_density.metrics import control_maps, random_weights_map
from captum_density.rules import BalancedGradients
from captum_density.softmax_shift import CenteredLogits

__all__ = ["CONTROLS", "METHODS"]

_OF_SPACE = (BLOB, EDGES, SPECTRUM)
_NOISE = 0.2  # deviation, of inputs between -2 and 2


def _against_background(attribution: Callable[[nn.Module], Attribution], **options: Any) -> Callable[[nn.Module], Any]:
    """A method whose baselines are several examples."""

    def make(model: nn.Module) -> Callable[..., Tensor]:
        def attribute(inputs: Tensor, target: Tensor, background: Tensor) -> Tensor:
            return attribution(model).attribute(inputs, background, target=target, **options)

        return attribute

    return make


def _with(attribution: Callable[[nn.Module], Attribution], **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: partial(attribution(model).attribute, **options)


def _occlusion(model: nn.Module) -> Callable[..., Tensor]:
    def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
        # Tokens one by one, four steps of a signal, 2 x 2 pixels.
        channels, *sides = inputs.shape[1:]
        window = {0: (1,), 1: (1, *sides) if channels > 1 else (1, 4), 2: (channels, 2, 2)}[len(sides)]
        return Occlusion(model).attribute(inputs, window, window, baselines, target)

    return attribute


def _last_convolution(model: nn.Module) -> nn.Module:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise NotImplementedError("the network has no convolution of images")
    return convolutions[-1]


def _grad_cam(model: nn.Module) -> Callable[..., Tensor]:
    layer = _last_convolution(model)

    def attribute(inputs: Tensor, target: Tensor) -> Tensor:
        maps = LayerGradCam(model, layer).attribute(inputs, target, relu_attributions=True)
        return nn.functional.interpolate(maps, inputs.shape[2:], mode="bilinear") / inputs.shape[1]

    return attribute


def _attention(model: nn.Module) -> nn.Module:
    layer = getattr(model, "attention", None)
    if layer is None:
        raise NotImplementedError("the network does not attend")
    return layer


def _balanced(rules: str, model: nn.Module) -> Attribution:
    return InputXGradient(BalancedGradients(model, rules))


def _balanced_complete(rules: str, model: nn.Module) -> Attribution:
    return FullGrad(BalancedGradients(model, rules), complete=True)


def _random(model: nn.Module) -> Callable[..., Tensor]:
    return lambda inputs: torch.rand(inputs.shape, device="cpu").to(inputs)


def _control(name: str, *, of_a_method: bool = False) -> Callable[[nn.Module], Any]:
    """One of `control_maps`, by name, of InputXGradient's maps where it is of a method's."""

    def make(model: nn.Module) -> Callable[..., Tensor]:
        def attribute(inputs: Tensor, target: Tensor, baselines: Tensor) -> Tensor:
            own = InputXGradient(model).attribute(inputs, target) if of_a_method else None
            maps = control_maps(inputs, own, baselines, target, seed=int(torch.randint(2**31, (), device="cpu")))
            if name not in maps or (name in _OF_SPACE and baselines.any()):  # tokens, whose vectors are no signals
                raise NotImplementedError(f"inputs of shape {tuple(inputs.shape)} have no {name}")
            return maps[name]

        return attribute

    return make


def _at_random_weights(model: nn.Module) -> Callable[..., Tensor]:
    return lambda inputs, target: random_weights_map(InputXGradient, model, inputs, target)


CONTROLS: Mapping[str, Callable[[nn.Module], Any]] = {
    "random": _random,
    INPUT: _control(INPUT),
    BLOB: _control(BLOB),
    EDGES: _control(EDGES),
    "InputXGradient, its spectrum": _control(SPECTRUM, of_a_method=True),
    "InputXGradient, another example": _control(ANOTHER_EXAMPLE, of_a_method=True),
    "InputXGradient, random weights": _at_random_weights,
}
_SETS = ("libragrad", "attnlrp", "cp-lrp")
#: The methods of the table, by name: each makes an attribution, or a control, for a model.
METHODS: Mapping[str, Callable[[nn.Module], Any]] = {
    **CONTROLS,
    "Saliency": Saliency,
    "InputXGradient": InputXGradient,
    "InputXGradient, centered": lambda model: InputXGradient(CenteredLogits(model)),
    "SmoothGrad": _with(lambda model: NoiseTunnel(Saliency(model)), nt_samples=10, stdevs=_NOISE),
    "GuidedBackprop": GuidedBackprop,
    "Deconvolution": Deconvolution,
    "LayerGradCam": _grad_cam,
    "GuidedGradCam": lambda model: GuidedGradCam(model, _last_convolution(model)),
    "LRP": LRP,
    "DeepLift": DeepLift,
    "DeepLiftShap": _against_background(DeepLiftShap),
    "GradientShap": _against_background(GradientShap, n_samples=10),
    "IntegratedGradients": _with(IntegratedGradients, n_steps=20),
    "FeatureAblation": FeatureAblation,
    "FeaturePermutation": FeaturePermutation,
    "Occlusion": _occlusion,
    "ShapleyValueSampling": _with(ShapleyValueSampling, n_samples=2),
    "KernelShap": _with(KernelShap, n_samples=100, perturbations_per_eval=100),
    "Lime": _with(Lime, n_samples=100, perturbations_per_eval=100),
    "FullGrad": FullGrad,
    "FullGrad, complete": lambda model: FullGrad(model, complete=True),
    "SimpleFullGrad": SimpleFullGrad,
    "SmoothFullGrad": _with(SmoothFullGrad, nt_samples=10, stdevs=_NOISE),
    "PathIntegratedGradients": _with(PathIntegratedGradients, n_steps=20),
    "CompleteDeepLift": CompleteDeepLift,
    "CompleteDeepLiftShap": _against_background(CompleteDeepLiftShap),
    **{f"InputXGradient, {rules}": partial(_balanced, rules) for rules in _SETS},
    **{f"FullGrad, complete, {rules}": partial(_balanced_complete, rules) for rules in _SETS},
    "AttentionWeights": lambda model: partial(AttentionWeights(model, _attention(model)).attribute, query=-1),
    "AttentionGradient": lambda model: partial(AttentionGradient(model, _attention(model)).attribute, query=-1),
}
