"""For tests of attributors, yours as ours: a conformance suite, an assertion of completeness, random networks."""

from captum_density.testing._completeness import assert_complete as assert_complete
from captum_density.testing._departures import CAPTUM_DEPARTURES as CAPTUM_DEPARTURES
from captum_density.testing._networks import Problem as Problem
from captum_density.testing._networks import networks as networks
from captum_density.testing._registry import ConformanceError as ConformanceError
from captum_density.testing._registry import Failure as Failure
from captum_density.testing._suite import attribution_checks as attribution_checks
from captum_density.testing._suite import check_attribution as check_attribution

__all__ = [
    "CAPTUM_DEPARTURES",
    "ConformanceError",
    "Failure",
    "Problem",
    "assert_complete",
    "attribution_checks",
    "check_attribution",
    "networks",
]


def __dir__() -> list[str]:
    return __all__
