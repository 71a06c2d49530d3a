"""From attributions to a retraining result: rank, mask, retrain, gather."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from captum_density._cache.scratch import scratch_folder
from captum_density._model.arrays import as_tensor, as_tensors
from captum_density._model.generators import derived_seed
from captum_density.metrics._attributors import Attributor, check_attributor
from captum_density.metrics._elements import Elements
from captum_density.metrics._masks import top_count
from captum_density.metrics._ranking import random_ranks, ranked
from captum_density.metrics._retraining_result import RetrainingResult
from captum_density.retraining import Examples, Job, JobResult, fit_many

__all__ = ["CONTROLS", "Control", "Data", "Settings", "fill_of", "largest_share", "retrain"]

Control = Literal["random", "input_agnostic", "mask_only", "blurred"]
CONTROLS: tuple[Control, ...] = ("random", "input_agnostic", "mask_only", "blurred")
Data: TypeAlias = tuple[Any, Any] | Dataset[Any] | DataLoader[Any]
Metric = Literal["diff_roar", "roar", "kar"]

_SIDES: dict[str, tuple[str, ...]] = {"diff_roar": ("top", "bottom"), "roar": ("bottom",), "kar": ("top",)}
_ENOUGH_RUNS = 5

# Jobs by control and attribution: ("", name) for its own ranking, ("random", "") and ("unmasked", "") for no one's.
Jobs = dict[tuple[str, str], list[Job]]


class Settings(NamedTuple):
    """The arguments of `diff_roar`, `roar` and `kar` that all three pass on."""

    fractions: Sequence[float]
    runs: int
    fit: Any
    baselines: Any
    target: Literal["predicted", "true"]
    groups: Any
    controls: Sequence[str]
    seed: int
    strategy: Literal["auto", "loop", "channels_last", "vmap"]
    executor: Executor | None
    store: str | Path | None
    show_progress: bool
    max_examples_per_batch: int


def retrain(
    metric: Metric,
    make_model: Callable[[], nn.Module],
    train: Data,
    test: Data,
    attributions: Mapping[str, Attributor],
    settings: Settings,
) -> RetrainingResult:
    """What `diff_roar`, `roar` and `kar` return."""
    fractions = _checked(attributions, settings)
    whole = Examples(train, test)
    for name, attributor in attributions.items():
        check_attributor(name, attributor, whole.splits, settings.target)
    elements = Elements(whole.shape, settings.groups)
    d = elements.d
    counts = [max(1, top_count(fraction, d)) for fraction in fractions]
    # What is kept on each side, as places in the ranking.
    places = [
        (0, count) if side == "top" else ((d - count, d) if metric == "diff_roar" else (count, d))
        for side in _SIDES[metric]
        for count in counts
    ]
    controls = _possible(settings.controls, whole)
    masked = _Masked(whole, elements, settings, places)
    folder = _made(settings.store)
    with scratch_folder(folder if settings.executor is not None else None) as scratch:
        jobs, constant = _jobs(masked, attributions, controls, scratch)
        results = fit_many(
            make_model,
            [job for some in jobs.values() for job in some],
            fit=settings.fit,
            seed=settings.seed,
            strategy=settings.strategy,
            executor=settings.executor,
            store=settings.store,
            show_progress=settings.show_progress,
        )
    trained = list({id(result.correct): result for result in results}.values())  # jobs that are the same share a model
    correct = _gathered(jobs, results, (len(_SIDES[metric]), len(counts), settings.runs))
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
        chance=largest_share(whole.splits[1][1]),
        constant=tuple(constant),
        engines=_engines(trained),
        stored=sum(result.stored for result in trained),
        seconds=sum(result.seconds for result in trained),
        notes=tuple(_notes(settings, whole, controls, masked.imputes, fractions, counts, d, trained)),
        _seed=derived_seed(settings.seed, "bootstrap"),
    )


def _jobs(
    masked: _Masked, attributions: Mapping[str, Attributor], controls: Sequence[str], scratch: Path
) -> tuple[Jobs, list[float]]:
    """All models to train, and of each attribution the share of examples that it ranks by position alone."""
    whole, elements, settings = masked.whole, masked.elements, masked.settings
    jobs: Jobs = {}
    constant = []
    for name, attributor in attributions.items():
        rankings = ranked(
            name,
            attributor,
            whole.splits,
            elements,
            target=settings.target,
            folder=scratch,
            blurred="blurred" in controls,
            agnostic="input_agnostic" in controls,
            max_examples_per_batch=settings.max_examples_per_batch,
            seed=settings.seed,
            show_progress=settings.show_progress,
        )
        constant.append(rankings.constant)
        jobs["", name] = masked.jobs(rankings.plain)
        if "mask_only" in controls:
            jobs["mask_only", name] = masked.jobs(rankings.plain, mask_only=True)
        if rankings.agnostic is not None:
            jobs["input_agnostic", name] = masked.jobs(rankings.agnostic)
        if rankings.blurred is not None:
            jobs["blurred", name] = masked.jobs(rankings.blurred)
    runs = range(settings.runs)
    if "random" in controls:
        seeds = [derived_seed(settings.seed, "random ranking", run) for run in runs]
        drawn = [random_ranks(scratch, whole.splits, elements.d, seed) for seed in seeds]
        per_run = [masked.jobs(ranks, runs=[run]) for run, ranks in enumerate(drawn)]
        jobs["random", ""] = [job for of_place in zip(*per_run, strict=True) for job in of_place]
    jobs["unmasked", ""] = [Job(whole, run=run) for run in runs]
    return jobs, constant


class _Masked:
    """Jobs of all places and runs, for one ranking after another."""

    def __init__(self, whole: Examples, elements: Elements, settings: Settings, places: list[tuple[int, int]]) -> None:
        self.whole, self.elements, self.settings, self._places = whole, elements, settings, places
        self.imputes = callable(settings.baselines) and not isinstance(settings.baselines, Tensor)
        self._replacement = (
            {"impute": settings.baselines} if self.imputes else {"fill": fill_of(settings.baselines, whole)}
        )

    def jobs(self, ranks: Any, *, mask_only: bool = False, runs: Sequence[int] | None = None) -> list[Job]:
        """By place, then by run."""
        replacement: dict[str, Any] = {} if mask_only else self._replacement
        examples = Examples(
            self.whole.train, self.whole.test, ranks, self.elements.groups, mask_only=mask_only, **replacement
        )
        runs = range(self.settings.runs) if runs is None else runs
        return [Job(examples, kept, run) for kept in self._places for run in runs]


def fill_of(baselines: Any, whole: Examples) -> Tensor:
    """What a removed element becomes, which broadcasts to an input: a number, "mean" or a tensor."""
    inputs, shape = whole.splits[0][0], whole.shape
    if isinstance(baselines, str):
        if baselines != "mean":
            raise ValueError(f"baselines must be a number, 'mean', a tensor or a function, but is {baselines!r}")
        total = torch.zeros(shape, dtype=torch.float64, device="cpu")
        for start in range(0, len(inputs), 4096):
            rows = inputs[start : start + 4096]
            total += as_tensors(rows).cpu().sum(0, dtype=torch.float64)
        mean = total / len(inputs)
        # Of each channel of images or volumes; of other inputs, of each element.
        return mean.mean(list(range(1, len(shape))), keepdim=True) if len(shape) > 2 else mean
    try:
        fill = as_tensor(as_tensors(baselines))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"baselines must be a number, 'mean', a tensor or a function, but is {baselines!r}") from error
    if not bool(fill.isfinite().all()):
        raise ValueError("baselines contain NaN or infinity")
    try:
        fill.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"baselines must broadcast to an input, {shape}, but have {tuple(fill.shape)}") from error
    return fill.detach()


def _checked(attributions: Mapping[str, Attributor], settings: Settings) -> list[float]:
    """The fractions, ascending."""
    if not isinstance(attributions, Mapping):
        raise TypeError(f"attributions must map names to attributions, but is {type(attributions).__name__}")
    if not attributions:
        raise ValueError("attributions is empty: give at least one {name: attribution}")
    if isinstance(settings.fractions, int | float):
        raise ValueError(f"fractions must be a sequence, such as [{settings.fractions}]")
    fractions = sorted(float(fraction) for fraction in settings.fractions)
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be different numbers in (0, 1], but are {list(settings.fractions)}")
    for name in ("runs", "max_examples_per_batch"):
        value = getattr(settings, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, but is {value!r}")
    if settings.target not in ("predicted", "true"):
        raise ValueError(f"target must be 'predicted' or 'true', but is {settings.target!r}")
    unknown = [control for control in settings.controls if control not in CONTROLS]
    if unknown:
        raise ValueError(f"controls must be a sequence of some of {CONTROLS}, but {unknown} are among them")
    return fractions


def _made(store: str | Path | None) -> Path | None:
    """The store's folder, made before anything is computed."""
    if store is None:
        return None
    folder = Path(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"the store cannot be made ({error.strerror})", str(folder)) from error
    return folder


