"""Pictures of attention erasure: what is drawn where, room for texts, and what cannot be drawn."""

import io
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from captum_density.metrics import AttentionErasure, FractionToFlip
from captum_density.plots import attention_erasure_scatter, fraction_to_flip_boxes

LONG = "a model of a rather longer name than anyone would want to read in a legend, trained for 90 epochs on reviews"
MODELS = ["plain", "score-matching", LONG, "transformer"]
RANKINGS = ["attention", "gradient", "gradient x attention", "random", f"integrated gradients of {LONG}", "LIME"]
CAPTION = "a caption of more words than fit on one line of the figure that it is written below, by far, " * 2


def erasure(n=40, alone=0):
    """Of n examples, the first few of which have one position only."""
    compared = torch.arange(n) >= alone
    js = torch.rand(2, n, dtype=torch.float64).mul(0.6).masked_fill(~compared, torch.nan)
    flips = (torch.rand(2, n) < 0.3) & compared
    where = torch.zeros(n, dtype=torch.long)
    return AttentionErasure(where, where, torch.rand(n), js[0], js[1], flips[0], flips[1], compared)


def flips(names, n=40):
    fraction = (torch.rand(len(names), n, dtype=torch.float64) * 1.5).clamp(max=1.0)
    return FractionToFlip(tuple(names), fraction, fraction < 1)


@pytest.mark.parametrize("alone", [0, 7])
def test_points_are_the_examples_compared_and_the_legend_counts_their_flips(alone):
    results = {name: erasure(alone=alone) for name in ("GRU", "transformer")}
    (axes,) = attention_erasure_scatter(results).axes
    (zero,) = axes.lines
    assert list(zero.get_ydata()) == [0, 0]
    for points, text, (name, result) in zip(
        axes.collections, axes.get_legend().get_texts(), results.items(), strict=True
    ):
        rows = slice(alone, None)
        expected = np.stack([result.delta_attention[rows], result.js_top[rows] - result.js_other[rows]], 1)
        assert np.allclose(points.get_offsets(), expected)
        pairs = Counter(zip(result.flips_top[rows].tolist(), result.flips_other[rows].tolist(), strict=True))
        both, top, other, neither = (
            f"{100 * pairs[pair] / (40 - alone):.1f}"
            for pair in ((True, True), (True, False), (False, True), (False, False))
        )
        flipped = f"flips: both {both} %, top only {top} %, other only {other} %, neither {neither} %"
        assert text.get_text() == f"{name}\n{flipped}"
    assert "weight of the top position less" in axes.get_xlabel() and "nats" in axes.get_ylabel()
    low, high = axes.get_ylim()
    offsets = np.concatenate([points.get_offsets() for points in axes.collections])
    assert axes.get_xlim()[0] == 0 and low < offsets[:, 1].min() and high > offsets[:, 1].max()


def test_models_differ_in_colour_and_in_mark():
    (axes,) = attention_erasure_scatter({name: erasure() for name in MODELS}).axes
    assert len({to_hex(points.get_facecolor()[0]) for points in axes.collections}) == 4
    assert len({points.get_paths()[0].vertices.tobytes() for points in axes.collections}) == 4
    handles = axes.get_legend().legend_handles
    assert [handle.get_alpha() for handle in handles] == [1.0] * 4


def _boxes(axes):
    """For each box, from the top: its place, both ends, its median and its colour."""
    medians = {float(line.get_ydata()[0]): line for line in axes.lines if len(line.get_xdata()) == 1 and _big(line)}
    result = []
    for patch in axes.patches:
        y = patch.get_y() + patch.get_height() / 2
        line = medians[round(y, 9)]
        ends = (patch.get_x(), patch.get_x() + patch.get_width())
        result.append((y, ends, float(line.get_xdata()[0]), to_hex(patch.get_edgecolor())))
    return sorted(result)


def _big(line):
    return line.get_marker() != "."


