"""What a worker is sent, and what it does with it: train and test the models of some jobs."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._cache.scratch import left_behind
from captum_density._model.generators import derived_seed, pinned, seeded
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._engines import Check, correct_of, correct_of_stack, train_loop, train_stack
from captum_density.retraining._seeds import initial_model, size_of
from captum_density.retraining._view import ExamplesRef, Kept, View

__all__ = ["Engine", "StoppedError", "Work", "channels_last", "check_of", "model_of", "run_work"]

Engine = Literal["loop", "channels_last", "vmap", "fit"]

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Work:
    """Jobs that a worker does at once: one, or a stack.

    It is what crosses process borders. Arrays go by name, so that nothing large is sent.

    Args:
        make_model: The factory.
        sizes: Of each run's model before training, by which a factory that does as it likes is noticed.
        examples: Of all these jobs.
        kept: Each job's places.
        runs: Each job's run.
        fit: How they are trained.
        engine: By which engine.
        seed: The base seed.
        device: Where.
        threads: Of PyTorch, on the CPU.
        alive: A folder whose end tells to stop; None for never.
    """

    make_model: Callable[[], nn.Module]
    sizes: dict[int, list[float]]
    examples: ExamplesRef
    kept: tuple[Kept, ...]
    runs: tuple[int, ...]
    fit: FitConfig | FitFunction
    engine: Engine
    seed: int
    device: str
    threads: int
    alive: Path | None


class StoppedError(RuntimeError):
    """The call that wanted this work has ended, and a worker stops training for it. See `fit_many`."""


def run_work(work: Work) -> tuple[Tensor, float]:
    """Train and test.

    Returns:
        For each job which test examples its model classifies rightly, (jobs, M) bool on the CPU, and seconds a job.

    Raises:
        StoppedError: Nobody waits for it any more.
        ValueError: The factory made another model here than where the call was made, or the model does not fit.
    """
    check = check_of(work.alive)
    check()
    with pinned(work.threads):
        start = time.perf_counter()
        device = torch.device(work.device)
        view = View(work.examples, device, work.seed)
        models = [model_of(work, run).to(device) for run in work.runs]
        if work.engine == "vmap":
            assert isinstance(work.fit, FitConfig)
            stack = train_stack(models, view, work.kept, work.runs, work.fit, seed=work.seed, check=check)
            with seeded(derived_seed(work.seed, "testing"), device):
                correct = correct_of_stack(stack, view, work.kept, check)
        else:
            jobs = zip(models, work.kept, work.runs, strict=True)
            correct = torch.stack([_alone(work, model, view, kept, run, check) for model, kept, run in jobs])
        return correct, (time.perf_counter() - start) / len(models)


def _alone(work: Work, model: nn.Module, view: View, kept: Kept, run: int, check: Check) -> Tensor:
    if work.engine == "channels_last":
        channels_last(model)
    inputs, labels = view.whole(0, kept, run, check), view.labels[0]
    if isinstance(work.fit, FitConfig):
        train_loop(model, inputs, labels, work.fit, seed=work.seed, run=run, check=check)
    else:
        seed = derived_seed(work.seed, "training", run)
        model.train()
        # A copy where it would else be the caller's own data: a function may write to what it is given.
        with seeded(seed, inputs.device), torch.enable_grad():
            returned = work.fit(model, inputs.clone() if view.complete(kept) else inputs, labels.clone(), seed)
        if isinstance(returned, nn.Module) and returned is not model:
            raise TypeError("fit returned another module than it was given; it must train that one in place")
    device = inputs.device
    del inputs
    with seeded(derived_seed(work.seed, "testing", run), device):
        return correct_of(model, view, kept, run, check)


def model_of(work: Work, run: int) -> nn.Module:
    """A run's model before training.

    Raises:
        ValueError: It is another one than where the call was made.
    """
    model = initial_model(work.make_model, work.seed, run)
    here, there = size_of(model), work.sizes[run]
    # Other processors draw the same numbers but for rounding.
    if len(here) != len(there) or not np.allclose(here, there, rtol=1e-4, atol=1e-30, equal_nan=True):
        raise ValueError(
            f"make_model made another model for run {run} than where the call was made: its weights must depend on "
            "nothing but PyTorch's, NumPy's and Python's global random generators, which are seeded for it (is a "
            "default dtype or device set there that workers do not have?)"
        )
    return model


def channels_last(model: nn.Module) -> nn.Module:
    """Lay a network's 4-d weights out so; what it computes is the same but for the order of sums."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def check_of(alive: Path | None) -> Check:
    """Something to call often: it looks whether the work is wanted, now and then."""
    if alive is None:
        return lambda: None
    _leave_with_parent()
    looked = 0.0

    def check() -> None:
        nonlocal looked
        now = time.monotonic()
        if now - looked > _SECONDS_BETWEEN_LOOKS:
            looked = now
            if not alive.exists() or left_behind(alive):
                raise StoppedError(f"the call that this work was for has ended, or this machine cannot see {alive}")

    return check


_watching = False


def _leave_with_parent() -> None:
    """End this worker process when the one that started it is gone: a pool's workers else wait for work for ever."""
    global _watching
    parent: Any = multiprocessing.parent_process()
    if parent is None or _watching:
        return
    _watching = True

    def watch() -> None:
        try:
            parent.join()
        except (OSError, ValueError):  # not one of multiprocessing's own workers, such as loky's, which look themselves
            return
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="captum-density-parent").start()
