"""Losses of a model's input-gradients and of its density, to add to a training loss: `loss(model, inputs, target)`.

Those of knowledge transfer are made with a teacher, and called with the student.

What each needs, for a batch and K samples; "compares" means that a model with dropout in training mode is refused.

=================================  ==================================  ========  ======================================
loss                               runs of the model                   compares  backward passes of its step
=================================  ==================================  ========  ======================================
ScoreMatchingLoss                  2K + 1 evaluations (K + 1 taylor)   yes       two: the gradient norm's is one
.. "hutchinson", "exact"           K (or d) Hessian products           no        three
AntiScoreMatchingLoss              2K + 1                              yes       one
FiniteDifferenceScoreMatchingLoss  2K + 1                              yes       one
SlicedScoreMatchingLoss            1, and K Hessian products           no        three; blind to ReLU networks
DenoisingScoreMatchingLoss         K                                   no        two
GradientNormLoss                   1                                   no        two
ContrastiveDivergenceLoss          2, and a gradient for each step     no        one
NoiseContrastiveLoss               K + 1                               no        one
FoolingLoss                        1                                   no        two
JacobianMatchingLoss               1, and 1 of the teacher             no        two; C + 1 for "all", K + 1 "random"
NoiseMatchingLoss                  K, and K of the teacher             no        one
DistillationLoss                   1, and 1 of the teacher             no        one
AttentionMapLoss                   1, and 1 of the teacher             no        one for each pair of layers, and one
=================================  ==================================  ========  ======================================

Those of the density cost less in two ways: `logits=` of the training step spares the one run on the examples themselves
(all but DenoisingScoreMatchingLoss have it), and `share=0.5` looks at a random half of each batch.
"""

from captum_density.losses._attention_maps import AttentionMapLoss as AttentionMapLoss
from captum_density.losses._choose_weight import WeightChoice as WeightChoice
from captum_density.losses._choose_weight import choose_weight as choose_weight
from captum_density.losses._contrastive_divergence import ContrastiveDivergenceLoss as ContrastiveDivergenceLoss
from captum_density.losses._denoising import DenoisingScoreMatchingLoss as DenoisingScoreMatchingLoss
from captum_density.losses._distillation import DistillationLoss as DistillationLoss
from captum_density.losses._finite_difference import (
    FiniteDifferenceScoreMatchingLoss as FiniteDifferenceScoreMatchingLoss,
)
from captum_density.losses._fooling import FoolingLoss as FoolingLoss
from captum_density.losses._gradient_norm import GradientNormLoss as GradientNormLoss
from captum_density.losses._jacobian import JacobianMatchingLoss as JacobianMatchingLoss
from captum_density.losses._noise_contrastive import NoiseContrastiveLoss as NoiseContrastiveLoss
from captum_density.losses._noise_matching import NoiseMatchingLoss as NoiseMatchingLoss
from captum_density.losses._score_matching import AntiScoreMatchingLoss as AntiScoreMatchingLoss
from captum_density.losses._score_matching import ScoreMatchingLoss as ScoreMatchingLoss
from captum_density.losses._sliced import SlicedScoreMatchingLoss as SlicedScoreMatchingLoss

__all__ = [
    "AntiScoreMatchingLoss",
    "AttentionMapLoss",
    "ContrastiveDivergenceLoss",
    "DenoisingScoreMatchingLoss",
    "DistillationLoss",
    "FiniteDifferenceScoreMatchingLoss",
    "FoolingLoss",
    "GradientNormLoss",
    "JacobianMatchingLoss",
    "NoiseContrastiveLoss",
    "NoiseMatchingLoss",
    "ScoreMatchingLoss",
    "SlicedScoreMatchingLoss",
    "WeightChoice",
    "choose_weight",
]


def __dir__() -> list[str]:
    return __all__
