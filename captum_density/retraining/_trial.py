"""Which engine trains a model fastest: a short trial."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._model.generators import pinned, seeded
from captum_density.retraining._config import FitConfig
from captum_density.retraining._engines import Check, correct_of_stack, train_loop, train_stack
from captum_density.retraining._view import CellSpec, View
from captum_density.retraining._work import Engine, Piece, StoppedError, check_of, laid_out, model_of

__all__ = ["Trial", "try_engines"]

_TRIAL_SECONDS = 0.1
_TRIAL_ROUNDS = 3


class Trial(NamedTuple):
    """Which engine a short trial chose, and why.

    Args:
        engine: "loop", "channels_last" or "vmap".
        reason: One sentence.
        stacks: Whether a stack can train the model.
    """

    engine: Engine
    reason: str
    stacks: bool


def try_engines(piece: Piece) -> Trial:
    """Take some steps with each engine: which of them give the loop's models, and which is the fastest."""
    with pinned(piece.threads):
        trial = _Trial(piece)
        stacked, stack_words = trial.of_stack()
        last, last_words = trial.of_channels_last()
    speeds: dict[Engine, float] = {"vmap": stacked, "channels_last": last}
    fastest = max(speeds, key=speeds.__getitem__)
    engine = fastest if speeds[fastest] > 1.05 else "loop"
    return Trial(engine, "; ".join(filter(None, (stack_words, last_words))), stacked > 0)


class _EnoughError(Exception):
    """What was to be timed has been."""


class _Trial:
    """A model trained for two steps by the loop, and others to compare with it.

    How many times as fast as the loop another engine is comes with a reason; 0 where it cannot be taken.
    """

    def __init__(self, piece: Piece) -> None:
        assert isinstance(piece.fit, FitConfig)
        self._piece, self._fit, self._device = piece, piece.fit, torch.device(piece.device)
        self._check = check_of(piece.alive)
        self._check()
        self._view = View(piece.examples, self._device, piece.seed)
        self._cell = piece.cells[-1]
        self._rows = self._view.whole(0, self._cell)
        # Adam divides by the gradient's size, and makes steps of what is nothing but rounding.
        self._compared = replace(self._fit, optimizer="sgd", momentum=0.0, lr=min(self._fit.lr, 0.1))
        self._looped = self._model("loop")
        self._loop(self._looped, self._check, self._compared, 2)
        self._expected = {name: value.detach().clone() for name, value in _values(self._looped).items()}

    def of_stack(self) -> tuple[float, str]:
        cells, check = self._piece.cells, self._check
        # Threads of others, as a Dask worker has, draw as well, but not every time.
        drawing = self._model("loop")
        if all(_draws(drawing, self._rows[: self._fit.batch_size], self._device) for _ in range(4)):
            return 0.0, "vmap cannot run this model (it draws random numbers, which a stack would share)"
        try:
            skeleton, parameters, buffers = self._stack(check, self._compared, 2, cells[-2:])
            with seeded(0, self._device):
                correct_of_stack((skeleton, parameters, buffers), self._view, cells[-2:], check, max_examples=8)
            values = {name: value[-1] for name, value in {**parameters, **buffers}.items()}
            if (name := self._differing(values)) is not None:
                return 0.0, f"a stack gives {name!r} other values than a loop does"
            speed = self._speed(self._stack, len(cells))
        except StoppedError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            return 0.0, f"vmap cannot run this model ({_said(error)})"
        return speed, f"a stack of {len(cells)} trains {speed:.2f} times as fast as a loop"

    def of_channels_last(self) -> tuple[float, str]:
        model = self._model("channels_last")
        if not any(p.ndim == 4 for p in model.parameters()):
            return 0.0, ""
        try:
            self._loop(model, self._check, self._compared, 2)
            with seeded(0, self._device), torch.no_grad():
                model.eval()(self._rows[:8])
            if (name := self._differing(_values(model))) is not None:
                return 0.0, f"channels last gives {name!r} other values"
            speed = self._speed(lambda check: self._loop(model, check))
        except StoppedError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            return 0.0, f"channels last cannot run it ({_said(error)})"
        return speed, f"channels last {speed:.2f} times"

    def _model(self, engine: Engine, cell: CellSpec | None = None) -> nn.Module:
        return laid_out(model_of(self._piece, (cell or self._cell).run).to(self._device), engine)

    def _loop(self, model: nn.Module, check: Check, config: FitConfig | None = None, steps: int | None = None) -> None:
        labels, run = self._view.labels[0], self._cell.run
        config = config or self._fit
        train_loop(model, self._rows, labels, config, seed=self._piece.seed, run=run, check=check, max_steps=steps)

    def _stack(
        self,
        check: Check,
        config: FitConfig | None = None,
        steps: int | None = None,
        cells: tuple[CellSpec, ...] | None = None,
    ) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
        cells = cells or self._piece.cells
        models = [self._model("vmap", cell) for cell in cells]
        config = config or self._fit
        return train_stack(models, self._view, cells, config, seed=self._piece.seed, check=check, max_steps=steps)

    def _differing(self, values: dict[str, Tensor]) -> str | None:
        return next((name for name, value in self._expected.items() if not _close(values[name], value)), None)

    def _speed(self, train: Callable[[Check], object], models: int = 1) -> float:
        """How many times as fast as the loop a training of so many models is."""
        looping = other = math.inf
        # In turn, and again where it is close: what else the machine does slows both.
        for _ in range(_TRIAL_ROUNDS):
            looping = min(looping, self._seconds(partial(self._loop, self._looped)))
            other = min(other, self._seconds(train, hopeless=3 * models * looping))
            speed = looping * models / other
            if not 0.8 < speed < 1.3:
                break
        return speed

    def _seconds(self, train: Callable[[Check], object], hopeless: float = math.inf) -> float:
        """The median of some steps of a training, which calls what it is given before each of them."""
        starts: list[float] = []

        def start() -> None:
            self._check()
            _synchronize(self._device)
            starts.append(time.perf_counter())
            # The first step takes memory from the system: it counts only where it is so long that it has to do.
            taken = starts[-1] - starts[0]
            if taken > (_TRIAL_SECONDS if len(starts) > 2 else min(hopeless, 10 * _TRIAL_SECONDS)):
                raise _EnoughError

        with suppress(_EnoughError):
            train(start)
            start()
        taken = [after - before for before, after in pairwise(starts)]
        return median(taken[1:] or taken)


def _values(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


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


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = b.abs().max().clamp_min(1e-3) if b.numel() else b.new_ones(())
    return bool(((a - b).abs() <= 1e-3 * scale).all())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
