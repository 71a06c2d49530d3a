"""How far attributions of a network and of its twin under a softmax shift differ: of its logits, and centered.

`python -m tests.experiments.invariance` measures the table of `tutorials/guides/shifts.md`.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn

from captum_density._command.network import train
from captum_density.attr import FullGrad
from captum_density.datasets import Digits, digits
from captum_density.metrics import ShiftSensitivity, shift_sensitivity
from captum_density.softmax_shift import CenteredLogits

Attribute = Callable[..., Any]


def _gradient_shap(model: Any) -> Attribute:
    def attribute(inputs: Tensor, target: Any) -> Any:
        baselines = torch.stack([torch.zeros_like(inputs[0]), torch.ones_like(inputs[0])])
        return GradientShap(model).attribute(inputs, baselines, n_samples=8, stdevs=0.1, target=target)

    return attribute


# Signed where there is a choice: absolute values hide part of what a shift does.
METHODS: dict[str, Callable[[Any], Attribute]] = {
    "Saliency": lambda model: partial(Saliency(model).attribute, abs=False),
    "InputXGradient": lambda model: InputXGradient(model).attribute,
    "IntegratedGradients": lambda model: IntegratedGradients(model).attribute,
    "GradientShap": _gradient_shap,
    "DeepLift": lambda model: DeepLift(model).attribute,
    "SmoothGrad": lambda model: partial(
        NoiseTunnel(Saliency(model)).attribute, nt_samples=10, stdevs=0.15, nt_type="smoothgrad", abs=False
    ),
    "Occlusion": lambda model: partial(Occlusion(model).attribute, sliding_window_shapes=(1, 2, 2)),
    "FeatureAblation": lambda model: FeatureAblation(model).attribute,
    "GuidedBackprop": lambda model: GuidedBackprop(model).attribute,
    "FullGrad, complete": lambda model: FullGrad(model, complete=True).attribute,
}
THROUGH: dict[str, Callable[[Any], Any]] = {
    "logits": lambda model: model,
    "mean": CenteredLogits,
    "logsumexp": lambda model: CenteredLogits(model, "logsumexp"),
}


def grad_cam(layer: nn.Module) -> Callable[[Any], Attribute]:
    """Grad-CAM at a layer that the model and its twins share; what goes around the layer it cannot see."""
    return lambda model: LayerGradCam(model, layer).attribute


@contextmanager
def quiet() -> Iterator[None]:
    """Without what DeepLift and GuidedBackprop say each time, that they set hooks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks", UserWarning)
        yield


def measure(
    make: Callable[[Any], Attribute], through: str, model: nn.Module, inputs: Tensor, target: Tensor
) -> ShiftSensitivity:
    """How far the method's maps, through logits or centered logits, move under the default shift."""
    with quiet():
        return shift_sensitivity(lambda model: make(THROUGH[through](model)), model, inputs, target=target)


def rows(model: nn.Module, layer: nn.Module, inputs: Tensor, target: Tensor) -> Iterator[str]:
    """The lines of the table: means over the examples."""
    yield "| method | logits: 1 - cosine | norm | mean: 1 - cosine | norm | logsumexp: 1 - cosine | norm |"
    yield "|---|---|---|---|---|---|---|"
    for name, make in {**METHODS, "LayerGradCam": grad_cam(layer)}.items():
        found = [value.mean() for through in THROUGH for value in measure(make, through, model, inputs, target)]
        yield f"| {name} | {' | '.join(map(_short, found))} |"


def _short(value: Tensor) -> str:
    number = float(value)
    return "0" if number == 0 else f"{number:.2f}" if number >= 0.005 else f"{number:.0e}"


def trained(examples: int, epochs: int = 12) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """The demo's network on the digits, its last convolution, test digits and the classes it gives them; float64."""
    data = Digits(*digits())
    model = train(data, seed=0, epochs=epochs).double()
    images = data.test_images[:examples].double()
    layer = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
    return model, layer, images, model(images).argmax(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure how far methods move under a shift; prints a Markdown table.")
    parser.add_argument("--examples", type=int, default=64, help="test digits (default: 64)")
    torch.manual_seed(0)
    np.random.seed(0)  # GradientShap draws from NumPy's generator
    for row in rows(*trained(parser.parse_args().examples)):
        print(row, flush=True)
