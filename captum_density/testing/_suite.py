"""How a check calls the attributor, with just the arguments its signature names."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from captum.attr import Attribution
from torch import nn

from captum_density.testing._findings import Finding, relative_gap, shapes
from captum_density.testing._globals import seeded
from captum_density.testing._models import MODELS, Case, Inputs, build_case


class Suite:
    """What `check_attribution` was given, and what the checks make of it: cases, calls and comparisons.

    Raises:
        TypeError: If `make` does not return a Captum `Attribution`.
    """

    def __init__(
        self,
        make: Callable[[nn.Module], Attribution],
        models: Collection[str],
        device: torch.device,
        attribute_kwargs: Mapping[str, Any] | Callable[[Inputs], Mapping[str, Any]],
        stochastic: bool,
    ):
        self.make, self.device, self.stochastic, self.attribute_kwargs = make, device, stochastic, attribute_kwargs
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.tolerance = 1e-4 if self.dtype == torch.float32 else 1e-6
        self.memory: dict[Any, Any] = {}  # for what several checks need
        remedy = "pass the attributor's class, or a function of the model"
        if not callable(make):
            raise TypeError(f"make_attribution must be callable, not an attributor ({type(make).__name__}): {remedy}")
        sample = make(self.case("mlp").model)
        if not isinstance(sample, Attribution):
            raise TypeError(
                "make_attribution must turn a model into a captum.attr.Attribution; "
                f"it returned {type(sample)!r}: {remedy}"
            )
        self.name = type(sample).__name__
        self.parameters = inspect.signature(sample.attribute).parameters
        self.has_delta = bool(sample.has_convergence_delta())
        with_args = self.offers("additional_forward_args")
        self.models = {name for name in models if with_args or not MODELS[name].has_args}

    def offers(self, feature: str) -> bool:
        """Whether the attributor has "determinism", a "convergence delta", or an argument of `attribute`."""
        if feature == "determinism":
            return not self.stochastic
        if feature == "convergence delta":
            return self.has_delta
        return feature in self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def case(self, name: str, fuse: str = "") -> Case:
        """A fresh case of the named model, the same each time."""
        with seeded(self.device):
            return build_case(name, self.device, self.dtype, fuse)

    def kwargs(self, case: Case) -> dict[str, Any]:
        """The keyword arguments of a call."""
        given = self.attribute_kwargs(case.inputs) if callable(self.attribute_kwargs) else self.attribute_kwargs
        kwargs = dict(given)
        if self.offers("target"):
            kwargs["target"] = case.target
        if case.args is not None:
            kwargs["additional_forward_args"] = case.args
        return kwargs

    def attribute(self, case: Case, attribution: Attribution | None = None, *, seed: int = 0, **extra: Any) -> Any:
        """The attributor's answer, with the generators seeded before and put back after."""
        attribution = self.make(case.model) if attribution is None else attribution
        kwargs = {**self.kwargs(case), **extra}
        with seeded(self.device, seed):
            return attribution.attribute(case.inputs, **kwargs)

    def compare(self, expected: Any, received: Any, law: str, where: str = "") -> Iterator[Finding]:
        """A finding if the two differ by more than rounding."""
        gap = relative_gap(received, expected)
        if gap > self.tolerance:
            forms = shapes(received), shapes(expected)
            differing = f"{gap:.1e} apart" if forms[0] == forms[1] else f"shapes {forms[0]} for {forms[1]}"
            yield Finding(f"{law}, within {self.tolerance:.0e} of its largest value", differing, where)
