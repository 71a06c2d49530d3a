"""Attribution methods by name: what an audit measures unless told otherwise, and what can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from captum.attr import (
    Attribution,
    Deconvolution,
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor

from captum_density._model.errors import describe
from captum_density.attr import CompleteDeepLift, FullGrad, PathIntegratedGradients, SimpleFullGrad, SmoothFullGrad
from captum_density.audit._methods import CENTERED, Method
from captum_density.audit._subject import deviation
from captum_density.rules import BalancedGradients
from captum_density.softmax_shift import CenteredLogits

__all__ = ["DEFAULT", "catalogue", "methods_of"]

DEFAULT = (
    "Saliency",
    "Saliency, centered",
    "InputXGradient, balanced",
    "IntegratedGradients",
    "CompleteDeepLift",
    "SmoothGrad",
    "FullGrad",
    "FullGrad, complete",
    "SimpleFullGrad",
    "SmoothFullGrad",
)


def catalogue(inputs: Tensor) -> dict[str, Method]:
    """Every method that has a name, with options that fit the inputs.

    SmoothGrad's noise has a third of the inputs' standard deviation, and Occlusion's window an eighth of each side.

    Args:
        inputs: (N, ...), what is audited.

    Returns:
        Name to method; each name followed by ", centered" is the same of `CenteredLogits`.
    """
    noise: dict[str, Any] = {"nt_samples": 20, "stdevs": deviation(inputs) / 3}
    window = (*inputs.shape[1:2], *(max(1, side // 8) for side in inputs.shape[2:])) if inputs.ndim > 2 else (1,)
    occlusion = {"sliding_window_shapes": window, "strides": window}
    # As in the paper, the mean of the signed gradients.
    smooth = {**noise, "nt_type": "smoothgrad", "abs": False}
    plain = {
        "Saliency": Method(Saliency),
        "InputXGradient": Method(InputXGradient),
        "InputXGradient, balanced": Method(lambda model: InputXGradient(BalancedGradients(model))),
        "IntegratedGradients": Method(IntegratedGradients),
        "SmoothGrad": Method(lambda model: NoiseTunnel(Saliency(model)), smooth),
        "GuidedBackprop": Method(GuidedBackprop),
        "Deconvolution": Method(Deconvolution),
        "DeepLift": Method(DeepLift),
        "CompleteDeepLift": Method(CompleteDeepLift),
        "GradientShap": Method(GradientShap, {"baselines": torch.zeros_like(inputs[:1])}),
        "Occlusion": Method(Occlusion, occlusion),
        "FeatureAblation": Method(FeatureAblation),
        "PathIntegratedGradients": Method(PathIntegratedGradients),
        "FullGrad": Method(FullGrad),
        "FullGrad, complete": Method(lambda model: FullGrad(model, complete=True)),
        "SimpleFullGrad": Method(SimpleFullGrad),
        "SmoothFullGrad": Method(SmoothFullGrad, noise),
    }
    centered = {f"{name}{CENTERED}": _centered(method) for name, method in plain.items()}
    return plain | centered


def _centered(method: Method) -> Method:
    return Method(method.make, method.options, method.multiplies_by_inputs, view=CenteredLogits)


def methods_of(
    attributions: Mapping[str, Callable[..., Any] | Attribution | Method | str] | Iterable[str] | None, inputs: Tensor
) -> dict[str, Method]:
    """The methods to measure.

    Args:
        attributions: Name to a function of the model, a `Method` or a name of the catalogue; or such names; or None for
            `DEFAULT`.
        inputs: (N, ...), what is audited.

    Raises:
        TypeError: Something else.
        ValueError: No methods, or an unknown name.
    """
    if attributions is None:
        attributions = DEFAULT
    elif isinstance(attributions, str):
        attributions = [attributions]
    elif not isinstance(attributions, Iterable):
        raise TypeError(
            f"attributions must map names to functions of the model, or list names, but is {describe(attributions)}"
        )
    if not isinstance(attributions, Mapping):
        attributions = {name: name for name in attributions}
    if not attributions:
        raise ValueError("attributions is empty: give at least one {name: function of the model}, or a name")
    by_name = catalogue(inputs)
    return {name: _method(name, value, by_name) for name, value in attributions.items()}


def _method(name: Any, value: Any, by_name: Mapping[str, Method]) -> Method:
    """A method, of whatever stands for one; an error names the one which is none."""
    if not isinstance(name, str):
        raise TypeError(f"attributions must have texts for names, but one is {name!r}")
    if isinstance(value, str):
        if value not in by_name:
            names = ", ".join(repr(each) for each in by_name if not each.endswith(CENTERED))
            raise ValueError(
                f"there is no attribution {value!r}; there are {names}, and each of them with {CENTERED!r} after its "
                "name; others are given by a mapping from names to functions of the model"
            )
        return by_name[value]
    try:
        return value if isinstance(value, Method) else Method(value)
    except TypeError as error:
        raise TypeError(f"attributions[{name!r}]: {error}") from error
