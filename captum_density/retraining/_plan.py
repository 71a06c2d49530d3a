"""One call's cells in pieces of work: who trains them, and what of them is already known."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_density import __version__
from captum_density._cache.arrays import ArrayRef, Arrays
from captum_density._cache.identity import (
    attributes_of,
    described,
    identity_of_imputation,
    identity_of_model,
    state_name,
)
from captum_density._cache.store import SCHEMA, Store, packed, unpacked
from captum_density._model.generators import pinned
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._examples import Cell, Examples
from captum_density.retraining._fitted import Fitted
from captum_density.retraining._seeds import initial_model, size_of
from captum_density.retraining._trial import Trial, try_engines
from captum_density.retraining._view import CellSpec, ExamplesSpec
from captum_density.retraining._work import Done, Engine, Piece, run_piece

__all__ = ["Plan", "Strategy"]

Strategy = Literal["auto", "loop", "channels_last", "vmap"]


class Plan:
    """One call: its cells in pieces, and what is known of each."""

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        cells: list[Cell],
        fit: FitConfig | FitFunction,
        seed: int,
        strategy: Strategy,
        executor: Executor | None,
        store: Store | None,
        alive: Path | None,
    ) -> None:
        self._make_model, self._cells, self._fit, self._seed = make_model, cells, fit, seed
        self._strategy, self._executor, self._store, self._alive = strategy, executor, store, alive
        self._arrays = Arrays(alive)
        self._specs: dict[int, ExamplesSpec] = {}
        self._states: dict[int, list[float]] = {}
        self._attributes: set[str] = set()
        self._imputations: dict[int, Any] = {}
        self._models: dict[tuple[int, str], dict[str, Any]] = {}
        self._config = fit if isinstance(fit, FitConfig) else FitConfig()
        with pinned(self._config.threads):
            for run in sorted({cell.run for cell in cells}):
                self._look_at_model(run)
        self._described_fit = described(fit) if store is not None and not isinstance(fit, FitConfig) else None

    def _look_at_model(self, run: int) -> None:
        model = initial_model(self._make_model, self._seed, run)
        if not self._states:
            again = initial_model(self._make_model, self._seed, run)
            shared = _memory(model) & _memory(again)
            if again is model or shared:
                raise ValueError(
                    "make_model returned the same object (or the same parameters) twice; it must build a new model "
                    "each time, such as `lambda: Net()` and not `lambda: net`"
                )
            if state_name(again) != state_name(model):
                raise ValueError(
                    "make_model made two different models from the same seed; its weights must depend on nothing but "
                    "PyTorch's, NumPy's and Python's global random generators, which are seeded for it"
                )
        self._states[run] = size_of(model)
        self._attributes.add(json.dumps(attributes_of(model)))

    def _identity_of_model(self, run: int, inputs: ArrayRef) -> dict[str, Any]:
        if (run, inputs.name) not in self._models:
            with pinned(self._config.threads):
                model = initial_model(self._make_model, self._seed, run)
                example = inputs.tensor(torch.device("cpu"))[:4]
                self._models[run, inputs.name] = identity_of_model(self._make_model, model, example)
        return self._models[run, inputs.name]

    def _identity_of_imputation(self, spec: ExamplesSpec) -> Any:
        if id(spec) not in self._imputations:
            assert spec.impute is not None
            example = spec.inputs[0].tensor(torch.device("cpu"))[:4].clone()
            self._imputations[id(spec)] = identity_of_imputation(spec.impute, example)
        return self._imputations[id(spec)]

    def run(self, advance: Callable[[int], object]) -> list[Fitted]:
        """Train what is not known yet."""
        # Cells that are the same are one; an order does not matter where everything is kept.
        unique: dict[tuple[object, ...], list[int]] = {}
        for i, cell in enumerate(self._cells):
            unique.setdefault(self._same(cell), []).append(i)
        found: list[Fitted | None] = [None] * len(self._cells)

        def take(at: Sequence[int], correct: Tensor, engine: str, seconds: float, stored: bool) -> None:
            for i in at:
                found[i] = Fitted(self._cells[i], correct, engine, seconds, stored, reasons[at[0]])
            advance(len(at))

        groups: dict[int, list[list[int]]] = {}
        for at in unique.values():
            groups.setdefault(id(self._cells[at[0]].examples), []).append(at)
        reasons: dict[int, str] = {}
        todo: list[tuple[Piece, list[list[int]], list[dict[str, Any]]]] = []
        devices = iter(self._devices())
        chosen: Trial | None = None
        for group in sorted(groups.values(), key=len, reverse=True):
            engine, reason, chosen = self._engine(group, chosen)
            reasons |= {at[0]: reason for at in group}
            for part in self._parts(group, engine):
                piece = self._piece([self._cells[at[0]] for at in part], engine, next(devices))
                identities = [self._identity(piece, cell) for cell in piece.cells] if self._store else [{}] * len(part)
                known = [self._known(identity, at) for identity, at in zip(identities, part, strict=True)]
                for at, correct in zip(part, known, strict=True):
                    if correct is not None:
                        take(at, correct, engine, 0.0, True)
                if any(correct is None for correct in known):
                    todo.append((piece, part, identities))
        for n, done in self._done([piece for piece, _, _ in todo]):
            piece, part, identities = todo[n]
            for at, identity, correct in zip(part, identities, done.correct, strict=True):
                if found[at[0]] is not None:
                    continue  # it came from the store, and was trained again for the sake of its stack
                if self._store is not None:
                    self._store.write(identity, packed(correct), seconds=done.seconds, engine=piece.engine)
                take(at, correct, piece.engine, done.seconds, False)
        return [fitted for fitted in found if fitted is not None]

    def _same(self, cell: Cell) -> tuple[object, ...]:
        if cell.complete:
            examples = cell.examples
            arrays = (self._arrays.ref(a).name for pair in (examples.train, examples.test) for a in pair)
            return (*arrays, cell.run)
        return (id(cell.examples), cell.places, cell.run)

    def _devices(self) -> Iterator[str]:
        given = self._config.devices or [_device(self._cells[0].examples)]
        while True:
            yield from given

    def _engine(self, group: list[list[int]], chosen: Trial | None) -> tuple[Engine, str, Trial | None]:
        """The engine of some examples' cells, why, and what a trial chose."""
        if not isinstance(self._fit, FitConfig):
            return "fit", "a function was given", chosen
        cells = [self._cells[at[0]] for at in group]
        if self._strategy in ("loop", "channels_last"):
            return self._strategy, "it was asked for", chosen
        if cells[0].examples.impute is not None:
            return "loop", "imputed examples are made for one model at a time", chosen
        if len(self._attributes) > 1:
            chosen = Trial("loop", "models of different runs differ in more than parameters and buffers", False)
        if chosen is None:
            part = self._parts(group, "vmap")[0]
            piece = self._piece([self._cells[at[0]] for at in part], "vmap", next(self._devices()))
            chosen = self._tried(piece)
        if self._strategy == "vmap":
            if chosen.stacks:
                return "vmap", "it was asked for", chosen
            raise ValueError(f"strategy 'vmap' cannot train this model: {chosen.reason}; use 'auto' or 'loop'")
        return chosen.engine, chosen.reason, chosen

    def _tried(self, piece: Piece) -> Trial:
        # Not of which cells: with one more fraction or attribution, what is stored stays of use.
        whole = self._identity(piece, piece.cells[0])
        shape = list(self._cells[0].examples.train[0].shape[1:])
        identity = {
            "trial": {name: whole[name] for name in ("version", "model", "fit", "device", "threads")},
            "of": shape,
        }
        stored = None if self._store is None else self._store.read(identity)
        if stored is not None:
            return Trial(**stored)
        trial: Trial = _result(self._anywhere(try_engines, piece))
        if self._store is not None:
            self._store.write(identity, trial._asdict())
        return trial

    def _parts(self, group: list[list[int]], engine: Engine) -> list[list[list[int]]]:
        """Cells of the same examples in pieces: one each, or stacks of whole runs as far as they fit."""
        if engine != "vmap":
            return [[at] for at in group]
        size = self._config.stack_size
        runs: dict[int, list[list[int]]] = {}
        for at in group:
            runs.setdefault(self._cells[at[0]].run, []).append(at)
        parts: list[list[list[int]]] = [[]]
        for of_run in runs.values():
            for start in range(0, len(of_run), size):
                some = of_run[start : start + size]
                if parts[-1] and len(parts[-1]) + len(some) > size:
                    parts.append([])
                parts[-1].extend(some)
        return parts

    def _piece(self, cells: list[Cell], engine: Engine, device: str) -> Piece:
        examples = cells[0].examples
        if id(examples) not in self._specs:
            self._specs[id(examples)] = ExamplesSpec.of(examples, self._arrays)
        specs = tuple(CellSpec.of(cell) for cell in cells)
        states = {cell.run: self._states[cell.run] for cell in cells}
        return Piece(
            self._make_model,
            states,
            self._specs[id(examples)],
            specs,
            self._fit,
            engine,
            self._seed,
            device,
            self._config.threads,
            self._alive,
        )

    def _identity(self, piece: Piece, cell: CellSpec) -> dict[str, Any]:
        spec, config = piece.examples, self._config
        data = {"inputs": spec.inputs, "labels": spec.labels}
        seen: dict[str, Any] = {what: [ref.name for ref in refs] for what, refs in data.items()}
        if not cell.complete:
            assert spec.ranks is not None
            seen |= {
                "ranks": [ref.name for ref in spec.ranks],
                "groups": None if spec.groups is None else spec.groups.name,
                "kept": [cell.low, cell.high],
                "mask_only": spec.mask_only,
                "fill": None if spec.mask_only else spec.fill.name,
                "impute": None if spec.impute is None else self._identity_of_imputation(spec),
            }
        if self._described_fit is not None:
            how: Any = self._described_fit
        else:
            ways = ("epochs", "batch_size", "lr", "optimizer", "momentum", "weight_decay", "schedule")
            how = {name: described(getattr(config, name)) for name in ways}
        device = torch.device(piece.device).type
        return {
            "schema": SCHEMA,
            "version": __version__,
            "examples": seen,
            "model": None if self._store is None else self._identity_of_model(cell.run, spec.inputs[1]),
            "fit": how,
            "engine": piece.engine,
            "device": device,
            "threads": config.threads if device == "cpu" else None,
            "seed": self._seed,
            "run": cell.run,
        }

    def _known(self, identity: dict[str, Any], at: list[int]) -> Tensor | None:
        if self._store is None:
            return None
        result = self._store.read(identity)
        return None if result is None else unpacked(result, self._cells[at[0]].examples.n_test)

    def _done(self, pieces: list[Piece]) -> Iterator[tuple[int, Done]]:
        """Each piece's number and what came of it, as they finish."""
        if self._executor is None:
            for n, piece in enumerate(pieces):
                yield n, run_piece(piece)
            return
        waiting: dict[Future[Done], int] = {}
        try:
            for n, piece in enumerate(pieces):
                waiting[self._anywhere(run_piece, piece)] = n
            failure: Exception | None = None
            for future in as_completed(waiting):
                try:
                    done = _result(future)
                except Exception as error:
                    failure = error
                    break
                yield waiting.pop(future), done
            if failure is not None:  # what else is finished by now is kept, before it is said
                for future, n in list(waiting.items()):
                    if future.done() and not future.cancelled() and future.exception() is None:
                        yield n, future.result()
                raise failure
        finally:
            for future in waiting:
                future.cancel()

    def _anywhere(self, function: Callable[[Piece], Any], piece: Piece) -> Future[Any]:
        if self._executor is not None:
            return self._executor.submit(function, piece)
        future: Future[Any] = Future()
        future.set_result(function(piece))
        return future


def _device(examples: Examples) -> str:
    inputs = examples.train[0]
    return str(inputs.device) if isinstance(inputs, Tensor) else "cpu"


def _memory(model: nn.Module) -> set[int]:
    # Not the parameters themselves: different ones of the same memory would be trained together as well.
    return {p.untyped_storage().data_ptr() for p in model.parameters() if p.numel()}


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a worker of the executor ended abruptly ({error}). Finished cells are kept in the store. It ran out of "
            "memory, or could not start: workers of a spawned pool import the main module, which must be a file, and "
            'do its work below `if __name__ == "__main__":`'
        ) from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error) and "Can't get attribute" not in str(error):
            raise
        raise TypeError(
            f"make_model (or another function) cannot be sent to the executor's workers: {error}. Define it at the top "
            "of a module that they can import, or use an executor that sends code itself: "
            "loky.get_reusable_executor(), or Dask's Client.get_executor(pure=False)"
        ) from error
