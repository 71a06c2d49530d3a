"""Read by mypy, not run: how a type checker sees `captum_density.audit`, which is a package and can be called.

`warn_unused_ignores` makes each ignored line below an error where mypy finds nothing wrong with it.
"""

import torch
from captum.attr import Saliency
from typing_extensions import assert_type

import captum_density
from captum_density.audit import AuditReport, Method, audit


def calls(model: torch.nn.Module, x: torch.Tensor) -> None:
    assert_type(captum_density.audit(model, x, ["Saliency"], limit=3), AuditReport)
    assert_type(audit(model, x, {"Saliency": Method(Saliency)}), AuditReport)
    assert_type(captum_density.audit.audit(model, x), AuditReport)
    assert_type(captum_density.audit.Method(Saliency), Method)
    captum_density.audit(model)  # type: ignore[call-arg]
    captum_density.audit(model, x, limits=3)  # type: ignore[call-arg]
    captum_density.audit(model, x, limit="3")  # type: ignore[arg-type]


def namespaces(model: torch.nn.Module) -> None:
    assert_type(captum_density.attr.FullGrad(model), captum_density.attr.FullGrad)
    captum_density.nothing  # type: ignore[attr-defined] # noqa: B018
