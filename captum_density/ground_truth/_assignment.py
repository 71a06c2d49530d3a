"""One trained network and all that is measured on it: what a worker is sent, does and remembers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_density._cache.identity import described
from captum_density._cache.store import Store
from captum_density._model.errors import one_line
from captum_density.ground_truth._degradations import degradations
from captum_density.ground_truth._methods import METHODS
from captum_density.ground_truth._metrics import METRICS
from captum_density.ground_truth._retrained import RETRAINED
from captum_density.ground_truth._task import Task, TaskExamples, Verification
from captum_density.ground_truth._trial import Trial, attributed, identity_of_trial, trained

__all__ = ["Assignment", "examined", "measured"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Assignment:
    """What is measured of one network. It is what crosses process borders.

    Args:
        task: The task.
        seed: Of the network and the examples.
        examples: How many.
        methods: By name; None for the one of that name in METHODS, which need not be sent.
        metrics: By name, likewise.
        steps: How many degradations of the known answer are examined.
        store: Where finished work is, if anywhere.
        device: Where to explain.
    """

    task: Task
    seed: int
    examples: int
    methods: Mapping[str, Callable[..., Any] | None]
    metrics: Mapping[str, Callable[..., Any] | None]
    steps: int
    store: Path | None
    device: str

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """The metrics."""
        known: dict[str, Callable[..., Any]] = {**METRICS, **RETRAINED}
        return {name: metric or known[name] for name, metric in self.metrics.items()}

    def trial(self, store: Store | None) -> Trial:
        """The trained network and its examples."""
        model = trained(self.task, self.seed, store).to(self.device)
        inputs, targets, masks, latents = self.task.examples(self.examples, self.seed)
        inputs, targets, masks = (each.to(self.device) for each in (inputs, targets, masks))
        return Trial(self.task, self.seed, model, TaskExamples(inputs, targets, masks, latents))

    def identity(self, **more: Any) -> dict[str, Any]:
        """What a result depends on, JSON."""
        own = {"examples": self.examples, "device": torch.device(self.device).type}
        return {**identity_of_trial(self.task, self.seed), **own, **more}


def measured(assignment: Assignment) -> dict[str, Row]:
    """Each method's row: values by metric, (N,) numbers or None, seconds, or why it does not run; and "" the check."""
    store = None if assignment.store is None else Store(assignment.store)
    trial: Trial | None = None
    rows: dict[str, Row] = {}
    for name in ("", *assignment.methods):
        make = (assignment.methods[name] or METHODS[name]) if name else None
        what = [name, described(make), described(assignment.functions)] if name else "check"
        identity = assignment.identity(kind="row", what=what) if store is not None else {}
        row = None if store is None else store.read(identity, dict)
        if row is None:
            trial = trial or assignment.trial(store)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of attributions and metrics that are told in a table
                row = _row(trial, name, make, assignment.functions) if make else _check(trial)
            if store is not None:
                store.write(identity, row)
        rows[name] = row
    return rows


def _check(trial: Trial) -> Row:
    return Verification(*trial.task.verify(trial.model, seed=trial.seed))._asdict()


def _row(trial: Trial, name: str, make: Callable[..., Any], metrics: Mapping[str, Callable[..., Any]]) -> Row:
    start = time.process_time()
    try:
        attributions = attributed(trial, name, make)
    except Exception as error:  # whatever a method does on a network that it is not made for
        return {"failure": one_line(error)}
    seconds = time.process_time() - start
    values = {name: metric(trial, attributions) for name, metric in metrics.items()}
    return {"seconds": seconds, "values": {name: _numbers(value) for name, value in values.items()}}


def _numbers(values: Tensor | None) -> Any:
    return None if values is None else values.double().cpu().tolist()


def examined(assignment: Assignment) -> dict[str, Row]:
    """Each metric's values of the known answer, degraded step by step: (steps, N) numbers, or None."""
    store = None if assignment.store is None else Store(assignment.store)
    trial: Trial | None = None
    rows: dict[str, Row] = {}
    maps: list[Tensor] = []
    for name, metric in assignment.functions.items():
        what = [name, described(metric), assignment.steps, described(degradations)]
        identity = assignment.identity(kind="examination", what=what) if store is not None else {}
        row = None if store is None else store.read(identity, dict)
        if row is None:
            if trial is None:
                trial = assignment.trial(store)
                maps = degradations(trial, assignment.steps)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if metric is RETRAINED.get(name):
                    values = metric(trial, assignment.steps)
                else:
                    steps = [metric(trial, each) for each in maps]
                    values = None if any(each is None for each in steps) else torch.stack(steps)
            row = {"values": _numbers(values)}
            if store is not None:
                store.write(identity, row)
        rows[name] = row
    return rows
