"""How often the host waits for a GPU."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["waits"]


def waits(call: Callable[[], Any]) -> int:
    """Count how often a call waits, on a GPU or on a pretended one; `torch.cuda.synchronize` apart."""
    pretended: Any = sys.modules.get("pretend_device")
    if pretended is not None and pretended.installed():
        with pretended.counted() as seen:
            call()
        return sum(seen.syncs.values())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
