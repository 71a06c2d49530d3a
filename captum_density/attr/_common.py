"""What FullGrad and its variants have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from captum.attr import GradientAttribution
from torch import Tensor

from captum_density._linear.maps import SaliencyMaps, over_channels, rescaled
from captum_density._linear.sweep import Sweep, sweep
from captum_density._model.captum import TargetType, format_output, format_tensor_into_tuples
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_model

__all__ = ["FullGradAttribution", "as_tuple", "finish", "products_of", "saliency_maps"]


class FullGradAttribution(GradientAttribution):
    """What the three have in common: a model, no baseline, attributions in the inputs' form."""

    def __init__(self, model: Callable[..., Any]) -> None:
        check_model(model, "model")
        super().__init__(model)

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the input term is gradient times input."""
        return True

    def _sweep(
        self,
        inputs: tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        make_consumer: Callable[[], Any],
        create_graph: bool,
    ) -> list[tuple[Sweep, Any]]:
        return sweep(self.forward_func, inputs, target, additional_forward_args, make_consumer, create_graph)


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    if not isinstance(inputs, (Tensor, tuple)) or (isinstance(inputs, tuple) and not inputs):
        raise TypeError(f"inputs must be a tensor or a non-empty tuple of tensors, but is {type(inputs).__name__}")
    return format_tensor_into_tuples(inputs)


def finish(is_tuple: bool, maps: Sequence[Tensor], inputs: tuple[Tensor, ...]) -> Any:
    """Contiguous, of the inputs' dtype, in the inputs' form."""
    return format_output(is_tuple, tuple(m.to(x.dtype).contiguous() for m, x in zip(maps, inputs, strict=True)))


def products_of(result: Sweep) -> list[Tensor]:
    dtype = accumulation_dtype(*result.inputs)
    return [g.to(dtype) * x.to(dtype) for g, x in zip(result.gradients, result.inputs, strict=True)]


def saliency_maps(products: Sequence[Tensor], inputs: Sequence[Tensor], consumer: SaliencyMaps) -> list[Tensor]:
    """psi of the input terms plus psi of the bias terms, the latter shared out over the channels."""
    maps = []
    for index, product in enumerate(products):
        own, placed = rescaled(product), consumer.on_input(index)
        maps.append(own if placed is None else own + over_channels(placed, consumer.source(index, inputs[index])))
    return maps
