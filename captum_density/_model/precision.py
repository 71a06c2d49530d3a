"""The one rule for the dtype in which sums are taken and figures returned."""

import torch
from torch import Tensor

__all__ = ["accumulation_dtype"]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: sums of half-precision terms would lose them."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
