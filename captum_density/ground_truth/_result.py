"""What `run` and `examine` return: every number, with intervals, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._display.intervals import Bootstrap, interval
from captum_density._display.rank_correlation import rank_correlation
from captum_density._display.tables import markdown
from captum_density.ground_truth._methods import CONTROLS, METHODS

__all__ = ["Examination", "GroundTruthTable"]

_RESAMPLES, _LEVEL = 2000, 0.95
_RECOVERED = 0.9  # rank correlation


@dataclass(frozen=True, eq=False, repr=False)
class GroundTruthTable:
    """What metrics make of methods on tasks. See `run`.

    Args:
        seeds: Of networks and examples.
        values: By task, method and metric, (S, N) numbers of S seeds and N examples; higher is better.
        failures: By task and method that does not run there: why.
        seconds: By task and method: of a core, for an example, the median over seeds.
        checks: By task: the means over seeds of `Verification`'s shares.
    """

    seeds: Sequence[int]
    values: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    failures: Mapping[str, Mapping[str, str]]
    seconds: Mapping[str, Mapping[str, float]]
    checks: Mapping[str, Mapping[str, float]]

    def mean(self, task: str, method: str, metric: str) -> tuple[float, float, float]:
        """A mean over seeds and examples, and its 95% interval, both drawn anew.

        Args:
            task: Its name.
            method: Its name.
            metric: Its name.

        Returns:
            The mean, and the interval's ends.

        Raises:
            KeyError: That was not measured.
        """
        return _mean(self.values[task][method][metric])

    def difference(self, task: str, method: str, other: str, metric: str) -> tuple[float, float, float]:
        """What a method has over another on the same examples, on average, and its 95% interval.

        Args:
            other: The name of the method to compare with.
            Other arguments: As `GroundTruthTable.mean`.

        Returns:
            The mean of differences, and the interval's ends.

        Raises:
            KeyError: That was not measured.
        """
        return _mean(self.values[task][method][metric] - self.values[task][other][metric])

    def table(self, metric: str = "relevance rank") -> str:
        """Write a line for each method and a column for each task, in Markdown: means with 95% intervals.

        In bold are methods whose difference to each control that was measured there (the first rows of `METHODS`, up to
        "InputXGradient, random weights") has an interval above 0.

        Args:
            metric: Its name.

        Returns:
            The table; a cell is empty where the method does not run or the metric does not apply.

        Raises:
            KeyError: No such metric.
        """
        # In the order of METHODS, as not all run on the first task; those of a user's own behind.
        order = {name: place for place, name in enumerate(METHODS)}
        names = dict.fromkeys(name for rows in self.values.values() for name in rows)
        methods = sorted(names, key=lambda name: order.get(name, len(order)))
        tasks = [task for task, rows in self.values.items() if any(metric in row for row in rows.values())]
        if not tasks:
            raise KeyError(f"{metric!r} was not measured on any task")
        lines = [["", *tasks]]
        for method in methods:
            lines.append([method, *(self._text(task, method, metric) for task in tasks)])
        return markdown(lines)

    def _text(self, task: str, method: str, metric: str) -> str:
        if metric not in self.values[task].get(method, {}):
            return ""
        text = _cell(self.mean(task, method, metric))
        return f"**{text}**" if self._beats_controls(task, method, metric) else text

    def _beats_controls(self, task: str, method: str, metric: str) -> bool:
        controls = [name for name in CONTROLS if name in self.values[task]]
        if not controls or method in CONTROLS:
            return False
        return all(self.difference(task, method, control, metric)[1] > 0 for control in controls)

    def to_dict(self) -> dict[str, Any]:
        """What `json` can write: for each task, method and metric the mean, its interval, and each seed's mean."""
        rows = {
            task: {
                method: {
                    metric: {
                        "mean": _rounded(_mean(values)),
                        "seeds": _rounded(values.mean(1).tolist()),
                        "above controls": self._beats_controls(task, method, metric),
                    }
                    for metric, values in row.items()
                }
                for method, row in methods.items()
            }
            for task, methods in self.values.items()
        }
        checks = {task: {name: round(share, 4) for name, share in row.items()} for task, row in self.checks.items()}
        return {"seeds": list(self.seeds), "checks": checks, "rows": rows, "failures": self.failures}

    def __repr__(self) -> str:
        return f"GroundTruthTable({len(self.values)} tasks, {len(self.seeds)} seeds)"


