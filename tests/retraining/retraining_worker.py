"""What other processes do for tests of `captum_density.retraining`: factories to import, a call to kill, a peak."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from captum_density.retraining import Examples, FitConfig, Job, fit_many

D = 12
CONFIG = FitConfig(epochs=4, batch_size=16, lr=0.02)


def make() -> nn.Module:
    """A perceptron."""
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3))


def make_with_dropout() -> nn.Module:
    """A perceptron that draws as it trains."""
    return nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.3), nn.Linear(8, 3))


class Raises(nn.Linear):
    """Raises where an example is all zeros: a job that keeps nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if self.training and not x.any():
            raise ArithmeticError("nothing to see")
        return super().forward(x)


def make_raising() -> nn.Module:
    """A model that does not like every job."""
    return Raises(D, 3)


def examples() -> Examples:
    """Small ones."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, D, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    ranks = torch.stack([torch.randperm(D, generator=generator) for _ in x])
    return Examples((x[:50], y[:50]), (x[50:], y[50:]), ranks=(ranks[:50], ranks[50:]))


def jobs(runs: int = 3) -> list[Job]:
    """Four for each run."""
    data = examples()
    return [Job(data, kept, run) for run in range(runs) for kept in ((0, D), (0, 3), (3, D), (0, 6))]


def digest(fitted: list) -> str:
    """All correct bits."""
    return hashlib.sha256(b"".join(f.correct.numpy().tobytes() for f in fitted)).hexdigest()


WORDS = {"one", "two", "three", "four"}


def slow_fit(model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> None:
    """Some steps, and pauses that a kill falls into; the file that the environment names grows by a line.

    The sets in it, whose order differs in each process, must not make it another function there.
    """
    assert str(inputs.dtype) not in WORDS and str(seed) not in {"a", "b", "c", "d"}
    if "STARTED" in os.environ:
        with open(os.environ["STARTED"], "a", encoding="ascii") as file:
            file.write(f"{os.getpid()} {seed} {inputs.double().sum().item()}\n")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        time.sleep(0.01)


def fast_and_slow() -> tuple[list[Job], list[Job]]:
    """Four jobs of moments, and three of half a minute each."""
    data = examples()
    x, y = (a.repeat(300, *[1] * (a.ndim - 1)) for a in data.train)
    return [Job(data, run=run) for run in range(4)], [Job(Examples((x, y), data.test), run=run) for run in range(3)]


LONG = FitConfig(epochs=300, batch_size=50, lr=0.02)


# ----------------------------------------------------------------------------------------------------------------------


def write(folder: Path) -> int:
    """60 MB of examples, in files; the number of bytes."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((20000, 768), dtype=np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", (x[:, 0] > 0).astype(np.int64))
    np.save(folder / "ranks.npy", np.broadcast_to(np.arange(768, dtype=np.int16), x.shape))
    return x.nbytes


def same(x: Tensor, kept: Tensor, *, generator: torch.Generator) -> Tensor:
    """An imputation."""
    return x


def trains_on(folder: Path, kind: str) -> Callable[[], object]:
    """A call that trains on what `write` wrote."""
    mode = "r" if kind == "memmap" else None
    x, y, ranks = (np.load(folder / f"{name}.npy", mmap_mode=mode) for name in ("x", "y", "ranks"))  # type: ignore[call-overload]
    if mode is None:
        x, y, ranks = map(torch.from_numpy, (x, y, ranks))
    options = {"impute": same} if kind == "impute" else {}
    data = Examples((x, y), (x[:500], y[:500]), ranks=(ranks, ranks[:500]), **options)
    config = FitConfig(epochs=1, batch_size=512, lr=0.01)
    several = [Job(data, kept) for kept in ((0, 100), (100, 768))]
    # What the first optimizer loads is not of the call: some 100 MB.
    fit_many(lambda: nn.Linear(D, 3), [Job(examples())], fit=config, strategy="loop")
    return lambda: fit_many(lambda: nn.Linear(768, 2), several, fit=config, strategy="loop")


# ----------------------------------------------------------------------------------------------------------------------
# Calls to end from outside.


RUNS = 4


def _call(store: Path, answer: Path, runs: int) -> None:
    fitted = fit_many(make, jobs(runs), fit=slow_fit, store=store)
    answer.write_text(json.dumps({"digest": digest(fitted), "stored": sum(f.stored for f in fitted)}), encoding="ascii")


def _forked(call: Callable[..., None], *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            call(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def kills(folder: Path) -> None:
    """A call, killed five times amid its jobs and then left alone; then two on another store at once."""
    moments = random.Random(0)
    store, begun, answer = folder / "store", folder / "started.txt", folder / "answer.json"
    os.environ["STARTED"] = str(begun)
    fit_many(make, jobs(1)[:1], fit=slow_fit)  # loads what the first optimizer needs, before the forks
    killed = []
    for _ in range(5):
        aim = len(begun.read_bytes().splitlines()) + moments.randint(1, 3)
        pid = _forked(_call, store, answer, RUNS)
        while len(begun.read_bytes().splitlines()) < aim:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.04))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed.append(os.WIFSIGNALED(status))
    before = len(list(store.glob("*.json"))) - len(list(store.glob("probe-*")))
    _, status = os.waitpid(_forked(_call, store, answer, RUNS), 0)
    last = json.loads(answer.read_text(encoding="ascii"))
    answers = [folder / f"answer-{i}.json" for i in range(2)]
    pids = [_forked(_call, folder / "both", answer, 2) for answer in answers]
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    both = [json.loads(answer.read_text(encoding="ascii"))["digest"] for answer in answers]
    results = {**last, "killed": sum(killed), "before": before, "ended": ended, "both": both}
    (folder / "results.json").write_text(json.dumps(results), encoding="ascii")


def pool(store: Path, workers: int) -> None:
    """A call with workers, to be stopped before its end; forks, as these have PyTorch loaded."""
    os.setsid()  # so that all of it can be killed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fast, slow = fast_and_slow()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as executor:
        fit_many(make, [*fast, *slow], fit=LONG, strategy="loop", executor=executor, store=store)
