"""Many models: two engines and a plain loop written once more, what each job's model sees, seeds, and refusals."""

import copy
import functools
import hashlib
import itertools
import math
import random
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

from captum_density import retraining
from captum_density._cache import arrays
from captum_density.retraining import Examples, FitConfig, Job, adversarial_fit, fit_many
from tests.benchmarks.harness import peak_bytes
from tests.retraining import retraining_worker as worker
from tests.retraining.small import ADAMW, PLAIN, SGD, SHAPE, D, Depth, cnn, eight, examples, mlp, order, split, states


def digest(fitted):
    return [hashlib.sha256(f.correct.numpy().tobytes()).hexdigest() for f in fitted]


class Recorded:
    """A factory that remembers what it made: in this process, a loop trains those very models."""

    def __init__(self, make):
        self.make, self.made = make, []

    def __call__(self):
        self.made.append(self.make())
        return self.made[-1]


# ----------------------------------------------------------------------------------------------------------------------
# Two engines.


@pytest.mark.parametrize(
    ("strategy", "stack_size"), [("loop", 3), ("channels_last", 3), ("vmap", 1), ("vmap", 3), ("vmap", 32)]
)
def test_jobs_come_out_alike_by_every_strategy(strategy, stack_size):
    data = examples()
    jobs = [Job(data, kept, run) for run in range(3) for kept in ((0, 18), (0, 4), (4, 18))]
    config = FitConfig(**{**vars(ADAMW), "stack_size": stack_size})
    fitted = fit_many(mlp, jobs, fit=config, seed=3, strategy=strategy)
    expected = fit_many(mlp, jobs, fit=ADAMW, seed=3, strategy="loop")
    assert digest(fitted) == digest(expected)
    assert [f.job for f in fitted] == jobs
    assert {f.engine for f in fitted} == {strategy} and {f.reason for f in fitted} == {"it was asked for"}
    assert all(f.seconds > 0 and not f.stored and f.correct.dtype == torch.bool for f in fitted)
    assert all(f.accuracy == f.correct.double().mean().item() for f in fitted)
    assert len({tuple(f.correct.tolist()) for f in fitted}) > 5


@pytest.mark.parametrize(
    ("width", "n_jobs", "stack_size", "engine", "reason"),
    [
        (8, 8, 32, "vmap", r"works on \d+ values, and a stack gains up to 320000"),
        (8, 7, 32, "loop", "7 models on the same examples are fewer than the 8 from which a stack gains"),
        (8, 8, 4, "loop", "4 models on the same examples are fewer"),
        (4000, 8, 32, "loop", r"works on \d+ values, and a stack gains up to 320000"),
    ],
)
def test_a_stack_is_chosen_for_many_small_models(width, n_jobs, stack_size, engine, reason):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(D, width), nn.ReLU(), nn.Linear(width, 3)).double()

    config = replace(ADAMW, epochs=1, stack_size=stack_size)
    jobs = eight(examples())[:n_jobs]
    results = fit_many(make, jobs, fit=config)
    assert {result.engine for result in results} == {engine}
    assert all(re.search(reason, result.reason) for result in results), results[0].reason
    assert digest(results) == digest(fit_many(make, jobs, fit=config, strategy="loop"))


def test_few_models_beside_many_are_trained_alone():
    many, few = examples(), examples(m=50)
    results = fit_many(mlp, [*eight(many), *eight(few)[:3]], fit=PLAIN)
    assert [result.engine for result in results] == ["vmap"] * 8 + ["loop"] * 3
    assert "fewer than the 8" in results[-1].reason


def test_the_choice_does_not_look_at_a_clock(monkeypatch):
    chosen = []
    for seconds in ([0.0], itertools.count(), itertools.count(0, -1)):  # still, fast, backwards
        clock = itertools.cycle(seconds)
        monkeypatch.setattr("time.perf_counter", lambda clock=clock: next(clock))
        chosen.append([(r.engine, r.reason) for r in fit_many(mlp, eight(examples()), fit=PLAIN)])
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_layout_in_channels_last_trains_the_same_models():
    data = examples()
    jobs = [Job(data, kept, run) for run in range(2) for kept in ((0, 18), (0, 4))]
    formats = []

    def make():
        model = cnn(lambda: nn.BatchNorm2d(4))
        model[0].register_forward_hook(
            lambda conv, inputs, output: formats.append(output.is_contiguous(memory_format=torch.channels_last))
        )
        return model

    expected = digest(fit_many(make, jobs, fit=ADAMW, strategy="loop"))
    assert not any(formats)
    formats.clear()
    last = fit_many(make, jobs, fit=ADAMW, strategy="channels_last")
    assert all(formats) and {f.engine for f in last} == {"channels_last"} and digest(last) == expected


WIDE = (2, 40, 40)


def convolutions(body=nn.Identity):
    return nn.Sequential(nn.Conv2d(2, 96, 3, padding=1), nn.ReLU(), body(), nn.Conv2d(96, 3, 1), Pooled())


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class ViewedWhile(nn.Module):
    """`view`, which does not work in every layout, while it trains or while it does not."""

    def __init__(self, training):
        super().__init__()
        self.when = training

    def forward(self, x):
        return x.view(len(x), -1).view(x.shape) if self.training is self.when else x


class Strided(nn.Module):
    """Reads memory in the order in which it lies."""

    def forward(self, x):
        return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())


@pytest.mark.parametrize(
    ("body", "engine", "reason"),
    [
        (nn.Identity, "channels_last", "gains from channels last"),
        (lambda: ViewedWhile(True), "loop", r"channels last cannot run it \(view size is not compatible"),
        (lambda: ViewedWhile(False), "loop", r"channels last cannot run it \(view size is not compatible"),
        (Strided, "loop", "channels last gives '.*' other values"),
    ],
)
def test_large_convolutions_are_laid_out_in_channels_last_where_that_gives_the_same(body, engine, reason):
    data = examples(64, 8, shape=WIDE, dtype=torch.float32)
    jobs = [Job(data, (0, 1600), run) for run in range(2)]
    results = fit_many(lambda: convolutions(body), jobs, fit=FitConfig(epochs=1, batch_size=64, lr=0.02))
    assert {result.engine for result in results} == {engine}
    assert re.search(reason, results[0].reason), results[0].reason


def test_nothing_is_said_of_the_layout_of_what_has_none():
    (fitted, *_) = fit_many(mlp, [Job(examples(), (0, 9), run) for run in range(2)], fit=ADAMW)
    assert "channels" not in fitted.reason


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, 3)

    def forward(self, x):
        x = self.linear(x.flatten(1))
        return -x if x.sum() > 0 else x


class InPlace(Flow):
    def forward(self, x):
        return torch.zeros(len(x), 3, dtype=x.dtype).add_(self.linear(x.flatten(1)))


