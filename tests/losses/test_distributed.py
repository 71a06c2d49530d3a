"""Losses under DistributedDataParallel: gradients of two processes equal those of one."""

import json
from pathlib import Path

import pytest
import torch.distributed

from tests.losses.distributed_step import CHECKS, PROCESSES, STATIC, run_rank
from tests.processes import forkserver

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    """One launch for all checks; a static graph is refused."""
    ranks = [forkserver().Process(target=run_rank, args=(rank, tmp_path)) for rank in range(PROCESSES)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(300)
        assert [process.exitcode for process in ranks] == [0] * PROCESSES
    finally:
        for process in ranks:
            process.kill()
    files = [tmp_path / f"{rank}.json" for rank in range(PROCESSES)]
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        assert list(results) == CHECKS
        assert "static_graph=False" in results.pop(STATIC)
        assert {name: result for name, result in results.items() if isinstance(result, str) or result > 1e-10} == {}
