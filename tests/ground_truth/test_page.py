"""What the page on known answers says is what the results hold."""

import json
import re

import pytest

from tests.experiments.ground_truth_page import PAGE, RESULTS, tables, with_tables

TEXT, FOUND = PAGE.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))
METHODS = dict.fromkeys(name for rows in FOUND["table"]["rows"].values() for name in rows)
# How the page's sentences call methods whose names they do not spell out.
CALLED = {
    "libragrad": "InputXGradient, libragrad",
    "attnlrp": "InputXGradient, attnlrp",
    "alike everywhere": "random",
    "chance": "random",
    "Attention": "AttentionWeights",
    "complete": "FullGrad, complete",
    "balanced": "FullGrad, complete, libragrad",
    "blob": "a blob in the centre",
    "another example": "InputXGradient, another example",
}


def bullets(heading):
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [" ".join(each.split()) for each in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]


def test_the_pages_tables_are_the_results():
    assert set(re.findall(r"<!-- table: (.*?) -->", TEXT)) == set(tables(FOUND))
    assert with_tables(TEXT, FOUND) == TEXT, "run python -m tests.experiments.ground_truth_page"


def numbers(text):
    return set(re.findall(r"-?\b\d\.\d\d\b", text))


@pytest.mark.parametrize("bullet", bullets("Which method should I use?"), ids=lambda text: text[:30])
def test_figures_of_methods_are_in_the_results(bullet):
    named = {name for name in METHODS if re.search(rf"\b{re.escape(name)}\b", bullet)}
    named |= {name for words, name in CALLED.items() if words in bullet}
    rows = [row for methods in FOUND["table"]["rows"].values() for name, row in methods.items() if name in named]
    held = {f"{metric['mean'][0]:.2f}" for row in rows for metric in row.values()}
    assert numbers(bullet) <= held, f"of {sorted(named)}"


@pytest.mark.parametrize("bullet", bullets("Which metrics can tell?"), ids=lambda text: text[:30])
def test_figures_of_metrics_are_in_the_results(bullet):
    rows = [row for tasks in FOUND["examination"]["rows"].values() for row in tasks.values()]
    held = {f"{value + 0.0:.2f}" for row in rows for value in (*row["recovery"], row["by example"][0])}
    assert numbers(bullet) <= held


def test_each_metric_that_does_not_pass_is_listed():
    lists = {words: [b for b in bullets("Which metrics can tell?") if words in b] for words in ("anywhere", "isted")}
    for name, tasks in FOUND["examination"]["rows"].items():
        passes = [row["passes"] for row in tasks.values()]
        if not all(passes):
            assert any(name in bullet for bullet in lists["isted" if any(passes) else "anywhere"]), name
