"""A training step with each loss of the density against one with the cross-entropy alone, and the paper's form.

The paper's form is the published one: the step's own logits, a Python loop over noise samples, the one-sided
difference, and the gradient by double backpropagation, with batch norm in training mode throughout. Ours that are given
the step's logits have batch norm in evaluation mode, as they ask for, and all others in training mode.

A second table has what counts: time over a plain step; the variance of the loss's gradient by the parameters (trace of
the covariance, over batches, noise and shares), over that of the same loss with one sample and nothing shared; and the
product of both.

Run from the root of the repository: python -m tests.benchmarks.bench_losses --help
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import cross_entropy

from captum_density._command.network import train
from captum_density.datasets import Digits, digits
from captum_density.losses import (
    AntiScoreMatchingLoss,
    ContrastiveDivergenceLoss,
    DenoisingScoreMatchingLoss,
    FiniteDifferenceScoreMatchingLoss,
    GradientNormLoss,
    NoiseContrastiveLoss,
    ScoreMatchingLoss,
    SlicedScoreMatchingLoss,
)
from tests.benchmarks.harness import Call, Comparison, compare, settings, table, write
from tests.experiments.variance import gradient_variance

Loss = Callable[..., Tensor]  # of a model, inputs, labels and, where they are given, logits
Batch = tuple[Tensor, Tensor]

STD = 0.1
STABILITY = 1e-4
WEIGHT = 1e-3
PLAIN, FROZEN, PAPER = "cross-entropy", "cross-entropy, batch norm in evaluation mode", "paper's form"
MODELS = ("digits", "resnet18")


def paper_form(n_samples: int, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor | None = None) -> Tensor:
    """Score matching with the one-sided estimate of the trace."""
    if logits is None:
        x = x.detach().requires_grad_()
        logits = model(x)
    values = logits.gather(1, y[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True)
    trace = torch.zeros_like(values)
    for _ in range(n_samples):
        trace = trace + (model(x.detach() + STD * torch.randn_like(x)).gather(1, y[:, None])[:, 0] - values)
    trace = 2 * trace / (n_samples * STD**2)
    return (trace + 0.5 * gradient.flatten(1).square().sum(1) + STABILITY * trace**2).mean()


def noise_contrastive(n_samples: int, x: Tensor) -> nn.Module:
    noise = Independent(Normal(torch.full_like(x[0], 0.5), torch.ones_like(x[0])), x.ndim - 1)
    return NoiseContrastiveLoss(noise, n_samples).to(x.device)


def contrastive_divergence(n_samples: int, x: Tensor) -> nn.Module:
    return ContrastiveDivergenceLoss(1e-4, n_samples, temperature=5e-5, bounds=(0.0, 1.0))


class Row(NamedTuple):
    """A line of the tables.

    Args:
        make: The loss, from the number of samples and a batch.
        of: The row of the same loss with nothing shared, whose variance is the unit; None for this one.
        given: Whether the step's logits are given.
        training: Whether batch norm is in training mode.
    """

    make: Callable[[int, Tensor], Loss]
    of: str | None = None
    given: bool = False
    training: bool = True


def with_options(name: str, make: Callable[..., Loss], shares: Sequence[float] = (0.5,)) -> dict[str, Row]:
    """A loss as it is, given the step's logits, with shares of the batch, and with both for half of it."""
    rows = {name: Row(make)}
    rows[f"{name}, logits given"] = Row(make, name, given=True, training=False)
    for share in shares:
        rows[f"{name}, share={share}"] = Row(partial(make, share=share), name)
    rows[f"{name}, share=0.5, logits given"] = Row(partial(make, share=0.5), name, given=True, training=False)
    return rows


ANTITHETIC = "ScoreMatchingLoss, antithetic"
ROWS: dict[str, Row] = {
    PAPER: Row(lambda n, x: partial(paper_form, n), ANTITHETIC, given=True),
    **with_options(
        ANTITHETIC, lambda n, x, **o: ScoreMatchingLoss("antithetic", n, STD, STABILITY, **o), (0.5, 0.375, 0.25)
    ),
    "ScoreMatchingLoss, taylor": Row(lambda n, x: ScoreMatchingLoss("taylor", n, STD, STABILITY), ANTITHETIC),
    "ScoreMatchingLoss, hutchinson": Row(lambda n, x: ScoreMatchingLoss("hutchinson", n, stability=STABILITY)),
    **with_options("AntiScoreMatchingLoss", lambda n, x, **o: AntiScoreMatchingLoss(1e4, "antithetic", n, STD, **o)),
    **with_options("GradientNormLoss, no samples", lambda n, x, **o: GradientNormLoss(**o)),
    "SlicedScoreMatchingLoss": Row(lambda n, x: SlicedScoreMatchingLoss(n)),
    "DenoisingScoreMatchingLoss": Row(lambda n, x: DenoisingScoreMatchingLoss(STD, n)),
    "DenoisingScoreMatchingLoss, share=0.5": Row(
        lambda n, x: DenoisingScoreMatchingLoss(STD, n, share=0.5), "DenoisingScoreMatchingLoss"
    ),
    **with_options(
        "FiniteDifferenceScoreMatchingLoss",
        lambda n, x, **o: FiniteDifferenceScoreMatchingLoss(n, STD, STABILITY, **o),
    ),
    "NoiseContrastiveLoss, as ratio": Row(noise_contrastive),
    "ContrastiveDivergenceLoss, as steps": Row(contrastive_divergence),
}


