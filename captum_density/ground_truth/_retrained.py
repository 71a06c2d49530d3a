"""Metrics that retrain: they judge maps of a whole data set, not of a few examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from captum_density._model.generators import derived_seed
from captum_density.ground_truth._degradations import degradations
from captum_density.ground_truth._trial import Trial, remembered
from captum_density.metrics import diff_roar

__all__ = ["RETRAINED"]

_TRAIN, _TEST = 2000, 500
_KEPT = 0.5


def _accuracies(trial: Trial, steps: int) -> Tensor | None:
    """(2, steps, test examples) whether the half that a map ranks highest, and the other, predicts; None but of tables.

    Networks of the task's own kind are trained anew on examples of which the other half is 0: two for each step.
    """
    if trial.inputs.ndim != 2:  # images take minutes
        return None
    return remembered(trial, ("accuracies", steps), lambda: _trained(trial, steps))


def _trained(trial: Trial, steps: int) -> Tensor:
    train = min(_TRAIN, trial.task.training_examples)
    examples = trial.task.examples(train + _TEST, derived_seed(trial.seed, "retraining") % 2**31)
    everything = Trial(trial.task, trial.seed, trial.model, examples)
    maps = degradations(everything, steps)
    result = diff_roar(
        trial.task.network,
        (examples.inputs[:train], examples.targets[:train]),
        (examples.inputs[train:], examples.targets[train:]),
        {str(step): (each[:train], each[train:]) for step, each in enumerate(maps)},
        fractions=[_KEPT],
        runs=1,
        fit=trial.task.fit,
        controls=(),
        seed=trial.seed,
    )
    return result.correct[:, :, 0, 0].movedim(1, 0).double()


def _diff_roar(trial: Trial, steps: int) -> Tensor | None:
    """Accuracy by the half that is ranked highest, less that by the other."""
    accuracies = _accuracies(trial, steps)
    return None if accuracies is None else accuracies[0] - accuracies[1]


def _roar(trial: Trial, steps: int) -> Tensor | None:
    """Minus the accuracy without the half that is ranked highest."""
    accuracies = _accuracies(trial, steps)
    return None if accuracies is None else -accuracies[1]


#: By name, functions of a trial and the number of steps that return (steps, M) numbers of M test examples, higher is
#: better, or None where retraining is not cheap.
RETRAINED: Mapping[str, Callable[[Trial, int], Tensor | None]] = {"diff_roar": _diff_roar, "roar": _roar}
