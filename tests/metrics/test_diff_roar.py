"""DiffROAR, ROAR and KAR against masks made by hand; laws; the leaks they are made to show; what they refuse."""

import functools
import math

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from captum_density.datasets import digits
from captum_density.metrics import diff_roar, kar, roar
from captum_density.retraining import FitConfig, noisy_linear_imputation
from tests.metrics.retrained import (
    METRICS,
    QUICK,
    by_hand,
    linear,
    perceptron,
    some_data,
    some_maps,
)


class ZeroHead(nn.Sequential):
    """A perceptron whose output layer starts at zero: no class differs from another before training."""

    def __init__(self, d, classes, hidden=8, dtype=torch.float64):
        super().__init__(nn.Flatten(), nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, classes))
        self.to(dtype)
        nn.init.zeros_(self[3].weight)
        nn.init.zeros_(self[3].bias)


# The whole result, by hand


@pytest.mark.parametrize("baselines", [1.5, "mean"])
def test_kar_is_the_top_side_of_diff_roar_and_roar_of_the_rest(baselines):
    train, test = some_data(1, 4, 4)
    maps = {"a": some_maps(train, test)}
    options = {"runs": 1, "fit": QUICK, "baselines": baselines, "strategy": "loop"}
    both = diff_roar(linear(16), train, test, maps, fractions=[0.25, 0.75], **options)
    top = kar(linear(16), train, test, maps, fractions=[0.25, 0.75], **options)
    rest = roar(linear(16), train, test, maps, fractions=[0.25, 0.75], **options)
    assert torch.equal(both.correct[:, 0], top.correct[:, 0])
    # Without the top quarter is with the lowest three quarters.
    assert torch.equal(both.correct[:, 1].flip(1), rest.correct[:, 0])
    for control in both.controls:
        assert torch.equal(both.controls[control][:, 0], top.controls[control][:, 0])
        assert torch.equal(both.controls[control][:, 1].flip(1), rest.controls[control][:, 0])
    assert both.unmasked.equal(top.unmasked) and both.unmasked.equal(rest.unmasked)
    assert both.score.allclose(top.score - rest.score.flip(1))


@pytest.mark.parametrize("baselines", ["mean", noisy_linear_imputation])
def test_everything_kept_is_one_model_and_removed_is_none(baselines):
    train, test = some_data(1, 4, 4)
    maps = {"a": some_maps(train, test)}
    options = {"runs": 2, "fit": QUICK, "baselines": baselines}
    both = diff_roar(linear(16), train, test, maps, fractions=[0.3, 1], **options)
    for correct in (both.correct, *both.controls.values()):
        assert torch.equal(correct[:, 0, 1], correct[:, 1, 1])
    assert (both.score[:, 1] == 0).all() and (both.intervals[:, 1] == 0).all()
    assert all((both.control_score(c)[:, 1] == 0).all() for c in both.controls)
    assert torch.equal(both.correct[0, 0, 1], both.unmasked)
    gone = roar(linear(16), train, test, maps, fractions=[1], controls=["random", "mask_only"], **options)
    if not callable(baselines):  # noise is all that differs
        # Every example is the same, and so is the class they are given: one of three that are equally frequent.
        assert (gone.predictive_power == 1 / 3).all()
    assert torch.equal(gone.correct, gone.controls["random"]) or callable(baselines)


# Laws


