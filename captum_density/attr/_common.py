"""What FullGrad and its variants have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from captum.attr import GradientAttribution
from torch import Tensor

from captum_density._linear.maps import InputMaps, Placement
from captum_density._linear.sweep import Reduction, Sweep, sweep
from captum_density._model.captum import TargetType
from captum_density._model.errors import warn
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
        layout: As `FullGrad`.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *layer: NoReturn,
        forward_func: Callable[..., Any] | None = None,
        layout: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
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
        self.layout = layout

    def __repr__(self) -> str:
        return shown(self, self.forward_func, **({} if self.layout is None else {"layout": self.layout}))

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
        unchecked: list[Tensor] | None = None,
    ) -> Sweep[R]:
        if is_fully_sharded(self.forward_func):
            raise NotImplementedError(
                f"{type(self).__name__} reads a layer's weights after it has run, when fully_shard has freed them; "
                "explain the model as it was before that, or in FullyShardedDataParallel or DistributedDataParallel"
            )
        xs = inputs if isinstance(inputs, tuple) else (inputs,)
        tensors = all(isinstance(x, Tensor) for x in xs)  # anything else is refused by the sweep
        layout = _positions(self.layout, xs) if self.layout is not None and tensors else None
        return sweep(
            self.forward_func, inputs, target, additional_forward_args, reduction, create_graph, layout, unchecked
        )


def _positions(layout: Any, inputs: tuple[Tensor, ...]) -> list[tuple[int, ...] | None]:
    """For each input the dimensions that are positions, from 1 on; None where the model is to show them.

    Raises:
        ValueError: It does not fit the inputs.
    """
    of_each = [layout] if all(isinstance(d, int) for d in layout) else list(layout)
    if len(of_each) == len(inputs):
        pairs = list(zip(of_each, inputs, strict=True))
        dims = [None if own is None else tuple(d % x.ndim if -x.ndim <= d < x.ndim else 0 for d in own)
                for own, x in pairs]  # fmt: skip
        if all(own is None or (own and 0 not in own and len(set(own)) == len(own)) for own in dims):
            return dims
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    raise ValueError(
        f"layout says which dimensions of an input are positions, as (2, 3) for images (N, C, H, W), one such tuple or "
        f"None for each of several inputs; {layout!r} does not fit inputs of shape {shapes}"
    )


def warn_of_places(placement: Placement) -> None:
    """Say so where more than half of |terms| has no place, but for dense networks over flat features."""
    share = float(placement.unplaced_size().sum() / placement.size.sum().clamp(min=1e-300))
    if share > 0.5 and (culprit := placement.culprit()):
        warn(
            f"{share:.0%} of |terms| has no place on the inputs, most of it since {culprit}, and is spread evenly: "
            "the sum is f(x), but where it lies says little; FullGrad(model).decompose lists the terms, and "
            "BalancedGradients leaves fewer of them on biases"
        )


def check_placed(placement: Placement, min_placed: float | None) -> None:
    """Refuse what is placed too little.

    Raises:
        RuntimeError: Of an example, a smaller share of |terms| than `min_placed` has a place.
    """
    if min_placed is None:
        return
    placed = 1 - placement.unplaced_share()
    least = int(placed.argmin())
    if float(placed[least]) < min_placed:
        culprit = placement.culprit()
        raise RuntimeError(
            f"{float(placed[least]):.0%} of example {least}'s |terms| has a place on the inputs, less than "
            f"min_placed={min_placed:g}{f'; most is lost at {culprit}' if culprit else ''}; lower min_placed, say the "
            "layout if the model does not show it, or explain BalancedGradients(model)"
        )


def warn_of_unreached(maps: InputMaps) -> None:
    """Say so where no bias term reaches a saliency map, but for dense networks over flat features."""
    if maps.lost:
        warn(
            f"no bias term has a place on the inputs since {maps.lost}, so this map is that of the inputs' terms "
            "alone; FullGrad(model).decompose lists the others, and FullGrad(model, complete=True) spreads them"
        )


def finish(maps: Sequence[Tensor], inputs: Tensor | tuple[Tensor, ...]) -> Any:
    """Contiguous, of the inputs' dtypes, in the inputs' form."""
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    finished = tuple(m.to(x.dtype).contiguous() for m, x in zip(maps, xs, strict=True))
    return finished if isinstance(inputs, tuple) else finished[0]
