"""Do gradients of real images' networks mark what decides? H. Shah, P. Jain and P. Netrapalli, NeurIPS 2021,
arXiv:2102.12781, figures 1 to 5.

DiffROAR of standard and adversarially trained networks against random rankings, with perceptrons retrained on the
masked images and on the bare masks; and on images beside a null block, the share of the gradient in the block that
carries the signal. Each seed is a whole repetition: another explained network, other rankings, other retrained
networks. Attributed is the predicted class.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from captum.attr import Saliency
from torch import Tensor, nn

from captum_density.datasets import BlockImages
from captum_density.metrics import diff_roar, signal_block_share
from captum_density.retraining import FitConfig, adversarial_fit, pgd
from tests.experiments.leakage import gradient
from tests.experiments.real_data import Images, Pair, Parts, accuracy, convolutional, markdown, over_seeds, perceptron

RADIUS = 0.05  # of each pixel in [0, 1]; with 0.1, 7,000 images of two blocks teach a robust perceptron nothing
KINDS = {"standard": 0.0, "robust": RADIUS}
BLOCKS: dict[str, tuple[Literal["square", "mean"], Literal["random", "top"]]] = {
    "square, random": ("square", "random"),
    "mean image, random": ("mean", "random"),
    "square, signal on top": ("square", "top"),
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    epochs: int = 10  # of the explained networks, and of those of blocks
    retrain_epochs: int = 8
    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def fit(self) -> FitConfig:
        """Of explained networks."""
        return FitConfig(epochs=self.epochs, batch_size=128, optimizer="sgd", lr=0.1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"perceptron": perceptron, "CNN": convolutional}


def networks(make: Callable[[], nn.Module], train: Pair, seed: int, fit: FitConfig) -> dict[str, nn.Module]:
    """A standard and a robust network, from the same weights and in the same order of examples."""
    return {
        kind: adversarial_fit(make, train, norm="linf", radius=radius, bounds=(0.0, 1.0), fit=fit, seed=seed)
        for kind, radius in KINDS.items()
    }


def under_attack(model: nn.Module, data: Pair) -> float:
    """Accuracy where each of 500 images is moved by up to the radius, the way that is worst for the model."""
    x, y = (part[:500] for part in data)
    return accuracy(model, (pgd(model, x, y, norm="linf", radius=RADIUS, bounds=(0.0, 1.0), random_start=False), y))


def roar_figures(data: Images, network: str, seed: int, sizes: Sizes, store: Path | None) -> dict[str, Any]:
    """DiffROAR of one seed, by kind of network and by fraction, and of controls."""
    models = networks(NETWORKS[network], data.train, seed, sizes.fit())
    result = diff_roar(
        perceptron,
        data.train,
        data.test,
        {kind: Saliency(model) for kind, model in models.items()},
        fractions=sizes.fractions,
        runs=1,
        fit=FitConfig(epochs=sizes.retrain_epochs, batch_size=128, lr=3e-3),
        controls=("random", "mask_only"),
        seed=seed,
        store=store,
    )
    return {
        "score": dict(zip(models, result.score.tolist(), strict=True)),
        "random": result.control_score("random")[0].tolist(),
        # Accuracies, of what ranks high and what ranks low, by fraction.
        "power": dict(zip(models, result.predictive_power[..., 0].tolist(), strict=True)),
        "mask only": dict(zip(models, result.control_power("mask_only")[..., 0].tolist(), strict=True)),
        "accuracy": {kind: accuracy(model, data.test) for kind, model in models.items()},
        "under attack": {kind: under_attack(model, data.test) for kind, model in models.items()},
    }


def block_figures(data: Images, block: str, network: str, seed: int, sizes: Sizes) -> dict[str, Any]:
    """The share of the gradient in the signal block, and accuracies."""
    null, position = BLOCKS[block]
    train = BlockImages(*data.train, null=null, position=position, seed=seed)
    test = BlockImages(*data.test, null=train.null, position=position, seed=1000 + seed)
    make = partial(perceptron, 2 * 28 * 28) if network == "perceptron" else partial(convolutional, rows=14)
    models = networks(make, (train.images, train.labels), seed, sizes.fit())

    def share(model: nn.Module) -> float:
        attributions: Tensor = gradient(model, test.images)
        return signal_block_share(attributions, test.signal_masks).mean().item()

    pair = test.images, test.labels
    return {
        "share": {kind: share(model) for kind, model in models.items()},
        "accuracy": {kind: accuracy(model, pair) for kind, model in models.items()},
        "under attack": {kind: under_attack(model, pair) for kind, model in models.items()},
    }


def measure_roar(data: Images, name: str, network: str, parts: Parts, sizes: Sizes, store: Path | None) -> list[Any]:
    """Of a data set and a kind of explained network, the figures by seed."""
    setup = {"experiment": "DiffROAR", "data": name, "network": network, **asdict(sizes), "radius": RADIUS}
    return [
        parts({**setup, "seeds": None, "seed": seed}, partial(roar_figures, data, network, seed, sizes, store))
        for seed in sizes.seeds
    ]


def measure_blocks(data: Images, name: str, network: str, parts: Parts, sizes: Sizes) -> dict[str, list[Any]]:
    """Of a data set, by null block and position, the figures by seed."""
    setup = {"experiment": "blocks", "data": name, "network": network, "epochs": sizes.epochs, "radius": RADIUS}
    return {
        block: [
            parts({**setup, "block": block, "seed": seed}, partial(block_figures, data, block, network, seed, sizes))
            for seed in sizes.seeds
        ]
        for block in BLOCKS
    }


def roar_table(results: Mapping[str, list[Any]], fractions: tuple[float, ...]) -> str:
    """DiffROAR by fraction: means over seeds, in Markdown."""
    rows = []
    for name, seeds in results.items():
        shown = {kind: [seed["score"][kind] for seed in seeds] for kind in KINDS}
        shown["random"] = [seed["random"] for seed in seeds]
        for kind, scores in shown.items():
            right = [over_seeds([seed[key][kind] for seed in seeds]) if kind in KINDS else ""
                     for key in ("accuracy", "under attack")]  # fmt: skip
            rows.append([name, kind, *right, *(over_seeds(at) for at in zip(*scores, strict=True))])
    headings = ["data, network", "ranking", "accuracy", "under attack", *(f"{fraction:.0%}" for fraction in fractions)]
    return markdown(headings, rows)


def power_table(results: Mapping[str, list[Any]], fractions: tuple[float, ...]) -> str:
    """Accuracies that DiffROAR is the difference of, of images and of bare masks: high / low, means over seeds."""
    rows = []
    for name, seeds in results.items():
        for kind in KINDS:
            for key, what in (("power", "images"), ("mask only", "masks")):
                sides = [[over_seeds(at)[:4] for at in zip(*(seed[key][kind][side] for seed in seeds), strict=True)]
                         for side in (0, 1)]  # fmt: skip
                rows.append([name, kind, what, *map(" / ".join, zip(*sides, strict=True))])
    return markdown(["data, network", "ranking", "retrained on", *(f"{f:.0%}" for f in fractions)], rows)


def block_table(results: Mapping[str, Mapping[str, list[Any]]]) -> str:
    """Shares by null block: means over seeds, in Markdown."""
    rows = [
        [name, block, *(over_seeds([seed[key][kind] for seed in seeds]) for key in ("share", "accuracy", "under attack")
                        for kind in KINDS)]
        for name, blocks in results.items()
        for block, seeds in blocks.items()
    ]  # fmt: skip
    headings = [f"{what}: {kind}" for what in ("share", "accuracy", "under attack") for kind in KINDS]
    return markdown(["data, network", "null block", *headings], rows)
