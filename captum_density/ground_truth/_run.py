"""`run` and `examine`: methods measured on tasks, and metrics examined on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from captum_density._cache.dispatch import each_done_anywhere
from captum_density._model.errors import describe
from captum_density.ground_truth._agreement import SubjectVerbAgreement
from captum_density.ground_truth._assignment import Assignment, examined, measured
from captum_density.ground_truth._block_digits import BlockDigits
from captum_density.ground_truth._creatures import Creatures
from captum_density.ground_truth._known_function import KnownFunction
from captum_density.ground_truth._methods import METHODS
from captum_density.ground_truth._metrics import AGAINST_THE_ANSWER, METRICS
from captum_density.ground_truth._planted_motif import PlantedMotif
from captum_density.ground_truth._recall import AssociativeRecall
from captum_density.ground_truth._result import Examination, GroundTruthTable
from captum_density.ground_truth._retrained import RETRAINED
from captum_density.ground_truth._signal_block import SignalBlock
from captum_density.ground_truth._task import Task
from captum_density.ground_truth._trial import Trial
from captum_density.ground_truth._watermark import Watermark

__all__ = ["TASKS", "examine", "run"]

_TASKS = (
    AssociativeRecall,
    SubjectVerbAgreement,
    BlockDigits,
    SignalBlock,
    Watermark,
    KnownFunction,
    Creatures,
    PlantedMotif,
)
#: The tasks of the table, by name, but for those that need data: each makes a task.
TASKS: Mapping[str, Callable[[], Task]] = {task.name: task for task in _TASKS}

Method = Callable[[nn.Module], Any]
Metric = Callable[[Trial, Tensor], Tensor | None]
F = TypeVar("F", bound=Callable[..., Any])


def run(
    methods: Mapping[str, Method] | Iterable[str] | None = None,
    tasks: Iterable[Task | str] | None = None,
    metrics: Mapping[str, Metric] | Iterable[str] | None = None,
    seeds: Sequence[int] = range(5),
    *,
    examples: int = 32,
    executor: Executor | None = None,
    store: str | Path | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool = False,
) -> GroundTruthTable:
    """Measure attribution methods where it is known what decides.

    Each task's network is trained once for each seed, on the CPU, and explained on examples of that seed. What is
    explained is the logit of the class that is right. Metrics compare units (tokens, pixels, columns, steps), whose
    score is the sum over their elements:

    - "relevance rank": of as many units with the largest absolute scores as decide, the share that does;
    - "relevance mass": the share of absolute scores on units that decide;
    - "pointing game": whether the unit with the largest absolute score decides;
    - "effects": the rank correlation of parts' absolute scores with their exact effects, where these are known.

    Args:
        methods: By name, functions of a model that return a Captum attribution, or a function of the inputs that
            returns attributions like them, or one number for each unit; a class such as `Saliency` is one. They are
            called with what their signature asks for by name: ``target``, ``baselines``, ``background`` (other
            examples), ``feature_mask``. Or names in `METHODS`; None for all of these.
        tasks: Tasks or names in `TASKS`; None for all of these.
        metrics: By name, functions of a `Trial` and attributions that return (N,) numbers, higher is better, or None
            where they do not apply; or names in `METRICS`. None for the four above.
        seeds: Of networks and examples.
        examples: Of each task and seed.
        executor: As `fit_many`; each worker has one network and all its methods at once.
        store: A folder for trained networks and finished rows: a rerun continues, after whatever ended it.
        device: Where networks are explained.
        show_progress: Whether to show a progress bar.

    Returns:
        Every number, with tables and intervals. A method that raises is left out on that task, with its reason.

    Raises:
        TypeError: A task, method or metric that is none, or cannot be sent to the executor's workers.
        ValueError: Nothing to do, an unknown name, or two tasks of one name.
        OSError: The store cannot be written to.

    References:
        L. Arras, A. Osman and W. Samek, "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural
        Network Explanations", Information Fusion 2022, arXiv:2003.07258, relevance mass and rank accuracy; J. Zhang et
        al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, arXiv:1608.00507, the pointing game.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> result = run({"InputXGradient": InputXGradient}, ["signal block"], seeds=[0], examples=8)
        >>> result.mean("signal block", "InputXGradient", "pointing game")[0] > 0.9
        True
    """
    named, chosen, functions = (
        _tasks(tasks),
        _named(methods, METHODS, "methods"),
        _metrics(metrics, AGAINST_THE_ANSWER, METRICS),
    )
    assignments = _assignments(named, seeds, examples, chosen, functions, 0, store, device)
    by_task: dict[str, list[dict[str, Any]]] = {name: [{}] * len(seeds) for name in named}
    for i, done in _done(measured, assignments, executor, show_progress):
        by_task[assignments[i].task.name][i % len(seeds)] = done
    failures = {
        task: {name: row[name]["failure"] for row in rows for name in chosen if "failure" in row[name]}
        for task, rows in by_task.items()
    }
    values = {
        task: {
            name: {
                metric: _stacked([row[name]["values"][metric] for row in rows])
                for metric in functions
                if all(row[name]["values"][metric] is not None for row in rows)
            }
            for name in chosen
            if name not in failures[task]
        }
        for task, rows in by_task.items()
    }
    seconds = {
        task: {name: median(row[name]["seconds"] for row in rows) / examples for name in values[task]}
        for task, rows in by_task.items()
    }
    checks = {task: {key: mean(row[""][key] for row in rows) for key in rows[0][""]} for task, rows in by_task.items()}
    return GroundTruthTable(list(seeds), values, failures, seconds, checks)


def examine(
    metrics: Mapping[str, Metric] | Iterable[str] | None = None,
    tasks: Iterable[Task | str] | None = None,
    seeds: Sequence[int] = range(5),
    *,
    steps: int = 6,
    examples: int = 64,
    executor: Executor | None = None,
    store: str | Path | None = None,
    device: str | torch.device = "cpu",
    show_progress: bool = False,
) -> Examination:
    """Ask metrics to put explanations in order whose order is known.

    The known answer is degraded step by step: a growing share of the units, at last all, change places at random, so
    that the values stay and only their places tell. A metric passes on a task where the rank correlation of its mean
    over examples with the step has a 95% interval over seeds, from 0.9 on.

    Maps are what is degraded, and a metric of methods is given a method that returns such a map: to "sensitivity_max",
    one that does not hear of it when the input is perturbed; to "parameter_randomisation" and "complexity rise", one
    that is InputXGradient at random weights. "in_domain_single_deletion" is of the network as it is, which has met
    units that are away on the tasks of tokens alone. On tables there are metrics that retrain, on maps of 2000
    examples: "diff_roar" and "roar", with half of the columns kept or removed, and "f_fidelity".

    Args:
        metrics: By name, functions of a `Trial` and attributions, as `run`; or names in `METRICS`, or of those that
            retrain; None for all of these. Those that are better when lower have their sign turned.
        steps: How many explanations, from the known answer to noise.
        Other arguments: As `run`.

    Returns:
        Every number, with a table and what passes.

    Raises:
        TypeError: As `run`.
        ValueError: As `run`; fewer than three steps.
        OSError: As `run`.

    References:
        A. Hedström et al., "The Meta-Evaluation Problem in Explainable AI: Identifying Reliable Estimators with
        MetaQuantus", TMLR 2023, arXiv:2302.07265, for the question; the degradation is ours.

    Example:
        >>> import torch
        >>> examination = examine(["relevance rank", "completeness gap"], ["signal block"], seeds=[0, 1], examples=8)
        >>> [examination.passes(metric, "signal block") for metric in ("relevance rank", "completeness gap")]
        [True, False]
    """
    if not isinstance(steps, int) or steps < 3:
        raise ValueError(f"steps must be an integer of at least 3, but is {steps!r}")
    everything: dict[str, Callable[..., Any]] = {**METRICS, **RETRAINED}
    named, functions = _tasks(tasks), _metrics(metrics, everything, everything)
    assignments = _assignments(named, seeds, examples, {}, functions, steps, store, device)
    by_task: dict[str, list[dict[str, Any]]] = {name: [{}] * len(seeds) for name in named}
    for i, done in _done(examined, assignments, executor, show_progress):
        by_task[assignments[i].task.name][i % len(seeds)] = done
    return Examination(
        list(seeds),
        {
            metric: {
                task: _stacked([row[metric]["values"] for row in rows])
                for task, rows in by_task.items()
                if all(row[metric]["values"] is not None for row in rows)
            }
            for metric in functions
        },
    )


def _stacked(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _assignments(
    tasks: Mapping[str, Task],
    seeds: Sequence[int],
    examples: int,
    methods: Mapping[str, Method | None],
    metrics: Mapping[str, Callable[..., Any] | None],
    steps: int,
    store: str | Path | None,
    device: str | torch.device,
) -> list[Assignment]:
    if not seeds:
        raise ValueError("there is nothing to train: give at least one seed")
    if not isinstance(examples, int) or examples < 1:
        raise ValueError(f"examples must be an integer of at least 1, but is {examples!r}")
    folder = None if store is None else Path(store).absolute()
    return [
        Assignment(task, int(seed), examples, methods, metrics, steps, folder, str(device))
        for task in tasks.values()
        for seed in seeds
    ]


def _done(
    function: Callable[[Assignment], dict[str, Any]],
    assignments: Sequence[Assignment],
    executor: Executor | None,
    show: bool,
) -> Iterable[tuple[int, dict[str, Any]]]:
    with tqdm(total=len(assignments), desc="networks", unit="network", disable=not show) as bar:
        for i, rows in each_done_anywhere(function, assignments, executor):
            bar.update()
            yield i, rows


def _tasks(tasks: Iterable[Task | str] | None) -> dict[str, Task]:
    named: dict[str, Task] = {}
    for entry in TASKS if tasks is None else [tasks] if isinstance(tasks, str | Task) else tasks:
        if isinstance(entry, str):
            _known(entry, TASKS, "tasks")
        elif not isinstance(entry, Task):
            raise TypeError(f"tasks must be tasks, such as SignalBlock(), or names, but one is {describe(entry)}")
        task = TASKS[entry]() if isinstance(entry, str) else entry
        if task.name in named:
            raise ValueError(f"two tasks are called {task.name!r}; give one of them another name")
        named[task.name] = task
    if not named:
        raise ValueError("there are no tasks: give at least one")
    return named


def _metrics(metrics: Any, default: Mapping[str, F], known: Mapping[str, F]) -> dict[str, F | None]:
    return _named(default if metrics is None else metrics, known, "metrics")


def _named(given: Mapping[str, F] | Iterable[str] | None, known: Mapping[str, F], what: str) -> dict[str, F | None]:
    """By name, None for what is known by it."""
    if given is None:
        given = known
    if not isinstance(given, Mapping):
        names = [given] if isinstance(given, str) else list(given)
        for name in names:
            _known(name, known, what)
        return dict.fromkeys(names)
    for name, function in given.items():
        if not callable(function) or isinstance(function, nn.Module):
            raise TypeError(f"{what} must be functions by name, but {name!r} is {describe(function)}")
    if not given:
        raise ValueError(f"there are no {what}: give at least one")
    return {name: None if known.get(name) is function else function for name, function in given.items()}


def _known(name: Any, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise ValueError(f"{what} must be among {', '.join(map(repr, known))}, but one is {name!r}")
