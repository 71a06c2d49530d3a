"""Compare the time and the peak memory of callables on the machine at hand.

Times are taken interleaved, one call of each in turn, so that a machine that slows down slows all of them; the median
over the rounds is reported. Peak memory is measured one callable at a time: on the CPU as the growth of a fresh
process's peak resident set during one call (tracemalloc does not see tensors), on CUDA by PyTorch's own statistics.

    Case = a zero-argument function that sets up and returns the zero-argument call to measure.

A case must be picklable (a module-level function, or `functools.partial` of one), since its memory is measured in
a process of its own.
"""

import gc
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch

from tests.processes import forkserver

Call = Callable[[], object]
Case = Callable[[], Call]


@dataclass(frozen=True)
class Measurement:
    """One case's figures; None where it failed, `failure` then says how."""

    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    peak_bytes: int | None = None
    failure: str | None = None


@dataclass
class Comparison:
    """Cases measured together, by name; `reference` is the one that ratios are taken to."""

    title: str
    reference: str
    measurements: dict[str, Measurement] = field(default_factory=dict)

    def ratio(self, name: str, quantity: str) -> float | None:
        """Return a case's "seconds" or "peak_bytes" over the reference's, or None where either is missing."""
        value, reference = (getattr(self.measurements[key], quantity) for key in (name, self.reference))
        return None if value is None or not reference else value / reference

    def to_dict(self) -> dict[str, object]:
        rows = {
            name: {
                **asdict(measurement),
                "seconds_ratio": self.ratio(name, "seconds"),
                "peak_bytes_ratio": self.ratio(name, "peak_bytes"),
            }
            for name, measurement in self.measurements.items()
        }
        return {"title": self.title, "reference": self.reference, "measurements": rows}


def compare(
    title: str,
    cases: Mapping[str, Case],
    *,
    reference: str,
    device: str = "cpu",
    runs: int = 10,
    warm_up: int = 2,
    threads: int = 1,
    memory: bool = True,
    clock: Callable[[], float] | None = None,
) -> Comparison:
    """Measure the cases against each other; one that raises is reported as failed, and the others go on.

    Args:
        title: what is compared, for the table.
        cases: name to case.
        reference: the name of the case that ratios are taken to.
        device: "cpu" or "cuda", which the cases compute on.
        runs: rounds of timed calls.
        warm_up: rounds before them, not timed.
        threads: PyTorch's threads in one operation.
        memory: whether to measure peak memory too.
        clock: seconds so far; `time.process_time` where others share the machine, None for `time.perf_counter`.

    Returns:
        The comparison, with a measurement for each case.
    """
    if reference not in cases:
        raise ValueError(f"reference must be one of the cases, {list(cases)}, got {reference!r}")
    if runs < 1 or warm_up < 0 or threads < 1:
        raise ValueError(f"runs and threads must be at least 1 and warm_up 0, got {runs}, {threads} and {warm_up}")
    result: dict[str, Measurement] = {}
    peaks: dict[str, int | None] = {}
    for name, case in cases.items():
        try:
            peaks[name] = peak_bytes(case, device=device, threads=threads) if memory else None
        except MeasurementFailedError as error:
            result[name] = Measurement(failure=str(error))
    times, failures = _interleaved(
        {name: case for name, case in cases.items() if name not in result},
        device,
        runs,
        warm_up,
        threads,
        clock or time.perf_counter,
    )
    for name, failure in failures.items():
        result[name] = Measurement(failure=failure)
    for name, seconds in times.items():
        result[name] = Measurement(median(seconds), min(seconds), max(seconds), peaks[name])
    return Comparison(title, reference, {name: result[name] for name in cases})


def peak_bytes(case: Case, *, device: str = "cpu", threads: int = 1) -> int:
    """Return how far one call raises the peak memory above what is in use before it.

    The measured call is the first in its process, since the C allocator keeps what a call before it gave back; what
    that first call loads and caches counts too, in every case alike.

    Args:
        case: sets up and returns the call.
        device: "cpu" for the peak resident set of a fresh process, "cuda" for PyTorch's allocator statistics.
        threads: PyTorch's threads in one operation.

    Returns:
        Bytes; on the CPU to the resolution of the operating system (a page at best).

    Raises:
        MeasurementFailedError: the case raised or its process died; the message says how.
    """
    # A child forked from this process would inherit its peak; one forked from a server that has done nothing but load
    # PyTorch does not, and need not load it again.
    context = forkserver()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(case, device, threads, sender))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise MeasurementFailedError(f"the process died with exit code {process.exitcode}") from None
    process.join()
    if isinstance(result, str):
        raise MeasurementFailedError(result)
    return int(result)