@dataclass(frozen=True)
class Efficiency:
    """What a step with a loss costs, and how noisy the loss's gradient is.

    Args:
        title: The model and the number of samples.
        name: The loss and its options.
        steps: Time over a plain step's.
        variance: Over that of the same loss with one sample and nothing shared.
    """

    title: str
    name: str
    steps: float | None
    variance: float

    def row(self) -> str:
        if self.steps is None:
            return f"| {self.title} | {self.name} | - | {self.variance:.3g} | - |"
        product = self.steps * self.variance
        return f"| {self.title} | {self.name} | {self.steps:.2f} | {self.variance:.3g} | {product:.3g} |"


HEADING = "| what | a step with | time | variance | time x variance |\n|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_losses",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 4, 16], help="noise samples for each example")
    parser.add_argument("--batch-size", type=int, default=32, help="examples in a step")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds")
    parser.add_argument("--repeats", type=int, default=100, help="gradients whose variance is taken")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cpu-time", action="store_true", help="where others share the machine")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help="the small network, few runs, no memory")
    parser.add_argument("--json", type=Path, default=Path("benchmark-results/losses.json"), help="file to write")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.samples, arguments.runs, arguments.repeats = ["digits"], [1, 4], 2, 50

    comparisons: list[Comparison] = []
    lines: list[Efficiency] = []
    folder = tempfile.TemporaryDirectory()
    for model in arguments.models:
        file = Path(folder.name) / model
        with settings(arguments.threads):
            _save(model, file)
        setting = (model, arguments.batch_size, arguments.device, file)
        units: dict[str, float] = {}
        for n_samples in arguments.samples:
            comparison = compare(
                f"{model}, {n_samples}",
                {name: partial(step, name, n_samples, *setting) for name in (PLAIN, FROZEN, *ROWS)},
                reference=PLAIN,
                device=arguments.device,
                runs=arguments.runs,
                threads=arguments.threads,
                clock=time.process_time if arguments.cpu_time else None,
                memory=not (arguments.quick or arguments.no_memory),
            )
            comparisons.append(comparison)
            with settings(arguments.threads):
                lines += efficiencies(comparison, n_samples, arguments.repeats, units, setting)
    folder.cleanup()
    write(
        arguments.json,
        comparisons,
        device=arguments.device,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        runs=arguments.runs,
        repeats=arguments.repeats,
        efficiency=[asdict(line) for line in lines],
    )
    rows = "\n".join(line.row() for line in lines)
    print(f"{table(comparisons)}\n\n{HEADING}\n{rows}\n\nwritten to {arguments.json}")


def step(name: str, n_samples: int, *setting: Any) -> Call:
    """Forward, loss, backward, update."""
    # Of what it says about ReLU networks only the time matters here.
    warnings.filterwarnings("ignore", "every second derivative is exactly zero", UserWarning)
    model, x, y = _setup(*setting)
    row = ROWS.get(name)
    model.train(name != FROZEN if row is None else row.training)
    loss = None if row is None else row.make(n_samples, x)
    given = row is not None and row.given
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def call() -> Tensor:
        optimizer.zero_grad()
        inputs = x.detach().requires_grad_() if given else x
        logits = model(inputs)
        total = cross_entropy(logits, y)
        if loss is not None:
            total = total + WEIGHT * loss(model, inputs, y, **({"logits": logits} if given else {}))
        total.backward()
        optimizer.step()
        return total.detach()

    return call


def efficiencies(
    comparison: Comparison, n_samples: int, repeats: int, units: dict[str, float], setting: Any
) -> Iterator[Efficiency]:
    """Time and variance of each row; the first number of samples sets the units of variance."""
    warnings.filterwarnings("ignore", "every second derivative is exactly zero", UserWarning)
    model, x, _ = _setup(*setting)
    model.eval()
    variances: dict[str, float] = {}
    for name, row in ROWS.items():
        apart = name.removesuffix(", logits given")  # given logits change the time alone
        if apart not in variances:
            batches = (_batch(setting[0], len(x), i, x.device) for i in range(repeats))
            variances[apart] = gradient_variance(model, row.make(n_samples, x), batches)
        units.setdefault(name, variances[apart])
    for name, row in ROWS.items():
        variance = variances[name.removesuffix(", logits given")] / units[row.of or name]
        yield Efficiency(comparison.title, name, comparison.ratio(name, "seconds"), variance)


def _setup(name: str, batch_size: int, device: str, file: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and a batch."""
    x, y = _batch(name, batch_size, 0, torch.device(device))
    model: nn.Module = torch.load(file, weights_only=False)
    return model.to(device), x, y


def _batch(name: str, size: int, number: int, device: torch.device) -> Batch:
    """Of the digits, or of random images of CIFAR's size."""
    generator = torch.Generator().manual_seed(number)
    if name == "digits":
        data = digits()
        rows = torch.randperm(len(data.train_images), generator=generator)[:size]
        x, y = data.train_images[rows], data.train_labels[rows]
    else:
        x, y = torch.rand(size, 3, 32, 32, generator=generator), torch.randint(10, (size,), generator=generator)
    return x.to(device), y.to(device)


def _save(name: str, file: Path) -> None:
    """Of the digits a trained network; of a ResNet a random one. Its process alone would hide a step's memory."""
    if name == "digits":
        model = train(Digits(*digits()), seed=0, epochs=4)
    else:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
        with torch.no_grad():
            for _ in range(20):
                model(torch.rand(32, 3, 32, 32))  # running statistics that fit
    torch.save(model, file)


if __name__ == "__main__":
    main()
