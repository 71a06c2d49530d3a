"""What a method attributes when the model's weights are random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from captum_density._model.arrays import as_tensors, takes_arrays
from captum_density._model.attribution import attribute_function, attribution_maker
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import differentiable
from captum_density._model.generators import replayable
from captum_density._model.random_weights import RandomWeights
from captum_density.metrics._attribution_rows import attribution_rows

__all__ = ["attributions_and_weights", "random_weights_map"]


@takes_arrays
def random_weights_map(
    make_attribution: Any,
    model: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    top: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Any:
    """What a method attributes when the model's weights are drawn anew: a control that has all but what was learned.

    `parameter_randomisation` asks how alike this map and the method's are; beside `control_maps`, it asks what a metric
    says of it.

    Args:
        make_attribution: As `parameter_randomisation`.
        model: As `parameter_randomisation`.
        inputs: As `parameter_randomisation`.
        target: As `parameter_randomisation`.
        additional_forward_args: As `parameter_randomisation`.
        top: How many layers have other weights, those nearest to the output; None for all.
        seed: Of the weights.
        kwargs: As `parameter_randomisation`.

    Returns:
        As the method returns: attributions like the inputs, detached.

    Raises:
        ValueError: As `parameter_randomisation`; `top` is below 1 or above the number of layers.
        TypeError: As `shift_sensitivity`.

    References:
        J. Adebayo et al., arXiv:1810.03292, as `parameter_randomisation`.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(50, 3), torch.randn(2, 50)
        >>> drawn = random_weights_map(InputXGradient, model, x, target=0)
        >>> drawn.shape == x.shape, torch.allclose(drawn, x * model.weight[0])
        (True, False)
    """
    session = attributions_and_weights(make_attribution, model, inputs, target, additional_forward_args, seed, kwargs)
    with session as (batch, weights, attributions):
        if top is not None and not 1 <= top <= len(weights):
            raise ValueError(f"top must be in 1..{len(weights)}, the number of layers with weights, but is {top}")
        with weights.drawn_anew(top):
            maps = as_tensors(attributions())
        attribution_rows(maps, batch.n)  # for what it refuses
    return tuple(each.detach() for each in maps) if isinstance(maps, tuple) else maps.detach()


@contextmanager
def attributions_and_weights(
    make_attribution: Any,
    model: Callable[..., Any],
    inputs: Any,
    target: TargetType,
    additional_forward_args: object,
    seed: int,
    options: dict[str, Any],
) -> Iterator[tuple[ModelOnBatch, RandomWeights, Callable[[], Any]]]:
    """Within, a function that attributes, each time with the same random numbers, and weights to put in their place.

    Raises:
        ValueError: The model has no weights, or the target does not fit.
        TypeError: As `shift_sensitivity`.
    """
    batch: ModelOnBatch = ModelOnBatch(
        model, inputs, target, additional_forward_args, differentiable=False, name="model"
    )
    make = attribution_maker(make_attribution, "make_attribution", model=model)
    options = {"target": target, "additional_forward_args": additional_forward_args, **options}
    options = {name: value for name, value in options.items() if value is not None}
    with (
        replayable(batch.device) as rewind,
        torch.inference_mode(False),
        torch.enable_grad(),
        batch.evaluation(),
        differentiable(model, batch.device),
    ):

        def attributions() -> Any:
            rewind()
            copies = tuple(x.detach().clone() for x in batch.inputs)
            return attribute_function(make(model), "make_attribution(model)")(batch.in_form(copies), **options)

        if target is not None:  # some methods need none
            with torch.no_grad():
                batch.selected()  # for what it refuses
        first, *others = batch.inputs_of(slice(0, 1))
        weights = RandomWeights(model, first, seed, (*others, *(batch.args_of(slice(0, 1)) or ())))
        if not len(weights):
            raise ValueError("the model has no weights that can be drawn anew; give the module that has them")
        yield batch, weights, attributions
