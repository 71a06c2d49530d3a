"""The embedded digits as plain tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Digits", "digits"]

_TEST_EXAMPLES = 360
_SPLIT_SEED = 0


class Digits(NamedTuple):
    """The digits, split in two. See `digits`.

    Args:
        train_images: (N, 1, 8, 8) float32 in [0, 1], 1 is ink.
        train_labels: (N,) int64, in 0..9.
        test_images: (M, 1, 8, 8), alike.
        test_labels: (M,), alike.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """Load scikit-learn's embedded handwritten digits; nothing is downloaded.

    1,797 grey images of 8 x 8 pixels: the test half of the UCI "Optical Recognition of Handwritten Digits". The split
    is the same on every call and machine: a fixed permutation, its first 1,437 images for training and its last 360
    for testing, not stratified (each digit has 28 to 44 test images).

    Returns:
        ``train_images`` (1437, 1, 8, 8), ``train_labels`` (1437,), ``test_images`` (360, 1, 8, 8) and ``test_labels``
        (360,), on the CPU. Pixels are the stored 0..16 divided by 16.

    Raises:
        ImportError: scikit-learn is not installed; ``pip install 'captum-density[demo]'`` brings it.

    References:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Example:
        >>> import torch
        >>> data = digits()
        >>> data.train_images.shape, data.test_images.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
        >>> data.test_labels.bincount(minlength=10).min().item() > 20
        True
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits() reads the images that scikit-learn embeds, and scikit-learn is not installed; "
            "install it with: pip install 'captum-density[demo]'"
        ) from error

    stored = load_digits()
    # NumPy's legacy generator: its stream is frozen, so the split can never move with a version of NumPy or PyTorch.
    order = torch.from_numpy(np.random.RandomState(_SPLIT_SEED).permutation(len(stored.target)))
    images = torch.from_numpy(stored.images).to(torch.float32).div(16).unsqueeze(1)[order]
    labels = torch.from_numpy(stored.target).to(torch.int64)[order]
    split = len(labels) - _TEST_EXAMPLES
    return Digits(images[:split], labels[:split], images[split:], labels[split:])
