"""Panels and maps as they are drawn.

Of the private parts on purpose: single panels of figures that a report draws together.
"""

import itertools

import pytest
import torch
from matplotlib.colors import to_hex

from captum_density.audit import Measured
from captum_density.audit._figures import FIGURES
from captum_density.audit._maps import Maps
from captum_density.audit._pictures import draw_figures, draw_maps, panel_text
from tests.audit.reports import LONG, NAUGHTY, failed, pictures, report_of, row


def dots(axes):
    """Of each method that is drawn: its place, the value, and the ends of its line."""
    lines = [line for line in axes.lines if line.get_linestyle() != "--"]
    result = {}
    for bar, dot in zip(lines[::2], lines[1::2], strict=True):
        assert dot.get_marker() == "o" and bar.get_ydata()[0] == bar.get_ydata()[1] == dot.get_ydata()[0]
        result[float(dot.get_ydata()[0])] = (float(dot.get_xdata()[0]), *map(float, bar.get_xdata()))
    return result


def notes_of(methods, measure):
    """The same by the method's name."""
    (axes,) = draw_figures(methods, [measure]).axes
    labels = {
        float(place): label.get_text() for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert list(labels.values()) == list(methods) and list(labels) == sorted(labels)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # from top to bottom
    return axes, {labels[place]: ends for place, ends in dots(axes).items()}


def test_panels_draw_the_figures():
    spread, interval, none = Measured(0.5, 0.2), Measured(0.3, 0.9, low=0.1, high=0.6), Measured(None)
    methods = {"a": spread, "b": none, "c": interval, "d": failed(), "e": Measured(0.1, 0.4), "f": Measured(0.2)}
    want = {"a": (0.5, 0.3, 0.7), "c": (0.3, 0.1, 0.6), "e": (0.1, 0.0, 0.5), "f": (0.2, 0.2, 0.2)}
    for measure in ("sensitivity_max", "shift_sensitivity"):
        axes, result = notes_of({name: {measure: figure} for name, figure in methods.items()}, measure)
        assert result == {name: pytest.approx(ends, rel=1e-12) for name, ends in want.items()}
        assert axes.get_title() == f"{FIGURES[measure].title}\n({FIGURES[measure].better})"
        assert axes.get_xscale() == "linear" and not axes.get_xlabel()
    # Below 0 is meant for what can be there.
    for measure, text in (("pixel_perturbation", "chance"), ("diff_roar", "no difference")):
        axes, result = notes_of({name: {measure: figure} for name, figure in methods.items()}, measure)
        assert result["e"] == pytest.approx((0.1, -0.3, 0.5))
        (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert list(line.get_xdata()) == [0, 0] and axes.get_xlabel() == f"dashed: {text}"


def test_infidelity_is_drawn_in_units_of_a_map_of_zeros():
    methods = {"a": Measured(3.0, 1.0, reference=10.0), "b": Measured(3.0, 1.0, reference=5.0)}
    axes, result = notes_of({name: {"infidelity": figure} for name, figure in methods.items()}, "infidelity")
    assert result == {"a": pytest.approx((0.3, 0.2, 0.4)), "b": pytest.approx((0.6, 0.4, 0.8))}
    assert axes.get_title().startswith("infidelity / that of a map of zeros\n")
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(line.get_xdata()) == [1, 1] and axes.get_xlabel() == "dashed: a map of zeros"
    assert to_hex(line.get_color()) != to_hex(axes.lines[0].get_color())


@pytest.mark.parametrize("measure", ["completeness_gap", "seconds"])
def test_orders_of_magnitude(measure):
    methods = {"a": Measured(0.01, 0.02), "b": Measured(2.0, 0.5), "c": Measured(0.0), "d": Measured(1e-12)}
    axes, result = notes_of({name: {measure: figure} for name, figure in methods.items()}, measure)
    assert axes.get_xscale() == "log"
    assert result["a"] == pytest.approx((0.01, 1e-8, 0.03)) and result["b"] == pytest.approx((2.0, 1.5, 2.5))
    assert result["c"] == result["d"] == pytest.approx((1e-8, 1e-8, 1e-8))  # where rounding begins
    low, high = notes_of({"a": {measure: Measured(0.02, 0.1)}}, measure)[0].get_xlim()
    assert 0.005 < low < 0.02 < 0.12 <= high < 1  # a standard deviation below 0 does not make the panel
    low, high = notes_of({"a": {measure: Measured(0.02)}}, measure)[0].get_xlim()
    assert high / low >= 99  # so that there are ticks


def test_panels_are_those_that_hold_something():
    methods = {"a": row(), "b": row()}
    figure = draw_figures(methods, list(FIGURES))
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "infidelity / that of a map of zeros",
        "sensitivity",
        "shift sensitivity",
        "pixels beyond chance",
        "seconds",
    ]
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in report_of(methods).figure(["seconds"]).axes] == ["seconds\n(lower is better)"]
    assert len(report_of(methods).figure().axes) == 6
    for nothing in ({}, {"a": {}}, {"a": {"seconds": failed()}}):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_figures(nothing, ["seconds"])
    with pytest.raises(ValueError, match="nothing to draw"):
        report_of(methods).figure(["completeness_gap"])


