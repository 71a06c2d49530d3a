"""A folder for the length of a call.

Of the private part on purpose: folders that killed processes and other machines left cannot be had of a call.
"""

import os
import platform
import subprocess
import sys

import pytest

from captum_density._cache.scratch import scratch_folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_scratch_folder_goes_with_its_process(tmp_path):
    with scratch_folder(tmp_path) as folder:
        assert folder.is_dir() and folder.parent == tmp_path
        with scratch_folder(tmp_path) as second:
            assert folder.is_dir() and second != folder  # another call of this process
        assert not second.exists()
        (folder / "file").write_text("content", encoding="ascii")
    assert not folder.exists()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / folder.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    other_machine = tmp_path / left.name.replace(platform.node(), "elsewhere", 1)
    of_someone, of_the_first = tmp_path / "scratch-mine", tmp_path / folder.name.replace(f"-{os.getpid()}-", "-1-")
    for path in (left, other_machine, of_someone, of_the_first):
        path.mkdir()
    with pytest.raises(ArithmeticError), scratch_folder(tmp_path) as folder:
        assert not left.exists() and other_machine.exists() and of_someone.exists() and of_the_first.exists()
        raise ArithmeticError
    assert not folder.exists()
