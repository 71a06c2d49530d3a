"""Blocks of noise, one of which carries the label: where feature leakage can be computed by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density.datasets._seeds import random_state

__all__ = ["FeatureLeakage", "feature_leakage"]


class FeatureLeakage(NamedTuple):
    """Examples of the simplified BlockMNIST. See `feature_leakage`.

    Args:
        inputs: (n, d * block_dim), the d blocks of each example one after another.
        labels: (n,) int64, class labels for a cross entropy: 1 where the paper's y is +1, 0 where it is -1.
        signal_masks: (n, d * block_dim) bool, true on the signal block.
        signal_block: (n,) int64, the paper's j*, counted from 0.
    """

    inputs: Tensor
    labels: Tensor
    signal_masks: Tensor
    signal_block: Tensor


@takes_arrays
def feature_leakage(
    n: int,
    d: int,
    block_dim: int = 1,
    eta: float = 0.0,
    u: Tensor | None = None,
    *,
    signal_blocks: int | None = None,
    seed: int = 0,
) -> FeatureLeakage:
    r"""Draw from the simplified BlockMNIST, where one block of each example carries the label and the others noise.

    .. math:: x = [\eta g_1, \dots, y u + \eta g_{j*}, \dots, \eta g_d]

    with y = -1 or +1 and j* among the first ``signal_blocks`` blocks, each uniform, and the g_j independent and uniform
    in the unit ball. The gradient of a max-margin network is alike on all the blocks where a signal may be, whichever
    block carries it in the example: the features of other examples leak in.

    Args:
        n: Examples.
        d: Blocks.
        block_dim: Dimension of a block.
        eta: Size of the noise, at least 0.
        u: (block_dim,), the signal; None for the unit vector with equal entries. Its dtype is the inputs'.
        signal_blocks: How many of the first blocks may carry the signal (the task-relevant ones); None for the paper's
            d / 2. With d, every block is relevant.
        seed: In 0..2^32 - 1; no global generator is touched. eta and u change neither labels, blocks nor the g_j.

    Returns:
        Inputs, labels in {0, 1} (y = 2 label - 1), and where the signal is.

    Raises:
        ValueError: If a number is out of its range, d is odd and signal_blocks is None, or u is no finite vector of
            block_dim numbers.

    References:
        H. Shah, P. Jain and P. Netrapalli, "Do Input Gradients Highlight Discriminative Features?", NeurIPS 2021,
        arXiv:2102.12781, equation (2). The d blocks, the one that carries the signal and the first half it is among
        were checked against others' accounts of the paper; that the noise is uniform in the unit ball was not.

    Example:
        >>> import torch
        >>> data = feature_leakage(3, d=4, seed=5)
        >>> data.inputs
        tensor([[ 0.,  1.,  0.,  0.],
                [-1.,  0.,  0.,  0.],
                [ 0.,  1.,  0.,  0.]])
        >>> data.labels
        tensor([1, 0, 1])
    """
    for name, number in (("n", n), ("d", d), ("block_dim", block_dim)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be an integer of at least 1, but is {number!r}")
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"eta must be finite and at least 0, but is {eta}")
    if signal_blocks is None:
        if d % 2:
            raise ValueError(f"half of d = {d} blocks is no whole number; pass signal_blocks=..., or an even d")
        signal_blocks = d // 2
    if not isinstance(signal_blocks, int) or not 1 <= signal_blocks <= d:
        raise ValueError(f"signal_blocks must be an integer in 1..{d}, as there are d = {d}, but is {signal_blocks!r}")
    u = torch.full((block_dim,), block_dim**-0.5, device="cpu") if u is None else u.detach().cpu()
    if u.shape != (block_dim,) or not u.is_floating_point() or not bool(u.isfinite().all()):
        raise ValueError(f"u must be a finite floating-point vector, ({block_dim},) as block_dim says, but is {u}")

    draw = random_state(seed)
    labels = torch.from_numpy(draw.random_sample(n) < 0.5).long()
    signal_block = torch.from_numpy(np.floor(draw.random_sample(n) * signal_blocks)).long()
    # Uniform in the ball: a uniform direction, and a radius whose block_dim-th power is uniform.
    direction = draw.standard_normal((n, d, block_dim))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    noise = direction * draw.random_sample((n, d, 1)) ** (1 / block_dim)
    blocks = torch.from_numpy(eta * noise + 0.0).to(u.dtype)  # 0.0, as 0 times a negative number is -0
    blocks[torch.arange(n, device="cpu"), signal_block] += (2 * labels - 1)[:, None] * u
    masks = (signal_block[:, None] == torch.arange(d, device="cpu")).repeat_interleave(block_dim, dim=1)
    return FeatureLeakage(blocks.flatten(1), labels, masks, signal_block)
