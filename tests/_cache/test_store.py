"""Files of finished work.

Of private parts on purpose: here, what several processes do at the same moment happens in a certain order.
"""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from captum_density._cache.identity import name_of
from captum_density._cache.store import Store, packed, unpacked


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_bits_come_back(n):
    bits = torch.rand(n) < 0.5
    result = json.loads(json.dumps(packed(bits)))
    assert torch.equal(unpacked(result, n), bits)
    for other, of in ((result, n + 1), ({**result, "n": n + 8}, n + 8), ({"n": n}, n), ({"correct": "%"}, n), ([], n)):
        with pytest.raises((ValueError, KeyError, TypeError)):
            unpacked(other, of)


def test_a_file_that_another_process_sets_aside_first(tmp_path, monkeypatch):
    def late(path, aside):
        Path(path).rename(f"{path}.rejected-0")
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    opened = Store(tmp_path)
    monkeypatch.setattr(os, "replace", late)
    identity = {"which": 1}
    (tmp_path / f"{name_of(identity)}.json").write_bytes(b"")
    with pytest.warns(UserWarning, match="is no finished work"):
        assert opened.read(identity, dict) is None


def test_many_may_open_a_store_at_once(tmp_path):
    """Among them several of one number, as processes of several machines can be."""
    errors = []

    def opens():
        try:
            for _ in range(20):
                Store(tmp_path)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=opens) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_file_that_would_hang_or_fill_the_memory_is_set_aside(tmp_path):
    store, identity = Store(tmp_path), {"which": 1}
    path = tmp_path / f"{name_of(identity)}.json"
    for make in (lambda: os.mkfifo(path), lambda: path.touch() or os.truncate(path, 2**40)):
        make()
        with pytest.warns(UserWarning, match="is computed again"):
            assert store.read(identity, dict) is None
        assert not path.exists()
