"""What attributions lack of the sum that their method promises."""

from collections.abc import Iterator

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import listed, span, verb
from captum_density.audit._results import Finding, Measured, Results, values_by_method

__all__ = ["COMPLETENESS_GAP"]

_NAME = "completeness_gap"
_INCOMPLETE = 0.05  # of the sum: the second decimal of a figure that is read


def _measure(explanation: Explanation) -> Measured:
    attributions, delta = explanation.attributions, explanation.deltas
    if delta is None:
        return Measured(None, note="the method promises no sum")
    ought = attributions.flatten(1).sum(dim=1) - delta
    # Nothing of nothing is missing: an input that is the baseline.
    return of_examples((delta.abs() / ought.abs()).masked_fill((delta == 0) & (ought == 0), 0).double())


def _findings(results: Results) -> Iterator[Finding]:
    gaps = values_by_method(results, _NAME)
    incomplete = {name: gap for name, gap in gaps.items() if gap > _INCOMPLETE}
    complete = {name: gap for name, gap in gaps.items() if gap <= _INCOMPLETE}
    rows = [figures[_NAME] for figures in results.methods.values() if _NAME in figures]
    if incomplete:
        yield Finding(
            "warning",
            f"{listed([*incomplete])} {verb('miss', incomplete)} part of what the attributions ought to sum to (gap "
            f"{span(incomplete.values())}).",
            "Give integrated gradients more n_steps, or use FullGrad(complete=True), which is exact for any model.",
        )
    if complete:
        yield Finding(  # in favour of nothing, as there is no control that could not be scaled to the sum
            "note",
            f"{listed([*complete])} {verb('account', complete)} for what is explained (gap {span(complete.values())}).",
            "Any map can be scaled to the right sum: whether its parts are right, other figures tell.",
        )
    elif rows and not incomplete and not any(measured.failed for measured in rows):
        yield Finding(
            "note",
            "None of the methods promises a sum.",
            "captum_density.attr.FullGrad(complete=True) sums to the output.",
        )


COMPLETENESS_GAP = Figure(
    name=_NAME,
    title="completeness gap",
    better="lower is better",
    meaning="Share of what the attributions ought to sum to that is missing or too much; '-' where a method promises "
    "no sum. Any map can be scaled to have none.",
    against=f"above {_INCOMPLETE:g}",
    measure=_measure,
    findings=_findings,
    priority=3,
    panel=Panel(logarithmic=True),
)
