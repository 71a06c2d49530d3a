"""What of an audit is drawn: some images and each method's maps of them, small enough to be written down."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["Maps", "drawn_maps"]

_ROWS, _SIDE = 5, 96
_BYTES = 2 * _ROWS * 3 * _SIDE**2  # of the images


@dataclass(frozen=True)
class Maps:
    """Images and maps of them, at most 5 and 96 pixels a side.

    Args:
        images: (K, C, H, W), C of 1 or 3; empty where the inputs are no images.
        targets: The explained class of each.
        maps: Name of the method to (K, 1, H, W), channels summed, each scaled to at most 1 in absolute value.
    """

    images: Tensor
    targets: tuple[int, ...] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def can_show(inputs: Tensor) -> bool:
        """Whether inputs are images that can be drawn."""
        return inputs.ndim == 4 and inputs.shape[1] in (1, 3)

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, maps: Mapping[str, Tensor]) -> Maps:
        """Some of the audited examples, with maps made by `drawn_maps`."""
        if not cls.can_show(inputs):
            return cls(torch.zeros(0, 1, 1, 1, device="cpu"))
        low, high = inputs.min(), inputs.max()
        if low < 0 or high > 1:  # normalised: on one scale for all, as far as that can be undone
            inputs = (inputs - low) / (high - low)
        at = _rows(len(inputs))
        return cls(_small(inputs[at]).half().float(), tuple(targets[at].tolist()), dict(maps))

    def to_dict(self) -> dict[str, Any]:
        """What `json` can write."""
        maps = {name: self.packed(values) for name, values in self.maps.items()}
        return {"images": self.packed(self.images), "targets": list(self.targets), "maps": maps}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Maps:
        """The reverse of `to_dict`."""
        maps = {name: cls.unpacked(values) for name, values in content["maps"].items()}
        return cls(cls.unpacked(content["images"]), tuple(content["targets"]), maps)

    @staticmethod
    def packed(values: Tensor) -> dict[str, Any]:
        """A tensor as JSON, in half precision."""
        raw = zlib.compress(values.half().numpy().astype("<f2").tobytes(), 9)
        return {"shape": list(values.shape), "float16_zlib": base64.b64encode(raw).decode("ascii")}

    @staticmethod
    def unpacked(content: Mapping[str, Any]) -> Tensor:
        """The tensor again, float32.

        Raises:
            ValueError: It is none, or larger than any that is drawn.
        """
        try:
            # A file of any origin may hold a few bytes that are as many as memory once they are unpacked.
            raw = zlib.decompressobj().decompress(base64.b64decode(content["float16_zlib"], validate=True), _BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"the picture cannot be unpacked: {error}") from error
        if len(raw) > _BYTES:
            raise ValueError(f"the picture has more than {_BYTES} bytes")
        return torch.from_numpy(np.frombuffer(raw, dtype="<f2").astype(np.float32).reshape(content["shape"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maps) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def drawn_maps(attributions: Tensor) -> Tensor:
    """The maps that are drawn, (K, 1, h, w) on the CPU, channels summed and scaled one by one.

    Args:
        attributions: (N, C, H, W).
    """
    summed = attributions[_rows(len(attributions))].detach().double().sum(dim=1, keepdim=True)
    small = _small(summed)
    largest = small.abs().amax(dim=(1, 2, 3), keepdim=True)
    return (small / torch.where(largest > 0, largest, 1)).half().float()


def _rows(n: int) -> list[int]:
    """Spread evenly over the examples, which may be in the order of their classes."""
    k = min(n, _ROWS)
    return [i * n // k for i in range(k)]


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    shrink = max(1.0, max(height, width) / _SIDE)
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return adaptive_avg_pool2d(images.detach().cpu(), size) if shrink > 1 else images.detach().cpu()
