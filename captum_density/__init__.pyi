"""For type checkers: namespaces that are loaded when they are named, of which `audit` can be called."""

from types import ModuleType

from captum_density import attr as attr
from captum_density import datasets as datasets
from captum_density import density as density
from captum_density import ground_truth as ground_truth
from captum_density import losses as losses
from captum_density import metrics as metrics
from captum_density import plots as plots
from captum_density import retraining as retraining
from captum_density import rewriting as rewriting
from captum_density import rules as rules
from captum_density import samplers as samplers
from captum_density import softmax_shift as softmax_shift
from captum_density import testing as testing
from captum_density.audit import AuditReport as _AuditReport
from captum_density.audit import Control as _Control
from captum_density.audit import Finding as _Finding
from captum_density.audit import Measured as _Measured
from captum_density.audit import Method as _Method
from captum_density.audit import Recommendation as _Recommendation
from captum_density.audit import Retraining as _Retraining
from captum_density.audit import audit as _audit

__version__: str

class _Audit(ModuleType):
    AuditReport = _AuditReport
    Control = _Control
    Finding = _Finding
    Measured = _Measured
    Method = _Method
    Recommendation = _Recommendation
    Retraining = _Retraining
    audit = staticmethod(_audit)
    __call__ = staticmethod(_audit)

audit: _Audit
