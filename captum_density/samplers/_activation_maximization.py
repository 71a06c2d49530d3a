"""ActivationMaximization: climbs a logit, and does not look back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from captum_density._density.langevin import Bounds, FiniteSteps, Step, check_bounds, check_steps, within
from captum_density._density.log_density import LogDensity, squared_norm
from captum_density._model.arrays import takes_arrays
from captum_density._model.copies import Points
from captum_density.samplers._samples import Sampler

__all__ = ["ActivationMaximization"]


class ActivationMaximization(Sampler):
    r"""Inputs of high p(x | y), or p(x), by gradient ascent, with decay towards a reference.

    .. math:: x_{t+1} = x_t + \eta \left( \nabla f_y(x_t) - \lambda (x_t - x_0) \right)

    which climbs f_y(x) - lambda / 2 |x - x_0|^2. Deterministic: samples differ where their initial points do.

    Args:
        forward_func: As `LangevinSampler`.
        step_size: eta; with `normalize`, the length of the step up.
        n_steps: As `LangevinSampler`.
        decay: lambda, at least 0.
        reference: x_0, a number or a tensor that broadcasts to the input; a tuple of these for several inputs.
        bounds: As `LangevinSampler`: Every element is clamped to them.
        normalize: Whether to divide each example's gradient by its norm, so that models whose gradients differ in
            length are climbed in equal steps.

    Raises:
        ValueError: If a number is out of range.

    References:
        D. Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009; K. Simonyan, A. Vedaldi and A.
        Zisserman, 2013, arXiv:1312.6034, section 2 (the penalty); S. Srinivas and F. Fleuret, ICLR 2021,
        arXiv:2006.09128, experiments.

    Example:
        >>> import torch
        >>> log_density = lambda x: -0.5 * ((x - 2) ** 2).sum(1)
        >>> ActivationMaximization(log_density, step_size=0.5, n_steps=50).sample(torch.zeros(1, 2)).samples
        tensor([[2., 2.]])
    """

    _name = "activation maximization"

    @takes_arrays
    def __init__(
        self,
        forward_func: Callable[..., Any],
        step_size: float,
        n_steps: int = 100,
        *,
        decay: float = 0.0,
        reference: float | Tensor | tuple[float | Tensor, ...] = 0.0,
        bounds: Bounds | None = None,
        normalize: bool = False,
    ) -> None:
        check_steps(n_steps, step_size)
        check_bounds(bounds)
        if not 0 <= decay < float("inf"):
            raise ValueError(f"decay must be at least 0 and finite, but is {decay}")
        super().__init__(forward_func, n_steps)
        self.step_size, self.decay, self.reference = step_size, decay, reference
        self.bounds, self.normalize = bounds, normalize

    def _references(self, density: LogDensity) -> Points:
        values = self.reference if isinstance(self.reference, tuple) else (self.reference,) * len(density.inputs)
        if len(values) != len(density.inputs):
            raise ValueError(f"reference must be one, or one for each of {len(density.inputs)} inputs")
        try:
            return tuple(
                torch.as_tensor(r, dtype=x.dtype, device=x.device).expand_as(x)
                for r, x in zip(values, density.inputs, strict=True)
            )
        except RuntimeError as error:
            raise ValueError(f"reference must fit the inputs: {error}") from error

    def _steps(self, density: LogDensity) -> Iterator[Step]:
        references = self._references(density)
        points = density.points()
        every = torch.ones(density.n, dtype=torch.bool, device=points[0].device)
        finite = FiniteSteps(self.n_steps, points[0].device)
        for _ in range(self.n_steps):
            _, gradients = density.scores(points)
            if self.normalize:
                gradients = _normalized(gradients)
            points = tuple(
                p + self.step_size * (g - self.decay * (p - r))
                for p, g, r in zip(points, gradients, references, strict=True)
            )
            if self.bounds is not None:
                points = within(points, self.bounds)
            left = finite.first_other(points)
            if left is not None:
                raise ValueError(
                    f"step {left} left the finite numbers; take a smaller step_size, decay, bounds or normalize"
                )
            yield Step(points, every)


def _normalized(gradients: Points) -> Points:
    # Squares of small gradients would vanish in single precision.
    doubles = tuple(g.double() for g in gradients)
    length = squared_norm(doubles).sqrt()
    length = length.where(length > 0, 1.0)
    return tuple(
        (d / length.reshape(*length.shape, *[1] * (d.ndim - 2))).to(g) for d, g in zip(doubles, gradients, strict=True)
    )
