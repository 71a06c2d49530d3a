"""Attribution methods as `audit` takes them: functions of the model, which it calls for more than one."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

__all__ = ["Made", "Method", "named"]


@dataclass(frozen=True)
class Method:
    """An attribution method: how to make it for a model, and the options to call it with.

    Args:
        make: Takes a model, returns a Captum attribution on it: a class (``IntegratedGradients``), or a function such
            as ``lambda model: NoiseTunnel(Saliency(model))``.
        options: Keyword arguments of its ``attribute`` beside ``inputs`` and ``target``, such as ``nt_samples``.
        multiplies_by_inputs: Whether a feature's attribution is its contribution (IntegratedGradients) and not a
            slope (Saliency); infidelity compares the two differently. None asks the attribution itself.
        view: Takes the model, returns what of it is explained, such as `captum_density.softmax_shift.CenteredLogits`.
            The attribution is made for the view, and infidelity is measured on the view's output. None: the model
            itself.

    Raises:
        TypeError: ``make`` or ``view`` is not a function of a model: an attribution already made, for example.

    Example:
        >>> import torch
        >>> from captum.attr import NoiseTunnel, Saliency
        >>> from captum_density.audit import audit
        >>> from captum_density.softmax_shift import CenteredLogits
        >>> noisy = Method(lambda model: NoiseTunnel(Saliency(model)), {"nt_samples": 10, "stdevs": 0.1})
        >>> centered = Method(Saliency, {"abs": False}, view=CenteredLogits)
        >>> report = audit(torch.nn.Linear(3, 2), torch.rand(8, 3), {"noisy": noisy, "centered": centered})
        >>> [figures["shift_sensitivity"].value < 1e-6 for figures in report.methods.values()]
        [False, True]
    """

    make: Callable[[Any], Attribution]
    options: Mapping[str, Any] = field(default_factory=dict)
    multiplies_by_inputs: bool | None = None
    view: Callable[[Any], Callable[..., Tensor]] | None = None

    def __post_init__(self) -> None:
        made = self.make if isinstance(self.make, Attribution | nn.Module) else getattr(self.make, "__self__", None)
        if isinstance(made, Attribution | nn.Module) or not callable(self.make):
            raise TypeError(
                "a method must be a function of the model, as it is made for other models too, but is "
                f"{described(self.make)}; pass the class, such as IntegratedGradients, or a function, such as `lambda "
                "model: NoiseTunnel(Saliency(model))`"
            )
        if self.view is not None and (not callable(self.view) or isinstance(self.view, nn.Module)):
            raise TypeError(
                f"view must be a function of the model, such as CenteredLogits, but is {described(self.view)}"
            )


def named(methods: Mapping[str, Callable[[Any], Attribution] | Method]) -> dict[str, Method]:
    """Every method as a `Method`, or an error that names the one which is none."""
    found = {}
    for name, value in methods.items():
        if not isinstance(name, str):
            raise TypeError(f"attributions must have texts for names, but one is {name!r}")
        try:
            found[name] = value if isinstance(value, Method) else Method(value)
        except TypeError as error:
            raise TypeError(f"attributions[{name!r}]: {error}") from error
    return found


class Made:
    """A method made for the audited model, once for all measurements but one, which needs it for another model.

    Args:
        name: As in the report.
        method: How to make it.
        model: What is audited.
        batch: Most examples that should run at once.
    """

    def __init__(self, name: str, method: Method, model: Callable[..., Tensor], batch: int) -> None:
        self.name = name
        self.model = model
        self.method = method
        self.explained = self._viewed(model)
        self.attribution = self._make(self.explained)
        self.options = {**_frugal(self.attribution, batch), **method.options}
        declared = method.multiplies_by_inputs
        self.multiplies_by_inputs = bool(self.attribution.multiplies_by_inputs if declared is None else declared)

    def attribute_of(self, model: Callable[..., Tensor]) -> Callable[..., Any]:
        """The attribute function for the audited model, or for another one."""
        if model is self.model:
            return self.attribution.attribute
        return self._make(self._viewed(model)).attribute

    def _viewed(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.method.view is None:
            return model
        view = self.method.view(model)
        return view.eval() if isinstance(view, nn.Module) else view

    def _make(self, explained: Callable[..., Tensor]) -> Attribution:
        attribution = self.method.make(explained)
        if not isinstance(attribution, Attribution):
            raise TypeError(
                f"attributions[{self.name!r}] must make a captum.attr.Attribution for a model, but made "
                f"{described(attribution)}"
            )
        return attribution


def _frugal(attribution: Attribution, batch: int) -> dict[str, Any]:
    """Options by which Captum's methods run no more copies of the examples at once than there are examples."""
    taken = inspect.signature(attribution.attribute).parameters
    options = {"internal_batch_size": batch}
    if not attribution.has_convergence_delta():  # NoiseTunnel's deltas of samples in parts are in another order
        options["nt_samples_batch_size"] = 1
    return {name: value for name, value in options.items() if name in taken}


def described(value: object) -> str:
    return value.__name__ if isinstance(value, type) else f"an object of class {type(value).__name__}"
