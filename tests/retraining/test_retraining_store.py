"""The store: ended at any moment and resumed, files that do not prove themselves, and what makes a job another."""

import base64
import errno
import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from captum_density.retraining import Examples, FitConfig, Job, fit_many
from tests.processes import forkserver
from tests.retraining import retraining_worker as worker
from tests.retraining.modules import distinct, loader

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def run(store, *, jobs=None, make=worker.make, fit=worker.CONFIG, strategy="loop", **options):
    return fit_many(make, worker.jobs(1) if jobs is None else jobs, fit=fit, strategy=strategy, store=store, **options)


def files(store):
    return sorted(path for path in store.iterdir() if path.suffix == ".json")


def keys(folder, **options):
    run(folder, **options)
    result = {path.stem for path in files(folder)}
    shutil.rmtree(folder)
    return result


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


# ----------------------------------------------------------------------------------------------------------------------
# Finished jobs.


@pytest.mark.parametrize("strategy", ["loop", "vmap", "auto"])
def test_what_is_finished_is_not_done_again(strategy, store):
    calls = []

    def make():
        calls.append(1)
        return worker.make()

    first = run(store, make=make, strategy=strategy, jobs=worker.jobs(2))
    n_models = len(calls)
    again = run(store, make=make, strategy=strategy, jobs=worker.jobs(2))
    # To know the model of each run, and of the first that it is no other; and, for a stack, to try two steps.
    assert len(calls) - n_models <= 2 * 2 + 1 + (0 if strategy == "loop" else 5)
    assert all(f.stored and f.seconds == 0 for f in again) and not any(f.stored for f in first)
    assert worker.digest(again) == worker.digest(first)
    assert [(f.engine, f.reason) for f in again] == [(f.engine, f.reason) for f in first]
    more = run(store, make=make, strategy=strategy, jobs=worker.jobs(3))
    assert sum(f.stored for f in more) == 8
    assert worker.digest(more[:8]) == worker.digest(first)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_missing_job_is_done_again_alone(strategy, store):
    first = run(store, strategy=strategy)
    jobs = [path for path in files(store) if "correct" in json.loads(path.read_bytes())["result"]]
    assert len(jobs) == 4
    jobs[2].unlink()
    times = {path: path.stat().st_mtime_ns for path in files(store)}
    again = run(store, strategy=strategy)
    assert sum(f.stored for f in again) == 3
    assert worker.digest(again) == worker.digest(first)
    assert {path: path.stat().st_mtime_ns for path in files(store) if path in times} == times


def test_a_file_is_json_that_says_what_it_is_of(store):
    fitted = run(store)
    assert (
        sorted(path.name for path in store.iterdir()) == [path.name for path in files(store)] and len(files(store)) == 4
    )
    correct = set()
    for path in files(store):
        content = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(content["identity"], sort_keys=True, separators=(",", ":"))
        assert content["key"] == path.stem == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        assert content["metadata"].keys() == {"seconds", "engine", "host", "python", "torch", "written"}
        bits = np.unpackbits(np.frombuffer(base64.b64decode(content["result"]["correct"]), np.uint8))
        correct.add(tuple(bits[: content["result"]["n"]].tolist()))
    assert correct == {tuple(f.correct.int().tolist()) for f in fitted}


def test_a_relative_store_is_one_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def fit(model, x, y, seed):
        os.chdir(tmp_path / "elsewhere")

    run("store", fit=fit)
    assert len(files(tmp_path / "store")) == 4 and not list((tmp_path / "elsewhere").iterdir())


# ----------------------------------------------------------------------------------------------------------------------
# Files that do not prove themselves.


def edited(text, **changes):
    return json.dumps({**json.loads(text), **changes}).encode()


def flipped(text):
    content = json.loads(text)
    bits = bytearray(base64.b64decode(content["result"]["correct"]))
    bits[0] ^= 0x80
    content["result"]["correct"] = base64.b64encode(bits).decode()
    return json.dumps(content).encode()


