"""Arrays by name: in this process as they are, in a worker mapped from a file."""

from __future__ import annotations

import functools
import hashlib
import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ArrayRef", "Arrays", "forget_arrays", "parts_of"]

_numbers = itertools.count()


@dataclass(frozen=True)
class ArrayRef:
    """An array that a worker can find, and whose name tells its content.

    Args:
        name: Hash of dtype, shape and content.
        path: The file that holds it, for other processes; None where there are none.
        local: The array itself; not sent to other processes.
    """

    name: str
    path: str | None
    local: Any = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "path": self.path, "local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def tensor(self, device: torch.device) -> Tensor:
        """The array on a device; on the CPU not copied."""
        return self._here().cpu() if device.type == "cpu" else _on_device(self, device)

    def _here(self) -> Tensor:
        if self.local is not None:
            return _tensor(self.local)
        # Mapped anew each time, so that no more than what is in use counts as memory; the pages are the system's, and
        # shared by the workers of a machine. Copied on writing, as PyTorch cannot be forbidden to write.
        return torch.from_numpy(np.load(str(self.path), mmap_mode="c", allow_pickle=False))


@functools.lru_cache(maxsize=12)
def _on_device(ref: ArrayRef, device: torch.device) -> Tensor:
    return ref._here().to(device)


def forget_arrays() -> None:
    """Let go of what this process holds on other devices or has mapped."""
    _on_device.cache_clear()


def _tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    if min(array.strides, default=0) < 0:  # PyTorch cannot read backwards
        return torch.from_numpy(array.copy())
    with warnings.catch_warnings():  # it may not be written to, and is not
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


class Arrays:
    """The arrays of one call, each named and, where other processes need it, written once.

    Args:
        folder: Where to write; None where nothing leaves the process.
        by_content: Whether names tell the content of tensors on other devices too, which are then copied to the host.
    """

    def __init__(self, folder: Path | None, by_content: bool = True) -> None:
        self._folder, self._by_content = folder, by_content or folder is not None
        self._refs: dict[int, tuple[Any, ArrayRef]] = {}

    def ref(self, array: Any) -> ArrayRef:
        """Name an array, a tensor or NumPy's."""
        if id(array) not in self._refs:
            if isinstance(array, Tensor) and array.device.type != "cpu" and not self._by_content:
                self._refs[id(array)] = (array, ArrayRef(f"array {next(_numbers)} of this process", None, array))
                return self._refs[id(array)][1]
            plain = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
            name = content_name(plain)
            path = _file_of(plain)
            if path is None and self._folder is not None:
                path = self._write(plain, name, self._folder)
            # With the array, so that no other one gets its number.
            self._refs[id(array)] = (array, ArrayRef(name, path, array if path is None else None))
        return self._refs[id(array)][1]

    @staticmethod
    def _write(array: Any, name: str, folder: Path) -> str:
        path = folder / f"{name}.npy"
        if not path.exists():
            np.save(path, array, allow_pickle=False)
        return str(path.absolute())


def _file_of(array: Any) -> str | None:
    """The .npy file whose whole content an array is, if it is a map of one."""
    if not (isinstance(array, np.memmap) and array.filename is not None and str(array.filename).endswith(".npy")):
        return None
    if array.mode == "c":
        return None  # it may have been written to, which its file does not know
    path = str(Path(str(array.filename)).absolute())
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    same = (whole.shape, whole.dtype, whole.strides) == (array.shape, array.dtype, array.strides)
    return path if same and whole.offset == array.offset else None


def content_name(array: Any) -> str:
    """Hash an array's dtype, shape and content."""
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    for part in parts_of(array):
        digest.update(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def parts_of(array: Any) -> Iterable[Any]:
    """An array, some rows at a time."""
    if array.ndim == 0:
        return [array.reshape(1)]
    rows = max(1, (1 << 24) // max(1, array[:1].nbytes))
    path = _file_of(array)
    # A map of its own for each part, so that what was read does not stay.
    return (
        (array if path is None else np.load(path, mmap_mode="r", allow_pickle=False))[start : start + rows]
        for start in range(0, len(array), rows)
    )
