"""Which examples an audit takes, from whatever holds them."""

import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from captum_density.audit import _sample, audit
from captum_density.audit._sample import draw_sample

X = torch.arange(40.0).reshape(20, 2)
Y = torch.arange(20) % 3


def rows(examples):
    """Which of X they are."""
    return [int(first) // 2 for first in examples.inputs[:, 0]]


class Items(Dataset):
    """A data set of items, of which those that are errors are raised."""

    def __init__(self, items):
        self.items, self.reads = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Stream(IterableDataset):
    def __init__(self, batches):
        self.batches, self.n_batches = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.n_batches += 1
            yield batch


PAIRS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:], Y[16:])]
SOURCES = {
    "tensors": lambda: (X, Y),
    "list of tensors": lambda: [X, Y],
    "TensorDataset": lambda: TensorDataset(X, Y),
    "items": lambda: Items(PAIRS),
    "items of lists and tensors": lambda: Items([[x, torch.tensor(y)] for x, y in PAIRS]),
    "Subset": lambda: Subset(Items(PAIRS + PAIRS), range(20)),
    "DataLoader": lambda: DataLoader(Items(PAIRS), batch_size=7),
    "IterableDataset": lambda: Stream(BATCHES),
    "list of batches": lambda: BATCHES,
    "generator": lambda: (batch for batch in BATCHES),
}


@pytest.mark.parametrize("source", SOURCES)
def test_all_examples_in_order(source):
    for limit in (None, 20, 1000):
        sample = draw_sample(SOURCES[source](), limit, 0)
        assert torch.equal(sample.inputs, X) and torch.equal(sample.labels, Y)
        assert sample.labels.dtype == torch.int64 and sample.skipped == () and sample.classes is None


@pytest.mark.parametrize("source", SOURCES)
def test_a_limit(source):
    sample = draw_sample(SOURCES[source](), 9, 5)
    assert len(sample.inputs) == len(sample.labels) == len(set(rows(sample))) == 9  # without replacement
    assert rows(sample) == sorted(rows(sample))
    assert torch.equal(sample.labels, Y[rows(sample)])
    again = draw_sample(SOURCES[source](), 9, 5)
    assert rows(again) == rows(sample)
    at_random = source not in ("DataLoader", "IterableDataset", "list of batches", "generator")
    assert (rows(draw_sample(SOURCES[source](), 9, 6)) == rows(sample)) != at_random
    assert (rows(sample) == list(range(9))) != at_random


def test_the_drawing_is_uniform():
    counts = torch.zeros(20)
    for seed in range(500):
        counts[rows(draw_sample(X, 5, seed))] += 1
    # Each is one of five in twenty: 125 times, with a standard deviation of sqrt(500 * .25 * .75) = 9.7.
    assert (counts - 125).abs().max() < 4 * 9.7 and counts.sum() == 2500


@pytest.mark.parametrize(
    "data",
    [
        lambda: X,
        lambda: (X, None),
        lambda: Items(list(X)),
        lambda: TensorDataset(X),
        lambda: [X[:12], X[12:14], X[14:]],
    ],
)
def test_without_labels(data):
    result = data()
    if isinstance(result, TensorDataset):  # its items are tuples of one
        with pytest.raises(TypeError, match="must yield tensors, but yields an object of class tuple"):
            draw_sample(result, None, 0)
    else:
        result = draw_sample(result, None, 0)
        assert torch.equal(result.inputs, X) and result.labels is None


def test_no_more_is_read_than_is_needed():
    stream = Stream(BATCHES)
    assert len(draw_sample(stream, 9, 0).inputs) == 9 and stream.n_batches == 2
    stream = Stream(BATCHES)
    assert len(draw_sample(stream, 8, 0).inputs) == 8 and stream.n_batches == 1
    items = Items(PAIRS)
    draw_sample(items, 4, 0)
    assert len(items.reads) == len(set(items.reads)) == 4


def test_what_would_fill_the_memory_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(_sample, "_BYTES", 10 * X[0].nbytes)
    assert len(draw_sample(Items(PAIRS), 10, 0).inputs) == 10
    for limit in (11, None):
        items = Items(PAIRS)
        with pytest.raises(ValueError, match="transform that resizes them, or a limit of at most 10"):
            draw_sample(items, limit, 0)
        assert len(items.reads) == 1
    items = Items([*PAIRS[:3], *((torch.zeros(30), 0) for _ in range(7))])  # larger ones come later
    with pytest.raises(ValueError, match=r"of at most 1$"):
        draw_sample(items, None, 0)
    assert len(items.reads) == 4
    assert len(draw_sample(Items([(torch.zeros(30), 0)]), None, 0).inputs) == 1  # one is always read


