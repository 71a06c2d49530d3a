"""Whether the model's gradients are mostly common to all logits, and so no reason for any class."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from captum_density import metrics
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.obstacles import no_softmax
from captum_density.audit._figures.words import judged
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["COMMON_GRADIENT"]

_NAME = "common_gradient"
# Networks trained to classify have less; a shift as long as their own gradients has more.
_THRESHOLD = 0.3
# The share of gradients that have nothing to do with each other is hardly ever more deviations above its mean.
_DEVIATIONS = 3
_DIRECTIONS = 64  # at most: narrow layers leave gradients fewer than there are inputs


def _measure(setting: Setting) -> Measured:
    shares = metrics.common_gradient(
        setting.model,
        setting.inputs,
        n_samples=setting.budget.common_samples,
        generator=setting.generator(),
        max_examples_per_batch=setting.batch,
        **setting.arguments(),
    )
    return replace(of_examples(shares, seed=setting.seed), reference=_by_chance(setting.classes, setting.gradients))


def _by_chance(classes: int, gradients: Tensor) -> float:
    """The largest share of gradients that have nothing to do with each other, as those of first weights.

    Of C such gradients in d dimensions, 1 / C is common, with a standard deviation of sqrt(2 (1 - 1 / C) / d) / C.
    Training makes it less, but of few classes a little training leaves much of it. The elements of the inputs in which
    gradients are long are counted as 3 (sum e)^2 / sum e^2 of their squared lengths e, which is d where gradients are
    drawn from a normal distribution.
    """
    lengths = normalize(gradients.flatten(1).double(), dim=1).square().mean(dim=0)
    counted = 3 * lengths.sum().square() / lengths.square().sum().clamp(min=torch.finfo(lengths.dtype).tiny)
    dimensions = max(1.0, min(counted.item(), lengths.numel(), _DIRECTIONS))
    return min(1.0, (1 + _DEVIATIONS * math.sqrt(2 * (1 - 1 / classes) / dimensions)) / classes)


def _findings(results: Results) -> Iterator[Finding]:
    share = results.model.get(_NAME)
    if share is None or share.value is None:
        return
    chance = share.reference or 0.0
    few = f"; of {results.settings['classes']} classes it may be what is left of the first weights"
    yield judged(
        share,
        _THRESHOLD,
        certain=max(_THRESHOLD, chance),
        above=(
            f"Of what the gradients of the logits show, {share.text()} is the same for all classes and changes no "
            "prediction, as softmax ignores it: it may be any pattern, put there or not.",
            "Attribute centered logits: give methods `captum_density.softmax_shift.CenteredLogits(model)` in place of "
            "the model; what they show then is free of it.",
        ),
        unclear=f"Whether the gradients of the logits are mostly common to all classes cannot be told "
        f"({share.text()}{few if chance > _THRESHOLD else ''}).",
        below=f"Little of what the gradients of the logits show is the same for all classes ({share.text()}), and so "
        "without a say in predictions.",
    )


COMMON_GRADIENT = Figure(
    name=_NAME,
    title="gradient common to all logits",
    better="lower is better",
    meaning="Share of the squared length of the logits' gradients that is the same for all classes, which changes no "
    f"prediction; networks trained to classify have less than {_THRESHOLD:g}, a shift as long as their own gradient "
    "adds up to a half.",
    against=f"above {_THRESHOLD:g}, and of few classes above what unrelated gradients may have",
    measure=_measure,
    obstacle=no_softmax,
    reference="gradients that have nothing to do with each other, at most",
    findings=_findings,
)
