"""Attribution methods as `audit` takes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._model.attribution import attribution_maker
from captum_density._model.errors import describe

__all__ = ["CENTERED", "Method"]

CENTERED = ", centered"  # ends the name of a method that explains centered logits


@dataclass(frozen=True)
class Method:
    """An attribution method: how to make it for a model, and the options to call it with.

    Args:
        make: Takes a model, returns a Captum attribution on it: a class (``IntegratedGradients``), or a function such
            as ``lambda model: NoiseTunnel(Saliency(model))``. Or an attribution of the audited model, such as
            ``Saliency(model)``, or its ``attribute``, which is made anew for a view or another model.
        options: Keyword arguments of its ``attribute`` beside ``inputs`` and ``target``, such as ``nt_samples``.
        multiplies_by_inputs: Whether a feature's attribution is its contribution (IntegratedGradients) and not a
            slope (Saliency); infidelity compares the two differently. None asks the attribution itself.
        view: Takes the model, returns what of it is explained, such as `captum_density.softmax_shift.CenteredLogits`.
            The attribution is made for the view, and infidelity is measured on the view's output. None: the model
            itself.

    Raises:
        TypeError: ``make`` is neither an attribution nor a function of a model, or ``view`` is no such function.

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

    make: Callable[..., Any] | Attribution
    options: Mapping[str, Any] = field(default_factory=dict)
    multiplies_by_inputs: bool | None = None
    view: Callable[[Any], Callable[..., Tensor]] | None = None

    def __post_init__(self) -> None:
        attribution_maker(self.make, "make")
        if self.view is not None and (not callable(self.view) or isinstance(self.view, nn.Module)):
            raise TypeError(
                f"view must be a function of the model, such as CenteredLogits, but is {describe(self.view)}"
            )
