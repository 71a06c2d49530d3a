"""What becomes of predictions without some attention: the scatter of single positions, the boxes of rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from captum_density._display.style import COLORS, LINE, MARKS, lines_of, write_caption
from captum_density.metrics import AttentionErasure, FractionToFlip

__all__ = ["attention_erasure_scatter", "fraction_to_flip_boxes"]

_WIDTH, _HEIGHT, _ROW = 6.0, 3.7, 0.24  # inches; without legend and caption, and of one box
_NAME = 2.2  # at most, of a ranking's name

T = TypeVar("T", AttentionErasure, FractionToFlip)


def attention_erasure_scatter(
    results: Mapping[str, AttentionErasure] | AttentionErasure,
    *,
    caption: str | None = None,
) -> Figure:
    """Draw the difference in divergence over the difference in attention, one point for each example.

    Above 0 the output moves further without the position of the largest weight than without the other one. If weights
    told how much, points would rise to the right. The legend gives the flip table in percent.

    Args:
        results: Name of the model to what `captum_density.metrics.attention_erasure` returned, or one such result.
            Examples with one position only are left out.
        caption: Text to write below.

    Returns:
        A figure, free of pyplot's state. Save it with `figure.savefig("attention_erasure.png")`.

    Raises:
        TypeError: Something else than such results.
        ValueError: If nothing is given, a result compares no example, or values are not finite.

    Example:
        >>> import torch
        >>> from captum_density.metrics import attention_erasure
        >>> class Pooled(torch.nn.Module):
        ...     def forward(self, x):
        ...         mean = (x.softmax(1) * x).sum(1)
        ...         return torch.stack([mean, 2.5 - mean], dim=1)
        >>> model = Pooled()
        >>> result = attention_erasure(model, model, torch.rand(20, 5))
        >>> figure = attention_erasure_scatter({"pooled": result})
        >>> len(figure.axes[0].collections[0].get_offsets())
        20
    """
    named = _named(results, AttentionErasure, "attention_erasure")
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.0, color="grey", linewidth=0.8)
    for i, (name, result) in enumerate(named.items()):
        at, delta_js = _compared(name, result)
        table = ", ".join(f"{cell} {share:.1f} %" for cell, share in result.flip_table.items())
        label = "\n".join([*_legend_lines(name), f"flips: {table}"])
        color, mark = COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]
        axes.scatter(at.numpy(), delta_js.numpy(), s=14, color=color, marker=mark, alpha=0.5, linewidth=0, label=label)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("attention weight of the top position less that of the other")
    axes.set_ylabel("Jensen-Shannon divergence without the top\nless that without the other, nats")
    return _finish(figure, axes, _HEIGHT, caption)


def fraction_to_flip_boxes(
    results: Mapping[str, FractionToFlip] | FractionToFlip,
    *,
    caption: str | None = None,
) -> Figure:
    """Draw which fraction of the positions is erased when the decision flips, one box for each ranking and model.

    A box runs from the lower to the upper quartile over examples, with a mark at the median; whiskers reach the last
    example within 1.5 times its width, and points are the others. Examples that never flip count as 1; their share
    stands on the right.

    Args:
        results: Name of the model to what `captum_density.metrics.fraction_to_flip` returned, or one such result.
        caption: Text to write below.

    Returns:
        A figure, free of pyplot's state. Save it with `figure.savefig("fraction_to_flip.png")`.

    Raises:
        TypeError: Something else than such results.
        ValueError: If nothing is given, a result does not hold (R, N) values for its R rankings, or values are not
            finite.

    Example:
        >>> import torch
        >>> from captum_density.metrics import fraction_to_flip
        >>> class Pooled(torch.nn.Module):
        ...     def forward(self, x):
        ...         mean = (x.softmax(1) * x).sum(1)
        ...         return torch.stack([mean, 1.5 - mean], dim=1)
        >>> model = Pooled()
        >>> result = fraction_to_flip(model, model, 3 * torch.rand(20, 5), rankings=["attention", "random"])
        >>> figure = fraction_to_flip_boxes(result)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['attention', 'random']
    """
    named = _named(results, FractionToFlip, "fraction_to_flip")
    for name, result in named.items():
        _check_fractions(name, result)
    rankings = list(dict.fromkeys(ranking for result in named.values() for ranking in result.names))
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    shares: dict[float, str] = {}
    centers = []
    y = 0.0
    for ranking in rankings:
        rows = []
        for i, result in enumerate(named.values()):
            if ranking in result.names:
                k = result.names.index(ranking)
                _box(axes, y, result.fraction[k].detach().double().cpu(), i)
                shares[y] = f"{100 * (~result.flipped[k]).double().mean().item():.0f} %"
                rows.append(y)
                y += 1
        centers.append((rows[0] + rows[-1]) / 2)
        y += 0.6 * (len(named) > 1)  # between groups
    for i, name in enumerate(named):
        if name:
            label = "\n".join(_legend_lines(name))
            axes.plot([], [], color=COLORS[i % len(COLORS)], marker=MARKS[i % len(MARKS)], linestyle="", label=label)
    labels = ["\n".join(lines_of(ranking, _NAME)) for ranking in rankings]
    axes.set_yticks(centers, labels, fontsize="small")
    axes.set_ylim(max(shares) + 0.7, -0.7)  # the first on top
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("fraction of positions erased at the first flip")
    right = axes.secondary_yaxis("right")
    right.set_yticks(list(shares), list(shares.values()), fontsize="small")
    right.tick_params(length=0)
    right.set_ylabel("never flips", fontsize="small")
    # Names of several lines need the room of several boxes.
    rows_needed = max(max(shares) + 1.4, len(labels) * max(label.count("\n") + 1 for label in labels) * LINE / _ROW)
    return _finish(figure, axes, _ROW * max(rows_needed, 4) + 0.6, caption)


def _named(results: Mapping[str, T] | T, kind: type[T], metric: str) -> dict[str, T]:
    named = {"": results} if isinstance(results, kind) else results
    if not isinstance(named, Mapping):
        raise TypeError(f"give what {metric} returned, or a mapping {{name: result}}, not {type(results).__name__}")
    if not named:
        raise ValueError("there is nothing to draw: give at least one {name: result}")
    for name, result in named.items():
        if not isinstance(result, kind):
            raise TypeError(f"{name!r} must be what {metric} returned, but is {type(result).__name__}")
    return dict(named)


def _compared(name: str, result: AttentionErasure) -> tuple[Tensor, Tensor]:
    """delta-alpha and delta-JS of the examples with two positions."""
    if not bool(result.compared.any()):
        raise ValueError(f"{name!r} compares no example: each attends to one position only")
    at, delta_js = (
        values[result.compared].detach().double().cpu() for values in (result.delta_attention, result.delta_js)
    )
    if not bool((at.isfinite() & delta_js.isfinite()).all()):
        raise ValueError(f"{name!r} contains NaN or infinity")
    return at, delta_js


def _check_fractions(name: str, result: FractionToFlip) -> None:
    shape = tuple(result.fraction.shape)
    if len(shape) != 2 or 0 in shape or shape[0] != len(result.names) or result.flipped.shape != shape:
        raise ValueError(f"{name!r} must hold ({len(result.names)}, N) fractions and flips, but has shape {shape}")
    if not bool(result.fraction.isfinite().all()):
        raise ValueError(f"{name!r} contains NaN or infinity")


def _box(axes: Axes, y: float, values: Tensor, i: int) -> None:
    """Draw a lying box. Matplotlib's own takes other words for lying in each of its versions."""
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu")).tolist()
    reach = 1.5 * (high - low)
    inside = (values >= low - reach) & (values <= high + reach)
    first, last = min(low, values[inside].min().item()), max(high, values[inside].max().item())
    color, far = COLORS[i % len(COLORS)], values[~inside].unique()
    axes.hlines([y, y], [first, high], [low, last], color=color, linewidth=1)
    axes.barh(y, high - low, left=low, height=0.7, color=to_rgba(color, 0.3), edgecolor=color, linewidth=1)
    axes.plot([middle], [y], color=color, marker=MARKS[i % len(MARKS)], markersize=6, linestyle="")
    axes.plot(far.numpy(), [y] * len(far), color=color, marker=".", markersize=3, linestyle="")


def _legend_lines(name: str) -> list[str]:
    return lines_of(name, _WIDTH - 1.6) if name else []


def _finish(figure: Figure, axes: Axes, height: float, caption: str | None) -> Figure:
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    labels: Sequence[str] = [str(label) for label in axes.get_legend_handles_labels()[1]]
    if labels:
        legend = axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    rows = sum(label.count("\n") + 1 for label in labels)
    lines = lines_of(caption, _WIDTH)
    write_caption(figure, lines)
    figure.set_size_inches(_WIDTH, height + LINE * (len(lines) + rows))
    return figure
