"""Whether the model's outputs change as their gradients promise."""

from collections.abc import Iterator

import torch

from captum_density import metrics
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.words import judged
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["FINITE_DIFFERENCE_GAP"]

_NAME = "finite_difference_gap"
_CHANGES = (0.003, 0.01, 0.03, 0.1)  # of the outputs' standard deviation
# Of networks, smooth or not, up to 0.12 is missing; waves as steep as the output itself take a half, and of a linear
# model, whose outputs vary most, a fifth.
_THRESHOLD = 0.18
_NOTHING = 1e-6  # of a typical gradient's length: a shorter one promises nothing
_ROUNDING = 0.1  # of a change: as much may be rounding, which is of any sign


def _measure(setting: Setting) -> Measured:
    spread = setting.logits.double().std(unbiased=False).item()
    if spread == 0:
        return Measured(None, note="the outputs are all the same")
    lengths = setting.gradients.flatten(1).double().norm(dim=1)
    if not lengths.any():
        return Measured(None, note="the gradients are zero")
    rounding = torch.finfo(setting.logits.dtype).eps * setting.logits.abs().max().item()
    changes = [change * spread for change in _CHANGES if rounding < _ROUNDING * change * spread]
    if not changes:
        return Measured(None, note="in outputs so large, and so alike, small changes are rounded away")
    # Of a saturated example, a step that promises as much as others' would lead far away: no step is much longer than
    # theirs, it promises less, and counts by what it promises.
    promises = (lengths * lengths.sum() / lengths.square().sum()).clamp(_NOTHING, 1)
    missing = metrics.finite_difference_gap(
        setting.remembered,
        setting.inputs,
        setting.target,
        changes=torch.tensor(changes, device=promises.device)[:, None] * promises,
        signed=True,
        max_examples_per_batch=setting.batch,
        **setting.arguments(),
    )
    promises = promises.masked_fill(promises == _NOTHING, 0)
    shares = missing.double() * promises / promises.mean()
    return of_examples(shares[shares.mean(dim=1).argmax()], seed=setting.seed)


def _findings(results: Results) -> Iterator[Finding]:
    gap = results.model.get(_NAME)
    if gap is None or gap.value is None:
        return
    yield judged(
        gap,
        _THRESHOLD,
        above=(
            f"The explained output does not change as its gradient promises: along it, {gap.text()} of the smallest "
            "changes that matter is missing. The gradient holds in a neighbourhood too small "
            "to matter, as of waves laid over the output.",
            "Use methods that average over a neighbourhood, as NoiseTunnel with a deviation larger than the waves, or "
            "that compare outputs, as Occlusion and IntegratedGradients with many steps.",
        ),
        unclear=f"Whether outputs change as gradients promise cannot be told ({gap.text()}).",
        below=f"Small steps along the gradient change the explained output as the gradient promises "
        f"({f'at most {gap.text()}' if gap.value > 0 else 'none'} of the change is missing).",
    )


FINITE_DIFFERENCE_GAP = Figure(
    name=_NAME,
    title="gradient against differences",
    better="lower is better",
    meaning="How much is missing of the changes that the explained output's gradients promise along themselves, as a "
    f"share of all that is promised; for changes of {_CHANGES[0]:g} to {_CHANGES[-1]:g} of the outputs' deviation "
    f"where gradients are largest, whichever is worst. Networks have less than {_THRESHOLD:g}, waves as steep as the "
    "output itself a half; below 0, outputs change more than promised.",
    against=f"above {_THRESHOLD:g}",
    measure=_measure,
    findings=_findings,
)
