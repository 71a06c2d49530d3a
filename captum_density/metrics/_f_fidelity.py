"""F-Fidelity: what a model used to holes loses without part of what ranks high, and without part of the rest."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density import __version__
from captum_density._cache.arrays import ArrayRef, Arrays, forget_arrays
from captum_density._cache.dispatch import each_done_anywhere
from captum_density._cache.identity import described, identity_of_model
from captum_density._cache.scratch import scratch_folder
from captum_density._cache.store import SCHEMA, Store
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.generators import derived_seed, pinned, seeded
from captum_density.metrics._attributors import (
    Array,
    Attributor,
    attribute_rows,
    check_attributor,
    device_of,
    explained_module,
)
from captum_density.metrics._elements import Elements
from captum_density.metrics._f_fidelity_result import FFidelity
from captum_density.metrics._masks import ranks, top_count
from captum_density.metrics._retrain import Data, fill_of, largest_share
from captum_density.retraining import Examples, FitConfig, fine_tune, random_deletion

__all__ = ["f_fidelity"]

Ranked: TypeAlias = Attributor | Array | type[Attribution]
# Ranks (M, d) of test examples and the share of these whose attributions are equal everywhere; a class that attributes
# each copy; or None for a random one.
Ranking: TypeAlias = tuple[Tensor, float] | type[Attribution] | None

_ROWS = 256  # whose removals are drawn at once, whatever the batches
_ENOUGH_RUNS = 5


def f_fidelity(
    model: nn.Module,
    train: Data,
    test: Data,
    attributions: Mapping[str, Ranked],
    *,
    fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75),
    alpha: float = 0.5,
    beta: float = 0.1,
    n_samples: int = 20,
    runs: int = 5,
    fit: FitConfig | None = None,
    baselines: Any = 0.0,
    target: Literal["predicted", "true"] = "predicted",
    groups: Any = None,
    seed: int = 0,
    executor: Executor | None = None,
    store: str | Path | None = None,
    max_examples_per_batch: int = 256,
) -> FFidelity:
    r"""Fine-tuned fidelity: accuracy lost without part of what ranks high, and without part of the rest.

    .. math:: \mathrm{FFid}^{\pm}(s) = P(f_r(x) = y) - P(f_r(x^{\pm}_s) = y)

    Copies f_r of the model are fine-tuned on examples of which a share beta of the elements is deleted at random
    (`random_deletion`), whatever any attribution says. Of a test example with an explanation of size s, its top s by
    \|attribution\|, x+ lacks a share alpha of these s, and x- a share alpha of the d - s others: each time drawn anew,
    and never more than beta d in all, so that nothing is seen in testing that training has not shown. Retraining on
    masks of the attributions themselves, as `roar`, leaks the class by the masks' shape; here it cannot.

    Args:
        model: The classifier that is explained, (N, C) logits. It stays as it is.
        train: As `diff_roar`, (N, ...) and (N,).
        test: As `diff_roar`, (M, ...) and (M,).
        attributions: As `diff_roar`, explaining the model as it was; or a class such as `Saliency`, which is made for
            each fine-tuned copy, as the authors' code does; or attributions of the test examples, (M, ...).
        fractions: Sizes s of explanations, of the elements (or groups), in (0, 1]. The authors average over 5% to 100%.
        alpha: Share removed of an explanation, or of the rest; the authors' is a half.
        beta: Share deleted in fine-tuning, and at most in testing; the authors' is a tenth.
        n_samples: How many removals are drawn for each example; the authors draw 50.
        runs: How many copies are fine-tuned, which differ in order and deletions.
        fit: As `fine_tune`. Its `devices` are dealt to runs in turn; without, runs are where the model is.
        baselines: What a removed element becomes: a number, "mean" or a tensor that broadcasts to an input.
        target: As `diff_roar`: which class is attributed. Accuracy is always that of the true one.
        groups: As `diff_roar`; the authors' are "channels".
        seed: Of everything that is drawn. Rankings are compared on the same draws.
        executor: As `fit_many`; each worker has one run at a time.
        store: As `fit_many`: a rerun continues after the last finished run, and with one more attribution measures
            nothing twice, but fine-tunes again.
        max_examples_per_batch: How many examples run, or are attributed, at once; it changes no result.

    Returns:
        An `FFidelity`: FFid+, higher is better, and FFid-, lower is better, with intervals over runs and test examples,
        beside a random ranking.

    Raises:
        ValueError: As `diff_roar`; alpha or beta outside (0, 1], or so small that nothing would be deleted.
        TypeError: As `diff_roar`; a model that is no module.
        OSError: The store cannot be written to.

    References:
        X. Zheng, F. Shirani, Z. Chen, C. Lin, W. Cheng, W. Guo and D. Luo, "F-Fidelity: A Robust Framework for
        Faithfulness Evaluation of Explainable AI", ICLR 2025, arXiv:2410.02970. Built from the abstract, the project
        page and the authors' code (github.com/AslanDing/Finetune-Fidelity), not from the paper's text. The code removes
        each element of the part with probability min(alpha, beta d / size); here, as many are removed exactly.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> from captum_density.retraining import FitConfig
        >>> x = torch.randn(300, 8)
        >>> data = x, (x[:, 0] > 0).long()
        >>> model = torch.nn.Linear(8, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.eye(8)[:1] * torch.tensor([[-3.0], [3.0]]))  # looks at x[0]
        >>> result = f_fidelity(
        ...     model, data, data, {"InputXGradient": InputXGradient(model)}, fractions=[0.25], alpha=0.5, beta=0.125,
        ...     runs=2, fit=FitConfig(epochs=2),
        ... )
        >>> bool(result.plus[0, 0] > 0.1), bool(result.minus[0, 0] < 0.02)
        (True, True)
    """
    sizes = _checked(model, attributions, fractions, alpha, beta, n_samples, runs, max_examples_per_batch, target)
    config = FitConfig(epochs=10, lr=1e-3) if fit is None else fit
    if not isinstance(config, FitConfig):
        raise TypeError(f"fit must be a FitConfig, but is {type(config).__name__}")
    if callable(baselines) and not isinstance(baselines, Tensor):
        raise ValueError("baselines must be a number, 'mean' or a tensor: functions are for diff_roar, roar and kar")
    whole = Examples(train, test)
    elements = Elements(whole.shape, groups)
    d = elements.d
    counts = tuple(max(1, top_count(fraction, d)) for fraction in sizes)
    most = top_count(beta, d)
    if most < 1:
        raise ValueError(f"beta={beta:g} of {d} elements or groups is none; give a larger one")
    fill, finished = fill_of(baselines, whole), None if store is None else Store(Path(store).absolute())
    rankings: dict[str, Ranking] = {
        name: attributor
        if isinstance(attributor, type)
        else _test_ranks(name, _pair(attributor), whole, elements, target, max_examples_per_batch, seed)
        for name, attributor in attributions.items()
    }
    rankings["random"] = None
    with scratch_folder(finished.folder if finished is not None and executor is not None else None) as scratch:
        arrays = Arrays(None if executor is None else scratch, by_content=finished is not None)
        (train_x, train_y), (test_x, test_y) = (tuple(map(arrays.ref, split)) for split in whole.splits)
        work = _Work(
            model=model,
            train=(train_x, train_y),
            test=(test_x, test_y),
            rankings={n: arrays.ref(r[0]) if isinstance(r, tuple) else r for n, r in rankings.items()},
            elements=elements,
            fill=fill,
            counts=counts,
            removed=tuple(_removed(count, d - count, alpha, most) for count in counts),
            fraction=most / d,
            n_samples=n_samples,
            target=target,
            fit=config,
            seed=seed,
            at_once=max_examples_per_batch,
        )
        devices = config.devices or (str(next(model.parameters()).device),)
        works = [replace(work, run=run, device=devices[run % len(devices)]) for run in range(runs)]
        try:
            results, stored = _measured(works, executor, finished)
        finally:
            forget_arrays()
    constant = tuple(_constant(rankings[name], [of_run[name] for of_run in results]) for name in attributions)
    return FFidelity(
        attributions=tuple(attributions),
        fractions=tuple(sizes),
        counts=counts,
        removed=work.removed,
        d=d,
        alpha=alpha,
        beta=beta,
        n_samples=n_samples,
        right=torch.stack([torch.stack([of_run[name].right for of_run in results], dim=2) for name in rankings]),
        whole=torch.stack([of_run["random"].whole for of_run in results]),
        given=results[0]["random"].given,
        chance=largest_share(whole.splits[1][1]),
        constant=constant,
        stored=stored,
        notes=tuple(_notes(runs, constant, list(attributions))),
        _seed=derived_seed(seed, "bootstrap"),
    )


@dataclass(frozen=True)
class _Measured:
    """Of one run and ranking.

    Args:
        right: (2, K, M) int, of how many draws each test example is classified rightly, for FFid+ and FFid-.
        whole: (M,) bool, whether it is with nothing removed.
        given: (M,) bool, whether it is by the model before it was fine-tuned.
        constant: The share of examples that are ranked by position alone.
    """

    right: Tensor
    whole: Tensor
    given: Tensor
    constant: float

    def packed(self) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asdict(self).items()}

    @classmethod
    def unpacked(cls, result: Mapping[str, Any], shape: tuple[int, ...]) -> _Measured:
        right = torch.tensor(result["right"], dtype=torch.int64, device="cpu")
        whole, given = (torch.tensor(result[name], dtype=torch.bool, device="cpu") for name in ("whole", "given"))
        if right.shape != shape or whole.shape != shape[-1:] or given.shape != shape[-1:]:
            raise ValueError(f"it is no {shape} counts")
        return cls(right, whole, given, float(result["constant"]))


@dataclass(frozen=True)
class _Work:
    """One run: what a worker is sent. Arrays go by name."""

    model: nn.Module
    train: tuple[ArrayRef, ArrayRef]
    test: tuple[ArrayRef, ArrayRef]
    rankings: Mapping[str, ArrayRef | type[Attribution] | None]
    elements: Elements
    fill: Tensor
    counts: tuple[int, ...]
    removed: tuple[tuple[int, int], ...]
    fraction: float
    n_samples: int
    target: Literal["predicted", "true"]
    fit: FitConfig
    seed: int
    at_once: int
    run: int = 0
    device: str = "cpu"

    def identity(self, name: str, model: dict[str, Any]) -> dict[str, Any]:
        """What a ranking's result depends on, JSON."""
        ranking, device = self.rankings[name], torch.device(self.device).type
        groups = self.elements.groups
        return {
            "schema": SCHEMA,
            "version": __version__,
            "kind": "f_fidelity",
            "model": model,
            "examples": [ref.name for ref in (*self.train, *self.test)],
            "ranking": ranking.name if isinstance(ranking, ArrayRef) else described(ranking),
            "target": self.target if isinstance(ranking, type) else None,
            "replacement": described([groups, self.fill]),
            "removal": described([self.counts, self.removed, self.fraction, self.n_samples]),
            "fit": described({k: v for k, v in asdict(self.fit).items() if k not in ("devices", "stack_size")}),
            "device": device,
            "seed": self.seed,
            "run": self.run,
        }


