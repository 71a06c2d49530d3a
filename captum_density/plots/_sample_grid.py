"""Samples of several models, side by side."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from captum_density._display.style import CHARACTER, LINE, lines_of, longest_line, write_caption
from captum_density._model.arrays import takes_arrays
from captum_density.samplers import Samples

__all__ = ["sample_grid"]


@takes_arrays
def sample_grid(
    samples: Mapping[str, Tensor | Samples],
    *,
    column_labels: Sequence[str] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    caption: str | None = None,
    cell_size: float = 0.9,
) -> Figure:
    """Draw one row of images for each model.

    Args:
        samples: Name of the model to its samples, (N, C, H, W), C of 1 or 3, the same N for all, or what a sampler
            returned.
        column_labels: N texts to write above, such as the classes.
        bounds: Values drawn black and white (or without and with full colour); what lies outside is clipped.
        caption: Text to write below.
        cell_size: Width and height of one image in inches.

    Returns:
        A figure with one row of axes for each model, free of pyplot's state. Save it with
        `figure.savefig("samples.png")`.

    Raises:
        ValueError: If nothing is given, a shape does not fit, values are not finite, or the bounds hold nothing.

    Example:
        >>> import torch
        >>> figure = sample_grid({"plain": torch.rand(3, 1, 8, 8)}, column_labels=["0", "1", "2"])
        >>> [axes.get_title() for axes in figure.axes]
        ['0', '1', '2']
    """
    if not isinstance(samples, Mapping):
        raise TypeError(f"give a mapping, {{name: samples}}, not {type(samples).__name__}")
    rows = {name: value.samples if isinstance(value, Samples) else value for name, value in samples.items()}
    columns = _check(rows, column_labels, bounds)
    low, high = bounds
    width = cell_size * columns + CHARACTER * (longest_line(list(rows)) + 2)
    lines = lines_of(caption, width)
    figure = Figure(figsize=(width, cell_size * len(rows) + 0.3 + LINE * len(lines)), layout="compressed")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, images) in zip(grid, rows.items(), strict=True):
        scaled = ((images.detach().double().cpu() - low) / (high - low)).clamp(0, 1)
        for axes, image in zip(row, scaled, strict=True):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, rotation="horizontal", ha="right", va="center", fontsize="small")
    for axes, label in zip(grid[0], column_labels or (), strict=False):
        axes.set_title(label, fontsize="small")
    write_caption(figure, lines)
    return figure


def _check(samples: Mapping[str, Tensor], column_labels: Sequence[str] | None, bounds: tuple[float, float]) -> int:
    """How many columns there are."""
    if not samples:
        raise ValueError("there is nothing to draw: give at least one {name: samples}")
    if not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise ValueError(f"bounds must be (low, high), finite, with low < high, but is {bounds}")
    columns = len(next(iter(samples.values())))
    for name, images in samples.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) != columns or images.numel() == 0:
            raise ValueError(
                f"samples of {name!r} must have shape ({columns}, C, H, W) with C of 1 or 3, got {tuple(images.shape)}"
            )
        if not bool(images.isfinite().all()):
            raise ValueError(f"samples of {name!r} contain NaN or infinity")
    if column_labels is not None and len(column_labels) != columns:
        raise ValueError(f"column_labels must hold one text for each of {columns} columns, got {len(column_labels)}")
    return columns
