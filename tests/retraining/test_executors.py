"""The same models wherever they are trained: this process, threads, and the workers of three kinds of pools."""

import dataclasses
import functools
import itertools
import os
import random
import time
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import nn

from captum_density.retraining import Examples, FitConfig, Job, StoppedError, fit_many
from tests.processes import forkserver
from tests.retraining import retraining_worker as worker

MAKES = {"plain": worker.make, "dropout": worker.make_with_dropout}


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(1, forkserver()) as executor:
        yield executor


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(3) as executor:
        yield executor


@pytest.fixture(scope="module")
def loky():
    # Its worker ends after ten seconds without work if nothing else is said, and the next has PyTorch to load again.
    executor = pytest.importorskip("loky").get_reusable_executor(max_workers=1, timeout=600)
    yield executor
    executor.shutdown(wait=True)


@pytest.fixture(scope="module")
def dask():
    config = pytest.importorskip("dask").config
    distributed = pytest.importorskip("dask.distributed")
    forkserver()
    before = dict(os.environ)
    with warnings.catch_warnings(), config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        client = distributed.Client(cluster)
    yield client.get_executor(pure=False)
    client.close()
    cluster.close()
    for name in set(os.environ) - set(before):  # it sets the number of OpenMP's threads, and leaves it
        del os.environ[name]
    os.environ.update(before)


EXECUTORS = ["threads", "processes", "loky", "dask"]


@pytest.fixture
def executor(request):
    return request.getfixturevalue(request.param)


everywhere = pytest.mark.parametrize("executor", EXECUTORS, indirect=True)
sends_code = pytest.mark.parametrize("executor", ["loky", "dask"], indirect=True)


@functools.cache
def expected(make, strategy):
    fit = worker.slow_fit if strategy == "fit" else worker.CONFIG
    return worker.digest(
        fit_many(MAKES[make], worker.jobs(2), fit=fit, strategy="vmap" if strategy == "vmap" else "loop")
    )


@everywhere
@pytest.mark.parametrize(("make", "strategy"), [("plain", "vmap"), ("dropout", "loop"), ("plain", "fit")])
def test_the_same_models_everywhere(executor, make, strategy, tmp_path):
    fit = worker.slow_fit if strategy == "fit" else worker.CONFIG
    options = {"fit": fit, "strategy": "vmap" if strategy == "vmap" else "loop"}
    jobs = worker.jobs(2)
    before = torch.get_num_threads()
    fitted = fit_many(MAKES[make], jobs, **options, executor=executor, store=tmp_path)
    assert worker.digest(fitted) == expected(make, strategy)
    assert [f.job for f in fitted] == jobs and not any(f.stored for f in fitted)
    # What workers did is what this process would do.
    assert all(f.stored for f in fit_many(MAKES[make], jobs, **options, store=tmp_path))
    assert all(path.suffix == ".json" for path in tmp_path.iterdir())
    assert torch.get_num_threads() == before


@everywhere
def test_an_engine_is_chosen_by_a_worker(executor):
    jobs = worker.jobs(2)
    results = fit_many(worker.make_with_dropout, jobs, fit=worker.CONFIG, executor=executor)
    assert "draws random numbers" in results[0].reason
    assert worker.digest(results) == expected("dropout", "loop")


