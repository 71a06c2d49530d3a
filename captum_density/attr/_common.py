"""What FullGrad and its variants have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from captum.attr import Attribution, GradientAttribution
from torch import Tensor

from captum_density._linear.maps import InputMaps, Placement
from captum_density._linear.sweep import Reduction, Sweep, per_example, sweep
from captum_density._model.captum import TargetType, format_tensor_into_tuples
from captum_density._model.errors import warn
from captum_density._model.modules import is_fully_sharded
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import check_model
from captum_density.attr._repr import given, shown

__all__ = [
    "FullGradAttribution",
    "check_placed",
    "check_share",
    "delta",
    "finish",
    "positions",
    "refuse_sharded",
    "warn_of_places",
    "warn_of_unreached",
    "without_floor",
]

R = TypeVar("R")


class FullGradAttribution(GradientAttribution):
    """A model, no baseline, attributions in the inputs' form.

    Args:
        model: As `FullGrad`.
        layer: As `FullGrad`.
        forward_func: As `FullGrad`.
        layout: As `FullGrad`.
        keep_floor: As `FullGrad`.
    """

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *layer: NoReturn,
        forward_func: Callable[..., Any] | None = None,
        layout: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        keep_floor: bool = False,
    ) -> None:
        name = type(self).__name__
        if layer:
            raise TypeError(
                f"{name} explains inputs and takes one model; for what a layer returns or takes there is LayerFullGrad("
                "model, layer), for a neuron NeuronFullGrad(model, layer); all settings are passed by name"
            )
        if model is not None and forward_func is not None:
            raise TypeError(f"model and forward_func are two names of one argument; pass {name}(model)")
        model = forward_func if model is None else model
        check_model(model, "model")
        super().__init__(model)
        self.layout, self.keep_floor = layout, keep_floor

    def __repr__(self) -> str:
        return shown(self, self.forward_func, **given(layout=self.layout, keep_floor=self.keep_floor))

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
        refuse_sharded(self)
        xs = inputs if isinstance(inputs, tuple) else (inputs,)
        tensors = all(isinstance(x, Tensor) for x in xs)  # anything else is refused by the sweep
        layout = positions(self.layout, xs) if self.layout is not None and tensors else None
        return sweep(
            self.forward_func, inputs, target, additional_forward_args, reduction, create_graph, layout, unchecked
        )


def refuse_sharded(attribution: Attribution) -> None:
    """Refuse a model whose weights are gone when they are read.

    Raises:
        NotImplementedError: `fully_shard` was applied to it.
    """
    if is_fully_sharded(attribution.forward_func):
        raise NotImplementedError(
            f"{type(attribution).__name__} reads a layer's weights after it has run, when fully_shard has freed them; "
            "explain the model as it was before that, or in FullyShardedDataParallel or DistributedDataParallel"
        )


def check_share(min_placed: float | None) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: It is not in [0, 1].
    """
    if min_placed is not None and not 0 <= min_placed <= 1:
        raise ValueError(f"min_placed is a share of |terms|, in [0, 1], but is {min_placed!r}")


def positions(layout: Any, inputs: tuple[Tensor, ...]) -> list[tuple[int, ...] | None]:
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


def warn_of_places(placement: Placement, name: str = "FullGrad(model)", on: str = "the inputs") -> None:
    """Say so where more than half of |terms| has no place, but for dense networks over flat features.

    Args:
        placement: What has a place.
        name: The attribution, for the message.
        on: What the place is on.
    """
    share = float(placement.unplaced_size().sum() / placement.size.sum().clamp(min=1e-300))
    if share > 0.5 and (culprit := placement.culprit()):
        warn(
            f"{share:.0%} of |terms| has no place on {on}, most of it since {culprit}, and is spread evenly: the sum "
            f"is right, but where it lies says little; {name}.decompose lists the terms, and BalancedGradients leaves "
            "fewer of them on biases"
        )


def check_placed(placement: Placement, min_placed: float | None, on: str = "the inputs") -> None:
    """Refuse what is placed too little, as `warn_of_places`.

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
            f"{float(placed[least]):.0%} of example {least}'s |terms| has a place on {on}, less than "
            f"min_placed={min_placed:g}{f'; most is lost at {culprit}' if culprit else ''}; lower min_placed, say the "
            "layout if the model does not show it, or explain BalancedGradients(model)"
        )


def warn_of_unreached(maps: InputMaps, name: str = "FullGrad(model)", on: str = "the inputs") -> None:
    """Say so where no bias term reaches a saliency map, but for dense networks over flat features.

    Args:
        maps: The maps.
        name: As `warn_of_places`.
        on: As `warn_of_places`.
    """
    if maps.lost:
        warn(
            f"no bias term has a place on {on} since {maps.lost}, so this map is that of the terms of {on} alone; "
            f"{name}.decompose lists the others, and complete=True spreads them"
        )


def delta(attributions: Any, output: Tensor) -> Tensor:
    """(N,) sum of the attributions minus f(x)."""
    parts = (per_example(a.to(accumulation_dtype(a))) for a in format_tensor_into_tuples(attributions))
    return (sum(parts, torch.zeros_like(output)) - output).to(output.dtype)


def without_floor(maps: Sequence[Tensor], keep_floor: bool) -> Sequence[Tensor]:
    """Saliency maps less each example's smallest value, of all of them, unless it is to be kept."""
    if keep_floor:
        return maps
    floor = torch.stack([m.flatten(1).amin(1) for m in maps]).amin(0)
    return [m - floor.view(-1, *[1] * (m.ndim - 1)) for m in maps]


def finish(maps: Sequence[Tensor], inputs: Tensor | tuple[Tensor, ...]) -> Any:
    """Contiguous, of the inputs' dtypes, in the inputs' form."""
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    finished = tuple(m.to(x.dtype).contiguous() for m, x in zip(maps, xs, strict=True))
    return finished if isinstance(inputs, tuple) else finished[0]
