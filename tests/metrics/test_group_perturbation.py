import pytest
import torch
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import group_perturbation, patch_mask

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
X = torch.randn(5, 2, 4, 4, dtype=torch.float64)
MAPS = torch.randn(5, 2, 4, 4, dtype=torch.float64)
PATCHES = patch_mask(X, 2)
TARGET = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("signed", [True, False])
def test_against_a_slow_form(signed):
    result = group_perturbation(
        NET, X, MAPS, 0.5, target=TARGET, feature_mask=PATCHES, fractions=[0, 0.25, 0.5, 1], signed=signed
    )
    for n in range(len(X)):
        values = MAPS[n] if signed else MAPS[n].abs()
        scores = {g: values[(PATCHES[0] == g).expand(2, 4, 4)].sum().item() for g in range(4)}
        order = sorted(scores, key=lambda g: -scores[g])
        for curve, ranked in ((result.most_relevant_first, order), (result.least_relevant_first, order[::-1])):
            for k, gone in enumerate((0, 1, 2, 4)):
                x = X[n].clone()
                for g in ranked[:gone]:
                    x[(PATCHES[0] == g).expand(2, 4, 4)] = 0.5
                assert curve[k, n].item() == pytest.approx(NET(x[None])[0, TARGET[n]].item())
    area = torch.trapezoid(result.most_relevant_first, torch.tensor([0, 0.25, 0.5, 1.0], dtype=torch.float64), dim=0)
    assert_close(result.deletion, area)
    assert_close(result.symmetric_gain, result.insertion - result.deletion)


def test_a_linear_model_is_explained_best_by_its_own_terms():
    weights = torch.randn(12, dtype=torch.float64)
    x = torch.randn(20, 12, dtype=torch.float64)

    def model(x):
        return x @ weights

    best = group_perturbation(model, x, x * weights)
    others = [torch.randn_like(x) for _ in range(50)]
    gains = torch.stack([group_perturbation(model, x, other).symmetric_gain for other in others])
    assert (best.symmetric_gain > gains).all()
    assert gains.mean().abs() < 0.1 * best.symmetric_gain.mean()
    assert_close(group_perturbation(model, x, -x * weights).symmetric_gain, -best.symmetric_gain)


def test_groups_may_differ_between_examples_and_span_inputs():
    def model(a, b):
        return NET(torch.cat([a, b], dim=1))

    masks = torch.randint(0, 3, (5, 1, 4, 4)), torch.randint(2, 7, (1, 1, 4, 4))
    one = group_perturbation(model, (X[:, :1], X[:, 1:]), (MAPS[:, :1], MAPS[:, 1:]), target=1, feature_mask=masks)
    joined = torch.cat([masks[0], masks[1].expand(5, 1, 4, 4)], dim=1)
    both = group_perturbation(NET, X, MAPS, target=1, feature_mask=joined)
    assert_close(one.most_relevant_first, both.most_relevant_first)
    for n in range(5):  # alone, groups that only others have are not there
        alone = group_perturbation(NET, X[n : n + 1], MAPS[n : n + 1], target=1, feature_mask=joined[n : n + 1])
        assert_close(alone.least_relevant_first[:, 0], both.least_relevant_first[:, n])
    assert_close(both.most_relevant_first[-1], both.least_relevant_first[-1])


def test_batches_change_nothing():
    whole = group_perturbation(NET, X, MAPS, target=TARGET, feature_mask=PATCHES)
    parts = group_perturbation(NET, X, MAPS, target=TARGET, feature_mask=PATCHES, max_examples_per_batch=2)
    for one, other in zip(whole, parts, strict=True):
        assert_close(one, other)


def test_patches():
    mask = patch_mask(torch.zeros(1, 3, 5, 4), (2, 3))
    assert mask.shape == (1, 1, 5, 4)
    assert mask.unique().tolist() == list(range(6))
    assert mask[0, 0, 4].tolist() == [4, 4, 4, 5]
    assert patch_mask(torch.zeros(2, 1, 7), 3).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="size of at least 1"):
        patch_mask(torch.zeros(2, 3), 2)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"fractions": [0.5]}, "two or more"),
        ({"feature_mask": PATCHES.float()}, "integers"),
        ({"feature_mask": torch.zeros(3, dtype=torch.long)}, "broadcast"),
        ({"attributions": MAPS[:, :1]}, "shape"),
        ({"attributions": MAPS * torch.nan}, "NaN"),
        ({"baselines": torch.zeros(7)}, "baseline must broadcast"),
        ({"inputs": (X, X[:1]), "attributions": (MAPS, MAPS[:1])}, "expand"),
        ({"inputs": (X[:1], X), "attributions": (MAPS[:1], MAPS), "feature_mask": (PATCHES, PATCHES)}, "expand"),
    ],
)
def test_bad_arguments(change, remedy):
    with pytest.raises(ValueError, match=remedy):
        group_perturbation(**{"forward_func": NET, "inputs": X, "attributions": MAPS, "target": 0, **change})


def test_counts_are_those_of_pixel_perturbation_however_many_groups_there_are():
    x = torch.arange(1.0, 1001)[None]
    gone = [0.0, 0.0005, 0.25, 0.3335, 0.9995, 1.0]
    left = group_perturbation(lambda x: (x > 0).double().sum(1), x, x, fractions=gone).most_relevant_first
    assert left[:, 0].tolist() == [1000 - count for count in (0, 1, 250, 334, 1000, 1000)]
