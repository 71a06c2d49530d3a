"""The embedded digits."""

import sys

import numpy as np
import pytest
import torch

from captum_density.datasets import digits


def test_shapes_types_and_range():
    data = digits()
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert labels.shape == images.shape[:1]
        assert images.is_contiguous()
        assert images.min() == 0
        assert images.max() == 1
        assert labels.unique().tolist() == list(range(10))


def test_split_is_the_stored_data_once_each():
    from sklearn.datasets import load_digits

    stored = load_digits()
    data = digits()
    images = torch.cat([data.train_images, data.test_images]).flatten(1).mul(16).numpy()
    labels = torch.cat([data.train_labels, data.test_labels]).numpy()
    ours = np.column_stack([images, labels])
    theirs = np.column_stack([stored.data, stored.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_split_is_fixed_and_leaves_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = digits()
    torch.manual_seed(7)
    np.random.seed(7)
    second = digits()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # The labels of the first test images, written down when the split was fixed: a reshuffle would change every figure.
    assert first.test_labels[:12].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1, 3, 7]
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    digits()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"captum-density\[demo\]"):
        digits()
