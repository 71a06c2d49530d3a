"""How long it takes to attribute all examples."""

from statistics import median, stdev

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel
from captum_density.audit._results import Measured

__all__ = ["SECONDS"]


def _measure(explanation: Explanation) -> Measured:
    _ = explanation.attributions
    times = explanation.times  # of the passes that other figures made, last of the columns
    return Measured(median(times), stdev(times) if len(times) > 1 else None)


SECONDS = Figure(
    name="seconds",
    title="seconds",
    better="lower is better",
    meaning="Time to attribute all examples.",
    measure=_measure,
    panel=Panel(logarithmic=True),
)
