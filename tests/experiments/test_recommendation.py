"""The recommendation where the best method is known; `python -m tests.experiments.recommendation` counts over seeds."""

import pytest
import torch

from captum_density.datasets import BlockImages, digits
from tests.experiments import recommendation as experiment


def test_the_mask_is_where_the_digit_is():
    images, labels = digits().test_images[:20], torch.zeros(20)
    null = BlockImages(images, labels).null
    blocks, mask = experiment.four_blocks(images, labels, null, seed=0)
    assert blocks.shape == mask.shape == (20, 1, 16, 16)
    assert (mask.flatten(1).sum(1) == 64).all()
    assert torch.equal(blocks[mask].reshape(20, 1, 8, 8), images)
    places = {tuple(each.nonzero()[0].tolist()) for each in mask}
    assert places == {(0, 0, 0), (0, 0, 8), (0, 8, 0), (0, 8, 8)}


@pytest.mark.slow
def test_the_gradient_on_the_digit_is_recommended_and_nothing_beside_it():
    every, ignorant = experiment.block_audits(digits(), seed=20, epochs=8)
    assert every.recommendation().method == experiment.RIGHT
    assert ignorant.recommendation().method is None
