"""Settings that PyTorch has once for all threads, changed for a while."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["EAGER_CODE", "PLAIN_ATTENTION", "PLAIN_RECURRENCE", "SharedSetting"]


class SharedSetting(AbstractContextManager["SharedSetting"]):
    """A setting of the process, made while any thread is within.

    PyTorch's context managers put back what they found. Of two threads that leave in the order in which they came, the
    second would put back the first one's change, for good. So here the first to come makes it and the last to leave
    takes it back.

    Args:
        make: Makes a context manager of PyTorch's.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make, self._lock, self._within = make, threading.Lock(), 0
        self._setting: AbstractContextManager[object] = nullcontext()

    def __enter__(self) -> SharedSetting:
        with self._lock:
            if self._within == 0:
                self._setting = self._make()
                self._setting.__enter__()
            self._within += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._setting.__exit__(None, None, None)


def _eager() -> AbstractContextManager[object]:
    # torch._dynamo is torch.compile's, and slow to import: without it, nothing can be compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _step_by_step() -> Iterator[None]:
    # The public torch.backends.mkldnn.flags sets TF32 on top, which warns.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


# Compiled code runs as it was written.
EAGER_CODE = SharedSetting(_eager)
# LSTM and GRU run step by step: their fused kernels have one derivative.
PLAIN_RECURRENCE = SharedSetting(_step_by_step)
# Fused attention runs in the form that has second derivatives.
PLAIN_ATTENTION = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))
