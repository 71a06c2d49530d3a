"""How far attributions move when the input hardly does: Captum's `sensitivity_max`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum.metrics import sensitivity_max
from torch import Tensor

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.words import listed, span
from captum_density.audit._results import Finding, Measured, Results, values_by_method

__all__ = ["SENSITIVITY_MAX"]

_NAME = "sensitivity_max"
_UNSTEADY = 0.5  # of a map's own length


def _measure(explanation: Explanation) -> Measured:
    setting, attributions = explanation.setting, explanation.attributions
    if spared := setting.budget.spares(explanation.passes):
        return Measured(None, note=spared)
    setting.reseed()
    values = [
        sensitivity_max(
            _explain(explanation, attributions[at]),
            setting.inputs[at],
            perturb_radius=setting.perturb_radius,
            n_perturb_samples=setting.sensitivity_samples,
            max_examples_per_batch=setting.at_once(at, setting.sensitivity_samples),
            target=setting.target[at],
            **setting.arguments(at),
            **explanation.options,
        )
        for at in setting.chunks()
    ]
    return of_examples(torch.cat(values))


def _explain(explanation: Explanation, attributions: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    """The method as Captum's metric calls it, first on the examples themselves, whose attributions are there.

    In the layout that the metric can view as rows.
    """
    originals = [attributions]

    def explain(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        parts = originals.pop() if originals else explanation.attribution.attribute(*args, **kwargs)
        return tuple(part.contiguous() for part in (parts if isinstance(parts, tuple) else (parts,)))

    return explain


def _findings(results: Results) -> Iterator[Finding]:
    unsteady = {name: value for name, value in values_by_method(results, _NAME).items() if value > _UNSTEADY}
    if unsteady:
        yield Finding(
            "warning",
            f"A change of the input too small to matter moves the maps of {listed([*unsteady])} by "
            f"{span(unsteady.values())} of their length.",
            "Average over noise (Captum's NoiseTunnel, SmoothFullGrad), or train with "
            "captum_density.losses.GradientNormLoss.",
        )


SENSITIVITY_MAX = Figure(
    name=_NAME,
    title="sensitivity",
    better="lower is better",
    meaning="Captum's sensitivity_max: the largest relative change of the attributions under a change of the input "
    "too small to matter; at 1 the map has moved by its own length. A constant map has 0, the least: a small one "
    "speaks for no method.",
    against=f"above {_UNSTEADY:g}",
    measure=_measure,
    findings=_findings,
    priority=2,
)