def test_a_box_has_quartiles_a_median_and_the_share_that_never_flips():
    result = flips(RANKINGS[:3])
    (axes,) = fraction_to_flip_boxes(result).axes
    for (y, ends, median, _), fraction, tick in zip(_boxes(axes), result.fraction, axes.get_yticks(), strict=True):
        low, middle, high = np.quantile(fraction, [0.25, 0.5, 0.75])
        assert np.allclose([*ends, median], [low, high, middle]) and tick == y
    assert [label.get_text() for label in axes.get_yticklabels()] == RANKINGS[:3]
    (right,) = axes.child_axes
    shares = [f"{100 * (f == 1).double().mean().item():.0f} %" for f in result.fraction]
    assert [label.get_text() for label in right.get_yticklabels()] == shares
    assert right.get_ylabel() == "never flips" and axes.yaxis_inverted() and axes.get_legend() is None
    assert list(right.get_yticks()) == list(axes.get_yticks())


@pytest.mark.parametrize(
    ("values", "whiskers", "points"),
    [
        ([0.4, 0.5, 0.5, 0.6, 0.8], (0.4, 0.6), [0.8]),  # quartiles 0.5 and 0.6: up to 0.75
        ([0.05, 0.5, 0.5, 0.6, 0.7], (0.5, 0.7), [0.05]),
        ([0.0, 1.0, 1.0, 1.0], (0.75, 1.0), [0.0]),  # quartiles 0.75 and 1: no whisker inside the box
        ([0.5, 0.5, *[1.0] * 8], (1.0, 1.0), [0.5]),  # equal points are drawn once
        ([0.2, 0.4, 0.6, 0.8], (0.2, 0.8), []),
        ([0.3], (0.3, 0.3), []),
    ],
)
def test_whiskers_reach_one_and_a_half_boxes_and_points_are_beyond(values, whiskers, points):
    result = FractionToFlip(("a",), torch.tensor([values], dtype=torch.float64), torch.ones(1, len(values)).bool())
    (axes,) = fraction_to_flip_boxes({"": result}).axes
    (lines,) = axes.collections
    left, right = (path.vertices[:, 0] for path in lines.get_paths())
    _, (low, high), _, _ = _boxes(axes)[0]
    assert [*left, *right] == pytest.approx([whiskers[0], low, high, whiskers[1]])
    (small,) = [line for line in axes.lines if not _big(line)]
    assert list(small.get_xdata()) == points


