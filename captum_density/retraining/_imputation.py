"""Noisy linear imputation: removed pixels as weighted means of their neighbours, and noise."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.generators import standard_noise

__all__ = ["noisy_linear_imputation"]

_TOLERANCE = 1e-12  # of the largest residual, for values scaled to at most 1
_PIXELS_AT_ONCE = 2**16  # in float64 the few arrays of a solve then stay in a CPU's cache; measured


@torch.no_grad()
@takes_arrays
def noisy_linear_imputation(
    images: Tensor,
    kept: Tensor,
    *,
    noise_std: float = 0.01,
    default: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Images whose removed pixels are a weighted mean of their eight neighbours, removed ones included, plus noise.

    .. math:: x_p = \frac{\sum_q w_{pq} x_q}{\sum_q w_{pq}} + \sigma \mathcal{N}(0, 1), \qquad
        w_{pq} = 1/6 \text{ beside, above or below } p, \ 1/12 \text{ diagonally}

    The means are one sparse linear system per image and channel. The noise is added to its solution. A filled-in region
    is as smooth as its surroundings allow, so that its shape tells a retrained network less about the class than a
    constant would. Without noise all values lie between the smallest and the largest kept one of the channel, and a
    linear ramp comes back wherever the removed pixels do not touch the borders it runs into.

    At the border of the image the mean is over the neighbours there are, as in the authors' code. The system is
    symmetric and positive definite, and is solved in float64 by conjugate gradients until no pixel differs from the
    mean of its neighbours by more than 1e-12 of the range of the kept ones: exact to the rounding of float32.

    Args:
        images: (N, C, H, W), floating-point. Values of removed pixels are not read; they may be NaN.
        kept: (N, 1, H, W) or (N, C, H, W), bool: True where a pixel stays.
        noise_std: sigma, in units of the images. The default is that of the authors' code, for images in [0, 1] or
            standardised; 0 for none.
        default: The value of a channel of which nothing is kept, before noise. It is the same for all images, as the
            mean of one, say, would tell what was removed.
        generator: What the noise is drawn from; None for the global generator.

    Returns:
        (N, C, H, W), of the images' dtype and device, without gradient; kept pixels bit for bit.

    Raises:
        TypeError: If images are not floating-point or kept is not bool.
        ValueError: If shapes or devices do not fit, there are no pixels, a kept pixel is NaN or infinite, or a number
            is out of range.

    References:
        Y. Rong, T. Leemann, V. Borisov, G. Kasneci and E. Kasneci, "A Consistent and Efficient Evaluation Strategy for
        Attribution Methods", ICML 2022, arXiv:2202.00449 (Noisy Linear Imputation).

    Example:
        >>> import torch
        >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> kept = torch.ones(1, 1, 3, 3, dtype=torch.bool)
        >>> kept[0, 0, 1, 1] = kept[0, 0, 0, 0] = False
        >>> noisy_linear_imputation(image, kept, noise_std=0)[0, 0]  # x00 = (2*1 + 2*3 + x11) / 5
        tensor([[2.4407, 1.0000, 2.0000],
                [3.0000, 4.2034, 5.0000],
                [6.0000, 7.0000, 8.0000]])
    """
    _check(images, kept, noise_std, default)
    height, width = images.shape[2:]
    planes = images.reshape(-1, height, width)
    stays = kept.expand_as(images).reshape(-1, height, width)
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    filled = torch.empty_like(planes)
    for out, x, k in zip(filled.split(at_once), planes.split(at_once), stays.split(at_once), strict=True):
        out.copy_(_solve(x, k, default))
    filled = filled.view_as(images)
    if noise_std > 0:
        filled += noise_std * standard_noise((images,), 1, "gaussian", generator)[0][0]
    return torch.where(kept, images, filled)


def _solve(planes: Tensor, kept: Tensor, default: float) -> Tensor:
    """The imputed values of (M, H, W) planes in float64, by conjugate gradients from their kept pixels' mean."""
    dims = (1, 2)
    some = kept.any(dim=2).any(dim=1)[:, None, None]
    removed = ~kept & some
    known = torch.where(kept, planes.double(), 0.0)
    centre = torch.where(some, known.sum(dims, keepdim=True) / kept.sum(dims, keepdim=True), default)
    known = torch.where(kept, known - centre, 0.0)
    scale = known.abs().amax(dims, keepdim=True)
    known = known / torch.where(scale > 0, scale, 1.0)

    weights = _neighbour_sum(torch.ones_like(planes[:1], dtype=torch.float64))
    x = torch.zeros_like(known)
    residual = torch.where(removed, _neighbour_sum(known), 0.0)
    direction, square = residual, (residual**2).sum(dims, keepdim=True)
    # As many steps as there are unknowns would do but for rounding; some hundred do for 224 x 224.
    for _ in range(10 * planes[0].numel()):
        active = residual.abs().amax(dims, keepdim=True) > _TOLERANCE
        if not active.any():
            return centre + scale * x
        image = torch.where(removed, weights * direction - _neighbour_sum(direction), 0.0)
        # A plane that is done stands still, so that a result does not depend on which others are in the batch.
        step = torch.where(active, square / (direction * image).sum(dims, keepdim=True), 0.0)
        x = x + step * direction
        residual = residual - step * image
        before, square = square, (residual**2).sum(dims, keepdim=True)
        direction = residual + torch.where(active, square / before, 0.0) * direction
    raise RuntimeError("conjugate gradients did not converge; please report this with the mask")


def _neighbour_sum(x: Tensor) -> Tensor:
    """Sum of the neighbours there are in (M, H, W), by 1/6 and 1/12: of 1 2 1 down and across, over 12.

    It holds the pixel itself as well, by 4/12, which drops out of a pixel's difference from the mean.
    """
    for dim in (1, 2):
        last = x.shape[dim] - 1
        before, x = x, 2 * x
        x.narrow(dim, 1, last).add_(before.narrow(dim, 0, last))
        x.narrow(dim, 0, last).add_(before.narrow(dim, 1, last))
    return x / 12


def _check(images: Tensor, kept: Tensor, noise_std: float, default: float) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images have dtype {images.dtype}; convert them to float")
    if kept.dtype != torch.bool:
        raise TypeError(f"kept must be bool, True where a pixel stays, but has dtype {kept.dtype}; use kept.bool()")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be (N, C, H, W) and not empty, but have shape {tuple(images.shape)}")
    n, channels, *size = images.shape
    if list(kept.shape) not in ([n, 1, *size], [n, channels, *size]):
        raise ValueError(
            f"kept must be (N, 1, H, W) or (N, C, H, W) as the images, which are {tuple(images.shape)}, but has shape "
            f"{tuple(kept.shape)}"
        )
    if kept.device != images.device:
        raise ValueError(f"kept is on {kept.device}, the images on {images.device}; move one of them")
    if not bool((images.isfinite() | ~kept).all()):
        raise ValueError("a kept pixel is NaN or infinite, and its neighbours would be")
    if not 0 <= noise_std < float("inf"):
        raise ValueError(f"noise_std must be at least 0 and finite, but is {noise_std}")
    if not abs(default) < float("inf"):
        raise ValueError(f"default must be finite, but is {default}")
