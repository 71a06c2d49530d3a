"""Ctrl-C, kept away from the moments at which something is changed for a while or changed back."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch

__all__ = ["CleanInterrupts"]

# `_signal` is what `signal` stands on. That looks for every handler among numbers first, by exceptions, which takes ten
# times as long and shows up in the contexts of others' exceptions.

# Where a context manager is between two states: what it has changed is not yet, or no longer, sure to be changed back.
_BETWEEN = frozenset({"__enter__", "__exit__"})
_BETWEEN_IN_CONTEXTLIB = frozenset({"enter_context", "callback", "push", "pop_all", "close", "_push_exit_callback"})
_SECONDS_BETWEEN_TRIES = 0.002
_TRIES = 500  # then whatever is being entered or left hangs


class CleanInterrupts(contextlib.AbstractContextManager[None]):
    """Within, Ctrl-C does not interrupt a context manager while it is being entered or left.

    Python may raise KeyboardInterrupt between any two instructions: also when a global hook of PyTorch's has been
    registered, a kernel switched off or a mode entered, and what takes that back is not yet under way. Such an
    interrupt waits until the context manager is done, and comes then. Anything that changes what outlives a call is
    therefore written as a context manager, and every call of a user's that comes upon one is within this.

    Only the main thread is interrupted by Ctrl-C, and only what Python handles can wait: elsewhere this does nothing,
    as within another one.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._waiting = False
        self._tries = 0

    def __enter__(self) -> None:
        if torch.compiler.is_compiling() or threading.current_thread() is not threading.main_thread():
            return
        before = _signal.getsignal(_signal.SIGINT)
        if callable(before) and not isinstance(getattr(before, "__self__", None), CleanInterrupts):
            self._before = before
            _signal.signal(_signal.SIGINT, self._handle)

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            return
        if _signal.getsignal(_signal.SIGINT) == self._handle:  # nobody has put another one in its place
            _signal.signal(_signal.SIGINT, self._before)
        if self._waiting:
            self._waiting = False
            self._before(_signal.SIGINT, sys._getframe())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if _is_between(frame) and self._tries < _TRIES:
            self._tries, self._waiting = self._tries + 1, True
            _thread.start_new_thread(self._again, ())  # threading's own takes a lock, which may be held here
            return
        self._tries, self._waiting = 0, False
        self._before(number, frame)

    def _again(self) -> None:
        time.sleep(_SECONDS_BETWEEN_TRIES)
        if self._waiting:
            _thread.interrupt_main()


def _is_between(frame: FrameType | None) -> bool:
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name in _BETWEEN or (name in _BETWEEN_IN_CONTEXTLIB and file == contextlib.__file__):
            return True
        frame = frame.f_back
    return False
