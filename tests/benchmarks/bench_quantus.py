"""Deletion curves and parameter randomisation against Quantus' PixelFlipping and MPRT: time and peak memory.

Both get the same model, inputs, attributions and batch, and run the model on as many images (parameter_randomisation on
one more, to see in what order layers run). First it is checked that both give the same values: the curves of each
model, and, since random weights are drawn in different orders, the rank correlations of a network whose layers have but
one set of new weights to draw.

Quantus is in the dependency group `benchmark`. Run from the root of the repository:
python -m tests.benchmarks.bench_quantus --help
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from captum.attr import Saliency
from torch import Tensor, nn

from captum_density.metrics import group_perturbation, parameter_randomisation, pixel_perturbation
from tests.benchmarks.harness import Case, compare, settings, table, write

SHAPES = {"cnn": (1, 28, 28), "resnet18": (3, 64, 64)}
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_quantus",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch-size", type=int, default=16, help="images per call")
    parser.add_argument("--steps", type=int, choices=(2, 4, 8, 16), default=8, help="points of a curve, a channel")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--cpu-time", action="store_true", help="the process's, where others share the machine")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/quantus.json"), help="file to write")
    arguments = parser.parse_args()

    comparisons = []
    for name in arguments.models:
        curve_setting, setting = (name, arguments.batch_size, arguments.steps), (name, arguments.batch_size)
        with settings(arguments.threads):
            check_values(curve_setting, arguments.batch_size)
        tests: Mapping[str, dict[str, Case]] = {
            "one order": {
                "Quantus PixelFlipping": partial(pixel_flipping, 1, *curve_setting),
                "pixel_perturbation": partial(one_order, *curve_setting),
            },
            "both orders": {
                "Quantus PixelFlipping, twice": partial(pixel_flipping, 2, *curve_setting),
                "group_perturbation": partial(both_orders, *curve_setting),
            },
            "random weights": {
                "Quantus MPRT": partial(mprt, *setting),
                "parameter_randomisation": partial(randomisation, *setting),
            },
        }
        for test, cases in tests.items():
            comparison = compare(
                f"{name}, {test}",
                cases,
                reference=next(iter(cases)),
                runs=arguments.runs,
                threads=arguments.threads,
                memory=not arguments.no_memory,
                clock=time.process_time if arguments.cpu_time else None,
            )
            comparisons.append(comparison)
            print(table([comparison]), flush=True)
    facts = {key: getattr(arguments, key) for key in ("batch_size", "steps", "runs", "cpu_time")}
    write(arguments.out, comparisons, device="cpu", threads=arguments.threads, quantus=version("quantus"), **facts)
    print(f"\n{table(comparisons)}\n\nwritten to {arguments.out}")


def check_values(curve_setting: tuple[str, int, int], batch_size: int) -> None:
    """Raise where the two packages do not say the same."""
    flipping = np.array(pixel_flipping(1, *curve_setting)()[0]).T  # (steps, N)
    kept = one_order(*curve_setting)().probability.flip(0)
    most = both_orders(*curve_setting)().most_relevant_first
    layers = list(mprt("one draw", batch_size)().values())[1:]  # the first compares the model with itself
    similarity = randomisation("one draw", batch_size)().similarity
    for ours, theirs in ((kept, flipping), (most, flipping), (similarity, np.array(layers))):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def pixel_flipping(orders: int, name: str, batch_size: int, steps: int) -> Callable[[], Any]:
    import quantus

    model, x, y, attributions = _setup(name, batch_size)
    metric = quantus.PixelFlipping(
        features_in_step=x[0, 0].numel() // steps, perturb_baseline=0.0, normalise=False, disable_warnings=True
    )
    images, classes = x.numpy(), y.numpy()
    signs = [attributions.numpy(), -attributions.numpy()][:orders]
    return lambda: [
        metric(model, images, classes, order, channel_first=True, device="cpu", batch_size=batch_size)
        for order in signs
    ]


def one_order(name: str, batch_size: int, steps: int) -> Callable[[], Any]:
    model, x, y, attributions = _setup(name, batch_size)
    kept = [1 - gone for gone in _fractions(x, steps)]
    options: dict[str, Any] = {"channels": "singly", "keep": "bottom", "signed": True}
    return partial(pixel_perturbation, model, x, attributions, target=y, fractions=kept, **options)


def both_orders(name: str, batch_size: int, steps: int) -> Callable[[], Any]:
    model, x, y, attributions = _setup(name, batch_size)
    gone = _fractions(x, steps)
    return partial(group_perturbation, lambda x: model(x).softmax(1), x, attributions, target=y, fractions=gone)


def _fractions(x: Tensor, steps: int) -> list[float]:
    """Of elements gone, at each step of Quantus', which must divide the elements of a channel."""
    points = steps * x.shape[1]
    return [(point + 1) / points for point in range(points)]


def mprt(name: str, batch_size: int) -> Callable[[], Any]:
    import quantus

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        x = torch.as_tensor(inputs).requires_grad_()
        return Saliency(model).attribute(x, target=torch.as_tensor(targets)).numpy()

    model, x, y, _ = _setup(name, batch_size)
    metric = quantus.MPRT(normalise=False, disable_warnings=True)
    options = {"explain_func": explain, "channel_first": True, "device": "cpu", "batch_size": batch_size}
    return lambda: metric(model, x.numpy(), y.numpy(), **options)


def randomisation(name: str, batch_size: int) -> Callable[[], Any]:
    model, x, y, _ = _setup(name, batch_size)
    return partial(parameter_randomisation, Saliency, model, x, target=y)


class _OneDraw(nn.Module):
    """A layer that draws the same weights whenever it draws, whatever the generator's state."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters(recurse=False):
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


class _Conv2d(_OneDraw, nn.Conv2d):
    pass


class _Linear(_OneDraw, nn.Linear):
    pass


def _setup(name: str, batch_size: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a model in evaluation mode, images, classes and attributions; the same on every call."""
    torch.manual_seed(0)
    shape = SHAPES.get(name, SHAPES["cnn"])
    if name == "resnet18":
        model: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    elif name == "cnn":
        model = _cnn(nn.Conv2d, nn.Linear)
    else:
        model = _cnn(_Conv2d, _Linear)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(batch_size, *shape)
    return model.eval(), images, torch.arange(batch_size) % CLASSES, torch.randn(images.shape)


def _cnn(convolution: Callable[..., nn.Module], linear: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(convolution(1, 16, 3, 2, 1), nn.ReLU()),
        *(convolution(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), linear(32 * 7 * 7, 64), nn.ReLU(), linear(64, CLASSES)),
    )


if __name__ == "__main__":
    main()
