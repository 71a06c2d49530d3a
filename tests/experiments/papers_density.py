"""What a density loss does to networks of real images: S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128.

A small CNN is trained with each of the paper's four losses. The weight of a loss is chosen with a seed of its own
(`choose_weight`), on validation images, among those within a hundredth of the best accuracy: for score matching and
gradient norm the weight whose samples a judge recognises best; for anti score matching, the control, the largest one.
Judges are perceptrons, and each seed has its own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from captum.attr import Saliency
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captum_density.density import hessian_trace
from captum_density.losses import AntiScoreMatchingLoss, GradientNormLoss, ScoreMatchingLoss, choose_weight
from captum_density.metrics import density_ratio, gan_test, pixel_perturbation
from captum_density.samplers import ActivationMaximization
from tests.experiments.real_data import (
    CLASSES,
    Images,
    Pair,
    Parts,
    accuracy,
    convolutional,
    markdown,
    over_seeds,
    perceptron,
)

NOISE_STD, BATCH = 0.3, 128
PLAIN, SCORE, ANTI, NORM = "plain", "score matching", "anti score matching", "gradient norm"
LOSSES = {
    PLAIN: lambda generator: None,
    SCORE: lambda generator: ScoreMatchingLoss(noise_std=NOISE_STD, stability=1e-4, generator=generator),
    ANTI: lambda generator: AntiScoreMatchingLoss(1e3, noise_std=NOISE_STD, generator=generator),
    NORM: lambda generator: GradientNormLoss(),
}
PUBLISHED = {PLAIN: 59.5, SCORE: 72.8, ANTI: 16.4, NORM: 80.1}  # GAN-test on CIFAR-100, in percent
FIGURES = {
    "accuracy": "accuracy",
    "trace": "Hessian trace",
    "ratio": "log density ratio, noise 0.3",
    "gan_test": "GAN-test",
    "area": "pixel perturbation, others the mean",
    "area_black": "others black",
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    epochs: int = 5
    samples: int = 20  # of each class
    steps: int = 100  # of a climb
    examples: int = 500  # that figures other than accuracy are of
    weights: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    choosing_seed: int = 10


def train(make: Any, data: Pair, epochs: int, seed: int, loss: nn.Module | None = None, weight: float = 0) -> nn.Module:
    """A network in evaluation mode; the seed fixes its first weights and the order of the examples."""
    torch.manual_seed(seed)
    model = make()
    x, y = data
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(BATCH):
            total = cross_entropy(model(x[batch]), y[batch])
            if loss is not None:
                total = total + weight * loss(model, x[batch], y[batch])
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def samples(model: nn.Module, sizes: Sizes, seed: int) -> tuple[Tensor, Tensor]:
    """What climbing each class's logit from noise ends at, in steps of one length that can cross the cube of images."""
    classes = torch.arange(CLASSES).repeat(sizes.samples)
    start = 0.5 + 0.2 * torch.randn(len(classes), 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    climb = ActivationMaximization(model, 35 / sizes.steps, sizes.steps, bounds=(0.0, 1.0), normalize=True)
    return climb.sample(start.clamp(0, 1), classes).samples, classes


def network_figures(
    model: nn.Module, judge: nn.Module, data: Images, on: Pair, sizes: Sizes, seed: int
) -> dict[str, float]:
    """What FIGURES name."""
    x, y = (part[: sizes.examples] for part in on)
    saliency = Saliency(model).attribute(x.clone().requires_grad_(), target=y).detach()
    noise = {"generator": torch.Generator().manual_seed(seed), "max_examples_per_batch": 1000}

    def area(order: Tensor, fill: Any) -> float:
        return pixel_perturbation(model, x, order, fill, target=y, max_examples_per_batch=1000).area.mean().item()

    average = data.train[0].mean(0, keepdim=True)
    at_random = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "accuracy": accuracy(model, on),
        "trace": hessian_trace(model, x, y, n_samples=4, noise_std=0.1, **noise).mean().item(),
        "ratio": density_ratio(model, x, NOISE_STD, target=y, n_perturb_samples=4, **noise).median().item(),
        "gan_test": gan_test(judge, *samples(model, sizes, seed)).accuracy,
        "area": area(saliency, average),
        "area_black": area(saliency, 0.0),
        "area_random": area(at_random, average),
        "area_black_random": area(at_random, 0.0),
    }


