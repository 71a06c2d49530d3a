"""Controls: maps that know nothing of the model's reasons, measured in a method's place.

Common ones are measured once for all methods; others are made of a method's own map, and measured for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from captum_density._controls.comparison import gains_over
from captum_density._controls.maps import (
    ANOTHER_EXAMPLE,
    BLOB,
    CONSTANT,
    EDGES,
    INPUT,
    RANDOM_WEIGHTS,
    SPECTRUM,
    centred_blob,
    edges,
    other_examples,
    same_spectrum,
)
from captum_density._model.generators import derived_seed
from captum_density._model.random_weights import RandomWeights
from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density.audit._explanation import Explanation
from captum_density.audit._results import Control
from captum_density.audit._runs import Runs
from captum_density.audit._setting import Setting

__all__ = [
    "ANOTHER_EXAMPLE",
    "BLOB",
    "CONSTANT",
    "EDGES",
    "INPUT",
    "NO_WEIGHTS",
    "RANDOM_WEIGHTS",
    "SPECTRUM",
    "another_examples_map",
    "common_maps",
    "compared",
    "importance",
    "map_at_random_weights",
    "of_same_spectrum",
    "random_weights",
]

NO_WEIGHTS = "the model has no weights that can be drawn anew"


def common_maps(setting: Setting) -> dict[str, Tensor]:
    """Maps that no method made, (N, ...) or (N, 1, H, W) each, by name.

    A Gaussian in the centre, whose deviation is a quarter of each side, of images and signals; the Sobel filter's
    magnitude, of images; and the inputs' absolute values.
    """
    x = setting.inputs
    maps = {INPUT: x.abs(), BLOB: centred_blob(x), EDGES: edges(x)}
    return {name: each for name, each in maps.items() if each is not None}


def importance(setting: Setting, attributions: Tensor) -> Tensor:
    """(N, 1, H, W) float64 of images, whose channels are ranked together, and (N, ...) of others: what is ranked."""
    values = attributions.detach().double().abs()
    return values.sum(dim=1, keepdim=True) if setting.has_channels else values


def of_same_spectrum(setting: Setting, attributions: Tensor) -> Tensor:
    """Maps at random with the power spectrum of each map's absolute values, as `same_spectrum`."""
    return same_spectrum(importance(setting, attributions), derived_seed(setting.seed, "phases"))


def another_examples_map(setting: Setting, attributions: Tensor) -> Tensor:
    """Each example's map from another example, of another explained class wherever there are enough of them."""
    seed = derived_seed(setting.seed, "another example")
    return attributions[setting.shared("another example", lambda: other_examples(setting.target, seed))]


def random_weights(setting: Setting) -> RandomWeights:
    """The model's layers, with other weights to put in their place."""
    return setting.shared(
        "random weights",
        lambda: RandomWeights(
            setting.model,
            setting.inputs[:1],
            derived_seed(setting.seed, "random weights"),
            setting.arguments(slice(1)).get("additional_forward_args", ()),
        ),
    )


def map_at_random_weights(explanation: Explanation, top: int | None = None) -> Tensor:
    """What the method says of the same examples and classes when the topmost layers' weights are drawn anew.

    Args:
        explanation: The method.
        top: How many layers; None for all.

    Raises:
        ValueError: The model has no weights to draw, or the map is not finite.
    """

    def attribute() -> Tensor:
        runs, weights = explanation.setting.runs, random_weights(explanation.setting)
        if not len(weights):
            raise ValueError(NO_WEIGHTS)
        with looked_at_together(), weights.drawn_anew(top), _other_weights(runs, len(weights) if top is None else top):
            attributions = explanation.attribute_all()
            refuse_where(~attributions.isfinite().all(), lambda: ValueError("the map at random weights is not finite"))
        return attributions

    return explanation.shared(("random weights", top), attribute)


@contextmanager
def _other_weights(runs: Runs | None, layers: int) -> Iterator[None]:
    """Within, the model's runs are told from those with its own weights."""
    if runs is not None:
        runs.weights = layers
    try:
        yield
    finally:
        if runs is not None:
            runs.weights = 0


def compared(
    values: Tensor, controls: dict[str, Tensor], seed: int, *, lower_is_better: bool = False
) -> tuple[Control, ...]:
    """A method's figure beside those of the controls, the strongest first. See `gains_over`."""
    return tuple(Control(*gain) for gain in gains_over(values, controls, seed, lower_is_better=lower_is_better))