class Assigned(Flow):
    """A running mean that is replaced, not written to: vmap's is lost, and no gradient tells."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("mean", torch.zeros(D, dtype=torch.float64), persistent=persistent)

    def forward(self, x):
        x = x.flatten(1)
        if not self.training:
            return self.linear(x - self.mean)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x - x.mean(0))


def spectral():
    return nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(D, 3))).double()


ALONE = {
    "dropout": (lambda: nn.Sequential(mlp(), nn.Dropout(0.1)), "draws random numbers"),
    "python's numbers": (lambda: Depth(random.random).double(), "draws random numbers"),
    "numpy's numbers": (lambda: Depth(np.random.rand).double(), "draws random numbers"),
    "control flow": (lambda: Flow().double(), "vmap cannot run this model .*data-dependent control flow"),
    "momentum=None": (
        lambda: cnn(lambda: nn.BatchNorm2d(4, momentum=None)),
        r"vmap cannot run this model .*\.item\(\)",
    ),
    "spectral norm": (spectral, "vmap cannot run this model|a stack gives '.*' other values than a loop does"),
    "zeros": (lambda: InPlace().double(), "vmap cannot run this model .*(shape|in-?place)"),
    "assigned": (lambda: Assigned().double(), "a stack gives 'mean' other values than a loop does"),
    "not persistent": (lambda: Assigned(False).double(), "a stack gives 'mean' other values than a loop does"),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_a_stack_cannot_train_is_trained_alone(name):
    make, why = ALONE[name]
    jobs = eight(examples())
    before = states()
    fitted = fit_many(make, jobs, fit=SGD)
    assert {f.engine for f in fitted} == {"loop"}
    assert re.search(why, fitted[0].reason), fitted[0].reason
    with pytest.raises(ValueError, match=r"strategy 'vmap' cannot train this model: .*; use 'auto' or 'loop'"):
        fit_many(make, jobs, fit=SGD, strategy="vmap")
    assert states() == before
    assert digest(fitted) == digest(fit_many(make, jobs, fit=SGD, strategy="loop"))


@pytest.mark.parametrize(("options", "fit"), [({"impute": lambda x, kept, generator: x}, SGD), ({}, lambda *_: None)])
def test_a_stack_that_is_asked_for_is_no_loop(options, fit):
    with pytest.raises(
        ValueError, match=r"strategy 'vmap' cannot train (on imputed examples|with a function of yours)"
    ):
        fit_many(mlp, [Job(examples(**options), (0, 9))], fit=fit, strategy="vmap")


def test_each_reason_is_of_its_own_jobs():
    plain, imputed = examples(), examples(impute=lambda x, kept, generator: x)
    jobs = [*eight(plain), Job(imputed, (0, 9), 0)]
    fitted = fit_many(lambda: Flow().double(), jobs, fit=SGD)
    assert ["control flow" in f.reason for f in fitted] == [True] * 8 + [False]
    assert fitted[8].reason == "imputed examples are made for one model at a time"


# ----------------------------------------------------------------------------------------------------------------------
# A plain loop, written once more.


def plain_seed(*words):
    text = "/".join(map(str, words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def plain_masked(x, ranks, kept, groups, fill, mask_only):
    """Element by element."""
    masked = x.clone()
    for i in range(len(x)):
        flat = masked[i].view(-1)
        for j in range(len(flat)):
            place = int(ranks[i, j if groups is None else int(groups.flatten()[j])])
            stays = kept[0] <= place < kept[1]
            if mask_only:
                flat[j] = float(stays)
            elif not stays:
                flat[j] = fill.expand(x.shape[1:]).flatten()[j] if isinstance(fill, torch.Tensor) else fill
    return masked


def plainly(make, data, kept, run, config, seed):
    """A model after training and which test examples it gets right, by torch.optim and one step after another."""
    torch.manual_seed(plain_seed(seed, "initial", run))
    model = make().train()
    whole = kept == (0, data.d) and not data.mask_only
    (x, y), (x_test, y_test) = data.train, data.test
    if not whole:
        x, x_test = (
            plain_masked(a, r, kept, data.groups, data.fill, data.mask_only)
            for a, r in zip((x, x_test), data.ranks, strict=True)
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "sgd":
        options = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        optimizer = torch.optim.SGD(parameters, config.lr, **options, foreach=False)
    else:
        optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, foreach=False)
    generator = torch.Generator().manual_seed(plain_seed(seed, "order", run))
    steps = []
    for _ in range(config.epochs):
        permutation = torch.randperm(len(x), generator=generator)
        steps += [
            b for b in permutation.split(config.batch_size) if len(b) > 1 or len(x) == 1 or config.batch_size == 1
        ]
    for t, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - t / len(steps) if config.schedule == "linear" else 1)
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return model, torch.tensor(
            [int(model(a[None])[0].argmax()) == int(b) for a, b in zip(x_test, y_test, strict=True)]
        )


GROUPS = torch.arange(9).view(1, 3, 3).expand(2, 3, 3).contiguous() // 2  # pairs of pixels in both channels, and one
GROUPED = {"ranks": (order(40, 5, 5), order(60, 5, 6)), "groups": GROUPS}
SIGHTS = {
    "elements": ({"fill": 0.1}, (0, 5)),
    "bottom": ({"fill": -0.3}, (7, 18)),
    "middle": ({}, (4, 11)),
    "nothing": ({"fill": 1.0}, (6, 6)),
    "whole": ({"fill": 9.0}, (0, 18)),
    "groups": (GROUPED, (1, 4)),
    "channel fill": ({"fill": torch.tensor([0.1, -0.2], dtype=torch.float64).view(2, 1, 1)}, (0, 9)),
    "whole fill": ({**GROUPED, "fill": torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))}, (2, 5)),
    "mask": ({"mask_only": True}, (0, 9)),
    "mask of everything": ({"mask_only": True, **GROUPED}, (0, 5)),
    "int8 ranks": ({"ranks": (order(40).to(torch.int8), order(60).numpy().astype("i1"))}, (2, 18)),
}


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("name", SIGHTS)
def test_the_model_is_that_of_a_plain_loop(name, strategy):
    options, kept = SIGHTS[name]
    data = examples(**options)
    make = Recorded(mlp)
    # 9 examples of 40 stay in the last batch: steps of 31 and 9.
    config = FitConfig(epochs=4, batch_size=31, lr=0.03, weight_decay=0.1)
    (fitted,) = fit_many(make, [Job(data, kept, 2)], fit=config, seed=11, strategy=strategy)
    model, correct = plainly(mlp, data, kept, 2, config, 11)
    assert torch.equal(fitted.correct, correct)
    if strategy == "loop":
        for result, expected in zip(make.made[-1].parameters(), model.parameters(), strict=True):
            assert_close(result, expected, rtol=0, atol=1e-10)


@settings(max_examples=25)
@given(
    st.integers(1, 14), st.integers(1, 16), st.integers(1, 3), st.sampled_from([SGD, PLAIN, ADAMW]), st.integers(0, 99)
)
def test_every_number_of_examples_is_that_of_a_plain_loop(n, batch_size, epochs, config, seed):
    x, y = split(n, seed)
    data = Examples((x, y), (x, y))
    config = FitConfig(**{**vars(config), "epochs": epochs, "batch_size": batch_size})
    make = Recorded(mlp)
    (fitted,) = fit_many(make, [Job(data, run=1)], fit=config, seed=seed, strategy="loop")
    model, correct = plainly(mlp, data, (0, 18), 1, config, seed)
    for result, expected in zip(make.made[-1].parameters(), model.parameters(), strict=True):
        assert_close(result, expected, rtol=0, atol=1e-10)
    assert torch.equal(fitted.correct, correct)


def test_only_the_last_model_counts():
    """Test accuracy is not looked at while training: a model that is asked in evaluation mode is asked once."""
    calls = []

    class Counts(nn.Linear):
        def forward(self, x):
            calls.append(self.training)
            return super().forward(x.flatten(1))

    fit_many(lambda: Counts(D, 3).double(), [Job(examples())], fit=ADAMW, strategy="loop")
    assert calls[calls.index(True) :] == [True] * 9 + [False]  # 3 epochs of 16, 16 and 8


# ----------------------------------------------------------------------------------------------------------------------
# What a job's model sees.


class Sees(nn.Module):
    """Remembers what it was shown in evaluation mode."""

    shown: list[torch.Tensor] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, 3)

    def forward(self, x):
        if not self.training:
            Sees.shown.append(x.clone())
        return self.linear(x.flatten(1))


def inputs_of(data, kept, run=0, seed=0):
    """The training and the test inputs of a job."""
    Sees.shown.clear()
    calls = []

    def fit(model, inputs, labels, seed):
        calls.append(inputs.clone())
        assert torch.equal(labels, torch.as_tensor(data.train[1]))

    fit_many(lambda: Sees().double(), [Job(data, kept, run)], fit=fit, seed=seed)
    return calls[0], torch.cat(Sees.shown)


@pytest.mark.parametrize("name", SIGHTS)
def test_training_and_test_examples_are_masked_alike(name):
    options, kept = SIGHTS[name]
    data = examples(**options)
    for result, (x, _), ranks in zip(inputs_of(data, kept), (data.train, data.test), data.ranks, strict=True):
        if kept == (0, data.d) and not data.mask_only:
            assert torch.equal(result, x)
        else:
            assert_close(result, plain_masked(x, ranks, kept, data.groups, data.fill, data.mask_only), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("kept", [(120, 128), (0, 127), (128, 128)])
def test_128_places_of_bytes(dtype, strategy, kept):
    """127 is the last place and the largest byte: 128, the number of places, is none."""
    x = torch.randn(20, 128, dtype=torch.float64)
    ranks = torch.arange(128).flip(0).expand(20, 128)
    y = (x[:, 0] > 0).long()
    data = Examples((x, y), (x, y), ranks=(ranks.to(dtype), ranks.to(dtype)))
    (fitted,) = fit_many(lambda: nn.Linear(128, 2).double(), [Job(data, kept)], fit=ADAMW, strategy=strategy)
    wide = Examples((x, y), (x, y), ranks=(ranks, ranks))
    assert digest([fitted]) == digest(fit_many(lambda: nn.Linear(128, 2).double(), [Job(wide, kept)], fit=ADAMW))


def noisy(x, kept, *, generator):
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return torch.where(kept, x, noise)


def test_an_imputation_sees_what_is_kept_and_draws_by_run():
    calls = []

    def impute(x, kept, *, generator):
        calls.append((x.clone(), kept.clone()))
        assert bool((x[~kept] == 0).all())
        return noisy(x, kept, generator=generator)

    data = examples(n=1100, impute=impute)  # more than are handled at once
    train, test = inputs_of(data, (0, 7))
    kept = (data.ranks[0] < 7).view(-1, *SHAPE)
    assert torch.equal(torch.cat([k for _, k in calls[:2]]), kept)
    assert torch.equal(torch.cat([x for x, _ in calls[:2]]), data.train[0] * kept)
    assert torch.equal(train[kept], data.train[0][kept])
    noise = train[~kept]
    assert len(noise.unique()) == len(noise) and abs(noise.mean().item()) < 0.05 and abs(noise.std().item() - 1) < 0.05
    again, test_again = inputs_of(data, (0, 7))
    assert torch.equal(again, train) and torch.equal(test_again, test)
    # The same noise for every job of a run: what they differ by is what is kept.
    more, _ = inputs_of(data, (0, 3))
    assert torch.equal(more[~kept], train[~kept])
    for other in (inputs_of(data, (0, 7), run=1), inputs_of(data, (0, 7), seed=1)):
        assert not torch.isclose(other[0][~kept], noise).any()
    assert not torch.isclose(train[:24][~kept[:24]][:99], test[(data.ranks[1] >= 7).view(-1, *SHAPE)][:99]).any()


def test_an_imputation_may_draw_from_the_global_generators():
    data = examples(impute=lambda x, kept, generator: torch.where(kept, x, torch.randn_like(x) + np.random.rand()))
    before = states()
    first = inputs_of(data, (0, 7))
    torch.manual_seed(5)
    for a, b in zip(first, inputs_of(data, (0, 7)), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(0)
    assert states()[1:] == before[1:]


@pytest.mark.parametrize(
    ("impute", "message"),
    [
        (lambda x, kept, generator: x[:1], r"the imputation must return \(40, 2, 3, 3\).*returned \(1, 2, 3, 3\)"),
        (lambda x, kept, generator: None, r"the imputation must return .* returned NoneType"),
        (lambda x, kept, generator: x / 0, "the imputation returned NaN or infinity"),
    ],
)
def test_an_imputation_that_fails_is_refused(impute, message):
    with pytest.raises(ValueError, match=message):
        fit_many(mlp, [Job(examples(impute=impute), (0, 7))], fit=ADAMW)


def test_whole_examples_are_one_job_whatever_their_ranks():
    plain = examples()
    options = {"ranks": tuple(r.flip(1) for r in plain.ranks), "fill": 3.0}
    other = Examples(plain.train, plain.test, **options)
    imputed = Examples(plain.train, plain.test, ranks=plain.ranks, impute=noisy)
    mask = Examples(plain.train, plain.test, ranks=plain.ranks, mask_only=True)
    other_data = Examples((plain.train[0] + 1, plain.train[1]), plain.test)
    jobs = [Job(plain), Job(other, (0, 18)), Job(imputed), Job(mask), Job(other_data), Job(plain, run=1)]
    trained = []
    fitted = fit_many(mlp, jobs, fit=lambda model, x, y, seed: trained.append(x))
    assert len(trained) == 4 and [f.job for f in fitted] == jobs


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_job_given_twice_is_trained_once_and_the_order_stays(strategy):
    data = examples()
    jobs = [Job(data, kept, run) for kept, run in [((0, 3), 1), ((3, 18), 0), ((0, 3), 1), ((0, 18), 1), ((3, 18), 0)]]
    make = Recorded(mlp)
    fitted = fit_many(make, jobs, fit=ADAMW, strategy=strategy)
    assert [f.job for f in fitted] == jobs
    assert fitted[0].correct is fitted[2].correct and fitted[1].correct is fitted[4].correct
    if strategy == "loop":
        assert len(make.made) == 3 + 3  # the first run's is made twice for a check
    backwards = fit_many(mlp, jobs[::-1], fit=ADAMW, strategy=strategy)
    assert digest(backwards[::-1]) == digest(fitted)


# ----------------------------------------------------------------------------------------------------------------------
# A function of one's own.


def test_a_function_of_ones_own_is_the_third_way():
    data = examples()
    x, y = (a.clone() for a in data.train)

    def fit(model, inputs, labels, seed):
        assert model.training and labels.dtype == torch.int64
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            rows = torch.randint(len(inputs), (16,), generator=generator)
            noise = 0.1 * torch.randn(16, *SHAPE, dtype=torch.float64) + 0.1 * (random.random() + np.random.rand())
            optimizer.zero_grad()
            cross_entropy(model(inputs[rows] + noise), labels[rows]).backward()
            optimizer.step()
        inputs.zero_()  # its own
        labels.zero_()

    jobs = [Job(data, kept, run) for run in range(2) for kept in ((0, 18), (0, 9))]
    before = states()
    with torch.no_grad():  # the caller's
        fitted = fit_many(mlp, jobs, fit=fit, seed=4)
    assert states() == before
    assert torch.equal(data.train[0], x) and torch.equal(data.train[1], y)
    assert {(f.engine, f.reason) for f in fitted} == {("fit", "a function was given")}
    assert digest(fit_many(mlp, jobs[::-1], fit=fit, seed=4)[::-1]) == digest(fitted)
    assert digest(fit_many(mlp, jobs[3:], fit=fit, seed=4)) == digest(fitted[3:])
    assert len(set(digest(fitted))) == 4
    assert digest(fit_many(mlp, jobs, fit=fit, seed=5)) != digest(fitted)


def test_a_function_gets_the_seed_of_its_run():
    data, seeds = examples(), []
    jobs = [Job(data, kept, run) for run in (0, 3) for kept in ((0, 18), (0, 9))]
    fit_many(mlp, jobs, fit=lambda model, x, y, seed: seeds.append(seed), seed=9)
    assert seeds == [plain_seed(9, "training", run) for run in (0, 0, 3, 3)]


# ----------------------------------------------------------------------------------------------------------------------
# Seeds.


def with_dropout():
    return nn.Sequential(mlp(), nn.Dropout(0.2))


@pytest.mark.parametrize(("make", "strategy"), [(mlp, "loop"), (mlp, "vmap"), (with_dropout, "loop")])
def test_a_job_depends_on_nothing_but_itself(make, strategy):
    data = examples()
    jobs = [Job(data, kept, run) for run in range(3) for kept in ((0, 4), (4, 18))]
    expected = digest(fit_many(make, jobs, fit=ADAMW, seed=2, strategy=strategy))
    torch.manual_seed(77)
    np.random.seed(3)
    random.seed(4)
    shuffled = [4, 1, 5, 0]
    some = fit_many(make, [jobs[i] for i in shuffled], fit=ADAMW, seed=2, strategy=strategy)
    assert digest(some) == [expected[i] for i in shuffled]
    assert len(set(expected)) == 6
    assert digest(fit_many(make, jobs, fit=ADAMW, seed=3, strategy=strategy)) != expected


def test_models_of_a_run_start_alike_and_runs_do_not():
    data, starts = examples(), []

    def fit(model, x, y, seed):
        starts.append(model[1].weight.detach().clone())

    fit_many(mlp, [Job(data, kept, run) for run in range(2) for kept in ((0, 4), (4, 18))], fit=fit)
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[2], starts[3])
    assert not torch.isclose(starts[0], starts[2]).any()


class Noise(nn.Linear):
    """Draws in evaluation mode too."""

    def forward(self, x):
        return super().forward(dropout(x.flatten(1), 0.5)) + random.random() + np.random.rand()


@pytest.mark.parametrize("make", [mlp, with_dropout, lambda: Noise(D, 3).double()])
@pytest.mark.parametrize("strategy", ["loop", "auto"])
def test_the_global_generators_are_left_alone(make, strategy, tmp_path):
    data = examples()
    jobs = [Job(data, (0, 7), run) for run in range(2)]
    before = states()
    first = fit_many(make, jobs, fit=ADAMW, strategy=strategy)
    assert states() == before
    torch.manual_seed(1)
    before = states()
    second = fit_many(make, jobs, fit=ADAMW, strategy=strategy, store=tmp_path)
    assert states() == before
    torch.manual_seed(2)
    third = fit_many(make, jobs, fit=ADAMW, strategy=strategy, store=tmp_path)
    assert digest(first) == digest(second) == digest(third)
    assert all(f.stored for f in third)


def test_python_draws_in_evaluation_of_a_stack_are_seeded():
    class Shifted(nn.Linear):
        def forward(self, x):
            x = x.flatten(1)
            return super().forward(x if self.training else x + 5 * random.random())

    data = examples(m=300)
    jobs = [Job(data, (0, 7), run) for run in range(2)]
    result = []
    for seed in range(3):
        random.seed(seed)
        before = states()
        result.append(digest(fit_many(lambda: Shifted(D, 3).double(), jobs, fit=ADAMW, strategy="vmap")))
        assert states() == before
    assert result[0] == result[1] == result[2]


@pytest.mark.parametrize("raises", [False, True])
def test_threads_are_those_asked_for_and_then_as_before(raises):
    before, result = torch.get_num_threads(), []

    def fit(model, x, y, seed):
        result.append(torch.get_num_threads())
        torch.set_num_threads(3)
        if raises:
            raise ArithmeticError("no")

    torch.set_num_threads(2)
    try:
        if raises:
            with pytest.raises(ArithmeticError, match=r"^no$"):
                fit_many(mlp, [Job(examples())], fit=fit)
        else:
            fit_many(mlp, [Job(examples())], fit=fit)
        assert torch.get_num_threads() == 2 and result == [1]
    finally:
        torch.set_num_threads(before)


def test_threads_of_a_configuration():
    before, result = torch.get_num_threads(), []

    class Counts(nn.Linear):
        def forward(self, x):
            result.append(torch.get_num_threads())
            return super().forward(x.flatten(1))

    fit_many(lambda: Counts(D, 3).double(), [Job(examples())], fit=FitConfig(epochs=1, threads=2), strategy="loop")
    assert set(result) == {2} and torch.get_num_threads() == before


def test_calls_in_threads_do_not_draw_each_others_numbers():
    data = examples()
    jobs = [Job(data, (0, 9), run) for run in range(6)]
    expected, result = digest(fit_many(with_dropout, jobs, fit=ADAMW, strategy="loop")), {}

    def call(i):
        result[i] = digest(fit_many(with_dropout, jobs, fit=ADAMW, strategy="loop"))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert result == dict.fromkeys(range(4), expected)


# Factories.

SHARED = mlp()
WEIGHT = torch.randn(3, D, dtype=torch.float64)
OWN = torch.Generator().manual_seed(0)


def same_parameters():
    return nn.Sequential(nn.Flatten(), SHARED[1], nn.Linear(8, 3).double())


def same_memory():
    model = nn.Sequential(nn.Flatten(), nn.Linear(D, 3).double())
    model[1].weight = nn.Parameter(WEIGHT)
    return model


def own_generator():
    model = mlp()
    nn.init.normal_(model[1].weight, generator=OWN)
    return model


def entropy():
    model = mlp()
    model[1].weight.data += torch.from_numpy(np.random.default_rng().normal(size=(8, D)))
    return model


def no_gradient():
    return mlp().requires_grad_(False)


TWICE = r"make_model returned the same object \(or the same parameters\) twice"
DIFFERENT = "make_model made two different models from the same seed"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SHARED, ValueError, TWICE),
        (same_parameters, ValueError, TWICE),
        (same_memory, ValueError, TWICE),
        (own_generator, ValueError, DIFFERENT),
        (entropy, ValueError, DIFFERENT),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), ValueError, "a module with lazy parameters"),
        (lambda: nn.LazyBatchNorm2d(affine=False), ValueError, "a module with lazy parameters"),
        (lambda: None, TypeError, "make_model must return a torch.nn.Module, but returned NoneType"),
        (lambda: torch.relu, TypeError, "make_model must return a torch.nn.Module, but returned builtin"),
        (nn.Flatten, ValueError, "a module without a parameter that requires a gradient"),
        (no_gradient, ValueError, "a module without a parameter that requires a gradient"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_factories_that_do_as_they_like_are_refused(make, error, message):
    weight = WEIGHT.clone()
    with pytest.raises(error, match=message):
        fit_many(make, [Job(examples(), run=run) for run in range(2)], fit=ADAMW)
    assert torch.equal(WEIGHT, weight)


def test_a_factory_that_changes_its_mind_later_is_refused():
    calls = []

    def make():
        calls.append(1)
        model = mlp()
        if len(calls) > 3:
            model[1].weight.data += 1
        return model

    data = examples()
    with pytest.raises(ValueError, match="make_model made another model for run 0 than where the call was made"):
        fit_many(make, [Job(data, run=run) for run in range(2)], fit=ADAMW, strategy="loop")


def test_buffers_may_be_shared_and_weights_may_be_given():
    """A constant that all models look at is no shared parameter; nor are weights that each model has a copy of."""
    constant = torch.ones(3, dtype=torch.float64)

    class Constant(Flow):
        def __init__(self):
            super().__init__()
            self.register_buffer("constant", constant)
            self.linear.weight = nn.Parameter(WEIGHT.clone())

        def forward(self, x):
            return self.linear(x.flatten(1)) + self.constant

    weight = WEIGHT.clone()
    fit_many(lambda: Constant().double(), [Job(data, (0, 7), r) for data in [examples()] for r in (0, 1)], fit=SGD)
    assert torch.equal(WEIGHT, weight) and torch.equal(constant, torch.ones(3, dtype=torch.float64))


def test_a_bfloat16_model_is_a_model(tmp_path):
    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1).bfloat16()).double()

    for stored in (False, True):
        (fitted,) = fit_many(
            lambda: Half(D, 3).bfloat16(), [Job(examples())], fit=ADAMW, strategy="loop", store=tmp_path
        )
        assert fitted.stored is stored


# ----------------------------------------------------------------------------------------------------------------------
# What is given as arrays.


@pytest.mark.parametrize("kind", ["numpy", "read-only", "memmap", "whole", "part", "backwards", "columns", "raw"])
@pytest.mark.parametrize("store", [False, True])
def test_arrays_of_every_kind(kind, store, tmp_path):
    """And none of them warns: pytest makes errors of warnings."""
    plain = examples(ranked=False)
    x, y = plain.train[0].numpy(), plain.train[1].numpy()
    original = x.copy()
    if kind == "read-only":
        original.flags.writeable = False
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", x)
        original = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "whole":
        np.save(tmp_path / "x.npy", x)
        original = np.load(tmp_path / "x.npy", mmap_mode="r")[:]
    elif kind == "part":
        np.save(tmp_path / "x.npy", np.concatenate([x, x + 1]))
        original = np.load(tmp_path / "x.npy", mmap_mode="r")[:40]
    elif kind == "backwards":
        original = x[::-1].copy()[::-1]
    elif kind == "columns":
        original = np.asfortranarray(x)
    elif kind == "raw":
        x.tofile(tmp_path / "x.bin")
        original = np.memmap(tmp_path / "x.bin", dtype=x.dtype, mode="r", shape=x.shape)
    folder = tmp_path / "store" if store else None
    (fitted,) = fit_many(mlp, [Job(Examples((original, y), (original, y.astype("u1"))))], fit=ADAMW, store=folder)
    (expected,) = fit_many(mlp, [Job(Examples(plain.train, plain.train))], fit=ADAMW, strategy="loop")
    assert digest([fitted]) == digest([expected])


class Pairs(Dataset):
    def __init__(self, x, y):
        self.pairs = list(zip(x, y.tolist(), strict=True))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


@pytest.mark.parametrize(
    "wrap",
    [TensorDataset, Pairs, lambda x, y: DataLoader(Pairs(x, y), batch_size=7)],
    ids=["tensors", "pairs", "loader"],
)
def test_data_sets_are_read_once_and_trained_on_like_arrays(wrap):
    plain = examples()
    data = Examples(wrap(*plain.train), wrap(*plain.test), plain.ranks)
    for part, expected in zip(data.splits, plain.splits, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, expected, strict=True))
    results, expected = (fit_many(mlp, [Job(some, (0, 9))], fit=PLAIN) for some in (data, plain))
    assert digest(results) == digest(expected)


def test_a_data_set_without_labels_is_refused():
    x, y = split(6, 0)
    with pytest.raises(TypeError, match=r"train must give pairs \(inputs, labels\)"):
        Examples(TensorDataset(x), (x, y))


def test_former_names_still_work():
    x, y = split(6, 0)
    with pytest.warns(DeprecationWarning, match="Job"):
        job = retraining.Cell(Examples((x, y), (x, y)))
    with pytest.warns(DeprecationWarning, match="jobs"):
        (result,) = fit_many(mlp, cells=[job], fit=PLAIN)
    with pytest.warns(DeprecationWarning, match="job"):
        assert result.cell is job
    with pytest.warns(DeprecationWarning, match="JobResult"):
        assert isinstance(result, retraining.Fitted)
    with pytest.raises(AttributeError, match="nothing"):
        retraining.nothing  # noqa: B018


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_a_mapped_array_that_was_written_to_is_what_it_is_now(mode, tmp_path):
    x, y = examples(ranked=False).train
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    mapped *= 2
    train, test = inputs_of(Examples((mapped, y), (mapped, y)), (0, 18))
    assert torch.equal(train, 2 * x) and torch.equal(test, 2 * x)


def test_float32_float16_and_gradients():
    for dtype in (torch.float32, torch.float16):
        x, y = split(40, 1, dtype=dtype)
        x.requires_grad_()
        (fitted,) = fit_many(lambda: Sees().float(), [Job(Examples((x.float(), y), (x.float(), y)))], fit=ADAMW)
        assert 0 <= fitted.accuracy <= 1 and x.grad is None


# ----------------------------------------------------------------------------------------------------------------------
# Refusals.

X, Y = torch.randn(6, 2, 2), torch.arange(6) % 2
RANKS = order(6, 4)


def small_examples(train=(X, Y), test=(X, Y), **options):
    return Examples(train, test, **options)


BAD_EXAMPLES = [
    ({"train": X}, TypeError, r"train must be a pair \(inputs, labels\), a data set or a DataLoader, but is Tensor"),
    ({"test": (X, Y, Y)}, TypeError, "test must be a pair"),
    ({"train": (X.tolist(), Y)}, TypeError, "the inputs of train must be a tensor or array, but are list"),
    ({"test": (X, Y.tolist())}, TypeError, "the labels of test must be a tensor or array, but are list"),
    (
        {"train": (X[:, 0, 0], Y)},
        ValueError,
        r"the inputs of train must be \(N, ...\), none of it empty, but are \(6,\)",
    ),
    ({"train": (X[:0], Y[:0])}, ValueError, "none of it empty"),
    ({"test": (X[:0], Y[:0])}, ValueError, "the inputs of test must be .* none of it empty"),
    ({"train": (X, Y[:5])}, ValueError, r"the labels of train must be \(6,\), but are \(5,\)"),
    ({"train": (X, Y[:, None])}, ValueError, r"the labels of train must be \(6,\), but are \(6, 1\)"),
    ({"train": (X.long(), Y)}, TypeError, "the inputs of train must be floating-point, but are torch.int64"),
    ({"train": (X.to(torch.complex64), Y)}, TypeError, "the inputs of train must be floating-point"),
    ({"train": (X.bfloat16(), Y)}, TypeError, "bfloat16, which NumPy does not know; give float32"),
    ({"train": (X.numpy().astype(">f4"), Y)}, TypeError, "the inputs of train are >f4, which PyTorch does not know"),
    ({"train": (X.numpy().astype("g"), Y)}, TypeError, "the inputs of train are .f16, which PyTorch does not know"),
    ({"test": (X, Y.numpy().astype(">i4"))}, TypeError, "the labels of test are >i4, which PyTorch does not know"),
    ({"train": (X, Y.double())}, TypeError, "the labels of train must be integers, but are torch.float64"),
    ({"train": (X, Y.bool())}, TypeError, "the labels of train must be integers, but are torch.bool"),
    ({"test": (X, Y - 1)}, ValueError, "the labels of test must be classes from 0, but -1 is among them"),
    ({"test": (X, Y + 1)}, ValueError, r"the test labels \[2\] are of no training example"),
    ({"test": (X[:, :1], Y)}, ValueError, r"training inputs have shape \(6, 2, 2\), test inputs \(6, 1, 2\)"),
    ({"train": (X / 0, Y)}, ValueError, "the inputs of train contain NaN or infinity"),
    ({"test": (X * float("nan"), Y)}, ValueError, "the inputs of test contain NaN or infinity"),
    ({"mask_only": True}, ValueError, "mask_only and groups have a meaning with ranks only"),
    ({"groups": torch.zeros(2, 2).long()}, ValueError, "mask_only and groups have a meaning with ranks only"),
    ({"ranks": (RANKS, RANKS[:5])}, ValueError, r"the ranks of test examples must be \(6, 4\), but are \(5, 4\)"),
    (
        {"ranks": (RANKS[:, :3], RANKS)},
        ValueError,
        r"the ranks of training examples must be \(6, 4\), but are \(6, 3\)",
    ),
    ({"ranks": (RANKS.double(), RANKS)}, TypeError, "ranks must be signed integers, but are torch.float64"),
    ({"ranks": (RANKS, RANKS.byte())}, TypeError, "ranks must be signed integers, but are torch.uint8"),
    ({"ranks": (RANKS, RANKS), "groups": torch.zeros(4).long()}, ValueError, r"groups must be integers of .* \(2, 2\)"),
    ({"ranks": (RANKS, RANKS), "groups": torch.zeros(2, 2)}, ValueError, "groups must be integers of an input's shape"),
    ({"ranks": (RANKS, RANKS), "groups": torch.arange(4).view(2, 2) - 1}, ValueError, "some are negative"),
    ({"ranks": (RANKS, RANKS), "groups": torch.arange(4).view(2, 2) // 2}, ValueError, r"must be \(6, 2\)"),
    (
        {"fill": torch.zeros(3)},
        ValueError,
        r"fill must be finite and broadcast to an input \(2, 2\), but has shape \(3,\)",
    ),
    ({"fill": torch.zeros(6, 2, 2)}, ValueError, r"fill must .* but has shape \(6, 2, 2\)"),
    ({"fill": float("nan")}, ValueError, "fill must be finite .* but is NaN or infinite"),
    ({"fill": 1.0, "impute": noisy, "ranks": (RANKS, RANKS)}, ValueError, "impute says what removed elements become"),
    ({"mask_only": True, "impute": noisy, "ranks": (RANKS, RANKS)}, ValueError, "impute says what removed elements"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_EXAMPLES)
def test_bad_examples_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        small_examples(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"kept": (0, 5)},
            ValueError,
            r"kept must be places \(low, high\) with 0 <= low <= high <= 4, but is \(0, 5\)",
        ),
        ({"kept": (-1, 2)}, ValueError, "kept must be places"),
        ({"kept": (3, 2)}, ValueError, "kept must be places"),
        ({"kept": (0.5, 2)}, TypeError, "integer"),
        ({"run": -1}, ValueError, "run must be at least 0, but is -1"),
        ({"run": 1.5}, TypeError, "integer"),
        ({"kept": (0, 2)}, ValueError, "to keep some elements and not others, the examples need ranks"),
    ],
)
def test_bad_jobs_are_refused(options, error, message):
    ranks = None if "need ranks" in message else (RANKS, RANKS)
    with pytest.raises(error, match=message):
        Job(small_examples(ranks=ranks), **options)


COUNTS, RATES = ("epochs", "batch_size", "stack_size", "threads"), ("lr", "momentum", "weight_decay")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: value}, f"{name} must be an integer of at le") for name in COUNTS for value in (0, 1.0, True)),
        *(({name: value}, f"{name} must be a finite number") for name in RATES for value in (-0.1, math.nan, "1")),
        ({"optimizer": "adam"}, "optimizer must be 'adamw' or 'sgd', but is 'adam'"),
        ({"schedule": "cosine"}, "schedule must be 'linear' or 'constant', but is 'cosine'"),
        ({"devices": "cuda:0"}, r"devices must be a sequence of names, but is 'cuda:0'; write \['cuda:0'\]"),
        ({"devices": ["gpu"]}, "devices must be names such as 'cuda:0'"),
    ],
)  # fmt: skip
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jobs": []}, ValueError, "there is nothing to train: give at least one job"),
        ({"fit": 3}, TypeError, "fit must be a FitConfig or a function, but is int"),
        ({"strategy": "fast"}, ValueError, "one of 'auto', 'loop', 'channels_last', 'vmap', but is 'fast'"),
        ({"executor": 4}, TypeError, "executor must have the interface of concurrent.futures.Executor, but is 4"),
        ({"seed": 1.5}, TypeError, "integer"),
        ({"make_model": lambda: nn.Linear(4, 1)}, RuntimeError, "shape"),
        ({"make_model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 1))}, ValueError, "1 outputs, but label 1"),
        ({"make_model": lambda: nn.Linear(2, 2)}, ValueError, r"must return logits .* returned \(6, 2, 2\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_bad_calls_are_refused(options, error, message, strategy):
    options = {
        "make_model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        "jobs": [Job(small_examples())],
        **options,
    }
    before = states()
    with pytest.raises(error, match=message):
        fit_many(options.pop("make_model"), options.pop("jobs"), **{"strategy": strategy, **options})
    assert states() == before


def test_a_model_that_returns_no_tensor_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    with pytest.raises(ValueError, match=r"make_model return a module that picks them, as `model\(x\)\[0\]` does"):
        fit_many(lambda: Pair(2, 2), [Job(small_examples())], strategy="loop")


# ----------------------------------------------------------------------------------------------------------------------
# Stopping, and progress.


def test_progress_is_of_models_and_silent_by_default(capfd):
    data = examples()
    jobs = [Job(data, (0, 9)), Job(data, (0, 9)), Job(data, (9, 18))]
    fit_many(mlp, jobs, fit=ADAMW)
    assert capfd.readouterr() == ("", "")
    fit_many(mlp, jobs, fit=ADAMW, show_progress=True)
    assert "training: 100%" in (progress := capfd.readouterr().err) and "3/3" in progress


# ----------------------------------------------------------------------------------------------------------------------
# Memory.


@pytest.mark.parametrize(
    "kind", ["tensor", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("memmap", "impute"))]
)
def test_memory_is_that_of_a_masked_copy(kind, tmp_path):
    """60 MB of training examples: a loop holds one masked copy of them, an imputation two.

    Of a file, what is mapped counts as well (here, with the ranks, one and a half times the examples), although the
    system can take it back.
    """
    size = worker.write(tmp_path)
    peak = peak_bytes(functools.partial(worker.trains_on, tmp_path, kind))
    assert peak < {"tensor": 1.0, "memmap": 2.5, "impute": 2.0}[kind] * size + 40e6, f"{peak / 1e6:.0f} MB"


# ----------------------------------------------------------------------------------------------------------------------
# Adversarial training.


def test_adversarial_training_with_radius_0_is_training():
    data = examples(ranked=False)
    model = adversarial_fit(mlp, data.train, radius=0, fit=ADAMW, seed=5, run=2)
    expected, _ = plainly(mlp, data, (0, 18), 2, ADAMW, 5)
    assert not model.training
    for result, parameter in zip(model.parameters(), expected.parameters(), strict=True):
        assert_close(result, parameter, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarial_training_learns_from_the_worst_case(norm):
    """Of a linear model the worst case is known: the margin, less the radius times the dual norm of its gradient."""
    x, y = split(30, 1, (5,))
    y = (y > 0).long()
    config = FitConfig(epochs=2, batch_size=30, lr=0.05, optimizer="sgd", schedule="constant")
    options = {"norm": norm, "radius": 0.2, "step_size": 0.2, "n_steps": 3, "random_start": False}
    before = states()
    make = lambda: nn.Linear(5, 2).double()  # noqa: E731
    model = adversarial_fit(make, (x, y), fit=config, seed=1, **options)
    assert states() == before
    torch.manual_seed(plain_seed(1, "initial", 0))
    slow = nn.Linear(5, 2).double()
    optimizer = torch.optim.SGD(slow.parameters(), 0.05, momentum=0.9)
    for _ in range(2):
        with torch.no_grad():
            direction = (slow.weight[1] - slow.weight[0]) * (1 - 2 * y[:, None])
            unit = direction.sign() if norm == "linf" else direction / direction.norm(dim=1, keepdim=True)
        optimizer.zero_grad()
        cross_entropy(slow(x + 0.2 * unit), y).backward()
        optimizer.step()
    for result, expected in zip(model.parameters(), slow.parameters(), strict=True):
        assert_close(result, expected, rtol=0, atol=1e-9)


def test_adversarial_training_is_seeded():
    data = examples(ranked=False)
    torch.manual_seed(1)
    models = [adversarial_fit(mlp, data.train, radius=0.3, n_steps=2, fit=SGD, run=run) for run in (0, 0, 1)]
    weights = [model[1].weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.isclose(weights[0], weights[2]).any()


def test_adversarial_training_refuses():
    x, y = split(20, 1)
    with pytest.raises(TypeError, match="fit must be a FitConfig"):
        adversarial_fit(mlp, (x, y), radius=0.1, fit=len)
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        adversarial_fit(mlp, (x / 0, y), radius=0.1)
    with pytest.raises(TypeError, match="make_model must return"):
        adversarial_fit(lambda: None, (x, y), radius=0.1)
    with pytest.raises(ValueError, match="target holds class 8, but the model has 3 classes"):
        adversarial_fit(mlp, (x, y + 6), radius=0.1)


# ----------------------------------------------------------------------------------------------------------------------
# What a review found.


class Projected(nn.Module):
    """With a tensor that is drawn and is no buffer, which a stack would take from the first run's model."""

    def __init__(self):
        super().__init__()
        self.projection = torch.randn(D, 8, dtype=torch.float64)
        self.out = nn.Linear(8, 3).double()

    def forward(self, x):
        return self.out(x.flatten(1) @ self.projection)


