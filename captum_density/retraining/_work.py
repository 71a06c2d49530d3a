"""What a worker does: train and judge the models of one piece of work, or try which engine is faster."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._random import derived_seed, pinned, seeded
from captum_density._scratch import left_behind
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._engines import Check, correct_of, correct_of_stack, train_loop, train_stack
from captum_density.retraining._seeds import initial_model, size_of
from captum_density.retraining._view import CellSpec, ExamplesSpec, View

__all__ = ["Done", "Engine", "Piece", "StoppedError", "Trial", "run_piece", "try_engines"]

Engine = Literal["loop", "vmap", "fit"]

_TRIAL_SECONDS = 0.1
_TRIAL_ROUNDS = 3
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Piece:
    """Models that are trained together: one, or a stack.

    Args:
        make_model: The factory.
        states: The size of each run's model before training, by which a factory that does as it likes is noticed.
        examples: What all of them see.
        cells: Each one's share of it.
        fit: How they are trained.
        engine: By which engine.
        seed: The base seed.
        device: Where.
        threads: Of PyTorch, on the CPU.
        alive: A folder whose end tells to stop; None for never.
    """

    make_model: Callable[[], nn.Module]
    states: dict[int, list[float]]
    examples: ExamplesSpec
    cells: tuple[CellSpec, ...]
    fit: FitConfig | FitFunction
    engine: Engine
    seed: int
    device: str
    threads: int
    alive: Path | None


class Done(NamedTuple):
    """What came of a piece.

    Args:
        correct: For each cell, (M,) bool on the CPU.
        seconds: For each cell; a stack's are shared evenly.
    """

    correct: list[Tensor]
    seconds: float


class Trial(NamedTuple):
    """Which engine a short trial chose, and why.

    Args:
        engine: "loop" or "vmap".
        reason: One sentence.
    """

    engine: Engine
    reason: str


class StoppedError(RuntimeError):
    """The call that wanted this work has ended."""


def run_piece(piece: Piece) -> Done:
    """Train and judge.

    Raises:
        StoppedError: Nobody waits for it any more.
        ValueError: The factory made another model here than where the call was made, or the model does not fit.
    """
    check = _check(piece.alive)
    check()
    with pinned(piece.threads):
        start = time.perf_counter()
        device = torch.device(piece.device)
        view = View(piece.examples, device, piece.seed)
        models = [_model(piece, cell.run).to(device) for cell in piece.cells]
        if piece.engine == "vmap":
            assert isinstance(piece.fit, FitConfig)
            trained = train_stack(models, view, piece.cells, piece.fit, seed=piece.seed, check=check)
            with seeded(derived_seed(piece.seed, "testing"), device):
                correct = list(correct_of_stack(trained, view, piece.cells, check))
        else:
            correct = [_one(piece, model, view, cell, check) for model, cell in zip(models, piece.cells, strict=True)]
        return Done(correct, (time.perf_counter() - start) / len(piece.cells))


def _one(piece: Piece, model: nn.Module, view: View, cell: CellSpec, check: Check) -> Tensor:
    inputs, labels = view.whole(0, cell, check), view.labels[0]
    if isinstance(piece.fit, FitConfig):
        train_loop(model, inputs, labels, piece.fit, seed=piece.seed, run=cell.run, check=check)
    else:
        seed = derived_seed(piece.seed, "training", cell.run)
        model.train()
        # A copy where it would else be the caller's own data: a function may write to what it is given.
        with seeded(seed, inputs.device), torch.enable_grad():
            returned = piece.fit(model, inputs.clone() if cell.complete else inputs, labels.clone(), seed)
        if isinstance(returned, nn.Module) and returned is not model:
            raise TypeError("fit returned another module than it was given; it must train that one in place")
    device = inputs.device
    del inputs
    with seeded(derived_seed(piece.seed, "testing", cell.run), device):
        return correct_of(model, view, cell, check)


def _model(piece: Piece, run: int) -> nn.Module:
    model = initial_model(piece.make_model, piece.seed, run)
    found, expected = size_of(model), piece.states[run]
    # Other processors draw the same numbers but for rounding.
    if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-4, atol=1e-30, equal_nan=True):
        raise ValueError(
            f"make_model made another model for run {run} than where the call was made: its weights must depend on "
            "nothing but PyTorch's, NumPy's and Python's global random generators, which are seeded for it (is a "
            "default dtype or device set there that workers do not have?)"
        )
    return model


def try_engines(piece: Piece) -> Trial:
    """Take some steps with each engine: whether the stack gives the same models, and whether it is faster."""
    assert isinstance(piece.fit, FitConfig)
    check = _check(piece.alive)
    check()
    with pinned(piece.threads):
        device = torch.device(piece.device)
        view = View(piece.examples, device, piece.seed)
        config, cells = piece.fit, piece.cells

        def models(some: tuple[CellSpec, ...]) -> list[nn.Module]:
            return [_model(piece, cell.run).to(device) for cell in some]

        rows = view.whole(0, cells[-1])
        looped, other = models((cells[-1], cells[-1]))
        # Threads of others, as a Dask worker has, draw as well, but not every time.
        if all(_draws(other, rows[: config.batch_size], device) for _ in range(4)):
            return Trial("loop", "vmap cannot run this model (it draws random numbers, which a stack would share)")

        def loop(check: Check, config: FitConfig = config, steps: int | None = None) -> None:
            run = cells[-1].run
            train_loop(looped, rows, view.labels[0], config, seed=piece.seed, run=run, check=check, max_steps=steps)

        def stack(
            check: Check, config: FitConfig = config, steps: int | None = None, some: tuple[CellSpec, ...] = cells
        ) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
            return train_stack(models(some), view, some, config, seed=piece.seed, check=check, max_steps=steps)

        # Adam divides by the gradient's size, and makes steps of what is nothing but rounding.
        compared = replace(config, optimizer="sgd", momentum=0.0, lr=min(config.lr, 0.1))
        loop(check, compared, 2)
        try:
            skeleton, parameters, buffers = stack(check, compared, 2, cells[-2:])
            with seeded(0, device):
                correct_of_stack((skeleton, parameters, buffers), view, cells[-2:], check, max_examples=8)
            stacked = {**parameters, **buffers}
            for name, value in [*looped.named_parameters(), *looped.named_buffers()]:
                if not _close(stacked[name][-1], value):
                    return Trial("loop", f"a stack gives {name!r} other values than a loop does")
            looping = stacking = math.inf
            # In turn, and again where it is close: what else the machine does slows both.
            for _ in range(_TRIAL_ROUNDS):
                looping = min(looping, _seconds_per_step(loop, check, device))
                stacking = min(stacking, _seconds_per_step(stack, check, device))
                ratio = looping * len(cells) / stacking
                if not 0.5 < ratio < 2:
                    break
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            if isinstance(error, StoppedError):
                raise
            return Trial("loop", f"vmap cannot run this model ({str(error).strip().splitlines()[0][:200]})")
    words = f"a stack of {len(cells)} trains {ratio:.2f} times as fast as a loop"
    return Trial("vmap" if ratio > 1.05 else "loop", words)


def _draws(model: nn.Module, x: Tensor, device: torch.device) -> bool:
    """Whether a model draws from the global generators as it trains; of NumPy's and Python's, vmap knows nothing."""
    with seeded(0, device), torch.no_grad():
        before = _random_state(device)
        model.train()(x.clone())
        return _random_state(device) != before


def _random_state(device: torch.device) -> tuple[object, ...]:
    of_torch = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    of_numpy = np.random.get_state(legacy=False)
    return (*(state.numpy().tobytes() for state in of_torch), repr(of_numpy), random.getstate())


class _EnoughError(Exception):
    """What was to be timed has been."""


def _seconds_per_step(train: Callable[[Check], object], check: Check, device: torch.device) -> float:
    """The median over some steps of a training, which calls what it is given before each of them."""
    starts: list[float] = []

    def start() -> None:
        check()
        _synchronize(device)
        starts.append(time.perf_counter())
        # The first step takes memory from the system: it counts only where it is so long that it has to do.
        if starts[-1] - starts[0] > (_TRIAL_SECONDS if len(starts) > 2 else 10 * _TRIAL_SECONDS):
            raise _EnoughError

    with suppress(_EnoughError):
        train(start)
        start()
    taken = [after - before for before, after in pairwise(starts)]
    return median(taken[1:] or taken)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = b.abs().max().clamp_min(1e-3) if b.numel() else b.new_ones(())
    return bool(((a - b).abs() <= 1e-3 * scale).all())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check(alive: Path | None) -> Check:
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
