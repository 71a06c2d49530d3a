"""A check, what it reports, and the error that reports all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from captum_density.testing._findings import Finding, brief
from captum_density.testing._models import MODELS, Case
from captum_density.testing._suite import Suite

CheckFunction = Callable[[Suite, Case], Iterator[Finding]]


class Failure(NamedTuple):
    """One check that failed. See `check_attribution`.

    Args:
        check: Its name.
        where: On which model, and with what.
        expected: What the law asks for.
        received: What came instead.
        mend: What usually mends it.
    """

    check: str
    where: str
    expected: str
    received: str
    mend: str


@dataclass(frozen=True, eq=False)
class Check:
    """One law, checked on each of its models where the attributor offers all it needs; `mend` is the usual remedy."""

    name: str
    law: str
    mend: str
    function: CheckFunction
    needs: Sequence[str] = ()
    models: Sequence[str] = tuple(MODELS)

    def run(self, suite: Suite) -> list[Failure] | None:
        """The failures, or None where the check does not apply."""
        names = [name for name in self.models if name in suite.models]
        if not names or not all(map(suite.offers, self.needs)):
            return None
        return [failure for name in names for failure in self._run_on(suite, name)]

    def _run_on(self, suite: Suite, name: str) -> Iterator[Failure]:
        found: list[Finding] = []
        try:
            found.extend(self.function(suite, suite.case(name)))
        except Exception as error:
            found.append(Finding("no exception", brief(error)))
        for expected, received, where in found:
            yield Failure(self.name, f"{name}, {where}" if where else name, expected, received, self.mend)


def check(mend: str, *, needs: Sequence[str] = (), models: Sequence[str] = tuple(MODELS)) -> Callable[..., Check]:
    """Make a check of a generator of findings on one case, whose name is the check's and whose docstring the law."""

    def make(function: CheckFunction) -> Check:
        return Check(function.__name__, function.__doc__ or "", mend, function, needs, models)

    return make


class ConformanceError(AssertionError):
    """An attributor broke a law; `failures` holds every `Failure` found. See `check_attribution`.

    Args:
        attributor: Its name.
        failed: Each check that failed to its failures.
        ran: How many checks ran.
    """

    def __init__(self, attributor: str, failed: Mapping[Check, Sequence[Failure]], ran: int):
        self.failures = tuple(failure for found in failed.values() for failure in found)
        lines = [f"{attributor} fails {len(failed)} of {ran} checks"]
        for broken, found in failed.items():
            lines += ["", f"{broken.name}: {broken.law}"]
            for failure in found[:3]:
                lines += [
                    f"  on {failure.where}",
                    f"    expected: {failure.expected}",
                    f"    received: {failure.received}",
                ]
            if len(found) > 3:
                lines.append(f"  and {len(found) - 3} more like these in .failures")
            lines.append(f"  to mend it: {broken.mend}")
        lines += ["", f"To leave checks out: skip={tuple(broken.name for broken in failed)!r}"]
        super().__init__("\n".join(lines))
