"""What is kept or removed as one, and how important attributions make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_density._model.arrays import as_tensors

__all__ = ["Elements"]


class Elements:
    """What is kept or removed as one: every element of an input, or groups of them.

    Args:
        shape: Of an input.
        groups: None; "channels" for a pixel in all its channels; a number or a pair for patches of that many pixels, in
            all channels; or the group of each element, integers that broadcast to `shape`.

    Raises:
        ValueError: Groups that do not fit the shape.
    """

    def __init__(self, shape: Sequence[int], groups: Any) -> None:
        self.shape = tuple(shape)
        self.groups = None if groups is None else _groups(self.shape, groups)
        if self.groups is None:
            self.d = int(np.prod(self.shape, dtype=int))
            return
        flat = self.groups.flatten()
        self.d = int(flat.max()) + 1
        sizes = flat.bincount(minlength=self.d)
        if int(sizes.min()) == 0:
            raise ValueError(
                f"groups must be numbered 0..{self.d - 1} without gaps, but {int(sizes.argmin())} is empty"
            )
        # (d, largest group): the elements of each group, one position more than there are for "none".
        places = torch.arange(len(flat), device="cpu") - (sizes.cumsum(0) - sizes)[flat.sort(stable=True).values]
        self._members = torch.full((self.d, int(sizes.max())), len(flat), device="cpu")
        order = flat.argsort(stable=True)
        self._members[flat[order], places] = order
        self._sizes = sizes

    def importance(self, magnitude: Tensor) -> Tensor:
        """(B, d) how important each is, from (B, *shape), at least 0: a group's is the mean of its elements'."""
        flat = magnitude.flatten(1)
        if self.groups is None:
            return flat
        padded = torch.cat([flat.double(), flat.new_zeros(len(flat), 1, dtype=torch.float64)], dim=1)
        total = torch.zeros(len(flat), self.d, dtype=torch.float64, device="cpu")
        for members in self._members.T:  # one after another: the same order of additions on every machine
            total += padded[:, members]
        return total / self._sizes

    def magnitude(self, attributions: Any, n: int, name: str) -> Tensor:
        """|attribution| on the CPU, (n, *shape).

        Raises:
            TypeError: It is no floating-point tensor.
            ValueError: Its shape does not fit, or it is NaN or infinite.
        """
        if isinstance(attributions, tuple) and len(attributions) == 1:
            attributions = attributions[0]
        attributions = as_tensors(attributions)
        if not isinstance(attributions, Tensor) or not attributions.is_floating_point():
            received = attributions.dtype if isinstance(attributions, Tensor) else type(attributions).__name__
            is_method = callable(attributions) or hasattr(attributions, "attribute")
            remedy = "; make it for a model first, as `function(model)`" if is_method else ""
            raise TypeError(f"attributions {name!r} must be a floating-point tensor, but are {received}{remedy}")
        whole = (n, *self.shape)
        shared = (n, 1, *self.shape[1:])  # one value for all channels of a pixel
        if tuple(attributions.shape) != whole and not (self.groups is not None and attributions.shape == shared):
            raise ValueError(
                f"attributions {name!r} must have the inputs' shape {whole}, but have {tuple(attributions.shape)}"
                + (
                    "; to rank pixels, all channels together, pass groups='channels'"
                    if attributions.shape == shared
                    else ""
                )
            )
        magnitude = attributions.detach().cpu().abs().expand(whole)
        bad = int((~magnitude.isfinite()).sum())
        if bad:
            raise ValueError(f"attributions {name!r} contain {bad} NaN or infinite values, which have no rank")
        return magnitude


def _groups(shape: tuple[int, ...], groups: Any) -> Tensor:
    groups = as_tensors(groups)
    if isinstance(groups, Tensor):
        if groups.is_floating_point() or int(groups.min()) < 0:
            raise ValueError("groups must be integers from 0, one for each element")
        try:
            return groups.detach().cpu().long().expand(shape).contiguous()
        except RuntimeError as error:
            raise ValueError(f"groups must broadcast to an input, {shape}, but have {tuple(groups.shape)}") from error
    if len(shape) < 2:
        raise ValueError(f"inputs of shape {shape} have no channels or patches; pass groups as a tensor, or None")
    if isinstance(groups, str) and groups == "channels":
        return torch.arange(int(np.prod(shape[1:])), device="cpu").view(1, *shape[1:]).expand(shape).contiguous()
    patch = (groups, groups) if isinstance(groups, int) else groups
    if not (isinstance(patch, tuple | list) and len(patch) == 2 and all(isinstance(p, int) and p >= 1 for p in patch)):
        raise ValueError(f"groups must be None, 'channels', a patch's size, or a tensor of integers, but is {groups!r}")
    if len(shape) != 3:
        raise ValueError(f"patches need inputs (channels, height, width), but they are {shape}")
    rows, columns = (torch.arange(side, device="cpu") // p for side, p in zip(shape[1:], patch, strict=True))
    return (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(shape).contiguous()
