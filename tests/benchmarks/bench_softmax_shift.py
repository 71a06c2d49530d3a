"""Saliency through CenteredLogits and SoftmaxShift, and ShiftFooledGradient, against plain Saliency: time and memory.

Run from the root of the repository: python -m tests.benchmarks.bench_softmax_shift --help
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from captum.attr import Saliency
from torch import Tensor, nn

from captum_density.attr import ShiftFooledGradient
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift
from tests.benchmarks.harness import Call, compare, table, write

TARGET = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_softmax_shift",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="resnet18", help="a torchvision classification model")
    parser.add_argument("--batch-size", type=int, default=4, help="images per call")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/softmax_shift.json"), help="file to write")
    arguments = parser.parse_args()

    setting = (arguments.model, arguments.batch_size, arguments.device)
    cases = {
        "captum Saliency": partial(saliency, *setting),
        "Saliency, CenteredLogits mean": partial(centered, "mean", *setting),
        "Saliency, CenteredLogits logsumexp": partial(centered, "logsumexp", *setting),
        "Saliency, SoftmaxShift": partial(shifted, *setting),
        "ShiftFooledGradient": partial(fooled, *setting),
    }
    comparison = compare(
        arguments.model,
        cases,
        reference="captum Saliency",
        device=arguments.device,
        runs=arguments.runs,
        threads=arguments.threads,
    )
    write(
        arguments.out,
        [comparison],
        device=arguments.device,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        runs=arguments.runs,
    )
    print(f"{table([comparison])}\n\nwritten to {arguments.out}")


def saliency(*setting: Any) -> Call:
    model, images = _setup(*setting)
    return partial(Saliency(model).attribute, images, target=TARGET)


def centered(how: Literal["mean", "logsumexp"], *setting: Any) -> Call:
    model, images = _setup(*setting)
    return partial(Saliency(CenteredLogits(model, how)).attribute, images, target=TARGET)


def shifted(*setting: Any) -> Call:
    model, images = _setup(*setting)
    return partial(Saliency(SoftmaxShift(model, _shift(images))).attribute, images, target=TARGET)


def fooled(*setting: Any) -> Call:
    model, images = _setup(*setting)
    return partial(ShiftFooledGradient(model, _shift(images)).attribute, images, target=TARGET)


def _shift(images: Tensor) -> LinearShift:
    return LinearShift(torch.ones_like(images[0]))


def _setup(model_name: str, batch_size: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(model_name, weights=None).eval().to(device)
    # Captum's warning about inputs that do not require gradients is not what is timed.
    return model, torch.randn(batch_size, 3, 224, 224, device=device).requires_grad_()


if __name__ == "__main__":
    main()