@pytest.mark.parametrize("names", [["a"], [LONG], [LONG * 3, *(f"method {i}" for i in range(19))], [NAUGHTY, "$x$"]])
@pytest.mark.parametrize("measures", [["seconds"], list(row())])
def test_labels_stay_inside_and_apart(names, measures):
    figure = draw_figures({name: row() for name in names}, measures)
    figure.draw_without_rendering()
    whole = figure.bbox
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        low, high = axes.get_xlim()
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        visible = [label for place, label in ticks if low <= place <= high]
        assert visible
        texts = [axes.title, axes.xaxis.label, *axes.get_yticklabels(), *visible]
        boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
        if axes is figure.axes[0]:
            assert len([text for text in axes.get_yticklabels() if text.get_text()]) == len(names)
        for box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 8 and box.y1 <= whole.y1 + 1
        rows = sorted(
            (text.get_window_extent() for text in axes.get_yticklabels() if text.get_text()), key=lambda b: b.y0
        )
        assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(rows))
        assert axes.bbox.width > 100 and axes.title.get_window_extent().y0 >= axes.bbox.y1


def test_names_are_no_formulas_and_keep_both_ends():
    figure = draw_figures({"a $\\frac$ b": row(), LONG * 2: row()}, ["seconds"])
    plain, long = (label.get_text() for label in figure.axes[0].get_yticklabels())
    assert plain == r"a \$\frac\$ b"  # matplotlib's way of writing a dollar
    assert long.replace("\n", " ").startswith(LONG[:40]) and long.replace("\n", " ").endswith(LONG[-40:])
    assert "…" in long and long.count("\n") < 5
    maps = draw_maps(pictures(["a $\\frac$ b"]))
    maps.draw_without_rendering()  # a formula with this would raise


def test_described_holds_the_figures():
    methods = {"a": row(), "b": row(0.25), "c": {"seconds": failed()}}
    for measure in ("sensitivity_max", "pixel_perturbation", "seconds"):
        text = "; ".join(f"{name} {methods[name][measure].text()}" for name in "ab")
        assert (
            panel_text(methods, measure)
            == f"{FIGURES[measure].title.format(elements='pixels')} by method, {FIGURES[measure].better}: {text}"
        )
    assert "a 0.25 ± 0.1 (a map of zeros 2)" in panel_text(methods, "infidelity")


def test_maps_are_drawn():
    figure = report_of(shown=pictures(["a", "b"], images=3)).maps()
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "a", "b"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["class 0", "class 1", "class 2"]
    assert "white to orange" in figure.get_supxlabel().replace("\n", " ")
    for nothing in (None, Maps(torch.zeros(0, 1, 1, 1)), Maps(torch.rand(1, 1, 4, 4), (0,))):
        with pytest.raises(ValueError, match="no maps to draw"):
            report_of(shown=nothing).maps()
