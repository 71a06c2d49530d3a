"""SIGKILL at random moments of calls that keep finished work in a store: whether anything is lost, or left behind.

    python -m tests.experiments.kills --number 30 --seed 0

A call is killed, and started again on the same store, until it has been killed so often; then it runs to its end. What
was finished before a kill must be read and not be computed again, the last call must give what one without a store
gives, and nothing half written or temporary may be left after it, in the store or in the folder of temporary files.
The exit status is the number of faults.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_density import metrics, retraining
from captum_density.audit import audit

KINDS = ("retraining", "retraining with workers", "an audit")


def network() -> nn.Module:
    """What is retrained."""
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def result(kind: str, store: Path | None) -> Any:
    """What a call of some seconds gives, as JSON, without its times."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if kind == "an audit":
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
        data = (torch.rand(16, 1, 8, 8), torch.arange(16) % 3)
        names = ["Saliency", "IntegratedGradients", "FullGrad", "SmoothGrad", "CompleteDeepLift"]
        report = audit(model, data, names, store=store).to_dict()
        for row in report["methods"].values():
            row.pop("seconds")
        return report
    x = torch.randn(400, 32)
    y = (x[:, 0] > 0).long()
    workers = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, workers) if kind.endswith("workers") else nullcontext() as executor:
        return metrics.diff_roar(
            network, (x, y), (x, y),
            {"a": lambda x: x, "b": torch.square}, fractions=[0.2, 0.4, 0.6, 0.8], runs=3,
            fit=retraining.FitConfig(epochs=4), strategy="loop", store=store, executor=executor,
        ).means().tolist()  # fmt: skip


def finished(store: Path) -> dict[str, int]:
    """The files of finished work, and when each was written."""
    return {
        path.relative_to(store).as_posix(): path.stat().st_mtime_ns
        for path in store.rglob("*.json")
        if not path.name.startswith(("probe", "scratch"))
    }


def start(kind: str, store: Path, scratch: Path, out: Path) -> subprocess.Popen[bytes]:
    """A call in a process of its own, which leads a group."""
    command = [sys.executable, "-m", "tests.experiments.kills", "--call", kind, str(store), str(out)]
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def killed(kind: str, number: int, moments: random.Random, folder: Path) -> list[str]:
    """What was lost or left by so many kills."""
    store, scratch, out = folder / "store", folder / "tmp", folder / "out.json"
    scratch.mkdir()
    faults, before, kills = [], dict[str, int](), 0
    while kills < number:
        process = start(kind, store, scratch, out)
        while process.poll() is None and not store.exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1.5))
        kills += process.poll() is None
        # The head alone, whose workers have to end by themselves, or all of them.
        (os.kill if moments.random() < 0.5 else os.killpg)(process.pid, signal.SIGKILL)
        ended = process.wait() == 0
        after = finished(store)
        lost = [name for name, written in before.items() if after.get(name) != written]
        faults += [f"kill {kills}: {len(lost)} finished are gone or were computed again"] if lost else []
        before = after
        if ended:  # too fast for the kill: once more, from the beginning
            before = {}
            for path in store.rglob("*.json"):
                path.unlink()
    process = start(kind, store, scratch, out)
    if process.wait():
        return [*faults, f"the last call ended with {process.returncode}"]
    if json.loads(out.read_text()) != json.loads(json.dumps(result(kind, None))):
        faults.append("the result is another one")
    kept = {name for name, written in before.items() if finished(store).get(name) == written}
    faults += [f"{name} was computed again" for name in sorted({*before} - kept)]
    strange = [p for p in store.rglob("*") if p.is_file() and p.suffix != ".json"]
    strange += [p for p in (*store.rglob("*"), *scratch.iterdir()) if p.name.startswith(("scratch", "probe"))]
    faults += [f"{path.name} is left" for path in strange]
    print(f"{kind}: {kills} kills, {len(before)} of {len(finished(store))} finished before the last call", flush=True)
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill calls of each kind; returns how many faults there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=30, help="of kills, all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)  # in the process that is killed
    chosen = parser.parse_args(arguments)
    if chosen.call:
        kind, store, out = chosen.call
        Path(out).write_text(json.dumps(result(kind, Path(store))))
        return 0
    faults = []
    for i, kind in enumerate(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            moments = random.Random(f"{chosen.seed} {kind}")
            here = killed(kind, len(range(i, chosen.number, len(KINDS))), moments, Path(folder))
        faults += [f"{kind}: {fault}" for fault in here]
    print("\n".join(faults) or "nothing was lost, and nothing is left")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main())
