"""IDSDS against a slow form and closed forms; fine-tuning that makes deletion in-domain."""

import functools

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient
from scipy.stats import spearmanr
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import in_domain_single_deletion, patch_mask
from captum_density.retraining import FitConfig, fine_tune, single_deletion

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
X = torch.randn(5, 2, 4, 4, dtype=torch.float64)
MAPS = torch.randn(5, 2, 4, 4, dtype=torch.float64)
CELLS = patch_mask(X, 2)
TARGET = torch.tensor([0, 1, 2, 0, 1])


def by_hand(model, x, maps, cells, target, fill=0.0):
    scores, losses = [], []
    for cell in sorted(set(cells.flatten().tolist())):
        away = (cells == cell).expand_as(x)
        scores.append(maps[away].sum().item())
        changed = x.clone()
        changed[away] = torch.as_tensor(fill, dtype=x.dtype).expand_as(x)[away]
        losses.append((model(x[None])[0, target] - model(changed[None])[0, target]).item())
    return spearmanr(scores, losses).statistic


@pytest.mark.parametrize("fill", [0.0, torch.randn(2, 4, 4, dtype=torch.float64)])
def test_against_a_slow_form(fill):
    measured = in_domain_single_deletion(NET, X, MAPS, fill, target=TARGET, feature_mask=CELLS)
    slow = [by_hand(NET, x, m, CELLS[0], t, fill) for x, m, t in zip(X, MAPS, TARGET, strict=True)]
    assert measured.tolist() == pytest.approx(slow)


def test_a_linear_model_loses_what_gradient_times_input_says():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    maps = InputXGradient(linear).attribute(X.clone(), target=TARGET)
    score = functools.partial(in_domain_single_deletion, linear, X, target=TARGET, feature_mask=CELLS)
    assert_close(score(maps), torch.ones(5, dtype=torch.float64))
    assert_close(score(-maps), -torch.ones(5, dtype=torch.float64))
    assert (score(torch.ones_like(X)) == 0).all()
    drawn = torch.stack([score(torch.randn_like(X)) for _ in range(100)])
    assert drawn.mean().abs() < 4 * drawn.std() / 500**0.5
    assert drawn.abs().max() <= 1


def test_cells_may_differ_between_examples_and_span_inputs():
    def model(a, b):
        return NET(torch.cat([a, b], dim=1))

    masks = torch.randint(0, 3, (5, 1, 4, 4)), torch.randint(2, 7, (1, 1, 4, 4))
    joined = torch.cat([masks[0], masks[1].expand(5, 1, 4, 4)], dim=1)
    joined[:2] += 9  # some examples have no cell of the others'
    both = in_domain_single_deletion(NET, X, MAPS, target=TARGET, feature_mask=joined)
    slow = [by_hand(NET, x, m, c, t) for x, m, c, t in zip(X, MAPS, joined, TARGET, strict=True)]
    assert both.tolist() == pytest.approx(slow)
    joined[:2] -= 9
    one = in_domain_single_deletion(
        model, (X[:, :1], X[:, 1:]), (MAPS[:, :1], MAPS[:, 1:]), target=TARGET, feature_mask=masks
    )
    assert_close(one, in_domain_single_deletion(NET, X, MAPS, target=TARGET, feature_mask=joined))


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_batches_change_nothing(limit):
    def rounded(x):  # otherwise at each place of a batch, as matrix products are
        return NET(x) + 1e-12 * torch.arange(len(x))[:, None]

    x = X.relu()
    x[:, :, :, 2:] = 0  # most elements hold the baseline already, and lose nothing
    score = functools.partial(in_domain_single_deletion, rounded, target=TARGET)
    whole = score(x, MAPS)
    assert_close(score(x, MAPS, max_examples_per_batch=limit), whole, rtol=0, atol=0)
    assert_close(in_domain_single_deletion(NET, x, MAPS, target=TARGET), whole, rtol=0, atol=0)


def test_what_is_lost_nowhere_is_ranked_by_nothing():
    assert (in_domain_single_deletion(NET, X, MAPS, X, target=0, feature_mask=CELLS) == 0).all()
    assert (in_domain_single_deletion(NET, X, torch.ones_like(X), X, target=0, feature_mask=CELLS) == 0).all()
    ties = torch.tensor([[1.0, 1.0, 2.0, 3.0]])
    measured = in_domain_single_deletion(lambda x: x.sum(1), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), ties)
    assert measured.item() == pytest.approx(spearmanr(ties[0], [1, 2, 3, 4]).statistic)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"feature_mask": torch.zeros(1, 1, 1, 1, dtype=torch.long)}, "several"),
        ({"feature_mask": CELLS.float()}, "integers"),
        ({"attributions": MAPS[:, :1]}, "shape"),
        ({"attributions": MAPS * torch.nan}, "NaN"),
        ({"baselines": torch.zeros(7)}, "baseline must broadcast"),
        ({"inputs": (X, X[:1]), "attributions": (MAPS, MAPS[:1])}, "expand"),
        ({"forward_func": lambda x: NET(x) * torch.nan}, "NaN"),
    ],
)
def test_bad_arguments(change, remedy):
    with pytest.raises(ValueError, match=remedy):
        in_domain_single_deletion(**{"forward_func": NET, "inputs": X, "attributions": MAPS, "target": 0, **change})


def test_fine_tuning_makes_deletion_harmless():
    # The class stands in every cell: a model may look at one, and learns to do without when that is deleted.
    labels = torch.arange(200) % 2
    x = (2.0 * labels[:, None] - 1).repeat(1, 4) + 0.1 * torch.randn(200, 4)
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-3.0, 0, 0, 0], [3.0, 0, 0, 0]]))
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    cells = torch.arange(4)[None]
    tuned = fine_tune(
        model, (x, labels), functools.partial(single_deletion, feature_mask=cells), fit=FitConfig(epochs=20, lr=0.1)
    )
    deleted = x.clone()
    deleted[:, 0] = 0
    assert (model(deleted).argmax(1) == labels).float().mean() == 0.5
    assert (tuned(deleted).argmax(1) == labels).float().mean() > 0.95


def test_arrays():
    arrays = in_domain_single_deletion(NET, X.numpy(), MAPS.numpy(), target=TARGET.numpy(), feature_mask=CELLS.numpy())
    assert_close(arrays, in_domain_single_deletion(NET, X, MAPS, target=TARGET, feature_mask=CELLS))
    assert isinstance(np.asarray(arrays), np.ndarray)


@pytest.mark.cuda
def test_cuda():
    net, cells = NET.cuda(), CELLS.cuda()
    try:
        here = in_domain_single_deletion(net, X.cuda(), MAPS.cuda(), target=TARGET.cuda(), feature_mask=cells)
    finally:
        NET.cpu()
    assert here.is_cuda
    assert_close(here.cpu(), in_domain_single_deletion(NET, X, MAPS, target=TARGET, feature_mask=CELLS))
