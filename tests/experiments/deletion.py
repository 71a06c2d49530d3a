"""IDSDS and F-Fidelity of some methods and of maps that know nothing, on real digits and clothes.

`OMP_NUM_THREADS=1 python -m tests.experiments.deletion --data FOLDER [--store FOLDER]` writes results/deletion.json.
FOLDER holds what `real_data.images` reads; finished parts are kept in the store. `--table` prints what is there, as
`tutorials/guides/retraining.md` has it.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch import Tensor, nn

from captum_density.attr import FullGrad
from captum_density.metrics import f_fidelity, in_domain_single_deletion, patch_mask
from captum_density.retraining import FitConfig, fine_tune, random_deletion, single_deletion
from tests.experiments.real_data import (
    DATA,
    Images,
    Parts,
    accuracy,
    convolutional,
    digest,
    images,
    markdown,
    over_seeds,
)

RESULTS = Path(__file__).parent / "results" / "deletion.json"
SEEDS, RUNS = range(3), 5
TRAINING, TUNING = FitConfig(epochs=3), FitConfig(epochs=2, lr=1e-3)
CELL = 7  # pixels a side: a grid of 4 by 4
EXAMPLES = 500

Maps = dict[str, Tensor]


def trained(data: Images, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return fine_tune(convolutional(), data.train, fit=TRAINING, seed=seed)


def maps_of(model: nn.Module, x: Tensor, target: Tensor, seed: int) -> Maps:
    gradient = InputXGradient(model).attribute(x.clone(), target=target).detach()
    return {
        "Saliency": Saliency(model).attribute(x.clone(), target=target).detach(),
        "InputXGradient": gradient,
        "InputXGradient, absolute": gradient.abs(),
        "IntegratedGradients": IntegratedGradients(model).attribute(x, target=target, n_steps=32).float().detach(),
        "FullGrad, complete": FullGrad(model, complete=True).attribute(x.clone(), target=target).detach(),
        "constant": torch.ones_like(x),
        "random": torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)),
    }


def idsds(data: Images, seed: int) -> dict[str, Any]:
    """Mean scores without and with training on deletions, and accuracies on whole images and with a cell away."""
    x, y = (part[:EXAMPLES] for part in data.test)
    cells = patch_mask(x, CELL)
    given = trained(data, seed)
    tuned = fine_tune(given, data.train, partial(single_deletion, feature_mask=cells), fit=TUNING, seed=seed)
    away = [(torch.where(cells == cell, 0.0, x), y) for cell in range(16)]
    figures: dict[str, Any] = {}
    for name, model in (("as trained", given), ("in-domain", tuned)):
        scores = {
            method: in_domain_single_deletion(model, x, maps, target=y, feature_mask=cells).mean().item()
            for method, maps in maps_of(model, x, y, seed).items()
        }
        deleted = sum(accuracy(model, pair) for pair in away) / len(away)
        figures[name] = {"scores": scores, "whole": accuracy(model, (x, y)), "deleted": deleted}
    return figures


def fidelity(data: Images, store: Path | None) -> dict[str, Any]:
    model = trained(data, 0)
    x, y = (part[:256] for part in data.test)
    maps = maps_of(model, x, model(x).argmax(1), 0)
    # Ranked by their absolute values, which the other map has; random rankings are drawn for each run.
    for name in ("random", "InputXGradient, absolute"):
        del maps[name]
    result = f_fidelity(model, data.train, (x, y), maps, runs=RUNS, n_samples=5, fit=TUNING, store=store)
    return result.to_dict()


def holes(data: Images) -> dict[str, Any]:
    """Accuracies on whole images and with a tenth of the pixels away, without and with training on such."""
    given = trained(data, 0)
    tuned = fine_tune(given, data.train, partial(random_deletion, fraction=0.1), fit=TUNING)
    x, y = data.test
    deleted = random_deletion(x, 0.1, generator=torch.Generator().manual_seed(0))
    models = {"as trained": given, "fine-tuned": tuned}
    return {name: [accuracy(model, (x, y)), accuracy(model, (deleted, y))] for name, model in models.items()}


def measure(folder: Path, store: Path | None) -> dict[str, Any]:
    """The figures, their digest, and the seconds of a core that they took."""
    parts = Parts(store)
    data = {name: images(folder, name) for name in DATA}
    figures = {
        "idsds": {
            name: [parts({"idsds": name, "seed": seed}, partial(idsds, data[name], seed)) for seed in SEEDS]
            for name in DATA
        },
        "f_fidelity": parts({"f_fidelity": "MNIST"}, partial(fidelity, data["MNIST"], store)),
        "holes": parts({"holes": "MNIST"}, partial(holes, data["MNIST"])),
    }
    return {"seconds": round(parts.seconds), "digest": digest(figures), "figures": figures}


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """By name, the tables that the guide has."""
    return {"IDSDS": idsds_table(figures["idsds"]), "F-Fidelity": fidelity_table(figures["f_fidelity"])}


def idsds_table(figures: Mapping[str, Any]) -> str:
    columns = {
        f"{name}, {kind}": [seed[kind] for seed in seeds]
        for name, seeds in figures.items()
        for kind in ("as trained", "in-domain")
    }
    methods = next(iter(columns.values()))[0]["scores"]
    rows = [[m, *(over_seeds([s["scores"][m] for s in seeds]) for seeds in columns.values())] for m in methods]
    for key, text in (("whole", "accuracy, whole"), ("deleted", "accuracy, one cell away")):
        rows.append([text, *(over_seeds([s[key] for s in seeds], 3) for seeds in columns.values())])
    return markdown(["IDSDS", *columns], rows)


def fidelity_table(figures: Mapping[str, Any]) -> str:
    rows = []
    for ranking, means, plus in zip(figures["rankings"], figures["means"], figures["plus"], strict=True):
        # The third mean is the difference of the first two.
        texts = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in means[:2]]
        rows.append([ranking, *texts, *(f"{value:.3f}" for value in plus)])
    sizes = [f"FFid+ at {fraction:g}" for fraction in figures["fractions"]]
    return markdown(["ranking", "FFid+", "FFid-", *sizes], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.experiments.deletion", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--store", type=Path, help="folder in which finished parts are kept")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None:
            parser.error("give the folder of the images by --data")
        torch.set_num_threads(1)
        results = measure(arguments.data, arguments.store)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, table in tables(json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]).items():
        print(f"\n{name}\n\n{table}")


if __name__ == "__main__":
    main()
