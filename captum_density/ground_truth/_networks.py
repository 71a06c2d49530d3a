"""The networks that tasks share: a small transformer of tokens, convolutions of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Convolutional", "Reader", "one_hot"]


class Reader(nn.Module):
    """One-hot tokens (N, L, V) to logits: two layers with full attention, the last position answers.

    Each position is given its token and the one before, so that what stands behind a token is found by the first layer:
    induction is learned in seconds (C. Olsson et al., arXiv:2209.11895, "smeared keys").

    Args:
        vocabulary: V.
        length: L.
        classes: Of the logits.
        width: Of the residual stream.
    """

    def __init__(self, vocabulary: int, length: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(vocabulary, width, bias=False)
        self.embed_before = nn.Linear(vocabulary, width, bias=False)
        for embedding in (self.embed, self.embed_before):
            nn.init.normal_(embedding.weight)
        self.positions = nn.Parameter(torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    @property
    def attention(self) -> nn.Module:
        """The last layer that attends, of which position -1 answers."""
        return self.layers.layers[-1].self_attn

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, classes)."""
        before = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]
        return self.head(self.layers(self.embed(tokens) + self.embed_before(before) + self.positions)[:, -1])


class Convolutional(nn.Module):
    """Images (N, C, H, W) to logits: convolutions, each with a ReLU, and a linear layer.

    Captum's `LRP` takes it: it has no rule for `nn.Flatten`.

    Args:
        shape: (C, H, W).
        channels: Of each convolution.
        strides: Of each convolution.
        classes: Of the logits.
    """

    def __init__(
        self, shape: tuple[int, int, int], channels: Sequence[int], strides: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, height, width = shape
        for after, stride in zip(channels, strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
            before, height, width = after, -(-height // stride), -(-width // stride)
        self.features, self.head = nn.Sequential(*layers), nn.Linear(before * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes)."""
        return self.head(self.features(images).flatten(1))


def one_hot(ids: npt.NDArray[Any], vocabulary: int) -> Tensor:
    """(N, L) token ids as (N, L, V) float32."""
    return nn.functional.one_hot(torch.from_numpy(ids).long(), vocabulary).float()
