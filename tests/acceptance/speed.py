"""What FullGrad costs over a plain gradient, held against the figures in speed.json. Run by hand, on an idle machine.

`python -m tests.acceptance.speed` measures, prints a table and fails where a ratio is above the stored one by more than
a quarter; `--write` stores what was measured. Ratios are of medians of interleaved runs on one thread: they vary less
between machines than seconds do, and are still to be compared on one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision

from captum_density._linear.propagation import forget
from captum_density.attr import FullGrad, SmoothFullGrad
from captum_density.datasets import efficientnet_lite0
from tests.benchmarks.harness import Call, Case, compare, table

FIGURES = Path(__file__).with_name("speed.json")
TOLERANCE = 1.25
# EfficientNet-Lite0 pads on one side, by constants, as networks from TensorFlow do.
MODELS = ("resnet18", "vgg11_bn", "efficientnet_b0", "efficientnet_lite0", "convnext_tiny", "vit_b_32", "swin_t")
REFERENCE = "plain gradient"


def _setup(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model: torch.nn.Module
    model = efficientnet_lite0() if name == "efficientnet_lite0" else torchvision.models.get_model(name, weights=None)
    return model.eval(), torch.randn(2, 3, 224, 224).requires_grad_()


def plain_gradient(name: str) -> Call:
    """One forward and one backward pass."""
    model, images = _setup(name)
    return lambda: torch.autograd.grad(model(images)[:, 0].sum(), images)


def full_grad(name: str, complete: bool) -> Call:
    """FullGrad's map of the same output."""
    model, images = _setup(name)
    return partial(FullGrad(model, complete=complete).attribute, images, target=0)


def first_run(name: str) -> Call:
    """FullGrad's map of inputs of a shape that it has not seen, so that places have to be followed."""
    attribute = full_grad(name, False)

    def call() -> None:
        forget()
        attribute()

    return call


def smooth(name: str) -> Call:
    """SmoothFullGrad's map, of two noisy copies."""
    model, images = _setup(name)
    return partial(SmoothFullGrad(model).attribute, images, target=0, nt_samples=2, stdevs=0.1)


METHODS: dict[str, Callable[[str], Call]] = {
    "FullGrad": partial(full_grad, complete=False),
    "FullGrad, complete": partial(full_grad, complete=True),
    "FullGrad, first run": first_run,
    "SmoothFullGrad, 2 samples": smooth,
}


def measured(models: Sequence[str], runs: int) -> dict[str, dict[str, float]]:
    """Seconds over those of a plain gradient, by model and method; prints each model's table."""
    ratios: dict[str, dict[str, float]] = {}
    for name in models:
        cases: dict[str, Case] = {REFERENCE: partial(plain_gradient, name)}
        cases |= {method: partial(case, name) for method, case in METHODS.items()}
        comparison = compare(name, cases, reference=REFERENCE, runs=runs, memory=False)
        print(table([comparison]), flush=True)
        ratios[name] = {method: round(comparison.ratio(method, "seconds") or float("inf"), 2) for method in METHODS}
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and compare or store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--write", action="store_true", help=f"store the figures in {FIGURES.name}")
    given = parser.parse_args(arguments)
    ratios = measured(given.models, given.runs)
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if given.write:
        FIGURES.write_text(json.dumps(stored | ratios, indent=2) + "\n")
        return
    worse = [
        f"{name}, {method}: {ratio} times a plain gradient, was {stored[name][method]}"
        for name, of_name in ratios.items()
        for method, ratio in of_name.items()
        if ratio > TOLERANCE * stored.get(name, {}).get(method, float("inf"))
    ]
    sys.exit("\n".join(worse) or 0)


if __name__ == "__main__":
    main()
