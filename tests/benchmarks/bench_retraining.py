"""A whole DiffROAR against the loop that published code is: time and, of ours, peak memory.

Plain is one DataLoader loop after another, each mask made by sorting all attributions again; on a CPU with one thread
or with all of them, whichever a trial finds faster. Two more say what could be had: the same loops on tensors, without
a DataLoader, and perceptrons whose weights of one run are stacked by hand, on masks made at once. Ours is `diff_roar`
in this process, and on a CPU in as many worker processes as there are cores: in workers that are there, and with
starting and ending them. Each trains as many models for as many epochs, on masks with the same number of elements, from
attributions that are ready; that they compute the same is checked: the benchmark fails where their mean predictive
powers differ by more than runs let expect. (The models of one run start from the same weights in ours, so that after
few epochs its means vary far more from seed to seed than those of the plain loop.)

The ratio hardly depends on how many models and epochs there are, apart from what is done once in a call (our choice of
engines), which counts against us the more the fewer they are. "MLP-64, 8x8" is whole: 10 fractions, 2 sides, 5 runs.

Run from the root of the repository: python -m tests.benchmarks.bench_retraining --help
"""

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from captum.attr import Saliency
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset

from captum_density.datasets import BlockImages, digits
from captum_density.metrics import RetrainingResult, diff_roar
from captum_density.retraining import FitConfig, adversarial_fit
from tests.benchmarks.harness import Call, Comparison, compare, peak_bytes, settings, table, write

Split = tuple[Tensor, Tensor]

CORES = os.cpu_count() or 1
PLAIN = "plain"
TENSORS = "plain, without a DataLoader"
BY_HAND = "stacked by hand"
OURS = "diff_roar"
POOL = f"diff_roar, {CORES} workers"
POOL_STARTED = f"diff_roar, {CORES} workers and their start"


def mlp(d: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(d, width), nn.ReLU(), nn.Linear(width, 10))


def cnn(height: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 10),
    )


@dataclass(frozen=True)
class Experiment:
    """A DiffROAR to compute.

    Args:
        blocks: Whether on digits of 28 x 28 above or below a null block, instead of digits of 8 x 8.
        make_model: The factory.
        fractions: Of pixels kept.
        runs: Models for each.
        epochs: Of each model's training.
        tolerance: How much two mean accuracies of a side may differ at least, whatever their spread over runs.
        perceptron: Whether the model is one, of `mlp`, which is stacked by hand.
    """

    blocks: bool
    make_model: Callable[[], nn.Module]
    fractions: tuple[float, ...]
    runs: int
    epochs: int
    tolerance: float
    perceptron: bool = False

    @property
    def models(self) -> int:
        """How many are trained: those of both sides, and of whole examples."""
        return (2 * len(self.fractions) + 1) * self.runs

    @property
    def fit(self) -> FitConfig:
        return FitConfig(epochs=self.epochs)


TEN = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
EXPERIMENTS = {
    "MLP-64, 8x8": Experiment(False, partial(mlp, 64, 64), TEN, runs=5, epochs=20, tolerance=0.02, perceptron=True),
    "CNN, 8x8": Experiment(False, partial(cnn, 8, 8), TEN, runs=2, epochs=4, tolerance=0.05),
    "MLP-256, 56x28": Experiment(
        True, partial(mlp, 56 * 28, 256), TEN, runs=2, epochs=10, tolerance=0.05, perceptron=True
    ),
    "CNN, 56x28": Experiment(True, partial(cnn, 56, 28), TEN, runs=2, epochs=3, tolerance=0.1),
}


