"""Is the audit's recommendation right where the best method is known, and are its controls fair?

`python -m tests.experiments.recommendation [seeds]` trains networks on the block digits, where one block of each image
carries the class and the other is the same in all, and asks the audit which of some methods to use:

- of the gradient on the signal block alone, the gradient, the gradient on the null block alone, and maps that know
  nothing: the first is right;
- of those that know nothing, and the gradient on the null block: none is right.

And for networks on the digits: how often each method shows much the same at random weights (guided backpropagation
ought to, the gradient ought not to; J. Adebayo et al., arXiv:1810.03292), and how often a constant map and blobs of
several widths are in favour (never is right). Results: `results/recommendation.json`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import GuidedBackprop, InputXGradient, Saliency
from torch import Tensor, nn

from captum_density.audit import AuditReport, audit
from captum_density.datasets import BlockSplits, block_digits, digits
from captum_density.retraining import FitConfig, adversarial_fit

RESULTS = Path(__file__).parent / "results" / "recommendation.json"
FIT = FitConfig(epochs=12, lr=0.005)
RIGHT, PLAIN, WRONG = "gradient on the signal block", "gradient", "gradient on the null block"


def network(rows: int = 16) -> nn.Module:
    """A convolutional network for digits, or for two blocks of them."""
    layers: list[nn.Module] = []
    channels = 1
    for width in (16, 16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d((rows // 4, 2)), nn.Flatten(), nn.Linear(16 * rows, 10))


def map_of(make: Callable[[Tensor], Tensor]) -> type[Saliency]:
    """A method that knows the input alone."""

    class Method(Saliency):
        def attribute(self, inputs: Any, target: Any = None) -> Any:
            return make(inputs)

    return Method


def blob(width: float) -> type[Saliency]:
    """A Gaussian in the centre, whose deviation is this share of each side."""

    def make(inputs: Tensor) -> Tensor:
        down, across = ((torch.arange(side) + 0.5) / side - 0.5 for side in inputs.shape[2:])
        return (-(down[:, None] ** 2 + across**2) / (2 * width**2)).exp().expand_as(inputs)

    return map_of(make)


def within(null: Tensor, signal: bool) -> type[Saliency]:
    """The gradient on one of the blocks alone."""

    class Method(Saliency):
        def attribute(self, inputs: Any, target: Any = None) -> Any:
            lower = inputs[:, :, inputs.shape[2] // 2 :]
            on_top = (lower == null).flatten(1).all(1)
            rows = torch.arange(inputs.shape[2]) < inputs.shape[2] // 2
            mask = (rows == on_top[:, None])[:, None, :, None]
            return super().attribute(inputs, target=target) * (mask if signal else ~mask)

    return Method


BLIND = {"constant": map_of(torch.ones_like), "blob": blob(0.25), "narrow blob": blob(0.1), "wide blob": blob(0.4)}


def block_audits(
    data: BlockSplits, seed: int, fit: FitConfig = FIT, limit: int = 64
) -> tuple[AuditReport, AuditReport]:
    """What the audit says of all methods, and of those alone that know nothing of the signal."""
    train = (data.train.images, data.train.labels)
    model = adversarial_fit(network, train, radius=0.0, fit=fit, seed=seed)
    ignorant = {WRONG: within(data.test.null, False), "input": map_of(torch.abs), **BLIND}
    knowing = {RIGHT: within(data.test.null, True), PLAIN: Saliency}
    test = (data.test.images, data.test.labels)
    options: dict[str, Any] = {"metrics": ["pixel_perturbation"], "seed": seed, "limit": limit}
    return audit(model, test, {**ignorant, **knowing}, **options), audit(model, test, ignorant, **options)


def digits_audit(seed: int, fit: FitConfig = FIT) -> AuditReport:
    """Of a network on the digits: methods at random weights, and whether maps that know nothing are in favour."""
    data = digits()
    model = adversarial_fit(lambda: network(8), (data.train_images, data.train_labels), radius=0.0, fit=fit, seed=seed)
    methods = {"Saliency": Saliency, "GuidedBackprop": GuidedBackprop, "InputXGradient": InputXGradient, **BLIND}
    names = ["pixel_perturbation", "randomisation", "accuracy"]
    return audit(model, (data.test_images, data.test_labels), methods, metrics=names, seed=seed)


def main(seeds: int) -> dict[str, Any]:
    """Run everything, and write what comes out."""
    answers: dict[str, list[Any]] = {"of all": [], "of those that know nothing": []}
    likeness: dict[str, list[float]] = {}
    in_favour: dict[str, int] = dict.fromkeys(BLIND, 0)
    accuracy = []
    for seed in range(seeds):
        for key, report in zip(answers, block_audits(block_digits(seed=seed), seed), strict=True):
            answers[key].append(report.recommendation().method)
        report = digits_audit(seed)
        accuracy.append(report.model["accuracy"].value)
        for name, row in report.methods.items():
            likeness.setdefault(name, []).append(round(row["randomisation"].value or 0.0, 3))
            if name in in_favour:
                in_favour[name] += row["pixel_perturbation"].beats_every_control()
        print(seed, {key: values[-1] for key, values in answers.items()}, likeness, in_favour, flush=True)
    result = {
        "seeds": seeds,
        "recommended": answers,
        "right": {
            "of all": sum(name == RIGHT for name in answers["of all"]) / seeds,
            "of those that know nothing": sum(name is None for name in answers["of those that know nothing"]) / seeds,
        },
        "likeness at random weights": likeness,
        "in favour": in_favour,
        "accuracy on the digits": accuracy,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)["right"], indent=1))
