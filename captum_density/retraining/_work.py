"""What a worker does: train and judge the models of one piece of work."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._cache.scratch import left_behind
from captum_density._model.generators import derived_seed, pinned, seeded
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._engines import Check, correct_of, correct_of_stack, train_loop, train_stack
from captum_density.retraining._seeds import initial_model, size_of
from captum_density.retraining._view import CellSpec, ExamplesSpec, View

__all__ = ["Done", "Engine", "Piece", "StoppedError", "check_of", "laid_out", "model_of", "run_piece"]

Engine = Literal["loop", "channels_last", "vmap", "fit"]

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


class StoppedError(RuntimeError):
    """The call that wanted this work has ended, and a worker stops training for it. See `fit_many`."""


def run_piece(piece: Piece) -> Done:
    """Train and judge.

    Raises:
        StoppedError: Nobody waits for it any more.
        ValueError: The factory made another model here than where the call was made, or the model does not fit.
    """
    check = check_of(piece.alive)
    check()
    with pinned(piece.threads):
        start = time.perf_counter()
        device = torch.device(piece.device)
        view = View(piece.examples, device, piece.seed)
        models = [laid_out(model_of(piece, cell.run).to(device), piece.engine) for cell in piece.cells]
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


def model_of(piece: Piece, run: int) -> nn.Module:
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


def laid_out(model: nn.Module, engine: Engine) -> nn.Module:
    # Of a network's 4-d weights; what it computes is the same but for the order of sums.
    if engine == "channels_last":
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