def _measured(
    works: list[_Work], executor: Executor | None, store: Store | None
) -> tuple[list[dict[str, _Measured]], int]:
    """By run and ranking, and how many came from the store."""
    results: list[dict[str, _Measured]] = [{} for _ in works]
    model: dict[str, Any] = {}
    if store is not None:
        twin = copy.deepcopy(works[0].model)
        model = identity_of_model(type(twin), twin, works[0].test[0].tensor(torch.device("cpu"))[:4])
        shape = (2, len(works[0].counts), works[0].test[1].tensor(torch.device("cpu")).shape[0])
        for work, of_run in zip(works, results, strict=True):
            for name in work.rankings:
                read = store.read(work.identity(name, model), functools.partial(_Measured.unpacked, shape=shape))
                if read is not None:
                    of_run[name] = read
    stored = sum(map(len, results))
    todo = [
        replace(work, rankings={name: r for name, r in work.rankings.items() if name not in of_run})
        for work, of_run in zip(works, results, strict=True)
        if len(of_run) < len(work.rankings)
    ]
    for i, measured in each_done_anywhere(_run, todo, executor):
        for name, one in measured.items():
            if store is not None:
                store.write(todo[i].identity(name, model), one.packed())
            results[todo[i].run][name] = one
    return results, stored


