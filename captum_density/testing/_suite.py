"""The checks in their order, and the function that runs them."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from captum.attr import Attribution
from torch import nn

from captum_density.testing import _arguments, _form, _interplay
from captum_density.testing._attributor import Attributor
from captum_density.testing._globals import preserved
from captum_density.testing._models import MODELS, Inputs
from captum_density.testing._registry import Check, ConformanceError, Failure
from captum_density.testing._state import RESTORATION

__all__ = ["attribution_checks", "check_attribution"]

# Whatever these files make a check, in the order in which they stand.
_DECORATED = [
    value for module in (_form, _arguments, _interplay) for value in vars(module).values() if isinstance(value, Check)
]
CHECKS = {check.name: check for check in (*_DECORATED, *RESTORATION)}
# What Captum's own methods say whenever they are handed plain tensors, as these checks must.
EXPECTED_WARNINGS = (
    r"Input Tensor \d+ did not already require gradients",
    r"\s*Setting forward, backward hooks and attributes on non-linear",
    r"Setting backward hooks on ReLU activations",
)


def attribution_checks() -> dict[str, str]:
    """The checks that `check_attribution` knows.

    Returns:
        The law each check holds an attributor to, by the check's name, in the order in which they run.

    Example:
        >>> import torch
        >>> attribution_checks()["batch_independence"]
        'A batch of N gives the numbers of N batches of one.'
    """
    return {name: check.law for name, check in CHECKS.items()}


def check_attribution(
    make_attribution: Callable[[nn.Module], Attribution] | Attribution,
    *,
    checks: Collection[str] | None = None,
    skip: Collection[str] = (),
    models: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    attribute_kwargs: Mapping[str, Any] | Callable[[Inputs], Mapping[str, Any]] | None = None,
    stochastic: bool = False,
) -> tuple[str, ...]:
    """Hold a Captum attributor to what Captum's users rely on, as scikit-learn's `check_estimator` does estimators.

    Each check runs on small built-in models, with random weights: an MLP, a CNN with batch norm and dropout, a sequence
    model that permutes its input, one of two inputs with additional forward arguments, and one whose output is
    (N, 4, 3). A check on something that the attributor's `attribute` does not take (`target`,
    `additional_forward_args`) or does not offer (a convergence delta) does not run. The caller's random state and
    torch's global settings are left as they were.

    Args:
        make_attribution: The attributor's class, such as `Saliency`; or a function from a model to the attributor, such
            as `lambda model: IntegratedGradients(model, multiply_by_inputs=False)`; or an attributor of any model,
            which is made anew for each of the built-in ones. Of a Layer or Neuron method the class, such as
            `LayerIntegratedGradients`, or a function from a model and a layer: it is asked about a layer of each model,
            and has that layer's shapes, or about a neuron of it.
        checks: Names of the checks to run; all of `attribution_checks()` by default.
        skip: Names of checks to leave out.
        models: Names of the built-in models to use, of "mlp", "cnn", "sequence", "two_inputs" and "many_outputs"; all
            by default. A method for images alone takes `models=("cnn",)`.
        device: Where models and inputs are.
        attribute_kwargs: Further arguments of every call of `attribute`, such as `{"n_steps": 8}`; or a function that
            makes them from the inputs (a tensor or a tuple), such as a baseline of the inputs' shape or a fresh
            `torch.Generator`.
        stochastic: Declares that the method draws from the global random generators. The suite then seeds them before
            each call, lets their state move, and leaves out what sampling cannot promise.

    Returns:
        The names of the checks that ran, all of which passed.

    Raises:
        ConformanceError: An AssertionError that lists, for every cause of failures, the law that is broken, on which
            model, what was expected and received, what usually mends it, and the other checks that fail of it.
        ValueError: For an unknown name in `checks`, `skip` or `models`.
        TypeError: If `make_attribution` makes no Captum `Attribution` of a model: a model, for example.

    Example:
        Captum's own methods pass but for what `CAPTUM_DEPARTURES` says of them:

        >>> import torch
        >>> from captum.attr import Saliency
        >>> ran = check_attribution(Saliency, checks=("output_form", "target_forms", "hooks_after_raising_model"))
        >>> ran
        ('output_form', 'target_forms', 'hooks_after_raising_model')
    """
    selection = _names("checks", checks, CHECKS) - _names("skip", skip, CHECKS)
    model_names = _names("models", models, MODELS)
    torch_device = torch.device(device)
    ran: list[str] = []
    failed: dict[Check, list[Failure]] = {}
    with preserved(torch_device), warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        attributor = Attributor(make_attribution, model_names, torch_device, attribute_kwargs or {}, stochastic)
        for check in CHECKS.values():
            failures = check.run(attributor) if check.name in selection else None
            if failures is not None:
                ran.append(check.name)
            if failures:
                failed[check] = failures
    if failed:
        raise ConformanceError(attributor.name, failed, len(ran))
    return tuple(ran)


def _names(argument: str, names: Collection[str] | None, known: Mapping[str, object]) -> set[str]:
    """The names, each of them known; all where None is given."""
    if names is None:
        return set(known)
    unknown = {names} if isinstance(names, str) else set(names).difference(known)
    if unknown:
        raise ValueError(f"{argument} takes a collection of {', '.join(known)}; received {', '.join(sorted(unknown))}")
    return set(names)
