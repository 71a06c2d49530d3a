"""How much of what the labels vary a regression foretells: if nothing, there is nothing to explain."""

from collections.abc import Iterator

import torch

from captum_density._display.intervals import Bootstrap, interval
from captum_density.audit._figures.figure import Figure
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["R_SQUARED", "predicts_better_than_the_mean"]

_NAME = "r_squared"
_RESAMPLES = 2000


def _measure(setting: Setting) -> Measured:
    if setting.labels is None:
        return Measured(None, note=setting.no_labels)
    place = setting.target[:, None]
    labels, outputs = (values.gather(1, place)[:, 0].double().cpu() for values in (setting.labels, setting.logits))
    parts = torch.stack([(labels - outputs).square(), (labels - labels.mean()).square()])
    if not bool(parts[1].any()):
        return Measured(None, note="the labels are all the same")
    errors, variances = Bootstrap(1, len(labels), _RESAMPLES, setting.seed).means(parts[:, None])
    values = 1 - errors / variances.clamp(min=torch.finfo(torch.float64).tiny)
    ((low, high),) = interval(values[None], 0.95).tolist()
    return Measured((1 - parts[0].sum() / parts[1].sum()).item(), low=low, high=high)


def predicts_better_than_the_mean(results: Results) -> bool | None:
    """Whether the interval is above 0, or all of it below; None where it cannot be told."""
    figure = results.model.get(_NAME)
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    return True if figure.low > 0 else False if figure.high <= 0 else None


def _findings(results: Results) -> Iterator[Finding]:
    figure = results.model.get(_NAME)
    if figure is None or figure.value is None or figure.low is None:
        return
    if predicts_better_than_the_mean(results) is False:
        yield Finding(
            "warning",
            f"The model predicts these labels no better than their mean (R squared {figure.text()}).",
            "Check that labels and outputs have one unit and inputs are preprocessed as in training, or train it: "
            "there is no knowledge of these data to explain.",
        )
    elif predicts_better_than_the_mean(results) is None:
        yield Finding("note", f"Whether the model predicts these labels cannot be told (R squared {figure.text()}).")


R_SQUARED = Figure(
    name=_NAME,
    title="R squared",
    better="higher is better",
    meaning="Share of the labels' variance that the explained output foretells; 0 of a model that says their mean.",
    against="at 0 or below",
    measure=_measure,
    task="regression",
    findings=_findings,
)
