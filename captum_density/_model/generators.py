"""The global random generators, to play the same numbers again and to leave them as they were."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from captum_density._model.interrupts import CleanInterrupts

__all__ = ["RANDOM_STATE", "derived_seed", "pinned", "replayable", "seed_generators", "seeded", "standard_noise"]


@contextmanager
def replayable(device: torch.device) -> Iterator[Callable[[], None]]:
    """Within, a function that takes torch's, NumPy's and Python's generators back; after, they are as before.

    Captum's methods draw from all three (GradientShap from NumPy's).

    Args:
        device: Of the inputs; its own generator is among them.

    Yields:
        A function without arguments.
    """
    cpu, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        np.random.set_state(numpy_state)
        random.setstate(python_state)

    try:
        yield rewind
    finally:
        rewind()


def derived_seed(seed: int, *words: object) -> int:
    """A seed for one purpose, the same in every process and version: Python's own `hash` is neither."""
    text = "/".join(map(str, (seed, *words)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1  # below 2^63


def seed_generators(seed: int, *devices: torch.device) -> None:
    """Seed torch's generators of the CPU and of these devices, and of no others, as `torch.manual_seed` would."""
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)


def standard_noise(
    inputs: tuple[Tensor, ...], n_samples: int, distribution: str, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """Noise of mean 0 and variance 1 in each element, (n_samples, N, ...) for each input, of its dtype and device.

    Args:
        inputs: What the noise is for, (N, ...) each.
        n_samples: Copies.
        distribution: "gaussian" or "rademacher" (1 or -1).
        generator: What to draw from, on its own device; None for the global one of the inputs' device.
    """
    noise = []
    for x in inputs:
        device = x.device if generator is None else generator.device
        shape = (n_samples, *x.shape)
        if distribution == "rademacher":
            signs = torch.randint(0, 2, shape, generator=generator, device=device)
            noise.append((signs * 2 - 1).to(x))
        else:
            noise.append(torch.randn(shape, generator=generator, device=device, dtype=x.dtype).to(x.device))
    return tuple(noise)


# The generators are global: threads that seed them in turn would draw each other's numbers.
RANDOM_STATE = threading.RLock()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within, the global generators start from a seed; after, they are as before. One thread at a time."""
    with CleanInterrupts(), RANDOM_STATE, replayable(device):
        seed_generators(seed, device)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Within, PyTorch has so many threads; one thread of ours at a time, as these are the process's."""
    with CleanInterrupts(), RANDOM_STATE:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
