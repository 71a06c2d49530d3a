"""The main job: train a small network on the digits, explain it several ways, measure and draw the explanations."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, NoiseTunnel, Occlusion, Saliency
from torch import Tensor, nn
from tqdm import tqdm

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.audit import AuditReport, Method, audit
from captum_density.datasets import Digits, digits
from captum_density.plots import saliency_grid
from captum_density.softmax_shift import CenteredLogits, LinearShift, SoftmaxShift

_DRAWN = 6
_NOISE: dict[str, object] = {"nt_samples": 20, "stdevs": 0.15}
# As in the paper, the mean of the signed gradients.
_SMOOTH_GRAD = Method(lambda model: NoiseTunnel(Saliency(model)), {**_NOISE, "nt_type": "smoothgrad", "abs": False})

# What the main job measures: Captum's methods and the FullGrad family, by the name to show.
METHODS = {
    "Saliency": Method(Saliency),
    "Saliency, centered": Method(Saliency, view=CenteredLogits),
    "IntegratedGradients": Method(IntegratedGradients),
    "IntegratedGradients, centered": Method(IntegratedGradients, view=CenteredLogits),
    "SmoothGrad": _SMOOTH_GRAD,
    "FullGrad": Method(FullGrad),
    "FullGrad, complete": Method(lambda model: FullGrad(model, complete=True)),
    "SimpleFullGrad": Method(SimpleFullGrad),
    "SmoothFullGrad": Method(SmoothFullGrad, _NOISE),
}

# What is shown under a softmax shift: signed, pixel by pixel.
_FOOLED_METHODS = {
    "Saliency": Method(Saliency, {"abs": False}),
    "InputXGradient": Method(InputXGradient),
    "IntegratedGradients": Method(IntegratedGradients),
    "SmoothGrad": _SMOOTH_GRAD,
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


def run(out: Path, *, seed: int, device: str, epochs: int = 12, examples: int = 64) -> float:
    """Train, explain, measure, fool; print the figures and write the files.

    Written are ``saliency.png``, ``softmax_shift.png``, ``table.md`` and ``report.json``.

    Args:
        out: folder to write to, made where it is missing.
        seed: of the initial weights, the order of training and every perturbation.
        device: "cpu" or "cuda".
        epochs: passes over the training digits.
        examples: test digits to explain, the first ones.

    Returns:
        The network's accuracy on all test digits, in [0, 1]; higher is better.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = Digits(*(tensor.to(device) for tensor in digits()))
    model = train(data, seed=seed, epochs=epochs)
    with torch.no_grad():
        predicted = model(data.test_images).argmax(dim=1)
    accuracy = (predicted == data.test_labels).double().mean().item()

    images, target = data.test_images[:examples], predicted[:examples]
    report = audit(model, images, target, METHODS, seed=seed)
    fooled = fool(model, images, seed=seed)

    heading = f"accuracy on {len(predicted)} test digits: {accuracy:.4f} (higher is better)"
    text = f"{heading}\n\n{report.table()}\n"
    print(text)
    print(f"{fooled.text()}\n")
    (out / "table.md").write_text(text, encoding="utf-8")
    facts = {"accuracy": accuracy, "test_digits": len(predicted), "seed": seed, "device": device, "epochs": epochs}
    facts |= {**report.to_dict(), "softmax_shift": fooled.to_dict()}
    (out / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    _draw(report, images, target, out / "saliency.png")
    _draw_fooled(fooled, out / "softmax_shift.png")
    print(f"written to {out}: saliency.png, softmax_shift.png, table.md, report.json")
    return accuracy


@dataclass(frozen=True)
class Fooled:
    """One digit explained on a model's logits, on shifted logits, and on both after centering.

    Args:
        image: (1, 1, 8, 8).
        probabilities: (4, 10) softmax of each of the four.
        attributions: each method's attributions, (4, 1, 8, 8).
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


def fool(model: nn.Module, images: Tensor, *, seed: int) -> Fooled:
    """Print a smile into the gradients of one digit, by a shift of all logits, and center it away again.

    Args:
        model: (N, 1, 8, 8) to (N, 10).
        images: (N, 1, 8, 8), of which the one is taken whose prediction has nearly 0.9: sure enough to be right, and
            not so sure that softmax says 1 and nine zeros whatever happens.
        seed: of the methods that draw noise.

    Returns:
        Everything that is drawn, in the order logits, shifted logits, centered logits, centered shifted logits.
    """
    with torch.no_grad():
        predicted, targets = model(images).softmax(dim=1).max(dim=1)
    chosen = int((predicted - 0.9).abs().argmin())
    image, target = images[chosen : chosen + 1].detach(), int(targets[chosen])

    gradient = Saliency(model).attribute(image.clone().requires_grad_(), target=target, abs=False)
    smile = torch.tensor([[float(mark == "#") for mark in line] for line in _SMILE.split()]).to(image)[None]
    shift = LinearShift(smile, _SHIFT_STRENGTH * (gradient.norm() / smile.norm()).item())
    shifted = SoftmaxShift(model, shift)
    views = (model, shifted, CenteredLogits(model), CenteredLogits(shifted))

    def attributed(method: Method, view: nn.Module) -> Tensor:
        torch.manual_seed(seed)
        attributions: Tensor = method.make(view).attribute(
            image.clone().requires_grad_(), target=target, **method.options
        )
        return attributions.detach()

    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting forward, backward hooks and attributes", UserWarning)  # DeepLift
        attributions = {
            name: torch.cat([attributed(method, view) for view in views]) for name, method in _FOOLED_METHODS.items()
        }
    with torch.no_grad():
        probabilities = torch.cat([view(image).softmax(dim=1) for view in views])
    picture = shift.scale * torch.stack([torch.zeros_like(smile), smile] * 2)
    return Fooled(image, probabilities, attributions, picture)


def train(
    data: Digits,
    *,
    seed: int,
    epochs: int,
    extra_loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train a small convolutional network, with batch norm and biases, on the data's device.

    Args:
        data: the digits; training moves no random state but its own.
        seed: of the initial weights and the order of the examples.
        epochs: passes over the training digits.
        extra_loss: added to the cross-entropy; a function of the model, a batch of images and their labels.

    Returns:
        The network in evaluation mode: (N, 1, 8, 8) to (N, 10).
    """
    images, labels = data.train_images, data.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network().to(images.device)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
        orders = [torch.randperm(len(images)).split(64) for _ in range(epochs)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=sum(map(len, orders)))
    for order in tqdm(orders, desc="training", unit="epoch"):
        for batch in order:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if extra_loss is not None:
                loss = loss + extra_loss(model, images[batch], labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def _draw(report: AuditReport, images: Tensor, target: Tensor, path: Path) -> None:
    drawn = {name: attribution[:_DRAWN] for name, attribution in report.attributions.items()}
    labels = [str(int(label)) for label in target[:_DRAWN]]
    caption = (
        "left, the predicted class, which is explained; white to red: unsigned maps (Saliency takes absolute values "
        "here); orange and purple: positive and negative; each map on a scale of its own"
    )
    saliency_grid(images[:_DRAWN], drawn, row_labels=labels, caption=caption).savefig(path, dpi=150)


def _draw_fooled(fooled: Fooled, path: Path) -> None:
    notes = []
    for row in fooled.probabilities:
        values, classes = (part.tolist() for part in row.topk(3))
        notes.append("\n".join(["softmax", *(f"{c}: {value:.4f}" for c, value in zip(classes, values, strict=True))]))
    figure = saliency_grid(
        fooled.image.expand(4, -1, -1, -1),
        {"gradient of the shift": fooled.picture, **fooled.attributions},
        row_labels=["logits", "shifted logits", "logits,\ncentered", "shifted logits,\ncentered"],
        row_notes=notes,
        caption=f"largest difference of the 10 probabilities between logits and shifted logits: "
        f"{fooled.difference():.0e}\norange is positive, purple negative, each map on a scale of its own; methods that "
        "multiply by the input show the shift on the ink only",
    )
    figure.savefig(path, dpi=150)