class MeasurementFailedError(RuntimeError):
    """A case raised, or its process died."""


def _measure_peak(case: Case, device: str, threads: int, sender: Connection) -> None:
    try:
        with settings(threads):
            call = case()
            gc.collect()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                call()
                torch.cuda.synchronize()
                sender.send(torch.cuda.max_memory_allocated() - before)
            else:
                # The setup's own peak may stand above what it keeps, and hide the call's: start the record anew.
                _reset_peak_resident_set()
                before = _resident_set()
                call()
                sender.send(max(_peak_resident_set() - before, 0))
    except Exception as error:
        sender.send(_one_line(error))


def _interleaved(
    cases: Mapping[str, Case], device: str, runs: int, warm_up: int, threads: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    calls: dict[str, Call] = {}
    times: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    with settings(threads):
        for name, case in cases.items():
            try:
                calls[name] = case()
            except Exception as error:
                failures[name] = _one_line(error)
        for turn in range(warm_up + runs):
            for name, call in list(calls.items()):
                try:
                    seconds = _time(call, device, clock)
                except Exception as error:
                    failures[name] = _one_line(error)
                    del calls[name]
                    continue
                if turn >= warm_up:
                    times.setdefault(name, []).append(seconds)
    return {name: times[name] for name in calls}, failures


def _time(call: Call, device: str, clock: Callable[[], float]) -> float:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - start
        del result
        return seconds
    finally:
        if enabled:
            gc.enable()


@contextmanager
def settings(threads: int) -> Iterator[None]:
    """Fix the number of threads and flush denormals, which random weights produce and which slow a CPU many times."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _status(entry: str) -> int | None:
    """Return an entry of Linux's /proc/self/status in bytes, or None elsewhere."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024


def _reset_peak_resident_set() -> None:
    # Linux only, and refused in some containers: the peak then includes the setup's, as getrusage's always does.
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _resident_set() -> int:
    return _status("VmRSS") or _rusage()


def _peak_resident_set() -> int:
    return _status("VmHWM") or _rusage()


def _rusage() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(device: str = "cpu", threads: int = 1) -> dict[str, object]:
    """Return what a figure depends on beside the code: the machine, its processor, versions and threads."""
    packages = {}
    for package in ("torch", "torchvision", "captum", "numpy", "grad-cam"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": threads,
        "python": platform.python_version(),
        "packages": packages,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as one aligned Markdown table; ratios are to each comparison's reference."""
    cells = [["what", "method", "ms", "fastest..slowest", "time ratio", "peak MB", "memory ratio"]]
    for comparison in comparisons:
        for name, measured in comparison.measurements.items():
            if measured.failure is not None or measured.seconds is None:
                cells.append([comparison.title, name, f"fails: {measured.failure}", "", "", "", ""])
                continue
            spread = f"{_number(measured.fastest, 1e3)}..{_number(measured.slowest, 1e3)}"
            ratios = (comparison.ratio(name, quantity) for quantity in ("seconds", "peak_bytes"))
            time_ratio, memory_ratio = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
            peak = _number(measured.peak_bytes, 1e-6)
            cells.append(
                [comparison.title, name, _number(measured.seconds, 1e3), spread, time_ratio, peak, memory_ratio]
            )
    # A failure's text may run over the columns right of it: it does not widen its own.
    widths = [max(len(row[i]) for row in cells if not row[i].startswith("fails: ")) for i in range(len(cells[0]))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (cells[0], rule, *cells[1:])
    )


def _number(value: float | None, scale: float) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value * scale:.1f}"


def write(path: Path, comparisons: Sequence[Comparison], *, device: str, threads: int, **facts: object) -> None:
    """Write the comparisons as JSON, with the machine they were measured on and further facts (batch size, runs)."""
    content = {
        "machine": machine(device, threads),
        **facts,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
