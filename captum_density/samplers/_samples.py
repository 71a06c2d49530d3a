"""What a sampler returns, and how it keeps account of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from captum_density._langevin import Step
from captum_density._log_density import LogDensity

__all__ = ["Samples", "collect"]


class Samples(NamedTuple):
    """Where a sampler's chains ended.

    Args:
        samples: The last points, a tensor or tuple of tensors like the initial ones, (N, ...), detached.
        acceptance_rate: (N,) the share of steps each chain took, in [0, 1]; 1 without a Metropolis adjustment.
        trajectory: All points, initial ones first, (1 + n_steps, N, ...), tensor or tuple; None unless asked for.
    """

    samples: Any
    acceptance_rate: Tensor
    trajectory: Any = None


def collect(
    density: LogDensity, steps: Iterator[Step], n_steps: int, *, name: str, trajectory: bool, show_progress: bool
) -> Samples:
    """Walk through the steps.

    Args:
        density: What is sampled.
        steps: The chain, of n_steps.
        n_steps: How many.
        name: Of the progress bar.
        trajectory: Whether to keep every point.
        show_progress: Whether to show the bar.

    Returns:
        The last points, and what else was asked for.
    """
    accepted = torch.zeros(density.n, dtype=torch.float64, device=density.inputs[0].device)
    points = density.points()
    kept = [points]
    for step in tqdm(steps, total=n_steps, desc=name, disable=not show_progress):
        points = step.points
        accepted += step.accepted
        if trajectory:
            kept.append(points)

    def like_inputs(parts: tuple[Tensor, ...]) -> Any:
        return parts if density.is_tuple else parts[0]

    last = like_inputs(tuple(p[0] for p in points))
    path = like_inputs(tuple(torch.cat(parts) for parts in zip(*kept, strict=True))) if trajectory else None
    return Samples(last, accepted / n_steps, path)
