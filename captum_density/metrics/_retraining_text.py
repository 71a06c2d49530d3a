"""A retraining result in words, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_density._display.intervals import interval
from captum_density._display.style import COLORS, LINE, MARKS, lines_of, write_caption
from captum_density._display.tables import markdown
from captum_density.metrics._retraining_scores import RetrainingScores

__all__ = ["conclusions", "draw", "rows_of", "table", "words_of"]

_WIDTH, _HEIGHT = 3.1, 2.9  # inches, of one attribution's axes
_CONTROLS = ("random", "input_agnostic", "mask_only", "blurred")  # the order of colours


def conclusions(result: RetrainingScores) -> tuple[str, ...]:
    """Sentences, each from the figures alone."""
    if all(count == result.d for count in result.counts):
        what = "everything" if result.metric == "roar" else "nothing"
        return (f"{what} was removed, so there is nothing to conclude: give fractions below 1",)
    words = []
    learned = result.unmasked.double().mean().item()
    if learned < result.chance + min(0.05, (1 - result.chance) / 2):
        words.append(
            f"Even on whole examples the models reach an accuracy of {learned:.2f} only (largest class: "
            f"{result.chance:.2f}): train them longer or otherwise before reading anything into this."
        )
    for i, name in enumerate(result.attributions):
        claim, sign = _claim(result, i)
        reasons = _undone(result, i, sign)
        but = f". But {'; and '.join(reasons)}" if reasons else ""
        words.append(f"{name}: {claim}{but}.")
    return tuple(words)


def _claim(result: RetrainingScores, i: int) -> tuple[str, int]:
    """What an attribution's figures say, and which sign of a difference would agree; 0 where they say nothing."""
    mean = result.means()[i]
    spread = f"{result.name} {_signed(result, mean[0])} [{_signed(result, mean[1])}, {_signed(result, mean[2])}]"
    spread += ", mean over fractions below 1"
    if result.metric == "diff_roar":
        if mean[1] > 0:
            return f"what it ranks high predicts better than what it ranks low ({spread})", 1
        if mean[2] < 0:
            return f"what it ranks low predicts better than what it ranks high ({spread})", -1
        return f"what it ranks high and low predict alike, as far as these runs tell ({spread})", 0
    better = -1 if result.metric == "roar" else 1
    if "random" not in result.controls:
        return f"{spread}; without the random control there is nothing to compare it with", 0
    difference = result.difference("random")[i] * better
    ends = sorted(difference[1:].tolist())
    removed = result.metric == "roar"
    what = (
        "removing what it ranks high costs {} accuracy than removing as much at random"
        if removed
        else "what it ranks high predicts {} than as much taken at random"
    )
    if ends[0] > 0:
        return f"{what.format('more' if removed else 'better')} ({spread})", better
    if ends[1] < 0:
        return f"{what.format('less' if removed else 'worse')} ({spread})", -better
    return f"not told from a random ranking by these runs ({spread})", 0


def _undone(result: RetrainingScores, i: int, sign: int) -> list[str]:
    """What takes from the claim: controls that do as well, masks that tell the class, smoothness that is rewarded."""
    reasons = _elsewhere(result, i, sign)
    if result.constant and result.constant[i] > 0:
        reasons.append(
            f"{result.constant[i]:.1%} of its examples have the same attribution everywhere, and are ranked by position"
        )
    texts = {
        "random": "a random ranking ({}) is not told from it by these runs, so that this shows nothing",
        "input_agnostic": "one ranking for all examples shows {} ({}), so that nothing is shown of single examples",
    }
    if not sign or result.metric != "diff_roar":
        del texts["random"]  # it is in the claim
    for control, text in texts.items():
        if not sign or control not in result.controls:
            continue
        ends = sorted((result.difference(control)[i, 1:] * sign).tolist())
        if not ends[0] > 0:
            mean = result.means(control)
            score = _signed(result, mean[min(i, len(mean) - 1), 0])
            how = ["more of it"] if ends[1] < 0 else ["as much, as far as these runs tell"]
            reasons.append(text.format(*(how if control == "input_agnostic" else []), score))
    if "mask_only" in result.controls:
        reasons += _told_by_masks(result, i, sign)
    if "blurred" in result.controls:
        better = -1 if result.metric == "roar" else 1
        if max((result.difference("blurred")[i, 1:] * better).tolist()) < 0:
            score = _signed(result, result.means("blurred")[i, 0])
            reasons.append(
                f"the same attribution blurred, which knows nothing more of the model, scores better ({score}), so "
                "that a better score may mean no more than a smoother map"
            )
    return reasons


