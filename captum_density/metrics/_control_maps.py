"""Maps that know nothing of a model's reasons, for any metric of attributions."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_density._controls.maps import (
    ANOTHER_EXAMPLE,
    BLOB,
    CONSTANT,
    EDGES,
    INPUT,
    SPECTRUM,
    centred_blob,
    edges,
    other_examples,
    same_spectrum,
)
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import BaselineType, TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.generators import derived_seed
from captum_density._model.refusals import refuse_where
from captum_density._model.validation import expanded_baselines

__all__ = ["control_maps"]

_TIES = 1e-3


@takes_arrays
def control_maps(
    inputs: TensorOrTupleOfTensorsGeneric,
    attributions: TensorOrTupleOfTensorsGeneric | None = None,
    baselines: BaselineType = None,
    target: TargetType = None,
    *,
    seed: int = 0,
) -> dict[str, TensorOrTupleOfTensorsGeneric]:
    """Maps that know nothing of a model's reasons: what a metric says of them, it must not be proud of.

    A metric that ranks a method above chance may rank a blob in the centre higher still, where objects are centred. So
    measure these as well, and see how far the method is beyond the strongest (`compare_with_controls`).

    ==============================  ==================================================================================
    "a constant map"                1 everywhere
    "a blob in the centre"          a Gaussian whose deviation is a quarter of each side, of images and signals
    "an edge detector"              the length of the gradient of brightness by Sobel's filter, of images
    "the input itself"              the inputs' absolute difference from the baselines
    "a random map of its spectrum"  random phases with the power spectrum of the attributions' absolute values, so as
                                    smooth or as rough as these, of images and signals
    "another example's map"         the attributions of another example, of another target where there are enough
    ==============================  ==================================================================================

    The last two are made of the method's own attributions, and left out without these. The map of the same network at
    random weights is `random_weights_map`.

    Args:
        inputs: Floating-point tensor (N, ...) or tuple of such. Of token ids, give what the method attributes to, such
            as embeddings (N, T, D).
        attributions: The method's, (N, ...) or a tuple of such.
        baselines: As `group_perturbation`.
        target: As Captum's, (N,) where examples have different ones; which of them are others' is seen by it.
        seed: Of what is random, the same on every device.

    Returns:
        By name, maps of the inputs' shapes, (N, ...), or of the attributions' for those that are made of them; none is
        below 0 but another example's. So that a metric that ranks breaks their ties at random and not by position, up
        to a thousandth of the largest value is added to each element of the first four. Of several inputs, those that a
        control has no form for, such as a table beside an image, are constant in it.

    Raises:
        TypeError: Inputs or attributions that are not floating-point.
        ValueError: Inputs or attributions that are empty, not finite, or unequally many; baselines that do not fit.

    References:
        J. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292 (edge detector, input);
        the others are ours.

    Example:
        >>> import torch
        >>> x = torch.rand(4, 3, 8, 8)
        >>> maps = control_maps(x, x - 0.5, target=torch.tensor([0, 0, 1, 1]))
        >>> len(maps), maps["an edge detector"].shape == x.shape
        (6, True)
        >>> list(control_maps(torch.rand(4, 5)))
        ['a constant map', 'the input itself']
    """
    xs = _checked(inputs, "inputs")
    several = isinstance(inputs, tuple)
    differences: list[Tensor] = [
        (x.detach() - fill).abs() for x, fill in zip(xs, expanded_baselines(baselines, xs), strict=True)
    ]
    common: dict[str, list[Tensor | None]] = {
        CONSTANT: [torch.ones_like(x) for x in xs],
        BLOB: [centred_blob(x) for x in xs],
        EDGES: [edges(x.detach()) for x in xs],
        INPUT: [*differences],
    }
    maps = {
        name: tuple(
            _without_ties(torch.ones_like(x) if each is None else each, x, derived_seed(seed, name, i))
            for i, (x, each) in enumerate(zip(xs, parts, strict=True))
        )
        for name, parts in common.items()
        if any(each is not None for each in parts)
    }
    if attributions is not None:
        own = _checked(attributions, "attributions")
        if len(own[0]) != len(xs[0]):
            raise ValueError(f"there are attributions of {len(own[0])} examples, but {len(xs[0])} inputs; give all")
        maps |= _of_attributions(own, target, seed)
    result: dict[str, Any] = {name: parts if several else parts[0] for name, parts in maps.items()}
    return result


def _of_attributions(own: tuple[Tensor, ...], target: TargetType, seed: int) -> dict[str, tuple[Tensor, ...]]:
    maps = {}
    if any(each.ndim > 2 for each in own):
        maps[SPECTRUM] = tuple(_random_phases(each, derived_seed(seed, SPECTRUM, i)) for i, each in enumerate(own))
    if len(own[0]) > 1:
        partners = other_examples(_classes(target, own[0]), derived_seed(seed, ANOTHER_EXAMPLE))
        maps[ANOTHER_EXAMPLE] = tuple(each.detach()[partners] for each in own)
    return maps


def _checked(values: Any, name: str) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = values if isinstance(values, tuple) else (values,)
    for part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            raise TypeError(f"{name} must be floating-point tensors; of token ids give the embeddings")
        if part.ndim < 2 or part.numel() == 0 or len(part) != len(parts[0]):
            shapes = ", ".join(str(tuple(each.shape)) for each in parts)
            raise ValueError(f"{name} must be (N, ...), not empty and equally many, but have shapes {shapes}")
        refuse_where(~part.isfinite().all(), partial(ValueError, f"{name} contain NaN or infinity"))
    return parts


def _without_ties(values: Tensor, x: Tensor, seed: int) -> Tensor:
    """Of the shape and type of x, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    values = values.double().expand_as(x)
    return (values + _TIES * values.flatten(1).amax(1).view(-1, *(1 for _ in x.shape[1:])) * noise).to(x.dtype)


def _random_phases(attributions: Tensor, seed: int) -> Tensor:
    """Of images, whose channels are ranked together, one map for all channels; constant of what has no space."""
    if attributions.ndim < 3:
        return torch.ones_like(attributions)
    values = attributions.detach().double().abs()
    channels = attributions.shape[1] if attributions.ndim == 4 else 1
    drawn = same_spectrum(values.sum(1, keepdim=True) if channels > 1 else values, seed) / channels
    return drawn.to(attributions.dtype).expand_as(attributions).contiguous()


def _classes(target: TargetType, values: Tensor) -> Tensor:
    """(N,) equal where targets are; all equal where one target is for all."""
    n = len(values)
    if isinstance(target, Tensor) and target.numel() == n:
        return target.flatten().to(values.device)
    if isinstance(target, list) and len(target) == n:
        numbers = {each: number for number, each in enumerate(dict.fromkeys(target))}
        return torch.tensor([numbers[each] for each in target], device=values.device)
    return torch.zeros(n, dtype=torch.long, device=values.device)
