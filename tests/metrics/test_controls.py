"""Maps that know nothing, and how a method stands beside them."""

import copy

import pytest
import torch
from captum.attr import InputXGradient, Saliency
from captum.metrics import infidelity
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import (
    compare_with_controls,
    control_maps,
    group_perturbation,
    pointing_game,
    random_weights_map,
    relevance_mass,
)

torch.manual_seed(0)
IMAGES, MAPS, TARGET = torch.rand(6, 3, 8, 10), torch.randn(6, 3, 8, 10), torch.tensor([0, 0, 0, 1, 1, 1])
COMMON = ["a constant map", "a blob in the centre", "an edge detector", "the input itself"]
OWN = ["a random map of its spectrum", "another example's map"]


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (IMAGES, [*COMMON, *OWN]),
        (torch.rand(4, 2, 9), ["a constant map", "a blob in the centre", "the input itself", *OWN]),
        (torch.rand(4, 7), ["a constant map", "the input itself", "another example's map"]),
        (torch.rand(1, 7), ["a constant map", "the input itself"]),
    ],
    ids=["images", "signals", "table", "one row"],
)
def test_controls_are_of_what_inputs_have(inputs, names):
    maps = control_maps(inputs, torch.randn_like(inputs))
    assert list(maps) == names
    assert all(each.shape == inputs.shape and each.dtype == inputs.dtype for each in maps.values())
    assert all((maps[name] >= 0).all() for name in names if name != "another example's map")
    assert not set(control_maps(inputs)) & set(OWN)


def test_what_the_maps_are():
    """Up to the thousandth that breaks ties: each by its definition, one element checked by hand."""
    x = torch.zeros(2, 3, 6, 8)
    x[..., 4:] = 1
    maps = control_maps(x, baselines=0.25)
    for name in COMMON:
        assert all(len(each.flatten().unique()) > 100 for each in maps[name]), name  # no ties
    assert_close(maps["a constant map"], torch.ones_like(x), rtol=0, atol=1e-3)
    assert_close(maps["the input itself"], (x - 0.25).abs(), rtol=0, atol=1e-3)
    # Of a step of 1, Sobel's filter gives 1 + 2 + 1.
    want = torch.tensor([0.0, 0, 0, 4, 4, 0, 0, 0]).expand_as(x)
    assert_close(maps["an edge detector"], want, rtol=0, atol=4e-3)
    # The first pixel's centre is 5 / 12 and 7 / 16 of a side away from the middle.
    corner = torch.tensor(-((5 / 12) ** 2 + (7 / 16) ** 2) / (2 * 0.25**2)).exp()
    assert_close(maps["a blob in the centre"][0, 0, 0, 0], corner, rtol=0, atol=1e-3)


def test_maps_of_a_methods_own():
    maps = control_maps(IMAGES, MAPS, target=TARGET)
    drawn = maps["a random map of its spectrum"]
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    spectra = [torch.fft.fft2(values.sum(1)).abs().flatten(1)[:, 1:] for values in (MAPS.abs(), drawn)]
    assert_close(*spectra, rtol=1e-3, atol=1e-4)
    others = [next(j for j in range(6) if torch.equal(MAPS[j], each)) for each in maps["another example's map"]]
    assert sorted(others) == list(range(6)) and all(TARGET[i] != TARGET[j] for i, j in enumerate(others))
    listed = control_maps(IMAGES, MAPS, target=TARGET.tolist())["another example's map"]
    assert torch.equal(listed, maps["another example's map"])


