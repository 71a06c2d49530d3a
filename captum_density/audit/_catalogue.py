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

from captum_density.attr import FullGrad, PathIntegratedGradients, SimpleFullGrad, SmoothFullGrad
from captum_density.audit._measures import chosen
from captum_density.audit._methods import Method, named
from captum_density.audit._setting import deviation
from captum_density.softmax_shift import CenteredLogits

__all__ = ["DEFAULT", "catalogue", "check_names", "methods_of"]

_CENTERED = ", centered"
DEFAULT = (
    "Saliency",
    "Saliency, centered",
    "IntegratedGradients",
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
        "IntegratedGradients": Method(IntegratedGradients),
        "SmoothGrad": Method(lambda model: NoiseTunnel(Saliency(model)), smooth),
        "GuidedBackprop": Method(GuidedBackprop),
        "Deconvolution": Method(Deconvolution),
        "DeepLift": Method(DeepLift),
        "GradientShap": Method(GradientShap, {"baselines": torch.zeros_like(inputs[:1])}),
        "Occlusion": Method(Occlusion, occlusion),
        "FeatureAblation": Method(FeatureAblation),
        "PathIntegratedGradients": Method(PathIntegratedGradients),
        "FullGrad": Method(FullGrad),
        "FullGrad, complete": Method(lambda model: FullGrad(model, complete=True)),
        "SimpleFullGrad": Method(SimpleFullGrad),
        "SmoothFullGrad": Method(SmoothFullGrad, noise),
    }
    centered = {f"{name}{_CENTERED}": _centered(method) for name, method in plain.items()}
    return plain | centered


def _centered(method: Method) -> Method:
    return Method(method.make, method.options, method.multiplies_by_inputs, view=CenteredLogits)


def methods_of(
    attributions: Mapping[str, Callable[[Any], Attribution] | Method | str] | Iterable[str] | None, inputs: Tensor
) -> dict[str, Method]:
    """The methods to measure.

    Args:
        attributions: Name to a function of the model, a `Method` or a name of the catalogue; or such names; or None for
            `DEFAULT`.
        inputs: (N, ...), what is audited.

    Raises:
        TypeError: Something else, such as an attribution already made.
        ValueError: No methods, or an unknown name.
    """
    if attributions is None or isinstance(attributions, Iterable):
        known = catalogue(inputs)
        names = DEFAULT if attributions is None else [attributions] if isinstance(attributions, str) else attributions
        given: Mapping[str, Any] = names if isinstance(names, Mapping) else {name: name for name in names}
        unknown = [value for value in given.values() if isinstance(value, str) and value not in known]
        if unknown:
            listed = ", ".join(repr(name) for name in known if not name.endswith(_CENTERED))
            raise ValueError(
                f"there is no attribution {unknown[0]!r}; there are {listed}, and each of them with {_CENTERED!r} "
                "after its name; others are given by a mapping from names to functions of the model"
            )
        found = named({name: known[value] if isinstance(value, str) else value for name, value in given.items()})
    else:
        raise TypeError(
            "attributions must map names to functions of the model, or list names, but is an object of class "
            f"{type(attributions).__name__}"
        )
    if not found:
        raise ValueError("attributions is empty: give at least one {name: function of the model}, or a name")
    return found


def check_names(
    attributions: Mapping[str, Callable[[Any], Attribution] | Method | str] | Iterable[str] | None = None,
    metrics: Iterable[str] | None = None,
) -> None:
    """Raise what `audit` would of its methods and figures, before a model is trained or data are read for it.

    Args:
        attributions: As `audit`'s.
        metrics: As `audit`'s.

    Raises:
        TypeError: Something else than names and functions of the model.
        ValueError: No methods or figures, or unknown ones.

    Example:
        >>> import torch
        >>> check_names(["Saliency", "FullGrad, centered"], ["infidelity"])
        >>> check_names(["Salience"])
        Traceback (most recent call last):
        ValueError: there is no attribution 'Salience'; there are 'Saliency', ...
    """
    chosen(metrics)
    methods_of(attributions, torch.zeros(1, 1, 1, 1))  # the options, which inputs decide, are not used
