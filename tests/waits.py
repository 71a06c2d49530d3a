"""How often the host waits for a GPU."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["waits", "waits_for_numbers"]


def waits(call: Callable[[], Any]) -> int:
    """Count how often a call waits, on a GPU or on a pretended one; `torch.cuda.synchronize` apart.

    Copies to it count, as PyTorch waits until they have arrived.
    """
    pretended: Any = sys.modules.get("pretend_device")
    if pretended is not None and pretended.installed():
        with pretended.counted() as seen:
            call()
        synchronized = sum(count for (name, _), count in seen.syncs.items() if name == "torch.cuda.synchronize")
        return sum(seen.syncs.values()) - synchronized + sum(seen.copies.values())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def waits_for_numbers(call: Callable[[], Any]) -> int | None:
    """The same without copies to the device, and with `torch.cuda.synchronize`; None on a GPU, which cannot tell."""
    pretended: Any = sys.modules.get("pretend_device")
    if pretended is None or not pretended.installed():
        return None
    with pretended.counted() as seen:
        call()
    return sum(seen.syncs.values())
