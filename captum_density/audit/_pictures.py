"""An audit as pictures: each figure of the methods in a panel of its own, and the maps beside the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_density._figures import COLORS
from captum_density.audit._measures import MEASURES, Measured
from captum_density.audit._shown import Shown
from captum_density.plots import saliency_grid

__all__ = ["described", "draw_figures", "draw_maps"]

_PANEL, _ROW, _CHARACTER = 3.0, 0.26, 0.075  # inches
# Figures that are compared by their order of magnitude.
_LOGARITHMIC = ("completeness_gap", "seconds")
_SMALLEST = 1e-8  # where rounding begins
# What marks chance, no effect, or the scale, by the figure.
_LINES = {
    "infidelity": (1.0, "a map of zeros"),
    "pixel_perturbation": (0.0, "chance"),
    "diff_roar": (0.0, "no difference"),
}

Figures = Mapping[str, Measured]


def draw_figures(methods: Mapping[str, Figures], measures: Sequence[str], columns: int = 3) -> Figure:
    """Draw panels that share their rows, the methods.

    Args:
        methods: name to name of the figure to what was measured.
        measures: the figures to draw; those without a value in any method are left out.
        columns: panels side by side, at most.

    Raises:
        ValueError: there is nothing to draw.
    """
    drawn = [each for each in measures if any(_has(figures, each) for figures in methods.values())]
    if not drawn:
        raise ValueError("none of the methods has such a figure, so there is nothing to draw")
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    names = list(methods)
    label = _CHARACTER * max(map(len, names))
    size = (label + _PANEL * columns, rows * (_ROW * len(names) + 1.1))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, each in zip(grid.flat, drawn, strict=False):
        _draw_panel(axes, each, methods)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_visible(False)
    # Shared by all panels: methods from top to bottom.
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _has(figures: Figures, each: str) -> bool:
    return each in figures and figures[each].value is not None


def _draw_panel(axes: Axes, each: str, methods: Mapping[str, Figures]) -> None:
    logarithmic = each in _LOGARITHMIC
    for row, figures in enumerate(methods.values()):
        if not _has(figures, each):
            continue
        value, low, high = _ends(figures[each], each)
        if logarithmic:
            value, low, high = (max(_SMALLEST, part) for part in (value, low, high))
        axes.plot([low, high], [row, row], color=COLORS[0], linewidth=1.5, alpha=0.5)
        axes.plot([value], [row], "o", color=COLORS[0], markersize=5)
    if logarithmic:
        axes.set_xscale("log")
    if each in _LINES:
        at, text = _LINES[each]
        axes.axvline(at, color=COLORS[1], linewidth=1, linestyle="--", label=text)
        axes.legend(fontsize="x-small", loc="best", framealpha=0.7)
    title = "infidelity / that of a map of zeros" if each == "infidelity" else MEASURES[each].title
    axes.set_title(f"{title}\n({MEASURES[each].better})", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(axis="x", alpha=0.3)


def _ends(figure: Measured, each: str) -> tuple[float, float, float]:
    """Value, and the ends of its interval or of one standard deviation, in the unit that is drawn."""
    value = figure.value or 0.0
    spread = figure.spread or 0.0
    low = value - spread if figure.low is None else figure.low
    high = value + spread if figure.high is None else figure.high
    if each != "pixel_perturbation" and each != "diff_roar":
        low = max(0.0, low)
    unit = figure.reference if each == "infidelity" and figure.reference else 1.0
    return value / unit, low / unit, high / unit


def described(methods: Mapping[str, Figures], each: str) -> str:
    """What a panel shows, in words, for those who do not see it."""
    values = {name: figures[each] for name, figures in methods.items() if _has(figures, each)}
    shown = "; ".join(f"{name} {figure.text()}" for name, figure in values.items())
    return f"{MEASURES[each].title} by method, {MEASURES[each].better}: {shown}"


def draw_maps(shown: Shown | None) -> Figure:
    """Draw images beside their maps.

    Raises:
        ValueError: there are no images or no maps.
    """
    if shown is None or not len(shown.images) or not shown.maps:
        raise ValueError(
            "there are no maps to draw: the inputs are no images (N, 1 or 3, H, W), or every method failed"
        )
    return saliency_grid(
        shown.images,
        shown.maps,
        row_labels=[f"class {target}" for target in shown.targets],
        caption="left, the explained class; white to orange: unsigned maps; orange and purple: positive and negative; "
        "each map on a scale of its own",
    )
