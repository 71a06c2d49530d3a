"""What every test gets: a seed, a skip where there is no GPU, and a check that it leaves PyTorch as it found it."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Read when PyTorch loads, here and in the processes that tests start. The tests' networks are too small for more than
# one thread, and each core has its own worker of pytest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

# Timings vary on a shared machine, so no deadline; a failing example must be the same one on the next run in CI.
hypothesis.settings.register_profile("local", deadline=None, print_blob=True, max_examples=50)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


# Parametrised values that are drawn as modules are imported have to be the same in every worker.
torch.manual_seed(0)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Tensors by their shape, not by their numbers."""
    if isinstance(val, torch.Tensor):
        return f"tensor{tuple(val.shape)}"
    return None


def pytest_collection_finish() -> None:
    # Modules and tests stay to the end: a collection of garbage need not walk all of them, hundreds of times.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


def _global_state() -> dict[str, object]:
    """What a test, or the code it runs, could leave switched on for every test after it."""
    module = torch.nn.modules.module
    hooks = [name for name in vars(module) if name.startswith("_global_") and name.endswith("_hooks")]
    assert hooks, "PyTorch moved its global module hooks: look for their new place"
    return {
        **{f"torch.nn.modules.module.{name}": dict(getattr(module, name)) for name in hooks},
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.backends.mkldnn.enabled": torch.backends.mkldnn.enabled,
        "torch.backends.cudnn.enabled": torch.backends.cudnn.enabled,
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
    }


@pytest.fixture(autouse=True)
def _no_bad_index_reaches_a_pretended_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a real one it would end all use of it in the process, and every test after it would fail."""
    pretended: Any = sys.modules.get("pretend_device")
    if pretended is None or not request.node.get_closest_marker("cuda"):
        yield
        return
    with pretended.counted() as seen:
        yield
    assert not seen.asserts


@pytest.fixture
def global_state() -> Callable[[], dict[str, object]]:
    return _global_state


@pytest.fixture(autouse=True)
def _seeded_and_left_as_found() -> Iterator[None]:
    torch.manual_seed(0)
    before = _global_state()
    yield
    after = _global_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"left behind (before, after): {changed}"
