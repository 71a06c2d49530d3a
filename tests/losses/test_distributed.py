"""Losses under DistributedDataParallel: gradients of two processes equal those of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from tests.losses.distributed_step import CHECKS, PROCESSES, STATIC

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float | str]]:
    """What came of each check on each process: one launch for all of them."""
    path = tmp_path_factory.mktemp("distributed") / "found.json"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    run = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.losses.distributed_step", str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert path.exists(), run.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("check", [name for name in CHECKS if name != STATIC])
def test_gradients_are_those_of_one_process(found: dict[str, list[float | str]], check: str) -> None:
    assert len(found[check]) == PROCESSES
    for difference in found[check]:
        assert isinstance(difference, float), difference
        assert difference < 1e-10


def test_a_static_graph_is_refused(found: dict[str, list[float | str]]) -> None:
    assert all("static_graph=True does not synchronise" in str(message) for message in found[STATIC])
