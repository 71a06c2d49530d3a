"""Captum attributors: each drops into a Captum workflow where `Saliency` or `IntegratedGradients` stands."""

from captum_density.attr._attention import AttentionGradient as AttentionGradient
from captum_density.attr._attention import AttentionWeights as AttentionWeights
from captum_density.attr._complete_deep_lift import CompleteDeepLift as CompleteDeepLift
from captum_density.attr._complete_deep_lift import CompleteDeepLiftShap as CompleteDeepLiftShap
from captum_density.attr._complete_deep_lift import LayerCompleteDeepLift as LayerCompleteDeepLift
from captum_density.attr._erase_attention import erase_attention as erase_attention
from captum_density.attr._full_grad import FullGrad as FullGrad
from captum_density.attr._full_grad import SimpleFullGrad as SimpleFullGrad
from captum_density.attr._full_gradients import FullGradients as FullGradients
from captum_density.attr._full_gradients import LayerFullGradients as LayerFullGradients
from captum_density.attr._layer_full_grad import LayerFullGrad as LayerFullGrad
from captum_density.attr._layer_full_grad import NeuronFullGrad as NeuronFullGrad
from captum_density.attr._ledger import Ledger as Ledger
from captum_density.attr._logit_ledger import LogitLedger as LogitLedger
from captum_density.attr._path_integrated_gradients import LayerPathIntegratedGradients as LayerPathIntegratedGradients
from captum_density.attr._path_integrated_gradients import PathIntegratedGradients as PathIntegratedGradients
from captum_density.attr._paths import FunctionPath as FunctionPath
from captum_density.attr._paths import PiecewiseLinearPath as PiecewiseLinearPath
from captum_density.attr._paths import PowerPath as PowerPath
from captum_density.attr._paths import StraightPath as StraightPath
from captum_density.attr._shift_fooled import LayerShiftFooledGradient as LayerShiftFooledGradient
from captum_density.attr._shift_fooled import ShiftFooledGradient as ShiftFooledGradient
from captum_density.attr._smooth_full_grad import SmoothFullGrad as SmoothFullGrad

__all__ = [
    "AttentionGradient",
    "AttentionWeights",
    "CompleteDeepLift",
    "CompleteDeepLiftShap",
    "FullGrad",
    "FullGradients",
    "FunctionPath",
    "LayerCompleteDeepLift",
    "LayerFullGrad",
    "LayerFullGradients",
    "LayerPathIntegratedGradients",
    "LayerShiftFooledGradient",
    "Ledger",
    "LogitLedger",
    "NeuronFullGrad",
    "PathIntegratedGradients",
    "PiecewiseLinearPath",
    "PowerPath",
    "ShiftFooledGradient",
    "SimpleFullGrad",
    "SmoothFullGrad",
    "StraightPath",
    "erase_attention",
]


def __dir__() -> list[str]:
    return __all__
