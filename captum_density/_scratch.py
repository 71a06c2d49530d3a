"""A folder for as long as a call takes, that others can watch, and that the next call clears away after a kill."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["scratch_folder"]

_PREFIX = "scratch"


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder, removed in the end; folders that killed processes of this machine left in `parent` are, too.

    Args:
        parent: Where it is made, such as a file system that several machines share; None for the system's own place.

    Yields:
        The folder. That it is gone tells others to stop.
    """
    if parent is not None:
        for left in parent.glob(f"{_PREFIX}-{platform.node()}-*"):
            pid = left.name.removeprefix(f"{_PREFIX}-{platform.node()}-").partition("-")[0]
            if pid.isdecimal() and not _alive(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}-{platform.node()}-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # a signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
