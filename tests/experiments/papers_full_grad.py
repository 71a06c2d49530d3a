"""Which method finds the pixels that do not matter? FullGrad's own experiment: S. Srinivas and F. Fleuret, NeurIPS
2019, arXiv:1905.00780, figure 3.

The least important pixels are removed, and the change of the output is measured, |p' - p| / p, p the probability of the
class that the network predicts for the whole image; lower is better. On photographs, by EfficientNet-Lite0, and on real
digits and clothes, by CNNs trained here. There are seven photographs, each in three views; the spread is over pictures,
and elsewhere over seeds, of 200 images each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_density.attr import FullGrad
from captum_density.datasets import efficientnet_lite0
from captum_density.metrics import pixel_perturbation
from tests.experiments.papers_density import train
from tests.experiments.real_data import Images, Parts, convolutional, markdown, over_seeds

PICTURES = "cat coffee rocket motorcycle astronaut temple flower".split()
VIEWS = 3
REMOVED = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    epochs: int = 5
    examples: int = 200
    samples: int = 20  # of SmoothGrad, and steps of Integrated Gradients
    seeds: tuple[int, ...] = (0, 1, 2)


Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


def methods(last: Callable[[nn.Module], nn.Module], black: float, noise: float, samples: int) -> dict[str, Method]:
    """Each method as a function of network, images and classes; Grad-CAM looks at the last layer with places."""

    def smooth_grad(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return NoiseTunnel(Saliency(model)).attribute(
            x, nt_samples=samples, nt_samples_batch_size=5, stdevs=noise, target=y
        )

    def grad_cam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        coarse = LayerGradCam(model, last(model)).attribute(x, y, relu_attributions=True)
        return F.interpolate(coarse, x.shape[-2:], mode="bilinear")

    return {
        "FullGrad": lambda model, x, y: FullGrad(model).attribute(x, y),
        "gradient": lambda model, x, y: Saliency(model).attribute(x, y),
        "gradient x input": lambda model, x, y: InputXGradient(model).attribute(x, y),
        "SmoothGrad": smooth_grad,
        "Integrated Gradients": lambda model, x, y: IntegratedGradients(model).attribute(
            x, black, y, n_steps=samples, internal_batch_size=50
        ),
        "Grad-CAM": grad_cam,
        "random": lambda model, x, y: torch.rand(x[:, :1].shape, generator=torch.Generator().manual_seed(0)),
    }


def photographs() -> Tensor:
    """(7, 3, 3, 224, 224): seven pictures in three views, the ends and the middle of each, the first one mirrored."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    arrays = (data.chelsea(), data.coffee(), data.rocket(), data.stereo_motorcycle()[0], data.astronaut(),
              load_sample_image("china.jpg"), load_sample_image("flower.jpg"))  # fmt: skip
    return torch.stack([_views(torch.tensor(array).permute(2, 0, 1).float()) for array in arrays])


def _views(pixels: Tensor) -> Tensor:
    size = [side * 256 // min(pixels.shape[1:]) for side in pixels.shape[1:]]
    resized = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(0, 255)
    views = []
    for part in range(VIEWS):
        top, left = (part * (side - 224) // (VIEWS - 1) for side in size)
        views.append(resized[:, top : top + 224, left : left + 224])
    views[0] = views[0].flip(2)
    return (torch.stack(views) - 127) / 128


def changes(model: nn.Module, x: Tensor, attribute: Method, baseline: Any) -> Tensor:
    """(REMOVED, N) of the output, by how much is removed."""
    with torch.no_grad():
        y = model(x).argmax(1)
    maps = attribute(model, x.clone().requires_grad_(), y).detach()
    kept = [1 - removed for removed in REMOVED] + [1.0]
    result = pixel_perturbation(model, x, maps, baseline, target=y, fractions=kept, max_examples_per_batch=50)
    p = result.probability.flip(0)  # of the whole first
    return (p[1:] - p[0]).abs() / p[0]


def of_photographs(sizes: Sizes, name: str, baseline: float) -> dict[str, Any]:
    """By picture, the mean change over its views."""
    model = efficientnet_lite0()
    attribute = methods(lambda model: model.head, -127 / 128, 0.3, sizes.samples)[name]
    per_picture = [changes(model, views, attribute, baseline).mean(1).tolist() for views in photographs()]
    return {"changes": per_picture}


def of_networks(data: Images, seed: int, sizes: Sizes, names: list[str]) -> dict[str, Any]:
    """By baseline and method, the mean change over test images."""
    model = train(convolutional, data.train, sizes.epochs, seed)
    x = data.test[0][: sizes.examples]
    baselines = {"black": 0.0, "mean": data.train[0].mean(0, keepdim=True)}
    every = methods(lambda model: model[8], 0.0, 0.15, sizes.samples)
    return {
        kind: {name: changes(model, x, every[name], baseline).mean(1).tolist() for name in names}
        for kind, baseline in baselines.items()
    }


METHODS = list(methods(lambda model: model, 0.0, 0.0, 1))


def measure_photographs(parts: Parts, sizes: Sizes) -> dict[str, Any]:
    """By baseline and method, the changes by picture."""
    setup = {"experiment": "FullGrad", "data": "photographs", "samples": sizes.samples, "views": VIEWS}
    return {
        kind: {
            name: parts({**setup, "method": name, "baseline": kind}, partial(of_photographs, sizes, name, baseline))[
                "changes"
            ]
            for name in METHODS
        }
        for kind, baseline in (("black", -127 / 128), ("mean", 0.0))
    }


def measure_networks(data: Images, name: str, parts: Parts, sizes: Sizes) -> dict[str, Any]:
    """By baseline and method, the changes by seed."""
    setup = {"experiment": "FullGrad", "data": name, "samples": sizes.samples, "epochs": sizes.epochs,
             "examples": sizes.examples}  # fmt: skip
    rows = [parts({**setup, "seed": seed}, partial(of_networks, data, seed, sizes, METHODS)) for seed in sizes.seeds]
    return {kind: {name: [row[kind][name] for row in rows] for name in METHODS} for kind in rows[0]}


def table(results: Mapping[str, Any]) -> str:
    """Means over pictures or seeds, in Markdown."""
    rows = [
        [f"{data}, {kind}", name, *(over_seeds(at, 3) for at in zip(*units, strict=True))]
        for data, kinds in results.items()
        for kind, by_method in kinds.items()
        for name, units in by_method.items()
    ]
    return markdown(
        ["images, pixels removed become", "method", *(f"{removed:.0%} removed" for removed in REMOVED)], rows
    )
