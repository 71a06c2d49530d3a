import json
import os
from functools import partial

import pytest
import torch

from tests.benchmarks import harness
from tests.benchmarks.harness import Comparison, Measurement, MeasurementFailedError, compare, peak_bytes

MEGABYTE = 2**20


def allocating(megabytes, before=0):
    held = torch.ones(before * MEGABYTE // 4)
    return lambda: held.sum() + torch.ones(megabytes * MEGABYTE // 4).sum()


def raising():
    def call():
        raise RuntimeError("no kernel for this\nand a second line")

    return call


def dying():
    return lambda: os._exit(3)


def recording(name, order):
    return lambda: order.append(name)


class Clock:
    """In place of the module `time`: each call takes as long as it says."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def taking(self, *seconds):
        turns = iter(seconds)

        def call():
            self.now += next(turns)

        return lambda: call


def test_medians_spread_and_ratios_leave_out_the_warm_up(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(harness, "time", clock)
    cases = {"short": clock.taking(9, 1, 3, 2), "long": clock.taking(90, 6, 5, 7)}
    naps = compare("naps", cases, reference="short", runs=3, warm_up=1, memory=False)
    assert naps.measurements == {"short": Measurement(2, 1, 3), "long": Measurement(6, 5, 7)}
    assert (naps.ratio("short", "seconds"), naps.ratio("long", "seconds")) == (1, 3)
    assert naps.ratio("long", "peak_bytes") is None


def test_rounds_are_interleaved_after_the_warm_up():
    order = []
    cases = {name: lambda name=name: recording(name, order) for name in "ab"}
    compare("order", cases, reference="a", runs=2, warm_up=1, memory=False)
    assert "".join(order) == "ab" * 3


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call_and_not_of_its_setup():
    small = peak_bytes(partial(allocating, 20))
    large = peak_bytes(partial(allocating, 220))
    loaded = peak_bytes(partial(allocating, 20, before=400))
    assert 190 * MEGABYTE < large - small < 210 * MEGABYTE
    assert abs(loaded - small) < 10 * MEGABYTE


@pytest.mark.cuda
def test_cuda_peak_memory():
    assert peak_bytes(partial(allocating_on_cuda, 64), device="cuda") == 64 * MEGABYTE


def allocating_on_cuda(megabytes):
    torch.zeros(1, device="cuda")
    return lambda: torch.ones(megabytes * MEGABYTE // 4, device="cuda").data_ptr()


@pytest.mark.parametrize(
    ("case", "message"), [(raising, "RuntimeError: no kernel for this$"), (dying, "died with exit code 3")]
)
def test_failure_in_the_process_is_told(case, message):
    with pytest.raises(MeasurementFailedError, match=message):
        peak_bytes(case)


@pytest.mark.parametrize("memory", [False, True])
def test_one_failure_leaves_the_others_measured(memory):
    cases = {"broken": raising, "fine": partial(allocating, 50)}
    mixed = compare("mixed", cases, reference="fine", runs=1, warm_up=1, memory=memory)
    assert list(mixed.measurements) == ["broken", "fine"]
    assert mixed.measurements["broken"] == Measurement(failure="RuntimeError: no kernel for this")
    assert mixed.measurements["fine"].seconds > 0
    assert (mixed.measurements["fine"].peak_bytes is not None) == memory
    assert mixed.ratio("broken", "seconds") is None


def test_settings_hold_during_a_call_and_are_given_back():
    threads = torch.get_num_threads()
    tiny = torch.tensor([1e-30])

    def state():
        return torch.get_num_threads(), (tiny * 1e-10).item()

    with harness.settings(threads + 1):
        assert state() == (threads + 1, 0.0)
    count, product = state()
    assert count == threads
    assert product > 0


def test_table_and_file(tmp_path):
    comparison = Comparison(
        "model",
        "base",
        {
            "base": Measurement(0.010, 0.009, 0.011, 100_000_000),
            "ours": Measurement(0.012, 0.011, 0.014, 110_000_000),
            "other": Measurement(failure="ValueError: odd"),
        },
    )
    lines = harness.table([comparison]).splitlines()
    assert lines[3].replace(" ", "") == "|model|ours|12.0|11.0..14.0|1.20|110.0|1.10|"
    assert "fails: ValueError: odd" in lines[4]
    assert len({len(line) for line in lines[:4]}) == 1

    harness.write(tmp_path / "made" / "result.json", [comparison], device="cpu", threads=1, runs=7)
    stored = json.loads((tmp_path / "made" / "result.json").read_text())
    assert stored["runs"] == 7
    assert stored["machine"]["name"]
    assert stored["machine"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert stored["comparisons"][0]["measurements"]["ours"]["seconds_ratio"] == pytest.approx(1.2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="one of the cases"):
        compare("x", {"a": raising}, reference="b")
    with pytest.raises(ValueError, match="at least 1"):
        compare("x", {"a": raising}, reference="a", runs=0)