@settings(max_examples=3)
@given(st.integers(0, 10**6))
def test_a_reversed_ranking_changes_the_sign(seed):
    torch.manual_seed(seed)
    train, test = some_data(1, 3, 4, n=24, m=12)
    importance = [torch.stack([torch.randperm(12) for _ in x]).reshape(x.shape) + 1.0 for x, _ in (train, test)]
    ready = {"a": tuple(importance), "reversed": tuple(13 - m for m in importance)}
    result = diff_roar(
        linear(12), train, test, ready, fractions=[0.1, 0.5], runs=2, fit=QUICK, strategy="loop",
        controls=["mask_only"], seed=seed,
    )  # fmt: skip
    assert torch.equal(result.correct[0], result.correct[1].flip(0))
    assert torch.equal(result.score[0], -result.score[1])
    assert torch.equal(result.means()[0, 0], -result.means()[1, 0])
    assert torch.allclose(result.intervals[0], -result.intervals[1].flip(1))
    # A mean over the training examples can tie, and ties do not turn around.
    assert torch.equal(result.controls["mask_only"][0], result.controls["mask_only"][1].flip(0))


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (4, 1)])
def test_relabelling_changes_the_initialisation_alone(classes, seed):
    train, test = some_data(1, 3, 3, n=48, classes=classes, dtype=torch.float64)
    maps = {"a": some_maps(train, test)}
    order = torch.randperm(classes).roll(seed + 1) if classes > 2 else torch.tensor([1, 0])
    renamed = [(x, order[labels]) for x, labels in (train, test)]
    options = {"fractions": [0.25, 0.5], "runs": 1, "fit": QUICK, "strategy": "loop", "seed": seed}
    options["controls"] = ["mask_only"]
    # Weights that treat classes alike stay so in every step: the models are the same, with their outputs renamed.
    model = functools.partial(ZeroHead, 9, classes)
    a, b = (diff_roar(model, *data, maps, **options) for data in ((train, test), renamed))
    assert torch.equal(a.correct, b.correct) and a.digest == b.digest
    # Weights that are drawn for each class are not, and results differ by their luck.
    factory = linear(9, classes, dtype=torch.float64)
    a, b = (diff_roar(factory, *data, maps, **options) for data in ((train, test), renamed))
    assert a.digest != b.digest


def test_permuted_test_examples_have_permuted_results():
    train, test = some_data(1, 4, 4)
    maps, order = some_maps(train, test), torch.randperm(24)
    options = {"fractions": [0.25], "runs": 2, "fit": QUICK, "strategy": "loop"}
    a = diff_roar(linear(16), train, test, {"a": maps}, **options)
    moved = (test[0][order], test[1][order])
    b = diff_roar(linear(16), train, moved, {"a": (maps[0], maps[1][order])}, **options)
    assert torch.equal(a.correct[..., order], b.correct) and torch.equal(a.unmasked[:, order], b.unmasked)
    for control in ("input_agnostic", "mask_only", "blurred"):
        assert torch.equal(a.controls[control][..., order], b.controls[control])
    # A random ranking is drawn for a place, not for an example.
    assert not torch.equal(a.controls["random"][..., order], b.controls["random"])


def test_permuted_training_examples_change_the_batches_alone():
    train, test = some_data(9, dtype=torch.float64)
    maps, order = some_maps(train, test), torch.randperm(40)
    moved = (train[0][order], train[1][order])
    # All examples in one batch: nothing but the order of a sum is left.
    options = {"fractions": [0.25], "runs": 2, "fit": FitConfig(epochs=20, batch_size=40, lr=0.05), "strategy": "loop"}
    model = linear(9, dtype=torch.float64)
    a = diff_roar(model, train, test, {"a": maps}, **options)
    b = diff_roar(model, moved, test, {"a": (maps[0][order], maps[1])}, **options)
    assert torch.equal(a.correct, b.correct)
    assert all(torch.equal(a.controls[c], b.controls[c]) for c in ("input_agnostic", "mask_only"))


def test_permuted_elements_with_a_model_that_treats_them_alike():
    """Linear from zero: a permutation of the elements permutes its weights, and its logits stay, up to rounding."""

    def zero():
        model = linear(12, dtype=torch.float64)()
        nn.init.zeros_(model[1].weight)
        return model

    train, test = some_data(12, dtype=torch.float64)
    maps, order = some_maps(train, test), torch.randperm(12)
    a, b = (
        diff_roar(
            zero, *((x[:, o], labels) for x, labels in (train, test)), {"a": tuple(m[:, o] for m in maps)},
            fractions=[0.25, 0.5], runs=1, fit=QUICK, strategy="loop", controls=["input_agnostic", "mask_only"],
        )
        for o in (slice(None), order)
    )  # fmt: skip
    assert torch.equal(a.correct, b.correct) and torch.equal(a.unmasked, b.unmasked)
    for control in ("input_agnostic", "mask_only"):  # random rankings are drawn for places
        assert torch.equal(a.controls[control], b.controls[control])


