"""Whether the model's gradients point where no data lie."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from captum_density._cache.identity import described
from captum_density._density.off_manifold import off_manifold_gradients
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.obstacles import no_softmax
from captum_density.audit._figures.words import judged
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting
from captum_density.audit._subject import of_unlike_scales
from captum_density.softmax_shift import CenteredLogits

__all__ = ["OFF_MANIFOLD_GRADIENT"]

_NAME = "off_manifold_gradient"
_FEW = 16  # gradients: of fewer, each lies on their common direction by chance
# Networks trained on few data leave less of their first weights on one direction; a manipulation as long as the
# gradient puts a half there.
_THRESHOLD = 0.38
# Times that gradients have to be more alike off the data than along them: those of a linear model with two classes are
# one gradient, which points off the data wherever features go together, as its first weights or least squares leave it.
_MORE_ALIKE = 2
_ALIKE = "they are hardly more alike off the data than along them, as those of a model with one output or two often are"


def _measure(setting: Setting) -> Measured:
    if len(setting.inputs) < _FEW:
        return Measured(None, note=f"fewer than {_FEW} examples do not tell a common direction from chance")
    if of_unlike_scales(_pool(setting), setting.kind):  # where the data seem not to vary is where the unit is large
        return Measured(None, note="features of unlike scales, which are not standardised, do not tell")
    model = setting.model if no_softmax(setting) else CenteredLogits(setting.model)
    try:
        off = off_manifold_gradients(
            model,
            setting.inputs,
            _pool(setting),
            setting.target,
            max_examples_per_batch=setting.batch,
            **setting.arguments(),
        )
    except ValueError as error:
        return Measured(None, note=str(error))
    measured = of_examples(off.shares, seed=setting.seed)
    chance = max(off.alike_on, 1 / max(1, off.directions))
    return measured if off.alike_off >= _MORE_ALIKE * chance else replace(measured, note=_ALIKE)


def _pool(setting: Setting) -> Any:
    return setting.inputs if setting.pool is None else setting.pool


def _findings(results: Results) -> Iterator[Finding]:
    share = results.model.get(_NAME)
    if share is None or share.failed:
        return
    if share.value is None:
        yield Finding(
            "note",
            f"Whether gradients lie on a direction in which the data do not vary was not measured: {share.note}.",
            "Audit a data set or tensors of a few hundred small inputs or more, in units of their own; of large images "
            "this is not told.",
        )
        return
    yield judged(
        share,
        _THRESHOLD,
        certain=math.inf if share.note else None,
        above=(
            f"Of the explained gradients, {share.text()} lies on one direction in which the data do not vary: it "
            "decides nothing for data like these, and may have been put there.",
            "Project gradients on the principal components of the data, and compare: what is left is what data show.",
        ),
        unclear=f"Whether the gradients mostly lie on one direction in which the data do not vary cannot be told "
        f"({share.text()}){': ' if share.note else ''}{share.note}.",
        below=f"Little of the gradients lies on one direction in which the data do not vary ({share.text()}), where a "
        "pattern could be laid over them unseen.",
    )


OFF_MANIFOLD_GRADIENT = Figure(
    name=_NAME,
    title="gradient off the data",
    better="lower is better",
    meaning="Share of the explained gradient's squared length, with centered logits, on the one direction without data "
    f"that the gradients share most; networks trained on the data have less than {_THRESHOLD:g}, a manipulation as "
    "long as their own gradient adds up to a half.",
    against=f"above {_THRESHOLD:g}",
    measure=_measure,
    findings=_findings,
    identity=lambda setting: described(_pool(setting)),
)
