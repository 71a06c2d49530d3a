"""Does matching Jacobians help a student, and most where data are scarce? On the digits.

`python -m tests.experiments.transfer` trains a convolutional teacher on all training digits, and a narrower student of
it on 50, 100 and 500 of them, by cross-entropy and with losses of knowledge transfer on top, for the same number of
steps; and prints a Markdown table of test accuracies, mean (standard deviation) over seeds of teacher, examples and
student. Weights, temperature and noise were chosen once, with the seeds 10 and 11 and 100 examples, by accuracy on the
training digits that the student does not get: `--choose` prints those. S. Srinivas and F. Fleuret, "Knowledge Transfer
with Jacobian Matching", ICML 2018, arXiv:1803.00443.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import ceil
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from captum_density._command.density import markdown
from captum_density._command.network import train
from captum_density.datasets import Digits, digits
from captum_density.losses import DistillationLoss, JacobianMatchingLoss, NoiseMatchingLoss

SIZES = (50, 100, 500)
STEPS = 600
BATCH = 64  # of `train`

DISTILLATION, TEMPERATURE = 1.0, 16.0
JACOBIAN = 10.0
NOISE, NOISE_STD = 0.01, 0.5
NOTHING = 1e-6  # a standard deviation

# What is added to the cross-entropy: a weight and a loss each.
Terms = list[tuple[float, nn.Module]]
Extra = Callable[[nn.Module, Tensor, Tensor], Tensor]


def distillation(teacher: nn.Module, seed: int) -> Terms:
    return [(DISTILLATION, DistillationLoss(teacher, TEMPERATURE))]


def jacobian(teacher: nn.Module, seed: int) -> Terms:
    return [(JACOBIAN, JacobianMatchingLoss(teacher))]


def noise(teacher: nn.Module, seed: int) -> Terms:
    return [(NOISE, NoiseMatchingLoss(teacher, NOISE_STD, generator=torch.Generator().manual_seed(seed)))]


def outputs(teacher: nn.Module, seed: int) -> Terms:
    """What the noise form is without noise: the logits' squared error, which the Jacobians' comes on top of."""
    return [(NOISE, NoiseMatchingLoss(teacher, NOTHING, generator=torch.Generator().manual_seed(seed)))]


PLAIN, DISTILLED = "cross-entropy", "+ distillation"
MATCHED, LOGITS, NOISED = (f"{DISTILLED} + {what}" for what in ("Jacobians", "outputs", "noisy outputs"))
VARIANTS: dict[str, Callable[[nn.Module, int], Terms]] = {
    PLAIN: lambda teacher, seed: [],
    "+ Jacobians": jacobian,
    DISTILLED: distillation,
    MATCHED: lambda teacher, seed: distillation(teacher, seed) + jacobian(teacher, seed),
    LOGITS: lambda teacher, seed: distillation(teacher, seed) + outputs(teacher, seed),
    NOISED: lambda teacher, seed: distillation(teacher, seed) + noise(teacher, seed),
}


def teacher_network() -> nn.Module:
    return _convolutional(32, 64)


def student_network() -> nn.Module:
    return _convolutional(8, 16)


def _convolutional(first: int, second: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * 4 * 4, 10),
    )


def taught(data: Digits, seed: int, epochs: int = 30) -> nn.Module:
    """A teacher, of all training digits."""
    return train(data, seed=seed, epochs=epochs, network=teacher_network, name="teacher")


def split(data: Digits, size: int, seed: int) -> tuple[Digits, Tensor]:
    """The data with so many training digits, and the numbers of those left over."""
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed))
    kept = order[:size]
    return data._replace(train_images=data.train_images[kept], train_labels=data.train_labels[kept]), order[size:]


def learnt(data: Digits, terms: Terms, seed: int, steps: int = STEPS) -> nn.Module:
    """A student, of the training digits that are in the data."""

    def extra(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([weight * loss(model, images) for weight, loss in terms]).sum()

    epochs = round(steps / ceil(len(data.train_images) / BATCH))
    added: Extra | None = extra if terms else None
    return train(data, seed=seed, epochs=epochs, extra_loss=added, network=student_network, name="student")


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (model(images).argmax(1) == labels).double().mean().item()


def measured(
    seed: int, sizes: Sequence[int] = SIZES, steps: int = STEPS, names: Sequence[str] = tuple(VARIANTS)
) -> Mapping[str, Sequence[float]]:
    """Test accuracies of a seed, for each variant one for each size; all of a size start alike on the same digits."""
    data = digits()
    teacher = taught(data, seed)
    found = {"teacher": [accuracy(teacher, data.test_images, data.test_labels)] * len(sizes)}
    for name in names:
        students = [learnt(split(data, size, seed)[0], VARIANTS[name](teacher, seed), seed, steps) for size in sizes]
        found[name] = [accuracy(student, data.test_images, data.test_labels) for student in students]
    return found


def table(found: Sequence[Mapping[str, Sequence[float]]], sizes: Sequence[int]) -> str:
    """Mean and, in brackets, standard deviation over seeds, in percent."""

    def cell(values: Sequence[float]) -> str:
        return f"{100 * mean(values):.1f}" + (f" ({100 * stdev(values):.1f})" if len(values) > 1 else "")

    rows = {name: [cell(values) for values in zip(*(f[name] for f in found), strict=True)] for name in found[0]}
    return markdown([f"{size} examples" for size in sizes], rows)


def gains(found: Sequence[Mapping[str, Sequence[float]]], sizes: Sequence[int]) -> Iterator[str]:
    """What each further loss adds, by the number of examples, in points."""
    for name, base in (
        (DISTILLED, PLAIN),
        ("+ Jacobians", PLAIN),
        (MATCHED, DISTILLED),
        (NOISED, DISTILLED),
        (NOISED, LOGITS),
    ):
        for i, size in enumerate(sizes):
            differences = [100 * (f[name][i] - f[base][i]) for f in found]
            n = sum(d > 0 for d in differences)
            yield f"{name} over {base}, {size} examples: {mean(differences):+.1f}, up in {n} of {len(found)} seeds"


def choose(seeds: Sequence[int], size: int = 100, steps: int = STEPS) -> Iterator[str]:
    """Accuracy on left-over training digits for each candidate."""
    data = digits()
    teachers = {seed: taught(data, seed) for seed in seeds}

    def validated(terms: Callable[[nn.Module, int], Terms]) -> str:
        accuracies = []
        for seed, teacher in teachers.items():
            part, left = split(data, size, seed)
            student = learnt(part, terms(teacher, seed), seed, steps)
            accuracies.append(accuracy(student, data.train_images[left], data.train_labels[left]))
        return f"{100 * mean(accuracies):.1f}"

    global DISTILLATION, TEMPERATURE, JACOBIAN, NOISE, NOISE_STD
    chosen = DISTILLATION, TEMPERATURE
    yield f"plain: {validated(VARIANTS[PLAIN])}"
    for DISTILLATION, TEMPERATURE in product((0.3, 1.0, 3.0), (2.0, 4.0, 8.0, 16.0)):
        yield f"distillation {DISTILLATION}, temperature {TEMPERATURE}: {validated(VARIANTS[DISTILLED])}"
    DISTILLATION, TEMPERATURE = chosen
    for JACOBIAN in (0.1, 1.0, 3.0, 10.0, 30.0):
        yield f"Jacobians {JACOBIAN}: {validated(VARIANTS[MATCHED])}"
    for NOISE, NOISE_STD in product((0.01, 0.03, 0.1, 0.3), (0.1, 0.3, 0.5)):
        yield f"noise {NOISE}, standard deviation {NOISE_STD}: {validated(VARIANTS[NOISED])}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, help="of teacher, examples, student and noise")
    parser.add_argument("--steps", type=int, default=STEPS, help="for each student")
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the steps")
    parser.add_argument("--choose", action="store_true", help="print what the weights were chosen by")
    given = parser.parse_args()
    steps = given.steps // 10 if given.quick else given.steps
    if given.choose:
        for line in choose(given.seeds or [10, 11], steps=steps):
            print(line, flush=True)
    else:
        results = [measured(seed, steps=steps) for seed in given.seeds or ([0] if given.quick else [0, 1, 2])]
        print(table(results, SIZES), "\n".join(gains(results, SIZES)), sep="\n\n")
