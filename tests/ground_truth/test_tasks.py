"""Tasks with known answers: what decides decides, and the rest does not, in the data and for trained networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from captum_density.datasets import digits
from captum_density.ground_truth import (
    AssociativeRecall,
    BlockDigits,
    BlockMNIST,
    Creatures,
    KnownFunction,
    PlantedMotif,
    SignalBlock,
    SubjectVerbAgreement,
    Watermark,
)

TASKS = [
    AssociativeRecall(),
    SubjectVerbAgreement(),
    BlockDigits(),
    SignalBlock(),
    Watermark(),
    KnownFunction(),
    Creatures(),
    PlantedMotif(),
]


@pytest.fixture(scope="module")
def mnist_file(tmp_path_factory):
    """scikit-learn's digits as large as MNIST's, in an archive."""
    data = digits()
    images = torch.cat([data.train_images, data.test_images])
    large = nn.functional.pad(nn.functional.interpolate(images, (24, 24), mode="bilinear"), (2, 2, 2, 2))
    path = tmp_path_factory.mktemp("mnist") / "mnist.npz"
    labels = torch.cat([data.train_labels, data.test_labels])
    np.savez(path, x=(255 * large[:, 0]).byte().numpy(), y=labels.numpy())
    return path


@pytest.fixture(params=[*TASKS, BlockMNIST], ids=lambda task: task.name)
def task(request):
    """All nine tasks."""
    if request.param is BlockMNIST:
        return BlockMNIST(request.getfixturevalue("mnist_file"))
    return request.param


def test_examples_are_of_the_seed_alone(task):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, again, other = (task.examples(5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, again.inputs) and not torch.equal(one.inputs, other.inputs)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


def test_masks_groups_and_baseline_fit_the_inputs(task):
    examples = task.examples(4)
    assert examples.inputs.dtype == torch.float32 and examples.masks.dtype == torch.bool
    masks = examples.masks.expand_as(examples.inputs).flatten(1)
    assert masks.any(1).all() and not masks.all(1).any()
    groups = task.groups.expand(examples.inputs.shape[1:])
    assert groups.unique().tolist() == list(range(int(groups.max()) + 1))
    assert task.baseline.expand(examples.inputs.shape[1:]).shape == examples.inputs.shape[1:]
    assert task.network()(examples.inputs).shape[1] > examples.targets.max()


def test_what_decides_is_changed_within_the_masks_and_makes_another_class_right(task):
    examples = task.examples(50)
    changed = task.intervene(examples, "deciding")
    assert (changed.targets != examples.targets).all()
    elsewhere = ~(examples.masks | changed.masks).expand_as(examples.inputs)
    assert torch.equal(changed.inputs[elsewhere], examples.inputs[elsewhere])


def test_the_rest_is_changed_outside_the_masks_and_the_class_stays(task):
    examples = task.examples(50)
    same = task.intervene(examples, "rest")
    assert torch.equal(same.targets, examples.targets) and torch.equal(same.masks, examples.masks)
    inside = examples.masks.expand_as(examples.inputs)
    assert torch.equal(same.inputs[inside], examples.inputs[inside])
    assert (same.inputs != examples.inputs).flatten(1).any(1).double().mean() > 0.9


@pytest.mark.parametrize("part", ["deciding", "rest"])
def test_a_recalled_key_stays_the_only_one_of_its_kind(part):
    task = AssociativeRecall()
    tokens = task.intervene(task.examples(200), part).inputs.argmax(2)
    keys = tokens[:, 0:-1:2].sort(1)[0]
    assert (keys.diff(dim=1) > 0).all()
    assert ((tokens[:, 0:-1:2] == tokens[:, -1:]).sum(1) == 1).all()


def test_an_intervention_is_of_what_decides_or_of_the_rest():
    with pytest.raises(ValueError, match="'deciding' or 'rest'"):
        SignalBlock().intervene(SignalBlock().examples(2), "all")


class Signal(nn.Module):
    """Constructed to find the only number beyond the noise."""

    def forward(self, x):
        signal = (x.relu() - 0.5).relu() - ((-x).relu() - 0.5).relu()
        return torch.stack([-signal.sum(1), signal.sum(1)], 1)


class Exact(nn.Module):
    """The known function itself."""

    def forward(self, x):
        half = KnownFunction.function(x) / 2
        return torch.stack([-half, half], 1)


@pytest.mark.parametrize(("task", "network"), [(SignalBlock(), Signal()), (KnownFunction(), Exact())])
def test_a_network_that_is_right_by_construction_is_verified(task, network):
    assert task.verify(network) == (1, 1, 1)


class Noise(nn.Module):
    """Decides by whatever is small."""

    def forward(self, x):
        small = x.masked_fill(x.abs() > 0.5, 0).sum(1)
        return torch.stack([-small, small], 1)


def test_a_network_that_decides_by_the_rest_is_not():
    accuracy, changed, unchanged = SignalBlock().verify(Noise())
    assert accuracy < 0.7 and changed < 0.3 and unchanged < 0.7


def test_shapley_values_are_the_definitions():
    x = KnownFunction().examples(3).inputs.double()
    subsets = [*itertools.product([False, True], repeat=6)]  # the last four columns are in no product
    kept = torch.tensor([(*subset, *(4 * [False])) for subset in subsets])[:, None]
    worth = dict(zip(subsets, KnownFunction.function((x * kept).flatten(0, 1)).view(64, 3), strict=True))
    slow = torch.zeros_like(x)
    for subset, i in itertools.product(subsets, range(6)):
        if not subset[i]:
            weight = math.factorial(sum(subset)) * math.factorial(5 - sum(subset)) / math.factorial(6)
            slow[:, i] += weight * (worth[(*subset[:i], True, *subset[i + 1 :])] - worth[subset])
    assert_close(KnownFunction.shapley_values(x), slow)


def test_effects_of_the_known_function_are_those_of_the_targets_logit():
    task = KnownFunction()
    examples = task.examples(20)
    values, masks = task.effects(Exact(), examples)
    logits = Exact()(examples.inputs) - Exact()(torch.zeros(1, 10))
    assert_close(values.sum(1), logits.gather(1, examples.targets[:, None])[:, 0])
    assert torch.equal(masks.flatten(1).sum(1), torch.full((20,), 10))


def test_effects_of_a_creatures_parts_are_what_drawing_it_without_them_takes():
    task = Creatures()
    examples = task.examples(6)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 6))
    values, masks = task.effects(network, examples)
    weight = network[1].weight.view(6, 3, 16, 16)[examples.targets]
    for part, name in enumerate(["head", "wing", "tail", "foot"]):
        less = task.without(examples, name)
        difference = examples.inputs - less.inputs
        assert_close(values[:, part], (difference * weight).sum((1, 2, 3)), rtol=1e-3, atol=1e-4)
        assert (difference.abs().amax(1, keepdim=True) > 0).eq(masks[:, part]).all()
    with pytest.raises(ValueError, match="head, wing, tail, foot"):
        task.without(examples, "beak")


def test_mnist_is_read_from_arrays_too(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (50, 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x=images, y=np.arange(50) % 10)
    task = BlockMNIST(tmp_path / "mnist.npz")
    examples = task.examples(3)
    assert examples.inputs.shape == (3, 1, 56, 28) and examples.inputs.min() >= 0 and examples.inputs.max() <= 1
    shown = examples.inputs[examples.masks].view(3, 784)
    tests = torch.from_numpy(images[4::5]).view(10, 784) / 255
    assert (torch.cdist(shown, tests).amin(1) < 1e-3).all()
    assert task.groups.unique().numel() == 98 and (task.groups == 0).sum() == 16


@pytest.mark.slow
def test_trained_networks_decide_by_what_is_said_to_decide(task):
    accuracy, changed, unchanged = task.verify(task.train(seed=1))
    assert accuracy > 0.95 and changed > 0.9 and unchanged > 0.95


def test_training_is_the_same_for_the_same_seed_and_leaves_no_trace():
    task = type("Short", (SignalBlock,), {"training_examples": 200})()
    before = torch.get_rng_state()
    one, again, other = (task.train(seed) for seed in (0, 0, 1))
    assert torch.equal(one[0].weight, again[0].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(before, torch.get_rng_state())
    assert not one.training and not any(p.requires_grad for p in one.parameters())


@pytest.mark.cuda
def test_networks_on_a_gpu_are_verified_there():
    torch.manual_seed(0)
    for task in (Creatures(), SignalBlock()):
        network = task.network().eval()
        expected, effects = task.verify(network, 20), task.effects(network, task.examples(3))
        assert task.verify(network.cuda(), 20) == expected
        if effects is not None:
            assert_close(task.effects(network, task.examples(3)).values, effects.values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: AssociativeRecall(keys=3, pairs=4), r"2\.\.3"),
        (lambda: SignalBlock(blocks=3), "even"),
        (lambda: SignalBlock(eta=1.0), r"\[0, 1\)"),
        (lambda: SignalBlock().examples(0), "at least 1"),
        (lambda: KnownFunction.function(torch.zeros(2, 3)), r"\(N, 10\)"),
        (lambda: SubjectVerbAgreement.words(torch.zeros(2, 3)), "a sentence is"),
    ],
)
def test_what_cannot_be_is_refused(make, remedy):
    with pytest.raises(ValueError, match=remedy):
        make()
