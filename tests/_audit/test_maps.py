"""Which images and maps a report shows, and that it keeps them.

Of the private parts on purpose: a report takes them from an audit alone, and is read for its figures.
"""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_density.audit._maps import Maps, drawn_maps
from tests.audit.reports import NAUGHTY, pictures, report_of


@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 9))
def test_packed_and_unpacked(n, channels, side):
    values = torch.randn(n, channels, side, side + 1).half().float()
    result = json.loads(json.dumps(Maps.packed(values)))
    assert result["shape"] == [n, channels, side, side + 1]
    assert torch.equal(Maps.unpacked(result), values)


def test_shown_is_itself_again():
    maps = pictures(["a", NAUGHTY], 4)
    again = Maps.from_dict(json.loads(json.dumps(maps.to_dict())))
    assert again == maps and again.targets == (0, 1, 2, 3) and list(again.maps) == ["a", NAUGHTY]
    assert torch.equal(again.images, maps.images) and torch.equal(again.maps["a"], maps.maps["a"])
    other = dataclasses.replace(maps, maps={**maps.maps, "a": maps.maps["a"] / 2})
    assert maps != other and maps != dataclasses.replace(maps, targets=(1, 1, 1, 1)) and maps != "shown"


@pytest.mark.parametrize(("n", "rows"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4]), (64, [0, 12, 25, 38, 51])])
def test_at_most_five_spread_over_the_examples(n, rows):
    x = torch.arange(n, dtype=torch.float64).div(64).reshape(n, 1, 1, 1).expand(n, 3, 2, 2)
    maps = Maps.of(x, torch.arange(n), {"a": drawn_maps(x + 1)})
    assert maps.targets == tuple(rows)
    assert torch.equal(maps.images, x[rows].float())
    assert maps.maps["a"].shape == (len(rows), 1, 2, 2)


@pytest.mark.parametrize(
    ("size", "small"), [((96, 96), (96, 96)), ((97, 20), (96, 20)), ((192, 384), (48, 96)), ((3000, 2), (96, 1))]
)
def test_at_most_96_pixels(size, small):
    x = torch.rand(2, 3, *size)
    maps = Maps.of(x, torch.zeros(2).long(), {"a": drawn_maps(x)})
    assert maps.images.shape == (2, 3, *small) and maps.maps["a"].shape == (2, 1, *small)
    assert maps.images.mean().item() == pytest.approx(x.mean().item(), abs=0.05)
    if size == (192, 384):
        assert torch.allclose(maps.images, torch.nn.functional.avg_pool2d(x, 4), atol=1e-3)


def test_images_are_stretched_only_out_of_their_range():
    x = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    targets = torch.zeros(2).long()
    assert torch.equal(Maps.of(x, targets, {}).images, x)
    edge = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    assert torch.equal(Maps.of(edge, targets, {}).images, edge)
    assert Maps.of(4 * x - 2, targets, {}).images.flatten(1)[:, 0].tolist() == [0, 1]  # from -1 and 1
    assert Maps.of(4 * x, targets, {}).images.flatten(1)[:, 0].tolist() == [0, 1]  # from 1 and 3, one scale for all


def test_maps_are_sums_over_channels_scaled_one_by_one():
    x = torch.zeros(3, 2, 1, 2)
    x[0] = torch.tensor([[[1.0, -3.0]], [[1.0, -1.0]]])
    x[1] = torch.tensor([[[0.5, 0.25]], [[0.0, 0.0]]])
    result = drawn_maps(x.requires_grad_())
    assert not result.requires_grad and result.dtype == torch.float32
    assert result.tolist() == [[[[0.5, -1.0]]], [[[1.0, 0.5]]], [[[0.0, 0.0]]]]


@pytest.mark.parametrize("shape", [(4, 7), (4, 2, 3, 3), (4, 4, 3, 3), (4, 1, 3), (4, 1, 3, 3, 3)])
def test_what_is_no_image_is_not_shown(shape):
    assert not Maps.can_show(torch.rand(shape))
    maps = Maps.of(torch.rand(shape), torch.zeros(4).long(), {"a": torch.rand(4, 1, 3, 3)})
    assert len(maps.images) == 0 and not maps.maps and not maps.targets
    assert Maps.from_dict(maps.to_dict()) == maps
    assert "What the methods show" not in report_of({}, shown=maps).to_html()
