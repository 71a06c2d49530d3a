"""The audit's own examination: networks that are honest and networks made to lie, and which of them it tells apart.

`python -m tests.experiments.zoo` trains them on the digits, audits each, and writes ``results/zoo.json``. Thresholds
of the figures were chosen on the seeds below `HELD_OUT`; what is reported is of the others.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_density._cache.store import Store
from captum_density._command.network import convolutional, perceptron, train
from captum_density._display.intervals import mean_interval
from captum_density.audit import audit
from captum_density.datasets import Digits, digits
from captum_density.losses import FoolingLoss
from captum_density.metrics import common_gradient
from captum_density.softmax_shift import BoundedShift, LinearShift, SoftmaxShift

RESULTS = Path(__file__).parent / "results" / "zoo.json"
SEEDS, HELD_OUT, EPOCHS, EXAMPLES = 20, 8, 12, 64
FIGURES = ("common_gradient", "off_manifold_gradient", "finite_difference_gap")
# Which figure is to find a fault; the others are no lies of the gradient.
LIES = {
    "shift": "common_gradient",
    "trained shift": "common_gradient",
    "off-manifold": "off_manifold_gradient",
    "waves": "finite_difference_gap",
}
STRENGTHS = {"shift": (0.3, 1.0, 3.0, 10.0), "off-manifold": (0.3, 1.0, 3.0), "waves": (0.3, 1.0, 3.0)}


class Residual(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(self._block() for _ in range(3))
        self.last = nn.Linear(16, 10)

    @staticmethod
    def _block() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.last(x.mean((2, 3)))


class Transformer(nn.Module):
    """A vision transformer over patches of 2 x 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 32, 2, 2)
        self.positions = nn.Parameter(0.1 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT + self.positions
        return self.last(self.encoder(tokens).mean(1))


def linear() -> nn.Module:
    """A linear classifier."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN": convolutional,
    "perceptron": perceptron,
    "ResNet": Residual,
    "transformer": Transformer,
    "linear": linear,
}


class Case(NamedTuple):
    """A network of the zoo, audited.

    Args:
        network, seed: Which.
        fault: What was done to it; "honest" for nothing.
        strength: Length of the added gradient over the true one, means over examples; None where it is no such fault.
        accuracy: On the test digits.
        figures: The figures' values.
        against: Which figures spoke against it.
    """

    network: str
    seed: int
    fault: str
    strength: float | None
    accuracy: float
    figures: dict[str, float | None]
    against: tuple[str, ...]


def gradient_length(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Mean length of the predicted logit's gradient."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).amax(1).sum(), x)
    return gradient.flatten(1).norm(dim=1).mean().item()


def picture(seed: int) -> Tensor:
    """(1, 1, 8, 8) noise of length 1."""
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm()


def off_manifold(model: nn.Module, data: Digits, length: float, seed: int) -> Callable[[Tensor], Tensor]:
    """The model plus a linear function of a direction in which digits do not vary, another one for every class."""
    flat = data.train_images.flatten(1)
    mean = flat.mean(0)
    _, sizes, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    inside = directions[: int((sizes.square().cumsum(0) / sizes.square().sum() < 0.99).sum()) + 1]
    direction = picture(seed).flatten()
    direction = direction - inside.T @ (inside @ direction)
    direction = direction / direction.norm()
    slopes = length * torch.where(torch.arange(10) % 2 == 0, 1.0, -1.0)
    return lambda x: model(x) + ((x.flatten(1) - mean) @ direction)[:, None] * slopes


def lies(model: nn.Module, data: Digits, seed: int) -> Iterator[tuple[str, float | None, Any]]:
    """What is laid over a trained network: a fault, its strength, and the network with it."""
    length = gradient_length(model, data.test_images)
    for strength in STRENGTHS["shift"]:
        yield "shift", strength, SoftmaxShift(model, LinearShift(strength * length * picture(seed)))
    for strength in STRENGTHS["off-manifold"]:
        yield "off-manifold", strength, off_manifold(model, data, strength * length, seed)
    for strength, amplitude in product(STRENGTHS["waves"], (0.01, 0.1)):
        waved = BoundedShift(model, amplitude, strength * length / amplitude, picture(seed))
        yield "waves", strength, waved


def others(data: Digits, name: str, seed: int, honest: nn.Module) -> Iterator[tuple[str, float | None, Any]]:
    """What is trained anew, and what is wrong but no lie of the gradient."""
    network = NETWORKS[name]
    fooling = FoolingLoss(picture(seed))

    def extra(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        bent = torch.randint(10, labels.shape, generator=generator)
        model.eval()
        value = 3 * fooling(model, images, bent) + nn.functional.cross_entropy(model(images), labels)
        model.train()
        return value

    generator = torch.Generator().manual_seed(seed)
    fooled = train(data, seed=seed, epochs=EPOCHS, network=network, extra_loss=extra)
    share = common_gradient(fooled, data.test_images[:EXAMPLES]).mean().item()
    yield "trained shift", math.sqrt(share / max(1e-9, 1 - share)), fooled
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    shuffled = data._replace(train_labels=data.train_labels[order])
    yield "random labels", None, train(shuffled, seed=seed, epochs=EPOCHS, network=network)
    torch.manual_seed(seed)
    yield "untrained", None, network().eval()
    marked = data.train_images.clone()
    marked[:, 0, 0, 0] = data.train_labels / 9
    yield "shortcut", None, train(data._replace(train_images=marked), seed=seed, epochs=EPOCHS, network=network)
    yield "softmax at the end", None, nn.Sequential(honest, nn.Softmax(1))


def examined(model: Any, data: Digits, network: str, seed: int, fault: str, strength: float | None) -> Case:
    """A network's audit."""
    report = audit(model, (data.test_images, data.test_labels), ["Saliency"], metrics=["accuracy", *FIGURES],
                   limit=EXAMPLES, seed=seed)  # fmt: skip
    with torch.no_grad():
        accuracy = (model(data.test_images).argmax(1) == data.test_labels).double().mean().item()
    figures = {name: report.model[name].value for name in FIGURES}
    against = tuple(name for name in FIGURES if speaks_against(name, report))
    return Case(network, seed, fault, strength, accuracy, figures, against)


def speaks_against(name: str, report: Any) -> bool:
    """Whether a figure gives a warning."""
    from captum_density.audit._figures import FIGURES as BY_NAME

    return any(finding.kind == "warning" for finding in BY_NAME[name].findings(report))


def cases_of(name: str, seed: int, data: Digits, trained: bool) -> Iterator[Case]:
    """Every case of a network; what is trained anew where it is asked for."""
    honest = train(data, seed=seed, epochs=EPOCHS, network=NETWORKS[name])
    yield examined(honest, data, name, seed, "honest", 0.0)
    for fault, strength, model in lies(honest, data, seed):
        yield examined(model, data, name, seed, fault, strength)
    for fault, strength, model in others(data, name, seed, honest) if trained else ():
        yield examined(model, data, name, seed, fault, strength)


def zoo(seeds: range, data: Digits, trained: int, store: Store) -> Iterator[Case]:
    """Every case of these seeds, those of the store as they are; what is trained anew, of the first so many seeds."""
    for seed, name in tqdm([*product(seeds, NETWORKS)], unit="network"):
        identity = {"zoo": 3, "network": name, "seed": seed, "trained": seed < seeds.start + trained}
        content = store.read(identity, dict)
        if content is None:
            cases = [case._asdict() for case in cases_of(name, seed, data, seed < seeds.start + trained)]
            content = {"cases": cases}
            store.write(identity, content)
        yield from (Case(**case) for case in content["cases"])


def auc(lying: Tensor, honest: Tensor) -> float:
    """The share of pairs in which the lying network has the larger figure."""
    differences = lying[:, None] - honest
    return ((differences > 0).double() + 0.5 * (differences == 0)).mean().item()


def auc_interval(lying: Tensor, honest: Tensor, seed: int = 0) -> tuple[float, float]:
    """95% of bootstrap samples of both."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(values: Tensor) -> Tensor:
        return values[torch.randint(len(values), values.shape, generator=generator)]

    samples = torch.tensor([auc(drawn(lying), drawn(honest)) for _ in range(1000)])
    return samples.quantile(0.025).item(), samples.quantile(0.975).item()


def summary(cases: list[Case]) -> dict[str, Any]:
    """Rates of findings, false alarms, and how well each figure tells its lie from honest networks."""
    honest = [case for case in cases if case.fault == "honest"]
    rows = []
    kinds = dict.fromkeys((case.fault, None if case.fault == "trained shift" else case.strength) for case in cases)
    for fault, strength in kinds:
        some = [c for c in cases if c.fault == fault and (strength is None or c.strength == strength)]
        row: dict[str, Any] = {"fault": fault, "strength": strength, "networks": len(some)}
        row |= {name: sum(name in c.against for c in some) / len(some) for name in FIGURES}
        row["accuracy"] = mean_interval(torch.tensor([c.accuracy for c in some]).double(), 0)
        if fault in LIES:
            figure = LIES[fault]
            lying, own = (torch.tensor([c.figures[figure] or 0.0 for c in group]).double() for group in (some, honest))
            row |= {"auc": auc(lying, own), "auc_interval": auc_interval(lying, own)}
            row |= {"smallest": lying.min().item(), "largest_honest": own.max().item()}
        rows.append(row)
    rows.sort(key=lambda row: (row["fault"] != "honest", row["fault"] not in LIES, row["fault"], row["strength"] or 0))
    false_alarms = sum(bool(case.against) for case in honest)
    return {"honest": len(honest), "false_alarms": false_alarms, "faults": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trained", type=int, default=8, help="seeds of which faults are trained, too")
    parser.add_argument("--store", type=Path, default=Path("zoo"), help="where finished networks are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, store = digits(), Store(arguments.store)
    chosen = summary(list(zoo(range(HELD_OUT), data, 0, store)))
    held_out = summary(list(zoo(range(HELD_OUT, arguments.seeds), data, arguments.trained, store)))
    content = {"thresholds chosen on": chosen, "held out": held_out}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(held_out, indent=1))


if __name__ == "__main__":
    main()