def measure(data: Images, name: str, parts: Parts, sizes: Sizes) -> dict[str, Any]:
    """Of a data set: what weights were tried and chosen, and the figures of the four networks by seed."""
    setup = {"experiment": "density", "data": name, **asdict(sizes), "weights": None, "seeds": None}

    def part(kind: str, weight: float, seed: int, on: Pair) -> dict[str, Any]:
        def compute() -> dict[str, float]:
            loss = LOSSES[kind](torch.Generator().manual_seed(seed))
            model = train(convolutional, data.train, sizes.epochs, seed, loss, weight)
            judge = train(perceptron, data.train, sizes.epochs, seed + 100)
            figures = network_figures(model, judge, data, on, sizes, seed)
            return {**figures, "judge": accuracy(judge, on)}

        return parts({**setup, "loss": kind, "weight": weight, "seed": seed}, compute)

    def tried(kind: str, weight: float) -> dict[str, Any]:
        return part(kind if weight else PLAIN, weight, sizes.choosing_seed, data.validation)

    choices: dict[str, Any] = {}
    for kind in (SCORE, ANTI, NORM):

        def accuracy_and_figure(weight: float, kind: str = kind) -> float | tuple[float, float]:
            figures = tried(kind, weight)
            return figures["accuracy"] if kind == ANTI else (figures["accuracy"], figures["gan_test"])

        choices[kind] = choose_weight(accuracy_and_figure, sizes.weights)._asdict()
        choices[kind]["gan_tests"] = [tried(kind, weight)["gan_test"] for weight in choices[kind]["weights"]]
        choices[kind]["traces"] = [tried(kind, weight)["trace"] for weight in choices[kind]["weights"]]
    chosen = {PLAIN: 0.0, **{kind: choice["weight"] for kind, choice in choices.items()}}
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in LOSSES}
    for seed in sizes.seeds:
        for kind in LOSSES:
            rows[kind].append(part(kind, chosen[kind], seed, data.test))
    return {"choices": choices, "networks": rows}


def table(results: Mapping[str, Any]) -> str:
    """Means over seeds, in Markdown."""
    lines = []
    for name, result in results.items():
        for kind, rows in result["networks"].items():
            weight = result["choices"][kind]["weight"] if kind in result["choices"] else 0
            places = {"trace": 0, "ratio": 1, "accuracy": 3}
            cells = (over_seeds([row[key] for row in rows], places.get(key, 2)) for key in FIGURES)
            lines.append([name, kind, f"{weight:g}", *cells, f"{PUBLISHED[kind]:.1f}%"])
    return markdown(["data", "network", "weight", *FIGURES.values(), "published GAN-test, CIFAR-100"], lines)


def choice_table(results: Mapping[str, Any]) -> str:
    """What each weight came to on validation images, the chosen one in bold, in Markdown."""
    lines = []
    for name, result in results.items():
        for kind, choice in result["choices"].items():
            for at, weight in enumerate(choice["weights"]):
                shown = f"{weight:g}"
                lines.append(
                    [
                        name,
                        kind,
                        f"**{shown}**" if weight == choice["weight"] else shown,
                        f"{choice['accuracies'][at]:.3f}",
                        f"{choice['gan_tests'][at]:.2f}",
                        f"{choice['traces'][at]:.0f}",
                    ]
                )
    return markdown(["data", "loss", "weight", "accuracy", "GAN-test", "Hessian trace"], lines)