@sends_code
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_functions_without_a_name_are_sent_by_loky_and_dask(executor, strategy):
    width = 5
    make = lambda: nn.Sequential(nn.Linear(worker.D, width), nn.Linear(width, 3))  # noqa: E731
    results = fit_many(make, worker.jobs(1), fit=worker.CONFIG, strategy=strategy, executor=executor)
    assert worker.digest(results) == worker.digest(fit_many(make, worker.jobs(1), fit=worker.CONFIG, strategy="loop"))


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("what", ["make_model", "fit", "impute"])
def test_functions_without_a_name_cannot_be_sent_by_the_library(processes, strategy, what):
    data = worker.examples()
    make, fit = worker.make, worker.CONFIG
    if what == "make_model":
        make = lambda: worker.make()  # noqa: E731
    elif what == "fit":
        fit = lambda model, x, y, seed: None  # noqa: E731
    else:
        data = Examples(data.train, data.test, data.ranks, impute=lambda x, kept, generator: x)
    remedy = (
        r"cannot be sent to the executor's workers: .*Define it at the top of a module .*loky.get_reusable_executor"
    )
    with pytest.raises(TypeError, match=remedy):
        fit_many(make, [Job(data, (0, 4))], fit=fit, strategy=strategy, executor=processes)
    assert processes.submit(abs, -1).result() == 1  # and it is not broken by it


@everywhere
@pytest.mark.parametrize("strategy", ["auto", "loop"])
def test_what_a_worker_raises_arrives_and_what_is_finished_stays(executor, strategy, tmp_path):
    data = worker.examples()
    jobs = [Job(data, kept) for kept in ((0, worker.D), (0, 3), (3, worker.D), (4, 4))]
    with pytest.raises(ArithmeticError, match="nothing to see"):
        fit_many(worker.make_raising, jobs, fit=worker.CONFIG, strategy="loop", executor=executor, store=tmp_path)
    assert not list(tmp_path.glob("scratch-*"))
    again = fit_many(worker.make_raising, jobs[:3], fit=worker.CONFIG, strategy="loop", store=tmp_path)
    # All but what was under way, at most one for each worker.
    assert sum(f.stored for f in again) >= 1
    assert worker.digest(again) == worker.digest(
        fit_many(worker.make_raising, jobs[:3], fit=worker.CONFIG, strategy="loop")
    )


class Ordered(Executor):
    """Does all of it at once, the last first, so that everything is finished when the first result is looked at."""

    def __init__(self):
        self.pieces = []

    def submit(self, function, /, *arguments):
        future = Future()
        self.pieces.append((future, function, arguments))
        if len(self.pieces) == 4:
            for waiting, do, with_what in reversed(self.pieces):
                try:
                    waiting.set_result(do(*with_what))
                except ArithmeticError as error:
                    waiting.set_exception(error)
        return future


def test_what_is_finished_when_another_fails_is_kept(tmp_path):
    data = worker.examples()
    jobs = [Job(data, kept) for kept in ((4, 4), (0, worker.D), (0, 3), (3, worker.D))]
    for attempt in range(4):  # in whatever order finished ones are looked at
        store = tmp_path / str(attempt)
        with pytest.raises(ArithmeticError, match="nothing to see"):
            fit_many(worker.make_raising, jobs, fit=worker.CONFIG, strategy="loop", executor=Ordered(), store=store)
        assert len(list(store.glob("*.json"))) == 3


def dies(model, inputs, labels, seed):
    os._exit(3)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_of(tmp_path):
    with (
        ProcessPoolExecutor(1, forkserver()) as executor,
        pytest.raises(RuntimeError, match="a worker of the executor ended abruptly") as raised,
    ):
        fit_many(worker.make, worker.jobs(1), fit=dies, executor=executor, store=tmp_path)
    assert isinstance(raised.value.__cause__, BrokenExecutor)
    assert not list(tmp_path.iterdir())


def test_an_error_stops_what_runs(processes, tmp_path):
    """Half a minute of work that nobody waits for any more ends as well."""
    _, slow = worker.fast_and_slow()
    data = worker.examples()
    jobs = [Job(data, (4, 4)), slow[0]]
    start = time.monotonic()
    with pytest.raises(ArithmeticError, match="nothing to see"):
        fit_many(worker.make_raising, jobs, fit=worker.LONG, strategy="loop", executor=processes)
    assert [processes.submit(abs, -i).result() for i in range(4)] == [0, 1, 2, 3]
    assert time.monotonic() - start < 10


