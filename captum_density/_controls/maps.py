"""Maps that know nothing of the model's reasons, to be measured in an attribution's place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

__all__ = [
    "ANOTHER_EXAMPLE",
    "BLOB",
    "CONSTANT",
    "EDGES",
    "INPUT",
    "RANDOM_WEIGHTS",
    "SPECTRUM",
    "centred_blob",
    "edges",
    "other_examples",
    "same_spectrum",
]

# As they end a sentence: "no better than a blob in the centre".
CONSTANT = "a constant map"
BLOB = "a blob in the centre"
EDGES = "an edge detector"
INPUT = "the input itself"
SPECTRUM = "a random map of its spectrum"
ANOTHER_EXAMPLE = "another example's map"
RANDOM_WEIGHTS = "its map at random weights"


def centred_blob(x: Tensor) -> Tensor | None:
    """(N, C, L), or (N, 1, H, W) of images, float64: a Gaussian in the centre, whose deviation is a quarter of a side.

    None of what has no sides, (N, D).
    """
    if x.ndim < 3:
        return None
    square = torch.zeros((), dtype=torch.float64, device="cpu")
    for dim, side in enumerate(x.shape[2:]):
        at = (torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) / side - 0.5
        square = square.unsqueeze(-1) + (at / 0.25).square() if dim else (at / 0.25).square()
    blob = (-square / 2).exp().to(x.device)
    return blob.expand(len(x), 1 if x.ndim == 4 else x.shape[1], *x.shape[2:])


def edges(x: Tensor) -> Tensor | None:
    """(N, 1, H, W) float64 the length of the gradient of brightness, by I. Sobel's filter; None of what is no image."""
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        return None
    grey = pad(x.double().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = [[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]]
    down = torch.tensor(sobel, dtype=grey.dtype, device=grey.device)
    return torch.hypot(conv2d(grey, down[None, None]), conv2d(grey, down.T[None, None]))


def same_spectrum(values: Tensor, seed: int) -> Tensor:
    """Maps at random with the power spectrum of each of these, so as smooth or as rough; none below 0.

    The phases of the Fourier transform over all dimensions of space are those of white noise.

    Args:
        values: (N, C, ...) float64.
        seed: Of the noise, which is the same on all devices.
    """
    dims = tuple(range(2, values.ndim))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64, device="cpu").to(values.device)
    phases = torch.fft.rfftn(noise, dim=dims)
    spectrum = torch.fft.rfftn(values, dim=dims).abs() * phases / phases.abs()
    drawn = torch.fft.irfftn(spectrum, s=values.shape[2:], dim=dims)
    return drawn - drawn.amin(dim=tuple(range(1, drawn.ndim)), keepdim=True)


def other_examples(classes: Tensor, seed: int) -> Tensor:
    """(N,) for each example another one, of another class wherever there are enough of them.

    Args:
        classes: (N,) integers.
        seed: Of the order.
    """
    n = len(classes)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(n, generator=generator, device="cpu").to(classes.device)
    order = shuffled[classes[shuffled].argsort(stable=True)]
    # In the order of classes, as many places further as the largest class has examples is another class.
    largest = int(classes.unique(return_counts=True)[1].max())
    partner = torch.empty_like(order)
    partner[order] = order.roll(largest if largest < n else 1)
    return partner
