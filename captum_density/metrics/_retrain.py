"""From attributions to a retraining result: rank, mask, retrain, gather."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._cache.scratch import scratch_folder
from captum_density._model.generators import derived_seed
from captum_density.metrics._attributors import Attributor, check_attributor
from captum_density.metrics._elements import Elements
from captum_density.metrics._masks import top_count
from captum_density.metrics._ranking import random_ranks, ranked
from captum_density.metrics._retraining_result import RetrainingResult
from captum_density.retraining import Cell, Examples, Fitted, fit_many

__all__ = ["CONTROLS", "Control", "Data", "How", "Options", "retrain"]

Control = Literal["random", "input_agnostic", "mask_only", "blurred"]
CONTROLS: tuple[Control, ...] = ("random", "input_agnostic", "mask_only", "blurred")
_ENOUGH_RUNS = 5
Metric = Literal["diff_roar", "roar", "kar"]
Data = tuple[Any, Any]


@dataclass(frozen=True)
class Options:
    """What is asked."""

    fractions: Sequence[float]
    runs: int
    fit: Any
    baselines: Any
    target: Literal["predicted", "true"]
    groups: Any
    controls: tuple[str, ...]
    seed: int
    max_examples_per_batch: int


@dataclass(frozen=True)
class How:
    """Who computes it."""

    strategy: Literal["auto", "loop", "channels_last", "vmap"]
    executor: Executor | None
    store: str | Path | None
    show_progress: bool


_SIDES: dict[str, tuple[str, ...]] = {"diff_roar": ("top", "bottom"), "roar": ("bottom",), "kar": ("top",)}


def retrain(
    metric: Metric,
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    attributions: Mapping[str, Attributor],
    options: Options,
    how: How,
) -> RetrainingResult:
    fractions = _checked(attributions, options)
    whole = Examples(train, test)
    for name, attributor in attributions.items():
        check_attributor(name, attributor, (whole.train, whole.test), options.target)
    elements = Elements(train[0].shape[1:], options.groups)
    d = elements.d
    counts = [max(1, top_count(fraction, d)) for fraction in fractions]
    # What is kept on each side, as places in the ranking.
    places = [
        (0, count) if side == "top" else ((d - count, d) if metric == "diff_roar" else (count, d))
        for side in _SIDES[metric]
        for count in counts
    ]
    controls, notes = _possible(options.controls, whole)
    masked = _Masked(whole, elements, options, places)
    if masked.imputes and "mask_only" in controls:
        notes.append("Imputation hides the masks' shape in part, and the control 'mask_only' shows it bare.")
    if options.runs == 1:
        notes.append("One run: the intervals leave out how much runs differ.")
    elif options.runs < _ENOUGH_RUNS:
        notes.append(
            f"{options.runs} runs tell little of how much runs differ: where that is what varies most, intervals are "
            f"too narrow; take {_ENOUGH_RUNS} or more before you conclude."
        )
    for count, n in Counter(counts).items():
        if n > 1:
            same = ", ".join(f"{f:g}" for f, c in zip(fractions, counts, strict=True) if c == count)
            notes.append(f"Fractions {same} are the same number of elements or groups, {count} of {d}.")
    folder = None if how.store is None else Path(how.store)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"the store cannot be made ({error.strerror})", str(folder)) from error
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(folder if how.executor is not None else None))
        cells: dict[tuple[str, str], list[Cell]] = {}
        constant: list[float] = []
        for name, attributor in attributions.items():
            found = ranked(
                name,
                attributor,
                (whole.train, whole.test),
                elements,
                target=options.target,
                folder=scratch,
                blurred="blurred" in controls,
                agnostic="input_agnostic" in controls,
                max_examples_per_batch=options.max_examples_per_batch,
                seed=options.seed,
                show_progress=how.show_progress,
            )
            constant.append(found.constant)
            cells["", name] = masked.cells(found.plain)
            if "mask_only" in controls:
                cells["mask_only", name] = masked.cells(found.plain, mask_only=True)
            if found.agnostic is not None:
                cells["input_agnostic", name] = masked.cells(found.agnostic)
            if found.blurred is not None:
                cells["blurred", name] = masked.cells(found.blurred)
        if "random" in controls:
            drawn = [
                random_ranks(scratch, (whole.train, whole.test), d, derived_seed(options.seed, "random ranking", run))
                for run in range(options.runs)
            ]
            per_run = [masked.cells(ranks, runs=[run]) for run, ranks in enumerate(drawn)]
            cells["random", ""] = [cell for of_place in zip(*per_run, strict=True) for cell in of_place]
        cells["unmasked", ""] = [Cell(whole, run=run) for run in range(options.runs)]
        fitted = fit_many(
            make_model,
            [cell for some in cells.values() for cell in some],
            fit=options.fit,
            seed=options.seed,
            strategy=how.strategy,
            executor=how.executor,
            store=how.store,
            show_progress=how.show_progress,
        )
    trained = list({id(f.correct): f for f in fitted}.values())  # cells that are the same share one model
    failed = sum(not f.correct.any() for f in trained)
    if failed:
        notes.append(
            f"{failed} of {len(trained)} models classify no test example rightly; where outputs are NaN, training "
            "diverged: lower the learning rate."
        )
    correct = _gathered(cells, fitted, (len(_SIDES[metric]), len(counts), options.runs))
    labels = test[1].cpu().numpy() if isinstance(test[1], Tensor) else test[1]
    return RetrainingResult(
        metric=metric,
        attributions=tuple(attributions),
        sides=_SIDES[metric],
        fractions=tuple(fractions),
        counts=tuple(counts),
        d=d,
        correct=torch.stack([correct["", name] for name in attributions]),
        controls={control: torch.stack([correct[key] for key in correct if key[0] == control]) for control in controls},
        unmasked=correct["unmasked", ""],
        chance=float(np.unique(labels, return_counts=True)[1].max() / len(labels)),
        constant=tuple(constant),
        engines=_engines(trained),
        stored=sum(f.stored for f in trained),
        seconds=sum(f.seconds for f in trained),
        notes=tuple(notes),
        _seed=derived_seed(options.seed, "bootstrap"),
    )


class _Masked:
    """Cells of all places and runs, for one ranking after another."""

    def __init__(self, whole: Examples, elements: Elements, options: Options, places: list[tuple[int, int]]) -> None:
        self._whole, self._elements, self._places = whole, elements, places
        self._runs = options.runs
        self._removed: dict[str, Any] = {}
        if callable(options.baselines) and not isinstance(options.baselines, Tensor):
            self._removed["impute"] = options.baselines
        else:
            self._removed["fill"] = _fill(options.baselines, whole)

    @property
    def imputes(self) -> bool:
        """Whether what is removed is filled in by a function."""
        return "impute" in self._removed

    def cells(self, ranks: Any, *, mask_only: bool = False, runs: Sequence[int] | None = None) -> list[Cell]:
        """By place, then by run."""
        removed = {} if mask_only else self._removed
        examples = Examples(
            self._whole.train, self._whole.test, ranks, self._elements.groups, mask_only=mask_only, **removed
        )
        return [
            Cell(examples, kept, run) for kept in self._places for run in (range(self._runs) if runs is None else runs)
        ]


def _fill(baselines: Any, whole: Examples) -> Tensor:
    inputs = whole.train[0]
    shape = tuple(inputs.shape[1:])
    if isinstance(baselines, str):
        if baselines != "mean":
            raise ValueError(f"baselines must be a number, 'mean', a tensor or a function, but is {baselines!r}")
        total = torch.zeros(shape, dtype=torch.float64)
        for start in range(0, len(inputs), 4096):
            rows = inputs[start : start + 4096]
            total += (rows.cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).sum(
                0, dtype=torch.float64
            )
        mean = total / len(inputs)
        # Of each channel of images or volumes; of other inputs, of each element.
        return mean.mean(list(range(1, len(shape))), keepdim=True) if len(shape) > 2 else mean
    try:
        fill = torch.as_tensor(baselines)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"baselines must be a number, 'mean', a tensor or a function, but is {baselines!r}") from error
    if not bool(fill.isfinite().all()):
        raise ValueError("baselines contain NaN or infinity")
    try:
        fill.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"baselines must broadcast to an input, {shape}, but have {tuple(fill.shape)}") from error
    return fill.detach()


def _checked(attributions: Mapping[str, Attributor], options: Options) -> list[float]:
    if not isinstance(attributions, Mapping):
        raise TypeError(f"attributions must map names to attributions, but is {type(attributions).__name__}")
    if not attributions:
        raise ValueError("attributions is empty: give at least one {name: attribution}")
    if isinstance(options.fractions, int | float):
        raise ValueError(f"fractions must be a sequence, such as [{options.fractions}]")
    fractions = sorted(float(fraction) for fraction in options.fractions)
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be different numbers in (0, 1], but are {list(options.fractions)}")
    for name in ("runs", "max_examples_per_batch"):
        value = getattr(options, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, but is {value!r}")
    if options.target not in ("predicted", "true"):
        raise ValueError(f"target must be 'predicted' or 'true', but is {options.target!r}")
    unknown = [control for control in options.controls if control not in CONTROLS]
    if unknown:
        raise ValueError(f"controls must be a sequence of some of {CONTROLS}, but {unknown} are among them")
    return fractions


def _possible(controls: tuple[str, ...], whole: Examples) -> tuple[list[str], list[str]]:
    """Those that these inputs allow, and what to say of the others."""
    shape = tuple(whole.train[0].shape[1:])
    if "blurred" in controls and (len(shape) < 3 or min(shape[-2:]) < 2):
        text = f"The control 'blurred' was left out: inputs of shape {shape} have no image plane to blur."
        return [control for control in controls if control != "blurred"], [text]
    return list(controls), []


def _gathered(
    cells: dict[tuple[str, str], list[Cell]], fitted: list[Fitted], shape: tuple[int, int, int]
) -> dict[tuple[str, str], Tensor]:
    """Correctness by control and attribution, (sides, K, R, M), in the order the cells were made."""
    left = iter(fitted)
    found = {}
    for key, some in cells.items():
        stacked = torch.stack([next(left).correct for _ in some])
        found[key] = stacked if key[0] == "unmasked" else stacked.reshape(*shape, -1)
    return found


def _engines(fitted: list[Fitted]) -> dict[str, tuple[int, str]]:
    count = Counter(f.engine for f in fitted)
    reasons = {f.engine: f.reason for f in fitted}
    return {engine: (n, reasons[engine]) for engine, n in count.items()}