@dataclass(frozen=True, eq=False, repr=False)
class Examination:
    """Whether metrics recover a known order of explanations. See `examine`.

    Args:
        seeds: Of networks and examples.
        values: By metric and task, (S, steps, N) numbers of S seeds and N examples, of the known answer first and of
            noise last; higher is better.
    """

    seeds: Sequence[int]
    values: Mapping[str, Mapping[str, Tensor]]

    def recovery(self, metric: str, task: str) -> tuple[float, float, float]:
        """How well a metric's means over examples recover the order: rank correlation, and its 95% interval over seeds.

        Args:
            metric: Its name.
            task: Its name.

        Returns:
            The mean over seeds, 1 where each seed's order is the right one, and the interval's ends.

        Raises:
            KeyError: That was not measured.
        """
        return _mean(_order(self.values[metric][task].mean(2))[:, None])

    def recovery_by_example(self, metric: str, task: str) -> tuple[float, float, float]:
        """The same of each example alone, without a mean over examples before.

        Args:
            Other arguments: As `Examination.recovery`.

        Returns:
            The mean over seeds and examples, and its 95% interval's ends.

        Raises:
            KeyError: That was not measured.
        """
        values = self.values[metric][task]
        order = _order(values.movedim(2, 1).flatten(0, 1))
        return _mean(order.view(len(values), -1))

    def passes(self, metric: str, task: str) -> bool:
        """Whether the interval of `recovery` is above 0.9.

        Args:
            metric, task: As `Examination.recovery`'s.

        Returns:
            Whether it is.

        Raises:
            KeyError: That was not measured.
        """
        return self.recovery(metric, task)[1] >= _RECOVERED

    def table(self, *, by_example: bool = False) -> str:
        """Write a line for each metric and a column for each task, in Markdown, in bold where the metric passes.

        Args:
            by_example: Whether to show `recovery_by_example` instead of `recovery`.

        Returns:
            The table; a cell is empty where the metric does not apply.

        Raises:
            KeyError: Nothing was measured.
        """
        recovery = self.recovery_by_example if by_example else self.recovery
        tasks = dict.fromkeys(task for rows in self.values.values() for task in rows)
        lines = [["", *tasks]]
        for metric, rows in self.values.items():
            cells = []
            for task in tasks:
                text = _cell(recovery(metric, task)) if task in rows else ""
                cells.append(f"**{text}**" if text and self.passes(metric, task) else text)
            lines.append([metric, *cells])
        return markdown(lines)

    def to_dict(self) -> dict[str, Any]:
        """What `json` can write: of each metric and task recoveries, each seed's, and the mean value at each step."""
        return {
            "seeds": list(self.seeds),
            "rows": {
                metric: {
                    task: {
                        "recovery": _rounded(self.recovery(metric, task)),
                        "by example": _rounded(self.recovery_by_example(metric, task)),
                        "passes": self.passes(metric, task),
                        "seeds": _rounded(_order(values.mean(2)).tolist()),
                        "steps": _rounded(values.mean((0, 2)).tolist()),
                    }
                    for task, values in tasks.items()
                }
                for metric, tasks in self.values.items()
            },
        }

    def __repr__(self) -> str:
        return f"Examination({len(self.values)} metrics, {len(self.seeds)} seeds)"


def _mean(values: Tensor) -> tuple[float, float, float]:
    """Of (S, N) numbers, with an interval."""
    low, high = interval(
        Bootstrap(values.shape[0], values.shape[1], _RESAMPLES, 0).means(values[None])[0], _LEVEL
    ).tolist()
    return values.mean().item(), low, high


def _order(values: Tensor) -> Tensor:
    """(R,) the rank correlation of each row of (R, steps) numbers with the order from last to first."""
    steps = torch.arange(values.shape[1], 0, -1, dtype=values.dtype, device=values.device)
    return rank_correlation(values, steps.expand_as(values))


def _cell(mean: tuple[float, float, float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*mean)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
