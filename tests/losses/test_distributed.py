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


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    """One launch for all checks; a static graph is refused."""
    command = [sys.executable, "-m", "tests.losses.distributed_step", str(tmp_path)]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, check=True, timeout=300
    )
    files = [tmp_path / f"{rank}.json" for rank in range(PROCESSES)]
    assert all(file.exists() for file in files), run.stderr
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        assert list(results) == CHECKS
        assert "static_graph=False" in results.pop(STATIC)
        assert {name: result for name, result in results.items() if isinstance(result, str) or result > 1e-10} == {}
