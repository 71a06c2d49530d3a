"""The main job: train, explain, fool, compare densities; print and write what came of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from captum_density._demo._attributions import METHODS, draw_attributions
from captum_density._demo._density import study_density
from captum_density._demo._diff_roar import draw_retraining, retrain
from captum_density._demo._network import train
from captum_density._demo._softmax_shift import draw_fooled, fool
from captum_density.audit import audit
from captum_density.datasets import Digits, digits

__all__ = ["FULL", "QUICK", "Effort", "run"]


@dataclass(frozen=True)
class Effort:
    """How much of everything the main job takes.

    Args:
        epochs: passes over the training digits, for each network.
        examples: test digits to explain, the first ones.
        samples_per_class: samples of each class and network for the GAN-test.
        noise_samples: for each digit, in the density ratio; twice as many in the Hessian trace.
    """

    epochs: int = 12
    examples: int = 64
    samples_per_class: int = 20
    noise_samples: int = 10


FULL = Effort()
QUICK = Effort(epochs=6, examples=16, samples_per_class=5, noise_samples=2)


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


@_one_thread()
def run(out: Path, *, seed: int, device: str, effort: Effort = FULL, with_diff_roar: bool = False) -> float:
    """Train, explain, measure, fool, compare; print the figures and write the files.

    Written are ``saliency.png``, ``softmax_shift.png``, ``density_ratio.png``, ``samples.png``,
    ``pixel_perturbation.png``, ``table.md`` and ``report.json``; with DiffROAR, ``diff_roar.png``.

    Args:
        out: folder to write to, made where it is missing.
        seed: of the initial weights, the order of training and every perturbation.
        device: "cpu" or "cuda".
        effort: how much of everything to take.
        with_diff_roar: whether to retrain networks on the patches that methods rank highest, and lowest.

    Returns:
        The network's accuracy on all test digits, in [0, 1]; higher is better.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = Digits(*(tensor.to(device) for tensor in digits()))
    model = train(data, seed=seed, epochs=effort.epochs)
    with torch.no_grad():
        predicted = model(data.test_images).argmax(dim=1)
    accuracy = (predicted == data.test_labels).double().mean().item()

    images, target = data.test_images[: effort.examples], predicted[: effort.examples]
    report = audit(model, images, target, METHODS, seed=seed)
    fooled = fool(model, images, seed=seed)
    study = study_density(
        data,
        seed=seed,
        epochs=effort.epochs,
        samples_per_class=effort.samples_per_class,
        noise_samples=effort.noise_samples,
        plain=model,
    )

    retrained = retrain(model, data, seed=seed, epochs=effort.epochs) if with_diff_roar else None

    heading = f"accuracy on {len(predicted)} test digits: {accuracy:.4f} (higher is better)"
    if effort == QUICK:
        heading = f"quick run, rough figures: networks trained this briefly hardly differ in density\n\n{heading}"
    explained, densities = f"{heading}\n\n{report.table()}\n", f"{study.table()}\n"
    retraining = "" if retrained is None else f"\n{retrained.table()}\n"
    print(f"{explained}\n{fooled.text()}\n\n{densities}{retraining}")
    (out / "table.md").write_text(f"{explained}\n{densities}{retraining}", encoding="utf-8")
    facts = {"accuracy": accuracy, "test_digits": len(predicted), "seed": seed, "device": device, **asdict(effort)}
    facts |= {**report.to_dict(), "softmax_shift": fooled.to_dict(), "density": study.to_dict()}
    if retrained is not None:
        facts["diff_roar"] = retrained.to_dict()
    (out / "report.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    draw_attributions(report, images, target, out / "saliency.png")
    draw_fooled(fooled, out / "softmax_shift.png")
    drawn = study.draw(out, data.test_images, data.test_labels)
    if retrained is not None:
        draw_retraining(retrained, out / "diff_roar.png")
        drawn = [*drawn, "diff_roar.png"]
    files = ["saliency.png", "softmax_shift.png", *drawn, "table.md", "report.json"]
    print(f"written to {out}: {', '.join(files)}")
    return accuracy
