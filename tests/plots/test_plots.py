import io
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from captum_density.datasets import digits
from captum_density.metrics import PixelPerturbation
from captum_density.plots import density_ratio_curves, pixel_perturbation_curves, saliency_grid, sample_grid
from captum_density.samplers import Samples


def _image_of(axes) -> np.ndarray:
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("map_channels", ["same", 1])
def test_one_row_per_image_and_one_titled_column_per_method(channels, map_channels):
    images = torch.rand(3, channels, 6, 5)
    attribution = torch.randn(3, channels if map_channels == "same" else 1, 6, 5)
    figure = saliency_grid(images, {"signed": attribution, "map": attribution.abs()}, row_labels=["a", "b", "c"])

    assert len(figure.axes) == 3 * 3
    assert [axes.get_title() for axes in figure.axes] == ["image", "signed", "map"] + [""] * 6
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["a", "b", "c"]
    assert all(axes.get_xticks().size == axes.get_yticks().size == 0 for axes in figure.axes)
    for row in range(3):
        picture = images[row].permute(1, 2, 0).squeeze(-1).numpy()
        assert np.array_equal(_image_of(figure.axes[3 * row]), picture)


def test_values_are_channel_sums_with_their_sign_and_signed_scale_is_symmetric():
    images = torch.rand(1, 3, 4, 4)
    attribution = torch.randn(1, 3, 4, 4)
    figure = saliency_grid(images, {"signed": attribution, "map": attribution.abs()}, outlier_percent=0.0)
    signed, unsigned = figure.axes[1].get_images()[0], figure.axes[2].get_images()[0]
    assert signed.get_clim() == (-1, 1)
    assert unsigned.get_clim() == (0, 1)
    total = attribution[0].double().sum(0)
    assert np.allclose(signed.get_array(), total / total.abs().max())
    total = attribution[0].double().abs().sum(0)
    assert np.allclose(unsigned.get_array(), (total - total.min()) / (total.max() - total.min()))


def test_unsigned_map_with_one_value_is_blank():
    figure = saliency_grid(torch.rand(1, 1, 4, 4), {"map": torch.full((1, 1, 4, 4), 0.3)})
    assert not _image_of(figure.axes[1]).any()


def test_one_method_has_one_colour_scale_in_every_row():
    attribution = torch.rand(2, 1, 4, 4)
    attribution[1, 0, 0, 0] = -1.0  # only the second row has a negative value
    figure = saliency_grid(torch.rand(2, 1, 4, 4), {"method": attribution})
    assert figure.axes[1].get_images()[0].get_clim() == figure.axes[3].get_images()[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1e7])