def test_models_that_differ_in_more_than_parameters_are_not_stacked():
    jobs = [Job(examples(), (0, k), run) for run in range(2) for k in (3, 9)]
    looped, chosen = (fit_many(Projected, jobs, fit=ADAMW, strategy=strategy) for strategy in ("loop", "auto"))
    assert digest(looped) == digest(chosen)
    assert chosen[0].engine == "loop" and "differ in more than parameters" in chosen[0].reason
    with pytest.raises(ValueError, match="differ in more than parameters"):
        fit_many(Projected, jobs, fit=ADAMW, strategy="vmap")


def test_a_model_that_only_a_loop_can_evaluate_is_not_stacked():
    class Switching(nn.Linear):
        def forward(self, x):
            x = x.flatten(1)
            if not self.training and x.sum() > 0:
                x = x * 2
            return super().forward(x)

    fitted = fit_many(lambda: Switching(D, 3).double(), eight(examples()), fit=ADAMW)
    assert fitted[0].engine == "loop" and "vmap cannot run" in fitted[0].reason


@pytest.mark.parametrize("strategy", ["loop", "auto"])
def test_a_model_that_writes_to_its_input_writes_to_a_copy(strategy, tmp_path):
    class Writes(nn.Linear):
        def forward(self, x):
            x -= 0.5
            return super().forward(x.flatten(1))

    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward((x - 0.5).flatten(1))

    data = examples()
    before = [inputs.clone() for inputs, _ in (data.train, data.test)]
    jobs = [Job(data, run=run) for run in range(3)] + [Job(data, (0, 4), run) for run in range(3)]
    wrote, read = (
        fit_many(
            lambda kind=kind: kind(D, 3).double(), jobs, fit=ADAMW, strategy=strategy, store=tmp_path / kind.__name__
        )
        for kind in (Writes, Reads)
    )
    assert digest(wrote) == digest(read)
    assert torch.equal(data.train[0], before[0]) and torch.equal(data.test[0], before[1])


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_model_that_returns_nan_predicts_nothing(strategy):
    jobs = [Job(examples(), run=run) for run in range(2)]
    diverged = replace(ADAMW, lr=1e200)
    assert all(not f.correct.any() for f in fit_many(mlp, jobs, fit=diverged, strategy=strategy))


