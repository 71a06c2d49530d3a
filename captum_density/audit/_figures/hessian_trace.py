"""Whether data lie on peaks or in valleys of the density in the logits; told beside the density ratio."""

from captum_density.audit._figures.figure import Figure, of_examples
from captum_density.audit._figures.obstacles import no_density
from captum_density.audit._results import Measured
from captum_density.audit._setting import Setting
from captum_density.density import hessian_trace

__all__ = ["HESSIAN_TRACE"]


def _measure(setting: Setting) -> Measured:
    traces = hessian_trace(
        setting.remembered,
        setting.inputs,
        setting.target,
        n_samples=setting.budget.trace_samples,
        noise_std=setting.noise_std,
        generator=setting.generator(),
        max_examples_per_batch=setting.batch,
        **setting.arguments(),
    )
    return of_examples(traces, seed=setting.seed)


HESSIAN_TRACE = Figure(
    name="hessian_trace",
    title="Hessian trace",
    better="below 0 is right",
    meaning="Trace of the explained logit's Hessian by the input, at the scale of the noise; below 0 data lie on "
    "peaks of the density, above 0 in its valleys.",
    measure=_measure,
    obstacle=no_density,
)
