"""Controls: maps that know nothing of the model's reasons, measured in a method's place.

Common ones are measured once for all methods; others are made of a method's own map, and measured for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
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
from captum_density._model.errors import one_line
from captum_density._model.generators import derived_seed
from captum_density._model.random_weights import RandomWeights
from captum_density._model.refusals import looked_at_together, on_host, refuse_where
from captum_density.audit._explanation import Explanation
from captum_density.audit._results import Control
from captum_density.audit._runs import Runs
from captum_density.audit._setting import Setting
from captum_density.density import class_score

__all__ = [
    "ANOTHER_EXAMPLE",
    "BLOB",
    "CONSTANT",
    "DRAWS",
    "EDGES",
    "INPUT",
    "NO_WEIGHTS",
    "RANDOM_WEIGHTS",
    "SPECTRUM",
    "TOO_FEW",
    "Comparison",
    "another_examples_map",
    "common_maps",
    "compared",
    "importance",
    "map_at_random_weights",
    "of_same_spectrum",
    "own_maps",
    "random_weights",
    "reach",
]

NO_WEIGHTS = "the model has no weights that can be drawn anew"

DRAWS = 4  # of weights, for what counts at any of them

TOO_FEW = 10  # examples: below, an interval means little


def common_maps(setting: Setting) -> dict[str, Tensor]:
    """Maps that no method made, (N, ...) or (N, 1, H, W) each, by name.

    A Gaussian in the centre, whose deviation is a quarter of each side, of images and signals; the Sobel filter's
    magnitude, of images; and the inputs.
    """
    x = setting.inputs
    maps = {INPUT: x, BLOB: centred_blob(x), EDGES: edges(x)}
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


def random_weights(setting: Setting, draw: int = 0) -> RandomWeights:
    """The model's layers, with other weights to put in their place; others again for each number of a draw."""
    return setting.shared(
        ("random weights", draw),
        lambda: RandomWeights(
            setting.model,
            setting.inputs[:1],
            derived_seed(setting.seed, "random weights", *([draw] if draw else [])),
            setting.arguments(slice(1)).get("additional_forward_args", ()),
        ),
    )


def reach(setting: Setting) -> Tensor:
    """How much each element counts for the explained output at any weights and inputs, as `importance`.

    The mean of `DRAWS` gradients, each at other random weights and at another example's input; what else belongs to
    the example stays: the region whose outputs are explained, a mask, the token ids. Zeros where gradients fail.
    """

    def measure() -> Tensor:
        total = torch.zeros_like(importance(setting, setting.inputs))
        for draw in range(1, DRAWS + 1):
            inputs, weights = setting.inputs.roll(draw, dims=0), random_weights(setting, draw)
            try:
                with weights.drawn_anew(), _other_weights(setting.runs, draw * (len(weights) + 1)):
                    parts = [
                        class_score(setting.model, inputs[at], setting.target[at], **setting.arguments(at))
                        for at in setting.chunks()
                    ]
            except Exception:  # whatever a model does with other weights, or without gradients
                return torch.zeros_like(total)
            gradient = importance(setting, torch.cat(parts))
            sums = gradient.flatten(1).sum(dim=1).view(-1, *[1] * (gradient.ndim - 1))
            total += gradient / torch.where(sums > 0, sums, 1)
        return total / DRAWS

    return setting.shared("reach", measure)


def map_at_random_weights(explanation: Explanation, top: int | None = None, draw: int = 0) -> Tensor:
    """What the method says of the same examples and classes when the topmost layers' weights are drawn anew.

    Args:
        explanation: The method.
        top: How many layers; None for all.
        draw: As `random_weights`'s.

    Raises:
        ValueError: The model has no weights to draw, or the map is not finite.
    """

    def attribute() -> Tensor:
        runs, weights = explanation.setting.runs, random_weights(explanation.setting, draw)
        if not len(weights):
            raise ValueError(NO_WEIGHTS)
        which = draw * (len(weights) + 1) + (len(weights) if top is None else top)
        with looked_at_together(), weights.drawn_anew(top), _other_weights(runs, which):
            attributions = explanation.attribute_all()
            refuse_where(~attributions.isfinite().all(), lambda: ValueError("the map at random weights is not finite"))
        return attributions

    return explanation.shared(("random weights", top, draw), attribute)


@contextmanager
def _other_weights(runs: Runs | None, which: int) -> Iterator[None]:
    """Within, the model's runs are told from those with its own weights."""
    if runs is not None:
        runs.weights = which
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


def own_maps(explanation: Explanation) -> dict[str, Callable[[], Tensor]]:
    """The controls that are made of a method's own map, the cheapest first."""
    setting, attributions = explanation.setting, explanation.attributions
    maps = {ANOTHER_EXAMPLE: partial(another_examples_map, setting, attributions)}
    if attributions.ndim > 2:
        spectrum = partial(of_same_spectrum, setting, attributions)
        maps[SPECTRUM] = partial(explanation.shared, SPECTRUM, spectrum)
    return {**maps, RANDOM_WEIGHTS: partial(map_at_random_weights, explanation)}


def _reason(error: Exception) -> str:
    """What an error says, without its class, as part of a sentence."""
    return one_line(error).partition(": ")[2] or "the method fails there"


class Comparison:
    """A method's figure beside those of controls, which are added until it is settled.

    Args:
        setting: What all methods share.
        values: (N,) the method's figure.
        reference: (N,) that of `Measured`.
        lower_is_better: As `compared`'s.

    Attributes:
        note: What was not compared, and why.
    """

    def __init__(self, setting: Setting, values: Tensor, reference: Tensor, *, lower_is_better: bool = False) -> None:
        self._setting, self._lower_is_better = setting, lower_is_better
        self._values, self._reference = values, reference
        self._controls: dict[str, Tensor] = {}
        self.note = ""

    def add(self, controls: dict[str, Tensor]) -> None:
        """Compare with further controls, (N,) each."""
        self._controls |= controls

    def add_own(self, maps: dict[str, Callable[[], Tensor]], measure: Callable[[Tensor], Tensor], passes: int) -> None:
        """Compare with controls made of the method's own map, unless the budget spares the map at random weights.

        Args:
            maps: By name, the cheapest first.
            measure: (N,) the figure of such a map.
            passes: How many runs of the model the method takes for an example.
        """
        budget = self._setting.budget
        for name, make in maps.items():
            may_spare = name == RANDOM_WEIGHTS and not budget.needless_controls and budget.spares(passes)
            if may_spare and (settled := self._settled()):
                self.note = f"not compared with {name}, as {settled}"
                return
            try:
                self.add({name: measure(make())})
            except Exception as error:  # whatever a model or a method does with other weights
                if name != RANDOM_WEIGHTS:
                    raise
                self.note = f"not compared with {RANDOM_WEIGHTS}: {_reason(error)}"

    def _settled(self) -> str:
        """Why further controls cannot bring the method in favour; empty where they may."""
        if len(self._values) < TOO_FEW:
            return f"{len(self._values)} examples do not tell"
        level = [control.name for control in self.result()[2] if control.low <= 0]
        return f"{level[0]} is as good" if level else ""

    def result(self) -> tuple[Tensor, Tensor, tuple[Control, ...]]:
        """The method's figure and the reference, (N,) on the CPU, and the controls."""
        own, reference, *others = on_host(torch.stack([self._values, self._reference, *self._controls.values()]))
        controls = dict(zip(self._controls, others, strict=True))
        seed = self._setting.seed
        return own, reference, compared(own, controls, seed, lower_is_better=self._lower_is_better)