def test_weights_that_depend_on_the_number_of_threads_are_made_with_the_same(monkeypatch):
    def orthogonal():
        model = nn.Sequential(nn.Flatten(), nn.Linear(D, 300), nn.ReLU(), nn.Linear(300, 3)).double()
        nn.init.orthogonal_(model[1].weight)
        return model

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit_many(orthogonal, [Job(examples())], fit=ADAMW, strategy="loop")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_function_must_train_the_model_it_is_given():
    def returns_another(model, inputs, labels, seed):
        return mlp()

    with pytest.raises(TypeError, match="must train that one in place"):
        fit_many(mlp, [Job(examples())], fit=returns_another)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"make_model": mlp()}, TypeError, "must be a function that returns a new module"),
        ({"executor": type("Client", (), {"get_executor": None})()}, TypeError, "pass its executor"),
        ({"store": ""}, ValueError, "name a folder"),
        ({"strategy": "vmap", "fit": lambda *_: None}, ValueError, "cannot train with a function"),
    ],
)
def test_what_is_easily_mistaken_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_many(**{"make_model": mlp, "jobs": [Job(examples())], "fit": ADAMW, **arguments})


# ----------------------------------------------------------------------------------------------------------------------
# GPUs.


@pytest.mark.cuda
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("ranks_on", ["cpu", "cuda"])
def test_on_a_gpu(strategy, ranks_on):
    data = examples()
    jobs = [Job(data, kept, run) for run in range(2) for kept in ((0, 18), (0, 5), (5, 18))]
    expected = fit_many(mlp, jobs, fit=ADAMW, strategy="loop")
    there = Examples(
        *([a.cuda() for a in pair] for pair in (data.train, data.test)),
        ranks=tuple(r.to(ranks_on) for r in data.ranks),
    )
    moved = [Job(there, job.kept, job.run) for job in jobs]
    results = fit_many(mlp, moved, fit=ADAMW, strategy=strategy)
    assert digest(results) == digest(expected)
    dealt = fit_many(mlp, jobs, fit=FitConfig(**{**vars(ADAMW), "devices": ("cuda:0", "cpu")}), strategy=strategy)
    assert digest(dealt) == digest(expected)


