"""Controls: maps that know nothing of the model's reasons, measured in a method's place.

Common ones are measured once for all methods; others are made of a method's own map, and measured for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from captum_density._display.intervals import Bootstrap, interval
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

# As they end a sentence: "no better than a blob in the centre".
CONSTANT = "a constant map"
BLOB = "a blob in the centre"
EDGES = "an edge detector"
INPUT = "the input itself"
SPECTRUM = "a random map of its spectrum"
ANOTHER_EXAMPLE = "another example's map"
RANDOM_WEIGHTS = "its map at random weights"
NO_WEIGHTS = "the model has no weights that can be drawn anew"

_RESAMPLES, _LEVEL = 2000, 0.95


def common_maps(setting: Setting) -> dict[str, Tensor]:
    """Maps that no method made, (N, ...) or (N, 1, H, W) each, by name.

    A Gaussian in the centre, whose deviation is a quarter of each side, of images and signals; the Sobel filter's
    magnitude, of images; and the inputs' absolute values.
    """
    x = setting.inputs
    maps = {INPUT: x.abs()}
    if x.ndim > 2:
        maps[BLOB] = _blob(x)
    if x.ndim == 4 and min(x.shape[2:]) > 1:
        maps[EDGES] = _edges(x)
    return maps


def importance(setting: Setting, attributions: Tensor) -> Tensor:
    """(N, 1, H, W) float64 of images, whose channels are ranked together, and (N, ...) of others: what is ranked."""
    values = attributions.detach().double().abs()
    return values.sum(dim=1, keepdim=True) if setting.has_channels else values


def of_same_spectrum(setting: Setting, attributions: Tensor) -> Tensor:
    """Maps at random with the power spectrum of each map's absolute values, so as smooth or as rough; none below 0.

    The phases of the Fourier transform over all dimensions of space are those of white noise.
    """
    values = importance(setting, attributions)
    dims = tuple(range(2, values.ndim))
    generator = torch.Generator().manual_seed(derived_seed(setting.seed, "phases"))
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64, device="cpu").to(values.device)
    phases = torch.fft.rfftn(noise, dim=dims)
    spectrum = torch.fft.rfftn(values, dim=dims).abs() * phases / phases.abs()
    drawn = torch.fft.irfftn(spectrum, s=values.shape[2:], dim=dims)
    return drawn - drawn.amin(dim=tuple(range(1, drawn.ndim)), keepdim=True)


def another_examples_map(setting: Setting, attributions: Tensor) -> Tensor:
    """Each example's map from another example, of another explained class wherever there are enough of them."""
    return attributions[setting.shared("another example", lambda: _partners(setting))]


def _partners(setting: Setting) -> Tensor:
    n, target = len(setting.inputs), setting.target
    generator = torch.Generator().manual_seed(derived_seed(setting.seed, "another example"))
    shuffled = torch.randperm(n, generator=generator, device="cpu").to(target.device)
    order = shuffled[target[shuffled].argsort(stable=True)]
    # In the order of classes, as many places further as the largest class has examples is another class.
    largest = int(target.unique(return_counts=True)[1].max())
    partner = torch.empty_like(order)
    partner[order] = order.roll(largest if largest < n else 1)
    return partner


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
    """A method's figure beside those of the controls, the strongest first.

    The interval is of the mean over examples of what the method has beyond the control: a bootstrap of pairs, the same
    resamples for all.

    Args:
        values: (N,) the method's figure.
        controls: (N,) the same of each control, by name.
        seed: Of the bootstrap.
        lower_is_better: Whether a control's larger value counts for the method.
    """
    own, *others = torch.stack([values.double(), *(each.double() for each in controls.values())]).cpu()
    stacked = torch.stack(others)
    gains = own - stacked
    gains = -gains if lower_is_better else gains
    ends = interval(Bootstrap(1, gains.shape[1], _RESAMPLES, seed).means(gains[:, None]), _LEVEL)
    beside = [
        Control(name, value, gain, low, high)
        for name, value, gain, (low, high) in zip(
            controls, stacked.mean(dim=1).tolist(), gains.mean(dim=1).tolist(), ends.tolist(), strict=True
        )
    ]
    return tuple(sorted(beside, key=lambda control: control.gain))


def _blob(x: Tensor) -> Tensor:
    """(N, ...), or (N, 1, H, W) of images."""
    square = torch.zeros((), dtype=torch.float64, device="cpu")
    for dim, side in enumerate(x.shape[2:]):
        at = (torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) / side - 0.5
        square = square.unsqueeze(-1) + (at / 0.25).square() if dim else (at / 0.25).square()
    blob = (-square / 2).exp().to(x.device)
    return blob.expand(len(x), 1 if x.ndim == 4 else x.shape[1], *x.shape[2:])


def _edges(x: Tensor) -> Tensor:
    """(N, 1, H, W) the length of the gradient of brightness, by I. Sobel's filter."""
    grey = pad(x.double().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = [[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]]
    down = torch.tensor(sobel, dtype=grey.dtype, device=grey.device)
    return torch.hypot(conv2d(grey, down[None, None]), conv2d(grey, down.T[None, None]))
