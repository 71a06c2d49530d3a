"""The figures of a model: accuracy, and what the density in its logits looks like at the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import torch
from torch import Tensor

from captum_density import metrics
from captum_density.audit._measures import Measured, of_examples
from captum_density.audit._setting import Setting, logits_of
from captum_density.density import class_score, hessian_trace
from captum_density.samplers import ActivationMaximization

__all__ = ["OF_MODEL", "wilson"]

_NOISE_SAMPLES = 10
_ASCENT_STEPS = 100
# Of the unit cube's diagonal: an ascent can cross the range of the inputs.
_ASCENT_LENGTH = 1.25
_Z = NormalDist().inv_cdf(0.975)


def _accuracy(setting: Setting) -> Measured:
    if setting.labels is None:
        return Measured(None, note=setting.no_labels)
    logits = setting.logits
    predicted = logits.argmax(dim=1) if setting.classes > 1 else (logits[:, 0] > 0).long()
    right = int((predicted == setting.labels).sum())
    low, high = wilson(right, len(predicted))
    return Measured(right / len(predicted), low=low, high=high)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% score interval of a share (E. B. Wilson, JASA 1927), which holds at 0 and 1 as well.

    Args:
        right: How many of n.
        n: At least 1.

    Returns:
        Both ends, in [0, 1].
    """
    share, weight = right / n, _Z**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _density_ratio(setting: Setting) -> Measured:
    ratios = metrics.density_ratio(
        setting.model,
        setting.inputs,
        setting.noise_std,
        target=setting.target,
        n_perturb_samples=_NOISE_SAMPLES,
        generator=setting.generator(),
        max_examples_per_batch=setting.batch,
    )
    return of_examples(ratios, seed=setting.seed)


def _gradient_norm(setting: Setting) -> Measured:
    def squared(at: slice) -> Tensor:
        score = class_score(setting.model, setting.inputs[at], setting.target[at])
        return score.double().flatten(1).square().sum(dim=1)

    return of_examples(torch.cat([squared(at) for at in setting.chunks()]), seed=setting.seed)


def _hessian_trace(setting: Setting) -> Measured:
    traces = hessian_trace(
        setting.model,
        setting.inputs,
        setting.target,
        n_samples=2 * _NOISE_SAMPLES,
        noise_std=setting.noise_std,
        generator=setting.generator(),
        max_examples_per_batch=setting.batch,
    )
    return of_examples(traces, seed=setting.seed)


def _gan_test(setting: Setting) -> Measured:
    if setting.proxy is None:
        raise ValueError("gan_test needs proxy, another classifier of the same classes, to judge samples")
    x = setting.inputs
    low, high = x.min().item(), x.max().item()
    noise = torch.randn(x.shape, generator=setting.generator(), dtype=torch.float64).to(x)
    start = ((low + high) / 2 + 0.2 * (high - low) * noise).clamp(low, high)
    step = _ASCENT_LENGTH / _ASCENT_STEPS * (high - low) * math.sqrt(x[0].numel())
    climb = ActivationMaximization(setting.model, step, _ASCENT_STEPS, bounds=(low, high), normalize=True)
    samples = torch.cat([climb.sample(start[at], setting.target[at]).samples for at in setting.chunks()])
    recognised = metrics.gan_test(setting.proxy, samples, setting.target, max_examples_per_batch=setting.batch)
    right = int(recognised.correct.sum())
    ends = wilson(right, len(x))
    on_data = None
    if setting.labels is not None:
        predicted = logits_of(setting.proxy, x, setting.batch).argmax(dim=1)
        on_data = (predicted == setting.labels).double().mean().item()
    return Measured(right / len(x), low=ends[0], high=ends[1], reference=on_data)


OF_MODEL: Mapping[str, Callable[[Setting], Measured]] = {
    "accuracy": _accuracy,
    "density_ratio": _density_ratio,
    "gradient_norm": _gradient_norm,
    "hessian_trace": _hessian_trace,
    "gan_test": _gan_test,
}
