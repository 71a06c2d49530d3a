"""A training step with each loss of the density against one with the cross-entropy alone, and the paper's form.

The paper's form is the published one: a Python loop over noise samples, the one-sided difference, and the gradient by
double backpropagation. A second table has what counts, the variance of the trace, averaged over the batch, times the
seconds of a step.

Run from the root of the repository: python -m tests.benchmarks.bench_losses --help
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import cross_entropy

from captum_density._command.network import train
from captum_density.datasets import Digits, digits
from captum_density.density import hessian_trace
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

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

STD = 0.1
STABILITY = 1e-4
WEIGHT = 1e-3
PLAIN, PAPER, OURS = "cross-entropy", "paper's form", "ScoreMatchingLoss, antithetic"
MODELS = ("digits", "resnet18")


def paper_form(n_samples: int, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Score matching with the one-sided estimate of the trace."""
    x = x.detach().requires_grad_()
    logits = _logits(model, x, y)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    trace = paper_trace(n_samples, model, x, y, logits)
    return (trace + 0.5 * gradient.flatten(1).square().sum(1) + STABILITY * trace**2).mean()


def paper_trace(n_samples: int, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    trace = torch.zeros_like(logits)
    for _ in range(n_samples):
        trace = trace + (_logits(model, x + STD * torch.randn_like(x), y) - logits)
    return 2 * trace / (n_samples * STD**2)


def _logits(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output: Tensor = model(x)
    return output.gather(1, y[:, None])[:, 0]


def noise_contrastive(n_samples: int, x: Tensor) -> nn.Module:
    noise = Independent(Normal(torch.full_like(x[0], 0.5), torch.ones_like(x[0])), x.ndim - 1)
    return NoiseContrastiveLoss(noise, n_samples).to(x.device)


# By name, from the number of samples and a batch.
LOSSES: dict[str, Callable[[int, Tensor], Loss]] = {
    PAPER: lambda n, x: partial(paper_form, n),
    OURS: lambda n, x: ScoreMatchingLoss("antithetic", n, STD, STABILITY),
    "ScoreMatchingLoss, taylor": lambda n, x: ScoreMatchingLoss("taylor", n, STD, STABILITY),
    "ScoreMatchingLoss, hutchinson": lambda n, x: ScoreMatchingLoss("hutchinson", n, stability=STABILITY),
    "AntiScoreMatchingLoss": lambda n, x: AntiScoreMatchingLoss(1e4, "antithetic", n, STD),
    "GradientNormLoss, no samples": lambda n, x: GradientNormLoss(),
    "SlicedScoreMatchingLoss": lambda n, x: SlicedScoreMatchingLoss(n),
    "DenoisingScoreMatchingLoss": lambda n, x: DenoisingScoreMatchingLoss(STD, n),
    "FiniteDifferenceScoreMatchingLoss": lambda n, x: FiniteDifferenceScoreMatchingLoss(n, STD, STABILITY),
    "NoiseContrastiveLoss, as ratio": noise_contrastive,
    "ContrastiveDivergenceLoss, as steps": lambda n, x: ContrastiveDivergenceLoss(
        1e-4, n, temperature=5e-5, bounds=(0.0, 1.0)
    ),
}


@dataclass(frozen=True)
class Efficiency:
    """The paper's form over ours: above 1, ours is better.

    Args:
        title: The model and the number of samples.
        variance: Ratio of the variances of the trace, averaged over a batch.
        seconds: Ratio of a step's time.
    """

    title: str
    variance: float
    seconds: float | None

    def row(self) -> str:
        if self.seconds is None:
            return f"| {self.title} | {self.variance:.3g} | - | - |"
        return f"| {self.title} | {self.variance:.3g} | {self.seconds:.2f} | {self.variance * self.seconds:.3g} |"


HEADING = "| paper's form over antithetic | variance | time of a step | variance times time |\n|---|---|---|---|"


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
    parser.add_argument("--repeats", type=int, default=200, help="estimates whose variance is taken")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the small network, few runs, no memory")
    parser.add_argument("--json", type=Path, default=Path("benchmark-results/losses.json"), help="file to write")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.samples, arguments.runs, arguments.repeats = ["digits"], [1, 4], 2, 50

    comparisons, lines = [], []
    folder = tempfile.TemporaryDirectory()
    for model in arguments.models:
        file = Path(folder.name) / model
        with settings(arguments.threads):
            _save(model, file)
        setting = (model, arguments.batch_size, arguments.device, file)
        for n_samples in arguments.samples:
            comparison = compare(
                f"{model}, {n_samples}",
                {name: partial(step, name, n_samples, *setting) for name in (PLAIN, *LOSSES)},
                reference=PLAIN,
                device=arguments.device,
                runs=arguments.runs,
                threads=arguments.threads,
                memory=not arguments.quick,
            )
            comparisons.append(comparison)
            with settings(arguments.threads):
                lines.append(efficiency(comparison, n_samples, arguments.repeats, setting))
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
    model.train()
    loss = LOSSES[name](n_samples, x) if name != PLAIN else None
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def call() -> Tensor:
        optimizer.zero_grad()
        total = cross_entropy(model(x), y)
        if loss is not None:
            total = total + WEIGHT * loss(model, x, y)
        total.backward()
        optimizer.step()
        return total.detach()

    return call


def efficiency(comparison: Comparison, n_samples: int, repeats: int, setting: Any) -> Efficiency:
    model, x, y = _setup(*setting)
    model.eval()
    with torch.no_grad():
        logits = _logits(model, x, y)
        papers = [paper_trace(n_samples, model, x, y, logits).mean() for _ in range(repeats)]
    ours = [hessian_trace(model, x, y, "antithetic", n_samples, STD).mean() for _ in range(repeats)]
    variance = (torch.stack(papers).double().var() / torch.stack(ours).double().var()).item()
    times = [comparison.measurements[name].seconds for name in (PAPER, OURS)]
    seconds = times[0] / times[1] if times[0] is not None and times[1] is not None else None
    return Efficiency(comparison.title, variance, seconds)


def _setup(name: str, batch_size: int, device: str, file: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A model and a batch: of the digits, or of random images of CIFAR's size."""
    torch.manual_seed(0)
    if name == "digits":
        data = Digits(*digits())
        x, y = data.train_images[:batch_size], data.train_labels[:batch_size]
    else:
        x, y = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    model: nn.Module = torch.load(file, weights_only=False)
    return model.to(device), x.to(device), y.to(device)


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
