"""How long it takes to attribute all examples."""

import time
from statistics import median, stdev

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel
from captum_density.audit._results import Measured

__all__ = ["SECONDS"]

# So many passes are timed, or fewer that take so long together; one that took this long is not repeated.
_PASSES, _TOGETHER, _LONG = 3, 1.0, 10.0


def _measure(explanation: Explanation) -> Measured:
    setting, first = explanation.setting, explanation.first_pass
    times = [first] if first > _LONG else []
    while not times or (first <= _LONG and len(times) < _PASSES and sum(times) < _TOGETHER):
        start = time.perf_counter()
        for at in setting.chunks():
            explanation.attribute_rows(at)
        times.append(setting.elapsed(start))
    return Measured(median(times), stdev(times) if len(times) > 1 else None)


SECONDS = Figure(
    name="seconds",
    title="seconds",
    better="lower is better",
    meaning="Time to attribute all examples.",
    measure=_measure,
    panel=Panel(logarithmic=True),
)
