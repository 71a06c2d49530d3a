"""Puts the committed results into the page on known answers: `python -m tests.experiments.ground_truth_page`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_density.ground_truth import METHODS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tutorials" / "guides" / "ground_truth.md"
RESULTS = Path(__file__).parent / "results" / "ground_truth.json"
_TABLE = re.compile(r"(<!-- table: (.*?) -->\n)(?:\|.*\n)*")


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Each table of the page, by name, in Markdown."""
    measured, examined = results["table"], results["examination"]["rows"]
    metrics = dict.fromkeys(
        metric for methods in measured["rows"].values() for rows in methods.values() for metric in rows
    )
    made = {metric: _of_methods(measured["rows"], metric) for metric in metrics}
    made["checks"] = _markdown(
        ["", "predicts the class", "what decides is changed: so is the prediction", "the rest is changed: it stays"],
        [
            [task, *(f"{row[key]:.3f}" for key in ("accuracy", "changed", "unchanged"))]
            for task, row in measured["checks"].items()
        ],
    )
    for name in ("recovery", "by example"):
        made[name] = _of_metrics(examined, list(measured["checks"]), name)
    return made


def _of_methods(rows: Mapping[str, Any], metric: str) -> str:
    tasks = [task for task, methods in rows.items() if any(metric in row for row in methods.values())]
    measured = {name for methods in rows.values() for name in methods}
    names = [name for name in METHODS if name in measured]

    def cell(task: str, name: str) -> str:
        row = rows[task].get(name, {}).get(metric)
        return "" if row is None else _cell(row["mean"], bold=row["above controls"])

    return _markdown(["", *tasks], [[name, *(cell(task, name) for task in tasks)] for name in names])


def _of_metrics(rows: Mapping[str, Any], tasks: Sequence[str], what: str) -> str:
    def cell(metric: str, task: str) -> str:
        row = rows[metric].get(task)
        return "" if row is None else _cell(row[what], bold=row["passes"])

    return _markdown(["", *tasks], [[metric, *(cell(metric, task) for task in tasks)] for metric in rows])


def _cell(mean: Sequence[float], *, bold: bool) -> str:
    text = "{:.2f} [{:.2f}, {:.2f}]".format(*(value + 0.0 for value in mean))
    return f"**{text}**" if bold else text


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def written() -> Iterator[str]:
        for line in (head, ["---"] * len(head), *lines):
            yield f"| {' | '.join(line)} |\n"

    return "".join(written())


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """The page with each table behind its marker, `<!-- table: relevance mass -->`, as results have it."""
    made = tables(results)
    return _TABLE.sub(lambda found: found[1] + made[found[2]], page)


if __name__ == "__main__":
    content = json.loads(RESULTS.read_text("utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), content), encoding="utf-8")