@pytest.mark.parametrize("signed", [False, True])
def test_zero_and_tiny_attributions_are_drawn_without_a_warning(scale, signed):
    attribution = torch.rand(1, 1, 4, 4, dtype=torch.float64) * scale
    if signed:
        attribution[0, 0, 0, 0] *= -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = saliency_grid(torch.rand(1, 1, 4, 4), {"tiny": attribution})
    assert np.isfinite(_image_of(figure.axes[1])).all()
    assert (_image_of(figure.axes[1]) != 0).any() == (scale != 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_outside_the_unit_range_are_stretched(channels):
    images = torch.randn(1, channels, 4, 4) * 5
    figure = saliency_grid(images, {"map": torch.rand(1, 1, 4, 4)})
    expected = (images - images.min()) / (images.max() - images.min())
    assert np.allclose(_image_of(figure.axes[0]), expected[0].permute(1, 2, 0).squeeze(-1), atol=1e-6)


def test_pyplot_knows_nothing_of_it_and_inputs_stay_as_they_were():
    images = digits().test_images[:2].requires_grad_()
    attribution = (images * 2).sum(1, keepdim=True)
    before = images.detach().clone()
    open_figures = plt.get_fignums()
    figure = saliency_grid(images, {"with a graph": attribution})
    assert plt.get_fignums() == open_figures
    assert torch.equal(images, before)
    assert images.requires_grad
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def _boxes(figure):
    """Where each text and each picture of a drawn figure lies, in pixels."""
    figure.draw_without_rendering()
    texts = {}
    for axes in figure.axes:
        for text in (axes.title, axes.yaxis.label, *axes.texts):
            if text.get_text():
                texts[f"{text.get_text()!r} at {text.get_window_extent().bounds}"] = text.get_window_extent()
    for text in figure.texts:
        texts[text.get_text()] = text.get_window_extent()
    return texts, [axes.get_window_extent() for axes in figure.axes]


@pytest.mark.parametrize(("rows", "methods"), [(1, 7), (4, 1), (2, 2)])
def test_texts_stand_beside_their_rows_inside_the_figure_and_touch_nothing(rows, methods):
    labels = [f"logits {row},\nafter a change" for row in range(rows)]
    notes = [f"softmax\n{row}: 0.8694\n1: 0.0408\n8: 0.0384" for row in range(rows)]
    images = torch.rand(rows, 1, 8, 8)
    figure = saliency_grid(
        images,
        {f"a method's name, {method}": images for method in range(methods)},
        row_labels=labels,
        row_notes=notes,
        caption="in all of it\nthe largest: 4e-07",
    )
    last = figure.axes[methods :: methods + 1]
    assert [text.get_text() for axes in last for text in axes.texts] == notes
    assert sum(len(axes.texts) for axes in figure.axes) == rows

    texts, pictures = _boxes(figure)
    assert len(texts) == 2 * rows + (1 + methods) + 1
    for name, box in texts.items():
        assert box.x0 >= 0 and box.y0 >= 0, f"{name} leaves the figure"
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, f"{name} leaves the figure"
        others = [other for title, other in texts.items() if title != name]
        assert not any(box.overlaps(other) for other in [*pictures, *others]), f"{name} lies on something"
    # Room is made for the texts, so that the pictures keep their size.
    bare, with_texts = (
        _boxes(each)[1][0].width for each in (saliency_grid(images, {"a": images, "b": images}), figure)
    )
    assert with_texts > 0.85 * bare


@pytest.mark.parametrize(
    ("images", "attributions", "options", "error", "message"),
    [
        (torch.rand(2, 4, 4), {"a": torch.rand(2, 4, 4)}, {}, ValueError, r"\(N, C, H, W\).*\(2, 4, 4\)"),
        (torch.rand(2, 2, 4, 4), {"a": torch.rand(2, 2, 4, 4)}, {}, ValueError, "C of 1 or 3"),
        (torch.rand(0, 1, 4, 4), {"a": torch.rand(0, 1, 4, 4)}, {}, ValueError, "N > 0"),
        (torch.rand(2, 1, 4, 4), {}, {}, ValueError, "attributions is empty"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(2, 1, 4, 5)}, {}, ValueError, r"'a'.*\(2, 1, 4, 4\).*\(2, 1, 4, 5\)"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(3, 1, 4, 4)}, {}, ValueError, "'a'"),
        (torch.rand(2, 1, 4, 4), {"a": torch.full((2, 1, 4, 4), torch.nan)}, {}, ValueError, "'a' must be finite"),
        (torch.rand(2, 1, 4, 4), {"a": torch.ones(2, 1, 4, 4).int()}, {}, TypeError, "'a'.*int32"),
        ([torch.rand(2, 1, 4, 4)], {"a": torch.rand(2, 1, 4, 4)}, {}, TypeError, "images.*list"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(2, 1, 4, 4)}, {"row_labels": ["x"]}, ValueError, "labels.*2, got 1"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(2, 1, 4, 4)}, {"row_notes": ["x"]}, ValueError, "notes.*2, got 1"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(2, 1, 4, 4)}, {"row_notes": "ab"}, TypeError, "single text 'ab'"),
        (torch.rand(2, 1, 4, 4), {"a": torch.rand(2, 1, 4, 4)}, {"outlier_percent": 100}, ValueError, "got 100"),
    ],
)
def test_bad_input_names_what_is_wrong(images, attributions, options, error, message):
    with pytest.raises(error, match=message):
        saliency_grid(images, attributions, **options)


def test_long_names_are_broken_into_lines():
    figure = saliency_grid(torch.rand(1, 3, 8, 8), {"a very long method name indeed": torch.rand(1, 3, 8, 8)})
    title = figure.axes[1].get_title()
    assert "\n" in title and title.replace("\n", " ") == "a very long method name indeed"


