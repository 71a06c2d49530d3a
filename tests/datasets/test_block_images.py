"""Images of a signal block and a null block."""

import pytest
import torch
from torch.utils.data import DataLoader

from captum_density.datasets import BlockImages, block_digits, digits
from tests.datasets.blocks import blocks_of


@pytest.mark.parametrize("null", ["square", "mean", "image"])
@pytest.mark.parametrize("position", ["random", "top"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_are_the_image_and_the_null(null, position, dtype, untouched):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 7, 5, generator=generator, dtype=dtype)
    labels = torch.arange(40)
    null = torch.rand(3, 7, 5, generator=generator, dtype=dtype) if null == "image" else null
    before = images.clone()
    data = BlockImages(images, labels, null=null, position=position, seed=3)
    assert data.images.shape == (40, 3, 14, 5)
    assert data.images.dtype == dtype
    assert data.images.is_contiguous()
    assert data.signal_masks.shape == (40, 1, 14, 5)
    assert data.signal_masks.dtype == torch.bool
    signal, rest = blocks_of(data)
    assert torch.equal(signal, images)
    assert torch.equal(rest, data.null.expand_as(images))
    assert torch.equal(images, before)
    assert torch.equal(data.signal_masks[:, 0, :7].all((1, 2)), data.signal_on_top)
    assert torch.equal(data.signal_masks[:, 0, 7:].any((1, 2)), ~data.signal_on_top)
    if null == "mean":
        torch.testing.assert_close(data.null, sum(images) / 40)
    elif null != "square":
        assert torch.equal(data.null, null)


def test_null_image_takes_the_images_dtype():
    data = BlockImages(torch.ones(2, 1, 2, 2), torch.zeros(2), null=torch.zeros(1, 2, 2, dtype=torch.float64))
    assert data.images.dtype == torch.float32


def test_square_is_drawn_in_the_images_range():
    images = torch.zeros(1, 2, 8, 10)
    images[0, 0, 0, 0], images[0, 1, 0, 0] = -1, 3
    picture = """
        ..........
        ..######..
        ..#....#..
        ..#....#..
        ..#....#..
        ..#....#..
        ..######..
        ..........
    """
    expected = torch.tensor([[3.0 if c == "#" else -1.0 for c in line] for line in picture.split()])
    assert torch.equal(BlockImages(images, torch.zeros(1)).null, expected.expand(2, 8, 10))


def test_square_has_diagonals_on_mnist():
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 0, 0] = 1
    null = BlockImages(images, torch.zeros(1)).null[0]
    rows, columns = null.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 23, 4, 23)
    inside = range(4, 24)
    assert all(
        null[i, i] == null[i, 27 - i] == null[i, 4] == null[i, 23] == null[4, i] == null[23, i] == 1 for i in inside
    )
    assert all(torch.equal(null, turned) for turned in (null.T, null.flip(0), null.flip(1)))
    assert 0.2 < null.mean() < 0.35


def test_positions():
    images, labels = torch.zeros(40_000, 1, 1, 1), torch.zeros(40_000)
    random = BlockImages(images, labels).signal_on_top
    assert abs(random.double().mean() - 0.5) < 0.0125  # five standard deviations
    neighbours = (random[1:] == random[:-1]).double().mean()
    assert abs(neighbours - 0.5) < 0.0125
    assert BlockImages(images, labels, position="top").signal_on_top.all()
    assert torch.equal(random, BlockImages(images, labels, seed=0).signal_on_top)
    assert not torch.equal(random, BlockImages(images, labels, seed=1).signal_on_top)
    # Written down when they were fixed.
    assert random[:12].int().tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_items_are_those_of_a_dataset():
    data = block_digits().train
    assert len(data) == 1437
    image, label = data[5]
    assert torch.equal(image, data.images[5])
    assert torch.equal(label, data.labels[5])
    assert data[2:4][0].shape == (2, 1, 16, 8)
    batches = list(DataLoader(data, batch_size=700))
    assert torch.equal(torch.cat([images for images, _ in batches]), data.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_masks_hold_no_memory_of_their_own():
    masks = block_digits().train.signal_masks
    assert masks.untyped_storage().nbytes() == 1437 * 16


@pytest.mark.parametrize("null", ["square", "mean"])
def test_block_digits(null, untouched):
    plain, data = digits(), block_digits(null=null, seed=5)
    for blocks, images, labels in (
        (data.train, plain.train_images, plain.train_labels),
        (data.test, plain.test_images, plain.test_labels),
    ):
        signal, rest = blocks_of(blocks)
        assert torch.equal(signal, images)
        assert torch.equal(rest, data.train.null.expand_as(images))
        assert torch.equal(blocks.labels, labels)
    if null == "mean":
        torch.testing.assert_close(data.test.null, plain.train_images.mean(0))
    again = block_digits(null=null, seed=5)
    other = block_digits(null=null, seed=6)
    for ours, same_seed, another in zip(data, again, other, strict=True):
        assert torch.equal(ours.images, same_seed.images)
        assert not torch.equal(ours.signal_on_top, another.signal_on_top)
    agreement = (data.train.signal_on_top[:360] == data.test.signal_on_top).double().mean()
    assert abs(agreement - 0.5) < 0.14
    assert all(split.signal_on_top.all() for split in block_digits(null=null, position="top"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.ones(2, 3, 3)}, ValueError, r"\(N, C, H, W\) and not empty, but have shape \(2, 3, 3\)"),
        ({"images": torch.ones(0, 1, 3, 3), "labels": torch.ones(0)}, ValueError, "not empty"),
        ({"images": torch.ones(2, 1, 3, 3, dtype=torch.uint8)}, TypeError, r"torch.uint8; take images.float\(\) / 255"),
        ({"labels": torch.ones(3)}, ValueError, r"for 2 images, but have shape \(3,\)"),
        ({"labels": torch.tensor(1)}, ValueError, r"for 2 images, but have shape \(\)"),
        ({"null": "circle"}, ValueError, "'square', 'mean' or an image.*'circle'"),
        ({"null": torch.ones(3, 3)}, ValueError, r"\(1, 3, 3\) like the images, but has shape \(3, 3\)"),
        ({"position": "bottom"}, ValueError, "'random' or 'top', but is 'bottom'"),
        ({"seed": -1}, ValueError, r"integer in 0..4294967295, but is -1"),
        ({"seed": 2**32}, ValueError, "integer in 0..4294967295"),
        ({"seed": None}, ValueError, "but is None"),
        ({"seed": 1.0}, ValueError, "but is 1.0"),
    ],
)
def test_bad_block_images(arguments, error, message):
    with pytest.raises(error, match=message):
        BlockImages(**{"images": torch.ones(2, 1, 3, 3), "labels": torch.zeros(2)} | arguments)
