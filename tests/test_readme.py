"""The README's example runs, and its commands are where CI looks for them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

import captum_density

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(marker: str, language: str) -> str:
    blocks = re.findall(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1, f"expected one {language} block under <!-- {marker} -->, found {len(blocks)}"
    return blocks[0]


def test_example_runs():
    names: dict[str, object] = {}
    exec(compile(_block("example", "python"), "README.md", "exec"), names)
    assert names["saliency"].shape == names["parts"].shape == names["images"].shape
    assert names["saliency"].min() >= 0
    assert names["parts"].min() < 0


def test_softmax_shift_example_runs():
    names: dict[str, object] = {}
    exec(compile(_block("example: softmax shift", "python"), "README.md", "exec"), names)
    shown = [
        torch.nn.functional.cosine_similarity(names[kind].flatten(1), names["pattern"].flatten()[None])
        for kind in ("lie", "honest")
    ]
    assert shown[0].min() > 0.9
    assert shown[1].max() < 0.3
    twin = names["Saliency"](names["CenteredLogits"](names["model"])).attribute(names["images"], names["target"])
    torch.testing.assert_close(names["honest"], twin, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("marker", ["command: main job", "command: tests", "command: tutorials"])
def test_ci_runs_the_command_of_the_readme(marker):
    command = _block(marker, "sh")
    assert command.count("\n") == 1, "one line each"
    printed = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--print", marker.removeprefix("command: ")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    ).stdout
    assert printed == command


def test_first_sentence_is_the_package_s():
    assert captum_density.__doc__.split(":")[0] in README


def test_density_example_runs():
    names: dict[str, object] = {}
    exec(compile(_block("example: density", "python"), "README.md", "exec"), names)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["model"].parameters())
    assert names["score_matching"].trace.isfinite()
    assert names["ratio"].shape == (8,)


def test_diff_roar_example_runs():
    names: dict[str, object] = {}
    exec(compile(_block("example: diff_roar", "python"), "README.md", "exec"), names)
    result = names["result"]
    assert result.predictive_power.shape == (2, 2, 3, 2)
    assert set(result.controls) == {"random", "input_agnostic", "mask_only", "blurred"}
    assert "2x2" not in result.table() and "kept 0.25 (4)" in result.table()


@pytest.mark.parametrize("marker", ["audit", "axioms", "attention", "transfer"])
def test_examples_that_assert_their_results_run(marker):
    exec(compile(_block(f"example: {marker}", "python"), "README.md", "exec"), {"__name__": "readme"})
