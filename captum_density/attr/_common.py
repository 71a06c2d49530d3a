"""What FullGrad and its variants have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from captum.attr import GradientAttribution
from torch import Tensor

from captum_density._linear.sweep import Reduction, Sweep, sweep
from captum_density._model.captum import TargetType
from captum_density._model.modules import is_fully_sharded
from captum_density._model.validation import check_model
from captum_density.attr._repr import shown

__all__ = ["FullGradAttribution", "finish"]

R = TypeVar("R")


class FullGradAttribution(GradientAttribution):
    """A model, no baseline, attributions in the inputs' form.

    Args:
        model: As `FullGrad`.
        layer: As `FullGrad`.
        forward_func: As `FullGrad`.
    """

    def __init__(
        self, model: Callable[..., Any] | None = None, *layer: NoReturn, forward_func: Callable[..., Any] | None = None
    ) -> None:
        name = type(self).__name__
        if layer:
            raise TypeError(
                f"{name} explains inputs and takes one model; there is no form for a layer, as Captum's Layer methods "
                f"are: to explain what a layer returns, pass {name} the part of the model after it; all settings are "
                "passed by name"
            )
        if model is not None and forward_func is not None:
            raise TypeError(f"model and forward_func are two names of one argument; pass {name}(model)")
        model = forward_func if model is None else model
        check_model(model, "model")
        super().__init__(model)

    def __repr__(self) -> str:
        return shown(self, self.forward_func)

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: the input term is gradient times input."""
        return True

    def _sweep(
        self,
        inputs: Any,
        target: TargetType,
        additional_forward_args: object,
        reduction: Callable[[], Reduction[R]],
        create_graph: bool = False,
    ) -> Sweep[R]:
        if is_fully_sharded(self.forward_func):
            raise NotImplementedError(
                f"{type(self).__name__} reads a layer's weights after it has run, when fully_shard has freed them; "
                "explain the model as it was before that, or in FullyShardedDataParallel or DistributedDataParallel"
            )
        return sweep(self.forward_func, inputs, target, additional_forward_args, reduction, create_graph)


def finish(maps: Sequence[Tensor], inputs: Tensor | tuple[Tensor, ...]) -> Any:
    """Contiguous, of the inputs' dtypes, in the inputs' form."""
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    finished = tuple(m.to(x.dtype).contiguous() for m, x in zip(maps, xs, strict=True))
    return finished if isinstance(inputs, tuple) else finished[0]
