"""The zoo's other kinds: tables, signals, token ids, other images, and other ways of training, honest and lying.

`python -m tests.experiments.zoo_kinds --images FOLDER` audits them and writes ``results/zoo_kinds.json``: how often
each figure speaks against an honest network, and how often it finds its own lie. FOLDER holds MNIST and Fashion-MNIST,
as `tests.experiments.real_data` reads them; without it these are left out. Statistics were chosen on the seeds below
`HELD_OUT`, and what is reported is of the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from captum_density._cache.store import Store
from captum_density.audit import audit
from captum_density.audit._figures import FIGURES as BY_NAME
from captum_density.datasets import digits
from captum_density.losses import GradientNormLoss, ScoreMatchingLoss
from captum_density.retraining import FitConfig, adversarial_fit
from captum_density.softmax_shift import LinearShift, SoftmaxShift
from tests.experiments import real_data
from tests.experiments.zoo import FIGURES, LIES, auc

RESULTS = Path(__file__).parent / "results" / "zoo_kinds.json"
SEEDS, HELD_OUT, EXAMPLES = 9, 3, 64
STRENGTHS = (0.3, 1.0, 3.0)
AMPLITUDES = (0.002, 0.02)  # of waves, in deviations of the outputs; of even and of odd seeds
Outputs = Literal["logits", "one logit", "sigmoid", "number"]
Extra = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Split(NamedTuple):
    """Inputs (N, ...) as networks are trained on them, and labels (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Kind:
    """Networks of one kind.

    Args:
        group: What the results count together.
        data: Of a seed.
        network: Makes one for these data, with so many outputs.
        outputs: What it returns.
        epochs, rate, decay: Of training, by AdamW in batches of 32.
        extra: Added to the loss.
        fit: Trains in another way.
        units: (1, ...) mean and deviation of the inputs that the audit is given, and networks scale back.
    """

    group: str
    data: Callable[[int], Split]
    network: Callable[[Split, int], nn.Module]
    outputs: Outputs = "logits"
    epochs: int = 30
    rate: float = 1e-2
    decay: float = 1e-2
    extra: Extra | None = None
    fit: Callable[[Callable[[], nn.Module], Split, int], nn.Module] | None = None
    units: Callable[[], tuple[Tensor, Tensor]] | None = None


class Case(NamedTuple):
    """A network, audited: what each figure is and says, "warning", "good" or "note" of what it cannot tell."""

    kind: str
    group: str
    seed: int
    fault: str
    strength: float
    score: float | None
    figures: dict[str, float | None]
    says: dict[str, str]


# Data.


def parted(x: Tensor, y: Tensor, seed: int, test: float = 0.5) -> Split:
    """In two parts, drawn at random."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y, n = x[order], y[order], int(len(x) * (1 - test))
    return Split(x[:n], y[:n], x[n:], y[n:])


@lru_cache
def table(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A table of scikit-learn's in units of deviations, its labels (numbers: likewise), means and deviations."""
    load = {"cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes, "digits": load_digits}[name]
    content = load(scaled=False) if name == "diabetes" else load()
    x, y = torch.tensor(content.data).float(), torch.tensor(content.target)
    mean, unit = x.mean(0, keepdim=True), x.std(0, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    if name == "diabetes":
        y = ((y - y.mean()) / y.std()).float()
    return (x - mean) / unit, y, mean, unit


def table_split(name: str, seed: int) -> Split:
    return parted(*table(name)[:2], seed)


def with_numbers(data: Split) -> Split:
    """The classes as numbers, to be fitted as such."""
    return data._replace(train_labels=data.train_labels.float(), test_labels=data.test_labels.float())


@lru_cache
def digit_images(classes: int = 10) -> Split:
    """The digits, the first so many classes."""
    data = digits()
    some, others = data.train_labels < classes, data.test_labels < classes
    return Split(data.train_images[some], data.train_labels[some], data.test_images[others], data.test_labels[others])


@lru_cache
def clothes(folder: Path, name: str, classes: int) -> Split:
    """MNIST or Fashion-MNIST: 3,000 images to train on, 2,000 to test."""
    (x, y), _, (test, labels) = real_data.images(folder, name)
    some, others = y < classes, labels < classes
    return Split(x[some][:3000], y[some][:3000], test[others], labels[others])


@lru_cache
def signals(n: int = 800) -> Split:
    """(N, 2, 64): slow waves, and in one channel, anywhere, a burst whose form is the class."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(64) / 64
    phases, sizes = (torch.rand(n, 2, 4, 1, generator=generator) for _ in range(2))
    x = (sizes * torch.sin(2 * torch.pi * (time * torch.arange(1, 5)[:, None] + phases))).sum(2)
    y = torch.randint(3, (n,), generator=generator)
    at = torch.randint(48, (n,), generator=generator)
    burst = torch.arange(16) / 16
    forms = torch.stack([(6 * torch.pi * burst).sin(), (12 * torch.pi * burst).sin(), torch.zeros(16)])
    for i in range(n):
        x[i, 0, at[i] : at[i] + 16] += forms[y[i]] * torch.hann_window(16) * 2
    return parted(x, y, 0)


@lru_cache
def sentences(n: int = 900) -> Split:
    """(N, 12) token ids, some of which speak for a class: 1 to 5 for one, 6 to 10 for the other."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (n, 12), generator=generator)
    score = ((ids >= 6) & (ids <= 10)).sum(1) - (ids <= 5).sum(1)
    return parted(ids[score != 0], (score[score != 0] > 0).long(), 0)


# Networks.


class Tokens(nn.Module):
    """A model of token ids: embeddings, and what is made of them."""

    def __init__(self, embeddings: nn.Module, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embeddings, self.rest = embeddings, rest

    def forward(self, ids: Tensor) -> Tensor:
        return self.rest(self.embeddings(ids))


class Encoder(nn.Module):
    """A transformer's layers over (N, L, 16)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.1 * torch.randn(12, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x + self.positions).mean(1))


class Mean(nn.Module):
    """The mean over dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Recurrent(nn.Module):
    """An LSTM over (N, channels, length), read at its end."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(channels, 24, batch_first=True), nn.Linear(24, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.mT)[0].mean(1))


def linear(data: Split, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(data.train[0].numel(), outputs))


def layered(
    data: Split, outputs: int, widths: Sequence[int] = (64, 32), act: Callable[[], nn.Module] = nn.ReLU, drop: float = 0
) -> nn.Module:
    """A perceptron."""
    sizes = [data.train[0].numel(), *widths]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip(sizes, widths, strict=False):
        layers += [nn.Linear(a, b), act(), *([nn.Dropout(drop)] if drop else [])]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def convolutional(data: Split, outputs: int, norm: bool = False, drop: float = 0.0) -> nn.Module:
    """Two convolutions and a pooling, for images."""
    side = (data.train.shape[-1] + 3) // 4
    parts = [nn.Conv2d(1, 8, 3, 2, 1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)]
    parts += [*([nn.BatchNorm2d(16)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Dropout(drop)]
    return nn.Sequential(*parts, nn.Linear(16 * side * side, outputs))


def of_signals(data: Split, outputs: int) -> nn.Module:
    layers = [nn.Conv1d(2, 16, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, outputs))


def recurrent(data: Split, outputs: int) -> nn.Module:
    return Recurrent(data.train.shape[1], outputs)


def bag(data: Split, outputs: int) -> nn.Module:
    rest = nn.Sequential(Mean(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, outputs))
    return Tokens(nn.Embedding(50, 16), rest)


def transformer(data: Split, outputs: int) -> nn.Module:
    return Tokens(nn.Embedding(50, 16), Encoder(outputs))


# Training.


def loss_of(outputs: Outputs, y: Tensor, labels: Tensor) -> Tensor:
    if outputs == "number":
        return F.mse_loss(y[:, 0], labels)
    if outputs == "one logit":
        return F.binary_cross_entropy_with_logits(y[:, 0], labels.float())
    return F.binary_cross_entropy(y[:, 0], labels.float()) if outputs == "sigmoid" else F.cross_entropy(y, labels)


def trained(kind: Kind, data: Split, seed: int) -> nn.Module:
    """A network of this kind, in evaluation mode."""
    classes = int(data.train_labels.max()) + 1 if kind.outputs == "logits" else 1

    def make() -> nn.Module:
        network = kind.network(data, classes)
        return nn.Sequential(network, nn.Sigmoid()) if kind.outputs == "sigmoid" else network

    if kind.fit is not None:
        return kind.fit(make, data, seed).eval()
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=kind.rate, weight_decay=kind.decay)
    steps = kind.epochs * -(-len(data.train) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, total_steps=steps)
    for _ in range(kind.epochs):
        for at in torch.randperm(len(data.train)).split(32):
            x, y = data.train[at], data.train_labels[at]
            loss = loss_of(kind.outputs, model(x), y)
            if kind.extra is not None:
                loss = loss + kind.extra(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def least_squares(make: Callable[[], nn.Module], data: Split, seed: int) -> nn.Module:
    """A linear model at its optimum, as statistics packages fit it."""
    model = make()
    x = torch.cat([data.train.flatten(1), torch.ones(len(data.train), 1)], 1).double()
    solution = torch.linalg.lstsq(x, data.train_labels.double()[:, None]).solution.float()
    model[1].weight.data, model[1].bias.data = solution[:-1].mT.contiguous(), solution[-1]  # type: ignore[index]
    return model


def robust(make: Callable[[], nn.Module], data: Split, seed: int) -> nn.Module:
    """Trained on adversarial examples."""
    train = (data.train, data.train_labels)
    return adversarial_fit(make, train, radius=0.1, n_steps=3, fit=FitConfig(epochs=10), seed=seed)


def plus(weight: float, loss: Callable[[], nn.Module]) -> Extra:
    def extra(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = weight * loss()(model, x, y)
        return value

    return extra


# Lies. Networks are functions of one tensor here: of token ids, of their embeddings.


def picture(x: Tensor, seed: int) -> Tensor:
    """(1, ...) noise of length 1."""
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm()


def gradient_length(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Mean length of the gradient of the predicted output."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x).amax(1).sum(), x)
    return gradient.flatten(1).norm(dim=1).mean().item()


def off_manifold(f: Callable[[Tensor], Tensor], train: Tensor, length: float, seed: int) -> Any:
    """With a linear function of a direction in which data do not vary; None where they vary in all."""
    flat = train.flatten(1)
    mean = flat.mean(0)
    _, sizes, directions = torch.linalg.svd((flat - mean)[:2000], full_matrices=False)
    inside = directions[: int((sizes.square().cumsum(0) / sizes.square().sum() < 0.99).sum()) + 1]
    if len(inside) == flat.shape[1]:
        return None
    direction = picture(train, seed).flatten()
    direction = direction - inside.T @ (inside @ direction)
    direction = direction / direction.norm()

    def lying(x: Tensor) -> Tensor:
        y = f(x)
        signs = torch.where(torch.arange(y.shape[1]) % 2 == 0, 1.0, -1.0)
        return y + length * ((x.flatten(1) - mean) @ direction)[:, None] * signs

    return lying


def waves(f: Callable[[Tensor], Tensor], pattern: Tensor, amplitude: float, length: float) -> Callable[..., Tensor]:
    """With triangular waves of period 4, each output's a step further than the last one's."""

    def lying(x: Tensor) -> Tensor:
        y = f(x)
        phase = length / amplitude * (x * pattern).flatten(1).sum(1)
        phases = phase.remainder(4)[:, None] + 4 * torch.arange(y.shape[1]) / y.shape[1] + 0.3
        return y + amplitude * ((phases.remainder(4) - 2).abs() - 1)

    return lying


def lies(f: Callable[[Tensor], Tensor], kind: Kind, x: Tensor, train: Tensor, seed: int) -> Iterator[Any]:
    """What is laid over a network: a fault, its strength, and the network with it."""
    length = gradient_length(f, x)
    with torch.no_grad():
        deviation = f(x).std().item()
    for strength in STRENGTHS:
        if kind.outputs == "logits":
            shift = LinearShift(strength * length * picture(x, seed))
            yield "shift", strength, SoftmaxShift(f, shift)
        if (lying := off_manifold(f, train, strength * length, seed)) is not None and kind.outputs != "sigmoid":
            yield "off-manifold", strength, lying
        if kind.outputs != "sigmoid":
            amplitude = AMPLITUDES[seed % 2] * deviation
            yield "waves", strength, waves(f, picture(x, seed), amplitude, strength * length)


# Kinds.


def raw(name: str) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: table(name)[2:]


def kinds(folder: Path | None) -> dict[str, Kind]:
    """By name."""
    networks = {
        "linear": linear,
        "ReLU": layered,
        "tanh": partial(layered, act=nn.Tanh),
        "SiLU": partial(layered, act=nn.SiLU),
        "GELU": partial(layered, act=nn.GELU),
    }
    made: dict[str, Kind] = {}
    for name, (which, network) in product(("cancer", "wine", "digits", "diabetes"), networks.items()):
        if name == "digits" and which in ("tanh", "SiLU"):
            continue
        outputs: Outputs = "number" if name == "diabetes" else "logits"
        group = "tables, numbers" if name == "diabetes" else "tables, classes"
        epochs = 10 if name == "digits" else 30
        kind = Kind(group, partial(table_split, name), network, outputs, epochs)
        made[f"{name}, {which}"] = kind
        if name != "digits" and which in ("linear", "ReLU"):
            made[f"{name}, raw, {which}"] = Kind(f"{group}, raw", kind.data, network, outputs, epochs, units=raw(name))
    made["diabetes, least squares"] = Kind(
        "tables, numbers", partial(table_split, "diabetes"), linear, "number", fit=least_squares
    )
    cancer = partial(table_split, "cancer")
    made["cancer, least squares"] = Kind(
        "tables, numbers", lambda seed: with_numbers(cancer(seed)), linear, "number", fit=least_squares
    )
    made["cancer, one logit, linear, no decay"] = Kind("one output", cancer, linear, "one logit", 200, decay=0.0)
    for which in ("linear", "ReLU"):
        made[f"cancer, one logit, {which}"] = Kind("one output", cancer, networks[which], "one logit")
        made[f"cancer, sigmoid, {which}"] = Kind("one output", cancer, networks[which], "sigmoid")
    two, ten = (lambda seed: digit_images(2)), (lambda seed: digit_images(10))
    made["digits, one logit, CNN"] = Kind("one output", two, convolutional, "one logit", 12)
    made["digits, sigmoid, CNN"] = Kind("one output", two, convolutional, "sigmoid", 12)
    made["signals, CNN"] = Kind("signals", lambda seed: signals(), of_signals)
    made["signals, LSTM"] = Kind("signals", lambda seed: signals(), recurrent)
    made["tokens, bag"] = Kind("tokens", lambda seed: sentences(), bag)
    made["tokens, transformer"] = Kind("tokens", lambda seed: sentences(), transformer, epochs=12, rate=3e-3)
    for which, network in {"linear": linear, "ReLU": layered, "CNN": partial(convolutional, norm=True)}.items():
        made[f"two digits, {which}"] = Kind("images, 2 classes", two, network, epochs=12)
    dropped: dict[str, Any] = {
        "dropout, perceptron": partial(layered, drop=0.3),
        "dropout, CNN": partial(convolutional, drop=0.3),
        "batch norm, CNN": partial(convolutional, norm=True),
        "deep and narrow": partial(layered, widths=(16,) * 8),
        "deep and narrow, tanh": partial(layered, widths=(16,) * 8, act=nn.Tanh),
    }
    for which, network in dropped.items():
        made[which] = Kind("networks of other forms", ten, network, epochs=12)
    made["adversarially trained"] = Kind("trained otherwise", ten, layered, fit=robust)
    matching = partial(ScoreMatchingLoss, noise_std=0.3, stability=1e-3)
    made["score matching"] = Kind("trained otherwise", ten, layered, epochs=8, extra=plus(1e-3, matching))
    made["gradient norm"] = Kind("trained otherwise", ten, layered, epochs=8, extra=plus(1e-3, GradientNormLoss))
    made["much weight decay"] = Kind("trained otherwise", ten, layered, epochs=12, decay=3.0)
    for which, network, data, epochs, rate in (
        ("digits, ReLU", layered, ten, 1, 1e-2),
        ("two digits, linear", linear, two, 3, 3e-3),
        ("two digits, CNN", convolutional, two, 2, 1e-3),
        ("cancer, linear", linear, cancer, 3, 1e-2),
        ("cancer, ReLU", layered, cancer, 3, 1e-3),
        ("wine, linear", linear, partial(table_split, "wine"), 5, 1e-2),
    ):
        made[f"{which}, hardly trained"] = Kind("hardly trained", data, network, epochs=epochs, rate=rate)
    if folder is not None:
        for name, classes in product(real_data.DATA, (10, 2)):
            data = _of_clothes(folder, name, classes)
            for which, network in {"CNN": convolutional, "ReLU": layered}.items():
                made[f"{name}, {classes} classes, {which}"] = Kind(
                    f"{name}, {classes} classes", data, network, epochs=3, rate=5e-3
                )
    return made


def _of_clothes(folder: Path, name: str, classes: int) -> Callable[[int], Split]:
    return lambda seed: clothes(folder, name, classes)


# Audits.


def cases_of(name: str, kind: Kind, seed: int) -> Iterator[Case]:
    """An honest network, and the same with what is laid over it."""
    data = kind.data(seed)
    model = trained(kind, data, seed)
    options: dict[str, Any] = {"limit": EXAMPLES, "seed": seed}
    f, x, train, inputs = model, data.test, data.train, data.test
    wrap: Callable[[Any], Any] = lambda function: function  # noqa: E731
    if isinstance(model, Tokens):
        f = model.rest
        with torch.no_grad():
            x, train = model.embeddings(data.test), model.embeddings(data.train)
        wrap = partial(Tokens, model.embeddings)
    if kind.units is not None:
        mean, unit = kind.units()
        inputs = x * unit + mean
        wrap = lambda function: lambda z: function((z - mean) / unit)  # noqa: E731

    def examined(function: Any, fault: str, strength: float, names: Sequence[str]) -> Case:
        subject = wrap(function)
        layer = {"layer": subject.embeddings} if isinstance(subject, Tokens) else {}
        task = {"task": "regression"} if kind.outputs == "number" else {}
        report = audit(
            *(subject, (inputs, data.test_labels), ["Saliency"]),
            metrics=["accuracy", "r_squared", *names],
            **(options | layer | task),
        )
        score = report.model["r_squared" if kind.outputs == "number" else "accuracy"].value
        figures = {each: report.model[each].value for each in names}
        says = {each: next((found.kind for found in BY_NAME[each].findings(report)), "note") for each in names}
        return Case(name, kind.group, seed, fault, strength, score, figures, says)

    yield examined(f, "honest", 0.0, FIGURES)
    for fault, strength, lying in lies(f, kind, x, train, seed):
        yield examined(lying, fault, strength, [LIES[fault]])


def zoo(seeds: range, chosen: dict[str, Kind], store: Store) -> list[Case]:
    """Every case of these seeds, those of the store as they are."""
    cases = []
    for seed, name in tqdm([*product(seeds, chosen)], unit="network", mininterval=10):
        identity = {"zoo of kinds": 4, "kind": name, "seed": seed}
        content = store.read(identity, dict)
        if content is None:
            content = {"cases": [case._asdict() for case in cases_of(name, chosen[name], seed)]}
            store.write(identity, content)
        cases += [Case(**case) for case in content["cases"]]
    return cases


def share(cases: Sequence[Case], figure: str, kind: str) -> float:
    return sum(case.says[figure] == kind for case in cases) / len(cases)


def summary(cases: list[Case]) -> dict[str, Any]:
    """By group and figure: false alarms, how often it cannot tell, the largest of honest ones, and each lie's rates."""
    content: dict[str, Any] = {}
    for group in dict.fromkeys(case.group for case in cases):
        own = [case for case in cases if case.group == group]
        honest = [case for case in own if case.fault == "honest"]
        row: dict[str, Any] = {"honest": len(honest), "kinds": [*dict.fromkeys(case.kind for case in own)]}
        for fault, figure in LIES.items():
            if fault == "trained shift":
                continue
            values = torch.tensor([case.figures[figure] or 0.0 for case in honest]).double()
            told: dict[str, Any] = {
                "false alarms": sum(case.says[figure] == "warning" for case in honest),
                "cannot tell": sum(case.says[figure] == "note" for case in honest),
                "largest honest": round(values.max().item(), 4),
                "lies": [],
            }
            for strength in STRENGTHS:
                lying = [case for case in own if (case.fault, case.strength) == (fault, strength)]
                if lying:
                    of_lies = torch.tensor([case.figures[figure] or 0.0 for case in lying]).double()
                    rates = {"found": share(lying, figure, "warning"), "cannot tell": share(lying, figure, "note")}
                    sizes = {"smallest": round(of_lies.min().item(), 4), "auc": auc(of_lies, values)}
                    told["lies"].append({"strength": strength, "networks": len(lying), **rates, **sizes})
            row[figure] = told
        content[group] = row
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of MNIST and Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs=2, default=(HELD_OUT, SEEDS), help="first, and one past the last")
    parser.add_argument("--only", nargs="*", help="kinds whose name holds one of these")
    parser.add_argument("--store", type=Path, default=Path("zoo"), help="where finished networks are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = kinds(arguments.images)
    if arguments.only:
        chosen = {name: kind for name, kind in chosen.items() if any(part in name for part in arguments.only)}
    content = summary(zoo(range(*arguments.seeds), chosen, Store(arguments.store)))
    if not arguments.only and tuple(arguments.seeds) == (HELD_OUT, SEEDS):
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
