"""Measure attribution methods on one model side by side: completeness, infidelity, sensitivities and time."""

from captum_density.audit._audit import audit as audit
from captum_density.audit._methods import Method as Method
from captum_density.audit._report import AuditReport as AuditReport
from captum_density.audit._report import MethodReport as MethodReport

__all__ = ["AuditReport", "Method", "MethodReport", "audit"]
