"""Whether another classifier recognises what climbing the model's logits makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from captum_density import metrics
from captum_density._cache.identity import described, rounded
from captum_density.audit._figures.figure import Figure, measured_share
from captum_density.audit._figures.obstacles import of_one_tensor_and_logits
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting
from captum_density.audit._subject import logits_of
from captum_density.samplers import ActivationMaximization

__all__ = ["GAN_TEST"]

_STEPS = 100
# Of the unit cube's diagonal: an ascent can cross the range of the inputs.
_LENGTH = 1.25


def _measure(setting: Setting) -> Measured:
    if setting.proxy is None:
        raise ValueError("gan_test needs proxy, another classifier of the same classes, to judge samples")
    x = setting.inputs
    low, high = x.min().item(), x.max().item()
    noise = torch.randn(x.shape, generator=setting.generator(), dtype=torch.float64, device="cpu").to(x)
    start = ((low + high) / 2 + 0.2 * (high - low) * noise).clamp(low, high)
    step = _LENGTH / _STEPS * (high - low) * math.sqrt(x[0].numel())
    climb = ActivationMaximization(setting.model, step, _STEPS, bounds=(low, high), normalize=True)
    samples = torch.cat([climb.sample(start[at], setting.target[at]).samples for at in setting.chunks()])
    correct = metrics.gan_test(setting.proxy, samples, setting.target, max_examples_per_batch=setting.batch).correct
    on_data = None
    if setting.labels is not None:
        predicted = logits_of(setting.proxy, x, setting.batch).argmax(dim=1)
        on_data = (predicted == setting.labels).double().mean().item()
    return measured_share(int(correct.sum()), len(x), on_data)


def _identity(setting: Setting) -> Any:
    if setting.proxy is None:
        return None
    with torch.no_grad():
        return [described(setting.proxy), rounded(setting.proxy(setting.few))]


def _findings(results: Results) -> Iterator[Finding]:
    figure = results.model.get("gan_test")
    if figure is None or figure.low is None or figure.high is None or figure.reference is None:
        return
    evidence = f"what climbing the model's logits makes (GAN-test {figure.text()}; on data {figure.reference:.2g})."
    if figure.high < figure.reference / 2:
        yield Finding(
            "warning",
            f"Another classifier hardly recognises {evidence}",
            "Train with captum_density.losses.ScoreMatchingLoss added to the cross-entropy.",
        )
    elif figure.low > figure.reference / 2:
        yield Finding("good", f"Another classifier recognises {evidence}")
    else:
        yield Finding("note", f"It cannot be told whether another classifier recognises {evidence}")


GAN_TEST = Figure(
    name="gan_test",
    title="GAN-test accuracy",
    better="higher is better",
    meaning="Share of images made by climbing the model's logits that another classifier recognises.",
    against="below half of that on the data",
    measure=_measure,
    findings=_findings,
    needs="proxy",
    obstacle=of_one_tensor_and_logits,
    identity=_identity,
    reference="the other classifier on the data",
)