def test_what_waits_behind_an_error_is_cancelled():
    futures = []

    class Records(ThreadPoolExecutor):
        """One worker, whose second job lasts until the last is cancelled."""

        def submit(self, function, work):
            number = len(futures)
            futures.append(super().submit(self.fit, number, function, work))
            return futures[-1]

        @staticmethod
        def fit(number, function, work):
            end = time.monotonic() + 30
            while number and not futures[-1].cancelled() and time.monotonic() < end:
                time.sleep(0.01)
            return function(work)

    jobs = [Job(worker.examples(), (4, 4), run) for run in range(5)]
    with Records(1) as executor, pytest.raises(ArithmeticError, match="nothing to see"):
        fit_many(worker.make_raising, jobs, fit=worker.CONFIG, strategy="loop", executor=executor)
    assert len(futures) == 5
    assert all(future.cancelled() for future in futures[2:])  # the second may have begun


def test_others_may_draw_while_an_engine_is_chosen():
    """As the threads of a Dask worker do, now and then; here in the first passes."""
    passes = itertools.count()

    class Disturbed(nn.Linear):
        def forward(self, x):
            if next(passes) < 3:
                random.random()
            return super().forward(x)

    results = fit_many(lambda: Disturbed(worker.D, 3), worker.jobs(2), fit=worker.CONFIG)
    assert results[0].engine == "vmap"


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_work_is_dealt_over_devices(strategy):
    data, pieces = worker.examples(), []

    class Records(ThreadPoolExecutor):
        def submit(self, function, work):
            pieces.append((work.device, len(work.runs)))
            return super().submit(function, work)

    class Where(nn.Linear):
        def forward(self, x):
            assert x.device == self.weight.device
            return super().forward(x)

    def make():
        return Where(worker.D, 3)

    jobs = [Job(data, (0, 4), run) for run in range(4)]
    config = FitConfig(**{**vars(worker.CONFIG), "devices": ["cpu", torch.device("cpu", 0)], "stack_size": 2})
    with Records(2) as executor:
        dealt = fit_many(make, jobs, fit=config, strategy=strategy, executor=executor)
    expected = [("cpu", 1), ("cpu:0", 1)] * 2 if strategy == "loop" else [("cpu", 2), ("cpu", 2), ("cpu:0", 2)]
    assert pieces == expected  # of a stack, the trial comes first
    plain = fit_many(make, jobs, fit=worker.CONFIG, strategy=strategy)
    assert worker.digest(dealt) == worker.digest(plain)


def test_workers_in_another_folder_find_what_they_need(loky, tmp_path, monkeypatch):
    before = os.getcwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    loky.submit(os.chdir, str(tmp_path / "elsewhere")).result()  # there is one
    try:
        options = {"fit": worker.CONFIG, "strategy": "loop", "executor": loky, "store": "store"}
        fitted = fit_many(worker.make, worker.jobs(1), **options)
    finally:
        loky.submit(os.chdir, before).result()
    assert worker.digest(fitted) == worker.digest(fit_many(worker.make, worker.jobs(1), fit=worker.CONFIG))


def test_an_executor_that_loses_the_examples_is_told_of(tmp_path):
    class Elsewhere(ThreadPoolExecutor):
        """Of another machine, which sees other files."""

        def submit(self, function, work):
            return super().submit(function, dataclasses.replace(work, alive=tmp_path / "not here"))

    with Elsewhere(1) as executor, pytest.raises(StoppedError, match="or this machine cannot see"):
        fit_many(worker.make, worker.jobs(1), fit=worker.CONFIG, strategy="loop", executor=executor)


@pytest.mark.cuda
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_workers_share_a_gpu(processes, strategy):
    config = FitConfig(**{**vars(worker.CONFIG), "devices": ("cuda:0",)})
    jobs = worker.jobs(2)
    here = fit_many(worker.make, jobs, fit=config, strategy=strategy)
    there = fit_many(worker.make, jobs, fit=config, strategy=strategy, executor=processes)
    assert worker.digest(here) == worker.digest(there)
