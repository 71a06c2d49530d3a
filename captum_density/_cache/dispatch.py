"""Work done here or by an executor's workers, and what an executor's failures mean."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from typing import TypeVar

__all__ = ["done_anywhere", "each_done_anywhere"]

T = TypeVar("T")
W = TypeVar("W")


def done_anywhere(function: Callable[[W], T], work: W, executor: Executor | None) -> T:
    """What a function makes of some work, here or by a worker."""
    return function(work) if executor is None else _result(executor.submit(function, work))


def each_done_anywhere(
    function: Callable[[W], T], works: Sequence[W], executor: Executor | None
) -> Iterator[tuple[int, T]]:
    """The number of each piece of work and what a function makes of it, as they are finished.

    Where one fails, what else is finished by then is given first, so that it can be kept; what is not is cancelled.
    """
    if executor is None:
        for n, work in enumerate(works):
            yield n, function(work)
        return
    waiting: dict[Future[T], int] = {}
    try:
        for n, work in enumerate(works):
            waiting[executor.submit(function, work)] = n
        failure: Exception | None = None
        for future in as_completed(waiting):
            try:
                result = _result(future)
            except Exception as error:
                failure = error
                break
            yield waiting.pop(future), result
        if failure is not None:
            for future, n in list(waiting.items()):
                if future.done() and not future.cancelled() and future.exception() is None:
                    yield n, future.result()
            raise failure
    finally:
        for future in waiting:
            future.cancel()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a worker of the executor ended abruptly ({error}). Finished jobs are kept in the store. It ran out of "
            "memory, or could not start: workers of a spawned pool import the main module, which must be a file, and "
            'do its work below `if __name__ == "__main__":`'
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error) and "Can't get attribute" not in str(error):
            raise
        raise TypeError(
            f"make_model (or another function) cannot be sent to the executor's workers: {error}. Define it at the top "
            "of a module that they can import, or use an executor that sends code itself: "
            "loky.get_reusable_executor(), or Dask's Client.get_executor(pure=False)"
        ) from error