def test_examples_that_cannot_be_read_are_skipped_and_named():
    items = list(PAIRS)
    items[3], items[11] = OSError("truncated\n file"), SyntaxError("not a PNG")
    sample = draw_sample(Items(items), None, 0)
    assert rows(sample) == [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(sample.labels, Y[rows(sample)])
    assert sample.skipped == ("example 3 (OSError: truncated file)", "example 11 (SyntaxError: not a PNG)")
    # Others take their places, as long as there are any.
    few = draw_sample(Items(items), 17, 0)
    assert len(few.inputs) == 17 and set(rows(few)) <= set(rows(sample))
    assert len(draw_sample(Items(items), 19, 0).inputs) == 18
    for data in (Items([OSError("bad")] * 3), Items([])):
        with pytest.raises(ValueError, match="the data hold no examples"):
            draw_sample(data, None, 0)
    with pytest.raises(ValueError, match=r"none of 3 can be read, first example 0 \(OSError: bad\)"):
        draw_sample(Items([OSError("bad")] * 3), None, 0)


def test_folders_name_files_and_count_classes():
    folder = Items([*PAIRS[:4], ValueError("broken")])
    folder.samples = [(f"cat/{i}.png", 0) for i in range(5)]
    folder.classes = ["cat", "dog", "eel"]
    sample = draw_sample(folder, None, 0)
    assert sample.skipped == ("cat/4.png (ValueError: broken)",) and sample.classes == ("cat", "dog", "eel")
    folder.samples[4] = ("cat/\udcff\x1b[2J.png", 0)  # bytes that are no text, and what clears a terminal
    assert draw_sample(folder, None, 0).skipped == ("cat/\\xff\\x1b[2J.png (ValueError: broken)",)
    folder.items[1] = (torch.zeros(3), 0)
    with pytest.raises(ValueError, match=r"cat/0.png has \(2,\), cat/1.png has \(3,\); give the data a transform"):
        draw_sample(folder, None, 0)


def test_the_report_names_what_was_skipped():
    items = Items([*PAIRS, OSError("bad")])
    report = audit(torch.nn.Linear(2, 3), items, ["Saliency"], metrics=["accuracy"], limit=None)
    assert report.skipped == ("example 20 (OSError: bad)",) and report.settings["examples"] == 20
    assert "1 example skipped that could not be read: example 20 (OSError: bad)" in report.summary()


def test_labels_that_number_other_classes_are_not_used():
    items = Items(PAIRS)
    items.classes = ["cat", "dog", "eel"]
    report = audit(torch.nn.Linear(2, 5), items, ["Saliency"], metrics=["accuracy"])
    assert report.model["accuracy"].value is None and not report.model["accuracy"].failed
    assert audit(torch.nn.Linear(2, 3), items, ["Saliency"], metrics=["accuracy"]).model["accuracy"].value is not None


def test_random_states_are_left_and_inputs_detached():
    class Drawing(Items):
        def __getitem__(self, i):
            return torch.rand(2) + random.random(), i % 2

    states = torch.get_rng_state(), random.getstate()
    first, second = (draw_sample(Drawing(PAIRS), None, seed) for seed in (1, 1))
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.inputs, draw_sample(Drawing(PAIRS), None, 2).inputs)
    draw_sample(DataLoader(Items(PAIRS), batch_size=3, shuffle=True), 4, 0)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    x = X.clone().requires_grad_()
    for data in (x, (x, Y), Items(list(x)), [x]):
        assert not draw_sample(data, None, 0).inputs.requires_grad
    assert x.requires_grad


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (3, TypeError, "but is an object of class int"),
        ("folder", TypeError, "but is an object of class str"),
        ({"x": X}, TypeError, "but is an object of class dict"),
        (X.long(), TypeError, "got torch.int64; of token ids"),
        (X[:, 0], ValueError, r"shape \(N, ...\) with N > 0, got \(20,\)"),
        (X[:0], ValueError, r"got \(0, 2\)"),
        (X.masked_fill(X == 7, torch.nan), ValueError, "inputs must be finite, got 1 NaN"),
        (Items([x / 0 for x in X]), ValueError, "inputs must be finite"),
        ([(X / 0, Y)], ValueError, "inputs must be finite"),
        ((X, Y[:5]), TypeError, r"one for each of 20 examples.* got torch.int64 of shape \(5,\)"),
        ((X, Y.float() / 0), ValueError, "labels must be finite"),
        ((X, Y.reshape(20, 1)), TypeError, "labels must be integers"),
        ([(X, Y[:5])], TypeError, "labels must be integers"),
        ([(X, Y), (X, None)], ValueError, "some batches have labels and some have none"),
        (Items([(x, "cat") for x in X]), TypeError, "labels must be numbers"),
        (((X, X[:5]), Y), ValueError, "as many examples each, but hold 20 and 5"),
        (Items(["picture"] * 3), TypeError, "yields an object of class str; give it a transform"),
        (Items([X[0], X[1, :1]]), ValueError, r"example 0 has \(2,\), example 1 has \(1,\)"),
        ([], ValueError, "the data hold no examples"),
        (Stream([]), ValueError, "the data hold no examples"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        draw_sample(data, None, 0)


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "3"])
def test_bad_limit(limit):
    with pytest.raises(ValueError, match="limit must be a positive integer or None, but is"):
        draw_sample(X, limit, 0)
