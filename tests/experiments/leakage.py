"""Do gradients highlight what decides? The paper's experiments on data where that is known.

`python -m tests.experiments.leakage` prints, for standard and adversarially trained networks: the share of the gradient
in the signal block (synthetic blocks, block digits), Theorem 1's gradient as width grows, and DiffROAR on both data
sets; and draws the paper's picture of BlockMNIST, on MNIST where `--mnist` says where it is and on the embedded digits
elsewhere. H. Shah, P. Jain and P. Netrapalli, NeurIPS 2021, arXiv:2102.12781, sections 4 and 5.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, NamedTuple

import torch
from captum.attr import Saliency
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_density.datasets import BlockSplits, block_digits, block_mnist, feature_leakage
from captum_density.metrics import RetrainingResult, diff_roar, signal_block_share
from captum_density.plots import saliency_grid
from captum_density.retraining import FitConfig, adversarial_fit

D = 10  # blocks of one number each
LINF = 0.35  # between the half where 0 is as good as the signal, and nothing
SYNTHETIC = FitConfig(epochs=300, batch_size=100, optimizer="sgd", lr=0.1, schedule="constant")
DIGITS_LINF = 0.1
# SGD: with AdamW the robust network of digits beside their mean finds the signal block no better than
# the standard one, at lower accuracy.
DIGITS = FitConfig(epochs=60, optimizer="sgd", lr=0.05)


class MeanField(nn.Module):
    """One hidden layer whose output is a mean over its units: the limit that Theorem 1 is about as width grows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(D, width, bias=False), nn.Linear(width, 2, bias=False)
        nn.init.normal_(self.hidden.weight, std=D**-0.5)
        nn.init.normal_(self.out.weight)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu()) / self.width


class Leak(NamedTuple):
    """Where a network's gradients lie: the share in the signal block, of examples on whose top it is, in the half of
    the blocks where a signal may be."""

    share: float
    on_top: float
    relevant: float


def perceptron(width: int = 1000) -> nn.Module:
    return nn.Sequential(nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 2))


def block_perceptron(pixels: int = 128) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 10))


def distinct(signal_blocks: int) -> tuple[Tensor, Tensor]:
    """Every example that equation (2) gives without noise: +1 or -1 in one block."""
    signs = torch.eye(D)[:signal_blocks]
    return torch.cat([signs, -signs]), torch.arange(2).flip(0).repeat_interleave(signal_blocks)


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """|gradient| of the predicted class's logit."""
    with torch.no_grad():
        predicted = model(x).argmax(1)
    return Saliency(model).attribute(x.clone().requires_grad_(), target=predicted)


def leak(model: nn.Module, signal_blocks: int = D // 2) -> Leak:
    """Where the gradients of a network of the synthetic data lie."""
    x, _ = distinct(signal_blocks)
    g = gradient(model, x)
    share = signal_block_share(g, x != 0).mean().item()
    on_top = (g.argmax(1) == x.abs().argmax(1)).double().mean().item()
    return Leak(share, on_top, (g[:, :signal_blocks].sum(1) / g.sum(1)).mean().item())


def synthetic_model(
    radius: float, seed: int, *, norm: Literal["linf", "l2"] = "linf", signal_blocks: int = D // 2
) -> nn.Module:
    """A wide network of the synthetic data, standard where the radius is 0."""
    return adversarial_fit(perceptron, distinct(signal_blocks), norm=norm, radius=radius, fit=SYNTHETIC, seed=seed)


def synthetic_diff_roar(
    seed: int, runs: int = 3, fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 0.8)
) -> RetrainingResult:
    """DiffROAR where the signal may be in any block."""
    train, test = (feature_leakage(n, D, signal_blocks=D, seed=2 * seed + i) for i, n in enumerate((1000, 500)))
    models = {"standard": 0.0, "robust": LINF}
    attributions = {name: Saliency(synthetic_model(radius, seed, signal_blocks=D)) for name, radius in models.items()}
    return diff_roar(
        lambda: perceptron(64),
        (train.inputs, train.labels),
        (test.inputs, test.labels),
        attributions,
        fractions=fractions,
        runs=runs,
        controls=("random",),
        seed=seed,
        fit=FitConfig(lr=0.01),
    )


