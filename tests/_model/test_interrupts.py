"""Ctrl-C at every line of what changes something for a while: nothing is left changed.

Of the private part on purpose: what is entered and left within a call cannot be told apart from outside.
"""

import gc
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from captum_density._attention import AttentionCalls
from captum_density._linear.trace import Trace
from captum_density._linear.two_points import TwoPointsMode
from captum_density._model.batch import ModelOnBatch
from captum_density._model.copies import ModelOnCopies
from captum_density._model.generators import pinned, seeded
from captum_density._model.interrupts import CleanInterrupts
from captum_density.density import softplus_surrogate

CPU = torch.device("cpu")
MODEL, RECURRENT, ATTENTION = nn.BatchNorm1d(4), nn.LSTM(4, 2), nn.MultiheadAttention(4, 1)
X = torch.randn(2, 4)

CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a trace": Trace,
    "two points": lambda: TwoPointsMode(2).watching(),
    "evaluation": lambda: ModelOnBatch(MODEL.train(), X).evaluation(comparison=True),
    "evaluation of a function": lambda: ModelOnBatch(lambda x: MODEL(x), X).evaluation(),
    "evaluation, differentiable twice": lambda: ModelOnCopies(RECURRENT, X).evaluation(second_derivatives=True),
    "attention calls": lambda: AttentionCalls(ATTENTION, ATTENTION, lambda call, n: None),
    "seeded generators": lambda: seeded(1, CPU),
    "pinned threads": lambda: pinned(torch.get_num_threads() + 1),
    "softplus": lambda: softplus_surrogate(MODEL),
}


def state() -> dict[str, Any]:
    modules = {name: module for model in (MODEL, RECURRENT, ATTENTION) for name, module in model.named_modules()}
    return {
        "signal": signal.getsignal(signal.SIGINT),
        "random numbers": torch.get_rng_state().numpy().tobytes(),
        "warnings": list(sys.modules["warnings"].filters),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "fused attention": torch.backends.cuda.flash_sdp_enabled(),
        "modules": [(name, module.training, "forward" in vars(module)) for name, module in modules.items()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules.values()],
        "buffers": [id(buffer) for buffer in MODEL.buffers()],
    }


class Traced:
    """A trace function that counts lines, and has a signal come at one of them."""

    def __init__(self, line: int, number: int) -> None:
        self.line, self.number, self.lines = line, number, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        # Not between a `with` and its contexts, where Python looks for no signal, though it counts a line.
        if event == "line" and frame.f_code.co_filename != __file__:
            self.lines += 1
            if self.lines == self.line:
                signal.raise_signal(self.number)
        return self


def traced(call: Callable[[], None], line: int = 0, number: int = signal.SIGINT) -> int:
    """Run with Ctrl-C or another signal at a line, none for 0; returns how many lines there were."""
    counter, before = Traced(line, number), sys.gettrace()
    gc.disable()  # what is raised while garbage is collected is swallowed
    sys.settrace(counter)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return counter.lines


@pytest.mark.parametrize("name", CONTEXTS)
def test_ctrl_c_leaves_nothing_behind_at_any_line(name, global_state):
    def run() -> None:
        with CleanInterrupts(), CONTEXTS[name]():
            pass

    run()
    before = global_state() | state()
    for line in range(1, traced(run) + 1):
        with pytest.raises(KeyboardInterrupt):
            traced(run, line)
        after = global_state() | state()
        assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}, line


class OutOfTimeError(Exception):
    """What a user's alarm raises."""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms here")
@pytest.mark.parametrize("name", ["a trace", "evaluation", "pinned threads"])
def test_nor_does_an_alarm_whose_handler_raises(name, global_state):
    def too_late(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    def run() -> None:
        with CleanInterrupts(), CONTEXTS[name]():
            pass

    run()
    outer = signal.signal(signal.SIGALRM, too_late)
    try:
        before = global_state() | state()
        for line in range(1, traced(run) + 1):
            with pytest.raises(OutOfTimeError):
                traced(run, line, signal.SIGALRM)
            assert global_state() | state() == before, line
            assert signal.getsignal(signal.SIGALRM) is too_late, line
    finally:
        signal.signal(signal.SIGALRM, outer)


def test_ctrl_c_comes_after_what_it_had_to_wait_for():
    done: list[str] = []

    class Slow:
        def __enter__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            done.append("entered")

        def __exit__(self, *error: object) -> None:
            done.append("left")

    with pytest.raises(KeyboardInterrupt), CleanInterrupts():
        with Slow():
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                time.sleep(0.001)
        done.append("not interrupted")
    assert done == ["entered", "left"]


def test_ctrl_c_is_not_swallowed_by_a_finaliser():
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), CleanInterrupts():
        Finalised()


def test_where_ctrl_c_is_handled_otherwise_it_is_left_alone():
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        own = signal.getsignal(signal.SIGINT)
        with CleanInterrupts(), CleanInterrupts():
            signal.raise_signal(signal.SIGINT)
        assert pressed == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is own
        with CleanInterrupts():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with CleanInterrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
