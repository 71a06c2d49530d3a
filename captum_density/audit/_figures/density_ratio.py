"""Whether the density in the logits takes noise for likelier than the data."""

from collections.abc import Iterator

from captum_density import metrics
from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.obstacles import no_density
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["DENSITY_RATIO"]

_NOISE_SAMPLES = 10


def _measure(setting: Setting) -> Measured:
    ratios = metrics.density_ratio(
        setting.remembered,
        setting.inputs,
        setting.noise_std,
        target=setting.target,
        n_perturb_samples=_NOISE_SAMPLES,
        generator=setting.generator(),
        max_examples_per_batch=setting.batch,
        **setting.arguments(),
    )
    return of_examples(ratios, seed=setting.seed)


def _findings(results: Results) -> Iterator[Finding]:
    ratio, trace = results.model.get("density_ratio"), results.model.get("hessian_trace")
    if ratio is None or ratio.value is None:
        return
    evidence = f"log density ratio {ratio.text()}"
    if trace is not None and trace.value is not None:
        evidence += f", Hessian trace {trace.text()}"
    if ratio.low is not None and ratio.low > 0:
        yield Finding(
            "warning",
            f"To the density in the logits, which says how likely inputs are, data with noise added are likelier than "
            f"the data ({evidence}): its gradients point away from what the classes look like.",
            "Train with captum_density.losses.ScoreMatchingLoss or GradientNormLoss added to the cross-entropy.",
        )
    elif ratio.high is not None and ratio.high < 0:
        yield Finding(
            "good",
            f"To the density in the logits, which says how likely inputs are, data with noise added are less likely "
            f"than the data, as they ought to be ({evidence}).",
        )
    else:
        yield Finding(
            "note",
            "Whether the density in the logits, which says how likely inputs are, prefers the data to data with noise "
            f"added cannot be told ({evidence}).",
        )


DENSITY_RATIO = Figure(
    name="density_ratio",
    title="log density ratio at noise",
    better="below 0 is right",
    meaning="log p(x + noise | y) - log p(x | y) of the density in the logits; above 0, it takes noise for likelier "
    "than the data, and its gradients point towards noise.",
    against="above 0",
    measure=_measure,
    obstacle=no_density,
    findings=_findings,
)