def test_models_stand_side_by_side_under_each_ranking_they_have():
    results = {"one": flips(["attention", "random"]), "two": flips(["random", "gradient"])}
    (axes,) = fraction_to_flip_boxes(results).axes
    boxes = _boxes(axes)
    blue, red = boxes[0][3], boxes[-1][3]
    assert [color for *_, color in boxes] == [blue, blue, red, red] and blue != red
    medians = [results[m].fraction[k].quantile(0.5).item() for m, k in (("one", 0), ("one", 1), ("two", 0), ("two", 1))]
    assert [median for _, _, median, _ in boxes] == pytest.approx(medians)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attention", "random", "gradient"]
    assert list(axes.get_yticks()) == pytest.approx([boxes[0][0], (boxes[1][0] + boxes[2][0]) / 2, boxes[3][0]])
    assert boxes[2][0] - boxes[1][0] < boxes[1][0] - boxes[0][0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert to_hex(axes.get_legend().legend_handles[0].get_color()) == blue


def _figures():
    return {
        "scatter": attention_erasure_scatter(erasure()),
        "scatters": attention_erasure_scatter({name: erasure() for name in MODELS}, caption=CAPTION),
        "box": fraction_to_flip_boxes(flips(RANKINGS[:1])),
        "long box": fraction_to_flip_boxes(flips(RANKINGS[4:5]), caption=CAPTION),
        "long boxes": fraction_to_flip_boxes(flips([f"{i} {RANKINGS[4]}" for i in range(6)])),
        "boxes": fraction_to_flip_boxes(flips(RANKINGS), caption=CAPTION),
        "box of each": fraction_to_flip_boxes({name: flips(RANKINGS[:1]) for name in MODELS}),
        "boxes of each": fraction_to_flip_boxes({name: flips(RANKINGS) for name in MODELS}, caption=CAPTION),
    }


def test_texts_lie_inside_and_apart_and_pyplot_knows_nothing():
    open_figures = plt.get_fignums()
    for name, figure in _figures().items():
        figure.savefig(io.BytesIO(), format="png")
        (axes,) = figure.axes
        low, high = sorted(axes.get_ylim())
        labels = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        labels += [axes.xaxis.label, axes.yaxis.label]
        for right in axes.child_axes:
            labels += [*right.get_yticklabels(), right.yaxis.label]
        labels += [figure._supxlabel] if figure._supxlabel else []
        boxes = {f"{i} {label.get_text()}": label.get_window_extent() for i, label in enumerate(labels)}
        boxes = {text: box for text, box in boxes.items() if box.width > 0}
        if axes.get_legend():
            boxes["legend"] = axes.get_legend().get_window_extent()
        picture = axes.get_window_extent()
        assert picture.width > 0.5 * figure.bbox.width and picture.height > 0.3 * figure.dpi, name
        for text, box in boxes.items():
            where = f"{name}: {text}"
            assert box.x0 >= -0.5 and box.x1 <= figure.bbox.x1 + 0.5, f"{where} leaves the figure"
            assert box.y0 >= -0.5 and box.y1 <= figure.bbox.y1 + 0.5, f"{where} leaves the figure"
            others = [picture, *(other for key, other in boxes.items() if key != text)]
            assert not any(box.shrunk(0.98, 0.9).overlaps(other) for other in others), f"{where} lies on something"
    assert plt.get_fignums() == open_figures


def test_legends_and_captions_leave_the_picture_its_size():
    def height(figure):
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    bare, full = (attention_erasure_scatter(erasure()), _figures()["scatters"])
    assert height(full) > 0.9 * height(bare)
    bare, full = (fraction_to_flip_boxes(flips(RANKINGS[:4]), caption=c) for c in (None, "one\ntwo\nthree"))
    assert height(full) > 0.9 * height(bare)


@pytest.mark.parametrize(
    ("draw", "metric"),
    [(attention_erasure_scatter, "attention_erasure"), (fraction_to_flip_boxes, "fraction_to_flip")],
)
def test_what_is_no_result_is_refused(draw, metric):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({})
    for value in (torch.rand(3), [erasure()], None):
        with pytest.raises(TypeError, match=f"give what {metric} returned, or a mapping"):
            draw(value)
    with pytest.raises(TypeError, match=f"'plain' must be what {metric} returned, but is Tensor"):
        draw({"plain": torch.rand(3)})


@pytest.mark.parametrize("field", ["delta_attention", "js_top", "js_other"])
def test_scatters_that_cannot_be_drawn(field):
    good = erasure()
    bad = good._replace(**{field: getattr(good, field).clone().index_fill(0, torch.tensor([3]), torch.nan)})
    with pytest.raises(ValueError, match="'plain' contains NaN"):
        attention_erasure_scatter({"good": good, "plain": bad})
    with pytest.raises(ValueError, match="'plain' compares no example"):
        attention_erasure_scatter({"plain": erasure(4, alone=4)})


def test_boxes_that_cannot_be_drawn():
    good = flips(["a", "b"])
    with pytest.raises(ValueError, match="'plain' contains NaN"):
        fraction_to_flip_boxes({"good": good, "plain": good._replace(fraction=good.fraction / 0)})
    for bad in (
        good._replace(names=("a",)),
        good._replace(fraction=good.fraction[0]),
        good._replace(flipped=good.flipped[:, :3]),
        FractionToFlip(("a",), torch.zeros(1, 0), torch.zeros(1, 0).bool()),
    ):
        with pytest.raises(ValueError, match=r"'plain' must hold \(\d, N\) fractions and flips"):
            fraction_to_flip_boxes({"plain": bad})


def test_results_of_other_precision_or_with_a_graph_are_drawn():
    result = erasure()
    result = result._replace(js_top=result.js_top.requires_grad_(), delta_attention=result.delta_attention.bfloat16())
    points = attention_erasure_scatter(result).axes[0].collections[0].get_offsets()
    assert np.allclose(points[:, 0], result.delta_attention.float())
    fraction = torch.tensor([[0.25, 0.5, 1.0]], dtype=torch.bfloat16)
    (axes,) = fraction_to_flip_boxes(FractionToFlip(("a",), fraction, fraction < 1)).axes
    assert [median for _, _, median, _ in _boxes(axes)] == [0.5]
