"""Many models, each on its share of the examples, trained by whoever is there and remembered in a folder."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from torch import nn
from tqdm import tqdm

from captum_density._cache.arrays import forget_arrays
from captum_density._cache.scratch import scratch_folder
from captum_density._cache.store import Store
from captum_density.retraining._config import FitConfig, FitFunction
from captum_density.retraining._examples import Job
from captum_density.retraining._plan import Plan, Strategy
from captum_density.retraining._result import JobResult

__all__ = ["fit_many"]


def fit_many(
    make_model: Callable[[], nn.Module],
    jobs: Sequence[Job] | None = None,
    *,
    fit: FitConfig | FitFunction | None = None,
    seed: int = 0,
    strategy: Strategy = "auto",
    executor: Executor | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
    cells: Sequence[Job] | None = None,
) -> list[JobResult]:
    """Train one model for each job and test it, with seeds, processes and interruptions taken care of.

    Jobs of a run start from the same weights and see their examples in the same order. A model is trained alone in a
    loop over batches, or in a stack of models that `torch.vmap` runs at once: the stack saves the overhead of many
    small operations, so that it gains where models and batches are small and loses where they are not.

    Args:
        make_model: Returns a new, untrained classifier, (N, C) logits. It is called for each model, with the global
            random generators seeded; its weights must depend on nothing else.
        jobs: What to train, in the order of the result.
        fit: How: a `FitConfig` (None for its defaults), or a function ``fit(model, inputs, labels, seed)`` that trains
            a module in place on all its training examples.
        seed: Of initial weights, orders and everything drawn in training.
        strategy: "loop", "channels_last" (the loop, with a network's 4-d weights in that memory layout) or "vmap"
            train that way. "auto" chooses by how many values a training step works on, how many models share their
            examples, the layers and the kind of device, and nothing else, so that the choice is the same on every
            machine; what it chooses has to give the loop's values in two steps first. A stack cannot train some models
            (dropout, control flow that depends on data), channels last neither (`view` of a convolution's output):
            these are trained by the loop.
        executor: Anything with the interface of `concurrent.futures.Executor`, whose workers can import this package:
            ``ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))``, ``loky.get_reusable_executor()``,
            ``dask.distributed.Client(...).get_executor(pure=False)``. None for this process. Workers read the
            examples from files: on several machines, let `store` be on a file system that all of them see. The standard
            library's pools cannot send lambdas or functions of a notebook to their workers; loky and Dask can.
        store: A folder for finished jobs, one file each: a rerun continues, after whatever ended it. None for no
            memory. A job is recognised by its content: examples, ranks, model, configuration, seed, engine.
        show_progress: Whether to show a progress bar.
        cells: The former name of `jobs`.

    Returns:
        One `JobResult` for each job, in their order. Jobs that are the same are trained once.

    Raises:
        TypeError: The factory makes no module, or cannot be sent to the executor's workers.
        ValueError: No jobs; a factory that returns the same object twice, or different weights from the same seed;
            a model that does not fit the examples; "vmap" where it cannot go.
        OSError: The store cannot be written to. Finished jobs are kept.

    Example:
        >>> import torch
        >>> from captum_density.retraining import Examples, FitConfig, Job
        >>> x = torch.randn(400, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> examples = Examples((x[:200], y[:200]), (x[200:], y[200:]))
        >>> jobs = [Job(examples, run=run) for run in range(3)]
        >>> results = fit_many(lambda: torch.nn.Linear(2, 2), jobs, fit=FitConfig(lr=0.1))
        >>> min(result.accuracy for result in results) > 0.8
        True
    """
    if cells is not None:
        warnings.warn("the argument cells of fit_many is called jobs now", DeprecationWarning, stacklevel=2)
        jobs = cells
    jobs = list(jobs or ())
    if not jobs:
        raise ValueError("there is nothing to train: give at least one job")
    config = FitConfig() if fit is None else fit
    if not isinstance(config, FitConfig) and not callable(config):
        raise TypeError(f"fit must be a FitConfig or a function, but is {type(config).__name__}")
    if strategy == "vmap" and not isinstance(config, FitConfig):
        raise ValueError("strategy 'vmap' cannot train with a function of yours; use 'auto', or a FitConfig")
    if strategy == "vmap" and any(job.examples.impute is not None for job in jobs):
        raise ValueError("strategy 'vmap' cannot train on imputed examples, made for one model at a time; use 'auto'")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(map(repr, get_args(Strategy)))}, but is {strategy!r}")
    if hasattr(executor, "get_executor"):  # Dask's Client, whose futures are of another kind
        raise TypeError("executor is a client; pass its executor, client.get_executor(pure=False)")
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise TypeError(f"executor must have the interface of concurrent.futures.Executor, but is {executor!r}")
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model must be a function that returns a new module, such as `lambda: Net()`, but is a "
            f"{type(make_model).__name__}"
        )
    if store is not None and not str(store):
        raise ValueError("store is an empty name; name a folder")
    # Absolute: workers may be in another folder.
    finished = None if store is None else Store(Path(store).absolute())
    with ExitStack() as stack:
        alive = None
        if executor is not None:
            alive = stack.enter_context(scratch_folder(None if finished is None else finished.folder))
        stack.callback(forget_arrays)
        plan = Plan(make_model, jobs, config, operator.index(seed), strategy, executor, finished, alive)
        with tqdm(total=len(jobs), desc="training", unit="model", disable=not show_progress) as bar:
            return plan.run(bar.update)
