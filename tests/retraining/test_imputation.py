"""noisy_linear_imputation: the paper's linear system, kept pixels as they were, nothing of the removed ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_density.retraining import noisy_linear_imputation


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _random(shape, share=0.5, seed=0, dtype=torch.float64):
    images = torch.randn(shape, generator=_generator(seed), dtype=dtype)
    kept = torch.rand(shape[0], 1, *shape[2:], generator=_generator(seed + 1)) < share
    kept[:, :, 0, 0] = True
    return images, kept


def _oracle(image, kept):
    """One (H, W) image, written as the paper states it: a row of equations for each removed pixel, solved densely."""
    height, width = image.shape
    unknown = {tuple(p): row for row, p in enumerate(np.argwhere(~kept))}
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros(len(unknown))
    for (i, j), row in unknown.items():
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                q = (i + di, j + dj)
                if (di, dj) == (0, 0) or not (0 <= q[0] < height and 0 <= q[1] < width):
                    continue
                weight = 1 / 6 if 0 in (di, dj) else 1 / 12
                matrix[row, row] += weight
                if q in unknown:
                    matrix[row, unknown[q]] -= weight
                else:
                    right[row] += weight * image[q]
    filled = image.copy()
    for p, value in zip(unknown, np.linalg.solve(matrix, right), strict=True):
        filled[p] = value
    return filled


@pytest.mark.parametrize("shape", [(5, 2, 8, 8), (3, 1, 5, 9), (2, 3, 1, 6), (2, 1, 6, 1), (2, 1, 16, 16)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_solves_the_papers_system(shape, share):
    images, kept = _random(shape, share)
    filled = noisy_linear_imputation(images, kept, noise_std=0)
    for x, k, result in zip(images, kept, filled, strict=True):
        for channel, f in zip(x, result, strict=True):
            np.testing.assert_allclose(f.numpy(), _oracle(channel.numpy(), k[0].numpy()), rtol=0, atol=1e-9)


def test_a_mask_for_each_channel_is_a_system_for_each():
    images = torch.randn(3, 2, 6, 6, generator=_generator(), dtype=torch.float64)
    kept = torch.rand(3, 2, 6, 6, generator=_generator(1)) < 0.5
    filled = noisy_linear_imputation(images, kept, noise_std=0)
    for channel in range(2):
        alone = slice(channel, channel + 1)
        expected = noisy_linear_imputation(images[:, alone], kept[:, alone], noise_std=0)
        torch.testing.assert_close(filled[:, alone], expected, rtol=0, atol=1e-10)


def test_a_large_hole_in_a_large_image_is_solved():
    # Slow for an iteration that takes a pixel's width a step: 100 x 100 removed pixels in one piece.
    images, kept = _random((1, 1, 128, 128), 1.0)
    kept[:, :, 14:114, 14:114] = False
    filled = noisy_linear_imputation(images, kept, noise_std=0)
    inner = filled[0, 0]
    weights = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 12
    mean = torch.nn.functional.conv2d(inner[None, None], weights)[0, 0]
    assert ((mean - inner[1:-1, 1:-1])[13:113, 13:113]).abs().max() < 1e-11


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_linear_ramps_come_back(scale):
    # A ramp equals the mean of its neighbours where those lie on both sides: inside, and on borders it runs along.
    row, column = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    inside = torch.zeros(7, 9, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    along = torch.zeros(7, 9, dtype=torch.bool)
    along[:, 1:-1] = True
    for ramp, removed in ((3 * row - 2 * column + 5, inside), (4 * column - 1, along)):
        image = (scale * ramp.double())[None, None]
        filled = noisy_linear_imputation(image, ~removed[None, None], noise_std=0)
        torch.testing.assert_close(filled, image, rtol=1e-9, atol=1e-9 * scale)
    # Into a border it does not: the corner takes 2/5, 2/5 and 1/5 of its three neighbours.
    corner = torch.zeros(7, 9, dtype=torch.bool)
    corner[0, 0] = True
    filled = noisy_linear_imputation(row.double()[None, None], ~corner[None, None], noise_std=0)
    assert filled[0, 0, 0, 0].item() == pytest.approx(3 / 5)


@given(seed=st.integers(0, 2**20), share=st.floats(0, 1), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_values_lie_within_the_range_of_the_kept_ones(seed, share, size):
    images, kept = _random((2, 2, *size), share, seed)
    filled = noisy_linear_imputation(images, kept, noise_std=0)
    assert torch.equal(filled.where(kept, images), images)
    low = images.where(kept, torch.inf).amin((2, 3), keepdim=True)
    high = images.where(kept, -torch.inf).amax((2, 3), keepdim=True)
    assert ((filled >= low - 1e-10) & (filled <= high + 1e-10)).all()


@pytest.mark.parametrize("other", [0.0, 1e30, torch.nan, torch.inf])
def test_removed_values_do_not_matter(other):
    images, kept = _random((6, 2, 8, 8), dtype=torch.float32)
    kept[0] = False  # a default that looked at the image would show here
    filled = noisy_linear_imputation(images, kept, generator=_generator())
    changed = noisy_linear_imputation(images.where(kept, other), kept, generator=_generator())
    assert filled.isfinite().all()
    assert torch.equal(filled, changed)


def test_kept_pixels_are_untouched_and_inputs_too():
    images, kept = _random((6, 2, 8, 8), dtype=torch.float32)
    before, mask = images.clone(), kept.clone()
    filled = noisy_linear_imputation(images, kept, noise_std=3.0)
    stays = kept.expand_as(images)
    assert torch.equal(filled[stays], images[stays])
    assert (filled[~stays] != images[~stays]).all()
    assert torch.equal(images, before)
    assert torch.equal(kept, mask)
    full = noisy_linear_imputation(images, torch.ones_like(kept))
    assert torch.equal(full, images)
    assert full.data_ptr() != images.data_ptr()


def test_nothing_kept_is_the_default_and_noise():
    images, kept = torch.randn(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    kept[0, 0, 4, 4] = True
    filled = noisy_linear_imputation(images, kept, noise_std=0, default=0.25)
    # One kept pixel is the only value there is; no pixel leaves the default; and channels are separate.
    torch.testing.assert_close(filled[0, 0], images[0, 0, 4, 4].expand(8, 8))
    assert torch.equal(filled[0, 1:], torch.full((2, 8, 8), 0.25))
    assert torch.equal(filled[1], torch.full((3, 8, 8), 0.25))
    assert noisy_linear_imputation(images, kept, noise_std=0)[1].eq(0).all()
    single = noisy_linear_imputation(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.bool), noise_std=0)
    assert single.item() == 0


@pytest.mark.parametrize("noise_std", [0.01, 0.5])
def test_noise_is_normal_with_the_given_deviation(noise_std):
    images, kept = _random((200, 2, 8, 8))
    smooth = noisy_linear_imputation(images, kept, noise_std=0)
    noisy = noisy_linear_imputation(images, kept, noise_std=noise_std, generator=_generator())
    noise = ((noisy - smooth) / noise_std)[(~kept).expand_as(images)]
    assert noise.numel() > 10_000
    # Four standard errors: of a mean 1/sqrt(n), of a deviation 1/sqrt(2n), of a kurtosis sqrt(24/n); and one draw each.
    margin = 4 / noise.numel() ** 0.5
    assert abs(noise.mean().item()) < margin
    assert abs(noise.std().item() - 1) < margin
    assert abs((noise**4).mean().item() - 3) < 8 * margin
    assert noise.unique().numel() == noise.numel()


def test_the_default_deviation_is_that_of_the_authors_code():
    images, kept = _random((2, 1, 8, 8))
    default = noisy_linear_imputation(images, kept, generator=_generator())
    assert torch.equal(default, noisy_linear_imputation(images, kept, noise_std=0.01, generator=_generator()))


def test_generator_decides_and_the_global_one_is_left():
    images, kept = _random((4, 1, 8, 8))
    state = torch.get_rng_state()
    first, second, other = (noisy_linear_imputation(images, kept, generator=_generator(s)) for s in (0, 0, 1))
    noisy_linear_imputation(images, kept, noise_std=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    noisy_linear_imputation(images, kept)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4]])
def test_a_split_batch_gives_the_same(sizes):
    images, kept = _random((7, 2, 12, 12))
    kept[3] = False
    kept[4, :, 2:10, 2:10] = False  # a slow one beside quick ones
    whole = noisy_linear_imputation(images, kept, noise_std=0)
    parts = [
        noisy_linear_imputation(x, k, noise_std=0) for x, k in zip(images.split(sizes), kept.split(sizes), strict=True)
    ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-13)


def test_more_images_than_run_at_once():
    images, kept = _random((1500, 1, 8, 8))  # 1,024 images of 8 x 8 run at once
    whole = noisy_linear_imputation(images, kept, noise_std=0)
    for i in (0, 1023, 1024, 1499):
        np.testing.assert_allclose(whole[i, 0], _oracle(images[i, 0].numpy(), kept[i, 0].numpy()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_the_images(dtype):
    images, kept = _random((3, 2, 6, 6), dtype=torch.float32)
    filled = noisy_linear_imputation(images.to(dtype).requires_grad_(), kept, generator=_generator())
    assert filled.dtype == dtype
    assert not filled.requires_grad
    exact = noisy_linear_imputation(images.to(dtype).double(), kept, noise_std=0)
    smooth = noisy_linear_imputation(images.to(dtype), kept, noise_std=0)
    torch.testing.assert_close(smooth, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-12)


@pytest.mark.cuda
def test_on_a_gpu():
    images, kept = _random((4, 3, 32, 32))
    there = noisy_linear_imputation(images.cuda(), kept.cuda(), generator=_generator())
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), noisy_linear_imputation(images, kept, generator=_generator()))


def test_memory_order_does_not_matter():
    images, kept = _random((3, 2, 6, 7))
    other = noisy_linear_imputation(images.contiguous(memory_format=torch.channels_last), kept, noise_std=0)
    torch.testing.assert_close(other, noisy_linear_imputation(images, kept, noise_std=0), rtol=0, atol=1e-13)


IMAGES, KEPT = torch.zeros(2, 3, 4, 5), torch.ones(2, 1, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("images", "kept", "options", "error", "message"),
    [
        (IMAGES.long(), KEPT, {}, TypeError, "images have dtype torch.int64"),
        (IMAGES, KEPT.float(), {}, TypeError, "kept must be bool"),
        (IMAGES[0], KEPT, {}, ValueError, r"images must be \(N, C, H, W\)"),
        (IMAGES[:0], KEPT[:0], {}, ValueError, "not empty"),
        (IMAGES[..., :0], KEPT[..., :0], {}, ValueError, "not empty"),
        (IMAGES, KEPT[:1], {}, ValueError, r"has shape \(1, 1, 4, 5\)"),
        (IMAGES, KEPT.expand(2, 2, 4, 5), {}, ValueError, r"has shape \(2, 2, 4, 5\)"),
        (IMAGES, KEPT[:, 0], {}, ValueError, r"has shape \(2, 4, 5\)"),
        (IMAGES, KEPT.mT, {}, ValueError, r"has shape \(2, 1, 5, 4\)"),
        (IMAGES, KEPT.to("meta"), {}, ValueError, "kept is on meta"),
        (IMAGES / 0, KEPT, {}, ValueError, "a kept pixel is NaN"),
        (IMAGES + torch.inf, KEPT, {}, ValueError, "a kept pixel is NaN or infinite"),
        (IMAGES, KEPT, {"noise_std": -0.1}, ValueError, "noise_std must be"),
        (IMAGES, KEPT, {"noise_std": torch.nan}, ValueError, "noise_std must be"),
        (IMAGES, KEPT, {"noise_std": torch.inf}, ValueError, "noise_std must be"),
        (IMAGES, KEPT, {"default": torch.inf}, ValueError, "default must be finite"),
        (IMAGES, KEPT, {"default": torch.nan}, ValueError, "default must be finite"),
    ],
)
def test_bad_inputs_are_refused(images, kept, options, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        noisy_linear_imputation(images, kept, **options)
    assert torch.equal(torch.get_rng_state(), state)
