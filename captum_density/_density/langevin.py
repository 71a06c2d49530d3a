"""Langevin dynamics: steps of a chain whose stationary distribution is a model's density."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from captum_density._density.log_density import LogDensity, squared_norm
from captum_density._model.copies import Points
from captum_density._model.generators import standard_noise

__all__ = ["Bounds", "FiniteSteps", "Langevin", "Step", "check_bounds", "check_steps", "limits", "within"]

# (low, high), each a number for every element, or a tensor that broadcasts to each input.
Bounds: TypeAlias = tuple[float | Tensor, float | Tensor]


class Step(NamedTuple):
    """A chain after a step.

    Args:
        points: (1, N, ...) for each input.
        accepted: (N,) whether the proposal was taken.
    """

    points: Points
    accepted: Tensor


@dataclass(frozen=True)
class Langevin:
    """x' = x + step_size / 2 * grad log p(x) / temperature + N(0, step_size).

    Args:
        step_size: The variance of the noise.
        temperature: Of the density sampled, p^(1 / temperature).
        bounds: Clamp to it; with `metropolis`, refuse what lies outside.
        metropolis: Accept or reject, which makes the stationary distribution exact.
        generator: What noise is drawn from.
    """

    step_size: float
    temperature: float
    bounds: Bounds | None
    metropolis: bool
    generator: torch.Generator | None

    def chain(self, density: LogDensity, n_steps: int) -> Iterator[Step]:
        """Each step of a chain that starts at the density's inputs.

        Args:
            density: Opened.
            n_steps: How many.

        Yields:
            The state after each step.

        Raises:
            ValueError: If the chain runs away to infinity, or starts outside its bounds.
        """
        points = density.points()
        if self.metropolis and self.bounds is not None and not bool(self._inside(points).all()):
            raise ValueError(f"a Metropolis-adjusted chain must start within its bounds, {self.bounds}")
        if not self.metropolis:
            yield from self._unadjusted(density, points, n_steps)
            return
        values, gradients = density.scores(points)
        finite = FiniteSteps(n_steps, points[0].device)
        for _ in range(n_steps):
            proposal = self._propose(points, gradients)
            self._check(finite.first_other(proposal))
            new_values, new_gradients = density.scores(proposal)
            ratio = self._log_ratio(points, values, gradients, proposal, new_values, new_gradients)
            accepted = self._accept(ratio, proposal)
            points, gradients = (
                tuple(_choose(accepted, new, old) for new, old in zip(after, before, strict=True))
                for after, before in ((proposal, points), (new_gradients, gradients))
            )
            values = torch.where(accepted, new_values, values)
            yield Step(points, accepted[0])

    def _unadjusted(self, density: LogDensity, points: Points, n_steps: int) -> Iterator[Step]:
        always = torch.ones(density.n, dtype=torch.bool, device=points[0].device)
        finite = FiniteSteps(n_steps, points[0].device)
        for _ in range(n_steps):
            _, gradients = density.scores(points)
            points = self._propose(points, gradients)
            if self.bounds is not None:
                points = within(points, self.bounds)
            self._check(finite.first_other(points))
            yield Step(points, always)

    def _check(self, left: int | None) -> None:
        if left is not None:
            raise ValueError(
                f"step {left} left the finite numbers: the density grows without bound, or step_size {self.step_size} "
                "is too large for its curvature; take a smaller step_size, or bounds"
            )

    def _propose(self, points: Points, gradients: Points) -> Points:
        noise = standard_noise(points, 1, "gaussian", self.generator)
        root = self.step_size**0.5
        return tuple(mean + root * z[0] for mean, z in zip(self._means(points, gradients), noise, strict=True))

    def _means(self, points: Points, gradients: Points) -> Points:
        factor = self.step_size / (2 * self.temperature)
        return tuple(p + factor * g for p, g in zip(points, gradients, strict=True))

    def _log_ratio(
        self, old: Points, old_values: Tensor, old_gradients: Points, new: Points, new_values: Tensor, slopes: Points
    ) -> Tensor:
        """log p(x') q(x | x') / (p(x) q(x' | x)), (1, N)."""
        forth = squared_norm(_difference(new, self._means(old, old_gradients)))
        back = squared_norm(_difference(old, self._means(new, slopes)))
        return (new_values - old_values) / self.temperature + (forth - back) / (2 * self.step_size)

    def _accept(self, log_ratio: Tensor, proposal: Points) -> Tensor:
        device = log_ratio.device if self.generator is None else self.generator.device
        draw = torch.rand(log_ratio.shape, generator=self.generator, device=device, dtype=log_ratio.dtype)
        return (draw.to(log_ratio.device).log() < log_ratio) & self._inside(proposal)

    def _inside(self, points: Points) -> Tensor:
        boxes = [limits(self.bounds or (-torch.inf, torch.inf), p) for p in points]
        inside = [
            ((p >= low) & (p <= high)).reshape(*p.shape[:2], -1).all(2)
            for p, (low, high) in zip(points, boxes, strict=True)
        ]
        return torch.stack(inside).all(0)


class FiniteSteps:
    """Whether all numbers of all steps are finite: looked at after each step, on a GPU after every tenth and the last.

    There, each look waits until the GPU has done what it was asked to.

    Args:
        n_steps: How many there will be.
        device: Where.
    """

    def __init__(self, n_steps: int, device: torch.device) -> None:
        self._n_steps, self._between = n_steps, 1 if device.type == "cpu" else 10
        self._taken = 0
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._before = torch.zeros((), dtype=torch.int64, device=device)

    def first_other(self, numbers: Sequence[Tensor]) -> int | None:
        """After another step: the first that was not finite, counted from 1; None where none is known."""
        for t in numbers:
            self._finite = self._finite & t.isfinite().all()
        self._before = self._before + self._finite
        self._taken += 1
        if self._taken % self._between and self._taken < self._n_steps:
            return None
        before = int(self._before)
        return before + 1 if before < self._taken else None


def within(points: Points, bounds: Bounds) -> Points:
    """The nearest points in the box."""
    return tuple(p.clamp(*limits(bounds, p)) for p in points)


def limits(bounds: Bounds, x: Tensor) -> tuple[Any, Any]:
    """The bounds of a tensor's elements: two numbers, or two tensors of its shape.

    Raises:
        ValueError: A tensor among them does not broadcast to it.
    """
    if not any(isinstance(bound, Tensor) for bound in bounds):
        return bounds
    try:
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x) for bound in bounds)
    except RuntimeError as error:
        raise ValueError(
            "bounds must be (low, high), each a number or a tensor that broadcasts to the inputs, here "
            f"{tuple(x.shape)}, but is {bounds}"
        ) from error
    return low, high


def check_bounds(bounds: Bounds | None) -> None:
    """Refuse bounds that hold nothing.

    Raises:
        ValueError: If they are not two in order.
    """
    if bounds is None:
        return
    try:
        low, high = (torch.as_tensor(bound, dtype=torch.float64, device="cpu") for bound in bounds)
        in_order = bool((low < high).all())
    except (RuntimeError, TypeError, ValueError):
        in_order = False
    if not in_order:
        raise ValueError(f"bounds must be (low, high) with low < high, but is {bounds}")


def check_steps(n_steps: int, step_size: float) -> None:
    """Refuse steps that go nowhere.

    Raises:
        ValueError: If the number is below 1 or the size not positive and finite.
    """
    if not isinstance(n_steps, int) or n_steps < 1:
        raise ValueError(f"n_steps must be an integer of at least 1, but is {n_steps!r}")
    if not 0 < step_size < float("inf"):
        raise ValueError(f"step_size must be positive and finite, but is {step_size}")


def _difference(a: Points, b: Points) -> Points:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.reshape(*accepted.shape, *[1] * (new.ndim - 2)), new, old)
