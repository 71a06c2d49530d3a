"""FullGrad's saliency map against Captum's Saliency and pytorch-grad-cam's FullGrad: time and peak memory.

Run from the root of the repository: python -m tests.benchmarks.bench_full_grad --help
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torchvision
from captum.attr import Saliency
from torch import Tensor, nn

from tests.benchmarks.harness import Call, compare, table, write

MODELS = ("resnet18", "resnet50", "vgg16", "efficientnet_b0", "vit_b_16")
TARGET = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_full_grad",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="torchvision classification models")
    parser.add_argument("--batch-size", type=int, default=4, help="images per call")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/full_grad.json"), help="file to write")
    arguments = parser.parse_args()

    comparisons = []
    for name in arguments.models:
        setting = (name, arguments.batch_size, arguments.device)
        cases = {
            "captum Saliency": partial(saliency, *setting),
            "FullGrad": partial(full_grad, *setting),
            "pytorch-grad-cam FullGrad": partial(grad_cam_full_grad, *setting),
        }
        comparison = compare(
            name,
            cases,
            reference="captum Saliency",
            device=arguments.device,
            runs=arguments.runs,
            threads=arguments.threads,
        )
        comparisons.append(comparison)
        print(table([comparison]), flush=True)
    write(
        arguments.out,
        comparisons,
        device=arguments.device,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        runs=arguments.runs,
    )
    print(f"\n{table(comparisons)}\n\nwritten to {arguments.out}")


def saliency(name: str, batch_size: int, device: str) -> Call:
    model, images = _setup(name, batch_size, device)
    return partial(Saliency(model).attribute, images, target=TARGET)


def full_grad(name: str, batch_size: int, device: str) -> Call:
    from captum_density.attr import FullGrad

    model, images = _setup(name, batch_size, device)
    return partial(FullGrad(model).attribute, images, target=TARGET)


def grad_cam_full_grad(name: str, batch_size: int, device: str) -> Call:
    from pytorch_grad_cam import FullGrad
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = _setup(name, batch_size, device)
    return partial(FullGrad(model, target_layers=[]), images, targets=[ClassifierOutputTarget(TARGET)] * batch_size)


def _setup(model_name: str, batch_size: int, device: str) -> tuple[nn.Module, Tensor]:
    """Return a model in evaluation mode with nothing left at 0 or 1, and images; the same on every call."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(model_name, weights=None).eval()
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if name in ("bias", "running_mean"):
                    tensor.normal_(std=0.1)
                elif name == "running_var":
                    tensor.uniform_(0.5, 1.5)
    # Captum's warning about inputs that do not require gradients is not what is timed.
    images = torch.randn(batch_size, 3, 224, 224).to(device).requires_grad_()
    return model.to(device), images


if __name__ == "__main__":
    main()
