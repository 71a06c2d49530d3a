"""Mean, spread and bias of the estimators of the Hessian's trace, at equal cost, on networks trained on the digits.

`python -m tests.experiments.variance` prints Markdown tables: of a softplus network, of its ReLU twin, whose exact
trace is zero, and of what speaks for one standard deviation of the noise or another.

Cost is counted in evaluations of one example. A sample of the antithetic estimate takes 2, of the one-sided 1; f(x)
itself is had for nothing, as score matching has it from its gradient. A Hessian-vector product counts as many as take
the same time, which is measured.
"""

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captum_density.datasets import digits
from captum_density.density import hessian_trace

STDS = (0.3, 0.1, 0.03, 0.01)
# Of the last table, where rounding shows.
MORE_STDS = (0.5, *STDS, 0.003, 0.001)


@dataclass(frozen=True)
class Estimator:
    """A way to estimate the trace.

    Args:
        name: Of `hessian_trace`'s estimators.
        distribution: Of its noise.
    """

    name: str
    distribution: str = "gaussian"

    def samples(self, budget: float, product: float) -> int:
        """How many the budget buys, where a Hessian-vector product costs `product`."""
        return max(1, round(budget / {"antithetic": 2.0, "taylor": 1.0, "hutchinson": product}[self.name]))

    def draw(self, example: "Example", n_samples: int, std: float | None, repeats: int) -> Tensor:
        """Estimates (repeats, N), each of noise of its own."""
        model, x, y = example.model, example.x, example.y
        found = hessian_trace(
            model,
            x.repeat(repeats, 1, 1, 1),
            y.repeat(repeats),
            self.name,
            n_samples,
            0.1 if std is None else std,  # the default, of which derivatives have no use
            torch.Generator().manual_seed(1),
            distribution=self.distribution,
            max_examples_per_batch=repeats * len(x),  # one sample at once
        )
        return found.reshape(repeats, len(x))


ANTITHETIC = Estimator("antithetic")
BY_DIFFERENCES = (Estimator("taylor"), ANTITHETIC, Estimator("antithetic", "rademacher"))
BY_DERIVATIVES = (Estimator("hutchinson"), Estimator("hutchinson", "rademacher"))


@dataclass(frozen=True)
class Example:
    """A trained network in float64, test digits, the classes it gives them, and the exact traces."""

    model: nn.Module
    x: Tensor
    y: Tensor
    exact: Tensor


def trained(activation: nn.Module, examples: int, epochs: int = 15) -> Example:
    """A network without batch norm: that of no mode differs from another."""
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), activation, nn.Conv2d(16, 32, 3, stride=2), activation),
        *(nn.Flatten(), nn.Linear(288, 64), activation, nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_images)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.train_images[batch]), data.train_labels[batch]).backward()
            optimizer.step()
    model = model.double().eval()
    x = data.test_images[:examples].double()
    y = model(x).argmax(1)
    return Example(model, x, y, hessian_trace(model, x, y, "exact"))


def cost_of_a_product(example: Example, rounds: int = 9, copies: int = 16) -> float:
    """Seconds of a Hessian-vector product over those of an evaluation, both in batches, neither differentiated."""
    trace = partial(hessian_trace, example.model, example.x, example.y)
    calls = {"hutchinson": copies, "taylor": copies - 1}  # and f(x)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, n_samples in calls.items():
            start = time.perf_counter()
            trace(name, n_samples)
            seconds[name].append(time.perf_counter() - start)
    return median(seconds["hutchinson"]) / median(seconds["taylor"])


