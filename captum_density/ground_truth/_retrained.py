"""Metrics that retrain: they judge maps of a whole data set, not of a few examples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from captum_density._model.generators import derived_seed
from captum_density.ground_truth._degradations import degradations
from captum_density.ground_truth._trial import Trial, remembered
from captum_density.metrics import diff_roar, f_fidelity

__all__ = ["RETRAINED"]

_TRAIN, _TEST = 2000, 500
_KEPT = 0.5
_EXPLANATION, _DELETED, _SAMPLES = 0.3, 0.2, 20  # of f_fidelity


class _Data(NamedTuple):
    """Examples, and a map of each at each step."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    maps: dict[str, tuple[Tensor, Tensor]]


def _data(trial: Trial, steps: int) -> _Data:
    """Examples that the network was not trained on; the first of them to train others."""
    train = min(_TRAIN, trial.task.training_examples)
    examples = trial.task.examples(train + _TEST, derived_seed(trial.seed, "retraining") % 2**31)
    maps = degradations(Trial(trial.task, trial.seed, trial.model, examples), steps)
    return _Data(
        (examples.inputs[:train], examples.targets[:train]),
        (examples.inputs[train:], examples.targets[train:]),
        {str(step): (each[:train], each[train:]) for step, each in enumerate(maps)},
    )


def _accuracies(trial: Trial, steps: int) -> Tensor:
    """(steps, 2, test examples) whether the half that a map ranks highest, and the other, predicts.

    Networks of the task's own kind are trained anew on examples of which the other half is 0: two for each step.
    """

    def train() -> Tensor:
        data = _data(trial, steps)
        result = diff_roar(
            trial.task.network,
            *data,
            fractions=[_KEPT],
            runs=1,
            fit=trial.task.fit,
            controls=(),
            seed=trial.seed,
        )
        return result.correct[:, :, 0, 0].double()

    return remembered(trial, ("accuracies", steps), train)


def _diff_roar(trial: Trial, steps: int) -> Tensor | None:
    """Accuracy by the half that is ranked highest, less that by the other."""
    if not _cheap(trial):
        return None
    top, bottom = _accuracies(trial, steps).unbind(1)
    return top - bottom


def _roar(trial: Trial, steps: int) -> Tensor | None:
    """Minus the accuracy without the half that is ranked highest."""
    return -_accuracies(trial, steps)[:, 1] if _cheap(trial) else None


def _f_fidelity(trial: Trial, steps: int) -> Tensor | None:
    """FFid+ less FFid-: what the network, fine-tuned on holes, loses without part of the top, and of the rest."""
    if not _cheap(trial):
        return None
    data = _data(trial, steps)
    result = f_fidelity(
        copy.deepcopy(trial.model).cpu().requires_grad_(True),
        data.train,
        data.test,
        {step: test for step, (_, test) in data.maps.items()},
        fractions=[_EXPLANATION],
        beta=_DELETED,
        n_samples=_SAMPLES,
        runs=1,
        seed=trial.seed,
    )
    without_top, without_rest = result.right[:-1, :, 0, 0].double().unbind(1)
    return (without_rest - without_top) / _SAMPLES


def _cheap(trial: Trial) -> bool:
    """Whether networks are trained in seconds: those of tables; of images it takes minutes."""
    return trial.inputs.ndim == 2


#: By name, functions of a trial and the number of steps that return (steps, M) numbers of M test examples, higher is
#: better, or None where retraining is not cheap.
RETRAINED: Mapping[str, Callable[[Trial, int], Tensor | None]] = {
    "diff_roar": _diff_roar,
    "roar": _roar,
    "f_fidelity": _f_fidelity,
}
