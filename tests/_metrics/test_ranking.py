"""Rankings against loops over numpy arrays; what attributes them, and that it is left as it was.

Of the private parts on purpose: a result shows what models made of a ranking, not the ranking.
"""

import functools
import gc
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_density.attr import FullGrad
from captum_density.metrics import diff_roar
from captum_density.metrics._attributors import check_attributor
from captum_density.metrics._elements import Elements
from captum_density.metrics._ranking import _blurred, random_ranks, ranked
from tests.metrics.retrained import QUICK, linear, some_data


def rank(attributor, train, test, groups=None, *, folder, target="predicted", batch=256, seed=0, **options):
    splits = tuple(part if isinstance(part, tuple) else (part, torch.zeros(len(part)).long()) for part in (train, test))
    check_attributor("name", attributor, splits, target)
    number = len(list(folder.iterdir()))
    (folder / str(number)).mkdir()
    return ranked(
        "name",
        attributor,
        splits,
        Elements(splits[0][0].shape[1:], groups),
        target=target,
        folder=folder / str(number),
        blurred=options.get("blurred", False),
        agnostic=options.get("agnostic", False),
        max_examples_per_batch=batch,
        seed=seed,
        show_progress=False,
    )


def ranks_by_hand(importance):
    """(N, d) places: by size, of equal ones the first one first."""
    importance = np.asarray(importance, dtype=np.float64).reshape(len(importance), -1)
    places = np.empty(importance.shape, dtype=np.int64)
    for row, out in zip(importance, places, strict=True):
        out[np.lexsort((np.arange(len(row)), -row))] = np.arange(len(row))
    return places


def grouped_by_hand(magnitude, groups):
    """(N, d) mean of each group, element after element."""
    groups, flat = groups.numpy().reshape(-1), magnitude.numpy().astype(np.float64).reshape(len(magnitude), -1)
    out = np.zeros((len(flat), groups.max() + 1))
    for n, row in enumerate(flat):
        for group in range(out.shape[1]):
            members = [value for value, g in zip(row, groups, strict=True) if g == group]
            out[n, group] = functools.reduce(lambda a, b: a + b, members, 0.0) / len(members)
    return out


def blurred_by_hand(plane, sigma):
    """A Gaussian of three deviations on either side, as far as the reflected image goes; pixel by pixel, in loops."""
    height, width = plane.shape
    reach = [min(round(3 * sigma), side - 1) for side in (height, width)]
    weights = [[math.exp(-(t**2) / (2 * sigma**2)) for t in range(-r, r + 1)] for r in reach]

    def reflected(at, side):
        return -at if at < 0 else 2 * (side - 1) - at if at >= side else at

    out = np.zeros_like(plane, dtype=np.float64)
    for y, x in np.ndindex(height, width):
        for i, down in enumerate(weights[0]):
            for j, across in enumerate(weights[1]):
                at = reflected(y + i - reach[0], height), reflected(x + j - reach[1], width)
                out[y, x] += down * across * plane[at]
    return out / (sum(weights[0]) * sum(weights[1]))


def net(*shape, classes=3, dtype=torch.float32):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 5), nn.Softplus(), nn.Linear(5, classes)).to(dtype)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# What keeps how many


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_ranks_are_those_of_a_stable_sort_and_masks_partition(tmp_path_factory, seed, d, ties, dtype):
    torch.manual_seed(seed)
    draw = (lambda n: torch.randint(-2, 3, (n, d)).to(dtype)) if ties else (lambda n: torch.randn(n, d, dtype=dtype))
    train, test = draw(5), draw(3)
    result = rank((train, test), torch.rand(5, d), torch.rand(3, d), folder=tmp_path_factory.mktemp("ranks"), batch=2)
    for places, values in zip(result.plain, (train, test), strict=True):
        assert places.dtype == np.int16
        assert np.array_equal(places, ranks_by_hand(values.abs()))
        for k in range(d + 1):
            top, bottom = places < k, places >= k
            assert np.array_equal(top, ~bottom)
            assert (top.sum(1) == k).all() and (bottom.sum(1) == d - k).all()
            size = values.abs().numpy()
            if 0 < k < d:
                assert (size.min(1, where=top, initial=9) >= size.max(1, where=bottom, initial=0)).all()
    expected = sum(bool((row == row[0]).all()) for row in torch.cat([train, test]).abs())
    assert result.constant == expected / 8


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.booleans())
def test_permuted_examples_have_permuted_ranks(tmp_path_factory, seed, ties):
    torch.manual_seed(seed)
    maps = torch.randint(-2, 3, (7, 1, 4, 4)).float() if ties else torch.randn(7, 1, 4, 4)
    order, x, folder = torch.randperm(7), torch.rand(7, 1, 4, 4), tmp_path_factory.mktemp("ranks")
    plain = rank((maps, maps), x, x, folder=folder, blurred=True, agnostic=True)
    moved = rank((maps[order], maps[order]), x, x, folder=folder, blurred=True, agnostic=True)
    for kind in ("plain", "blurred", "agnostic"):
        for a, b in zip(getattr(plain, kind), getattr(moved, kind), strict=True):
            assert np.array_equal(a[order], b)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_permuted_elements_have_permuted_ranks_where_nothing_ties(tmp_path_factory, seed):
    torch.manual_seed(seed)
    maps, order, x = torch.randn(4, 20), torch.randperm(20), torch.rand(4, 20)
    folder = tmp_path_factory.mktemp("ranks")
    plain = rank((maps, maps), x, x, folder=folder)
    moved = rank((maps[:, order], maps[:, order]), x, x, folder=folder)
    assert np.array_equal(plain.plain[0][:, order], moved.plain[0])


