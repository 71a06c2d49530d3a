"""Sparse tensors by what they are made of, as most operations know dense ones only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense_parts"]


def dense_parts(t: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold a sparse tensor's indices and, last, its values, in its own memory; (t,) of a dense one."""
    t = t.detach()
    if t.layout == torch.sparse_coo:
        return t._indices(), t._values()
    if t.layout in (torch.sparse_csr, torch.sparse_bsr):
        return t.crow_indices(), t.col_indices(), t.values()
    if t.layout in (torch.sparse_csc, torch.sparse_bsc):
        return t.ccol_indices(), t.row_indices(), t.values()
    return (t,)