def theorem_1(width: int, seed: int) -> tuple[float, float]:
    """Of a mean-field network's gradient, the variation between task-relevant blocks (standard deviation over mean) and
    the share on noise blocks: both 0 in the limit."""
    x, y = distinct(D // 2)
    # The step of a mean's parameters shrinks with width; plain gradient descent until every example is learned.
    fit = FitConfig(epochs=300, batch_size=100, optimizer="sgd", momentum=0.0, lr=1.0 * width, schedule="constant")
    model = adversarial_fit(lambda: MeanField(width), (x, y), radius=0.0, fit=fit, seed=seed)
    g = gradient(model, x).double()
    relevant = g[:, : D // 2]
    spread = (relevant.std(1) / relevant.mean(1)).mean().item()
    return spread, 1 - (relevant.sum(1) / g.sum(1)).mean().item()


def block_model(data: BlockSplits, radius: float, seed: int, fit: FitConfig = DIGITS) -> nn.Module:
    """A perceptron of block images, standard where the radius is 0."""
    pixels = data.train.images[0].numel()
    train = (data.train.images, data.train.labels)
    return adversarial_fit(lambda: block_perceptron(pixels), train, radius=radius, fit=fit, seed=seed)


def block_share(data: BlockSplits, model: nn.Module) -> tuple[float, float]:
    """The share of the gradient in the signal block, and the accuracy, on the test images."""
    images, labels = data.test.images, data.test.labels
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    return signal_block_share(gradient(model, images), data.test.signal_masks).mean().item(), accuracy


def block_diff_roar(seed: int, runs: int = 5) -> RetrainingResult:
    """DiffROAR of 4x4 patches of block digits beside the mean digit."""
    data = block_digits(null="mean", seed=seed)
    models = {"standard": 0.0, "robust": DIGITS_LINF}
    return diff_roar(
        block_perceptron,
        (data.train.images, data.train.labels),
        (data.test.images, data.test.labels),
        {name: Saliency(block_model(data, radius, seed)) for name, radius in models.items()},
        fractions=(0.125, 0.25, 0.5),
        runs=runs,
        groups=4,
        seed=seed,
    )


def picture(
    root: Path | None, position: Literal["random", "top"], seed: int = 0, fit: FitConfig | None = None
) -> Figure:
    """The paper's figure of BlockMNIST: gradients of a standard and a robust network."""
    data = block_digits(position=position) if root is None else block_mnist(root, position=position)
    radii = {"standard": 0.0, "robust": DIGITS_LINF if root is None else 0.3}
    fit = fit or (DIGITS if root is None else FitConfig(epochs=10, batch_size=128, optimizer="sgd", lr=0.1))
    models = {name: block_model(data, radius, seed, fit) for name, radius in radii.items()}
    few = data.test.images[:6]
    shares = ", ".join(f"{name} {block_share(data, model)[0]:.2f}" for name, model in models.items())
    return saliency_grid(
        few,
        {name: gradient(model, few) for name, model in models.items()},
        caption=f"share of the gradient in the signal block:\n{shares}",
    )


def spread(values: Sequence[float]) -> str:
    """Mean and, in brackets, standard deviation."""
    return f"{mean(values):.3f}" + (f" ({stdev(values):.3f})" if len(values) > 1 else "")


def tables(seeds: Sequence[int]) -> None:
    """Print everything."""
    print(f"synthetic blocks, d = {D}, {len(seeds)} seeds: share on the signal, on top, in the relevant half")
    for norm, radius in (("linf", 0.0), ("linf", LINF), ("l2", 0.3), ("l2", 0.6)):
        found = [leak(synthetic_model(radius, seed, norm=norm)) for seed in seeds]
        print(f"  {norm} {radius:g}: {', '.join(spread(column) for column in zip(*found, strict=True))}")
    print("Theorem 1: variation between relevant blocks, share on noise blocks")
    for width in (30, 300, 3000, 30000):
        found = [theorem_1(width, seed) for seed in seeds[:3]]
        print(f"  width {width}: {', '.join(spread(column) for column in zip(*found, strict=True))}")
    print("block digits: share of the gradient in the signal block, accuracy")
    for null, position in (("square", "random"), ("mean", "random"), ("square", "top")):
        for radius in (0.0, DIGITS_LINF):
            data = [block_digits(null=null, position=position, seed=seed) for seed in seeds]
            found = [block_share(d, block_model(d, radius, seed)) for d, seed in zip(data, seeds, strict=True)]
            columns = ", ".join(spread(column) for column in zip(*found, strict=True))
            print(f"  {null}, signal {position}, linf {radius:g}: {columns}")
    for title, study in (("synthetic blocks", synthetic_diff_roar), ("block digits", block_diff_roar)):
        results = [study(seed) for seed in seeds]
        scores = torch.stack([result.score for result in results])
        print(f"DiffROAR, {title}, fractions {results[0].fractions}")
        for i, name in enumerate(results[0].attributions):
            print(f"  {name}: {', '.join(spread(scores[:, i, k].tolist()) for k in range(scores.shape[2]))}")
        for control in results[0].controls:
            of_control = torch.stack([result.control_score(control) for result in results])
            for i in range(of_control.shape[1]):
                name = control if of_control.shape[1] == 1 else f"{results[0].attributions[i]}, {control}"
                print(f"  {name}: {', '.join(spread(of_control[:, i, k].tolist()) for k in range(scores.shape[2]))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)), help="of weights, order and attacks")
    parser.add_argument("--mnist", type=Path, help="torchvision's folder of MNIST, for the picture")
    parser.add_argument("--pictures", type=Path, help="a folder to draw into")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tables(given.seeds)
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
        for position in ("random", "top"):
            picture(given.mnist, position).savefig(given.pictures / f"signal_{position}.png", dpi=120)
