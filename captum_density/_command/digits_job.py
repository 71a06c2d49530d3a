"""The main job without a model of the user's: digits to train on, audit, fool, balance and compare, and photographs."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from captum_density._command.density import study_density, train_judge
from captum_density._command.network import perceptron, train
from captum_density._command.photographs import PhotographStudy, study_photographs, write_photographs
from captum_density._command.softmax_shift import draw_shift_study, study_shift
from captum_density._command.transformer import draw_transformer_study, study_transformer
from captum_density.audit import Retraining, audit
from captum_density.datasets import Digits, digits, efficientnet_lite0, photographs
from captum_density.retraining import FitConfig

__all__ = ["FULL", "QUICK", "Effort", "explain_photographs", "remove_pictures", "run"]

_PICTURES = (
    "softmax_shift.png", "vision_transformer.png", "density_ratio.png", "samples.png", "pixel_perturbation.png",
    "photographs.png",
)  # fmt: skip

_PATCH = 2  # pixels: 16 patches of a digit, of which DiffROAR keeps so many
_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
_RUNS = 3


@dataclass(frozen=True)
class Effort:
    """How much of everything the main job takes.

    Args:
        epochs: Passes over the training digits, for each network.
        examples: Test digits to audit.
        samples_per_class: Samples of each class and network for the GAN-test.
        noise_samples: For each digit, in the density ratio; twice as many in the Hessian trace.
        photographs: How many to explain, at most 4.
        photograph_samples: Noisy copies of each of these.
    """

    epochs: int = 12
    examples: int = 64
    samples_per_class: int = 20
    noise_samples: int = 10
    photographs: int = 4
    photograph_samples: int = 10


FULL = Effort()
QUICK = Effort(epochs=6, examples=16, samples_per_class=5, noise_samples=2, photographs=2, photograph_samples=4)


def remove_pictures(out: Path) -> None:
    """Remove the pictures that a run on the digits left in a folder, before another report is written there.

    Args:
        out: The folder. Its ``report.json`` tells whether such pictures are of a run; else they are someone else's.
    """
    try:
        facts = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(facts, dict) and "captum_density_audit" in facts and "density" in facts:
        for name in _PICTURES:
            (out / name).unlink(missing_ok=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    # Networks this small gain nothing from more, wait long for each other's threads where the machine is busy, and
    # come out alike on one thread whatever the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(
    out: Path,
    *,
    seed: int,
    device: str,
    effort: Effort = FULL,
    attributions: Any = None,
    metrics: Iterable[str] | None = None,
    limit: int | None = None,
    store: Path | None = None,
) -> float:
    """Train, audit, fool, balance, compare, look at photographs; print the figures and write the files.

    Written are what `captum_density.audit.AuditReport.save` writes, and ``softmax_shift.png``,
    ``vision_transformer.png``, ``density_ratio.png``, ``samples.png`` and ``pixel_perturbation.png``, whose figures
    ``report.json`` holds as well; and ``photographs.png``, where the extra ``demo`` is installed, else a line says so.

    Args:
        out: Folder to write to, made where it is missing.
        seed: Of the initial weights, the order of training and every perturbation.
        device: "cpu" or "cuda".
        effort: How much of everything to take.
        attributions: As `captum_density.audit`'s.
        metrics: As `captum_density.audit`'s.
        limit: How many test digits to audit; None for the effort's.
        store: As `captum_density.audit`'s.

    Returns:
        The network's accuracy on all test digits, in [0, 1]; higher is better.
    """
    data = Digits(*(tensor.to(device) for tensor in digits()))
    train_set, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    names = {*(metrics or ())}
    options = {"fractions": _FRACTIONS, "runs": _RUNS, "groups": _PATCH, "fit": FitConfig(epochs=effort.epochs)}
    with _one_thread():
        model = train(data, seed=seed, epochs=effort.epochs)
        judge = train_judge(data, seed)
        report = audit(
            model,
            test,
            attributions,
            metrics=metrics,
            limit=effort.examples if limit is None else limit,
            seed=seed,
            proxy=judge if {"gan_test", "all"} & names else None,
            retraining=Retraining(perceptron, train_set, test, options) if {"diff_roar", "all"} & names else None,
            store=store,
            show_progress=True,
            name="a small CNN on the embedded digits",
        )
        shift_study = study_shift(model, data.test_images[: effort.examples], seed=seed)
        transformer_study = study_transformer(data, seed=seed, examples=effort.examples)
        density_study = study_density(
            data,
            seed=seed,
            epochs=effort.epochs,
            samples_per_class=effort.samples_per_class,
            noise_samples=effort.noise_samples,
            plain=model,
            judge=judge,
        )
    photograph_study = explain_photographs(seed, device, effort)

    accuracy = density_study.models["plain"].accuracy
    heading = f"accuracy on {len(data.test_labels)} test digits: {accuracy:.4f} (higher is better)"
    if effort == QUICK:
        heading = f"quick run, rough figures: networks trained this briefly hardly differ in density\n\n{heading}"
    audited, densities = f"{heading}\n\n{report}\n", f"{density_study.table()}\n"
    seen = photograph_study if isinstance(photograph_study, str) else photograph_study.text()
    print(f"{audited}\n{shift_study.text()}\n\n{transformer_study.text()}\n\n{seen}\n\n{densities}")
    remove_pictures(out)
    written = report.save(out)
    (out / "table.md").write_text(f"{audited}\n{densities}", encoding="utf-8")
    facts = {"accuracy": accuracy, "test_digits": len(data.test_labels), **report.to_dict()}
    facts |= {"softmax_shift": shift_study.to_dict(), "vision_transformer": transformer_study.to_dict()}
    facts |= {"photographs": None if isinstance(photograph_study, str) else photograph_study.to_dict()}
    facts |= {"density": density_study.to_dict()}
    (out / "report.json").write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw_shift_study(shift_study, out / "softmax_shift.png")
    draw_transformer_study(transformer_study, out / "vision_transformer.png")
    drawn = ["softmax_shift.png", "vision_transformer.png", *density_study.draw(out, *test)]
    if not isinstance(photograph_study, str):
        drawn.append(write_photographs(photograph_study, out))
    print(f"written to {out}: {', '.join([*written, *drawn])}")
    return accuracy


def explain_photographs(seed: int, device: str, effort: Effort) -> PhotographStudy | str:
    """Explain photographs, where the extra ``demo`` is installed.

    Args:
        seed: As `study_photographs`'.
        device: As `study_photographs`'.
        effort: How many photographs and noisy copies.

    Returns:
        What `study_photographs` returns; or a line that says what is missing, and what to install.
    """
    try:
        network, data = efficientnet_lite0(), photographs()
    except (ImportError, ValueError) as error:
        return f"no photographs.png: {error}"
    return study_photographs(
        network, data, seed=seed, device=device, count=effort.photographs, samples=effort.photograph_samples
    )