def test_the_same_call_gives_the_same_and_another_seed_does_not():
    train, test = some_data(1, 4, 4)
    model = linear(16)()
    names = {"a": functools.partial(IntegratedGradients(model).attribute, n_steps=4), "b": Saliency(model)}
    options = {"fractions": [0.25], "runs": 2, "fit": QUICK, "strategy": "loop"}
    first = diff_roar(linear(16), train, test, names, seed=1, **options)
    torch.rand(7), np.random.rand(7)
    again = diff_roar(linear(16), train, test, names, seed=1, max_examples_per_batch=3, **options)
    assert first.digest == again.digest and torch.equal(first.intervals, again.intervals)
    assert first.digest != diff_roar(linear(16), train, test, names, seed=2, **options).digest
    # What is asked beside it does not matter: neither other attributions, nor fractions, nor controls.
    alone = diff_roar(linear(16), train, test, {"b": names["b"]}, seed=1, **options | {"fractions": [0.25, 0.5]})
    assert torch.equal(alone.correct[0, :, 0], first.correct[1, :, 0])
    assert torch.equal(alone.controls["random"][:, :, 0], first.controls["random"][:, :, 0])
    bare = diff_roar(linear(16), train, test, {"b": names["b"]}, seed=1, controls=[], **options)
    assert torch.equal(bare.correct[0], first.correct[1]) and bare.controls == {}


def test_finished_models_are_remembered(tmp_path):
    train, test = some_data(1, 4, 4)
    names = {"a": Saliency(linear(16)())}
    options = {"runs": 2, "fit": QUICK, "strategy": "loop", "store": tmp_path / "store"}
    first = diff_roar(linear(16), train, test, names, fractions=[0.25], **options)
    assert first.stored == 0 and first.seconds > 0
    again = diff_roar(linear(16), train, test, names, fractions=[0.25], **options)
    assert again.stored == again.engines["loop"][0] == 2 * 2 * 5 + 2 and again.digest == first.digest
    more = diff_roar(linear(16), train, test, names, fractions=[0.25, 0.5], **options)
    assert more.stored == again.stored
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith("scratch")]


# What leaks


def test_attributions_of_true_classes_leak_labels_and_of_predicted_ones_do_not():
    """Nothing can be learned of shuffled labels, and yet the top 10% "predict" them if the label is the target."""
    data = digits()
    images = data.train_images[:760]
    labels = torch.arange(760).remainder(10)[torch.randperm(760)]
    train, test = (images[:400], labels[:400]), (images[400:], labels[400:])
    model = linear(64, 10)()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(20):
        for rows in torch.randperm(400).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
    options = {"fractions": [0.1], "runs": 2, "fit": FitConfig(epochs=20, batch_size=50, lr=0.03), "strategy": "loop"}
    options |= {"controls": ["mask_only", "random"]}
    predicted, true = (
        kar(perceptron(64, 10, 32), train, test, {"a": Saliency(model)}, target=target, **options)
        for target in ("predicted", "true")
    )
    # Of 360 examples in 10 classes, chance is 0.1 +- 0.016.
    assert predicted.unmasked.double().mean() < 0.15 and predicted.score.item() < 0.15
    assert true.score.item() > 0.95
    # It is neither the model nor the image: the mask tells the label.
    assert true.control_score("mask_only").item() > 0.95 and predicted.control_score("mask_only").item() < 0.15
    assert "Even on whole examples the models reach an accuracy of 0." in true.conclusions[0]
    assert "its masks alone, without any input value, score" in true.conclusions[1]
    assert "not told from a random ranking" in predicted.conclusions[1] and "masks" not in predicted.conclusions[1]


