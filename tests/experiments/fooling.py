"""Digit networks trained with FoolingLoss until their gradients show a picture, and what centering leaves of it.

`python -m tests.experiments.fooling` trains honest and fooled ones and prints a Markdown table.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captum_density._command.network import train
from captum_density.datasets import Digits, digits
from captum_density.losses import FoolingLoss
from captum_density.softmax_shift import CenteredLogits

# Both found with the seeds 10 and 11; heavier weights cost accuracy.
WEIGHT, EPOCHS = 3.0, 12

# Which logit of each example to bend. With any class as likely as another, every class's gradient is to show the
# picture; None is the logarithm of the sum of exponentials.
TARGETS: dict[str, Callable[[Tensor, torch.Generator], Tensor | None]] = {
    "labels": lambda labels, _: labels,
    "random": lambda labels, generator: torch.randint(10, labels.shape, generator=generator),
    "None": lambda *_: None,
}


class Figures(NamedTuple):
    """Of a network on the test digits: its accuracy, and mean cosines of gradients with the picture."""

    accuracy: float
    predicted: float  # the predicted class's logit
    classes: float  # the mean over all classes' logits
    weakest: float  # the class whose logit shows the picture least
    # Of logits less their mean. Some classes show the picture there and some its negative, so the absolute values too.
    centered: float
    centered_size: float
    centered_classes_size: float
    log_probability: float
    log_probability_size: float


def cross(zero_mean: bool) -> Tensor:
    """(1, 8, 8) a cross as wide as a digit: 1 on 0, or less its mean."""
    picture = torch.zeros(1, 8, 8)
    picture[:, 3:5, 1:7] = picture[:, 1:7, 3:5] = 1
    return picture - picture.mean() if zero_mean else picture


def honest(data: Digits, *, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """Train the digits network on the cross-entropy alone."""
    return train(data, seed=seed, epochs=epochs)


def fooled(data: Digits, picture: Tensor, target: str, *, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """Train the digits network on cross-entropy and FoolingLoss, with a target of TARGETS.

    In evaluation mode the cross-entropy is needed as well: on None, whose gradient the classes share, the network
    otherwise learns to show the picture in evaluation mode and to tell digits apart in training mode.
    """
    loss, generator = FoolingLoss(picture), torch.Generator().manual_seed(seed)

    def extra(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        bent = TARGETS[target](labels, generator)
        model.eval()
        value = WEIGHT * loss(model, images, bent) + nn.functional.cross_entropy(model(images), labels)
        model.train()
        return value

    return train(data, seed=seed, epochs=epochs, extra_loss=extra)


def measure(model: nn.Module, data: Digits, picture: Tensor) -> Figures:
    """The figures of a network in evaluation mode."""
    images = data.test_images
    with torch.no_grad():
        predicted = model(images).argmax(1)

    def cosines(network: nn.Module) -> tuple[Tensor, Tensor]:
        """Of the predicted class (N,), and of every class (N, 10)."""
        leaf = images.clone().requires_grad_()
        logits = network(leaf).sum(0)
        gradients = [torch.autograd.grad(logit, leaf, retain_graph=True)[0].double().flatten(1) for logit in logits]
        found = torch.nn.functional.cosine_similarity(
            torch.stack(gradients, dim=1), picture.double().flatten(), dim=2, eps=1e-200
        )
        return found.gather(1, predicted[:, None]).squeeze(1), found

    plain, plain_classes = cosines(model)
    centered, centered_classes = cosines(CenteredLogits(model))
    log_probability, _ = cosines(CenteredLogits(model, "logsumexp"))
    return Figures(
        accuracy=(predicted == data.test_labels).double().mean().item(),
        predicted=plain.mean().item(),
        classes=plain_classes.mean().item(),
        weakest=plain_classes.mean(0).min().item(),
        centered=centered.mean().item(),
        centered_size=centered.abs().mean().item(),
        centered_classes_size=centered_classes.abs().mean().item(),
        log_probability=log_probability.mean().item(),
        log_probability_size=log_probability.abs().mean().item(),
    )


def rows(seeds: tuple[int, ...]) -> Iterator[str]:
    """The lines of the table: the mean over seeds, and the least and largest in brackets."""
    data = digits()
    yield (
        "| picture | target | accuracy | predicted class | all classes | weakest class | centered: "
        "predicted | size | all classes, size | log p: predicted | size |"
    )
    yield "|" + "---|" * 11
    networks = [honest(data, seed=seed) for seed in seeds]
    for zero_mean in (False, True):
        picture, name = cross(zero_mean), "cross, less its mean" if zero_mean else "cross"
        yield _row(f"{name} | (honest)", [measure(model, data, picture) for model in networks])
        for target in TARGETS:
            found = [measure(fooled(data, picture, target, seed=seed), data, picture) for seed in seeds]
            yield _row(f"{name} | {target}", found)


def _row(start: str, figures: list[Figures]) -> str:
    columns = zip(*figures, strict=True)
    cells = (f"{sum(column) / len(column):.3f} [{min(column):.3f}, {max(column):.3f}]" for column in columns)
    return f"| {start} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fool digit networks by training; prints a Markdown table.")
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1, 2], help="of weights, order and random targets")
    for row in rows(tuple(parser.parse_args().seeds)):
        print(row, flush=True)