def test_images_one_pixel_high_or_wide():
    for shape in ((1, 1, 1, 5), (1, 1, 5, 1), (1, 3, 1, 5), (1, 3, 1, 1)):
        images = torch.rand(*shape)
        expected = images[0, 0] if shape[1] == 1 else images[0].permute(1, 2, 0)
        assert np.array_equal(_image_of(saliency_grid(images, {"map": images}).axes[0]), expected)
        assert np.allclose(_image_of(sample_grid({"map": images}).axes[0]), expected)


# ----------------------------------------------------------------------------------------------------------------------
# Curves and samples

STDS = [0.1, 0.2, 0.4]


def _result(probability, fractions=(0.0, 0.25, 1.0)):
    at = torch.tensor(fractions, dtype=torch.float64)
    area = torch.trapezoid(probability.double(), at, dim=0)
    return PixelPerturbation(at, probability > 0.5, probability, area, area)


def _band(axes, i):
    """The lower and the upper edge of a filled band, at each place of its line."""
    (path,) = axes.collections[i].get_paths()
    corners = path.vertices
    places = sorted(set(corners[:, 0]))
    sides = [[corner[1] for corner in corners if corner[0] == place] for place in places]
    return places, [min(side) for side in sides], [max(side) for side in sides]


def _quartiles(values):
    return [np.quantile(values.numpy(), q, axis=1) for q in (0.25, 0.75)]


@pytest.mark.parametrize("scale", [0.1, 5.0, 400.0])
def test_ratios_are_drawn_as_median_and_quartiles(scale):
    # Beyond 10 the axis is logarithmic.
    ratios = {"plain": -scale * torch.rand(3, 9), "anti": scale * torch.rand(3, 9).double() + scale}
    figure = density_ratio_curves(STDS, {name: r.requires_grad_() for name, r in ratios.items()})
    (axes,) = figure.axes
    zero, *lines = axes.lines
    assert list(zero.get_ydata()) == [0, 0]
    for i, (line, (name, values)) in enumerate(zip(lines, ratios.items(), strict=True)):
        values = values.detach().double()
        assert line.get_label() == name and list(line.get_xdata()) == STDS
        assert np.allclose(line.get_ydata(), np.median(values.numpy(), axis=1))
        places, low, high = _band(axes, i)
        assert places == STDS and np.allclose([low, high], _quartiles(values))
        assert tuple(axes.collections[i].get_facecolor()[0][:3]) == plt.matplotlib.colors.to_rgb(line.get_color())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain", "anti"]
    assert axes.get_yscale() == ("symlog" if scale > 10 else "linear")
    assert "standard deviation" in axes.get_xlabel() and "nats" in axes.get_ylabel()
    # All that is drawn is in view, and little beside it.
    low, high = axes.get_ylim()
    assert low < min(line.get_ydata().min() for line in lines) and high > max(line.get_ydata().max() for line in lines)
    if scale == 400:
        assert low > -1000 and high < 2000


def test_ratios_of_one_sign_leave_no_empty_half():
    figure = density_ratio_curves(STDS, {"plain": 100 + 1000 * torch.rand(3, 9)})
    assert -1 < figure.axes[0].get_ylim()[0] <= 0


@pytest.mark.parametrize(("largest", "labels"), [(0.3, {"0.1", "0.2"}), (60.0, {"0", "1", "10"})])
def test_ticks_are_plain_numbers(largest, labels):
    figure = density_ratio_curves(STDS, {"plain": torch.tensor([[0.0], [largest / 2], [largest]])})
    figure.draw_without_rendering()
    texts = {
        text.get_text().rstrip("0") if "." in text.get_text() else text.get_text()
        for text in figure.axes[0].get_yticklabels()
    }
    assert labels <= texts and not any("$" in label for label in texts)


def test_probabilities_are_drawn_as_mean_and_quartiles_with_the_area():
    probabilities = {"ink": torch.rand(3, 8), "random": torch.rand(3, 5)}
    results = {name: _result(p) for name, p in probabilities.items()}
    (axes,) = pixel_perturbation_curves(results).axes
    for i, (line, (name, p)) in enumerate(zip(axes.lines, probabilities.items(), strict=True)):
        assert list(line.get_xdata()) == [0, 0.25, 1] and np.allclose(line.get_ydata(), p.mean(1))
        places, low, high = _band(axes, i)
        assert places == [0, 0.25, 1] and np.allclose([low, high], _quartiles(p), atol=1e-7)
        mean = p.mean(1).tolist()
        area = 0.25 * (mean[0] + mean[1]) / 2 + 0.75 * (mean[1] + mean[2]) / 2
        assert line.get_label() == f"{name}: area {area:.3f}"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]
    low, high = axes.get_ylim()
    assert -0.1 < low < 0 and 1 < high < 1.1