def test_long_ranks_have_32_bits(tmp_path):
    for d, dtype in ((2**15 - 1, np.int16), (2**15, np.int32)):
        maps = torch.randn(2, d)
        result = rank((maps, maps), maps, maps, folder=tmp_path, agnostic=True)
        ranks = random_ranks(tmp_path, ((maps, maps), (maps, maps)), d, 0)
        for places in (*result.plain, *result.agnostic, *ranks):
            assert places.dtype == dtype
            assert np.array_equal(np.sort(places[0]), np.arange(d))
        assert np.array_equal(result.plain[0], ranks_by_hand(maps.abs()))


# Groups

GROUPS = [
    ("channels", lambda c, y, x, h, w: y * w + x),
    (2, lambda c, y, x, h, w: (y // 2) * -(-w // 2) + x // 2),
    ((3, 2), lambda c, y, x, h, w: (y // 3) * -(-w // 2) + x // 2),
    ([1, 4], lambda c, y, x, h, w: y * -(-w // 4) + x // 4),
    (99, lambda c, y, x, h, w: 0),
    (torch.arange(5), lambda c, y, x, h, w: x),
    (np.arange(5), lambda c, y, x, h, w: x),
    (torch.arange(2, dtype=torch.int16)[:, None, None], lambda c, y, x, h, w: c),
]


@pytest.mark.parametrize(
    ("groups", "number"), GROUPS, ids=["channels", "2", "3x2", "1x4", "99", "columns", "array", "planes"]
)
def test_a_group_ranks_by_the_mean_of_its_elements(tmp_path, groups, number):
    shape = (2, 4, 5)
    by_hand = torch.tensor([number(c, y, x, 4, 5) for c, y, x in np.ndindex(*shape)]).reshape(shape)
    elements = Elements(shape, groups)
    assert torch.equal(elements.groups, by_hand) and elements.d == int(by_hand.max()) + 1
    maps, x = torch.randn(6, *shape), torch.rand(6, *shape)
    expected = grouped_by_hand(maps.abs(), by_hand)
    assert np.array_equal(elements.importance(maps.abs()).numpy(), expected)  # the same additions in the same order
    result = rank((maps, maps[:3]), x, x[:3], groups, folder=tmp_path, batch=4)
    assert np.array_equal(result.plain[0], ranks_by_hand(expected))
    assert np.array_equal(result.plain[1], ranks_by_hand(expected[:3]))


def test_one_map_for_all_channels_needs_groups(tmp_path):
    x, maps = torch.rand(4, 3, 4, 4), torch.randn(4, 1, 4, 4)
    whole = maps.expand(-1, 3, -1, -1)
    for groups in ("channels", 2, torch.arange(4)):
        result, expected = (
            rank((m, m), x, x, groups, folder=tmp_path, blurred=True, agnostic=True) for m in (maps, whole)
        )
        for kind in ("plain", "blurred", "agnostic"):
            assert np.array_equal(getattr(result, kind)[0], getattr(expected, kind)[0])
    with pytest.raises(ValueError, match=r"shape \(4, 3, 4, 4\), but have \(4, 1, 4, 4\).*pass groups='channels'"):
        rank((maps, maps), x, x, folder=tmp_path)


@pytest.mark.parametrize(
    ("groups", "shape", "words"),
    [
        ("pixels", (1, 4, 4), "'channels', a patch's size"),
        (0, (1, 4, 4), "a patch's size"),
        ((2, 0), (1, 4, 4), "a patch's size"),
        ((2, 2, 2), (1, 4, 4), "a patch's size"),
        (2.0, (1, 4, 4), "a patch's size"),
        (np.zeros((4, 4)), (1, 4, 4), "integers from 0"),
        ([1.0], (1, 4, 4), "a tensor of integers"),
        (torch.zeros(4), (1, 4, 4), "integers from 0"),
        (torch.tensor([-1, 0, 1, 2]), (1, 4, 4), "integers from 0"),
        (torch.tensor([0, 2, 2, 0]), (1, 4, 4), "numbered 0..2 without gaps, but 1 is empty"),
        (torch.arange(5), (1, 4, 4), r"broadcast to an input, \(1, 4, 4\), but have \(5,\)"),
        ("channels", (4,), "no channels or patches"),
        (2, (4,), "no channels or patches"),
        (2, (4, 4), "patches need inputs"),
        (2, (1, 4, 4, 4), "patches need inputs"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, shape, words):
    with pytest.raises(ValueError, match=words):
        Elements(shape, groups)


# Controls


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 2, 9), (6, 5), (1, 60, 64), (2, 2, 3, 4)])
def test_blurred_is_a_gaussian_by_hand(shape):
    magnitude = torch.rand(2, *shape)
    sigma = max(1.0, min(shape[-2:]) / 28)  # 60 / 28 for the large one
    result = _blurred(magnitude)
    assert result.shape == magnitude.shape and result.dtype == torch.float32
    if shape[-1] == 64:
        magnitude, result = magnitude[:1], result[:1]
    for plane, smooth in zip(magnitude.reshape(-1, *shape[-2:]), result.reshape(-1, *shape[-2:]), strict=True):
        expected = blurred_by_hand(plane.double().numpy(), sigma)
        torch.testing.assert_close(smooth.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("groups", [None, 2])
def test_blurred_ranks_are_of_the_blurred_size(tmp_path, groups):
    # Signs alternate: an average of signed values would be near 0 everywhere.
    signs = torch.where(torch.arange(64).reshape(8, 8) % 2 == 0, 1.0, -1.0)
    maps, x = torch.rand(5, 1, 8, 8) * signs, torch.rand(5, 1, 8, 8)
    result = rank((maps, maps), x, x, groups, folder=tmp_path, blurred=True)
    smooth = np.stack([blurred_by_hand(m[0].abs().double().numpy(), 1.0) for m in maps])[:, None]
    if groups == 2:
        smooth = smooth.reshape(5, 4, 2, 4, 2).mean((2, 4))
    assert np.array_equal(result.blurred[0], ranks_by_hand(smooth))
    assert not np.array_equal(result.blurred[0], result.plain[0])


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("groups", [None, "channels"])
def test_input_agnostic_is_the_mean_size_of_the_training_set(tmp_path, batch, groups):
    train, test = torch.randn(9, 2, 3, 3), torch.randn(4, 2, 3, 3) * 100
    result = rank((train, test), train, test, groups, folder=tmp_path, agnostic=True, batch=batch)
    mean = train.abs().double().numpy().mean(0)
    order = ranks_by_hand((mean if groups is None else mean.mean(0)).reshape(1, -1))
    for places, n in zip(result.agnostic, (9, 4), strict=True):
        assert np.array_equal(places, order.repeat(n, 0))
    signed = ranks_by_hand(np.abs(train.numpy().mean(0)).reshape(1, -1)) if groups is None else None
    assert not np.array_equal(order, signed)


def test_random_ranks_are_fresh_for_each_example_and_seed_and_even(tmp_path):
    n, d = 3000, 6  # more than are drawn at once
    splits = (torch.zeros(n, d), None), (torch.zeros(50, d), None)
    train, test = random_ranks(tmp_path, splits, d, 3)
    again = random_ranks(tmp_path, splits, d, 3)
    other = random_ranks(tmp_path, splits, d, 4)
    assert np.array_equal(train, again[0]) and np.array_equal(test, again[1])
    assert (np.sort(train, axis=1) == np.arange(d)).all()
    # 720 permutations, each as often as any other: chi-squared of 719 degrees of freedom, 5 deviations.
    for places in (train, other[0]):
        counts = np.unique(places @ 6 ** np.arange(d), return_counts=True)[1]
        assert abs((counts**2).sum() / (n / 720) - n - 719) < 5 * math.sqrt(2 * 719)
    # Neither by example, nor by split, nor by seed: equal rows are as rare as chance has it, 1 in 720.
    for a, b in ((train[1:], train[:-1]), (train[:50], test), (train, other[0]), (train[1024:], train[:-1024])):
        assert (a == b).all(1).mean() < 0.05


# Who attributes


def model_and_data(dtype=torch.float32):
    model = net(1, 6, 6, dtype=dtype)
    x = torch.rand(20, 1, 6, 6, dtype=dtype)
    return model, x[:14], x[14:]


@pytest.mark.parametrize("batch", [1, 3, 14, 500])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: Saliency(model),
        lambda model: functools.partial(IntegratedGradients(model).attribute, n_steps=8),
        lambda model: Saliency(model).attribute,
        lambda model: functools.partial(functools.partial(Saliency(model).attribute, abs=False), abs=True),
        lambda model: FullGrad(model),
        lambda model: Saliency(lambda x: model(x)),
    ],
    ids=["Saliency", "partial of IntegratedGradients", "method", "partial of partial", "FullGrad", "of a function"],
)
def test_captum_attributes_the_predicted_class_whatever_the_batches(tmp_path, make, batch):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).double()
    train, test = normal(14, 1, 6, 6), normal(6, 1, 6, 6)
    predicted = model(train).argmax(1)
    assert predicted.unique().numel() > 1
    attributor = make(model)
    bare = attributor.attribute if hasattr(attributor, "attribute") else attributor
    result = rank(attributor, train, test, folder=tmp_path, batch=batch)
    expected = bare(train, target=predicted)
    assert np.array_equal(result.plain[0], ranks_by_hand(expected.detach().abs()))
    assert np.array_equal(result.plain[1], ranks_by_hand(bare(test, target=model(test).argmax(1)).detach().abs()))


def test_true_labels_reach_whatever_attributes(tmp_path):
    model, train, test = model_and_data()
    labels = torch.arange(14) % 3, torch.arange(6).int() % 3
    targets = []

    def function(x, target):
        targets.append(target)
        return Saliency(model).attribute(x, target=target)

    splits = (train, labels[0]), (test, labels[1])
    for attributor in (Saliency(model), function):
        result = rank(attributor, *splits, folder=tmp_path, target="true", batch=5)
        assert np.array_equal(result.plain[0], ranks_by_hand(Saliency(model).attribute(train, target=labels[0])))
    assert torch.cat(targets).equal(torch.cat(labels).long())
    # With predicted targets, a function knows no label; a model would be needed to predict one.
    with pytest.raises(TypeError, match="let it predict the class itself"):
        rank(function, *splits, folder=tmp_path)


def test_a_target_of_ones_own_is_not_replaced_silently(tmp_path):
    model, train, test = model_and_data()
    with pytest.raises(ValueError, match="has a target of its own"):
        rank(functools.partial(Saliency(model).attribute, target=1), train, test, folder=tmp_path)
    result = rank(lambda x: Saliency(model).attribute(x, target=1), train, test, folder=tmp_path)
    assert np.array_equal(result.plain[0], ranks_by_hand(Saliency(model).attribute(train, target=1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: functools.partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=3, stdevs=0.5),
        # It draws from NumPy's generator as well.
        lambda model: functools.partial(GradientShap(model).attribute, baselines=torch.rand(4, 1, 6, 6), n_samples=3),
        lambda model: lambda x: x * torch.randn_like(x) * np.random.rand() + np.random.randn(1).item(),
    ],
    ids=["NoiseTunnel", "GradientShap", "function"],
)
def test_noise_is_seeded_and_the_callers_generators_are_left(tmp_path, make):
    model, train, test = model_and_data()
    attributor = make(model)
    a = rank(attributor, train, test, folder=tmp_path, seed=1)
    torch.rand(1), np.random.rand()
    before = torch.get_rng_state(), np.random.get_state()[1:]
    b = rank(attributor, train, test, folder=tmp_path, seed=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(np.array_equal(x, y) for x, y in zip(before[1], np.random.get_state()[1:], strict=True))
    c = rank(attributor, train, test, folder=tmp_path, seed=2)
    assert np.array_equal(a.plain[0], b.plain[0]) and np.array_equal(a.plain[1], b.plain[1])
    assert not np.array_equal(a.plain[0], c.plain[0])


@pytest.mark.parametrize("of", ["tensor", "double", "numpy", "list", "memmap"])
def test_ready_attributions_and_inputs_of_all_kinds(tmp_path, of):
    maps = torch.randn(14, 1, 6, 6), torch.randn(6, 1, 6, 6)
    x = torch.rand(14, 1, 6, 6), torch.rand(6, 1, 6, 6)
    expected = [ranks_by_hand(m.abs()) for m in maps]
    if of == "memmap":
        for name, arrays in (("maps", maps), ("x", x)):
            for i, array in enumerate(arrays):
                np.save(tmp_path / f"{name}{i}.npy", array)
        maps, x = (
            tuple(np.load(tmp_path / f"{name}{i}.npy", mmap_mode="r") for i in range(2)) for name in ("maps", "x")
        )
    if of == "numpy":
        maps = tuple(m.numpy() for m in maps)
    (tmp_path / "ranks").mkdir()
    ready = {"double": lambda: tuple(m.double() for m in maps), "list": lambda: list(maps)}.get(of, lambda: maps)()
    result = rank(ready, (x[0], np.zeros(14, int)), (x[1], np.zeros(6, int)), folder=tmp_path / "ranks", batch=4)
    assert all(map(np.array_equal, result.plain, expected))
    # And a function is given tensors, whatever the inputs are.
    of_function = rank(
        lambda x: x.sin(), (x[0], np.zeros(14, int)), (x[1], np.zeros(6, int)), folder=tmp_path / "ranks"
    )
    plain = x[0] if of == "memmap" else x[0].numpy()
    assert np.array_equal(of_function.plain[0], ranks_by_hand(torch.from_numpy(plain.copy()).sin()))


def test_a_function_may_return_a_tuple_of_one_an_array_or_half_precision(tmp_path):
    _, train, test = model_and_data()
    expected = ranks_by_hand(train)
    for function in (lambda x: (x,), lambda x: x.numpy(), lambda x: -x.requires_grad_()):
        assert np.array_equal(rank(function, train.clone(), test, folder=tmp_path).plain[0], expected)
    half = rank(lambda x: x.bfloat16(), train, test, folder=tmp_path, blurred=True, agnostic=True)
    assert np.array_equal(half.plain[0], ranks_by_hand(train.bfloat16().float()))


class Busy(nn.Module):
    """All that a forward pass in training mode can change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.head(self.norm(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_left_as_it_was(tmp_path, training, wrapped, fails):
    model = Busy().train(training)
    model.head[2].weight.grad = torch.ones(3, 36)
    model.head[2].bias.requires_grad_(False)
    _, train, test = model_and_data()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    inputs = train.clone()
    saliency = Saliency(model)
    attributor = (lambda x: Saliency(model).attribute(x, target=0)) if wrapped else saliency
    if fails:
        saliency = functools.partial(saliency.attribute, abs=Raises())
        attributor = (lambda x: saliency(x, target=0)) if wrapped else saliency
        with pytest.raises(RuntimeError, match="on purpose"):
            rank(attributor, train, test, folder=tmp_path)
    else:
        rank(attributor, train, test, folder=tmp_path, batch=5)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model.head[2].weight.grad, torch.ones(3, 36))
    assert model.norm.weight.grad is None and not model.head[2].bias.requires_grad
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(train, inputs) and not train.requires_grad and train.grad is None
    assert not model._forward_hooks and not model.norm._forward_pre_hooks


class Raises:
    def __bool__(self):
        raise RuntimeError("on purpose")


# What is refused


@pytest.mark.filterwarnings("error")
def test_no_file_is_left_open_where_an_attribution_does_not_fit(tmp_path):
    def fails_at_the_test_set(x):
        return x if len(x) == 14 else x[:, :, :5]

    _, train, test = model_and_data()
    with pytest.raises(ValueError, match="inputs' shape"):
        rank(fails_at_the_test_set, train, test, folder=tmp_path, blurred=True)
    gc.collect()  # an open file would warn here


@pytest.mark.parametrize(
    ("attributor", "error", "words"),
    [
        (lambda x: x[:, :, :5], ValueError, r"must have the inputs' shape \(14, 1, 6, 6\), but have \(14, 1, 5, 6\)"),
        (lambda x: x.flatten(1), ValueError, "inputs' shape"),
        (lambda x: x[:-1], ValueError, "inputs' shape"),
        (lambda x: x / 0, ValueError, "contain 504 NaN or infinite values, which have no rank"),
        (lambda x: torch.where(x == x[0, 0, 0, 0], torch.nan, x), ValueError, "contain 1 NaN"),
        (lambda x: x.long(), TypeError, "floating-point tensor, but are torch.int64"),
        (lambda x: x.numpy().astype(int), TypeError, "floating-point tensor, but are torch.int64"),
        (lambda x: (x, x), TypeError, "but are tuple"),
        (lambda x: None, TypeError, "but are NoneType"),
        (torch.rand(14, 1, 6, 6), TypeError, "a pair of tensors or arrays, of train and test"),
        (3, TypeError, "must be a Captum attribution, .*pass such as"),
        ("Saliency", TypeError, "must be a Captum attribution, .*pass such as"),
        ((torch.rand(14, 1, 6, 6),), TypeError, "a pair of tensors or arrays, of train and test"),
        ((torch.rand(14, 1, 6, 6), None), TypeError, "a pair of tensors or arrays, of train and test"),
        ((torch.rand(14, 1, 6, 6), torch.rand(7, 1, 6, 6)), ValueError, "are of 7 test examples, not of 6"),
        ((torch.rand(6, 1, 6, 6), torch.rand(14, 1, 6, 6)), ValueError, "are of 6 training examples, not of 14"),
        ((torch.rand(14, 36), torch.rand(6, 36)), ValueError, "inputs' shape"),
    ],
)
def test_attributions_that_do_not_fit_are_refused(tmp_path, attributor, error, words):
    _, train, test = model_and_data()
    if words.startswith("contain 504"):
        train = train.clamp_min(0.1)
    with pytest.raises(error, match=words) as raised:
        rank(attributor, train, test, folder=tmp_path)
    assert "'name'" in str(raised.value)


def test_a_layers_attribution_that_is_smaller_than_the_input_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    _, train, test = model_and_data()
    with pytest.raises(ValueError, match=r"shape \(14, 1, 6, 6\), but have \(14, 1, 4, 4\)"):
        rank(LayerGradCam(model, model[0]), train, test, folder=tmp_path)
    same = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 3))
    result = rank(LayerGradCam(same, same[0]), train, test, folder=tmp_path)
    expected = LayerGradCam(same, same[0]).attribute(train, target=same(train).argmax(1)).detach().abs()
    assert np.array_equal(result.plain[0], ranks_by_hand(expected))


@pytest.mark.cuda
def test_a_model_on_another_device_than_the_data(tmp_path):
    model, train, test = model_and_data(torch.float64)
    expected = rank(Saliency(model), train, test, folder=tmp_path, blurred=True, agnostic=True)
    result = rank(Saliency(model.cuda()), train, test, folder=tmp_path, blurred=True, agnostic=True)
    on_gpu = rank(Saliency(model), train.cuda(), test.cuda(), folder=tmp_path, blurred=True, agnostic=True)
    for kind in ("plain", "blurred", "agnostic"):
        for a, b, c in zip(*(getattr(x, kind) for x in (expected, result, on_gpu)), strict=True):
            assert np.array_equal(a, b) and np.array_equal(a, c)


# In files, once they take more bytes than a small test can: the threshold is lowered


def test_large_rankings_lie_in_files_and_are_the_same(monkeypatch):
    train, test = some_data(1, 4, 4)
    options = {"fractions": [0.25], "runs": 2, "fit": QUICK, "strategy": "loop"}
    paths = []
    small = diff_roar(linear(16), train, test, {"a": lambda x: x}, **options)
    monkeypatch.setattr("captum_density.metrics._ranking._BYTES_IN_MEMORY", 0)
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, *a, **k: paths.append(path) or load(path, *a, **k))
    large = diff_roar(linear(16), train, test, {"a": lambda x: x}, **options)
    assert paths and not any(Path(path).exists() for path in paths)
    assert large.digest == small.digest


def test_a_full_disk_is_said(monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("captum_density.metrics._ranking._BYTES_IN_MEMORY", 0)
    monkeypatch.setattr("pathlib.Path.open", lambda *_, **__: Full())
    with pytest.raises(OSError, match=r"a ranking cannot be written .No space left on device.*TMPDIR"):
        diff_roar(linear(16), *some_data(1, 4, 4), {"a": lambda x: x}, fractions=[0.25], runs=1, fit=QUICK)
