"""The networks of the main job, and how they are trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_density._model.generators import seed_generators
from captum_density.datasets import Digits

__all__ = ["convolutional", "perceptron", "train"]


def convolutional() -> nn.Module:
    """Make the network that is explained: three convolutions with batch norm and biases."""
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


def perceptron() -> nn.Module:
    """Make a network of another kind, to judge the first one's samples."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def train(
    data: Digits,
    *,
    seed: int,
    epochs: int,
    extra_loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    network: Callable[[], nn.Module] = convolutional,
    name: str = "training",
) -> nn.Module:
    """Train a small network on the data's device.

    Args:
        data: The digits; training moves no random state but its own.
        seed: Of the initial weights and the order of the examples.
        epochs: Passes over the training digits.
        extra_loss: Added to the cross-entropy; a function of the model, a batch of images and their labels.
        network: Makes it, on the CPU.
        name: Of the progress bar.

    Returns:
        The network in evaluation mode: (N, 1, 8, 8) to (N, 10).
    """
    images, labels = data.train_images, data.train_labels
    with torch.random.fork_rng(devices=[]):
        seed_generators(seed)
        model = network().to(images.device)
        orders = [torch.randperm(len(images), device="cpu").split(64) for _ in range(epochs)]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=sum(map(len, orders)))
    for order in tqdm(orders, desc=name, unit="epoch"):
        for batch in order:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if extra_loss is not None:
                loss = loss + extra_loss(model, images[batch], labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
