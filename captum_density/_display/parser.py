"""Arguments of commands, and errors about them in one line."""

import argparse
from pathlib import Path
from typing import NoReturn

from captum_density._display.terminal import printable

__all__ = ["Parser", "count", "folder"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end with status 2."""
        line = printable(" ".join(message.split()))
        self.exit(2, f"{self.prog}: error: {line} (--help lists the arguments)\n")


def count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def folder(text: str) -> Path:
    """A folder that is there or can be made."""
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    path = Path(text)
    try:
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists() or each.is_symlink())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise argparse.ArgumentTypeError(f"cannot write to {path}: {error.strerror}") from error
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} exists and is not a folder")
    return path
