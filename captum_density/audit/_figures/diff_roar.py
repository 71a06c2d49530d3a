"""Whether models retrained on what ranks high predict better than those retrained on what ranks low."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_density import metrics
from captum_density._cache.identity import described, identity_of_model
from captum_density._model.generators import seeded
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel
from captum_density.audit._figures.obstacles import of_one_tensor_and_logits
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._results import Finding, Measured, Results, intervals_by_method
from captum_density.audit._setting import Setting

__all__ = ["DIFF_ROAR"]

_NAME = "diff_roar"


def _measure(explanation: Explanation) -> Measured:
    setting, retraining = explanation.setting, explanation.setting.retraining
    if retraining is None:
        raise ValueError("diff_roar needs retraining, a captum_density.audit.Retraining")

    def ranking(inputs: Tensor) -> Tensor:
        inputs = inputs.to(setting.inputs)
        outputs = setting.model(inputs)
        target = outputs.argmax(dim=1) if setting.classes > 1 else 0
        return explanation.attribute(inputs, target).detach().expand_as(inputs)

    with tempfile.TemporaryDirectory() as scratch:
        result = metrics.diff_roar(
            retraining.make_model,
            retraining.train,
            retraining.test,
            {explanation.name: ranking},
            controls=("random",),
            seed=setting.seed,
            store=setting.jobs or Path(scratch),
            show_progress=setting.show_progress,
            max_examples_per_batch=setting.batch,
            **retraining.options,
        )
    value, low, high = result.means()[0].tolist()
    return Measured(value, low=low, high=high, reference=result.means("random")[0, 0].item())


def _identity(setting: Setting) -> Any:
    retraining = setting.retraining
    if retraining is None:
        return None
    with seeded(setting.seed, torch.device("cpu")):
        model = retraining.make_model()
    return [described(retraining), identity_of_model(retraining.make_model, model, setting.few.cpu())]


def _findings(results: Results) -> Iterator[Finding]:
    intervals = intervals_by_method(results, _NAME)
    high = [name for name, (low_end, _) in intervals.items() if low_end > 0]
    low = [name for name, (_, high_end) in intervals.items() if high_end < 0]
    if high:
        yield Finding(
            "note",
            f"Retrained models predict better from what {listed(high)} {verb('rank', high)} high than what low.",
            "So they may by a map that knows nothing of the model, such as a blob where objects are: give such a map "
            "among the attributions, and compare.",
        )
    if low:
        yield Finding(
            "warning",
            f"Retrained models predict worse from what {listed(low)} {verb('rank', low)} high than what low.",
            "Train the model robustly, as captum_density.retraining.adversarial_fit does, and ask again.",
        )


DIFF_ROAR = Figure(
    name=_NAME,
    title="DiffROAR",
    better="higher is better",
    meaning="Accuracy of models retrained on what ranks highest minus that of models retrained on what ranks lowest, "
    "mean over the fractions kept; below 0 the method points away from what matters.",
    against="below 0",
    measure=_measure,
    obstacle=of_one_tensor_and_logits,
    findings=_findings,
    priority=4,
    needs="retraining",
    identity=_identity,
    reference="a random ranking",
    panel=Panel(signed=True, line=(0.0, "no difference")),
)
