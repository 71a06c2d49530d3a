"""The README's picture: five methods on photographs that EfficientNet-Lite0 classifies.

`python -m tests.experiments.photographs .github/photographs.jpg` takes a few minutes.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor
from torchvision.models import ResNet18_Weights

from captum_density.attr import FullGrad, SmoothFullGrad
from captum_density.datasets import efficientnet_lite0, photographs
from captum_density.plots import saliency_grid

CLASSES = ResNet18_Weights.DEFAULT.meta["categories"]
STDEVS = 0.15 * 2  # of the noise, 0.15 of the range of the pixels, [-1, 1]


def methods(network: torch.nn.Module, samples: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Each method, as a function of images and classes."""
    return {
        "Saliency": lambda x, y: Saliency(network).attribute(x, y),
        "Integrated Gradients": lambda x, y: IntegratedGradients(network).attribute(
            x, target=y, n_steps=2 * samples, internal_batch_size=10
        ),
        "SmoothGrad": lambda x, y: NoiseTunnel(Saliency(network)).attribute(
            x, nt_type="smoothgrad", nt_samples=samples, nt_samples_batch_size=2, stdevs=STDEVS, target=y
        ),
        "FullGrad": lambda x, y: FullGrad(network).attribute(x, y),
        "SmoothFullGrad": lambda x, y: SmoothFullGrad(network).attribute(
            x, y, nt_samples=samples, nt_samples_batch_size=2, stdevs=STDEVS
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the picture to write")
    parser.add_argument("--samples", type=int, default=30, help="noisy copies of each photograph (default: 30)")
    arguments = parser.parse_args()

    warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients", UserWarning)
    torch.manual_seed(0)
    network, data = efficientnet_lite0(), photographs()
    images, labels = data.images[:4], data.labels[:4]
    with torch.no_grad():
        probabilities = network(images).softmax(1)
    assert torch.equal(probabilities.argmax(1), labels)
    maps = {name: attribute(images, labels).detach() for name, attribute in methods(network, arguments.samples).items()}
    texts = [f"{CLASSES[y]}\n{p[y]:.0%}" for y, p in zip(labels, probabilities, strict=True)]
    figure = saliency_grid((images + 1) / 2, maps, row_labels=texts, cell_size=1.3)
    # Noise compresses badly without loss: a PNG of this is five times as large.
    figure.savefig(arguments.path, dpi=130, pil_kwargs={"quality": 90, "subsampling": 0})


if __name__ == "__main__":
    main()
