"""What score matching, its opposite and gradient norm do to digit networks, and which of the paper's claims show.

`python -m tests.experiments.density` trains the main job's four networks for each seed and prints a Markdown table, and
how many seeds each claim of S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, held on. Settings were chosen with
the seeds 10 and 11.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev

import torch
from torch import nn

from captum_density._command.density import HEADINGS, keep_by_gradient, markdown, study_density
from captum_density._command.digits_job import FULL
from captum_density.datasets import Digits, digits
from captum_density.metrics import pixel_perturbation

# Of one seed: a model's name to its figures.
Figures = Mapping[str, Mapping[str, float]]

PLAIN, SCORE, ANTI, NORM = "plain", "score matching", "anti score matching", "gradient norm"
# A model, above or below the plain one, in a figure.
CLAIMS: list[tuple[str, str, str]] = [
    (SCORE, "below", "log_density_ratio_0.1"),
    (SCORE, "below", "log_density_ratio_0.3"),
    (ANTI, "above", "log_density_ratio_0.1"),
    (ANTI, "above", "log_density_ratio_0.3"),
    (SCORE, "at or above", "gan_test"),
    (NORM, "at or above", "gan_test"),
    (ANTI, "below", "gan_test"),
    (SCORE, "above", "pixel_perturbation_area"),
    (NORM, "above", "pixel_perturbation_area"),
    (ANTI, "below", "pixel_perturbation_area"),
    (SCORE, "above", "pixel_perturbation_accuracy_area"),
    (NORM, "above", "pixel_perturbation_accuracy_area"),
    (ANTI, "below", "pixel_perturbation_accuracy_area"),
]
# The area with other pixels set to other values than the mean digit, and (None) with pixels kept at random.
AREAS: dict[str, float | None] = {"area, others 0.5": 0.5, "area, others 0 (no ink)": 0.0, "area, random pixels": None}
CLAIMS += [
    (model, side, key)
    for key, fill in AREAS.items()
    if fill is not None
    for model, side in ((SCORE, "above"), (NORM, "above"), (ANTI, "below"))
]


def measured(seed: int, epochs: int) -> Figures:
    """The figures of the four networks of a seed."""
    data = digits()
    study = study_density(
        data,
        seed=seed,
        epochs=epochs,
        samples_per_class=FULL.samples_per_class,
        noise_samples=FULL.noise_samples,
    )
    return {
        name: {**model.to_dict(), **{key: area(model.network, data, key) for key in AREAS}}
        for name, model in study.models.items()
    }


def area(model: nn.Module, data: Digits, key: str) -> float:
    """Mean pixel perturbation area, under the probability, of one of AREAS."""
    fill = AREAS[key]
    if fill is not None:
        return keep_by_gradient(model, data, fill).area.mean().item()
    images = data.test_images
    order = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    mean_digit = data.train_images.mean(dim=0, keepdim=True)
    return pixel_perturbation(model, images, order, mean_digit, target=data.test_labels).area.mean().item()


def holds(found: Figures, model: str, side: str, figure: str) -> bool:
    """Whether a claim holds on a seed."""
    value, plain = found[model][figure], found[PLAIN][figure]
    return {"below": value < plain, "above": value > plain, "at or above": value >= plain}[side]


def table(found: Sequence[Figures], headings: Mapping[str, str]) -> str:
    """Mean and, in brackets, standard deviation over seeds, of the figures that have a heading."""

    def cell(values: Sequence[float]) -> str:
        places = 1 if max(map(abs, values)) > 50 else 2 if max(map(abs, values)) > 1 else 3
        spread = f" ({stdev(values):.{places}f})" if len(values) > 1 else ""
        return f"{mean(values):.{places}f}{spread}"

    rows = {name: [cell([f[name][key] for f in found]) for key in headings] for name in found[0]}
    return markdown(list(headings.values()), rows)


def claims(found: Sequence[Figures]) -> Iterator[str]:
    """A line for each claim."""
    for model, side, figure in CLAIMS:
        n = sum(holds(f, model, side, figure) for f in found)
        yield f"{model} {side} plain in {figure}: {n} of {len(found)} seeds"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of weights, order and noise")
    parser.add_argument("--epochs", type=int, default=FULL.epochs, help="for each network")
    given = parser.parse_args()
    results = [measured(seed, given.epochs) for seed in given.seeds]
    print(table(results, HEADINGS), table(results, {key: key for key in AREAS}), "\n".join(claims(results)), sep="\n\n")
