"""An audit's pictures as pixels, drawn once: one by one for the page, and joined for the files beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from PIL import Image as Pillow

from captum_density._display.style import LINE, lines_of
from captum_density.audit._figures import columns
from captum_density.audit._pictures import caption_of, draw_figures, draw_maps, panel_text
from captum_density.audit._results import Results, by_method

__all__ = ["Image", "Images", "draw_images"]

_DPI = 96  # a page's inch
_SCALE = 2  # pictures have twice as many pixels, for screens that do and for print
_MAPS = 6  # at most so many maps side by side
_NAMES = {"image": "images", "signal": "signals", "text": "texts"}
_COLUMNS = 3  # panels side by side in a file


@dataclass(frozen=True)
class Image:
    """A picture, drawn.

    Args:
        pixels: (H, W, 3) uint8.
        text: What it shows, for those who do not see it.
    """

    pixels: np.ndarray[Any, Any]
    text: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on a page."""
        height, width = self.pixels.shape[:2]
        return round(width / _SCALE), round(height / _SCALE)

    def png(self) -> bytes:
        """The content of a file."""
        file = io.BytesIO()
        Pillow.fromarray(self.pixels).save(file, "png")
        return file.getvalue()


@dataclass(frozen=True)
class Images:
    """What is drawn of an audit: a panel for each figure, and maps, at most six side by side, with their caption."""

    panels: Sequence[Image]
    maps: Sequence[Image]
    caption: str = ""

    def save_panels(self, path: Path) -> None:
        """Write the panels as one picture."""
        _save([self.panels[i : i + _COLUMNS] for i in range(0, len(self.panels), _COLUMNS)], path)

    def save_maps(self, path: Path) -> None:
        """Write the maps as one picture, with what their colours mean."""
        inches = max(image.pixels.shape[1] for image in self.maps) / (_SCALE * _DPI)
        lines = lines_of(self.caption, inches)
        caption = Picture(figsize=(inches, LINE * (1 + len(lines))))
        caption.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize="small")
        _save([*([image] for image in self.maps), [_image(caption, self.caption)]], path)


def draw_images(results: Results, *, texts: bool = True) -> Images:
    """Draw what there is to draw.

    Args:
        results: The audit.
        texts: Whether to draw tokens, which the page writes.
    """
    panels = [
        _image(
            draw_figures(results.methods, [figure.name], panel=2.2, elements=results.elements),
            panel_text(results.methods, figure.name, results.elements),
        )
        for figure in columns(results)
        if by_method(results, figure.name)
    ]
    maps = results.shown
    if maps is None or not maps.maps or not len(maps.images) or (maps.kind == "text" and not texts):
        return Images(panels, [])
    names = list(maps.maps)
    size = -(-len(names) // -(-len(names) // _MAPS))
    drawn = []
    for part in (names[start : start + size] for start in range(0, len(names), size)):
        text = (
            f"{len(maps.images)} of the audited {_NAMES.get(maps.kind, 'examples')}, of the explained classes "
            f"{', '.join(map(str, maps.targets))}, each beside its attributions by {', '.join(part)}"
        )
        drawn.append(_image(draw_maps(replace(maps, maps={n: maps.maps[n] for n in part}), caption=False), text))
    return Images(panels, drawn, caption_of(maps))


def _image(picture: Picture, text: str) -> Image:
    picture.set_dpi(_SCALE * _DPI)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return Image(np.asarray(canvas.buffer_rgba())[..., :3].copy(), text)


def _save(rows: Sequence[Sequence[Image]], path: Path) -> None:
    """Join rows of pictures, on white."""
    widths = [sum(image.pixels.shape[1] for image in row) for row in rows]
    heights = [max(image.pixels.shape[0] for image in row) for row in rows]
    whole = np.full((sum(heights), max(widths), 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        top, left = sum(heights[:i]), 0
        for image in row:
            height, width = image.pixels.shape[:2]
            whole[top : top + height, left : left + width] = image.pixels
            left += width
    Pillow.fromarray(whole).save(path, "png", dpi=(_SCALE * _DPI,) * 2)
