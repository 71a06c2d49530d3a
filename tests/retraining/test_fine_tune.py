"""What is deleted at random, and copies of a model that are trained on it."""

import functools

import pytest
import torch
from torch import nn

from captum_density.metrics import patch_mask
from captum_density.retraining import FitConfig, fine_tune, random_deletion, single_deletion
from tests.retraining.small import mlp, split, states

FIT = FitConfig(epochs=2, batch_size=16, lr=0.05)
IMAGES = torch.rand(400, 2, 4, 4) + 1
CELLS = patch_mask(IMAGES, 2)


def generator():
    return torch.Generator().manual_seed(0)


def test_a_cell_of_half_of_the_examples_is_deleted():
    before = IMAGES.clone()
    deleted = single_deletion(IMAGES, CELLS, -1.0, generator=generator())
    assert torch.equal(IMAGES, before)
    gone = deleted != IMAGES
    assert (deleted[gone] == -1).all()
    by_cell = torch.stack([gone.flatten(1)[:, (CELLS.expand(1, 2, 4, 4) == c).flatten()] for c in range(4)], 1)
    assert (by_cell.all(2) == by_cell.any(2)).all()  # whole cells, of all channels
    assert by_cell.any(2).sum(1).unique().tolist() == [0, 1]
    counts = by_cell.any(2).sum(0).float()
    assert (counts - 50).abs().max() < 25  # each as often, of 400 a half
    assert torch.equal(deleted, single_deletion(IMAGES, CELLS, -1.0, generator=generator()))
    assert torch.equal(single_deletion(IMAGES, CELLS, share=0), IMAGES)
    assert (single_deletion(IMAGES, CELLS, share=1) != IMAGES).flatten(1).any(1).all()


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_a_fraction_is_deleted_exactly(fraction):
    deleted = random_deletion(IMAGES, fraction, generator=generator())
    assert ((deleted == 0).flatten(1).sum(1) == int(fraction * 32 + 0.5)).all()
    assert (deleted[deleted != 0] == IMAGES[deleted != 0]).all()
    pixels = torch.arange(16).view(1, 1, 4, 4)
    whole = random_deletion(IMAGES, 0.25, pixels, IMAGES.mean(0), generator=generator()) == IMAGES.mean(0)
    assert (whole[:, 0] == whole[:, 1]).all() and (whole.flatten(1).sum(1) == 8).all()
    often = whole[:, 0].float().mean(0)
    assert (often - 0.25).abs().max() < 0.1


def test_a_copy_is_trained_and_the_model_left():
    model, data = mlp(), split(64, 0)
    model.train()[1].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = states()
    tuned = fine_tune(model, data, functools.partial(random_deletion, fraction=0.2), fit=FIT)
    assert states() == state
    assert model.training and not tuned.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(tuned[1].weight, model[1].weight) and not torch.equal(tuned[3].weight, model[3].weight)
    assert not tuned[1].weight.requires_grad and tuned[3].weight.requires_grad
    again = fine_tune(model, data, functools.partial(random_deletion, fraction=0.2), fit=FIT)
    other = fine_tune(model, data, functools.partial(random_deletion, fraction=0.2), fit=FIT, run=1)
    assert torch.equal(tuned[3].weight, again[3].weight) and not torch.equal(tuned[3].weight, other[3].weight)
    arrays = fine_tune(model, tuple(part.numpy() for part in data), fit=FIT)
    assert torch.equal(arrays[3].weight, fine_tune(model, data, fit=FIT)[3].weight)


def test_a_frozen_model_is_trained_whole_and_frozen_again():
    model = mlp().requires_grad_(False)
    tuned = fine_tune(model, split(64, 0), fit=FIT)
    assert not torch.equal(tuned[1].weight, model[1].weight)
    assert not any(p.requires_grad for p in tuned.parameters())


@pytest.mark.parametrize(
    ("call", "error", "remedy"),
    [
        (lambda: single_deletion(IMAGES, CELLS, share=1.5), ValueError, "share must be in"),
        (lambda: single_deletion(IMAGES, CELLS.float()), ValueError, "integers"),
        (lambda: random_deletion(IMAGES, -0.1), ValueError, "fraction must be in"),
        (lambda: random_deletion(IMAGES, 0.1, baselines=torch.zeros(7)), ValueError, "broadcast"),
        (lambda: fine_tune(lambda x: x, split(8, 0)), TypeError, "torch.nn.Module"),
        (lambda: fine_tune(nn.Flatten(), split(8, 0)), ValueError, "parameters"),
        (lambda: fine_tune(mlp(), split(8, 0), fit="fast"), TypeError, "FitConfig"),
        (lambda: fine_tune(mlp(), split(8, 0), "mask"), TypeError, "function"),
        (lambda: fine_tune(mlp(), split(8, 0), lambda x, generator: x[:1]), ValueError, "augment must return"),
        (lambda: fine_tune(mlp(), split(8, 0), lambda x, generator: None), TypeError, "return a tensor"),
    ],
)
def test_bad_arguments(call, error, remedy):
    with pytest.raises(error, match=remedy):
        call()


@pytest.mark.cuda
def test_cuda():
    data = split(64, 0)
    delete = functools.partial(random_deletion, fraction=0.2)
    tuned = fine_tune(mlp().cuda(), data, delete, fit=FIT)
    assert tuned[3].weight.is_cuda
    assert single_deletion(IMAGES.cuda(), CELLS, generator=generator()).is_cuda
