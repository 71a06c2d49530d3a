"""Work that is left over ends, once nobody waits for it.

Of private parts on purpose: a worker process does it after the call that asked for it has gone.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from captum_density._cache.scratch import scratch_folder
from captum_density.retraining import StoppedError
from captum_density.retraining._choice import choose_engine
from captum_density.retraining._plan import Plan
from captum_density.retraining._work import run_work
from tests.retraining.small import ADAMW, eight, examples, mlp


def work_of(folder):
    jobs = eight(examples())
    return Plan(mlp, jobs, ADAMW, 0, "loop", None, None, folder)._work(jobs, "loop", "cpu")


@pytest.mark.parametrize("do", [run_work, choose_engine])
def test_work_that_nobody_waits_for_ends(do, tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    work = work_of(folder)
    do(work)
    shutil.rmtree(folder)
    with pytest.raises(StoppedError, match="the call that this work was for has ended, or this machine cannot see"):
        do(work)


def test_work_for_a_process_that_was_killed_ends(tmp_path):
    """Loky's workers outlive it, and the folder is still there."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    with scratch_folder(tmp_path) as folder:
        work = work_of(folder)
        run_work(work)
        ended.wait()
        left = folder.with_name(folder.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
        shutil.copytree(folder, left)
        with pytest.raises(StoppedError, match="the call that this work was for has ended"):
            run_work(replace(work, alive=left))
