"""Is the audit's recommendation right where the best method is known, and are its controls fair?

`python -m tests.experiments.recommendation [seeds]` trains networks on images of four blocks, one of which, anywhere,
is a digit and carries the class, and asks the audit which of some methods to use:

- of the gradient on the digit's block alone, the gradient on the others, and maps that know nothing: the first is
  right;
- of the last two alone: none is right.

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

from captum_density._command.network import train
from captum_density.audit import AuditReport, audit
from captum_density.datasets import BlockImages, Digits, digits

RESULTS = Path(__file__).parent / "results" / "recommendation.json"
RIGHT, WRONG = "gradient on the digit", "gradient beside it"


def network() -> nn.Module:
    """For images of 16 x 16."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    )


def four_blocks(images: Tensor, labels: Tensor, null: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Digits in one of four blocks, (N, 1, 16, 16), the others a drawing that is always the same; and where: a mask."""
    upright = BlockImages(images, labels, null, seed=seed)
    beside = torch.cat([null, null], dim=1).mT  # to the left or the right of both, lying
    lying = BlockImages(upright.images.mT, labels, beside, seed=seed + 1000)
    mask = BlockImages(upright.signal_masks.mT.float(), labels, torch.zeros_like(beside), seed=seed + 1000).images > 0
    return lying.images.mT.contiguous(), mask.mT


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


def within(images: Tensor, masks: Tensor) -> type[Saliency]:
    """The gradient where a mask of the image says so, which is found by the image's own values."""

    class Method(Saliency):
        def attribute(self, inputs: Any, target: Any = None) -> Any:
            at = torch.cdist(inputs.flatten(1), images.flatten(1)).argmin(dim=1)
            return super().attribute(inputs, target=target) * masks[at]

    return Method


BLIND = {"constant": map_of(torch.ones_like), "blob": blob(0.25), "narrow blob": blob(0.1), "wide blob": blob(0.4)}


def block_audits(data: Digits, seed: int, epochs: int = 12, limit: int = 64) -> tuple[AuditReport, AuditReport]:
    """What the audit says of all methods, and of those alone that know nothing of the signal."""
    null = BlockImages(data.train_images, data.train_labels).null
    x, _ = four_blocks(data.train_images, data.train_labels, null, seed)
    images, masks = four_blocks(data.test_images, data.test_labels, null, seed + 100)
    blocks = Digits(x, data.train_labels, images, data.test_labels)
    model = train(blocks, seed=seed, epochs=epochs, network=network)
    ignorant = {WRONG: within(images, ~masks), "input": map_of(torch.abs), **BLIND}
    test = (images, data.test_labels)
    options: dict[str, Any] = {"metrics": ["pixel_perturbation", "accuracy"], "seed": seed, "limit": limit}
    every = {**ignorant, RIGHT: within(images, masks)}
    return audit(model, test, every, **options), audit(model, test, ignorant, **options)


def digits_audit(data: Digits, seed: int) -> AuditReport:
    """Of a network on the digits: methods at random weights, and whether maps that know nothing are in favour."""
    model = train(data, seed=seed, epochs=6)
    methods = {"Saliency": Saliency, "GuidedBackprop": GuidedBackprop, "InputXGradient": InputXGradient, **BLIND}
    names = ["pixel_perturbation", "randomisation"]
    return audit(model, (data.test_images, data.test_labels), methods, metrics=names, seed=seed)


def main(seeds: int) -> dict[str, Any]:
    """Run everything, and write what comes out."""
    answers: dict[str, list[Any]] = {"of all": [], "of those that know nothing": []}
    likeness: dict[str, list[float]] = {}
    in_favour: dict[str, int] = dict.fromkeys(BLIND, 0)
    accuracy: list[float | None] = []
    data = digits()
    for seed in range(seeds):
        reports = block_audits(data, seed)
        accuracy.append(reports[0].model["accuracy"].value)
        for key, report in zip(answers, reports, strict=True):
            answers[key].append(report.recommendation().method)
        report = digits_audit(data, seed)
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
        "accuracy": accuracy,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)["right"], indent=1))