def estimates(example: Example, budget: float, product: float, repeats: int) -> Iterator[str]:
    """The lines of the table of estimators."""
    yield "| noise_std | estimator | noise | samples | mean | standard deviation | bias | variance over antithetic |"
    yield "|---|---|---|---|---|---|---|---|"
    settings: list[tuple[float | None, tuple[Estimator, ...]]] = [(std, BY_DIFFERENCES) for std in STDS]
    if bool(example.exact.any()):
        settings.append((None, BY_DERIVATIVES))
    variances: dict[tuple[float | None, Estimator], float] = {}
    for std, estimators in settings:
        found = {e: e.draw(example, e.samples(budget, product), std, repeats) for e in estimators}
        variances |= {(std, e): found[e].var(0).mean().item() for e in estimators}
        for e in estimators:
            variance = variances[std, e]
            # Of derivatives, over the antithetic one of the smallest noise, which estimates the same.
            ratio = variance / variances[STDS[-1] if std is None else std, ANTITHETIC]
            error = math.sqrt(variance / found[e].numel())
            cells = [
                "-" if std is None else f"{std}",
                e.name,
                e.distribution,
                f"{e.samples(budget, product)}",
                f"{found[e].mean():.2f}",
                f"{variance**0.5:.3g}",
                f"{(found[e] - example.exact).mean():.2f} +- {error:.2g}",
                f"{ratio:.3g}",
            ]
            yield f"| {' | '.join(cells)} |"


def choices(example: Example, repeats: int) -> Iterator[str]:
    """The lines of the table of standard deviations, from one antithetic sample for each example."""
    yield "| noise_std | mean | standard deviation | rounding of float32 |"
    yield "|---|---|---|---|"
    single = copy.deepcopy(example.model).float()
    x = example.x.repeat(repeats, 1, 1, 1).float()
    y = example.y.repeat(repeats)
    for std in MORE_STDS:
        v = std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        # The points are rounded alike, so that what is left is the rounding of the network's values.
        points = (x + v, x - v, x)
        plus, minus, middle = (p.double() for p in points)
        precise = second_difference(example.model, plus, minus, middle, y) / std**2
        rounding = second_difference(single, *points, y).double() / std**2 - precise
        found = precise.reshape(repeats, -1)
        spread = found.var(0).mean().sqrt()
        yield f"| {std} | {found.mean():.2f} | {spread:.3g} | {rounding.square().mean().sqrt():.2g} |"


@torch.no_grad()
def second_difference(model: nn.Module, plus: Tensor, minus: Tensor, middle: Tensor, y: Tensor) -> Tensor:
    """f(x + v) - f(x) + f(x - v) - f(x)."""
    values = [model(x).gather(1, y[:, None])[:, 0] for x in (plus, minus, middle)]
    return (values[0] - values[2]) + (values[1] - values[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=32, help="test digits (default: 32)")
    parser.add_argument("--budget", type=float, default=8, help="evaluations for each example (default: 8)")
    parser.add_argument("--repeats", type=int, default=200, help="estimates of each example (default: 200)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "every second derivative is exactly zero", UserWarning)  # as the table shows
    for name, activation in {"Softplus(beta=5)": nn.Softplus(beta=5), "ReLU": nn.ReLU()}.items():
        example = trained(activation, arguments.examples)
        product = cost_of_a_product(example)
        norm = squared_gradient(example).sqrt().mean()
        print(
            f"{name}: exact trace {example.exact.mean():.2f} (mean of {arguments.examples} digits; between digits "
            f"{example.exact.std():.2g}), gradient norm {norm:.2f}; {arguments.budget:g} evaluations for each digit, a "
            f"Hessian-vector product counted as {product:.2f}\n"
        )
        for table in (
            estimates(example, arguments.budget, product, arguments.repeats),
            choices(example, arguments.repeats),
        ):
            for row in table:
                print(row, flush=True)
            print()


def gradient_variance(
    model: nn.Module, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Trace of the covariance of a loss's gradient by the parameters, over batches and whatever the loss draws."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = (
        torch.autograd.grad(loss(model, x, y), parameters, allow_unused=True, materialize_grads=True)
        for x, y in batches
    )
    n, total, squares = 0, torch.zeros((), dtype=torch.float64), 0.0
    for gradient in gradients:
        flat = torch.cat([g.flatten() for g in gradient]).double()
        n, total, squares = n + 1, total + flat, squares + flat.square().sum().item()
    return (squares - total.square().sum().item() / n) / (n - 1)


def squared_gradient(example: Example) -> Tensor:
    """Of the logit, (N,)."""
    x = example.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(example.model(x).gather(1, example.y[:, None]).sum(), x)
    return gradient.flatten(1).square().sum(1)


if __name__ == "__main__":
    main()
