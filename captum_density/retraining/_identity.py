"""What a job depends on, written down: by it, the store knows finished work again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captum_density import __version__
from captum_density._cache.identity import described, identity_of_imputation, identity_of_model
from captum_density._cache.store import SCHEMA
from captum_density._model.generators import pinned
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._seeds import initial_model
from captum_density.retraining._view import ExamplesRef
from captum_density.retraining._work import Work

__all__ = ["Identities"]

_CPU = torch.device("cpu")
# What of a configuration changes a model; threads do on a CPU, and are named beside the device.
_TRAINING = ("epochs", "batch_size", "lr", "optimizer", "momentum", "weight_decay", "schedule")


class Identities:
    """Identities of one call's jobs, in which what several jobs share is looked at once.

    Args:
        make_model: The factory.
        fit: How models are trained.
        seed: The base seed.
        threads: Of PyTorch, on the CPU.

    Raises:
        TypeError: A function that trains and cannot be told from another.
    """

    def __init__(
        self, make_model: Callable[[], nn.Module], fit: FitConfig | FitFunction, seed: int, threads: int
    ) -> None:
        self._make_model, self._seed, self._threads = make_model, seed, threads
        if isinstance(fit, FitConfig):
            self._fit: Any = {name: described(getattr(fit, name)) for name in _TRAINING}
        else:
            self._fit = described(fit)
        self._models: dict[tuple[int, str], dict[str, Any]] = {}
        self._imputations: dict[int, Any] = {}

    def of(self, work: Work, i: int) -> dict[str, Any]:
        """The identity of the i-th job of some work, JSON.

        Neither which other jobs it is stacked with nor where the arrays lie is part of it.
        """
        examples, (low, high), run = work.examples, work.kept[i], work.runs[i]
        seen: dict[str, Any] = {
            "inputs": [ref.name for ref in examples.inputs],
            "labels": [ref.name for ref in examples.labels],
        }
        if not examples.complete((low, high)):
            assert examples.ranks is not None
            seen |= {
                "ranks": [ref.name for ref in examples.ranks],
                "groups": None if examples.groups is None else examples.groups.name,
                "kept": [low, high],
                "mask_only": examples.mask_only,
                "fill": None if examples.mask_only else examples.fill.name,
                "impute": None if examples.impute is None else self._of_imputation(examples),
            }
        device = torch.device(work.device).type
        return {
            "schema": SCHEMA,
            "version": __version__,
            "examples": seen,
            "model": self._of_model(run, examples),
            "fit": self._fit,
            "engine": work.engine,
            "device": device,
            "threads": self._threads if device == "cpu" else None,
            "seed": self._seed,
            "run": run,
        }

    def _of_model(self, run: int, examples: ExamplesRef) -> dict[str, Any]:
        inputs = examples.inputs[1]
        if (run, inputs.name) not in self._models:
            with pinned(self._threads):
                model = initial_model(self._make_model, self._seed, run)
                self._models[run, inputs.name] = identity_of_model(self._make_model, model, inputs.tensor(_CPU)[:4])
        return self._models[run, inputs.name]

    def _of_imputation(self, examples: ExamplesRef) -> Any:
        if id(examples) not in self._imputations:
            assert examples.impute is not None
            few = examples.inputs[0].tensor(_CPU)[:4].clone()
            self._imputations[id(examples)] = identity_of_imputation(examples.impute, few)
        return self._imputations[id(examples)]