@dataclass(frozen=True)
class Data:
    train: Split
    test: Split
    attributions: Split

    @property
    def bytes(self) -> int:
        return sum(inputs.nbytes for inputs, _ in (self.train, self.test))


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast as the plain loop diff_roar is.

    Args:
        title: The experiment.
        models: How many were trained.
        plain_threads: Of the plain loop.
        plain_seconds: It took.
        tensors: The plain loop without a DataLoader.
        by_hand: Stacked by hand, in this process; None for other models than perceptrons.
        inline: In this process.
        pool: In workers that are there; None on a GPU.
        pool_started: With starting and ending the workers.
        engines: What trained the models, and why.
        power: Mean predictive power found by plain and by ours, top side and bottom side.
    """

    title: str
    models: int
    plain_threads: int
    plain_seconds: float
    tensors: float
    by_hand: float | None
    inline: float
    pool: float | None
    pool_started: float | None
    engines: str
    power: dict[str, list[float]]

    def row(self) -> str:
        speeds = (self.tensors, self.by_hand, self.inline, self.pool, self.pool_started)
        times = " | ".join("-" if r is None else f"{r:.2f}" for r in speeds)
        powers = " | ".join(", ".join(f"{value:.3f}" for value in result) for result in self.power.values())
        plain = f"{self.plain_seconds:.1f} ({self.plain_threads})"
        return f"| {self.title} | {self.models} | {plain} | {times} | {powers} | {self.engines} |"


HEADING = (
    "Times as fast as the plain loop:\n\n"
    "| what | models | plain s (threads) | no DataLoader | stacked by hand | one process | workers | and their start | "
    "power, plain | ours | engine |\n"
    f"|{'---|' * 11}"
)


@dataclass(frozen=True)
class Memory:
    """What a call adds to the peak memory.

    Args:
        strategy: The engine.
        data: Bytes of the data set, inputs of training and test.
        stack: Bytes of parameters, gradients and the optimizer's two averages, of all models trained at once.
        peak: Bytes that the call added at most.
    """

    strategy: str
    data: int
    stack: int
    peak: int

    def row(self) -> str:
        figures = (f"{value / 1e6:.1f}" for value in (self.data, self.stack, self.peak))
        return f"| {self.strategy} | {' | '.join(figures)} | {(self.peak - self.stack) / self.data:.2f} |"


MEMORY_HEADING = (
    "Peak memory that a call adds (MLP-64 on synthetic 28x28 images, 8 models):\n\n"
    "| engine | data MB | models MB | peak MB | (peak - models) / data |\n|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_retraining",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--runs", type=int, default=3, help="timed rounds")
    parser.add_argument("--epochs", type=int, help="of each model's training; each case's own by default")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/retraining.json"), help="file to write")
    arguments = parser.parse_args()

    comparisons, lines = [], []
    for title in arguments.cases:
        experiment = EXPERIMENTS[title]
        if arguments.epochs is not None:
            experiment = replace(experiment, epochs=arguments.epochs)
        comparison, line = compared(title, experiment, arguments.runs, arguments.device)
        comparisons.append(comparison)
        lines.append(line)
        print(line.row(), flush=True)
    memory = [] if arguments.no_memory else [measured_memory(strategy, arguments.device) for strategy in ENGINES]
    write(
        arguments.out,
        comparisons,
        device=arguments.device,
        threads=CORES,
        runs=arguments.runs,
        speed_up=[asdict(line) for line in lines],
        memory=[asdict(line) for line in memory],
    )
    parts = [table(comparisons), "\n".join([HEADING, *(line.row() for line in lines)])]
    if memory:
        parts.append("\n".join([MEMORY_HEADING, *(line.row() for line in memory)]))
    print("\n\n".join(["", *parts, f"written to {arguments.out}"]))


def compared(title: str, experiment: Experiment, runs: int, device: str) -> tuple[Comparison, SpeedUp]:
    with settings(CORES):
        data = _data(experiment, device)
    powers: dict[str, Tensor] = {}
    engines: dict[str, str] = {}

    threads = _faster_threads(experiment, data) if device == "cpu" else 1

    def published(name: str, compute: Callable[[], Tensor]) -> Call:
        def call() -> None:
            powers[name] = compute()

        return call

    def ours(name: str, executor: Executor | None) -> Call:
        def call() -> None:
            result = _diff_roar(experiment, data, executor)
            powers[name] = result.predictive_power[0].mean(1)
            engines[name] = "; ".join(f"{n} {engine}: {reason}" for engine, (n, reason) in result.engines.items())

        return call

    def ours_started() -> None:
        with _pool() as executor:
            ours(POOL_STARTED, executor)()

    with ExitStack() as stack:
        plain_loop = partial(plain_diff_roar, experiment, data, threads)
        cases: dict[str, Callable[[], Call]] = {
            PLAIN: partial(published, PLAIN, plain_loop),
            TENSORS: partial(published, TENSORS, partial(plain_loop, Batches)),
            OURS: partial(ours, OURS, None),
        }
        if experiment.perceptron:
            cases[BY_HAND] = partial(published, BY_HAND, partial(stacked_diff_roar, experiment, data))
        if device == "cpu":
            executor = stack.enter_context(_pool())
            _warm(executor, experiment)
            cases[POOL] = partial(ours, POOL, executor)
            cases[POOL_STARTED] = lambda: ours_started
        comparison = compare(
            title, cases, reference=PLAIN, device=device, runs=runs, warm_up=0, threads=CORES, memory=False
        )
    seconds = {name: measured.seconds for name, measured in comparison.measurements.items()}
    failed = [f"{name}: {m.failure}" for name, m in comparison.measurements.items() if m.failure is not None]
    if failed:
        raise SystemExit(f"{title}: {'; '.join(failed)}")
    _check_agreement(title, powers, experiment.tolerance)
    plain = seconds[PLAIN] or math.nan
    speedups = {name: plain / time for name, time in seconds.items() if time is not None}
    return comparison, SpeedUp(
        title,
        experiment.models,
        threads,
        plain,
        speedups[TENSORS],
        speedups.get(BY_HAND),
        speedups[OURS],
        speedups.get(POOL),
        speedups.get(POOL_STARTED),
        engines[OURS],
        {name: powers[name].mean(1).tolist() for name in (PLAIN, OURS)},
    )


def loader(split: Split, size: int) -> Iterable[Any]:
    return DataLoader(TensorDataset(*split), batch_size=size, shuffle=True)


class Batches:
    """What a DataLoader gives, of tensors."""

    def __init__(self, split: Split, size: int) -> None:
        self._split, self._size = split, size

    def __iter__(self) -> Iterator[Split]:
        inputs, labels = self._split
        for rows in torch.randperm(len(labels), device=labels.device).split(self._size):
            yield inputs[rows], labels[rows]


def plain_diff_roar(
    experiment: Experiment, data: Data, threads: int, batches: Callable[[Split, int], Iterable[Any]] = loader
) -> Tensor:
    """(2, runs) mean predictive power of top side and bottom side, as published code finds it."""
    accuracies: list[float] = []
    with settings(threads):
        for side in ("top", "bottom"):
            for fraction in experiment.fractions:
                masked = [
                    (keep(inputs, attributions, fraction, side), labels)
                    for (inputs, labels), attributions in zip((data.train, data.test), data.attributions, strict=True)
                ]
                for _ in range(experiment.runs):
                    accuracies.append(train_and_test(experiment, masked[0], masked[1], batches))
        for _ in range(experiment.runs):
            train_and_test(experiment, data.train, data.test, batches)
    return torch.tensor(accuracies, dtype=torch.float64).view(2, -1, experiment.runs).mean(1)


def keep(inputs: Tensor, attributions: Tensor, fraction: float, side: str) -> Tensor:
    order = attributions.abs().flatten(1).argsort(dim=1, descending=side == "top")
    mask = torch.zeros_like(attributions).flatten(1)
    mask.scatter_(1, order[:, : max(1, round(fraction * order.shape[1]))], 1.0)
    return inputs * mask.view_as(inputs)


def train_and_test(
    experiment: Experiment, train: Split, test: Split, batches: Callable[[Split, int], Iterable[Any]] = loader
) -> float:
    config, device = experiment.fit, train[0].device
    model = experiment.make_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(train[0]) // config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(config.epochs):
        for x, y in batches(train, config.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in DataLoader(TensorDataset(*test), batch_size=256):
            correct += int((model(x).argmax(1) == y).sum())
    return correct / len(test[0])


def stacked_diff_roar(experiment: Experiment, data: Data) -> Tensor:
    """As `plain_diff_roar`, of perceptrons: those of a run in one stack, in what operations that takes at least."""
    with settings(1):
        parts = [(side, fraction) for side in ("top", "bottom") for fraction in experiment.fractions]
        train, test = (
            torch.stack([*(keep(inputs, given, fraction, side) for side, fraction in parts), inputs]).flatten(2)
            for (inputs, _), given in zip((data.train, data.test), data.attributions, strict=True)
        )
        accuracies = [_train_and_test_stack(experiment, train, test, data) for _ in range(experiment.runs)]
        return torch.stack(accuracies, dim=1)[:-1].view(2, -1, experiment.runs).mean(1)


def _train_and_test_stack(experiment: Experiment, train: Tensor, test: Tensor, data: Data) -> Tensor:
    """(M,) accuracies of a stack, from (M, N, d) inputs."""
    config, labels, n_models = experiment.fit, data.train[1], len(train)
    layers = [[m for m in experiment.make_model().modules() if isinstance(m, nn.Linear)] for _ in range(n_models)]
    parameters = [
        part.detach().clone().requires_grad_()
        for linear in zip(*layers, strict=True)
        for part in (torch.stack([m.weight.T for m in linear]), torch.stack([m.bias[None] for m in linear]))
    ]

    def forward(x: Tensor) -> Tensor:
        weight, bias, last_weight, last_bias = parameters
        return torch.baddbmm(last_bias, torch.baddbmm(bias, x, weight).relu(), last_weight)

    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = config.epochs * -(-len(labels) // config.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(labels)).split(config.batch_size):
            optimizer.zero_grad()
            y = labels[rows].expand(n_models, -1)
            loss = cross_entropy(forward(train.index_select(1, rows)).flatten(0, 1), y.flatten(), reduction="sum")
            (loss / len(rows)).backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        return (forward(test).argmax(2) == data.test[1]).double().mean(1)


def _faster_threads(experiment: Experiment, data: Data) -> int:
    """How many threads train one model faster: the slowest of five short trainings each, in turn.

    On a machine that others use, several threads wait for each other at times, far longer than they gain: in a whole
    DiffROAR they would, which would flatter ours.
    """
    short = replace(experiment, epochs=1)
    seconds = {1: 0.0, CORES: 0.0}
    for _ in range(5):
        for threads in seconds:
            start = time.perf_counter()
            with settings(threads):
                train_and_test(short, data.train, data.test)
            seconds[threads] = max(seconds[threads], time.perf_counter() - start)
    return min(seconds, key=lambda threads: seconds[threads])


def _diff_roar(
    experiment: Experiment,
    data: Data,
    executor: Executor | None = None,
    strategy: Literal["auto", "loop", "vmap"] = "auto",
) -> RetrainingResult:
    return diff_roar(
        experiment.make_model,
        data.train,
        data.test,
        {"Saliency": data.attributions},
        fractions=experiment.fractions,
        runs=experiment.runs,
        fit=experiment.fit,
        controls=(),
        strategy=strategy,
        executor=executor,
    )


def _check_agreement(title: str, powers: Mapping[str, Tensor], tolerance: float) -> None:
    """Refuse powers (2, runs) whose means differ from the plain loop's by the tolerance and by 5 standard errors."""
    reference = powers[PLAIN].cpu()
    for name, result in powers.items():
        means, errors = [], torch.zeros(2, dtype=torch.float64)
        for of_runs in (result.cpu(), reference):
            means.append(of_runs.mean(1))
            errors += of_runs.var(1) / of_runs.shape[1]
        if not ((means[0] - means[1]).abs() <= (5 * errors.sqrt()).clamp(min=tolerance)).all():
            raise SystemExit(
                f"{title}: {name!r} computes something else than {PLAIN!r}: mean predictive power (top, bottom) "
                f"{means[0].tolist()}, against {means[1].tolist()}"
            )