def _elsewhere(result: RetrainingScores, i: int, sign: int) -> list[str]:
    """Fractions at which DiffROAR says the opposite of the mean."""
    if result.metric != "diff_roar" or not sign:
        return []
    against = []
    for k, fraction in enumerate(result.fractions):
        score, low, high = (_signed(result, v) for v in (result.score[i, k], *result.intervals[i, k]))
        if (-result.intervals[i, k, 1] if sign > 0 else result.intervals[i, k, 0]) > 0:
            against.append(f"{score} [{low}, {high}] with {fraction:g} kept")
    return [f"it is the other way round at single fractions: {', '.join(against)}"] if against else []


def _told_by_masks(result: RetrainingScores, i: int, sign: int) -> list[str]:
    """Whether the masks' shape may be what predicts.

    For DiffROAR, the score of the control "mask_only" does not show it: where the masks of top and bottom tell the
    class alike, it is 0 however well they do. Accuracies do.
    """
    masks, pixels = result._resampled_power("mask_only")[i], result._resampled_power()[i]
    of_masks, of_pixels = (
        power[i][:, result._below].mean((1, 2)).tolist()
        for power in (result.control_power("mask_only"), result.predictive_power)
    )
    leak = interval(masks, result.level)[:, 0] > result.chance
    no_worse = leak & ~(interval(pixels - masks, result.level)[:, 0] > 0)
    alone = "its masks alone, without any input value,"
    if result.metric == "roar":
        if leak[0]:
            return [
                f"{alone} predict the class with accuracy {of_masks[0]:.3f} (largest class: {result.chance:.3f}), so "
                "that the accuracy left may overstate what remains"
            ]
    elif result.metric == "kar":
        if no_worse[0]:
            return [f"{alone} score {of_masks[0]:.3f}, so that the class may be read off the masks' shape"]
    elif sign:
        better, worse = (0, 1) if sign > 0 else (1, 0)
        if leak[better] and interval(masks[better] - pixels[worse], result.level)[0] > 0:
            part = "part" if interval(pixels[better] - masks[better], result.level)[0] > 0 else "part or all"
            return [
                f"{alone} predict with accuracy {of_masks[0]:.3f} (high) and {of_masks[1]:.3f} (low), where what they "
                f"keep does with {of_pixels[0]:.3f} and {of_pixels[1]:.3f}, so that {part} of this may be their shape"
            ]
    elif no_worse.any():
        return [
            f"{alone} predict the class with accuracy {of_masks[0]:.3f} and {of_masks[1]:.3f} (largest class: "
            f"{result.chance:.3f}), so that the masks' shape may hide a difference"
        ]
    return []


def rows_of(result: RetrainingScores) -> list[list[str]]:
    """The table's cells, headings first."""
    what = "removed" if result.metric == "roar" else "kept"
    heads = [f"{fraction:g} ({count})" for fraction, count in zip(result.fractions, result.counts, strict=True)]
    rows = [["ranking", f"mean, {result.level:.0%} interval", *(f"{what} {head}" for head in heads)]]
    for i, name in enumerate(result.attributions):
        rows.append([name, *_cells(result, None, i)])
        rows += [
            [f"{name}, {control}", *_cells(result, control, i)] for control in result.controls if control != "random"
        ]
    if "random" in result.controls:
        rows.append(["random", *_cells(result, "random", 0)])
    return rows


def table(result: RetrainingScores, words: Sequence[str]) -> str:
    """Markdown, then words as of `words_of`."""
    return "\n".join([markdown(rows_of(result)), "", *words])


def words_of(result: RetrainingScores, conclusions: Sequence[str], notes: Sequence[str]) -> list[str]:
    """What stands below the table."""
    accuracy = result.unmasked.double().mean().item()
    runs, examples = result.unmasked.shape
    meaning = {
        "diff_roar": "DiffROAR: accuracy of models retrained on what ranks high minus on what ranks low; higher is "
        "better, 0 is no better than random.",
        "roar": "ROAR: accuracy of models retrained without what ranks high; lower is better.",
        "kar": "KAR: accuracy of models retrained on what ranks high; higher is better.",
    }[result.metric]
    if result.metric == "diff_roar" and "mask_only" in result.controls:
        meaning += " Of mask_only, both accuracies, high / low: their difference hides what both masks tell."
    return [
        meaning,
        f"Means over {runs} {'run' if runs == 1 else 'runs'} and {examples} test examples; nothing removed: accuracy "
        f"{accuracy:.3f}, largest class: {result.chance:.3f}.",
        *conclusions,
        *notes,
    ]