def _run(work: _Work) -> dict[str, _Measured]:
    """Fine-tune a copy and measure all rankings on it."""
    with pinned(work.fit.threads):
        device = torch.device(work.device)
        given = copy.deepcopy(work.model).to(device)
        train, test = (tuple(ref.tensor(device) for ref in refs) for refs in (work.train, work.test))
        groups, fill = work.elements.groups, work.fill.to(train[0])
        tuned = fine_tune(
            given,
            (train[0], train[1]),
            functools.partial(
                random_deletion,
                fraction=work.fraction,
                feature_mask=None if groups is None else groups[None].to(device),
                baselines=fill,
            ),
            fit=work.fit,
            seed=work.seed,
            run=work.run,
        )
        with seeded(derived_seed(work.seed, "testing", work.run), device), fixed_modules(tuned):
            by_name = {name: _ranks(work, name, tuned, test) for name in work.rankings}
            whole, before = (_right(m, test[0], test[1], work.at_once).cpu() for m in (tuned, given.eval()))
            right = _right_without(work, tuned, test, {name: r for name, (r, _) in by_name.items()}, fill)
        return {name: _Measured(right[name], whole, before, constant) for name, (_, constant) in by_name.items()}


def _ranks(work: _Work, name: str, tuned: nn.Module, test: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    """(M, d) ranks of the test examples, and the share of these that position alone ranks."""
    ranking = work.rankings[name]
    if isinstance(ranking, ArrayRef):
        return ranking.tensor(torch.device("cpu")), 0.0  # that share is known where the ranks were made
    if ranking is None:
        generator = torch.Generator().manual_seed(derived_seed(work.seed, "random ranking", work.run))
        shape = (len(test[0]), work.elements.d)
        return ranks(torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")), 0.0
    examples = Examples((test[0], test[1]), (test[0], test[1]))
    return _test_ranks(name, ranking(tuned), examples, work.elements, work.target, work.at_once, work.seed)


def _right_without(
    work: _Work, tuned: nn.Module, test: tuple[Tensor, ...], by_name: Mapping[str, Tensor], fill: Tensor
) -> dict[str, Tensor]:
    """(2, K, M) of how many draws each example is classified rightly, for each ranking, all on the same draws."""
    inputs, labels = test
    d, groups = work.elements.d, work.elements.groups
    at = None if groups is None else groups.flatten().to(inputs.device)
    right = {name: torch.zeros(2, len(work.counts), len(inputs), dtype=torch.int64, device="cpu") for name in by_name}
    for start in range(0, len(inputs), _ROWS):
        rows = slice(start, min(start + _ROWS, len(inputs)))
        x, y = inputs[rows], labels[rows]
        for k, (count, removed) in enumerate(zip(work.counts, work.removed, strict=True)):
            for side, (low, high) in enumerate(((0, count), (count, d))):
                for sample in range(work.n_samples):
                    # Places in the order, not elements, so that all rankings are judged by the same draws.
                    drawn = derived_seed(work.seed, "removal", work.run, start, count, side, sample)
                    generator = torch.Generator().manual_seed(drawn)
                    draws = torch.rand((len(x), high - low), generator=generator, device="cpu")
                    places = draws.topk(removed[side], dim=1).indices + low
                    away = torch.zeros(len(x), d, dtype=torch.bool, device="cpu").scatter_(1, places, True)
                    for name, of_examples in by_name.items():
                        gone = away.gather(1, of_examples[rows].long()).to(x.device)
                        gone = gone if at is None else gone.index_select(1, at)
                        masked = torch.where(gone.view_as(x), fill, x)
                        right[name][side, k, rows] += _right(tuned, masked, y, work.at_once).cpu()
    return right


@torch.no_grad()
def _right(model: nn.Module, inputs: Tensor, labels: Tensor, at_once: int) -> Tensor:
    """(M,) whether each class is predicted; a model that returns NaN predicts none."""
    parts = []
    for x, y in zip(inputs.split(at_once), labels.split(at_once), strict=True):
        logits = model(x.clone())
        parts.append((logits.argmax(1) == y) & ~logits.isnan().any(1))
    return torch.cat(parts)


def _test_ranks(
    name: str, attributor: Any, whole: Examples, elements: Elements, target: str, at_once: int, seed: int
) -> tuple[Tensor, float]:
    tested = whole.splits[1]
    check_attributor(name, attributor, (tested, tested), target)
    attribute = attribute_rows(name, attributor, (tested, tested), target)
    device = device_of(attributor, tested[0])
    of_examples, constant = [], 0
    with seeded(seed, device), fixed_modules(explained_module(attributor) or (lambda: None)):
        for start in range(0, len(tested[0]), at_once):
            rows = slice(start, min(start + at_once, len(tested[0])))
            magnitude = elements.magnitude(attribute(1, rows, device), rows.stop - start, name)
            importance = elements.importance(magnitude)
            constant += int((importance == importance[:, :1]).all(1).sum())
            of_examples.append(ranks(importance))
    return torch.cat(of_examples), constant / len(tested[0])


def _pair(attributor: Any) -> Any:
    """Ready attributions of test examples as those of both splits, both of which are the test examples here."""
    return (attributor, attributor) if isinstance(attributor, Tensor | np.ndarray) else attributor


def _removed(count: int, rest: int, alpha: float, most: int) -> tuple[int, int]:
    """How many are removed of an explanation, and how many of the rest."""
    one, other = (min(max(1, top_count(alpha, size)), size, most) for size in (count, rest))
    return one, other


def _constant(ranking: Ranking, runs: list[_Measured]) -> float:
    return ranking[1] if isinstance(ranking, tuple) else sum(run.constant for run in runs) / len(runs)


def _checked(
    model: Any,
    attributions: Any,
    fractions: Any,
    alpha: float,
    beta: float,
    n_samples: int,
    runs: int,
    at_once: int,
    target: str,
) -> list[float]:
    """The fractions, ascending."""
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise TypeError(f"model must be a torch.nn.Module with parameters to fine-tune, but is {type(model).__name__}")
    if not isinstance(attributions, Mapping) or not attributions:
        raise TypeError(f"attributions must map at least one name to an attribution, but are {attributions!r}")
    if "random" in attributions:
        raise ValueError("an attribution is called 'random', as the control is; give it another name")
    if isinstance(fractions, int | float):
        raise ValueError(f"fractions must be a sequence, such as [{fractions}]")
    sizes = sorted(float(fraction) for fraction in fractions)
    if not sizes or len(set(sizes)) < len(sizes) or not all(0 < size <= 1 for size in sizes):
        raise ValueError(f"fractions must be different numbers in (0, 1], but are {list(fractions)}")
    for name, share in (("alpha", alpha), ("beta", beta)):
        if not (math.isfinite(share) and 0 < share <= 1):
            raise ValueError(f"{name} must be in (0, 1], but is {share}")
    for name, value in (("n_samples", n_samples), ("runs", runs), ("max_examples_per_batch", at_once)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, but is {value!r}")
    if target not in ("predicted", "true"):
        raise ValueError(f"target must be 'predicted' or 'true', but is {target!r}")
    return sizes


def _notes(runs: int, constant: Sequence[float], names: list[str]) -> Iterator[str]:
    if runs < _ENOUGH_RUNS:
        few = "One run tells" if runs == 1 else f"{runs} runs tell"
        yield f"{few} little of how much fine-tuned copies differ; take {_ENOUGH_RUNS} or more before you conclude."
    for name, share in zip(names, constant, strict=True):
        if share > 0:
            yield f"{name}: {share:.1%} of the examples have the same attribution everywhere, ranked by position."
