"""What of an audit is drawn: some examples and each method's maps of them, small enough to be written down."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

__all__ = ["Maps", "drawn_maps", "shown_rows"]

_ROWS, _SIDE = 5, 96
_FEATURES, _CHANNELS, _STEPS = 4096, 8, 512
_BYTES = 2 * _ROWS * 3 * _SIDE**2  # of the images


@dataclass(frozen=True)
class Maps:
    """Examples and maps of them, at most 5, of at most 96 pixels a side or 512 time steps.

    Args:
        images: What is shown of the examples: (K, C, H, W) images, C of 1 or 3; (K, features) of a table; (K, C, L)
            signals; (K, 0) of texts. Empty where they are nothing that is drawn.
        targets: The explained class of each.
        maps: Name of the method to (K, 1, H, W), (K, features) or (K, 1, L), channels summed, each scaled to at most 1
            in absolute value.
        kind: As `Setting`'s.
        labels: What stands beside each; empty for the explained class.
        names: Of features.
        tokens: Of each text.
    """

    images: Tensor
    targets: tuple[int, ...] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    kind: str = "image"
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    tokens: tuple[tuple[str, ...], ...] = ()

    @property
    def row_labels(self) -> list[str]:
        """What stands beside each example."""
        return list(self.labels) or [f"class {target}" for target in self.targets]

    @staticmethod
    def can_show(inputs: Tensor, kind: str = "image") -> bool:
        """Whether inputs of a kind can be drawn."""
        if kind in ("table", "inputs"):
            return inputs.shape[1] <= _FEATURES
        return kind in ("signal", "text") or (kind == "image" and inputs.ndim == 4 and inputs.shape[1] in (1, 3))

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        targets: Tensor,
        maps: Mapping[str, Tensor],
        *,
        kind: str = "image",
        labels: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        tokens: tuple[tuple[str, ...], ...] = (),
    ) -> Maps:
        """Some of the audited examples, with maps made by `drawn_maps`."""
        if not cls.can_show(inputs, kind):
            return cls(torch.zeros(0, 1, 1, 1, device="cpu"))
        at = shown_rows(len(inputs))
        classes = tuple(targets[at].tolist())
        if kind != "image":
            shown = inputs[at]
            if kind == "text":  # its tokens are shown
                shown = shown[:, :0, 0]
            elif kind == "signal":
                shown = _shortened(shown[:, :_CHANNELS])
            return cls(_half(shown), classes, dict(maps), kind, labels, names, tokens)
        low, high = inputs.min(), inputs.max()
        if low < 0 or high > 1:  # normalised: on one scale for all, as far as that can be undone
            inputs = (inputs - low) / (high - low)
        return cls(_half(_small(inputs[at])), classes, dict(maps), kind, labels)

    def to_dict(self) -> dict[str, Any]:
        """What `json` can write."""
        maps = {name: self.packed(values) for name, values in self.maps.items()}
        content = {"images": self.packed(self.images), "targets": list(self.targets), "maps": maps}
        texts = {"labels": list(self.labels), "names": list(self.names), "tokens": [list(text) for text in self.tokens]}
        return content | {"kind": self.kind} | {name: value for name, value in texts.items() if value}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Maps:
        """The reverse of `to_dict`."""
        maps = {name: cls.unpacked(values) for name, values in content["maps"].items()}
        labels, names = tuple(content.get("labels", ())), tuple(content.get("names", ()))
        tokens = tuple(tuple(text) for text in content.get("tokens", ()))
        images, targets = cls.unpacked(content["images"]), tuple(content["targets"])
        return cls(images, targets, maps, content.get("kind", "image"), labels, names, tokens)

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
    """The maps that are drawn, (K, 1, ...) or (K, features) on the CPU, channels summed and scaled one by one.

    Args:
        attributions: (N, C, H, W) or (N, C, L), of which channels are summed; or (N, features).
    """
    values = attributions[shown_rows(len(attributions))].detach().double()
    if values.ndim > 2:
        values = values.sum(dim=1, keepdim=True)
    small = _small(values) if values.ndim == 4 else _shortened(values) if values.ndim == 3 else values.cpu()
    largest = small.abs().flatten(1).amax(dim=1).view(-1, *[1] * (small.ndim - 1))
    return _half(small / torch.where(largest > 0, largest, 1))


def shown_rows(n: int) -> list[int]:
    """Which of so many examples are shown: spread evenly, as they may be in the order of their classes."""
    k = min(n, _ROWS)
    return [i * n // k for i in range(k)]


def _half(values: Tensor) -> Tensor:
    """As it is written down."""
    return values.detach().cpu().half().float()


def _shortened(signals: Tensor) -> Tensor:
    """(K, C, L), of at most 512 steps."""
    signals = signals.detach().cpu()
    return adaptive_avg_pool1d(signals, _STEPS) if signals.shape[2] > _STEPS else signals


def _small(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    shrink = max(1.0, max(height, width) / _SIDE)
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return adaptive_avg_pool2d(images.detach().cpu(), size) if shrink > 1 else images.detach().cpu()
