"""Whether the model predicts the labels of what is audited: if not, there is nothing to explain."""

from collections.abc import Iterator

from captum_density.audit._figures.figure import Figure, measured_share
from captum_density.audit._results import Finding, Measured, Results
from captum_density.audit._setting import Setting

__all__ = ["ACCURACY", "predicts_better_than_chance"]

_NAME = "accuracy"


def _measure(setting: Setting) -> Measured:
    if setting.labels is None:
        return Measured(None, note=setting.no_labels)
    return measured_share(int((setting.predicted == setting.labels).sum()), len(setting.labels))


def predicts_better_than_chance(results: Results) -> bool | None:
    """Whether the interval of the accuracy is above chance, or not all of it below; None where it cannot be told."""
    figure = results.model.get(_NAME)
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return None
    chance = 1 / max(2, results.settings["classes"])
    if figure.low > chance:
        return True
    return None if figure.high > chance and figure.value > chance else False


def _findings(results: Results) -> Iterator[Finding]:
    figure = results.model.get(_NAME)
    if figure is None:
        return
    if figure.value is None:
        if figure.note and not figure.failed:
            yield Finding("note", f"There is no accuracy: {figure.note}.")
    elif predicts_better_than_chance(results) is False:
        yield Finding(
            "warning",
            f"The model predicts these labels no better than chance (accuracy {figure.text()}).",
            "Check that labels and outputs have one order and inputs are preprocessed as in training, or train it: "
            "there is no knowledge of these data to explain.",
        )
    elif predicts_better_than_chance(results) is None and figure.low is not None:
        yield Finding("note", f"Whether the model predicts these labels cannot be told (accuracy {figure.text()}).")


ACCURACY = Figure(
    name=_NAME,
    title="accuracy",
    better="higher is better",
    meaning="Share of the audited examples whose label is predicted.",
    against="at chance",
    measure=_measure,
    task="classification",
    findings=_findings,
)
