"""One digit whose gradients are made to smile, with every probability as it was."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn

from captum_density._model.generators import seed_generators
from captum_density.audit import Method
from captum_density.plots import saliency_grid
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift

__all__ = ["ShiftStudy", "draw_shift_study", "study_shift"]

# What is shown under a softmax shift: signed, pixel by pixel.
_METHODS = {
    "Saliency": Method(Saliency, {"abs": False}),
    "InputXGradient": Method(InputXGradient),
    "IntegratedGradients": Method(IntegratedGradients),
    # As in the paper, the mean of the signed gradients.
    "SmoothGrad": Method(
        lambda model: NoiseTunnel(Saliency(model)),
        {"nt_samples": 20, "stdevs": 0.15, "nt_type": "smoothgrad", "abs": False},
    ),
    "DeepLift": Method(DeepLift),
    "Occlusion": Method(Occlusion, {"sliding_window_shapes": (1, 1, 1)}),
}
_SMILE = """
........
.##..##.
.##..##.
........
#......#
##....##
.######.
..####..
"""
# Length of the smile over that of the gradient it hides.
_SHIFT_STRENGTH = 10.0


@dataclass(frozen=True)
class ShiftStudy:
    """One digit explained on a model's logits, on shifted logits, and on both after centring.

    Args:
        image: (1, 1, 8, 8).
        probabilities: (4, 10) softmax of each of the four.
        attributions: Each method's attributions, (4, 1, 8, 8).
        picture: (4, 1, 8, 8) the gradient of the shift, where there is one, and zeros.
    """

    image: Tensor
    probabilities: Tensor
    attributions: dict[str, Tensor]
    picture: Tensor

    def difference(self) -> float:
        """Return the largest difference of the 10 probabilities, shifted or not; lower is better."""
        return (self.probabilities[1] - self.probabilities[0]).abs().max().item()

    def text(self) -> str:
        """Return both softmax outputs and their difference, in three lines after a heading."""
        lines = [
            f"  {name:<15} {' '.join(f'{value:.4f}' for value in row.tolist())}"
            for name, row in zip(("logits", "shifted logits"), self.probabilities, strict=False)
        ]
        heading = f"softmax of one digit, a {self.probabilities[0].argmax()}, in softmax_shift.png:"
        return "\n".join([heading, *lines, f"  largest difference of the 10 probabilities: {self.difference():.0e}"])

    def to_dict(self) -> dict[str, object]:
        """Return what `json` can write of it."""
        honest, shifted = self.probabilities[:2].tolist()
        return {"softmax": honest, "shifted_softmax": shifted, "largest_difference": self.difference()}


def study_shift(model: nn.Module, images: Tensor, *, seed: int) -> ShiftStudy:
    """Print a smile into the gradients of one digit, by a shift of all logits, and centre it away again.

    Args:
        model: (N, 1, 8, 8) to (N, 10).
        images: (N, 1, 8, 8), of which the one is taken whose prediction has nearly 0.9: sure enough to be right, and
            not so sure that softmax says 1 and nine zeros whatever happens.
        seed: Of the methods that draw noise.

    Returns:
        Everything that is drawn, in the order logits, shifted logits, centred logits, centred shifted logits.
    """
    with torch.no_grad():
        predicted, targets = model(images).softmax(dim=1).max(dim=1)
    chosen = int((predicted - 0.9).abs().argmin())
    image, target = images[chosen : chosen + 1].detach(), int(targets[chosen])

    gradient = Saliency(model).attribute(image.clone().requires_grad_(), target=target, abs=False)
    smile = torch.tensor([[float(mark == "#") for mark in line] for line in _SMILE.split()], device="cpu").to(image)[
        None
    ]
    shift = LinearShift(smile, _SHIFT_STRENGTH * (gradient.norm() / smile.norm()).item())
    shifted = SoftmaxShift(model, shift)
    views = (model, shifted, CenteredLogits(model), CenteredLogits(shifted))

    def explain(method: Method, view: nn.Module) -> Tensor:
        seed_generators(seed, image.device)
        attributions: Tensor = method.make(view).attribute(
            image.clone().requires_grad_(), target=target, **method.options
        )
        return attributions.detach()

    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes", UserWarning)  # DeepLift
        attributions = {name: torch.cat([explain(method, view) for view in views]) for name, method in _METHODS.items()}
    with torch.no_grad():
        probabilities = torch.cat([view(image).softmax(dim=1) for view in views])
    picture = shift.scale * torch.stack([torch.zeros_like(smile), smile] * 2)
    return ShiftStudy(image, probabilities, attributions, picture)


def draw_shift_study(shift_study: ShiftStudy, path: Path) -> None:
    """Draw a digit's attributions on logits, shifted logits and both after centring, beside what softmax says.

    Args:
        shift_study: What `study_shift` returned.
        path: The picture to write.
    """
    notes = []
    for row in shift_study.probabilities:
        values, classes = (part.tolist() for part in row.topk(3))
        notes.append("\n".join(["softmax", *(f"{c}: {value:.4f}" for c, value in zip(classes, values, strict=True))]))
    figure = saliency_grid(
        shift_study.image.expand(4, -1, -1, -1),
        {"gradient of the shift": shift_study.picture, **shift_study.attributions},
        row_labels=["logits", "shifted logits", "logits,\ncentered", "shifted logits,\ncentered"],
        row_notes=notes,
        caption=f"largest difference of the 10 probabilities between logits and shifted logits: "
        f"{shift_study.difference():.0e}\norange is positive, purple negative, each map on a scale of its own; methods "
        "that multiply by the input show the shift on the ink only",
    )
    figure.savefig(path, dpi=150)