def shapes(n, noise=0.2):
    """Images of noise, whose class is in the place of the attribution and nowhere else."""
    labels = torch.arange(n) % 4
    x, maps = torch.rand(n, 1, 8, 8) + 0.5, torch.rand(n, 1, 8, 8) * noise
    for i, label in enumerate(labels.tolist()):
        y0, x0 = 4 * (label // 2), 4 * (label % 2)
        maps[i, 0, y0 : y0 + 4, x0 : x0 + 4] += 1
    return (x, labels), maps


SHAPES = {"runs": 2, "fit": FitConfig(epochs=6, batch_size=32, lr=0.02), "strategy": "loop"}


@pytest.fixture(scope="module")
def shaped():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (train, train_maps), (test, test_maps) = shapes(240), shapes(160)
    return train, test, {"a": (train_maps, test_maps)}


def test_masks_that_tell_the_class_are_shown_and_named_in_kar(shaped):
    train, test, maps = shaped
    controls = ["random", "input_agnostic", "mask_only"]
    result = kar(perceptron(64, 4), train, test, maps, fractions=[0.25], baselines=0.0, controls=controls, **SHAPES)
    assert result.unmasked.double().mean() < 0.35 and result.chance == 0.25
    assert (result.score > 0.95).all() and (result.control_score("mask_only") > 0.95).all()
    assert (result.control_score("random") < 0.35).all() and (result.control_score("input_agnostic") < 0.35).all()
    words = result.conclusions[-1]
    assert "a: what it ranks high predicts better than as much taken at random" in words
    assert "But its masks alone, without any input value, score" in words
    assert "the class may be read off the masks' shape" in words
    assert words in result.table()


def test_masks_that_tell_the_class_are_named_in_roar(shaped):
    train, test, maps = shaped
    controls = ["random", "mask_only"]
    result = roar(perceptron(64, 4), train, test, maps, fractions=[0.25], baselines=0.0, controls=controls, **SHAPES)
    assert (result.score > 0.95).all()  # as much is left without the top as with it
    words = result.conclusions[-1]
    assert "removing what it ranks high costs less accuracy than removing as much at random" in words
    assert "But its masks alone, without any input value, predict the class with accuracy" in words


def test_masks_of_both_sides_may_tell_alike_so_that_their_difference_does_not(shaped):
    """The control's DiffROAR is near 0, and so it looks harmless, though either side's masks tell everything."""
    train, test, maps = shaped
    controls = ["random", "mask_only"]
    result = diff_roar(
        perceptron(64, 4), train, test, maps, fractions=[0.25], baselines=0.0, controls=controls, **SHAPES
    )
    assert (result.control_power("mask_only") > 0.95).all() and (result.predictive_power > 0.9).all()
    assert result.control_score("mask_only").abs().item() < 0.05
    assert "its masks alone, without any input value, predict" in result.conclusions[-1]


def test_a_difference_that_masks_make_is_named(shaped):
    """Images that are black but for few pixels: a mask shows where white is kept, and not where black is."""
    train, test, maps = shaped
    dark = []
    for (x, labels), m in zip((train, test), maps["a"], strict=True):
        dark.append(((m > 0.9) * x, labels))
    # Half of the pixels high up, all white ones among them: at the bottom, black replaces black.
    controls = ["random", "mask_only"]
    result = diff_roar(perceptron(64, 4), *dark, maps, fractions=[0.25], baselines=0.0, controls=controls, **SHAPES)
    assert result.score.item() > 0.5
    assert result.control_score("mask_only").abs().item() < 0.05  # which would clear it
    words = result.conclusions[-1]
    assert "what it ranks high predicts better than what it ranks low" in words
    assert "its masks alone, without any input value, predict with accuracy 1.000" in words
    assert "part or all of this may be their shape" in words


def test_imputation_hides_the_masks_shape(shaped):
    train, test, maps = shaped
    smooth = [(torch.full_like(x, 0.5) + 0.05 * torch.randn_like(x), labels) for x, labels in (train, test)]
    options = {"fractions": [0.25], "controls": ["mask_only"]}
    constant = kar(perceptron(64, 4), *smooth, maps, baselines=0.0, **options, **SHAPES)
    impute = functools.partial(noisy_linear_imputation, noise_std=0.05)
    imputed = kar(perceptron(64, 4), *smooth, maps, baselines=impute, **options, **SHAPES)
    assert constant.score.item() > 0.95
    assert imputed.score.item() < constant.score.item() - 0.3
    assert torch.equal(imputed.controls["mask_only"], constant.controls["mask_only"])
    assert "'mask_only' shows it bare" in imputed.notes[0] and "bare" not in "".join(constant.notes)


def test_smoothness_that_scores_higher_is_named():
    """A true map under heavy noise: a blur averages the noise out, and knows nothing more."""

    def split(n):
        labels = torch.arange(n) % 2
        x = torch.randn(n, 1, 8, 8)
        x[:, :, 2:5, 2:5] += 0.5 * (2.0 * labels - 1).reshape(-1, 1, 1, 1)
        maps = 1.5 * torch.rand(n, 1, 8, 8)
        maps[:, :, 2:5, 2:5] += 0.5
        return (x, labels), maps

    (train, train_maps), (test, test_maps) = split(600), split(600)
    for metric in (kar, roar):
        result = metric(
            linear(64, 2),
            train,
            test,
            {"a": (train_maps, test_maps)},
            fractions=[0.15],
            runs=2,
            baselines=0.0,
            controls=["random", "blurred"],
            fit=FitConfig(epochs=4, lr=0.02),
            strategy="loop",
        )
        better = (result.control_score("blurred") - result.score).item()
        assert better < -0.05 if metric is roar else better > 0.02
        assert (
            "the same attribution blurred, which knows nothing more of the model, scores better"
            in (result.conclusions[-1])
        )


def test_a_blur_is_left_out_where_there_is_no_image():
    for shape in ((9,), (2, 1, 5)):
        train, test = some_data(*shape)
        d = math.prod(shape)
        result = kar(linear(d), train, test, {"a": lambda x: x}, fractions=[0.5], runs=1, fit=QUICK)
        assert list(result.controls) == ["random", "input_agnostic", "mask_only"]
        assert any(f"inputs of shape {shape} have no image plane to blur" in note for note in result.notes)
        assert any("One run" in note for note in result.notes)
    result = kar(linear(d), train, test, {"a": lambda x: x}, fractions=[0.5], runs=5, fit=QUICK, controls=["random"])
    assert result.notes == ()


def test_equal_attributions_are_noted():
    train, test = some_data(1, 3, 3, n=30, m=20)
    ready = torch.ones(30, 1, 3, 3), torch.rand(20, 1, 3, 3)
    result = kar(linear(9), train, test, {"flat": ready}, fractions=[0.5], runs=5, fit=QUICK)
    assert result.notes == () and result.constant == (0.6,)
    assert "60.0% of its examples have the same attribution everywhere, and are ranked by position" in result.table()


# Kinds of data


def test_arrays_in_files_and_labels_of_all_kinds(tmp_path):
    train, test = some_data(1, 4, 4)
    options = {"fractions": [0.5], "runs": 2, "fit": QUICK, "strategy": "loop", "controls": ["input_agnostic"]}
    expected = kar(linear(16), train, test, {"a": lambda x: x}, **options)
    for i, array in enumerate((*train, *test)):
        np.save(tmp_path / f"{i}.npy", array.numpy().astype(np.uint8) if i % 2 else array.numpy())
    mapped = [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(4)]
    result = kar(linear(16), tuple(mapped[:2]), list(mapped[2:]), {"a": lambda x: x}, **options)
    assert result.digest == expected.digest and result.chance == expected.chance
    wide = [(x.numpy(), labels.numpy().astype(np.uint16)) for x, labels in (train, test)]
    assert kar(linear(16), *wide, {"a": lambda x: x}, **options).digest == expected.digest
    sets = [TensorDataset(*split) for split in (train, test)]
    for data in (sets, [DataLoader(one, batch_size=7) for one in sets]):
        assert kar(linear(16), *data, {"a": lambda x: x}, **options).digest == expected.digest


def test_chance_is_the_largest_class_of_the_test_set():
    train, test = some_data(5)
    test = test[0], torch.tensor([2] * 12 + [0] * 7 + [1] * 5)
    assert kar(linear(5), train, test, {"a": lambda x: x}, fractions=[0.5], runs=1, fit=QUICK).chance == 0.5


def test_more_elements_than_16_bits_can_count():
    train, test = some_data(1, 182, 182, n=6, m=4, classes=2)  # 33124 > 2^15
    result = diff_roar(
        linear(182 * 182, 2),
        train,
        test,
        {"a": lambda x: x},
        fractions=[0.1, 1],
        runs=1,
        fit=QUICK,
        strategy="loop",
        controls=(),
    )
    assert result.counts == (3312, 33124) and result.score[0, 1] == 0
    importance = [x.numpy().reshape(len(x), -1) for x, _ in (train, test)]
    numbers = np.arange(182 * 182).reshape(1, 182, 182)
    correct = by_hand("diff_roar", linear(182 * 182, 2), train, test, [importance], numbers, 0.0, [0.1, 1], 1)
    assert torch.equal(result.correct[0], correct)


def test_a_function_trains_and_gives_its_own_models():
    train, test = some_data(1, 4, 4)
    calls = []

    def fit(model, inputs, labels, seed):
        calls.append((inputs == 0).double().mean().item())
        model[1].bias.data[1] = 100.0

    result = kar(linear(16), train, test, {"a": lambda x: x}, fractions=[0.25], runs=2, fit=fit, controls=["random"])
    assert torch.equal(result.correct[0, 0, 0, 0], test[1] == 1) and result.engines == {
        "fit": (6, "a function was given")
    }
    assert sorted(round(share, 2) for share in calls)[:2] == [0, 0]


@pytest.mark.cuda
def test_a_model_and_data_on_different_devices():
    train, test = some_data(1, 4, 4)
    model = linear(16)()
    options = {"fractions": [0.25], "runs": 2, "fit": QUICK}
    expected = diff_roar(linear(16), train, test, {"a": Saliency(model)}, **options)
    result = diff_roar(linear(16), train, test, {"a": Saliency(model.cuda())}, **options)
    on_gpu = diff_roar(linear(16), *((x.cuda(), y.cuda()) for x, y in (train, test)), {"a": Saliency(model)}, **options)
    assert result.digest == expected.digest
    assert abs(on_gpu.score - expected.score).max() < 0.2 and not on_gpu.correct.is_cuda


# What is refused


SHARED = linear(9)()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fractions": []}, ValueError, r"different numbers in \(0, 1\]"),
        ({"fractions": [0.0, 0.5]}, ValueError, r"different numbers in \(0, 1\]"),
        ({"fractions": [0.5, 1.1]}, ValueError, r"different numbers in \(0, 1\], but are \[0.5, 1.1\]"),
        ({"fractions": [-0.1]}, ValueError, "different numbers"),
        ({"fractions": [0.5, 0.5]}, ValueError, "different numbers"),
        ({"fractions": [float("nan")]}, ValueError, "different numbers"),
        ({"runs": 0}, ValueError, "runs must be an integer of at least 1, but is 0"),
        ({"runs": 2.0}, ValueError, "runs must be an integer"),
        ({"max_examples_per_batch": 0}, ValueError, "max_examples_per_batch must be an integer of at least 1"),
        ({"target": "label"}, ValueError, "target must be 'predicted' or 'true', but is 'label'"),
        ({"target": 1}, ValueError, "target must be"),
        ({"controls": ["random", "blur"]}, ValueError, r"some of \('random', .*\), but \['blur'\] are among them"),
        ({"controls": "random"}, ValueError, "controls must be a sequence"),
        ({"baselines": "median"}, ValueError, "'mean', a tensor or a function, but is 'median'"),
        ({"baselines": None}, ValueError, "'mean', a tensor or a function, but is None"),
        ({"baselines": float("nan")}, ValueError, "baselines contain NaN"),
        ({"baselines": torch.zeros(4)}, ValueError, r"broadcast to an input, \(1, 3, 3\), but have \(4,\)"),
        ({"baselines": torch.zeros(40, 1, 3, 3)}, ValueError, "broadcast to an input"),
        ({"baselines": lambda x, kept, generator: x[:1]}, ValueError, "the imputation must return"),
        ({"groups": "pixels"}, ValueError, "groups must be None"),
        ({"attributions": [Saliency(SHARED)]}, TypeError, "must map names to attributions, but is list"),
        ({"attributions": Saliency(SHARED)}, TypeError, "must map names to attributions, but is Saliency"),
        ({"attributions": {}}, ValueError, "attributions is empty"),
        ({"attributions": {"a": lambda x: x[:, :, :2]}}, ValueError, "attributions 'a' must have the inputs' shape"),
        ({"attributions": {"a": lambda x: x / 0}}, ValueError, "NaN or infinite values"),
        ({"attributions": {"a": lambda x: x.int()}}, TypeError, "floating-point tensor, but are torch.int32"),
        ({"attributions": {"a": lambda x: x, "b": 3}}, TypeError, r"attributions\['b'\] must be a Captum attribution"),
        ({"test": (torch.rand(9, 1, 3, 3), torch.arange(9) % 4)}, ValueError, r"\[3\] are of no training example"),
        ({"train": (torch.rand(0, 1, 3, 3), torch.arange(0))}, ValueError, "none of it empty"),
        ({"test": (torch.rand(0, 1, 3, 3), torch.arange(0))}, ValueError, "none of it empty"),
        ({"test": (torch.rand(9, 1, 3, 4), torch.arange(9) % 3)}, ValueError, "must agree"),
        ({"train": torch.rand(9, 1, 3, 3)}, TypeError, "must be a pair"),
        ({"test": (torch.rand(9, 1, 3, 3), torch.rand(9))}, TypeError, "must be integers"),
        ({"test": (torch.full((9, 1, 3, 3), torch.inf), torch.arange(9) % 3)}, ValueError, "NaN or infinity"),
        ({"make_model": lambda: SHARED}, ValueError, "the same object"),
        ({"make_model": linear(9, 2)}, ValueError, "has 2 outputs, but label 2"),
        ({"make_model": linear(8)}, (RuntimeError, ValueError), "shapes cannot be multiplied"),
        ({"strategy": "fast"}, ValueError, "strategy must be"),
        ({"fit": 3}, TypeError, "fit must be a FitConfig or a function"),
    ],
)
@pytest.mark.parametrize("metric", METRICS.values())
def test_what_makes_no_sense_is_refused(metric, changes, error, words):
    train, test = some_data(1, 3, 3, n=12, m=9)
    arguments = {"make_model": linear(9), "train": train, "test": test, "attributions": {"a": lambda x: x}}
    options = {"fractions": [0.5], "runs": 1, "fit": FitConfig(epochs=1), "strategy": "loop"}
    with pytest.raises(error, match=words):
        metric(**arguments | options | changes)