def _possible(controls: Sequence[str], whole: Examples) -> list[str]:
    """Those controls that these inputs allow: only images can be blurred."""
    image = len(whole.shape) >= 3 and min(whole.shape[-2:]) >= 2
    return [control for control in controls if control != "blurred" or image]


def _notes(
    settings: Settings,
    whole: Examples,
    controls: Sequence[str],
    imputes: bool,
    fractions: list[float],
    counts: list[int],
    d: int,
    trained: list[JobResult],
) -> Iterator[str]:
    """What a reader ought to know of how a result came about."""
    if "blurred" in settings.controls and "blurred" not in controls:
        yield f"The control 'blurred' was left out: inputs of shape {whole.shape} have no image plane to blur."
    if imputes and "mask_only" in controls:
        yield "Imputation hides the masks' shape in part, and the control 'mask_only' shows it bare."
    if settings.runs == 1:
        yield "One run: the intervals leave out how much runs differ."
    elif settings.runs < _ENOUGH_RUNS:
        yield (
            f"{settings.runs} runs tell little of how much runs differ: where that is what varies most, intervals are "
            f"too narrow; take {_ENOUGH_RUNS} or more before you conclude."
        )
    for count, n in Counter(counts).items():
        if n > 1:
            same = ", ".join(f"{f:g}" for f, c in zip(fractions, counts, strict=True) if c == count)
            yield f"Fractions {same} are the same number of elements or groups, {count} of {d}."
    failed = sum(not result.correct.any() for result in trained)
    if failed:
        yield (
            f"{failed} of {len(trained)} models classify no test example rightly; where outputs are NaN, training "
            "diverged: lower the learning rate."
        )


def _gathered(jobs: Jobs, results: list[JobResult], shape: tuple[int, int, int]) -> dict[tuple[str, str], Tensor]:
    """Correctness by control and attribution, (sides, K, R, M), of results in the order of the jobs."""
    rest = iter(results)
    correct = {key: torch.stack([next(rest).correct for _ in some]) for key, some in jobs.items()}
    return {key: part if key[0] == "unmasked" else part.reshape(*shape, -1) for key, part in correct.items()}


def largest_share(labels: Any) -> float:
    """Of the classes, that of the largest one."""
    values = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    return float(np.unique(values, return_counts=True)[1].max() / len(values))


def _engines(trained: list[JobResult]) -> dict[str, tuple[int, str]]:
    count = Counter(result.engine for result in trained)
    reasons = {result.engine: result.reason for result in reversed(trained)}
    return {engine: (n, reasons[engine]) for engine, n in count.items()}
