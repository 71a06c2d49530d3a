"""Maps of what are no images: bars of features, lines of signals, tokens in colour."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from captum_density._display.style import COLORS, LINE, lines_of, write_caption
from captum_density.audit._maps import Maps

__all__ = ["FEATURES", "draw_bars", "draw_signals", "draw_tokens"]

# Of the features as many are drawn as people read: the strongest, by the methods' mean.
FEATURES = 10
_POSITIVE, _NEGATIVE = "#b35806", "#542788"  # orange and purple, as of images
_CELL, _NAMES, _WIDTH = 1.6, 1.7, 20
_TOKEN, _ROW = 0.34, 0.24


def draw_bars(maps: Maps, caption: str | None = None) -> Picture:
    """A row for each example of a table, a column for each method; the example's values beside the features' names."""
    k, methods = len(maps.images), list(maps.maps)
    shown = min(FEATURES, maps.images.shape[1])
    picture = _captioned(_NAMES + _CELL * len(methods), k * (0.16 * shown + 0.35) + 0.4, caption)
    grid = picture.subplots(k, len(methods), squeeze=False, sharey="row")
    for row in range(k):
        strength = torch.stack([values[row].abs() for values in maps.maps.values()]).sum(dim=0)
        order = strength.argsort(descending=True)[:shown].sort().values.tolist()
        for axes, values in zip(grid[row], maps.maps.values(), strict=True):
            _bars(axes, values[row][order].tolist())
        names = [maps.names[i] if maps.names else f"feature {i}" for i in order]
        texts = [f"{_short(name)} {_value(maps.images[row, i].item())}" for name, i in zip(names, order, strict=True)]
        grid[row, 0].set_yticks(range(shown), [_plain(text) for text in texts], fontsize=7)
        grid[row, 0].set_ylim(shown - 0.5, -0.5)
    return _labelled(picture, grid, maps)


def draw_signals(maps: Maps, caption: str | None = None) -> Picture:
    """A row for each signal, its channels on the left, and each method's map below them on the same time steps."""
    k, methods = len(maps.images), list(maps.maps)
    picture = _captioned(0.9 + _CELL * (1 + len(methods)), 0.9 * k + 0.5, caption)
    grid = picture.subplots(k, 1 + len(methods), squeeze=False)
    for row in range(k):
        for channel, values in enumerate(maps.images[row]):
            grid[row, 0].plot(values.numpy(), color=COLORS[channel % len(COLORS)], linewidth=0.8)
        for axes, values in zip(grid[row, 1:], maps.maps.values(), strict=True):
            _area(axes, values[row, 0].tolist())
        for axes in grid[row]:
            axes.set_xlim(-0.5, maps.images.shape[2] - 0.5)
            axes.set_yticks([])
            axes.tick_params(labelsize=7, labelbottom=row == k - 1)
    return _labelled(picture, grid, maps, first="signal")


def draw_tokens(maps: Maps, caption: str | None = None) -> Picture:
    """A block for each text, its tokens from left to right, a row for each method."""
    methods, length = list(maps.maps), max(map(len, maps.tokens))
    picture = _captioned(1.8 + _TOKEN * length, len(maps.tokens) * (_ROW * len(methods) + 1.1), caption)
    for axes, text, label, values in zip(
        picture.subplots(len(maps.tokens), 1, squeeze=False)[:, 0],
        maps.tokens,
        maps.row_labels,
        zip(*maps.maps.values(), strict=True),
        strict=True,
    ):
        rows = [value[0].tolist() for value in values]
        axes.imshow(rows, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_yticks(range(len(methods)), [_plain(name) for name in methods], fontsize=7)
        axes.set_xticks(
            range(len(text)), [_plain(_short(token)) for token in text], fontsize=7, rotation=60, ha="right"
        )
        axes.set_title(_plain(label.replace("\n", ", ")), fontsize="small", loc="left")
    return picture


def _captioned(width: float, height: float, caption: str | None) -> Picture:
    """An empty picture with a caption below, which makes it taller."""
    lines = lines_of(caption, width)
    picture = Picture(figsize=(width, height + LINE * (1 + len(lines)) * bool(lines)), layout="constrained")
    write_caption(picture, lines)
    return picture


def _labelled(picture: Picture, grid: Any, maps: Maps, first: str | None = None) -> Picture:
    titles = [*([first] if first else []), *maps.maps]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(_plain(textwrap.fill(title, _WIDTH)), fontsize="small")
    for row, label in zip(grid, maps.row_labels, strict=True):
        row[0].set_ylabel(_plain("\n".join(textwrap.fill(line, 14) for line in label.split("\n"))), fontsize=7)
    return picture


def _bars(axes: Axes, values: list[float]) -> None:
    axes.barh(range(len(values)), values, color=[_POSITIVE if v >= 0 else _NEGATIVE for v in values], height=0.7)
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set_xlim(-1.05 if min(values) < 0 else 0, 1.05)
    axes.set_xticks([])
    axes.tick_params(labelsize=7)


def _area(axes: Axes, values: list[float]) -> None:
    steps = range(len(values))
    for color, part in ((_POSITIVE, [max(v, 0) for v in values]), (_NEGATIVE, [min(v, 0) for v in values])):
        axes.fill_between(steps, part, step="mid", color=color, linewidth=0)
    axes.axhline(0, color="grey", linewidth=0.6)
    axes.set_ylim(-1.05 if min(values) < 0 else 0, 1.05)


def _value(x: float) -> str:
    """Four digits, without an exponent as far as people read them."""
    rounded = float(f"{x:.4g}")
    return f"{rounded:.0f}" if 1e3 <= abs(rounded) < 1e7 else f"{rounded:.4g}"


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _plain(text: str) -> str:
    """So that matplotlib does not take what stands between two dollars for a formula."""
    return text.replace("$", r"\$")