def test_attributors_of_no_kind_are_refused_before_any_attributes():
    train, test = some_data(1, 3, 3)

    def expensive(x):
        raise AssertionError("asked")

    for other, error in ((3, TypeError), ((torch.rand(40, 1, 3, 3), torch.rand(3, 1, 3, 3)), ValueError)):
        with pytest.raises(error):
            kar(linear(9), train, test, {"a": expensive, "b": other})


# What a user's trial found.


def _small_call(function=None, **options):
    x = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = (x.mean((1, 2, 3)) > 0).long()
    arguments = {
        "make_model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        "train": (x[:40], y[:40]),
        "test": (x[40:], y[40:]),
        "attributions": {"a": function or (lambda x: x)},
        "fractions": [0.25],
        "runs": 1,
        "controls": (),
        "fit": FitConfig(epochs=1),
        "strategy": "loop",
        **options,
    }
    return diff_roar(**arguments)


class _Tuple(nn.Module):
    def forward(self, x):
        return x.flatten(1), x


class _Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("attributor", "error", "message"),
    [
        (Saliency(_Tuple()), TypeError, "pass a function that picks one"),
        (Saliency(_Flat()), TypeError, r"returned \(40,\)"),
        (Saliency, TypeError, "is the class Saliency; make it for a model first"),
        (lambda x, target: x, TypeError, "let it predict the class itself"),
        (lambda x: 1 / 0, RuntimeError, r"attributions\['a'\] raised ZeroDivisionError"),
    ],
)
def test_what_cannot_attribute_is_named(attributor, error, message):
    with pytest.raises(error, match=message):
        _small_call(attributor)