def longer(text):
    content = json.loads(text)
    content["result"]["n"] -= 1
    return json.dumps(content).encode()


DAMAGES = {
    "empty": lambda text, other: b"",
    "truncated": lambda text, other: text[: len(text) // 2],
    "one byte short": lambda text, other: text[:-1],
    "not text": lambda text, other: b"\xff\xfe\x00" + text,
    "zeros": lambda text, other: bytes(len(text)),
    "null": lambda text, other: b"null",
    "list": lambda text, other: b"[]",
    "nested": lambda text, other: b"[" * 100000,
    "another job": lambda text, other: other,
    "another job's identity": lambda text, other: edited(text, identity=json.loads(other)["identity"]),
    "another key": lambda text, other: edited(text, key="0" * 32),
    "another version": lambda text, other: edited(text, schema=0),
    "no version": lambda text, other: json.dumps({"key": 1}).encode(),
    "a bit": lambda text, other: flipped(text),
    "a number": lambda text, other: longer(text),
    "no proof": lambda text, other: edited(text, proof=None),
    "not a number": lambda text, other: edited(text, identity=float("nan")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_kept_and_done_again(damage, store):
    first = run(store)
    path, other = files(store)[:2]
    good = path.read_bytes()
    bad = DAMAGES[damage](good, other.read_bytes())
    assert bad != good
    path.write_bytes(bad)
    with pytest.warns(
        UserWarning, match=re.escape(str(path)) + " is no finished work .* it is computed again"
    ) as warned:
        again = run(store)
    assert len(warned) == 1
    assert sum(f.stored for f in again) == 3 and worker.digest(again) == worker.digest(first)
    (aside,) = store.glob("*.rejected-*")
    assert aside.read_bytes() == bad and aside.name.startswith(path.name) and aside.name in str(warned[0].message)
    assert json.loads(path.read_bytes())["result"] == json.loads(good)["result"]
    assert all(f.stored for f in run(store))
    path.write_bytes(bad)
    with pytest.warns(UserWarning, match="is no finished work"):
        run(store)
    assert len(list(store.glob("*.rejected-*"))) == 2  # the first is still there


# ----------------------------------------------------------------------------------------------------------------------
# Places that cannot be written to.


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "store").write_text("mine", encoding="ascii")
    calls = []

    def make():
        calls.append(1)
        return worker.make()

    for path in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(OSError, match="the store cannot be written to") as raised:
            run(path, make=make)
        assert str(path) in str(raised.value)
    assert not calls and (tmp_path / "store").read_text(encoding="ascii") == "mine"


def test_a_folder_that_cannot_be_written_to(store, monkeypatch):
    store.mkdir(mode=0o500)
    if os.access(store, os.W_OK):  # as root, whom modes do not stop

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"the store cannot be written to \(Permission denied\)"):
        run(store)


def test_a_disk_that_is_full_keeps_what_is_finished(store):
    """For real: the system refuses to write more than some bytes to a file, from the third job on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    calls = []

    def fit(model, x, y, seed):
        calls.append(1)
        if len(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    expected = run(None, fit=worker.slow_fit)
    try:
        with pytest.raises(
            OSError, match=r"finished work cannot be written .*; what was written before is kept"
        ) as raised:
            run(store, fit=fit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG and str(store) in str(raised.value)
    assert len(files(store)) == 2 and not list(store.glob("*.tmp"))
    assert all("correct" in json.loads(path.read_bytes())["result"] for path in files(store))
    assert len(expected) == 4


def test_a_small_disk(tmp_path):
    """A file system of 64 kB, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        jobs = worker.jobs(8)
        with pytest.raises(OSError, match=r"finished work cannot be written \(No space left on device\)"):
            run(disk, jobs=jobs)
        finished = len(files(disk))
        assert 0 < finished < 32
        moved = tmp_path / "moved"
        shutil.copytree(disk, moved)
        assert sum(f.stored for f in run(moved, jobs=jobs)) == finished
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_store_that_goes_away_while_it_is_used(store):
    calls = []

    def fit(model, x, y, seed):
        calls.append(1)
        if len(calls) == 3:
            shutil.rmtree(store)

    with pytest.raises(FileNotFoundError, match="finished work cannot be written"):
        run(store, fit=fit)


# ----------------------------------------------------------------------------------------------------------------------
# Several at once.


def started(call, *arguments):
    process = forkserver().Process(target=call, args=arguments)
    process.start()
    return process


# ----------------------------------------------------------------------------------------------------------------------
# Ended from outside.


@pytest.fixture(scope="module")
def stopped_calls(tmp_path_factory):
    """The folder in which calls were made whose process was killed, and what came of them."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "store").mkdir()
    process = started(worker.kills, folder)
    process.join(120)
    assert process.exitcode == 0
    return folder, json.loads((folder / "results.json").read_text(encoding="ascii"))


@linux
def test_killed_and_resumed(stopped_calls):
    folder, results = stopped_calls
    store, jobs = folder / "store", worker.jobs(worker.RUNS)
    assert results["digest"] == worker.digest(fit_many(worker.make, jobs, fit=worker.slow_fit))
    assert results["killed"] == 5 and 15 > results["stored"] == results["before"] >= 4
    assert not list(store.glob("*.rejected-*"))
    attempts = {}
    for line in (folder / "started.txt").read_text(encoding="ascii").splitlines():
        pid, what = line.split(maxsplit=1)
        attempts.setdefault(pid, []).append(what)
    # Whatever a killed attempt had begun but the last of it was finished, and is not begun again.
    finished = set()
    for begun in list(attempts.values())[1:-2]:  # the first loads what is needed, the last two are of the next test
        assert not finished & set(begun)
        finished |= set(begun[:-1])
    assert len({what for begun in attempts.values() for what in begun}) == len(jobs)
    # The same jobs in this process, whose hashes of words are others.
    assert all(f.stored for f in fit_many(worker.make, jobs, fit=worker.slow_fit, store=store))


@linux
def test_two_processes_on_one_store(stopped_calls):
    folder, results = stopped_calls
    assert results["ended"] == [0, 0]
    assert set(results["both"]) == {worker.digest(fit_many(worker.make, worker.jobs(2), fit=worker.slow_fit))}
    assert len(list((folder / "both").iterdir())) == len(files(folder / "both")) == 8


def workers_of(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def n_jobs(store):
    return len([path for path in store.glob("*.json") if not path.name.startswith("probe")])


@linux
def test_workers_go_with_who_started_them(tmp_path):
    """With who was killed, and with who was interrupted."""
    stores = {signal.SIGKILL: tmp_path / "killed", signal.SIGINT: tmp_path / "interrupted"}
    processes = {how: started(worker.pool, store, 1) for how, store in stores.items()}
    fast, _ = worker.fast_and_slow()
    expected = worker.digest(fit_many(worker.make, fast, fit=worker.LONG, strategy="loop"))
    try:
        for how, process in processes.items():
            store = stores[how]
            assert wait(lambda store=store, process=process: n_jobs(store) == 4 or not process.is_alive(), 90)
            assert process.is_alive()
            wait(lambda: False, 0.5)  # the slow ones have begun
            children = workers_of(process.pid)
            assert any(map(alive, children))
            assert len(list(store.glob("scratch-*"))) == 1
            os.kill(process.pid, how)
            process.join(15)
            assert not process.is_alive()
            assert wait(lambda children=children: not any(map(alive, children)), 15), "workers stay"
            assert len(list(store.glob("scratch-*"))) == (how == signal.SIGKILL)
            with ThreadPoolExecutor(1) as executor:
                again = fit_many(worker.make, fast, fit=worker.LONG, strategy="loop", store=store, executor=executor)
            assert all(f.stored for f in again) and not list(store.glob("scratch-*"))
            assert worker.digest(again) == expected
    finally:
        for process in processes.values():
            end_group(process)


def end_group(process):
    """Whatever is left of it, so that a failure is one and no waiting."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have a group of its own yet
    process.join()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_call_with_workers_is_killed_at_random_moments(seed, store):
    """The whole group or its head alone, while workers start, work or are told what to do."""
    delays = random.Random(seed)
    for _ in range(2):
        process = started(worker.pool, store, 2)
        time.sleep(delays.uniform(0.05, 4))
        children = workers_of(process.pid)
        with suppress(ProcessLookupError):  # where it has no group of its own yet
            (os.killpg if delays.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
        process.kill()
        process.join(10)
        # A worker that has been given nothing yet knows of nobody to leave with, and stays: the standard library's own.
        wait(lambda children=children: not any(map(alive, children)), 3)
        end_group(process)
    jobs, _ = worker.fast_and_slow()
    with ThreadPoolExecutor(1) as executor:
        again = fit_many(worker.make, jobs, fit=worker.LONG, strategy="loop", store=store, executor=executor)
    assert worker.digest(again) == worker.digest(fit_many(worker.make, jobs, fit=worker.LONG, strategy="loop"))
    assert not list(store.glob("*.rejected-*")) and not list(store.glob("scratch-*"))


# ----------------------------------------------------------------------------------------------------------------------
# What makes a job another, and what does not.

EXAMPLES = worker.examples()


def options_of(data=EXAMPLES, **changes):
    names = ("train", "test", "ranks", "groups", "fill", "impute", "mask_only")
    return Examples(**{**{name: getattr(data, name) for name in names}, **changes})


def one(data=EXAMPLES, kept=(0, 5), run=0):
    return [Job(data, kept, run)]


def plus(x, kept, *, generator):
    return x + 1


def times(x, kept, *, generator, factor=2):
    return x * factor


(TRAIN_X, TRAIN_Y), (TEST_X, TEST_Y) = EXAMPLES.train, EXAMPLES.test
GROUPS = torch.arange(12) // 2
GROUPED = options_of(ranks=(EXAMPLES.ranks[0].argsort(1)[:, :6] // 2, EXAMPLES.ranks[1][:, :6] // 2), groups=GROUPS)


def changed(array, value):
    array = array.clone()
    array.view(-1)[-1] = value
    return array


DATA = {
    "training inputs": one(options_of(train=(changed(TRAIN_X, 9), TRAIN_Y))),
    "a last digit": one(options_of(train=(changed(TRAIN_X, TRAIN_X.flatten()[-1] * (1 + 2e-7)), TRAIN_Y))),
    "training labels": one(options_of(train=(TRAIN_X, changed(TRAIN_Y, 1 - TRAIN_Y[-1] % 2)))),
    "test inputs": one(options_of(test=(changed(TEST_X, 9), TEST_Y))),
    "test labels": one(options_of(test=(TEST_X, changed(TEST_Y, (TEST_Y[-1] + 1) % 3)))),
    "type": one(options_of(train=(TRAIN_X, TRAIN_Y.int()))),
    "training ranks": one(options_of(ranks=(EXAMPLES.ranks[0].flip(0), EXAMPLES.ranks[1]))),
    "test ranks": one(options_of(ranks=(EXAMPLES.ranks[0], EXAMPLES.ranks[1].flip(0)))),
    "fill": one(options_of(fill=0.1)),
    "fill tensor": one(options_of(fill=torch.arange(12.0))),
    "groups": one(GROUPED),
    "other groups": one(options_of(GROUPED, groups=GROUPS.flip(0).contiguous())),
    "mask": one(options_of(mask_only=True)),
    "impute": one(options_of(impute=plus)),
    "impute otherwise": one(options_of(impute=times)),
    "impute by 3": one(options_of(impute=functools.partial(times, factor=3))),
    "impute by 4": one(options_of(impute=functools.partial(times, factor=4))),
    "low": one(kept=(1, 5)),
    "high": one(kept=(0, 6)),
    "whole": one(kept=(0, 12)),
    "run": one(run=1),
}
FITS = {
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 17},
    "lr": {"lr": 0.021},
    "optimizer": {"optimizer": "sgd"},
    "momentum": {"momentum": 0.8},
    "weight_decay": {"weight_decay": 0.1},
    "schedule": {"schedule": "constant"},
    "threads": {"threads": 2},
}


def test_a_job_is_known_by_its_data_and_its_configuration(tmp_path):
    result = {"as it was": keys(tmp_path / "s", jobs=one())}
    result |= {name: keys(tmp_path / "s", jobs=jobs) for name, jobs in DATA.items()}
    for name, change in FITS.items():
        result[name] = keys(tmp_path / "s", jobs=one(), fit=FitConfig(**{**vars(worker.CONFIG), **change}))
    assert set(FITS) == set(vars(worker.CONFIG)) - {"stack_size", "devices"}
    result["seed"] = keys(tmp_path / "s", jobs=one(), seed=1)
    result["engine"] = keys(tmp_path / "s", jobs=one(), strategy="vmap")
    names = [key for some in result.values() for key in some]
    assert len(names) == len(result)
    assert len(set(names)) == len(names), [name for name, some in result.items() if names.count(min(some)) > 1]


def test_a_job_is_the_same_however_it_is_asked_for(tmp_path):
    jobs = worker.jobs(2)
    expected = keys(tmp_path / "s", jobs=jobs)
    assert keys(tmp_path / "s", jobs=jobs[::-1]) == expected
    assert keys(tmp_path / "s", jobs=[*jobs, *jobs]) == expected
    assert keys(tmp_path / "s", jobs=jobs, show_progress=True) == expected
    assert set().union(*(keys(tmp_path / "s", jobs=[job]) for job in jobs)) == expected
    for change in ({"stack_size": 2}, {"devices": ("cpu", "cpu:0")}):
        fit = FitConfig(**{**vars(worker.CONFIG), **change})
        assert keys(tmp_path / "s", jobs=jobs, fit=fit) == expected
    with ThreadPoolExecutor(2) as executor:
        assert keys(tmp_path / "s", jobs=jobs, executor=executor) == expected
    np.save(tmp_path / "x.npy", TRAIN_X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x in (TRAIN_X.numpy(), mapped, TRAIN_X.t().contiguous().t(), TRAIN_X.clone().requires_grad_()):
        same = options_of(train=(x, TRAIN_Y.numpy()))
        alike = [Job(same, job.kept, np.int64(job.run)) for job in jobs]
        assert keys(tmp_path / "s", jobs=alike, seed=np.int64(0)) == expected
    torch.manual_seed(9)
    torch.set_num_threads(before := torch.get_num_threads())
    assert torch.get_num_threads() == before and keys(tmp_path / "s", jobs=jobs) == expected


def test_a_job_is_the_same_whatever_other_examples_are_asked_for(tmp_path):
    other = options_of(test=(TEST_X + 1, TEST_Y))
    both = [*one(), *one(other)]
    expected = keys(tmp_path / "s", jobs=both)
    assert keys(tmp_path / "s", jobs=both[::-1]) == expected
    assert keys(tmp_path / "s", jobs=one()) | keys(tmp_path / "s", jobs=one(other)) == expected


# Models.


def test_a_job_is_known_by_its_model(tmp_path, load):
    def key(make):
        return min(keys(tmp_path / "s", jobs=one(), make=make))

    result = {"as it was": key(load().Net)}
    options = {"activation": {"activation": torch.tanh}, "dropout": {"drop": 0.2}, "attributes": {"p": 0.4}}
    result |= {name: key(functools.partial(load().Net, **some)) for name, some in options.items()}
    for name, old, new in [
        ("code", "x * 1.1", "x * 1.2"),
        ("code of a base", "dropout(x, 0.3,", "dropout(x, 0.4,"),
        ("layer", "nn.Dropout(drop)", "nn.Dropout1d(drop)"),
        ("parameters", "nn.Linear(12, 12)", "nn.Linear(12, 12, bias=False)"),
        ("attention's rate", "attention_rate=0.1", "attention_rate=0.2"),
    ]:
        result[name] = key(load(old, new).Net)
    result |= {"ReLU": key(lambda: nn.Sequential(nn.Linear(12, 3), nn.ReLU()))}
    result |= {"Tanh": key(lambda: nn.Sequential(nn.Linear(12, 3), nn.Tanh()))}
    distinct(result)
    again = load()
    assert key(again.Net) == key(functools.partial(again.Net, p=0.3)) == result["as it was"]


def test_runs_that_start_alike_are_different_cells(tmp_path):
    """With weights that are given, as from another training, a run is an order of batches."""

    def make():
        model = nn.Linear(12, 3)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        return model

    plain = keys(tmp_path / "s", jobs=one(), make=make)
    distinct(
        {
            "plain": min(plain),
            **{
                "run": min(keys(tmp_path / "s", jobs=one(run=1), make=make)),
                "seed": min(keys(tmp_path / "s", jobs=one(), make=make, seed=1)),
            },
        }
    )


@pytest.mark.parametrize(("module", "name"), [("Net", "p"), ("attention", "dropout")])
def test_a_rate_that_only_an_attribute_tells(tmp_path, load, module, name):
    """Of which neither a text nor an output in evaluation mode says anything."""
    net, result = load(), []
    for rate in (0.3, 0.4, 0.3):

        def make(rate=rate):
            model = net.Net()
            setattr(model if module == "Net" else model.attention, name, rate)
            return model

        result.append(keys(tmp_path / "s", jobs=one(), make=make))
    assert result[0] != result[1] and result[0] == result[2]


def test_a_class_of_a_notebook_is_known_by_its_code(tmp_path):
    """There is no file to read its text from."""
    text = "class Net(nn.Linear):\n def forward(self, x):\n  return super().forward(x * 1.1 if self.training else x)"
    result = []
    for written in (text, text.replace("1.1", "1.2"), text):
        job = {"nn": nn, "__name__": "__main__"}
        exec(compile(written, "<job>", "exec"), job)
        result.append(keys(tmp_path / "s", jobs=one(), make=functools.partial(job["Net"], 12, 3)))
    assert result[0] != result[1] and result[0] == result[2]


def test_an_object_that_makes_models_is_known_again(tmp_path, load):
    """Where it lies in memory is no part of it; nor is that of a function that a module shows."""

    texts = []  # which lie in different places, as long as all of them live

    class Shows(nn.Linear):
        def extra_repr(self):
            texts.append(object())
            return f"{texts[-1]}"

    net = load()
    kept = [net.Factory(), net.Factory()]
    assert keys(tmp_path / "s", jobs=one(), make=kept[0]) == keys(tmp_path / "s", jobs=one(), make=kept[1])
    assert len({min(keys(tmp_path / "s", jobs=one(), make=lambda: Shows(12, 3))) for _ in range(3)}) == 1


def test_a_job_is_known_by_the_function_that_trains(tmp_path, load):
    edits = [], ["rate * 2", "rate * 3"], []
    one, other, again = (keys(tmp_path / "s", fit=load(*edit).fit) for edit in edits)
    assert one == again and not one & other


def test_what_cannot_be_known_again_is_refused(store):
    class Nameless:
        __slots__ = ()

    value = Nameless()

    def fit(model, x, y, seed):
        assert value is not None

    with pytest.raises(TypeError, match=r"cannot be told from another Nameless in a later process.*do without a store"):
        run(store, fit=fit)
    assert len(run(None, fit=fit)) == 4


def test_a_function_that_knows_itself(store):
    def fit(model, x, y, seed, again=True):
        if again:
            fit(model, x, y, seed, again=False)

    assert not any(f.stored for f in run(store, fit=fit)) and all(f.stored for f in run(store, fit=fit))


# ----------------------------------------------------------------------------------------------------------------------
# What neither text nor values tell.


RATE = 0.5
DTYPE, D = EXAMPLES.train[0].dtype, EXAMPLES.train[0][0].numel()
ADAMW = FitConfig(epochs=2, batch_size=16)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 20, dtype=DTYPE), nn.ReLU(), nn.Linear(20, 4, dtype=DTYPE))


def _reads_a_global(x, training):
    return nn.functional.dropout(x, RATE, training)


class Hidden(nn.Module):
    def __init__(self, *, private=0.5, config=0.5, frozen=False, hook=False, in_global=False):
        super().__init__()
        self.hidden, self.out = nn.Linear(D, 20, dtype=DTYPE), nn.Linear(20, 4, dtype=DTYPE)
        self._private, self.config, self._in_global = private, {"dropout": config}, in_global
        self.hidden.weight.requires_grad_(not frozen)
        if hook:
            self.hidden.register_forward_hook(lambda module, _, y: y * 0.5 if module.training else y)

    def forward(self, x):
        x = nn.functional.dropout(self.hidden(x.flatten(1)).relu(), self._private, self.training)
        x = nn.functional.dropout(x, self.config["dropout"], self.training)
        return self.out(_reads_a_global(x, self.training) if self._in_global else x)


HIDDEN = {
    "as it is": {},
    "private attribute": {"private": 0.1},
    "attribute that is a mapping": {"config": 0.1},
    "frozen": {"frozen": True},
    "hook": {"hook": True},
    "global": {"in_global": True},
}


def _stored(make, store, **options):
    fitted = fit_many(make, [Job(options.pop("examples", EXAMPLES), (0, 6))], store=store, **{"fit": ADAMW, **options})
    return fitted[0].stored


def test_a_model_is_known_by_what_training_does_with_it(tmp_path):
    for name, options in HIDDEN.items():
        assert not _stored(lambda options=options: Hidden(**options), tmp_path), name
        assert _stored(lambda options=options: Hidden(**options), tmp_path), name


def test_a_model_is_known_by_the_globals_it_reads(tmp_path, monkeypatch):
    make = functools.partial(Hidden, in_global=True)
    assert not _stored(make, tmp_path) and _stored(make, tmp_path)
    monkeypatch.setitem(globals(), "RATE", 0.1)
    assert not _stored(make, tmp_path)


LEARNING_RATE = 0.1


def _step_size():
    return LEARNING_RATE


def _fit_by_global(model, x, y, seed):
    optimizer = torch.optim.SGD(model.parameters(), lr=_step_size())
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_a_function_is_known_by_the_globals_it_and_its_helpers_read(tmp_path, monkeypatch):
    assert not _stored(mlp, tmp_path, fit=_fit_by_global) and _stored(mlp, tmp_path, fit=_fit_by_global)
    monkeypatch.setitem(globals(), "LEARNING_RATE", 0.3)
    assert not _stored(mlp, tmp_path, fit=_fit_by_global)


class Filling(nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level = level

    def __repr__(self):
        return "Filling()"

    def forward(self, inputs, kept, generator):
        return torch.where(kept, inputs, self.level * LEARNING_RATE)


def test_an_imputation_is_known_by_what_it_makes(tmp_path, monkeypatch):
    def examples_with(level):
        return options_of(impute=Filling(level))

    assert not _stored(mlp, tmp_path, examples=examples_with(1.0))
    assert _stored(mlp, tmp_path, examples=examples_with(1.0))
    assert not _stored(mlp, tmp_path, examples=examples_with(5.0))
    monkeypatch.setitem(globals(), "LEARNING_RATE", 0.3)
    assert not _stored(mlp, tmp_path, examples=examples_with(1.0))


def test_a_folder_in_a_job_s_place_is_set_aside(tmp_path):
    assert not _stored(mlp, tmp_path, strategy="loop")
    (path,) = tmp_path.glob("*.json")
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="is no finished work"):
        assert not _stored(mlp, tmp_path, strategy="loop")
    assert _stored(mlp, tmp_path, strategy="loop")
