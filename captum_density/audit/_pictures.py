"""An audit as pictures: each figure of the methods in a panel of its own, and the maps beside the images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator, NullFormatter

from captum_density._display.style import COLORS, longest_line
from captum_density.audit._drawings import draw_bars, draw_signals, draw_tokens
from captum_density.audit._figures import FIGURES
from captum_density.audit._figures.figure import Figure, Panel
from captum_density.audit._maps import Maps
from captum_density.audit._results import Measured
from captum_density.plots import saliency_grid

__all__ = ["caption_of", "draw_figures", "draw_maps", "panel_text"]

_SIGNS = (
    "orange is positive, for the explained output; purple is negative, against it; maps without signs are orange "
    "throughout"
)
_BARS = f"bars: what a method attributes to each feature, as a share of the map's largest; {_SIGNS}"
_CAPTIONS = {
    "image": "left, what is predicted, and the label; white to orange: unsigned maps; orange and purple: positive and "
    "negative; each map on a scale of its own",
    "table": f"left, what is predicted, the label, and the strongest features with their values; {_BARS}",
    "signal": "left, what is predicted, the label, and the signal, a line for each channel; beside it what methods "
    f"attribute to the same time steps, channels together, as a share of the map's largest; {_SIGNS}",
    "text": "above, what is predicted, and the label; tokens from left to right, a row for each method, as a share of "
    f"the map's largest; {_SIGNS}",
}
_PANEL, _LINE, _CHARACTER = 3.0, 0.13, 0.07  # inches
# A method's name beside a panel has at most 4 lines; of what is longer, the middle is left out.
_WIDTH, _LENGTH = 24, 90
_SMALLEST = 1e-8  # where rounding begins

Rows = Mapping[str, Mapping[str, Measured]]


def draw_figures(
    methods: Rows, names: Sequence[str], columns: int = 3, panel: float = _PANEL, elements: str = "pixels"
) -> Picture:
    """Draw panels that share their rows, the methods.

    Args:
        methods: Name to name of the figure to what was measured.
        names: The figures to draw; those without a value in any method are left out.
        columns: Panels side by side, at most.
        panel: Width of a panel in inches, without the methods' names.
        elements: What inputs consist of.

    Raises:
        ValueError: There is nothing to draw.
    """
    figures = [FIGURES[name] for name in names if any(_has(row, name) for row in methods.values())]
    if not figures:
        raise ValueError("none of the methods has such a figure, so there is nothing to draw")
    columns = min(columns, len(figures))
    rows = -(-len(figures) // columns)
    labels = [_wrapped(name) for name in methods]
    heights = [label.count("\n") + 1.7 for label in labels]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    size = (_CHARACTER * longest_line(labels) + panel * columns, rows * (_LINE * sum(heights) + 1.0))
    picture = Picture(figsize=size, layout="constrained")
    grid = picture.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, figure in zip(grid.flat, figures, strict=False):
        _draw_panel(axes, figure, dict(zip(places, methods.values(), strict=True)), elements)
    for axes in list(grid.flat)[len(figures) :]:
        axes.set_visible(False)
    # Shared by all panels: methods from top to bottom.
    grid[0, 0].set_yticks(places, labels)
    grid[0, 0].set_ylim(sum(heights), 0)
    return picture


def _wrapped(name: str) -> str:
    half = (_LENGTH - 3) // 2
    short = name if len(name) <= _LENGTH else f"{name[:half]} … {name[-half:]}"
    return _unmathematical(textwrap.fill(short, _WIDTH))


def _unmathematical(text: str) -> str:
    """So that matplotlib does not take what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


def _has(row: Mapping[str, Measured], name: str) -> bool:
    return name in row and row[name].value is not None


