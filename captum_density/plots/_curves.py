"""Curves of several models or methods in one picture, with their spread over examples."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_density._display.style import CHARACTER, COLORS, LINE, MARKS, STYLES, lines_of, longest_line, write_caption
from captum_density._model.arrays import takes_arrays
from captum_density.metrics import PixelPerturbation

__all__ = ["density_ratio_curves", "pixel_perturbation_curves"]

_WIDTH, _HEIGHT = 6.0, 3.7  # inches, without legend and caption


@takes_arrays
def density_ratio_curves(
    noise_std: Sequence[float],
    ratios: Mapping[str, Tensor],
    *,
    caption: str | None = None,
) -> Figure:
    """Draw the log density ratio over the noise's standard deviation, one line for each model.

    The line is the median over examples, the band runs from the lower to the upper quartile. Where any goes beyond 10,
    the vertical axis is linear between -1 and 1 and logarithmic outside, as models differ by orders of magnitude and by
    sign; else it is linear.

    Args:
        noise_std: S standard deviations, positive, in ascending order.
        ratios: Name of the model to its ratios, (S, N), as `captum_density.metrics.density_ratio` returns them.
        caption: Text to write below.

    Returns:
        A figure, free of pyplot's state. Save it with `figure.savefig("density_ratio.png")`.

    Raises:
        ValueError: If nothing is given, a shape does not fit, values are not finite or the deviations not ascending.

    Example:
        >>> import torch
        >>> figure = density_ratio_curves([0.1, 0.2], {"plain": -torch.rand(2, 8), "anti": torch.rand(2, 8)})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['plain', 'anti']
    """
    at = [float(std) for std in noise_std]
    if not all(low < high < float("inf") for low, high in zip([0.0, *at], at, strict=False)):
        raise ValueError(f"noise_std must be positive and ascending, but is {at}")
    figure, axes = _axes(ratios)
    axes.axhline(0.0, color="grey", linewidth=0.8)
    extents = [_draw(axes, i, name, at, values) for i, (name, values) in enumerate(ratios.items())]
    if max(extents) > 10:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("standard deviation of the noise")
    axes.set_ylabel("log density ratio to the noiseless example, nats\nmedian and quartiles over examples")
    return _finish(figure, axes, caption)


def pixel_perturbation_curves(
    results: Mapping[str, PixelPerturbation],
    *,
    caption: str | None = None,
) -> Figure:
    """Draw the target's probability over the fraction of pixels kept, one line for each model or method.

    The line is the mean over examples, the band runs from the lower to the upper quartile; the legend gives the area
    under the mean.

    Args:
        results: Name to what `captum_density.metrics.pixel_perturbation` returned.
        caption: Text to write below, such as whether the top or the bottom was kept.

    Returns:
        A figure, free of pyplot's state. Save it with `figure.savefig("pixel_perturbation.png")`.

    Raises:
        ValueError: If nothing is given, or values are not finite.

    Example:
        >>> import torch
        >>> from captum_density.metrics import pixel_perturbation
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
        >>> result = pixel_perturbation(model, x, x, target=0, channels="singly")
        >>> figure = pixel_perturbation_curves({"input": result})
        >>> len(figure.axes[0].lines)
        1
    """
    figure, axes = _axes(results)
    for i, (name, result) in enumerate(results.items()):
        label = f"{name}: area {result.area.mean():.3f}"
        _draw(axes, i, name, result.fractions.tolist(), result.probability, label=label, mean=True)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("fraction of pixels kept")
    axes.set_ylabel("probability of the target\nmean and quartiles over examples")
    return _finish(figure, axes, caption)


def _axes(curves: Mapping[str, object]) -> tuple[Figure, Axes]:
    if not isinstance(curves, Mapping):
        raise TypeError(f"give a mapping, {{name: values}}, not {type(curves).__name__}")
    if not curves:
        raise ValueError("there is nothing to draw: give at least one {name: values}")
    figure = Figure(layout="constrained")
    return figure, figure.subplots()


def _draw(
    axes: Axes, i: int, name: str, at: list[float], values: Tensor, *, label: str | None = None, mean: bool = False
) -> float:
    """Draw a line and its band; returns how far from 0 they go."""
    if values.ndim != 2 or len(values) != len(at) or values.numel() == 0:
        raise ValueError(f"{name!r} must hold ({len(at)}, N) values, but has shape {tuple(values.shape)}")
    curves = values.detach().double().cpu()
    if not bool(curves.isfinite().all()):
        raise ValueError(f"{name!r} contains NaN or infinity")
    low, middle, high = curves.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device="cpu"), dim=1)
    line = curves.mean(1) if mean else middle
    color = COLORS[i % len(COLORS)]
    style = STYLES[i // len(COLORS) % len(STYLES)]  # the next one after each round of colours
    mark = MARKS[i % len(MARKS)]
    axes.plot(at, line.numpy(), color=color, linestyle=style, marker=mark, markersize=4, label=label or name)
    axes.fill_between(at, low.numpy(), high.numpy(), color=color, alpha=0.18, linewidth=0)
    return float(torch.stack([low, line, high]).abs().max())


def _finish(figure: Figure, axes: Axes, caption: str | None) -> Figure:
    axes.grid(visible=True, alpha=0.3)
    # Above the axes, as curves of both signs leave no corner free.
    labels = [str(label) for label in axes.get_legend_handles_labels()[1]]
    columns = 2 if longest_line(labels) <= _WIDTH / 2 / CHARACTER - 5 else 1
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    lines = lines_of(caption, _WIDTH)
    write_caption(figure, lines)
    figure.set_size_inches(_WIDTH, _HEIGHT + LINE * (len(lines) + -(-len(labels) // columns)))
    return figure