def test_each_curve_has_a_colour_and_a_mark():
    (axes,) = density_ratio_curves(STDS, {str(i): torch.rand(3, 2) for i in range(7)}).axes
    assert (
        len({line.get_color() for line in axes.lines[1:]}) == len({line.get_marker() for line in axes.lines[1:]}) == 7
    )


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_scaled_to_their_bounds_and_clipped(bounds, channels):
    low, high = bounds
    samples = {"plain": 3 * torch.randn(4, channels, 5, 6), "matched": torch.randn(4, channels, 5, 6).double()}
    figure = sample_grid(samples, bounds=bounds, column_labels=list("abcd"))
    assert len(figure.axes) == 8
    assert [axes.get_title() for axes in figure.axes] == [*"abcd", "", "", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["plain", "", "", "", "matched", "", "", ""]
    for axes, image in zip(figure.axes, torch.cat([s.double() for s in samples.values()]), strict=True):
        expected = ((image - low) / (high - low)).clip(0, 1).permute(1, 2, 0).squeeze(-1)
        assert np.allclose(_image_of(axes), expected)
        assert axes.get_images()[0].get_clim() == (0, 1) and axes.get_xticks().size == axes.get_yticks().size == 0


def _figures():
    """A picture of each kind, with names and captions that need room."""
    long = "a caption of more words than fit on one line of the figure that it is written below, by far, " * 2
    names = ["plain", "score-matching", "anti-score-matching", "gradient-norm regularized, with a longer name"]
    ratios = {name: (-1) ** i * 60 * torch.rand(3, 20) for i, name in enumerate(names)}
    return {
        "density_ratio": density_ratio_curves(STDS, ratios, caption=long),
        "short names": density_ratio_curves(STDS, {name[:12]: r for name, r in ratios.items()}),
        "pixel_perturbation": pixel_perturbation_curves({n: _result(torch.rand(3, 20)) for n in names}, caption=long),
        "samples": sample_grid(
            {n: torch.rand(5, 1, 8, 8) for n in names}, column_labels=[f"{i}" for i in range(5)], caption=long
        ),
        "two samples": sample_grid({"a": torch.rand(2, 3, 8, 8)}, caption=long + "\nand a line", cell_size=1.2),
        "saliency": saliency_grid(torch.rand(1, 1, 8, 8), {"a": torch.rand(1, 1, 8, 8)}, caption=long),
    }


def test_pictures_know_nothing_of_pyplot_and_their_texts_lie_inside_and_apart():
    open_figures = plt.get_fignums()
    for name, figure in _figures().items():
        texts, pictures = _boxes(figure)
        for axes in figure.axes:
            texts |= {axes.xaxis.label.get_text(): axes.xaxis.label.get_window_extent()} if axes.get_xlabel() else {}
            texts |= {"legend": axes.get_legend().get_window_extent()} if axes.get_legend() else {}
        assert texts
        for title, box in texts.items():
            where = f"{name}: {title}"
            assert box.x0 >= -0.5 and box.y0 >= -0.5, f"{where} leaves the figure"
            assert box.x1 <= figure.bbox.x1 + 0.5 and box.y1 <= figure.bbox.y1 + 0.5, f"{where} leaves the figure"
            others = [*pictures, *(other for key, other in texts.items() if key != title)]
            shrunk = box.shrunk(0.98, 0.9)
            assert not any(shrunk.overlaps(other) for other in others), f"{where} lies on something"
        figure.set_layout_engine("none")  # it is laid out already
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=20)
        assert buffer.getvalue().startswith(b"\x89PNG")
    assert plt.get_fignums() == open_figures


def test_texts_leave_pictures_their_size():
    wide, narrow = (_boxes(sample_grid({name: torch.rand(3, 1, 8, 8)}))[1][0].width for name in ("a" * 40, "a"))
    assert wide > 0.85 * narrow
    captioned, bare = (
        _boxes(density_ratio_curves(STDS, {n: torch.rand(3, 2) for n in names}, caption=caption))[1][0].height
        for names, caption in ((list("abcdefg"), "one\ntwo\nthree"), (["a"], None))
    )
    assert captioned > 0.9 * bare


