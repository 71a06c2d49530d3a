"""What a sampler returns, and how samplers run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from captum_density._density.langevin import Step
from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric

__all__ = ["Sampler", "Samples"]


class Samples(NamedTuple):
    """Where a sampler's chains ended. See `LangevinSampler`.

    Args:
        samples: The last points, a tensor or tuple of tensors like the initial ones, (N, ...), detached.
        acceptance_rate: (N,) the share of steps each chain took, in [0, 1]; 1 without a Metropolis adjustment.
        trajectory: All points, initial ones first, (1 + n_steps, N, ...), tensor or tuple; None unless asked for.
    """

    samples: Any
    acceptance_rate: Tensor
    trajectory: Any = None


class Sampler:
    """Walks from initial points in steps that a subclass makes.

    Args:
        forward_func: Returns logits (N, C), or a log-density (N,) itself.
        n_steps: Steps of each chain.
    """

    # Of the progress bar.
    _name = "sampling"
    # Whether values are compared, which a model that draws random numbers spoils.
    _comparison = False

    def __init__(self, forward_func: Callable[..., Any], n_steps: int) -> None:
        self.forward_func, self.n_steps = forward_func, n_steps

    @takes_arrays
    def sample(
        self,
        initial: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        return_trajectory: bool = False,
        show_progress: bool = False,
    ) -> Samples:
        """Run the chains, one for each row of the initial points.

        Args:
            initial: Where they start, (N, ...) or tuple of such; noise, or examples.
            target: y, as Captum's: the same class for all, or one for each chain; None for p(x).
            additional_forward_args: As Captum's.
            return_trajectory: Whether to keep the points of every step.
            show_progress: Whether to show a progress bar.

        Returns:
            The last points, the acceptance rate, and the trajectory where it was asked for.

        Raises:
            ValueError: If the points leave the finite numbers, no gradient reaches them, or a setting of the sampler
                does not fit them; with a Metropolis adjustment, if chains start out of bounds or the model draws random
                numbers (dropout in training mode); as `captum_density.density.class_log_density` otherwise.
            TypeError: As there.
            AssertionError: Captum's own, for a target that does not fit.
        """
        density = LogDensity(self.forward_func, initial, target, additional_forward_args)
        with density.evaluation(comparison=self._comparison):
            accepted = torch.zeros(density.n, dtype=torch.float64, device=density.inputs[0].device)
            points = density.points()
            path = [points]
            steps = self._steps(density)
            for step in tqdm(steps, total=self.n_steps, desc=self._name, disable=not show_progress):
                points = step.points
                accepted += step.accepted
                if return_trajectory:
                    path.append(points)

        def like_inputs(parts: tuple[Tensor, ...]) -> Any:
            return parts if density.is_tuple else parts[0]

        trajectory = like_inputs(tuple(map(torch.cat, zip(*path, strict=True)))) if return_trajectory else None
        return Samples(like_inputs(tuple(p[0] for p in points)), accepted / self.n_steps, trajectory)

    def _steps(self, density: LogDensity) -> Iterator[Step]:
        """The chains after each step; the density is open."""
        raise NotImplementedError