def test_maps_are_of_the_seed_alone():
    before = torch.get_rng_state()
    one, again, other = (control_maps(IMAGES, MAPS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_several_inputs():
    table = torch.rand(6, 4)
    maps = control_maps((IMAGES, table), (MAPS, table), (0.5, table.mean(0)), TARGET)
    assert list(maps) == [*COMMON, *OWN]
    assert all(one.shape == IMAGES.shape and other.shape == table.shape for one, other in maps.values())
    assert_close(maps["a blob in the centre"][1], torch.ones_like(table), rtol=0, atol=1e-3)
    assert_close(maps["the input itself"][1], (table - table.mean(0)).abs(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("error", "remedy", "arguments"),
    [
        (TypeError, "embeddings", (torch.arange(6).view(2, 3),)),
        (ValueError, "not empty", (torch.rand(0, 3),)),
        (ValueError, "give all", (IMAGES, MAPS[:2])),
        (ValueError, "NaN", (IMAGES, MAPS * torch.nan)),
        (ValueError, "broadcast", (IMAGES, MAPS, torch.zeros(5))),
    ],
)
def test_bad_maps_are_refused(error, remedy, arguments):
    with pytest.raises(error, match=remedy):
        control_maps(*arguments)


def linear(n=30):
    weights, x = torch.randn(20), torch.randn(n, 20)
    return weights, x, lambda maps: group_perturbation(lambda x: x @ weights, x, maps).symmetric_gain


def test_a_method_that_knows_beats_every_control_and_a_control_does_not():
    weights, x, metric = linear()
    controls = control_maps(x, x * weights)
    result = compare_with_controls(metric, x * weights, controls)
    assert result.beats_controls and 0 < result.low < result.gain < result.high
    assert result.gain == pytest.approx(result.mean - result.control_means[result.strongest])
    assert list(result.gains) == sorted(controls, key=lambda name: -metric(controls[name]).mean())
    same = compare_with_controls(metric, controls["the input itself"], controls)
    assert not same.beats_controls and same.gains["the input itself"] == (0, 0, 0)
    assert_close(result.control_values[result.strongest], metric(controls[result.strongest]).double())
    assert result.table().splitlines()[3].split("|")[1].strip() == result.strongest


def test_where_lower_is_better_gains_turn_round():
    weights, x, _ = linear()
    own = x * weights

    def erase(inputs):
        away = torch.rand_like(inputs) < 0.3
        return away.float(), torch.where(away, 0.0, inputs)

    def metric(maps):
        torch.manual_seed(0)
        return infidelity(lambda x: x @ weights, erase, x, maps, normalize=True)

    result = compare_with_controls(metric, own, control_maps(x, own), lower_is_better=True)
    assert result.beats_controls and result.mean < min(result.control_means.values())
    turned = compare_with_controls(lambda maps: -metric(maps), own, control_maps(x, own))
    assert (turned.gain, turned.low, turned.high) == pytest.approx((result.gain, result.low, result.high))


def test_the_interval_knows_that_the_control_was_chosen():
    """Of controls that are as good as the method, nine intervals in ten hold the gain 0, of 2 or of 20."""
    generator = torch.Generator().manual_seed(0)
    for k in (2, 20):
        held = 0
        for seed in range(30):
            values = torch.randn(k + 1, 40, generator=generator)
            controls = {str(i): values[i + 1] for i in range(k)}
            result = compare_with_controls(lambda each: each, values[0], controls, seed=seed)
            assert result.high >= result.gain >= result.low
            held += result.low <= 0 <= result.high
        assert held >= 27, (k, held)


def test_the_best_of_several_methods_has_a_wider_interval():
    weights, x, metric = linear()
    one, five = (compare_with_controls(metric, x * weights, control_maps(x), methods=n) for n in (1, 5))
    assert five.gain == one.gain and five.low < one.low and five.high > one.high


def test_metrics_of_yes_and_no_and_of_masks():
    masks = torch.zeros(6, 1, 8, 10, dtype=torch.bool)
    masks[..., :2] = True
    good = masks.float().expand_as(IMAGES)
    for metric in (pointing_game, relevance_mass):
        result = compare_with_controls(lambda maps, metric=metric: metric(maps, masks), good, control_maps(IMAGES))
        assert result.mean == 1 and result.beats_controls


@pytest.mark.parametrize(
    ("error", "remedy", "metric", "controls"),
    [
        (ValueError, "control_maps", torch.abs, {}),
        (TypeError, "must be a function", 3, {"a": MAPS}),
        (TypeError, "pick one field", lambda maps: (maps, maps), {"a": MAPS}),
        (ValueError, r"\(N,\)", lambda maps: maps, {"a": MAPS}),
        (ValueError, r"\(6,\)", lambda maps: maps.flatten(1).sum(1), {"a": MAPS[:2]}),
        (ValueError, "NaN", lambda maps: maps.flatten(1).sum(1) / 0, {"a": MAPS}),
    ],
)
def test_bad_comparisons_are_refused(error, remedy, metric, controls):
    with pytest.raises(error, match=remedy):
        compare_with_controls(metric, MAPS, controls)


NET = nn.Sequential(nn.Flatten(), nn.Linear(240, 5), nn.ReLU(), nn.Linear(5, 2))


def test_maps_at_random_weights_are_of_other_weights():
    before = copy.deepcopy(NET.state_dict())
    all_drawn = random_weights_map(Saliency, NET, IMAGES, TARGET)
    assert_close(NET.state_dict(), before)
    own = Saliency(NET).attribute(IMAGES, TARGET)
    assert all_drawn.shape == own.shape and not all_drawn.requires_grad
    # A saliency map of a network whose first layer is its own is a mixture of that layer's five rows.
    rows = NET[1].weight.detach().T
    top = random_weights_map(Saliency, NET, IMAGES, TARGET, top=1, abs=False).flatten(1).T
    assert torch.linalg.lstsq(rows, top).solution.shape == (5, 6)
    assert_close(rows @ torch.linalg.lstsq(rows, top).solution, top)
    whole = random_weights_map(Saliency, NET, IMAGES, TARGET, abs=False).flatten(1).T
    assert (rows @ torch.linalg.lstsq(rows, whole).solution - whole).norm() > 0.5 * whole.norm()
    with pytest.raises(ValueError, match=r"1\.\.2"):
        random_weights_map(Saliency, NET, IMAGES, TARGET, top=3)


def test_several_inputs_at_random_weights():
    def model(a, b):
        return NET(a + b)

    maps = random_weights_map(InputXGradient, model, (IMAGES, IMAGES), TARGET)
    assert isinstance(maps, tuple) and [each.shape for each in maps] == [IMAGES.shape] * 2


@pytest.mark.cuda
def test_on_a_gpu():
    x, own = IMAGES.cuda(), MAPS.cuda()
    there, here = control_maps(x, own, target=TARGET.cuda()), control_maps(IMAGES, MAPS, target=TARGET)
    for name, maps in there.items():
        assert maps.is_cuda
        assert_close(maps.cpu(), here[name], rtol=1e-4, atol=1e-5)
    net = copy.deepcopy(NET).cuda()
    assert random_weights_map(Saliency, net, x, TARGET.cuda()).is_cuda
    masks = torch.rand(6, 1, 8, 10) > 0.5
    results = [
        compare_with_controls(lambda m, at=at: relevance_mass(m, masks.to(at)), maps, controls)
        for at, maps, controls in (("cpu", MAPS, here), ("cuda", own, there))
    ]
    assert results[0].gain == pytest.approx(results[1].gain, abs=1e-4)
