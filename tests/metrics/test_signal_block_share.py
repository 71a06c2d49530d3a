import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_density.datasets import block_digits, feature_leakage
from captum_density.metrics import signal_block_share


@given(
    n=st.integers(1, 4),
    size=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e300]),
)
def test_against_sums_written_out(n, size, dtype, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, size, generator=generator, dtype=torch.float64)
    masks = torch.rand(n, size, generator=generator) < 0.5
    shares = signal_block_share((a * scale).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype), masks)
    assert shares.shape == (n,)
    assert shares.dtype == dtype
    assert ((shares >= 0) & (shares <= 1)).all()
    if dtype == torch.float64 or 1e-30 <= scale <= 1e30:
        for k in range(n):
            inside = sum(abs(value) for value, mask in zip(a[k].tolist(), masks[k].tolist(), strict=True) if mask)
            expected = inside / sum(abs(value) for value in a[k].tolist())
            assert shares[k].item() == pytest.approx(expected, rel=1e-5, abs=1e-12)


@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3))
def test_signs_and_scale_do_not_matter(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 2, 4, 5, generator=generator)
    masks = torch.rand(3, 1, 4, 5, generator=generator) < 0.5
    share = signal_block_share(a, masks)
    torch.testing.assert_close(signal_block_share(-a.abs() * factor, masks), share)
    torch.testing.assert_close(signal_block_share(a, ~masks), 1 - share)


def test_uniform_and_zero_maps_have_the_blocks_share():
    data = feature_leakage(6, 4, 3)
    for value in (0.0, 2.0, -1e-40, 3e38):
        assert signal_block_share(torch.full((6, 12), value), data.signal_masks).tolist() == [0.25] * 6
    largest = torch.full((6, 12), torch.finfo(torch.float64).max, dtype=torch.float64)
    assert signal_block_share(largest, data.signal_masks).tolist() == [0.25] * 6


def test_image_maps_of_any_channels():
    data = block_digits().test
    shape = data.images.shape
    for channels in (1, 3):
        top = torch.zeros(len(data), channels, *shape[2:])
        top[:, :, :8] = -1.0
        assert torch.equal(signal_block_share(top, data.signal_masks), data.signal_on_top.float())
    assert (signal_block_share(torch.ones(len(data), 3, *shape[2:]), data.signal_masks) == 0.5).all()
    # What the network sees below the null block: gradients of x -> sum x^2 / 2 are x itself.
    expected = (data.images * data.signal_masks).flatten(1).sum(1) / data.images.flatten(1).sum(1)
    torch.testing.assert_close(signal_block_share(data.images, data.signal_masks), expected)


def test_one_mask_for_all_and_a_graph():
    a = torch.tensor([[1.0, 3.0], [0.0, 5.0]], requires_grad=True)
    share = signal_block_share(a, torch.tensor([[False, True]]))
    assert share.tolist() == [0.75, 1.0]
    assert not share.requires_grad
    assert signal_block_share(a, torch.tensor([[False]])).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_double(dtype):
    a = torch.full((1, 100_000), 60_000.0, dtype=dtype)
    masks = torch.arange(100_000)[None] < 25_000
    assert signal_block_share(a, masks).item() == 0.25
    assert signal_block_share(a, masks).dtype == dtype


@pytest.mark.cuda
def test_masks_may_be_on_another_device():
    share = signal_block_share(torch.ones(2, 4, device="cuda"), torch.tensor([[True, False, False, False]]))
    assert share.is_cuda
    assert share.tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("attributions", "masks", "error", "message"),
    [
        (torch.ones(2, 3).long(), torch.ones(2, 3).bool(), TypeError, "floating-point, but are torch.int64"),
        (torch.ones(2, 3), torch.ones(2, 3), TypeError, "boolean, but are torch.float32"),
        (torch.ones(3), torch.ones(3).bool(), ValueError, r"\(N, ...\) and not empty, but have shape \(3,\)"),
        (torch.ones(0, 3), torch.ones(0, 3).bool(), ValueError, r"not empty, but have shape \(0, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 1, 3).bool(), ValueError, r"shape \(2, 3\) .* but have \(2, 1, 3\)"),
        (torch.ones(2, 3), torch.ones(3, 3).bool(), ValueError, r"shape \(2, 3\) .* but have \(3, 3\)"),
        (torch.ones(1, 3), torch.ones(2, 3).bool(), ValueError, r"shape \(1, 3\) .* but have \(2, 3\)"),
        (torch.tensor([[1.0, torch.nan]]), torch.ones(1, 2).bool(), ValueError, "NaN or infinity"),
        (torch.tensor([[1.0, torch.inf]]), torch.ones(1, 2).bool(), ValueError, "NaN or infinity"),
    ],
)
def test_bad_arguments(attributions, masks, error, message):
    with pytest.raises(error, match=message):
        signal_block_share(attributions, masks)