@pytest.mark.cuda
def test_the_generator_of_a_gpu_is_left_alone():
    data = examples(dtype=torch.float32)
    config = FitConfig(**{**vars(ADAMW), "devices": ("cuda:0",)})
    before = torch.cuda.get_rng_state()
    first = fit_many(lambda: with_dropout().float(), [Job(data, (0, 9))], fit=config)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(3)
    assert digest(fit_many(lambda: with_dropout().float(), [Job(data, (0, 9))], fit=config)) == digest(first)


def test_volumes_are_trained_as_they_lie():
    x = torch.randn(12, 1, 4, 4, 4)
    data = Examples((x, torch.arange(12) % 2), (x, torch.arange(12) % 2))
    for layers in (
        [nn.Conv3d(1, 2, 3)],
        [nn.Conv3d(1, 2, 3), nn.Flatten(2), nn.Unflatten(2, (2, 4)), nn.Conv2d(2, 2, 1)],
    ):
        make = lambda layers=layers: nn.Sequential(*copy.deepcopy(layers), nn.Flatten(), nn.Linear(16, 2))  # noqa: E731
        fitted = fit_many(make, [Job(data, run=run) for run in range(2)], fit=FitConfig(epochs=1))
        assert all(f.correct.shape == (12,) for f in fitted)


