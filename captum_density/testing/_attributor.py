"""The attributor under test: how a check calls it, with just the arguments that its signature names."""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from captum.attr import Attribution, LayerAttribution, NeuronAttribution
from torch import Tensor, nn

from captum_density._model.attribution import attribution_maker, attribution_of, parameters_of
from captum_density._model.errors import describe
from captum_density.testing._globals import seeded
from captum_density.testing._models import MODELS, Case, Inputs, build_case, layer_of
from captum_density.testing._violations import (
    NAN,
    RAISED,
    SHAPES,
    Violation,
    as_tuple,
    raised_at,
    relative_gap,
    shapes,
)


class Attributor:
    """What `check_attribution` was given, and what the checks make of it: cases, calls and comparisons.

    Raises:
        TypeError: If `method` makes no Captum `Attribution` of a model.
    """

    def __init__(
        self,
        method: Any,
        models: Collection[str],
        device: torch.device,
        attribute_kwargs: Mapping[str, Any] | Callable[[Inputs], Mapping[str, Any]],
        stochastic: bool,
    ):
        self._make = _maker(method)
        self.device, self.stochastic, self.attribute_kwargs = device, stochastic, attribute_kwargs
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.tolerance = 1e-4 if self.dtype == torch.float32 else 1e-6
        self._malformed: set[str] = set()  # models whose attributions were of other shapes than their inputs
        self.memory: dict[Any, Any] = {}  # for what several checks need
        sample = self.make(self.case("mlp").model)
        self.name = type(sample).__name__
        self.is_of_layer = isinstance(sample, LayerAttribution)
        self.parameters = inspect.signature(sample.attribute).parameters
        self.has_delta = bool(sample.has_convergence_delta())
        with_args = self.offers("additional_forward_args")
        self.models = {name for name in models if with_args or not MODELS[name].has_args}

    def make(self, model: nn.Module) -> Attribution:
        """The attribution of a model."""
        attribution = self._make(model)
        if isinstance(attribution, MethodType):
            attribution = attribution_of(attribution) or attribution
        if not isinstance(attribution, Attribution):
            raise TypeError(
                "make_attribution must turn a model into a captum.attr.Attribution, whose convergence delta and "
                f"further methods are checked too, but it returned {describe(attribution)}; pass the attributor's "
                "class, or a function of the model that returns an instance, and options as attribute_kwargs"
            )
        return attribution

    def offers(self, feature: str) -> bool:
        """Whether it has "determinism", a "convergence delta", attributions "to inputs", an argument of `attribute`."""
        if feature == "determinism":
            return not self.stochastic
        if feature == "to inputs":
            return not self.is_of_layer
        if feature == "convergence delta":
            return self.has_delta
        return feature in self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def case(self, name: str, fuse: str = "") -> Case:
        """A fresh case of the named model, the same each time."""
        with seeded(self.device):
            return build_case(name, self.device, self.dtype, fuse)

    def like(self, case: Case) -> Inputs:
        """What attributions have the shapes of: the inputs, or the tensor that the layer returns."""
        if not self.is_of_layer:
            return case.inputs
        outputs: list[Tensor] = []
        handle = layer_of(case.model).register_forward_hook(lambda module, args, output: outputs.append(output))
        with torch.no_grad():
            case.output()
        handle.remove()
        return outputs[0]

    def kwargs(self, case: Case) -> dict[str, Any]:
        """The keyword arguments of a call."""
        options = self.attribute_kwargs(case.inputs) if callable(self.attribute_kwargs) else self.attribute_kwargs
        kwargs = dict(options)
        if self.offers("target"):
            kwargs["target"] = case.target
        if "neuron_selector" in self.parameters:
            kwargs["neuron_selector"] = MODELS[case.name].neuron
        if case.args is not None:
            kwargs["additional_forward_args"] = case.args
        return kwargs

    def attribute(self, case: Case, attribution: Attribution | None = None, *, seed: int = 0, **extra: Any) -> Any:
        """The attributor's answer, with the generators seeded before and put back after."""
        attribution = self.make(case.model) if attribution is None else attribution
        kwargs = {**self.kwargs(case), **extra}
        with seeded(self.device, seed):
            result = attribution.attribute(case.inputs, **kwargs)
        if "return_convergence_delta" not in extra:
            if shapes(result) != shapes(self.like(case)):
                self._malformed.add(case.name)
            if not all(isinstance(item, Tensor) for item in as_tuple(result)):
                raise TypeError(f"attribute returned {describe(result)}, which is no tensor and no tuple of tensors")
        return result

    def cause(self, error: BaseException, name: str) -> str:
        """Of an exception on the named model: where nothing of the author's raised it, ill-formed attributions."""
        line, is_own = raised_at(error)
        return SHAPES if name in self._malformed and not is_own else f"{RAISED}{line}"

    def compare(self, expected: Any, received: Any, law: str, where: str = "") -> Iterator[Violation]:
        """A violation if the two differ by more than rounding."""
        gap = relative_gap(received, expected)
        if gap > self.tolerance:
            expectation = f"{law}, within {self.tolerance:.0e} of its largest value"
            if shapes(received) != shapes(expected):
                yield Violation(expectation, f"shapes {shapes(received)} for {shapes(expected)}", where, SHAPES)
            else:
                yield Violation(expectation, f"{gap:.1e} apart", where, NAN if math.isinf(gap) else "")


def _maker(method: Any) -> Callable[[nn.Module], Any]:
    """A function of a model; of a class or function that also takes a layer, with the layer of the built-in models."""
    if isinstance(method, type):
        of_layer = issubclass(method, LayerAttribution | NeuronAttribution)
    else:
        required = [p for p in parameters_of(method).values() if p.default is p.empty and p.kind in _POSITIONAL]
        of_layer = inspect.isfunction(method) and len(required) == 2
    if not of_layer:
        return attribution_maker(method, "make_attribution")

    def make(model: nn.Module) -> Any:
        attribution = method(model, layer_of(model))
        return method(model, layer_of(model, True)) if isinstance(attribution, NeuronAttribution) else attribution

    return make


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
