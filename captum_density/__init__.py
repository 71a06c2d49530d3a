"""Find out whether a model's gradients can be trusted as explanations: FullGrad and its family, beside Captum.

`captum_density.audit(model, data)` asks that of a model in one call. Wherever tensors are taken, NumPy arrays are too,
and give tensors; wherever data sets are, so are DataLoaders. The namespaces:

- `attr`: attribution methods beside Captum's: FullGrad and its family, path methods, attention.
- `audit`: the audit, which is called as a function, what it takes and what it returns.
- `rules`: balanced views of a model, on whose gradients any Captum method explains transformers, too.
- `metrics`: what attributions and models are worth: retraining, perturbation, shifts, axioms, densities.
- `softmax_shift`: what is added to all logits moves gradients and no prediction; shifts, and the cure.
- `density`: the density hidden in a classifier, its scores and Hessian traces.
- `losses`: training for gradients that explain, or that mislead, and distillation by Jacobians.
- `samplers`: samples of that density.
- `retraining`: many small models trained on whatever computes, which ROAR and DiffROAR stand on.
- `rewriting`: a network as another that computes the same function.
- `datasets`: images and tables to try an explanation on; in some, the part that matters is known.
- `ground_truth`: tasks of which it is known what decides, and what methods and metrics make of them.
- `plots`: pictures of attributions, samples, curves and erased attention.
- `testing`: checks of attributors of your own, and networks to run them on.
"""

import importlib as _importlib
from types import ModuleType as _ModuleType

__version__ = "0.1.0"

# Loaded when they are first named, so that `import captum_density` is quick and `captum_density.audit(...)` works.
# Type checkers read __init__.pyi instead.
_NAMESPACES = (
    "attr",
    "audit",
    "datasets",
    "density",
    "ground_truth",
    "losses",
    "metrics",
    "plots",
    "retraining",
    "rewriting",
    "rules",
    "samplers",
    "softmax_shift",
    "testing",
)


def __getattr__(name: str) -> _ModuleType:
    if name in _NAMESPACES:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__doc__", "__version__", *_NAMESPACES]
