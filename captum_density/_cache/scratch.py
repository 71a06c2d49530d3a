"""A folder for as long as a call takes, that others can watch, and that the next call clears away after a kill."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["left_behind", "scratch_folder"]


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder, removed in the end; folders that killed processes of this machine left in `parent` are, too.

    Args:
        parent: Where it is made, such as a file system that several machines share; None for the system's own place.

    Yields:
        The folder. That it is gone tells others to stop.
    """
    if parent is not None:
        for left in parent.glob("scratch-*"):
            if left_behind(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_behind(folder: Path) -> bool:
    """Whether a scratch folder is of a process of this machine that is gone."""
    pid = folder.name.removeprefix(_prefix()).partition("-")[0]
    return folder.name.startswith(_prefix()) and pid.isdecimal() and not _alive(int(pid))


def _prefix() -> str:
    # Containers of one host name number their processes each for itself.
    space = Path("/proc/self/ns/pid")
    numbered = re.sub(r"\D", "", os.readlink(space)) if space.is_symlink() else ""
    return f"scratch-{platform.node()}-{numbered}-"


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
