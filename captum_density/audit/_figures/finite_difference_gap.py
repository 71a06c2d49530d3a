"""Whether the model's outputs change as their gradients promise."""

from collections.abc import Iterator

from captum_density import metrics
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.words import judged
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["FINITE_DIFFERENCE_GAP"]

_NAME = "finite_difference_gap"
_CHANGES = (0.003, 0.01, 0.03, 0.1)  # of the outputs' standard deviation
# Networks, smooth or not, have less; waves as steep as the output itself leave half of what gradients promise.
_THRESHOLD = 0.12


def _measure(setting: Setting) -> Measured:
    spread = setting.logits.double().std(unbiased=False).item()
    if spread == 0:
        return Measured(None, note="the outputs are all the same")
    gaps = metrics.finite_difference_gap(
        setting.model,
        setting.inputs,
        setting.target,
        changes=[change * spread for change in _CHANGES],
        max_examples_per_batch=setting.batch,
        **setting.arguments(),
    )
    return of_examples(gaps, seed=setting.seed)


def _findings(results: Results) -> Iterator[Finding]:
    gap = results.model.get(_NAME)
    if gap is None or gap.value is None:
        return
    yield judged(
        gap,
        _THRESHOLD,
        above=(
            f"The explained output does not change as its gradient promises: along it, the smallest changes that "
            f"matter differ from the promise by {gap.text()} of it. The gradient holds in a neighbourhood too small "
            "to matter, as of waves laid over the output.",
            "Use methods that average over a neighbourhood, as NoiseTunnel with a deviation larger than the waves, or "
            "that compare outputs, as Occlusion and IntegratedGradients with many steps.",
        ),
        unclear=f"Whether outputs change as gradients promise cannot be told ({gap.text()}).",
        below=f"The explained output changes as its gradient promises (up to {gap.text()} of it).",
    )


FINITE_DIFFERENCE_GAP = Figure(
    name=_NAME,
    title="gradient against differences",
    better="lower is better",
    meaning="How far the explained output's change along its gradient is from what the gradient promises, as a share "
    f"of it, for changes of {_CHANGES[0]:g} to {_CHANGES[-1]:g} of the outputs' deviation, whichever is worst; "
    f"networks have less than {_THRESHOLD:g}, waves as steep as the output itself a half.",
    measure=_measure,
    findings=_findings,
)
