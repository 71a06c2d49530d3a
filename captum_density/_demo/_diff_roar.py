"""The main job's DiffROAR: which patches matter, asked of retrained networks."""

from pathlib import Path

from torch import nn

from captum_density._demo._attributions import METHODS
from captum_density._demo._network import perceptron
from captum_density.audit import Method
from captum_density.datasets import Digits
from captum_density.metrics import RetrainingResult, diff_roar
from captum_density.retraining import FitConfig

__all__ = ["draw_retraining", "retrain"]

_METHODS = ("Saliency", "IntegratedGradients", "FullGrad, complete")
_PATCH = 2  # pixels: 16 patches of a digit
_FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
_RUNS = 3


def retrain(model: nn.Module, data: Digits, *, seed: int, epochs: int) -> RetrainingResult:
    """Retrain small perceptrons on the patches that a few methods rank highest, and lowest.

    Args:
        model: what the methods explain.
        data: the digits.
        seed: of everything.
        epochs: for each perceptron.

    Returns:
        DiffROAR with all its controls.
    """
    named: dict[str, Method] = {name: METHODS[name] for name in _METHODS}
    return diff_roar(
        perceptron,
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
        {name: method.make(model) for name, method in named.items()},
        fractions=_FRACTIONS,
        runs=_RUNS,
        groups=_PATCH,
        fit=FitConfig(epochs=epochs),
        seed=seed,
        show_progress=True,
    )


def draw_retraining(result: RetrainingResult, path: Path) -> None:
    """Draw DiffROAR and its controls.

    Args:
        result: what `retrain` returned.
        path: the picture to write.
    """
    result.plot().savefig(path, dpi=150)