def test_an_attributor_may_write_to_what_it_is_given():
    x = torch.randn(60, 1, 4, 4)
    y = torch.arange(60) % 2
    before = x.clone()
    _small_call(lambda x: x.abs_(), train=(x[:40], y[:40]), test=(x[40:], y[40:]))
    assert torch.equal(x, before)


def test_notes_say_what_few_runs_and_equal_counts_mean():
    result = _small_call(fractions=[0.01, 0.02, 0.5], runs=2)
    assert any(note.startswith("2 runs tell little") for note in result.notes)
    assert any(
        note == "Fractions 0.01, 0.02 are the same number of elements or groups, 1 of 16." for note in result.notes
    )
    assert result.engines == {"loop": (10, "it was asked for")}  # 2 sides of 2 counts, and whole, 2 runs each


def test_the_mean_of_what_has_no_channels_is_each_element_s():
    x = torch.randn(60, 5, 3, generator=torch.Generator().manual_seed(0)) + 10 * torch.arange(3.0)
    y = torch.arange(60) % 2
    calls = []

    def fit(model, inputs, labels, seed):
        calls.append(inputs.clone())

    kar(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 2)),
        (x[:40], y[:40]),
        (x[40:], y[40:]),
        {"a": lambda x: x},
        fractions=[0.2],
        runs=1,
        fit=fit,
        controls=(),
    )
    (masked,) = [inputs for inputs in calls if not torch.equal(inputs, x[:40])]
    removed = masked != x[:40]
    assert removed.sum() == 40 * 12
    assert torch.allclose(masked[removed], x[:40].mean(0).expand_as(masked)[removed])


def test_models_that_diverged_are_counted():
    result = _small_call(fit=FitConfig(epochs=2, optimizer="sgd", lr=1e300))
    assert any("3 of 3 models classify no test example rightly" in note for note in result.notes)
