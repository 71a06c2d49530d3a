"""Pictures of attributions, drawn through `captum.attr.visualization`."""

import textwrap
from collections.abc import Mapping, Sequence

import torch
from captum.attr import visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_density._display.style import CHARACTER, LINE, lines_of, longest_line, write_caption
from captum_density._model.arrays import takes_arrays

__all__ = ["saliency_grid"]

# Told apart with every common colour vision deficiency; orange means positive in both.
_SIGNED_COLORS = "PuOr_r"
_UNSIGNED_COLORS = "Oranges"
_TITLE_WIDTH = 20  # characters, which is what fits above a cell of the default size


@takes_arrays
def saliency_grid(
    images: Tensor,
    attributions: Mapping[str, Tensor],
    *,
    row_labels: Sequence[str] | None = None,
    row_notes: Sequence[str] | None = None,
    caption: str | None = None,
    outlier_percent: float = 2.0,
    cell_size: float = 1.35,
) -> Figure:
    """Draw one row per image: the image itself, then its attribution by each method, under the method's name.

    Channels are summed, as Captum does. A method that gives any negative value is drawn signed: orange is positive,
    purple negative, white zero. The others run from white, a map's smallest value, to orange, since a map may stand on
    a floor well above zero, such as FullGrad's with `keep_floor`. Each map is scaled on its own, so colours compare
    places within a map, never strengths between two maps; a map of zeros, or an unsigned one with one value everywhere,
    stays blank.

    Args:
        images: (N, C, H, W), C of 1 or 3. Values in [0, 1] are shown as they are; images outside that range are
            stretched from their own minimum and maximum.
        attributions: Name of the method to its attributions, (N, C, H, W) or (N, 1, H, W).
        row_labels: N texts to write left of the rows, of one or more lines.
        row_notes: N texts to write right of the rows in a font of fixed width, so that figures line up.
        caption: Text to write below.
        outlier_percent: The strongest values, which hold this share of a map's absolute total, are clipped
            (``outlier_perc`` of Captum's `visualize_image_attr`); in [0, 100).
        cell_size: Width and height of one picture in inches.

    Returns:
        A figure with N rows of 1 + len(attributions) axes, free of pyplot's state: no window opens and nothing needs
        closing. Save it with ``figure.savefig("saliency.png")``.

    Raises:
        ValueError: A shape that does not fit, no images, no attributions, or values that are not finite.
        TypeError: Images or an attribution that is not a floating-point tensor; one text in place of N.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> figure = saliency_grid(images, {"ink": images, "signed": images - 0.5}, row_notes=["p 0.91", "p 0.98"])
        >>> [axes.get_title() for axes in figure.axes]
        ['image', 'ink', 'signed', '', '', '']
    """
    _check(images, attributions, outlier_percent)
    _check_texts(len(images), row_labels=row_labels, row_notes=row_notes)
    images = images.detach().cpu()
    maps = {name: attribution.detach().double().sum(dim=1).cpu() for name, attribution in attributions.items()}

    rows, columns = len(images), 1 + len(maps)
    width = cell_size * columns + CHARACTER * (longest_line(row_labels) + longest_line(row_notes))
    lines = lines_of(caption, width, fontsize="medium")
    height = cell_size * rows + 0.3 + (LINE * (1 + len(lines)) if lines else 0)
    # The layout for pictures of a fixed aspect: with "constrained", texts beside one tall column leave the figure.
    figure = Figure(figsize=(width, height), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        _draw_image(grid[row, 0], images[row])
        if row_labels is not None:
            grid[row, 0].set_ylabel(row_labels[row], rotation="horizontal", ha="right", va="center")
        if row_notes is not None:
            last = grid[row, -1]
            last.text(1.1, 0.5, row_notes[row], transform=last.transAxes, va="center", family="monospace", size="small")
        for column, values in enumerate(maps.values(), start=1):
            _draw_map(figure, grid[row, column], values[row], bool((values < 0).any()), outlier_percent)
    # The picture of a tall image is narrower than its cell.
    title_width = max(8, int(_TITLE_WIDTH * min(1.0, images.shape[3] / images.shape[2])))
    for axes, title in zip(grid[0], ("image", *maps), strict=True):
        axes.set_title(textwrap.fill(title, title_width), fontsize="small")
    write_caption(figure, lines, fontsize="medium")
    return figure


def _check(images: Tensor, attributions: Mapping[str, Tensor], outlier_percent: float) -> None:
    tensors = {"images": images, **{f"the attributions of {name!r}": value for name, value in attributions.items()}}
    for what, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            received = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{what} must be a floating-point tensor, got {received}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(f"images must have shape (N, C, H, W) with C of 1 or 3 and N > 0, got {tuple(images.shape)}")
    if not attributions:
        raise ValueError("attributions is empty: give at least one {name: tensor}")
    count, channels, *size = images.shape
    for what, tensor in tensors.items():
        if tuple(tensor.shape) not in {(count, channels, *size), (count, 1, *size)}:
            raise ValueError(
                f"{what} must have shape {(count, channels, *size)} or {(count, 1, *size)} like the images, "
                f"got {tuple(tensor.shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{what} must be finite, got {int((~tensor.isfinite()).sum())} NaN or infinite values")
    if not 0 <= outlier_percent < 100:
        raise ValueError(f"outlier_percent must be in [0, 100), got {outlier_percent}")


def _check_texts(count: int, **texts: Sequence[str] | None) -> None:
    for what, items in texts.items():
        if items is None:
            continue
        if isinstance(items, str):
            raise TypeError(f"{what} must be a sequence of texts, one per image, got the single text {items!r}")
        if len(items) != count:
            raise ValueError(f"{what} must hold one text per image, {count}, got {len(items)}")


def _hide_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_image(axes: Axes, image: Tensor) -> None:
    # Not through Captum: its `original_image` draws a grey image in matplotlib's default colours and fails on an
    # attribution of zeros, which it normalises even though the picture does not show it.
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        image = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    axes.imshow(image.permute(1, 2, 0).squeeze(-1).float().numpy(), cmap="gray", vmin=0, vmax=1)
    _hide_ticks(axes)


def _draw_map(figure: Figure, axes: Axes, values: Tensor, signed: bool, outlier_percent: float) -> None:
    cmap = _SIGNED_COLORS if signed else _UNSIGNED_COLORS
    if not signed:
        values = values - values.min()
    strongest = values.abs().max()
    if strongest == 0:
        # Captum divides by the strongest value and asserts that it is not 0.
        axes.imshow(values.numpy(), cmap=cmap, vmin=-1 if signed else 0, vmax=1)
    else:
        # Scaled to 1 first: Captum warns about maps below 1e-5, which small gradients are without being meaningless.
        visualization.visualize_image_attr(
            (values / strongest).unsqueeze(-1).numpy(),
            sign="all" if signed else "positive",
            plt_fig_axis=(figure, axes),
            # At 0 Captum looks for a partial sum of 100 * 0.01 times the total, which rounding puts out of reach.
            outlier_perc=max(outlier_percent, 1e-6),
            cmap=cmap,
            use_pyplot=False,
        )
    _hide_ticks(axes)
