"""`python -m captum_density.ground_truth`: which method names what decides, and which metrics can tell?"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from captum_density._cache.store import Store
from captum_density._display.parser import Parser, count, folder
from captum_density.ground_truth import METHODS, TASKS, BlockMNIST, Task, examine, run
from captum_density.ground_truth._metrics import AGAINST_THE_ANSWER


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all methods and examine all metrics; print tables, and write them as JSON.

    Args:
        arguments: Those after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: With status 2 after bad input; one line says why.
    """
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    tasks: list[Task | str] = [*parsed.tasks, *([BlockMNIST(parsed.mnist)] if parsed.mnist else [])]
    options: dict[str, Any] = {
        "tasks": tasks,
        "seeds": range(parsed.seeds),
        "examples": parsed.examples,
        "store": parsed.store,
        "show_progress": True,
    }
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(parsed.workers, context) if parsed.workers > 1 else nullcontext()
    try:
        _refuse_what_cannot_be(parsed)
        with pool as executor:
            table = run(parsed.methods, **options, executor=executor)
            examination = examine(**{**options, "examples": 2 * parsed.examples}, executor=executor)
    except (OSError, ImportError) as error:
        parser.error(str(error))
    seconds = time.perf_counter() - start
    for metric in AGAINST_THE_ANSWER:
        if any(metric in row for rows in table.values.values() for row in rows.values()):
            print(f"\n{metric}\n\n{table.table(metric)}")
    print(f"\nrank correlation of each metric with the known order\n\n{examination.table()}")
    print(f"\nthe same of each example alone\n\n{examination.table(by_example=True)}")
    for task, rows in table.failures.items():
        for method, reason in rows.items():
            print(f"\n{method} does not run on {task}: {reason}")
    cpu = sum(os.times()[:4])
    print(f"\n{seconds:.0f} seconds, {cpu:.0f} of a core")
    if parsed.out:
        content = {"table": table.to_dict(), "examination": examination.to_dict()}
        # Lists of numbers in one line each.
        text = re.sub(r"\[[^][{]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(content, indent=1))
        parsed.out.write_text(text + "\n", encoding="utf-8")


def _make_parser() -> Parser:
    parser = Parser(
        prog="python -m captum_density.ground_truth",
        description="Trains a small network for each task and seed, measures attribution methods against the known "
        "answer, and asks metrics to put explanations in order whose order is known.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TASK", help="by name")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=count, default=5, help="how many networks for each task")
    parser.add_argument(
        "--examples", type=count, default=32, help="for each network; metrics are examined on twice as many"
    )
    parser.add_argument("--mnist", type=Path, help="BlockMNIST too: torchvision's folder, or an .npz file of x and y")
    parser.add_argument("--store", type=folder, help="a folder for trained networks and finished rows, to go on from")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--workers", type=count, default=1, help="processes")
    return parser


def _refuse_what_cannot_be(parsed: argparse.Namespace) -> None:
    """Try files now, and not after minutes.

    Raises:
        OSError: One cannot be read or written.
    """
    if parsed.mnist:
        BlockMNIST(parsed.mnist).examples(1)
    if parsed.store:
        Store(parsed.store)
    if parsed.out:
        is_new = not parsed.out.exists()
        parsed.out.open("a").close()
        if is_new:
            parsed.out.unlink()


if __name__ == "__main__":
    main()
