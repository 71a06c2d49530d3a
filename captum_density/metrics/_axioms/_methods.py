"""The attribution methods that the table of axioms compares by default."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from captum.attr import (
    LRP,
    Deconvolution,
    DeepLift,
    FeatureAblation,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    ShapleyValues,
)
from torch import Tensor, nn

from captum_density._model.captum import PositiveRule
from captum_density.attr import FullGrad, PathIntegratedGradients, PiecewiseLinearPath, PowerPath

__all__ = ["default_methods"]

# Enough for 1% where a path crosses a kink; Gauss-Legendre of so many steps would take longer to set up than to run.
_STEPS: dict[str, Any] = {"n_steps": 1000, "method": "riemann_middle"}


def default_methods() -> Mapping[str, Callable[[Any], Any]]:
    """Names, and what makes the method for a model."""
    return {
        "gradient": lambda model: partial(Saliency(model).attribute, abs=False),
        "InputXGradient": InputXGradient,
        "GuidedBackprop": GuidedBackprop,
        "Deconvolution": Deconvolution,
        "DeepLift": DeepLift,
        "LRP, epsilon": LRP,
        "LRP, alpha 1 beta 0": _positive_lrp,
        "IntegratedGradients": lambda model: partial(IntegratedGradients(model).attribute, **_STEPS),
        "FeatureAblation": FeatureAblation,
        "ShapleyValues": ShapleyValues,
        "FullGrad": FullGrad,
        "FullGrad(complete=True)": partial(FullGrad, complete=True),
        "PathIntegratedGradients, straight": lambda model: partial(PathIntegratedGradients(model).attribute, **_STEPS),
        "PathIntegratedGradients, bent": _bent,
        "PathIntegratedGradients, one by one": _one_by_one,
    }


def _positive_lrp(model: Any) -> Callable[..., Tensor]:
    """With Captum's rule for positive contributions alone."""

    def attribute(inputs: Tensor, target: Any = None) -> Tensor:
        ruled = copy.deepcopy(model)
        for module in ruled.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.rule = PositiveRule()
        return LRP(ruled).attribute(inputs, target)

    return attribute


def _bent(model: Any) -> Callable[..., Tensor]:
    """Along alpha, alpha^2, alpha^3, ... in the first, second, third, ... feature."""

    def attribute(inputs: Tensor, baselines: Tensor, target: Any = None) -> Tensor:
        powers = torch.arange(1, inputs[0].numel() + 1, device=inputs.device).reshape(inputs.shape[1:])
        return PathIntegratedGradients(model, PowerPath(powers)).attribute(inputs, baselines, target, **_STEPS)

    return attribute


def _one_by_one(model: Any) -> Callable[..., Tensor]:
    """Along the axes: the first feature moves, then the second, ..."""

    def attribute(inputs: Tensor, baselines: Tensor, target: Any = None) -> Tensor:
        features = torch.arange(d := inputs[0].numel(), device=inputs.device)
        moved = (features < features[1:, None]).reshape(d - 1, 1, *inputs.shape[1:])
        path = PiecewiseLinearPath(torch.where(moved, inputs, baselines)) if d > 1 else None
        return PathIntegratedGradients(model, path).attribute(inputs, baselines, target, **_STEPS)

    return attribute
