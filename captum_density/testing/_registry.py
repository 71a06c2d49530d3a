"""A check, the failures it reports, and the error that reports them all, by cause."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from captum_density.testing._attributor import Attributor
from captum_density.testing._models import MODELS, Case
from captum_density.testing._violations import RAISED, Violation, located

CheckFunction = Callable[[Attributor, Case], Iterator[Violation]]
_MOST = 3  # failures of a cause that the error's text shows


class Failure(NamedTuple):
    """One check that failed. See `check_attribution`.

    Args:
        check: Its name.
        where: On which model, and with what.
        expected: What the law asks for.
        received: What came instead.
        mend: What usually mends it.
        cause: The same text for failures that are of one cause, in whichever checks.
    """

    check: str
    where: str
    expected: str
    received: str
    mend: str
    cause: str = ""


@dataclass(frozen=True, eq=False)
class Check:
    """One law, checked on each of its models where the attributor offers all it needs; `mend` is the usual remedy."""

    name: str
    law: str
    mend: str
    function: CheckFunction
    needs: Sequence[str] = ()
    models: Sequence[str] = tuple(MODELS)

    def run(self, attributor: Attributor) -> list[Failure] | None:
        """The failures, or None where the check does not apply."""
        names = [name for name in self.models if name in attributor.models]
        if not names or not all(map(attributor.offers, self.needs)):
            return None
        return [failure for name in names for failure in self._run_on(attributor, name)]

    def _run_on(self, attributor: Attributor, name: str) -> Iterator[Failure]:
        violations: list[Violation] = []
        try:
            violations.extend(self.function(attributor, attributor.case(name)))
        except Exception as error:
            violations.append(Violation("no exception", located(error), cause=attributor.cause(error, name)))
        for expected, received, where, cause in violations:
            where = f"{name}, {where}" if where else name
            yield Failure(self.name, where, expected, received, self.mend, cause or f"{received} for {expected}")


def check(mend: str, *, needs: Sequence[str] = (), models: Sequence[str] = tuple(MODELS)) -> Callable[..., Check]:
    """Make a check of a generator of violations on one case, whose name is the check's and whose docstring the law."""

    def make(function: CheckFunction) -> Check:
        return Check(function.__name__, function.__doc__ or "", mend, function, needs, models)

    return make


class ConformanceError(AssertionError):
    """An attributor broke a law; `failures` holds every `Failure`. See `check_attribution`.

    Args:
        attributor: Its name.
        failed: Each check that failed to its failures.
        ran: How many checks ran.
    """

    def __init__(self, attributor: str, failed: Mapping[Check, Sequence[Failure]], ran: int):
        self.failures = tuple(failure for failures in failed.values() for failure in failures)
        causes = _by_cause(failed)
        words = "one cause" if len(causes) == 1 else f"{len(causes)} causes"
        lines = [f"{attributor} fails {len(failed)} of {ran} checks, of {words}"]
        for checks in causes:
            lines += ["", *_report(checks, [failure for check in checks for failure in failed[check]])]
        lines += ["", f"To leave checks out: skip={tuple(check.name for check in failed)!r}"]
        super().__init__("\n".join(lines))


def _by_cause(failed: Mapping[Check, Sequence[Failure]]) -> list[list[Check]]:
    """The checks that failed, those together that have a cause in common, each group where its first one stood."""
    order = list(failed)
    groups: list[tuple[list[Check], set[str]]] = []
    for check, failures in failed.items():
        checks, causes = [check], {failure.cause for failure in failures}
        for related in [group for group in groups if group[1] & causes]:
            groups.remove(related)
            checks, causes = checks + related[0], causes | related[1]
        groups.append((sorted(checks, key=order.index), causes))
    return sorted((checks for checks, _ in groups), key=lambda checks: order.index(checks[0]))


def _report(checks: Sequence[Check], failures: Sequence[Failure]) -> Iterator[str]:
    """The lines on checks that failed of one cause."""
    first, *others = checks
    yield f"{first.name}: {first.law}"
    for failure in failures[:_MOST]:
        yield f"  on {failure.where}"
        yield f"    expected: {failure.expected}"
        yield f"    received: {failure.received}"
    if len(failures) > _MOST:
        yield f"  and {len(failures) - _MOST} more like these in .failures"
    if others:
        yield f"  of the same cause fail: {', '.join(check.name for check in others)}"
    raised = others and failures[0].cause.startswith(RAISED)
    yield f"  to mend it: {'find out what raises there' if raised else first.mend}"
