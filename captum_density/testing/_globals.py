"""Torch's global settings and hooks, and the global random generators: to read, to seed and to put back."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_BACKENDS = torch.backends
# name -> (read, write); what cannot be written is only watched.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any] | None]] = {
    "torch.is_grad_enabled()": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.is_anomaly_enabled()": (torch.is_anomaly_enabled, None),
    "torch.are_deterministic_algorithms_enabled()": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch.get_num_threads()": (torch.get_num_threads, torch.set_num_threads),
    "torch.backends.cudnn.enabled": (lambda: _BACKENDS.cudnn.enabled, torch._C._set_cudnn_enabled),
    "torch.backends.mkldnn.enabled": (lambda: torch._C._get_mkldnn_enabled(), torch._C._set_mkldnn_enabled),
    "flash attention": (_BACKENDS.cuda.flash_sdp_enabled, _BACKENDS.cuda.enable_flash_sdp),
    "memory-efficient attention": (_BACKENDS.cuda.mem_efficient_sdp_enabled, _BACKENDS.cuda.enable_mem_efficient_sdp),
    "math attention": (_BACKENDS.cuda.math_sdp_enabled, _BACKENDS.cuda.enable_math_sdp),
    "active torch function modes": (lambda: torch._C._len_torch_function_stack(), None),
    "active torch dispatch modes": (lambda: torch._C._len_torch_dispatch_stack(), None),
}
GLOBAL_HOOKS: dict[str, dict[Any, Any]] = {
    f"torch.nn.modules.module.{key}": hooks
    for key, hooks in vars(nn.modules.module).items()
    if key.startswith("_global") and isinstance(hooks, dict)
}


def read_settings() -> dict[str, Any]:
    """Every setting's value by its name."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


def rng_states(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators by the call that reads them."""
    cuda = {"torch.cuda.get_rng_state()": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {
        "torch.get_rng_state()": torch.get_rng_state(),
        **cuda,
        "numpy.random.get_state()": np.random.get_state(),
        "random.getstate()": random.getstate(),
    }


@contextlib.contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Put settings, hooks and generators back after, so that who changes one fails its own check and no other."""
    settings, hooks = read_settings(), {key: dict(hooks) for key, hooks in GLOBAL_HOOKS.items()}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            for name, (read, write) in SETTINGS.items():
                if write is not None and read() != settings[name]:
                    write(settings[name])
            for key, now in GLOBAL_HOOKS.items():
                if now != hooks[key]:
                    now.clear()
                    now.update(hooks[key])


@contextlib.contextmanager
def seeded(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Within, the global generators start from a seed; after, all is as before."""
    with preserved(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every device
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
