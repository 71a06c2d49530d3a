"""Can I trust this model's gradients? `captum_density.audit(model, data)` measures it, and says what follows."""

import inspect
import sys
from types import ModuleType

from captum_density.audit._audit import audit as audit
from captum_density.audit._audit import check_names as check_names  # for the command line, and not in __all__
from captum_density.audit._methods import Method as Method
from captum_density.audit._recommendation import Recommendation as Recommendation
from captum_density.audit._report import AuditReport as AuditReport
from captum_density.audit._results import Control as Control
from captum_density.audit._results import Finding as Finding
from captum_density.audit._results import Measured as Measured
from captum_density.audit._retraining import Retraining as Retraining

__all__ = ["AuditReport", "Control", "Finding", "Measured", "Method", "Recommendation", "Retraining", "audit"]


def __dir__() -> list[str]:
    return __all__


class _CallableModule(ModuleType):
    """So that `captum_density.audit(...)` is `captum_density.audit.audit(...)`."""

    __call__ = staticmethod(audit)


__signature__ = inspect.signature(audit)
sys.modules[__name__].__class__ = _CallableModule
