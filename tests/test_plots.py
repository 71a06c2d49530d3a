import io
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from captum_density.datasets import digits
from captum_density.plots import saliency_grid


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
        shown = images[row].permute(1, 2, 0).squeeze(-1).numpy()
        assert np.array_equal(_image_of(figure.axes[3 * row]), shown)


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


@pytest.mark.parametrize("methods", [1, 7])
@pytest.mark.parametrize("rows", [1, 4])
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
        (torch.rand(2, 1, 4, 4).numpy(), {"a": torch.rand(2, 1, 4, 4)}, {}, TypeError, "images.*ndarray"),
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
