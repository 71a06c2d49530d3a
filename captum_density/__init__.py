"""Find out whether a model's gradients can be trusted as explanations: FullGrad and its family, beside Captum."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded when they are first named, so that `import captum_density` is quick and `captum_density.audit(...)` works.
_NAMESPACES = (
    "attr",
    "audit",
    "datasets",
    "density",
    "losses",
    "metrics",
    "plots",
    "retraining",
    "rewriting",
    "samplers",
    "softmax_shift",
    "testing",
)


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMESPACES])
