"""An audit as pictures: each figure of the methods in a panel of its own, and the maps beside the images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from captum_density._display.style import COLORS, longest_line
from captum_density.audit._measures import MEASURES, Measured
from captum_density.audit._shown import Shown
from captum_density.plots import saliency_grid

__all__ = ["CAPTION", "described", "draw_figures", "draw_maps"]

CAPTION = (
    "left, the explained class; white to orange: unsigned maps; orange and purple: positive and negative; each map "
    "on a scale of its own"
)
_PANEL, _LINE, _CHARACTER = 3.0, 0.13, 0.07  # inches
# A method's name beside a panel has at most 4 lines; of what is longer, the middle is left out.
_WIDTH, _LENGTH = 24, 90
# Figures that are compared by their order of magnitude.
_LOGARITHMIC = ("completeness_gap", "seconds")
_SMALLEST = 1e-8  # where rounding begins
_SMALL = 0.02  # beside 1: where dots would lie on each other
# What marks chance, no effect, or the scale, by the figure.
_LINES = {
    "infidelity": (1.0, "a map of zeros"),
    "pixel_perturbation": (0.0, "chance"),
    "diff_roar": (0.0, "no difference"),
}

Figures = Mapping[str, Measured]


def draw_figures(
    methods: Mapping[str, Figures], measures: Sequence[str], columns: int = 3, panel: float = _PANEL
) -> Figure:
    """Draw panels that share their rows, the methods.

    Args:
        methods: Name to name of the figure to what was measured.
        measures: The figures to draw; those without a value in any method are left out.
        columns: Panels side by side, at most.
        panel: Width of a panel in inches, without the methods' names.

    Raises:
        ValueError: There is nothing to draw.
    """
    drawn = [each for each in measures if any(_has(figures, each) for figures in methods.values())]
    if not drawn:
        raise ValueError("none of the methods has such a figure, so there is nothing to draw")
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    names = [_wrapped(name) for name in methods]
    label = _CHARACTER * longest_line(names)
    heights = [name.count("\n") + 1.7 for name in names]
    places = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]
    size = (label + panel * columns, rows * (_LINE * sum(heights) + 1.0))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, each in zip(grid.flat, drawn, strict=False):
        _draw_panel(axes, each, dict(zip(places, methods.values(), strict=True)))
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_visible(False)
    # Shared by all panels: methods from top to bottom.
    grid[0, 0].set_yticks(places, names)
    grid[0, 0].set_ylim(sum(heights), 0)
    return figure


def _wrapped(name: str) -> str:
    half = (_LENGTH - 3) // 2
    short = name if len(name) <= _LENGTH else f"{name[:half]} … {name[-half:]}"
    return _unmathematical(textwrap.fill(short, _WIDTH))


def _unmathematical(text: str) -> str:
    """So that matplotlib does not take what stands between two dollars for a formula."""
    return text.replace("$", r"\$")


def _has(figures: Figures, each: str) -> bool:
    return each in figures and figures[each].value is not None


def _draw_panel(axes: Axes, each: str, methods: Mapping[float, Figures]) -> None:
    drawn = [_ends(figures[each], each) for figures in methods.values() if _has(figures, each)]
    small = each == "infidelity" and 0 < min(value for value, _, _ in drawn) < _SMALL
    logarithmic = each in _LOGARITHMIC or small
    ends = []
    for row, figures in methods.items():
        if not _has(figures, each):
            if each in figures and figures[each].failed:
                axes.text(0.02, row, "failed", transform=axes.get_yaxis_transform(), va="center", fontsize="small")
            continue
        value, low, high = _ends(figures[each], each)
        if logarithmic:
            value, low, high = (max(_SMALLEST, part) for part in (value, low, high))
        axes.plot([low, high], [row, row], color=COLORS[0], linewidth=1.5, alpha=0.5)
        axes.plot([value], [row], "o", color=COLORS[0], markersize=5)
        ends.append((value, high))
    if logarithmic:
        axes.set_xscale("log")
        # Two decades at least, so that ticks are in it; not down to where a standard deviation reaches below 0.
        left = min(value for value, _ in ends) / 3.2
        axes.set_xlim(left, max(100 * left, *(max(3.2 * value, high) for value, high in ends)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    if each in _LINES:
        at, text = _LINES[each]
        axes.axvline(at, color=COLORS[1], linewidth=1, linestyle="--")
        axes.set_xlabel(f"dashed: {text}", fontsize="small")  # a legend would lie on the dots of many methods
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
    shown = "; ".join(f"{name} {figure.text()}{_beside(figure, each)}" for name, figure in values.items())
    return f"{MEASURES[each].title} by method, {MEASURES[each].better}: {shown}"


def _beside(figure: Measured, each: str) -> str:
    """What the drawn figure is divided by."""
    return f" (a map of zeros {figure.reference:.2g})" if each == "infidelity" and figure.reference else ""


def draw_maps(shown: Shown | None, caption: bool = True) -> Figure:
    """Draw images beside their maps.

    Args:
        shown: Images and maps.
        caption: Whether to write below what the colours mean.

    Raises:
        ValueError: There are no images or no maps.
    """
    if shown is None or not len(shown.images) or not shown.maps:
        raise ValueError(
            "there are no maps to draw: the inputs are no images (N, 1 or 3, H, W), or every method failed"
        )
    return saliency_grid(
        shown.images,
        {_unmathematical(name): values for name, values in shown.maps.items()},
        row_labels=[f"class {target}" for target in shown.targets],
        caption=CAPTION if caption else None,
    )
