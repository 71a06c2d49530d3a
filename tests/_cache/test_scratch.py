"""A folder for the length of a call.

Of the private part on purpose: folders that killed processes and other machines left cannot be had of a call.
"""

import os
import platform
import subprocess
import sys
import tempfile

import pytest

from captum_density._cache.scratch import scratch_folder, scratch_name
from captum_density._cache.store import Store


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


def test_what_was_half_written_elsewhere_is_cleared_after_a_day(tmp_path):
    name = "0123456789abcdef" * 2
    half = [f"{name}-4711-0a1b2c3d.tmp", "scratch-elsewhere-4026531836-4711-0a1b2c3d.tmp"]  # of an earlier version; now
    half += ["probe-4711-0a1b2c3d-4711-0a1b2c3d.tmp", "probe-4711.json", "probe-4711-0a1b2c3d.json"]
    others = [f"{name}.json", "notes.tmp", "probe.json"]
    for path in [tmp_path / each for each in half + others]:
        path.write_text("{", encoding="ascii")
    Store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(half + others)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    Store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_what_a_kill_left_is_cleared_in_the_system_s_place_and_in_stores(tmp_path, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = scratch_name().replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    for use in (lambda: scratch_folder(None).__enter__(), lambda: Store(tmp_path)):
        folder, half, own = tmp_path / f"{left}a", tmp_path / f"{left}b.tmp", tmp_path / f"{scratch_name()}c.tmp"
        folder.mkdir()
        (folder / "file").write_text("content", encoding="ascii")
        for path in (half, own):
            path.write_text("{", encoding="ascii")
        use()
        assert not folder.exists() and not half.exists() and own.exists()
