"""The simplified BlockMNIST."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_density.datasets import feature_leakage


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(
    n=st.integers(1, 20),
    d=st.integers(1, 6),
    block_dim=st.integers(1, 4),
    eta=st.floats(0, 5),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=60)
def test_equation_2_block_by_block(n, d, block_dim, eta, seed, data):
    signal_blocks = data.draw(st.integers(1, d))
    numbers = st.lists(st.floats(-10, 10), min_size=block_dim, max_size=block_dim)
    u = torch.tensor(data.draw(numbers), dtype=torch.float64)
    # The noise itself, as eta and u change no g_j.
    g = feature_leakage(n, d, block_dim, 1.0, torch.zeros_like(u), signal_blocks=signal_blocks, seed=seed).inputs
    examples = feature_leakage(n, d, block_dim, eta, u, signal_blocks=signal_blocks, seed=seed)
    assert examples.inputs.shape == examples.signal_masks.shape == (n, d * block_dim)
    assert examples.inputs.dtype == torch.float64
    assert examples.labels.dtype == examples.signal_block.dtype == torch.int64
    for k in range(n):
        y = {0: -1, 1: 1}[examples.labels[k].item()]
        assert 0 <= examples.signal_block[k] < signal_blocks
        for j in range(d):
            block = slice(j * block_dim, (j + 1) * block_dim)
            carries = j == examples.signal_block[k]
            expected = eta * g[k, block] + (y * u if carries else 0)
            torch.testing.assert_close(examples.inputs[k, block], expected)
            assert (examples.signal_masks[k, block] == carries).all()


@pytest.mark.parametrize("block_dim", [1, 2, 5])
def test_noise_is_uniform_in_the_unit_ball(block_dim):
    inputs = feature_leakage(4000, 4, block_dim, 1.0, torch.zeros(block_dim, dtype=torch.float64)).inputs
    g = inputs.reshape(-1, block_dim)
    # Of a uniform point, radius^k is uniform; E g = 0 and E g g' = I / (k + 2).
    share = (g.norm(dim=1) ** block_dim).sort().values
    assert share[-1] <= 1 + 1e-12
    assert (share - torch.linspace(0, 1, len(share), dtype=torch.float64)).abs().max() < 0.02  # Kolmogorov, p = 3e-6
    assert g.mean(0).abs().max() < 0.03
    covariance = g.T @ g / len(g)
    assert (covariance - torch.eye(block_dim, dtype=torch.float64) / (block_dim + 2)).abs().max() < 0.02
    # The direction is uniform: of a point of the sphere, E x_1^4 = 3 / (k (k + 2)).
    fourth = (g / g.norm(dim=1, keepdim=True)).pow(4).mean(0)
    assert (fourth - 3 / (block_dim * (block_dim + 2))).abs().max() < 0.015
    # Blocks are independent.
    blocks = inputs.reshape(4000, 4, block_dim)
    assert (blocks[:, 0] * blocks[:, 1]).mean(0).abs().max() < 0.03


def test_labels_and_blocks_are_uniform(untouched):
    data = feature_leakage(6000, 10, 2, 0.5)
    y = 2 * data.labels - 1
    assert abs(y.double().mean()) < 0.06
    counts = data.signal_block.bincount(minlength=10) / 6000
    assert (counts[:5] - 0.2).abs().max() < 0.03
    assert (counts[5:] == 0).all()
    every = feature_leakage(6000, 10, 2, 0.5, signal_blocks=10).signal_block
    assert (every.bincount(minlength=10) / 6000 - 0.1).abs().max() < 0.02
    assert abs((y * data.signal_block.double()).mean()) < 0.2
    assert same(data, feature_leakage(6000, 10, 2, 0.5))
    assert not torch.equal(data.labels, feature_leakage(6000, 10, 2, 0.5, seed=1).labels)


def test_default_signal_is_a_unit_vector():
    data = feature_leakage(5, 4, 9)
    signals = data.inputs[data.signal_masks].reshape(5, 9) * (2 * data.labels - 1)[:, None]
    torch.testing.assert_close(signals, torch.full((5, 9), 1 / 3))
    assert not data.inputs[~data.signal_masks].any()
    assert not data.inputs[~data.signal_masks].signbit().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1, but is 0"),
        ({"d": 0}, "d must be an integer of at least 1, but is 0"),
        ({"block_dim": 1.0}, "block_dim must be an integer of at least 1, but is 1.0"),
        ({"eta": -0.1}, "eta must be finite and at least 0, but is -0.1"),
        ({"eta": float("nan")}, "eta must be finite and at least 0, but is nan"),
        ({"eta": float("inf")}, "eta must be finite and at least 0, but is inf"),
        ({"d": 5}, "half of d = 5 blocks is no whole number"),
        ({"signal_blocks": 0}, "signal_blocks must be an integer in 1..4.*but is 0"),
        ({"signal_blocks": 5}, "signal_blocks must be an integer in 1..4.*but is 5"),
        ({"u": torch.ones(2)}, r"u must be a finite floating-point vector, \(3,\)"),
        ({"u": torch.ones(3, dtype=torch.int64)}, "u must be a finite floating-point vector"),
        ({"u": torch.full((3,), torch.inf)}, "u must be a finite floating-point vector"),
        ({"seed": -1}, "seed must be an integer in 0"),
    ],
)
def test_bad_feature_leakage(arguments, message):
    with pytest.raises(ValueError, match=message):
        feature_leakage(**{"n": 2, "d": 4, "block_dim": 3} | arguments)