def _draw_panel(axes: Axes, figure: Figure[Any], rows: Mapping[float, Mapping[str, Measured]], elements: str) -> None:
    panel, name = figure.panel, figure.name
    ends = {place: _ends(row[name], panel) for place, row in rows.items() if _has(row, name)}
    smallest = min(value for value, _, _ in ends.values())
    logarithmic = panel.logarithmic or 0 < smallest < panel.logarithmic_below
    if logarithmic:
        ends = {place: (max(_SMALLEST, a), max(_SMALLEST, b), max(_SMALLEST, c)) for place, (a, b, c) in ends.items()}
    for place, row in rows.items():
        if place in ends:
            value, low, high = ends[place]
            axes.plot([low, high], [place, place], color=COLORS[0], linewidth=1.5, alpha=0.5)
            axes.plot([value], [place], "o", color=COLORS[0], markersize=5)
            unit = _unit(row[name], panel)
            controls = [control.value / unit for control in row[name].controls]
            axes.scatter(controls, [place] * len(controls), marker="|", s=30, linewidth=1, color=COLORS[1])
        elif name in row and row[name].failed:
            axes.text(0.02, place, "failed", transform=axes.get_yaxis_transform(), va="center", fontsize="small")
    if logarithmic:
        axes.set_xscale("log")
        # Two decades at least, so that ticks are in it; not down to where a standard deviation reaches below 0.
        left = min(value for value, _, _ in ends.values()) / 3.2
        axes.set_xlim(left, max(100 * left, *(max(3.2 * value, high) for value, _, high in ends.values())))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    if panel.line is not None:
        at, text = panel.line
        axes.axvline(at, color=COLORS[1], linewidth=1, linestyle="--")
        beside = any(row[name].controls for row in rows.values() if name in row)
        also = "\nbars: maps that know nothing" if beside else ""
        axes.set_xlabel(f"dashed: {text}{also}", fontsize="small")  # a legend would lie on the dots of many methods
    title = figure.title.format(elements=elements)
    title = f"{title} / that of {figure.reference}" if panel.relative else title
    axes.set_title(f"{title}\n({figure.better})", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(axis="x", alpha=0.3)


def _ends(measured: Measured, panel: Panel) -> tuple[float, float, float]:
    """Value, and the ends of its interval or of one standard deviation, in the unit that is drawn."""
    value, spread = measured.value or 0.0, measured.spread or 0.0
    low = value - spread if measured.low is None else measured.low
    high = value + spread if measured.high is None else measured.high
    low = low if panel.signed else max(0.0, low)
    unit = _unit(measured, panel)
    return value / unit, low / unit, high / unit


def _unit(measured: Measured, panel: Panel) -> float:
    return (panel.relative and measured.reference) or 1.0


def panel_text(methods: Rows, name: str, elements: str = "pixels") -> str:
    """What a panel shows, in words, for those who do not see it."""
    figure = FIGURES[name]
    texts = []
    for method, row in methods.items():
        if _has(row, name):
            measured = row[name]
            unit = (
                f" ({figure.reference} {measured.reference:.2g})"
                if figure.panel.relative and measured.reference
                else ""
            )
            beside = f" (strongest control: {measured.controls[0].text()})" if measured.controls else ""
            texts.append(f"{method} {measured.text()}{unit}{beside}")
    return f"{figure.title.format(elements=elements)} by method, {figure.better}: {'; '.join(texts)}"


def caption_of(maps: Maps) -> str:
    """What pictures of maps show: colours, bars, and what is written beside them."""
    return _CAPTIONS.get("table" if maps.kind == "inputs" else maps.kind, _CAPTIONS["image"])


def draw_maps(maps: Maps | None, caption: bool = True) -> Picture:
    """Draw images beside their maps.

    Args:
        maps: Images and maps of them.
        caption: Whether to write below what the colours mean.

    Raises:
        ValueError: There are no images or no maps.
    """
    if maps is None or not len(maps.images) or not maps.maps:
        raise ValueError(
            "there are no maps to draw: the inputs are no images (N, 1 or 3, H, W), tables, signals or texts that can "
            "be drawn, or every method failed"
        )
    draw = {"table": draw_bars, "inputs": draw_bars, "signal": draw_signals, "text": draw_tokens}.get(maps.kind)
    if draw is not None:
        return draw(maps, caption_of(maps) if caption else None)
    return saliency_grid(
        maps.images,
        {_unmathematical(name): values for name, values in maps.maps.items()},
        row_labels=[_unmathematical(label) for label in maps.row_labels],
        caption=caption_of(maps) if caption else None,
    )
