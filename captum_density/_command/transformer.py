"""A vision transformer trained on the digits, explained by its gradients and by balanced ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.models import VisionTransformer

from captum_density._command.network import train
from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.datasets import Digits
from captum_density.metrics import pixel_perturbation
from captum_density.plots import saliency_grid
from captum_density.rules import BalancedGradients

__all__ = ["TransformerStudy", "draw_transformer_study", "patches_kept", "study_transformer", "transformer"]

_SIDE, _PATCH = 16, 4  # pixels of a canvas, and of a patch
_COPIES, _EPOCHS = 3, 4  # places that each digit is seen at, and passes over these
_ROWS = 5  # digits in the picture
_FRACTIONS = [k / 16 for k in range(17)]
_METHODS: Mapping[str, Callable[[nn.Module], Attribution]] = {
    "Saliency": Saliency,
    "InputXGradient": InputXGradient,
    "FullGrad, complete": lambda model: FullGrad(model, complete=True),
    "InputXGradient, balanced": lambda model: InputXGradient(BalancedGradients(model)),
    "FullGrad, complete, balanced": lambda model: FullGrad(BalancedGradients(model), complete=True),
    "CompleteDeepLift": CompleteDeepLift,
    "IntegratedGradients": IntegratedGradients,
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"Saliency": {"abs": False}, "IntegratedGradients": {"n_steps": 20}}


def transformer() -> nn.Module:
    """Make torchvision's vision transformer, for digits and small: 16 patches, two blocks, width 32."""
    model = VisionTransformer(_SIDE, _PATCH, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)
    model.conv_proj = nn.Conv2d(1, 32, _PATCH, stride=_PATCH)  # one channel for three
    return model


@dataclass(frozen=True)
class TransformerStudy:
    """A vision transformer, and what methods say of it.

    Args:
        accuracy: On all test digits, in [0, 1]; higher is better.
        images: (K, 1, 16, 16), the digits that are drawn.
        classes: The K predicted classes, which are explained.
        attributions: Each method's attributions of these, (K, 1, 16, 16).
        scores: Each method's `patches_kept`.
        examples: How many digits scores are of.
    """

    accuracy: float
    images: Tensor
    classes: tuple[int, ...]
    attributions: dict[str, Tensor]
    scores: dict[str, float]
    examples: int

    def text(self) -> str:
        """Return the scores, a line for each method after a heading."""
        heading = (
            f"a vision transformer (accuracy {self.accuracy:.4f}), in vision_transformer.png; the probability of "
            f"{self.examples} predictions while the patches ranked highest are kept, less that while the lowest are "
            "(higher is better, 0 is chance):"
        )
        return "\n".join([heading, *(f"  {name:<28} {score:5.2f}" for name, score in self.scores.items())])

    def to_dict(self) -> dict[str, object]:
        """Return what `json` can write of it."""
        return {"accuracy": self.accuracy, "examples": self.examples, "patches_kept": self.scores}


def study_transformer(data: Digits, *, seed: int, examples: int) -> TransformerStudy:
    """Train a vision transformer on digits that lie somewhere on a larger canvas, and explain what it predicts.

    Args:
        data: The digits; the first of those for testing are explained.
        seed: Of their places, the initial weights and the order of training.
        examples: How many digits to score methods on.

    Returns:
        Everything that is drawn and printed.
    """
    generator = torch.Generator().manual_seed(seed)
    copies = torch.cat([_on_canvas(data.train_images, generator) for _ in range(_COPIES)])
    test = _on_canvas(data.test_images, generator)
    data = Digits(copies, data.train_labels.repeat(_COPIES), test, data.test_labels)
    model = train(data, seed=seed, epochs=_EPOCHS, network=transformer, name="training a transformer")
    with torch.no_grad():
        predicted = model(test).argmax(dim=1)
    images, target = test[:examples], predicted[:examples]
    attributions, scores = {}, {}
    for name, make in _METHODS.items():
        inputs = images.clone().requires_grad_()
        attribution = make(model).attribute(inputs, target=target, **_OPTIONS.get(name, {})).detach()
        attributions[name], scores[name] = attribution[:_ROWS], patches_kept(model, images, attribution, target)
    return TransformerStudy(
        accuracy=(predicted == data.test_labels).double().mean().item(),
        images=images[:_ROWS],
        classes=tuple(target[:_ROWS].tolist()),
        attributions=attributions,
        scores=scores,
        examples=len(images),
    )


def _on_canvas(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each digit at one of nine places, (N, 1, 16, 16)."""
    n, _, height, width = images.shape
    canvases = images.new_zeros(n, 1, _SIDE, _SIDE)
    corners = _PATCH * torch.randint((_SIDE - height) // _PATCH + 1, (n, 2), generator=generator, device="cpu")
    for canvas, image, (top, left) in zip(canvases, images, corners.tolist(), strict=True):
        canvas[:, top : top + height, left : left + width] = image
    return canvases


def patches_kept(model: nn.Module, images: Tensor, attribution: Tensor, target: Tensor) -> float:
    """Measure whether patches that are ranked high matter more than those that are ranked low.

    Args:
        model: (N, 1, 16, 16) to (N, 10).
        images: (N, 1, 16, 16).
        attribution: (N, 1, 16, 16), signed.
        target: (N,) the classes that are explained.

    Returns:
        The mean probability of these while the highest patches are kept and the others 0, less that while the lowest
        are, over one to all of them; in [-1, 1], higher is better, 0 is chance.
    """
    patches = interpolate(avg_pool2d(attribution, _PATCH), scale_factor=_PATCH)
    top, bottom = (
        pixel_perturbation(model, images, patches, target=target, fractions=_FRACTIONS, keep=keep, signed=True).area
        for keep in ("top", "bottom")
    )
    return (top - bottom).mean().item()


def draw_transformer_study(study: TransformerStudy, path: Path) -> None:
    """Draw some digits, explained by each method, under its name and score.

    Args:
        study: What `study_transformer` returned.
        path: The picture to write.
    """
    maps = {f"{name}\n{study.scores[name]:.2f}": shown for name, shown in study.attributions.items()}
    figure = saliency_grid(
        study.images,
        maps,
        row_labels=[f"class {c}" for c in study.classes],
        caption="a vision transformer; orange is positive, purple negative, each map on a scale of its own; below each "
        "name the probability of the predicted class while the patches ranked highest are kept, less that while the "
        "lowest are: higher is better, chance is 0",
    )
    figure.savefig(path, dpi=150)
