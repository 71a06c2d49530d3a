"""C. Spearman's rank correlation, of each example."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rank_correlation"]


def rank_correlation(one: Tensor, other: Tensor, among: Tensor | None = None) -> Tensor:
    """(N,) in [-1, 1], of the values of each example; equal values share their rank.

    Where all values of a map are equal it is 0; where those of both are, 1, as for any map and itself.

    Args:
        one: (N, ...).
        other: (N, ...), of as many values.
        among: (N, ...), bool: which values count; None for all.
    """
    centred = [_centred(values.flatten(1), among) for values in (one, other)]
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlation = (centred[0] * centred[1]).sum(dim=1) / torch.where(lengths > 0, lengths, 1)
    return correlation.masked_fill((centred[0] == 0).all(dim=1) & (centred[1] == 0).all(dim=1), 1)


def _centred(values: Tensor, among: Tensor | None) -> Tensor:
    """(N, d) float64 places, less their mean; 0 for what does not count."""
    if among is None:
        ranks = _ranks(values)
        return ranks - ranks.mean(dim=1, keepdim=True)
    counts = among.flatten(1)
    # Below all others, which moves these by as much each.
    ranks = _ranks(values.masked_fill(~counts, -torch.inf)).masked_fill(~counts, 0)
    return (ranks - ranks.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True)).masked_fill(~counts, 0)


def _ranks(values: Tensor) -> Tensor:
    """(N, d) float64 places from the smallest on; equal values share the mean of theirs."""
    ordered, order = values.sort(dim=1)
    n = values.shape[1]
    places = torch.arange(n, device=values.device).expand_as(order)
    differs = ordered.diff(dim=1) != 0
    end = torch.ones_like(order[:, :1], dtype=torch.bool)
    first = torch.where(torch.cat([end, differs], dim=1), places, 0).cummax(dim=1)[0]
    last = torch.where(torch.cat([differs, end], dim=1), places, n).flip(1).cummin(dim=1)[0].flip(1)
    return torch.empty(values.shape, dtype=torch.float64, device=values.device).scatter_(
        1, order, (first + last + 1).double() / 2
    )
