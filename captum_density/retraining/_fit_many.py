"""Many models, each on its share of the examples, trained by whoever is there and remembered in a folder."""

from __future__ import annotations

import operator
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
from captum_density.retraining._examples import Cell
from captum_density.retraining._fitted import Fitted
from captum_density.retraining._plan import Plan, Strategy

__all__ = ["fit_many"]


def fit_many(
    make_model: Callable[[], nn.Module],
    cells: Sequence[Cell],
    *,
    fit: FitConfig | FitFunction | None = None,
    seed: int = 0,
    strategy: Strategy = "auto",
    executor: Executor | None = None,
    store: str | Path | None = None,
    show_progress: bool = False,
) -> list[Fitted]:
    """Train one model for each cell and test it, with seeds, processes and interruptions taken care of.

    Cells of a run start from the same weights and see their examples in the same order. A model is trained alone in a
    loop over batches, or in a stack of models that `torch.vmap` runs at once: the stack saves the overhead of many
    small operations, so that it gains for small perceptrons on a CPU and for small models on a GPU, and loses for
    convolutions on a CPU, where the loop in channels-last layout gains for many networks.

    Args:
        make_model: Returns a new, untrained classifier, (N, C) logits. It is called for each model, with the global
            random generators seeded; its weights must depend on nothing else.
        cells: What to train, in the order of the result.
        fit: How: a `FitConfig` (None for its defaults), or a function ``fit(model, inputs, labels, seed)`` that trains
            a module in place on all its training examples.
        seed: Of initial weights, orders and everything drawn in training.
        strategy: "loop", "channels_last" (the loop, with a network's 4-d weights in that memory layout) or "vmap"
            train that way; "auto" takes a few steps of each and the fastest one, but none that cannot train the model
            (a stack: dropout, control flow that depends on data; channels last: `view` of a convolution's output) or
            that gives other values than the loop. The choice depends on the machine and its load: for the same bits
            again, name one, or keep a store, which remembers it.
        executor: Anything with the interface of `concurrent.futures.Executor`, whose workers can import this package:
            ``ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))``, ``loky.get_reusable_executor()``,
            ``dask.distributed.Client(...).get_executor(pure=False)``. None for this process. Workers read the
            examples from files: on several machines, let `store` be on a file system that all of them see. The standard
            library's pools cannot send lambdas or functions of a notebook to their workers; loky and Dask can.
        store: A folder for finished cells, one file each: a rerun continues, after whatever ended it. None for no
            memory. A cell is recognised by its content: examples, ranks, model, configuration, seed, engine.
        show_progress: Whether to show a progress bar.

    Returns:
        One `Fitted` for each cell, in their order. Cells that are the same are trained once.

    Raises:
        TypeError: The factory makes no module, or cannot be sent to the executor's workers.
        ValueError: No cells; a factory that returns the same object twice, or different weights from the same seed;
            a model that does not fit the examples; "vmap" where it cannot go.
        OSError: The store cannot be written to. Finished cells are kept.

    Example:
        >>> import torch
        >>> from captum_density.retraining import Cell, Examples, FitConfig
        >>> x = torch.randn(400, 2)
        >>> y = (x[:, 0] > 0).long()
        >>> examples = Examples((x[:200], y[:200]), (x[200:], y[200:]))
        >>> cells = [Cell(examples, run=run) for run in range(3)]
        >>> fitted = fit_many(lambda: torch.nn.Linear(2, 2), cells, fit=FitConfig(lr=0.1))
        >>> min(f.accuracy for f in fitted) > 0.8
        True
    """
    cells = list(cells)
    if not cells:
        raise ValueError("there is nothing to train: give at least one cell")
    config = FitConfig() if fit is None else fit
    if not isinstance(config, FitConfig) and not callable(config):
        raise TypeError(f"fit must be a FitConfig or a function, but is {type(config).__name__}")
    if strategy == "vmap" and not isinstance(config, FitConfig):
        raise ValueError("strategy 'vmap' cannot train with a function of yours; use 'auto', or a FitConfig")
    if strategy == "vmap" and any(cell.examples.impute is not None for cell in cells):
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
    kept = None if store is None else Store(Path(store).absolute())
    with ExitStack() as stack:
        alive = None
        if executor is not None:
            alive = stack.enter_context(scratch_folder(None if kept is None else kept.folder))
        stack.callback(forget_arrays)
        plan = Plan(make_model, cells, config, operator.index(seed), strategy, executor, kept, alive)
        with tqdm(total=len(cells), desc="training", unit="model", disable=not show_progress) as bar:
            return plan.run(bar.update)
