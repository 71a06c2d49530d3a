"""The conformance suite behind `captum_density.testing.check_attribution`."""

from captum_density._conformance._departures import CAPTUM_DEPARTURES as CAPTUM_DEPARTURES
from captum_density._conformance._registry import ConformanceError as ConformanceError
from captum_density._conformance._registry import Failure as Failure
from captum_density._conformance._run import attribution_checks as attribution_checks
from captum_density._conformance._run import check_attribution as check_attribution

__all__ = ["CAPTUM_DEPARTURES", "ConformanceError", "Failure", "attribution_checks", "check_attribution"]
