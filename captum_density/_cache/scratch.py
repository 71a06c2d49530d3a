"""A folder for as long as a call takes, that others can watch; and what killed calls left, cleared by the next one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["clear_left_behind", "left_behind", "scratch_folder", "scratch_name"]


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder, removed in the end; what killed processes of this machine left beside it is, too.

    Args:
        parent: Where it is made, such as a file system that several machines share; None for the system's own place.

    Yields:
        The folder. That it is gone tells others to stop.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    clear_left_behind(parent)
    folder = Path(tempfile.mkdtemp(prefix=scratch_name(), dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def scratch_name() -> str:
    """What the names begin with that this process gives to what it will remove again."""
    return f"{_prefix()}{os.getpid()}-"


def clear_left_behind(parent: Path) -> None:
    """Remove the folders and files there that processes of this machine left that are gone."""
    for path in parent.glob("scratch-*"):
        if left_behind(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def left_behind(path: Path) -> bool:
    """Whether something is of a process of this machine that is gone, by its name."""
    pid = path.name.removeprefix(_prefix()).partition("-")[0]
    return path.name.startswith(_prefix()) and pid.isdecimal() and not _alive(int(pid))


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
