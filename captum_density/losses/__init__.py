"""Losses of a model's input-gradients and of its density, to add to a training loss: `loss(model, inputs, target)`."""

from captum_density.losses._contrastive_divergence import ContrastiveDivergenceLoss as ContrastiveDivergenceLoss
from captum_density.losses._denoising import DenoisingScoreMatchingLoss as DenoisingScoreMatchingLoss
from captum_density.losses._finite_difference import (
    FiniteDifferenceScoreMatchingLoss as FiniteDifferenceScoreMatchingLoss,
)
from captum_density.losses._fooling import FoolingLoss as FoolingLoss
from captum_density.losses._gradient_norm import GradientNormLoss as GradientNormLoss
from captum_density.losses._noise_contrastive import NoiseContrastiveLoss as NoiseContrastiveLoss
from captum_density.losses._score_matching import AntiScoreMatchingLoss as AntiScoreMatchingLoss
from captum_density.losses._score_matching import ScoreMatchingLoss as ScoreMatchingLoss
from captum_density.losses._sliced import SlicedScoreMatchingLoss as SlicedScoreMatchingLoss

__all__ = [
    "AntiScoreMatchingLoss",
    "ContrastiveDivergenceLoss",
    "DenoisingScoreMatchingLoss",
    "FiniteDifferenceScoreMatchingLoss",
    "FoolingLoss",
    "GradientNormLoss",
    "NoiseContrastiveLoss",
    "ScoreMatchingLoss",
    "SlicedScoreMatchingLoss",
]