@pytest.mark.parametrize(
    ("stds", "ratios", "words"),
    [
        (STDS, {}, "nothing to draw"),
        (STDS, {"plain": torch.rand(2, 4)}, r"'plain' must hold \(3, N\) values, but has shape \(2, 4\)"),
        (STDS, {"plain": torch.rand(3)}, r"'plain' must hold \(3, N\)"),
        (STDS, {"plain": torch.rand(3, 0)}, r"'plain' must hold \(3, N\)"),
        (STDS, {"plain": torch.rand(3, 4), "other": torch.full((3, 4), torch.inf)}, "'other' contains NaN or infinity"),
        ([], {"plain": torch.rand(0, 4)}, r"'plain' must hold \(0, N\)"),
        ([0.1, 0.1, 0.2], {"plain": torch.rand(3, 4)}, "positive and ascending"),
        ([0.2, 0.1, 0.3], {"plain": torch.rand(3, 4)}, "positive and ascending"),
        ([0.0, 0.1, 0.3], {"plain": torch.rand(3, 4)}, "positive and ascending"),
        ([0.1, np.nan, 0.3], {"plain": torch.rand(3, 4)}, "positive and ascending"),
        ([0.1, 0.2, np.inf], {"plain": torch.rand(3, 4)}, "positive and ascending"),
    ],
)
def test_ratios_that_cannot_be_drawn(stds, ratios, words):
    with pytest.raises(ValueError, match=words):
        density_ratio_curves(stds, ratios)


def test_results_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="nothing to draw"):
        pixel_perturbation_curves({})
    with pytest.raises(ValueError, match="'ink' contains NaN"):
        pixel_perturbation_curves({"ink": _result(torch.full((3, 2), torch.nan))})


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        ({}, {}, "nothing to draw"),
        ({"a": torch.rand(3, 8, 8)}, {}, r"'a' must have shape \(3, C, H, W\).*\(3, 8, 8\)"),
        ({"a": torch.rand(3, 2, 8, 8)}, {}, "C of 1 or 3"),
        ({"a": torch.rand(0, 1, 8, 8)}, {}, "'a' must have shape"),
        ({"a": torch.rand(3, 1, 8, 8), "b": torch.rand(2, 1, 8, 8)}, {}, r"'b' must have shape \(3, C, H, W\)"),
        ({"a": torch.rand(3, 1, 8, 8) / 0}, {}, "'a' contain NaN or infinity"),
        ({"a": torch.rand(3, 1, 8, 8)}, {"column_labels": ["0", "1"]}, "each of 3 columns, got 2"),
        ({"a": torch.rand(3, 1, 8, 8)}, {"bounds": (1.0, 1.0)}, "low < high"),
        ({"a": torch.rand(3, 1, 8, 8)}, {"bounds": (0.0, np.inf)}, "finite"),
        ({"a": torch.rand(3, 1, 8, 8)}, {"bounds": (0.0, np.nan)}, "finite"),
    ],
)
def test_samples_that_cannot_be_drawn(samples, options, words):
    with pytest.raises(ValueError, match=words):
        sample_grid(samples, **options)


def test_more_lines_than_colors_differ_in_style():
    (axes,) = density_ratio_curves([0.1, 0.2], {f"m{i}": torch.rand(2, 3) for i in range(9)}).axes
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines if len(line.get_xdata()) > 1
    ]
    assert len(set(looks[:9])) == 9


def test_what_a_sampler_returned_is_drawn():
    images = torch.rand(3, 1, 4, 4)
    figure = sample_grid({"plain": Samples(images, torch.ones(3)), "same": images})
    left, right = (figure.axes[i].images[0].get_array() for i in (0, 3))
    assert (left == right).all()


@pytest.mark.parametrize(
    "draw", [lambda: sample_grid(torch.rand(3, 1, 4, 4)), lambda: pixel_perturbation_curves(_result(torch.rand(3, 2)))]
)
def test_curves_and_grids_want_names(draw):
    with pytest.raises(TypeError, match="give a mapping"):
        draw()
