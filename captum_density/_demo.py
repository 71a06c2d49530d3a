"""The main job: train a small network on the digits, explain it several ways, measure and draw the explanations."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor, nn
from tqdm import tqdm

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.audit import AuditReport, Method, audit
from captum_density.datasets import Digits, digits
from captum_density.plots import saliency_grid

_DRAWN = 6
_NOISE: dict[str, object] = {"nt_samples": 20, "stdevs": 0.15}


def run(out: Path, *, seed: int, device: str, epochs: int = 12, examples: int = 64) -> float:
    """Train, explain, measure; print the table and write ``saliency.png``, ``table.md`` and ``report.json``.

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
    report = audit(model, images, target, methods(model), seed=seed)

    heading = f"accuracy on {len(predicted)} test digits: {accuracy:.4f} (higher is better)"
    text = f"{heading}\n\n{report.table()}\n"
    print(text)
    (out / "table.md").write_text(text, encoding="utf-8")
    facts = {"accuracy": accuracy, "test_digits": len(predicted), "seed": seed, "device": device, "epochs": epochs}
    (out / "report.json").write_text(json.dumps({**facts, **report.to_dict()}, indent=2) + "\n", encoding="utf-8")
    _draw(report, images, target, out / "saliency.png")
    print(f"written to {out}: saliency.png, table.md, report.json")
    return accuracy


def methods(model: nn.Module) -> dict[str, Method]:
    """Return Captum's methods and the FullGrad family on a model, by the name to show."""
    return {
        "Saliency": Method(Saliency(model)),
        "IntegratedGradients": Method(IntegratedGradients(model)),
        # As in the paper, the mean of the signed gradients.
        "SmoothGrad": Method(NoiseTunnel(Saliency(model)), {**_NOISE, "nt_type": "smoothgrad", "abs": False}),
        "FullGrad": Method(FullGrad(model)),
        "FullGrad, complete": Method(FullGrad(model, complete=True)),
        "SimpleFullGrad": Method(SimpleFullGrad(model)),
        "SmoothFullGrad": Method(SmoothFullGrad(model), _NOISE),
    }


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
    saliency_grid(images[:_DRAWN], drawn, row_labels=labels).savefig(path, dpi=150)
