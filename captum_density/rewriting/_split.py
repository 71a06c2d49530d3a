"""Split a layer in two that undo each other's rotation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_density.rewriting._layers import (
    Layer,
    by_output,
    check_layer,
    copied,
    from_output,
    groups_of,
    new_parameter,
    output_units,
    random_generator,
    replaced,
    submodule,
)

__all__ = ["split_layer"]

# What mixes the channels of a convolution at each position: one of kernel size 1.
_POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def split_layer(model: nn.Module, name: str, seed: int = 0) -> nn.Module:
    """Split a linear or convolutional layer in two: W becomes Q^T after Q W, for a random orthogonal Q.

    The bias goes to the second. Of a grouped convolution each group has its own Q, so that channels of different groups
    never mix; of a transposed one, the second layer is an ordinary convolution of kernel size 1.

    Args:
        model: Any module that calls the layer and does not read its weights or attributes itself.
        name: The layer's, as in `model.named_modules()`; "" where the model is the layer.
        seed: Of Q, drawn alike on every device.

    Returns:
        A copy that computes the same function up to rounding, a `torch.nn.Sequential` of two in the layer's place; the
        model stays as it was.

    Raises:
        TypeError: `model` is no module.
        ValueError: There is no such module, it is no plain layer, or it is part of a PyTorch layer that reads its
            weights by itself.

    References:
        Implementation invariance: M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML
        2017, arXiv:1703.01365. The rewriting is ours.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> split, x = split_layer(model, "0"), torch.randn(5, 3)
        >>> len(split[0]), torch.allclose(split(x), model(x), atol=1e-5)
        (2, True)
    """
    rewritten = copied(model)
    layer: Layer = submodule(rewritten, name)
    check_layer(layer, name)
    n, groups, like = output_units(layer), groups_of(layer), layer.weight
    rotations = _orthogonal(groups, n // groups, seed).to(like.device)
    weight = by_output(layer)
    rotated = rotations @ weight.reshape(groups, n // groups, -1)
    layer.weight = new_parameter(from_output(layer, rotated.reshape(weight.shape)), like)

    back = rotations.transpose(1, 2).reshape(n, n // groups)
    second: Layer = nn.Linear(n, n, bias=False, device="meta")
    if not isinstance(layer, nn.Linear):
        dimensions = like.ndim - 2
        second = _POINTWISE[dimensions](n, n, 1, groups=groups, bias=False, device="meta")
        back = back.reshape(*back.shape, *[1] * dimensions)
    second.weight = new_parameter(back, like)
    second.bias, layer.bias = layer.bias, None
    return replaced(rewritten, name, nn.Sequential(layer, second).train(layer.training))


def _orthogonal(groups: int, n: int, seed: int) -> Tensor:
    """(groups, n, n) random orthogonal matrices, in double precision."""
    normal = torch.randn(groups, n, n, generator=random_generator(seed), dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    signs = r.diagonal(dim1=1, dim2=2).sign()
    return q * signs[:, None]  # uniform over all of them: QR by itself prefers some signs
