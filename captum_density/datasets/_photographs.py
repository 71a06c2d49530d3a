"""Photographs that scikit-image carries, as a network for ImageNet takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Photographs", "photographs"]

# Of each photograph the ImageNet class that comes nearest. ImageNet knows no motorcycle but a moped, no rocket but a
# missile, and the astronaut not at all.
_LABELS = {"cat": 282, "coffee": 967, "rocket": 657, "motorcycle": 665, "astronaut": -1}
_SHORTER_SIDE, _SIZE = 256, 224


class Photographs(NamedTuple):
    """Photographs with the ImageNet classes that they show. See `photographs`.

    Args:
        images: (N, 3, 224, 224) float32, N = 5, preprocessed as (pixel - 127) / 128, so in [-1, 1].
        labels: (N,) int64, ImageNet classes; -1 where there is none.
        names: What each shows.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def photographs() -> Photographs:
    """Five photographs that scikit-image carries, as `efficientnet_lite0` takes them; nothing is downloaded.

    Chelsea the cat, a cup of coffee, a rocket at its start, a motorcycle (the left image of a stereo pair) and an
    astronaut: the shorter side to 256 pixels, bicubic, and the middle 224 x 224. Their licences, all free, are in
    scikit-image's ``data/README.txt``. Add 1 and halve, and they are images in [0, 1] to be drawn.

    Returns:
        ``images`` (5, 3, 224, 224); ``labels`` (5,), the nearest ImageNet classes: 282 (tiger cat), 967 (espresso), 657
        (missile), 665 (moped), and -1 for the astronaut, whom ImageNet has no class for; and ``names``.

    Raises:
        ImportError: scikit-image is not installed; ``pip install 'captum-density[demo]'`` brings it.

    References:
        S. van der Walt et al., "scikit-image: image processing in Python", PeerJ, 2014; of the motorcycle, D.
        Scharstein et al., "High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth", GCPR 2014.

    Example:
        >>> import torch
        >>> data = photographs()
        >>> data.names
        ('cat', 'coffee', 'rocket', 'motorcycle', 'astronaut')
        >>> data.images.shape, data.labels
        (torch.Size([5, 3, 224, 224]), tensor([282, 967, 657, 665,  -1]))
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "photographs() reads the images that scikit-image carries, and scikit-image is not installed; "
            "install it with: pip install 'captum-density[demo]'"
        ) from error

    stored = (data.chelsea(), data.coffee(), data.rocket(), data.stereo_motorcycle()[0], data.astronaut())
    images = torch.stack([_middle(torch.from_numpy(pixels).permute(2, 0, 1).float()) for pixels in stored])
    return Photographs((images - 127) / 128, torch.tensor(list(_LABELS.values()), device="cpu"), tuple(_LABELS))


def _middle(pixels: Tensor) -> Tensor:
    """(C, H, W) in [0, 255] to (C, 224, 224)."""
    shorter = min(pixels.shape[1:])
    size = [side * _SHORTER_SIDE // shorter for side in pixels.shape[1:]]
    # Bicubic interpolation overshoots at edges.
    resized = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0].clamp(0, 255)
    top, left = ((side - _SIZE) // 2 for side in size)
    return resized[:, top : top + _SIZE, left : left + _SIZE]
