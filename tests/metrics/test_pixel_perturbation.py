"""Pixel perturbation against one example, one fraction, one pixel at a time; its laws; what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import PixelPerturbation, pixel_perturbation


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def recorder(classes=2):
    """A model that keeps what it is given, as (rows, ...) for each call, and says logits of zeros."""
    calls = []

    def model(*xs):
        calls.append(tuple(x.clone() for x in xs))
        return torch.zeros(len(xs[0]), classes, dtype=xs[0].dtype)

    return model, calls


def kept_of(x, attributions, baseline=-7.0, **options):
    """Which elements are left at each fraction, (K, *x.shape) bool; x must not hold the baseline."""
    model, calls = recorder()
    pixel_perturbation(model, x, attributions, baseline, target=0, **options)
    masked = torch.stack([xs[0] for xs in calls])
    assert bool(((masked == x) | (masked == baseline)).all())
    return masked == x


def slowly(model, x, attributions, baseline, target, *, channels, fractions, keep, signed):
    """(K, N) correctness and probability by loops over fractions, examples and pixels, as one would by hand."""
    correct, probability = [], []
    for fraction in fractions:
        for image, maps, fill, reference in zip(x.numpy(), attributions.numpy(), baseline.numpy(), target, strict=True):
            together = channels == "together"
            scores = {}
            for place, a in np.ndenumerate(maps):
                pixel = place[1:] if together else place
                scores[pixel] = scores.get(pixel, 0.0) + (a if signed else abs(a))
            best_first = sorted(scores, key=lambda pixel: -scores[pixel])  # stable: ties by position
            if keep == "top":
                kept = best_first[: halves_up(fraction * len(scores))]
            else:
                kept = best_first[halves_up((1 - fraction) * len(scores)) :]
            left = image.copy()
            for place in np.ndindex(*image.shape):
                if (place[1:] if together else place) not in kept:
                    left[place] = fill[place]
            with torch.no_grad():
                logits = model(torch.from_numpy(left)[None])[0].tolist()
            correct.append(logits[reference] == max(logits))
            probability.append(math.exp(logits[reference]) / sum(map(math.exp, logits)))
    shape = len(fractions), len(x)
    return torch.tensor(correct).reshape(shape), torch.tensor(probability, dtype=torch.float64).reshape(shape)


def halves_up(count):
    return math.floor(round(count, 9) + 0.5)  # of decimals, which come as 0.30000000000000004


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["together", "singly"]),
    st.sampled_from(["top", "bottom"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1, 4, 100]),
    st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=2, max_size=5, unique=True),
)
def test_values_are_those_of_one_pixel_at_a_time(seed, channels, keep, signed, one_map, batch, fractions):
    torch.manual_seed(seed)
    n, c, h, w = (int(torch.randint(1, 4, ())) for _ in range(4))
    x, baseline = normal(n, c, h, w), normal(n, c, h, w)
    # Of few values, so that there are ties.
    attributions = torch.randint(-2, 3, (n, 1 if one_map and channels == "together" else c, h, w)).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    target = torch.randint(3, (n,))
    choices = {"channels": channels, "keep": keep, "signed": signed}
    result = pixel_perturbation(
        model,
        x,
        attributions,
        baseline,
        target=target,
        fractions=fractions,
        max_examples_per_batch=batch,
        **choices,
    )
    assert isinstance(result, PixelPerturbation)
    fractions = sorted(fractions)
    correct, probability = slowly(model, x, attributions, baseline, target, fractions=fractions, **choices)
    assert result.fractions.tolist() == fractions
    assert torch.equal(result.correct, correct)
    assert_close(result.probability, probability)
    # The trapezoid rule written out, over the range.
    for curve, area in ((probability, result.area), (correct.double(), result.accuracy_area)):
        steps = [(fractions[k + 1] - fractions[k]) * (curve[k] + curve[k + 1]) / 2 for k in range(len(fractions) - 1)]
        assert_close(area, sum(steps) / (fractions[-1] - fractions[0]))
    assert not result.probability.requires_grad


@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.one_of(st.floats(0, 1), st.integers(0, 120).map(lambda i: i / 120), st.integers(0, 1000).map(lambda i: i / 1e3)),
    st.booleans(),
)
def test_the_bottom_is_what_the_top_leaves(seed, d, fraction, ties):
    torch.manual_seed(seed)
    x, attributions = torch.ones(2, d), torch.randint(3, (2, d)).double() if ties else normal(2, d)
    other = 0.25 if fraction == 1 else 1.0  # two fractions are asked for
    top = kept_of(x, attributions, channels="singly", fractions=sorted([fraction, other]))
    place = sorted([fraction, other]).index(fraction)
    beside = 0.75 if 1 - fraction == 0 else 0.0
    bottom = kept_of(x, attributions, channels="singly", keep="bottom", fractions=sorted([1 - fraction, beside]))
    at = sorted([1 - fraction, beside]).index(1 - fraction)
    assert torch.equal(top[place], ~bottom[at])
    counts = top[place].sum(1)
    assert counts.eq(counts[0]).all() and abs(int(counts[0]) - fraction * d) <= 0.5 + 1e-5


@pytest.mark.parametrize("d", [1, 5, 15, 25, 64, 75])
def test_halves_go_to_the_top_in_every_decimal(d):
    fractions = [i / 20 for i in range(21)]
    x, attributions = torch.ones(1, d), torch.arange(d).flip(0).double()[None]
    top = kept_of(x, attributions, channels="singly", fractions=fractions)
    bottom = kept_of(x, attributions, channels="singly", keep="bottom", fractions=fractions)
    assert torch.equal(top, ~bottom.flip(0))
    assert top.sum((1, 2)).tolist() == [(2 * i * d + 20) // 40 for i in range(21)]  # floor(i d / 20 + 1/2)
    assert all(bool(row[0, : int(row.sum())].all()) for row in top)


@pytest.mark.parametrize("keep", ["top", "bottom"])
@pytest.mark.parametrize("channels", ["together", "singly"])
def test_none_is_all_baseline_and_all_is_unchanged(keep, channels):
    x, baseline = normal(3, 2, 4, 4), normal(3, 2, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).double()
    result = pixel_perturbation(model, x, normal(3, 2, 4, 4), baseline, target=1, keep=keep, channels=channels)
    assert result.fractions.tolist() == [i / 10 for i in range(11)]
    for at, whole in ((0, baseline), (10, x)):
        assert_close(result.probability[at], model(whole).softmax(1)[:, 1].detach())
        assert torch.equal(result.correct[at], model(whole).argmax(1) == 1)


@given(st.integers(0, 10**6), st.sampled_from(["top", "bottom"]), st.booleans())
def test_what_is_kept_grows(seed, keep, signed):
    torch.manual_seed(seed)
    kept = kept_of(torch.ones(2, 3, 4, 5), torch.randint(-3, 3, (2, 3, 4, 5)).double(), keep=keep, signed=signed)
    assert bool((kept[1:] >= kept[:-1]).all())
    assert bool((kept == kept[:, :, :1]).all())  # a pixel in all its channels


def test_channels_together_rank_by_the_sum():
    x = torch.ones(1, 2, 1, 3)
    attributions = torch.tensor([[[[3.0, 1.0, 2.0]], [[-3.0, 1.0, 0.5]]]])
    third = {"fractions": [0, 1 / 3], "channels": "together"}
    assert kept_of(x, attributions, **third)[1, 0, 0, 0].tolist() == [True, False, False]  # 6, 2, 2.5
    assert kept_of(x, attributions, **third, signed=True)[1, 0, 0, 0].tolist() == [False, False, True]  # 0, 2, 2.5
    singly = kept_of(x, attributions, fractions=[0, 1 / 3], channels="singly")[1, 0]
    assert singly.tolist() == [[[True, False, False]], [[True, False, False]]]
    signed = kept_of(x, attributions, fractions=[0, 1 / 3], channels="singly", signed=True)[1, 0]
    assert signed.tolist() == [[[True, False, True]], [[False, False, False]]]


@pytest.mark.parametrize("signed", [True, False])
def test_one_map_for_all_channels(signed):
    x, maps = torch.ones(2, 3, 4, 4), normal(2, 1, 4, 4)
    result = kept_of(x, maps, signed=signed)
    assert torch.equal(result, kept_of(x, maps.expand(-1, 3, -1, -1), signed=signed))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\), but have \(2, 1, 4, 4\)"):
        kept_of(x, maps, channels="singly")


@pytest.mark.parametrize("channels", ["together", "singly"])
@pytest.mark.parametrize("signed", [True, False])
def test_zeros_of_both_signs_tie(channels, signed):
    x, zeros = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    mixed = torch.where(torch.arange(9).reshape(1, 1, 3, 3) % 2 == 0, -0.0, 0.0)
    assert bool(mixed.signbit().any())
    options = {"channels": channels, "signed": signed}
    assert torch.equal(kept_of(x, mixed, **options), kept_of(x, zeros, **options))
    # And ties go by position: the first third is the first row.
    third = kept_of(x, mixed, fractions=[0, 1 / 3], **options)[1, 0, 0]
    assert third.tolist() == [[True] * 3, [False] * 3, [False] * 3]


@pytest.mark.parametrize("channels", ["together", "singly"])
def test_several_inputs_are_ranked_together(channels):
    x = torch.ones(1, 2, 1, 2), torch.ones(1, 1, 3)
    maps = torch.tensor([[[[4.0, 0.0]], [[0.5, 0.1]]]]), torch.tensor([[[3.0, 1.0, 2.0]]])
    model, calls = recorder()
    pixel_perturbation(model, x, maps, (-7.0, None), target=0, channels=channels, fractions=[0, 3 / 5, 1])
    first, second = calls[1]
    if channels == "together":  # five pixels: 4.5, 0.1 and 3, 1, 2
        assert first.tolist() == [[[[1, -7]], [[1, -7]]]] and second.tolist() == [[[1, 0, 1]]]
    else:  # of seven elements 4.2, so four: 4, 3, 2, 1
        assert first.tolist() == [[[[1, -7]], [[-7, -7]]]] and second.tolist() == [[[1, 1, 1]]]
    assert calls[0][0].eq(-7).all() and calls[0][1].eq(0).all() and all(x.eq(1).all() for x in calls[2])


@pytest.mark.parametrize(
    "baseline",
    [
        None,
        2,
        -0.5,
        torch.tensor(3.0),
        torch.tensor(3),
        torch.randn(4, 5),
        torch.randn(2, 1, 1),
        torch.randn(1, 2, 4, 5),
        torch.randn(3, 2, 4, 5),
        torch.randn(3, 2, 4, 5, dtype=torch.float64).requires_grad_(),
        (torch.randn(5),),
        (None,),
    ],
    ids=str,
)
def test_baselines_of_every_form(baseline):
    x = torch.randn(3, 2, 4, 5)
    plain = baseline[0] if isinstance(baseline, tuple) else baseline
    whole = torch.zeros(3, 2, 4, 5) + torch.as_tensor(0 if plain is None else plain).detach().float()
    model, calls = recorder()
    result = pixel_perturbation(model, x, x, baseline, target=0)
    assert torch.equal(calls[0][0], whole)
    expected, again = recorder()
    pixel_perturbation(expected, x, x, whole, target=0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(calls, again, strict=True))
    assert result.area.shape == (3,) and not result.area.requires_grad


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 1000])
def test_a_split_batch_gives_the_same_and_rows_keep_their_arguments(batch):
    x, table = normal(5, 1, 3, 3), normal(4, 3)
    weight = normal(5, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double()
    sizes = []

    def forward(x, weight, table, factor, name):
        sizes.append(len(x))
        assert len(weight) == len(x) and len(table) == 4 and name == "name"
        return model(x) * weight * factor + table.sum(0)

    args = (weight, table, 2.0, "name")
    target = [0, 1, 2, 0, 1]
    whole = pixel_perturbation(forward, x, x, None, args, target)
    assert sizes == [5] * 11
    sizes.clear()
    split = pixel_perturbation(forward, x, x, None, args, target, max_examples_per_batch=batch)
    assert max(sizes) == min(batch, 5) and sum(sizes) == 55
    for a, b in zip(whole, split, strict=True):
        assert_close(a, b)


def test_it_is_exact_where_the_answer_is_known():
    # Class 1 if more than half of four pixels are there, with probability sigmoid(4 (sum - 2)).
    model = lambda x: torch.stack([torch.zeros(len(x)), 4 * (x.flatten(1).sum(1) - 2)], 1)  # noqa: E731
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    a = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    result = pixel_perturbation(model, x, a, target=1, channels="singly", fractions=[0, 0.25, 0.5, 0.75, 1])
    sums = torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]).T
    assert_close(result.probability, torch.sigmoid(4 * (sums - 2)))
    # At a sum of 2 the logits are equal, and the first class is predicted.
    assert result.correct.tolist() == (sums > 2).tolist()
    assert_close(result.accuracy_area, torch.tensor([0.375, 0.125], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_have_the_digits_of_the_model(dtype):
    x, logits = torch.ones(1, 2, dtype=dtype), torch.tensor([[0.0, 10.0]], dtype=dtype)
    result = pixel_perturbation(lambda x: logits[: len(x)], x, x, target=0, channels="singly")
    exact = 1 / (1 + math.exp(10))
    assert_close(result.probability[0, 0].item(), exact, rtol=1e-14 if dtype == torch.float64 else 1e-5, atol=0)
    assert result.area.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before_and_batch_norm_is_fixed(training):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model[1].running_mean.uniform_(-1, 1)
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(4, 1, 4, 4)
    result = pixel_perturbation(model, x, x, target=0)
    assert model.training == model[1].training == training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert_close(result.probability[-1], model.eval()(x).softmax(1)[:, 0].detach())


def test_nothing_given_is_changed():
    x, a, b = (torch.randn(2, 1, 3, 3) for _ in range(3))
    copies = [t.clone() for t in (x, a, b)]

    def writes(x):
        x.mul_(2).add_(1)
        return x.flatten(1)[:, :2]

    pixel_perturbation(writes, x, a, b, target=0)
    assert all(torch.equal(t, c) for t, c in zip((x, a, b), copies, strict=True))


IMAGE = torch.ones(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"channels": "each"}, ValueError, "channels must be .* 'each'"),
        ({"keep": "most"}, ValueError, "keep must be .* 'most'"),
        ({"fractions": [0.5]}, ValueError, "two or more different"),
        ({"fractions": [0.5, 0.5]}, ValueError, "different"),
        ({"fractions": [-0.1, 1]}, ValueError, r"in \[0, 1\]"),
        ({"fractions": [0, 1.1]}, ValueError, r"in \[0, 1\]"),
        ({"fractions": [0, math.nan, 1]}, ValueError, r"in \[0, 1\]"),
        ({"fractions": [math.nan, 1]}, ValueError, r"in \[0, 1\]"),
        ({"attributions": torch.ones(2, 1, 2, 3)}, ValueError, r"shape .*but have \(2, 1, 2, 3\)"),
        ({"attributions": IMAGE * torch.nan}, ValueError, "attributions contain NaN"),
        ({"attributions": IMAGE * torch.inf}, ValueError, "attributions contain NaN or inf"),
        ({"attributions": IMAGE.int()}, TypeError, "attributions must be floating-point"),
        ({"attributions": (IMAGE, IMAGE)}, ValueError, "each of 1 inputs, but there are 2"),
        ({"attributions": IMAGE.int()}, TypeError, "attributions must be floating-point tensors"),
        ({"inputs": [IMAGE]}, TypeError, "tuple of tensors, but is list"),
        ({"inputs": ()}, TypeError, "non-empty tuple"),
        ({"inputs": IMAGE.int()}, TypeError, "no gradient|floating"),
        ({"inputs": torch.ones(2, 2), "attributions": torch.ones(2, 2)}, ValueError, "no channels; .*'singly'"),
        ({"inputs": torch.ones(0, 1, 2, 2)}, ValueError, "at least one example"),
        ({"inputs": IMAGE * torch.nan}, ValueError, "NaN"),
        ({"baselines": torch.ones(3, 1, 2, 2)}, ValueError, r"broadcast to its input, \(2, 1, 2, 2\).*\(3, 1, 2, 2\)"),
        ({"baselines": torch.nan}, ValueError, "baselines contain NaN"),
        ({"baselines": (0.0, 0.0)}, ValueError, "a baseline for each of 1"),
        ({"target": 4}, ValueError, "class 4, the classifier knows 4"),
        ({"target": [0, 9]}, ValueError, "class 9, the classifier knows 4"),
        ({"target": -1}, ValueError, "target must be"),
        ({"target": [0, 1, 2]}, ValueError, "each of 2"),
        ({"target": None}, ValueError, "target must be"),
        ({"max_examples_per_batch": 0}, ValueError, "at least 1"),
        ({"forward_func": lambda x: x}, ValueError, r"logits \(2, C\), but returned \(2, 1, 2, 2\)"),
        ({"forward_func": 3}, TypeError, "int"),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {"forward_func": nn.Flatten(), "inputs": IMAGE, "attributions": IMAGE, "target": 0, **change}
    with pytest.raises(error, match=words):
        pixel_perturbation(**arguments)