def test_whole_examples_join_the_stack_of_masked_ones_on_the_same_arrays():
    masked = examples()
    whole, other = Examples(masked.train, masked.test), examples(mask_only=True)
    jobs = [*eight(masked), Job(whole, run=0), Job(whole, run=1), Job(other, (0, 9))]
    results = fit_many(mlp, jobs, fit=SGD)
    assert [result.engine for result in results] == [*["vmap"] * 10, "loop"]
    assert [result.job for result in results] == jobs
    alone = fit_many(mlp, jobs, fit=SGD, strategy="loop")
    assert all(torch.equal(a.correct, b.correct) for a, b in zip(results, alone, strict=True))


@pytest.mark.cuda
def test_examples_on_a_device_are_not_copied_to_the_host(monkeypatch):
    names = []
    (x, y), ranks = split(40, 3), order(40)
    on_device = Examples((x.cuda(), y.cuda()), (x.cuda(), y.cuda()), ranks=(ranks.cuda(), ranks.cuda()))
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "content_name", lambda array: names.append(array.shape) or "a number")
        results = fit_many(mlp, eight(on_device), fit=SGD)
    assert set(names) <= {()}  # what removed elements become
    on_host = fit_many(mlp, eight(Examples((x, y), (x, y), ranks=(ranks, ranks))), fit=SGD)
    assert all(torch.equal(a.correct, b.correct) for a, b in zip(results, on_host, strict=True))
