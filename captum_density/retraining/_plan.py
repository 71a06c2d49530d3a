"""One call of `fit_many`: its jobs in pieces of work, and what of them is finished already."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor, nn

from captum_density._cache.arrays import Arrays
from captum_density._cache.dispatch import done_anywhere, each_done_anywhere
from captum_density._cache.identity import attributes_of, state_name
from captum_density._cache.store import Store, packed, unpacked
from captum_density._model.generators import pinned
from captum_density._model.sparse import dense_parts
from captum_density.retraining._choice import Choice, choose_engine, try_stack
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._examples import Examples, Job
from captum_density.retraining._identity import Identities
from captum_density.retraining._result import JobResult
from captum_density.retraining._seeds import initial_model, size_of
from captum_density.retraining._view import ExamplesRef
from captum_density.retraining._work import Engine, Work, run_work

__all__ = ["Plan", "Strategy"]

Strategy = Literal["auto", "loop", "channels_last", "vmap"]
T = TypeVar("T")


class Plan:
    """Jobs in pieces of work.

    Args:
        make_model: The factory.
        jobs: What to train.
        fit: How.
        seed: The base seed.
        strategy: Which engine, or "auto".
        executor: Who trains; None for this process.
        store: What is finished; None for no memory.
        alive: A folder whose end tells workers to stop; None without an executor.

    Raises:
        TypeError: The factory makes no module; a function that trains and cannot be told from another.
        ValueError: The factory returns the same object twice, or different weights from the same seed.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        jobs: list[Job],
        fit: FitConfig | FitFunction,
        seed: int,
        strategy: Strategy,
        executor: Executor | None,
        store: Store | None,
        alive: Path | None,
    ) -> None:
        self._make_model, self._jobs, self._fit, self._seed = make_model, jobs, fit, seed
        self._strategy, self._executor, self._store, self._alive = strategy, executor, store, alive
        self._config = fit if isinstance(fit, FitConfig) else FitConfig()
        self._arrays = Arrays(alive, by_content=store is not None)
        self._refs: dict[int, ExamplesRef] = {}
        self._sizes: dict[int, list[float]] = {}
        self._attributes: set[str] = set()
        with pinned(self._config.threads):
            for run in sorted({job.run for job in jobs}):
                self._look_at_model(run)
        self._identities = None if store is None else Identities(make_model, fit, seed, self._config.threads)
        self._devices = itertools.cycle(self._config.devices or [_device(jobs[0].examples)])

    def _look_at_model(self, run: int) -> None:
        model = initial_model(self._make_model, self._seed, run)
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if len(dense_parts(value)) > 1:
                raise ValueError(
                    f"retraining copies and stacks models, which sparse tensors such as {name!r} are not made for; "
                    "let make_model make it dense, by .to_dense()"
                )
        if not self._sizes:
            again = initial_model(self._make_model, self._seed, run)
            if again is model or _memory(model) & _memory(again):
                raise ValueError(
                    "make_model returned the same object (or the same parameters) twice; it must build a new model "
                    "each time, such as `lambda: Net()` and not `lambda: net`"
                )
            if state_name(again) != state_name(model):
                raise ValueError(
                    "make_model made two different models from the same seed; its weights must depend on nothing but "
                    "PyTorch's, NumPy's and Python's global random generators, which are seeded for it"
                )
        self._sizes[run] = size_of(model)
        self._attributes.add(json.dumps(attributes_of(model)))

    def run(self, advance: Callable[[int], object]) -> list[JobResult]:
        """Train what is not finished yet.

        Args:
            advance: Called with how many jobs are finished, each time some are.

        Returns:
            For each job, in their order, what came of it. Jobs that are the same are trained once.
        """
        keys = [self._key(job) for job in self._jobs]
        first = dict(zip(reversed(keys), reversed(self._jobs), strict=True))  # of each key
        different = self._gathered({key: first[key] for key in keys})
        count = Counter(keys)
        results: dict[Hashable, JobResult] = {}

        def finish(result: JobResult, key: Hashable) -> None:
            results[key] = result
            advance(count[key])

        todo: list[tuple[Work, list[Hashable], str]] = []
        for part, engine, reason in self._parts(different):
            jobs = [different[key] for key in part]
            work = self._work(jobs, engine, next(self._devices))
            stored = [self._stored(work, i, job) for i, job in enumerate(jobs)]
            for key, job, correct in zip(part, jobs, stored, strict=True):
                if correct is not None:
                    finish(JobResult(job, correct, engine, 0.0, True, reason), key)
            if any(correct is None for correct in stored):
                todo.append((work, part, reason))
        for n, (correct, seconds) in each_done_anywhere(run_work, [work for work, _, _ in todo], self._executor):
            work, part, reason = todo[n]
            for i, key in enumerate(part):
                if key in results:
                    continue  # it came from the store, and was trained again for the sake of its stack
                if self._store is not None and self._identities is not None:
                    identity = self._identities.of(work, i)
                    self._store.write(identity, packed(correct[i]), seconds=seconds, engine=work.engine)
                finish(JobResult(different[key], correct[i], work.engine, seconds, False, reason), key)
        return [replace(results[key], job=job) for key, job in zip(keys, self._jobs, strict=True)]

    def _key(self, job: Job) -> Hashable:
        """Equal for jobs that are the same: ranks do not matter where everything is kept."""
        if job.complete:
            return (*self._names(job.examples), job.run)
        return (id(job.examples), job.places, job.run)

    def _parts(self, jobs: dict[Hashable, Job]) -> Iterator[tuple[list[Hashable], Engine, str]]:
        """Keys of jobs on the same examples that are done at once, the engine and why it."""
        by_examples: dict[int, list[Hashable]] = {}
        for key, job in jobs.items():
            by_examples.setdefault(id(job.examples), []).append(key)
        groups = sorted(by_examples.values(), key=len, reverse=True)
        choice = self._choice([[jobs[key] for key in group] for group in groups])
        for group in groups:
            engine, reason = self._engine([jobs[key] for key in group], choice)
            if engine == "vmap":
                parts = _stacks(group, [jobs[key].run for key in group], self._config.stack_size)
            else:
                parts = [[key] for key in group]
            yield from ((part, engine, reason) for part in parts)

    def _gathered(self, jobs: dict[Hashable, Job]) -> dict[Hashable, Job]:
        """The same jobs, of which those that see their examples whole join others on them: one stack trains all."""
        hosts: dict[tuple[str, ...], Examples] = {}
        for job in jobs.values():
            if job.examples.ranks is not None and job.examples.impute is None and not job.examples.mask_only:
                hosts.setdefault(self._names(job.examples), job.examples)
        gathered = dict(jobs)
        for key, job in jobs.items():
            if job.complete and self._names(job.examples) in hosts:
                gathered[key] = Job(hosts[self._names(job.examples)], run=job.run)
        return gathered

    def _names(self, examples: Examples) -> tuple[str, ...]:
        return tuple(self._arrays.ref(array).name for split in examples.splits for array in split)

    def _choice(self, groups: list[list[Job]]) -> Choice | None:
        """What a worker finds out of the engines, where it matters.

        Raises:
            ValueError: A stack was asked for and cannot train the model.
        """
        plain = [group for group in groups if group[0].examples.impute is None]
        if self._strategy not in ("auto", "vmap") or not isinstance(self._fit, FitConfig) or not plain:
            return None
        if len(self._attributes) > 1:
            unlike = "models of different runs differ in more than parameters and buffers"
            choice = Choice("loop", False, unlike)
        else:
            runs = [job.run for job in plain[0]]
            stack = _stacks(plain[0], runs, self._config.stack_size)[0]
            device = (self._config.devices or [_device(self._jobs[0].examples)])[0]
            choose = choose_engine if self._strategy == "auto" else try_stack
            choice = done_anywhere(choose, self._work(stack, "vmap", device), self._executor)
        if self._strategy == "vmap" and not choice.stacks:
            raise ValueError(f"strategy 'vmap' cannot train this model: {choice.reason}; use 'auto' or 'loop'")
        return choice

    def _engine(self, jobs: list[Job], choice: Choice | None) -> tuple[Engine, str]:
        """The engine of jobs on the same examples, and why it."""
        if not isinstance(self._fit, FitConfig):
            return "fit", "a function was given"
        if self._strategy != "auto":
            return self._strategy, "it was asked for"
        if choice is None or jobs[0].examples.impute is not None:
            return "loop", "imputed examples are made for one model at a time"
        return choice.of(len(jobs))

    def _work(self, jobs: list[Job], engine: Engine, device: str) -> Work:
        examples = jobs[0].examples
        if id(examples) not in self._refs:
            self._refs[id(examples)] = ExamplesRef.of(examples, self._arrays)
        return Work(
            make_model=self._make_model,
            sizes={job.run: self._sizes[job.run] for job in jobs},
            examples=self._refs[id(examples)],
            kept=tuple(job.places for job in jobs),
            runs=tuple(job.run for job in jobs),
            fit=self._fit,
            engine=engine,
            seed=self._seed,
            device=device,
            threads=self._config.threads,
            alive=self._alive,
        )

    def _stored(self, work: Work, i: int, job: Job) -> Tensor | None:
        if self._store is None or self._identities is None:
            return None
        return self._store.read(self._identities.of(work, i), partial(unpacked, n=job.examples.n_test))


def _stacks(group: Sequence[T], runs: Sequence[int], size: int) -> list[list[T]]:
    """Parts of at most so many, of whole runs as far as they fit: models of a run see their batches alike."""
    by_run: dict[int, list[T]] = {}
    for one, run in zip(group, runs, strict=True):
        by_run.setdefault(run, []).append(one)
    parts: list[list[T]] = [[]]
    for of_run in by_run.values():
        for start in range(0, len(of_run), size):
            some = of_run[start : start + size]
            if parts[-1] and len(parts[-1]) + len(some) > size:
                parts.append([])
            parts[-1].extend(some)
    return parts


def _device(examples: Examples) -> str:
    inputs = examples.splits[0][0]
    return str(inputs.device) if isinstance(inputs, Tensor) else "cpu"


def _memory(model: nn.Module) -> set[int]:
    # Not the parameters themselves: different ones of the same memory would be trained together as well.
    return {p.untyped_storage().data_ptr() for p in model.parameters() if p.numel()}
