"""A folder of finished work, one JSON file each: written whole or not at all, read only where it proves itself."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from captum_density._cache.identity import name_of
from captum_density._cache.scratch import clear_left_behind, scratch_name

__all__ = ["SCHEMA", "Store", "packed", "unpacked"]

SCHEMA = 3
_LARGEST = 2**24  # bytes of a file that may be of this package's making, which as JSON fill 30 times as many
# What is half written, here, on another machine or by an earlier version, which named it by the file it was for.
_HALF_WRITTEN = re.compile(
    r"(scratch-.+|[0-9a-f]{32}|probe-.+)-[0-9]+-[0-9a-f]{8}\.tmp|probe-[0-9]+(-[0-9a-f]{8})?\.json"
)
T = TypeVar("T")
_DAY = 24 * 60 * 60  # seconds, which no writing takes


class Store:
    """Finished work by its identity.

    Two processes may use one store at once: files are replaced in one step, and hold the same.

    Args:
        folder: Made where it is missing.

    Raises:
        OSError: The folder cannot be made or written to; said before anything is computed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_left_behind(folder)
            self._clear_half_written()
            probe = self._temporary()
            self._write(probe, {})
            probe.unlink()
        except OSError as error:
            raise OSError(error.errno, f"the store cannot be written to ({error.strerror})", str(folder)) from error

    def read(self, identity: Mapping[str, Any], decode: Callable[[Any], T]) -> T | None:
        """What is stored under an identity, or None; a file that does not prove itself is reported and set aside.

        Args:
            identity: Of the work.
            decode: What makes of a result what is returned, or raises ValueError, KeyError or TypeError.
        """
        name = name_of(identity)
        path = self._path(name)
        try:
            text = path.read_bytes() if path.is_file() and path.stat().st_size <= _LARGEST else b""
            if not text and not path.exists():
                return None
        except FileNotFoundError:
            return None
        except OSError:  # a folder of this name, or what may not be read
            text = b""
        try:
            content = json.loads(text)
            if content["schema"] != SCHEMA or content["key"] != name or name_of(content["identity"]) != name:
                raise ValueError("it is of other work or another version")
            if content["proof"] != _proof(content["result"]):
                raise ValueError("its content was changed")
            return decode(content["result"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            aside = path.with_name(f"{path.name}.rejected-{time.time_ns()}")
            with suppress(FileNotFoundError):  # another process was faster
                os.replace(path, aside)
            warnings.warn(
                f"{path} is no finished work ({type(error).__name__}: {error}); it is computed again, and the "
                f"file kept as {aside.name}",
                stacklevel=2,
            )
            return None

    def write(self, identity: Mapping[str, Any], result: Mapping[str, Any], **metadata: Any) -> None:
        """Store a result under its identity.

        Raises:
            OSError: It cannot be written; what was written before stays.
        """
        name = name_of(identity)
        content = {
            "schema": SCHEMA,
            "key": name,
            "identity": identity,
            "result": result,
            "proof": _proof(result),
            "metadata": {
                **metadata,
                "host": platform.node(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        }
        path = self._path(name)
        try:
            self._write(path, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"finished work cannot be written ({error.strerror}); what was written before is kept, and a rerun "
                "goes on from there",
                str(path),
            ) from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _temporary(self) -> Path:
        # Processes of several machines may have one number.
        return self.folder / f"{scratch_name()}{secrets.token_hex(4)}.tmp"

    def _clear_half_written(self) -> None:
        """Remove what a killed process left of which nobody here can tell whether it is alive."""
        for path in self.folder.iterdir():
            with suppress(OSError):
                if _HALF_WRITTEN.fullmatch(path.name) and time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        temporary = self._temporary()
        try:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _proof(result: Any) -> str:
    text = json.dumps(result, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def packed(correct: Tensor) -> dict[str, Any]:
    """Bits as JSON."""
    bits = np.packbits(correct.numpy())
    return {"n": len(correct), "correct": base64.b64encode(bits.tobytes()).decode("ascii")}


def unpacked(result: Mapping[str, Any], n: int) -> Tensor:
    """The bits again, (n,) bool.

    Raises:
        ValueError: They are not that many.
        KeyError: They are no bits.
        TypeError: They are no bits.
    """
    bits = np.frombuffer(base64.b64decode(result["correct"], validate=True), dtype=np.uint8)
    if result["n"] != n or len(bits) != -(-n // 8):
        raise ValueError(f"there are not {n} bits")
    return torch.from_numpy(np.unpackbits(bits, count=n).astype(bool))