def _pool() -> ProcessPoolExecutor:
    # Denormals flushed in the workers as they are, by the harness, in this process.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(CORES, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    torch.set_flush_denormal(True)


def _warm(executor: Executor, experiment: Experiment) -> None:
    """Have each worker import what it needs."""
    few = _data(experiment, "cpu", examples=64)
    _diff_roar(replace(experiment, fractions=(0.1, 0.5), runs=CORES, epochs=1), few, executor)


def _data(experiment: Experiment, device: str, examples: int | None = None) -> Data:
    """The embedded digits, and the gradients of a model that was trained on them."""
    stored = digits()
    splits: list[Split] = []
    for images, labels in ((stored.train_images, stored.train_labels), (stored.test_images, stored.test_labels)):
        inputs = images
        if experiment.blocks:
            inputs = BlockImages(interpolate(images, (28, 28), mode="bilinear"), labels).images
        splits.append((inputs[:examples].to(device), labels[:examples].to(device)))
    train, test = splits
    model = adversarial_fit(experiment.make_model, train, radius=0, fit=FitConfig(epochs=2))
    return Data(train, test, (_saliency(model, train[0]), _saliency(model, test[0])))


def _saliency(model: nn.Module, inputs: Tensor) -> Tensor:
    result = []
    for part in inputs.split(256):
        x = part.clone().requires_grad_()
        with torch.no_grad():
            target = model(x).argmax(1)
        result.append(Saliency(model).attribute(x, target=target).detach())
    return torch.cat(result)