def draw(result: RetrainingScores) -> Figure:
    """One axes for each attribution, its controls beside it, one scale for all."""
    count = len(result.attributions)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    # The masks' accuracies have no place on DiffROAR's scale; they are in the table.
    shown = [c for c in result.controls if not (result.metric == "diff_roar" and c == "mask_only")]
    width = max(5.0, _WIDTH * columns)
    titles = [lines_of(name, 0.85 * width / columns, "medium") for name in result.attributions]
    for i, axes in enumerate(grid.flat):
        if i >= count:
            axes.set_visible(False)
            continue
        for control in shown:
            j = min(i, len(result.controls[control]) - 1)
            style = _CONTROLS.index(control) + 1
            _draw(axes, result, result.control_score(control)[j], None, control.replace("_", " "), style)
        _draw(axes, result, result.score[i], result.intervals[i], "attribution", 0)
        if result.metric == "diff_roar":
            axes.axhline(0.0, color="grey", linewidth=0.8)
        else:
            axes.axhline(result.chance, color="grey", linewidth=0.8)
        axes.set_title("\n".join(titles[i]), fontsize="medium")
        axes.grid(visible=True, alpha=0.3)
        if i % columns == 0:
            axes.set_ylabel(result.name)
        if i + columns >= count:
            axes.set_xlabel(f"fraction {'removed' if result.metric == 'roar' else 'kept'}")
            axes.tick_params(labelbottom=True)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    per_row = max(1, int(width / 1.5))
    figure.legend(
        handles[-1:] + handles[:-1],
        labels[-1:] + labels[:-1],
        loc="outside upper center",
        ncols=per_row,
        fontsize="small",
        frameon=False,
    )
    line = "0: no better than random" if result.metric == "diff_roar" else "grey line: the largest class's share"
    caption = lines_of(f"Mean over {result.correct.shape[3]} runs, {result.level:.0%} interval; {line}", width)
    write_caption(figure, caption)
    legend = LINE * -(-len(labels) // per_row)
    height = _HEIGHT + LINE * (max(map(len, titles)) - 1)
    figure.set_size_inches(width, height * rows + legend + LINE * len(caption))
    return figure


def _draw(
    axes: Axes, result: RetrainingScores, line: torch.Tensor, band: torch.Tensor | None, label: str, style: int
) -> None:
    at = list(result.fractions)
    axes.plot(
        at,
        line.tolist(),
        color=COLORS[style],
        marker=MARKS[style],
        markersize=4,
        label=label,
        linestyle="-" if band is not None else "--",
        linewidth=1.8 if band is not None else 1.0,
        alpha=1.0 if band is not None else 0.8,
    )
    if band is not None:
        axes.fill_between(at, band[:, 0].tolist(), band[:, 1].tolist(), color=COLORS[style], alpha=0.2, linewidth=0)


def _cells(result: RetrainingScores, control: str | None, i: int) -> list[str]:
    if result.metric == "diff_roar" and control == "mask_only":
        high, low = result.control_power(control)[i].mean(-1)
        below = result._below
        means = f"{high[below].mean():.3f} / {low[below].mean():.3f}" if below else "-"
        return [means, *(f"{a:.3f} / {b:.3f}" for a, b in zip(high.tolist(), low.tolist(), strict=True))]
    scores = result.score if control is None else result.control_score(control)
    mean = [_signed(result, value) for value in result.means(control)[i]]
    summary = "-" if mean[0] == "nan" else f"{mean[0]} [{mean[1]}, {mean[2]}]"
    return [summary, *(_signed(result, value) for value in scores[i])]


def _signed(result: RetrainingScores, value: torch.Tensor) -> str:
    number = value.item()
    if number != number:
        return "nan"
    text = f"{number:+.3f}" if result.metric == "diff_roar" else f"{number:.3f}"
    return "0.000" if text in ("-0.000", "+0.000") else text
