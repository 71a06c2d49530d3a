"""Can I trust this model's gradients? `captum_density.audit(model, data)` measures it, and says what follows."""

import sys
from types import ModuleType
from typing import Any

from captum_density.audit._audit import audit as audit
from captum_density.audit._catalogue import check_names as check_names  # for the command line, and not in __all__
from captum_density.audit._measures import Measured as Measured
from captum_density.audit._methods import Method as Method
from captum_density.audit._report import AuditReport as AuditReport
from captum_density.audit._setting import Retraining as Retraining
from captum_density.audit._summary import Finding as Finding

__all__ = ["AuditReport", "Finding", "Measured", "Method", "Retraining", "audit"]


class _CallableModule(ModuleType):
    """So that `captum_density.audit(...)` is `captum_density.audit.audit(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> AuditReport:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