ENGINES: tuple[Literal["loop", "vmap"], ...] = ("loop", "vmap")
SMALL = Experiment(False, partial(mlp, 28 * 28, 64), (0.1, 0.5), runs=2, epochs=1, tolerance=1.0)


def measured_memory(strategy: Literal["loop", "vmap"], device: str) -> Memory:
    data = _synthetic(16_000, "cpu").bytes
    parameters = sum(p.numel() * 4 for p in SMALL.make_model().parameters())
    at_once = 1 if strategy == "loop" else 2 * len(SMALL.fractions) * SMALL.runs
    return Memory(
        strategy, data, 4 * parameters * at_once, peak_bytes(partial(remembering, strategy, device), device=device)
    )


def remembering(strategy: Literal["loop", "vmap"], device: str) -> Call:
    # What a first call imports is not what is asked for.
    _diff_roar(SMALL, _synthetic(128, device), strategy=strategy)
    data = _synthetic(16_000, device)
    return lambda: _diff_roar(SMALL, data, strategy=strategy)


def _synthetic(examples: int, device: str) -> Data:
    """Random images, an eighth of them to test on."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[Split, Tensor]:
        images = torch.rand(n, 1, 28, 28, generator=generator)
        return (images.to(device), (torch.arange(n) % 10).to(device)), images.flip(0).to(device)

    (train, of_train), (test, of_test) = split(examples), split(examples // 8)
    return Data(train, test, (of_train, of_test))


if __name__ == "__main__":
    main()
