"""Ctrl-C and other signals, kept away from the moments at which something is changed for a while or changed back."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import contextlib
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch

__all__ = ["CleanInterrupts"]

# `_signal` is what `signal` stands on. That looks for every handler among numbers first, by exceptions, which takes ten
# times as long and shows up in the contexts of others' exceptions.

_NAMES = "SIGINT SIGALRM SIGVTALRM SIGPROF SIGTERM SIGHUP SIGBREAK SIGUSR1 SIGUSR2 SIGXCPU".split()
_SIGNALS = tuple(int(getattr(_signal, name)) for name in _NAMES if hasattr(_signal, name))
# Where a context manager is between two states: what it has changed is not yet, or no longer, sure to be changed back.
# And where Python swallows what is raised.
_BETWEEN = frozenset({"__enter__", "__exit__", "__del__"})
_BETWEEN_IN_CONTEXTLIB = frozenset({"enter_context", "callback", "push", "pop_all", "close", "_push_exit_callback"})
_SECONDS_BETWEEN_TRIES = 0.002
_TRIES = 500  # then whatever is being entered or left hangs


class CleanInterrupts(contextlib.AbstractContextManager[None]):
    """Within, Ctrl-C does not interrupt a context manager while it is being entered or left, nor do other signals.

    Python may raise KeyboardInterrupt between any two instructions: also when a global hook of PyTorch's has been
    registered, a kernel switched off or a mode entered, and what takes that back is not yet under way. Such an
    interrupt waits until the context manager is done, and comes then. Anything that changes what outlives a call is
    therefore written as a context manager, and every call of a user's that comes upon one is within this.

    The same holds for handlers of one's own that may raise, as time limits have them: of the alarms and timers, of
    being told to end, and of what users are free to use. What another thread raises here, by
    `PyThreadState_SetAsyncExc`, cannot be held back.

    Only the main thread is interrupted by signals, and only what Python handles can wait: elsewhere this does nothing,
    as within another one.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._waiting: dict[int, int] = {}  # how often each was tried

    def __enter__(self) -> None:
        if torch.compiler.is_compiling() or threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in _SIGNALS:  # Ctrl-C first, so that it waits for the others
                before = _signal.getsignal(number)
                if callable(before) and type(getattr(before, "__self__", None)) is not CleanInterrupts:
                    self._before[number] = before
                    _signal.signal(number, self._handle)
        except BaseException:  # of a handler that was not yet in place
            self._put_back()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._put_back()
        except BaseException:  # of a handler that was back before the others
            self._put_back()
            raise
        waiting, self._waiting = self._waiting, {}
        for number in waiting:
            self._before[number](number, sys._getframe())

    def _put_back(self) -> None:
        for number in reversed(self._before):
            if _signal.getsignal(number) == self._handle:  # nobody has put another one in its place
                _signal.signal(number, self._before[number])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        tries = self._waiting.pop(number, 0)
        if tries < _TRIES and _is_between(frame):
            self._waiting[number] = tries + 1
            _thread.start_new_thread(self._again, (number,))  # threading's own takes a lock, which may be held here
            return
        self._before[number](number, frame)

    def _again(self, number: int) -> None:
        time.sleep(_SECONDS_BETWEEN_TRIES)
        if number in self._waiting:
            _thread.interrupt_main(signal.Signals(number))


def _is_between(frame: FrameType | None) -> bool:
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name in _BETWEEN or (name in _BETWEEN_IN_CONTEXTLIB and file == contextlib.__file__):
            return True
        frame = frame.f_back
    return False
