"""Estimators of the Hessian's trace, from derivatives or from differences of values."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density._density.log_density import LogDensity
from captum_density._model.copies import Points
from captum_density._model.errors import warn
from captum_density._model.generators import standard_noise

__all__ = ["TraceEstimator", "check_noise", "displaced_values", "warn_if_flat"]

_BY_DIFFERENCES = ("antithetic", "taylor")
_NAMES = (*_BY_DIFFERENCES, "hutchinson", "exact")


@dataclass(frozen=True)
class TraceEstimator:
    """One of four estimators, and its settings.

    Args:
        name: "antithetic", "taylor", "hutchinson" or "exact".
        n_samples: Noise samples to average over.
        noise_std: Standard deviation of the displacement, for "antithetic" and "taylor".
        distribution: "gaussian" or "rademacher".
        generator: What the noise is drawn from.

    Raises:
        ValueError: An unknown name, a setting out of range, or one the estimator has no use for.
        TypeError: A setting of another type.
    """

    name: str = "antithetic"
    n_samples: int = 1
    noise_std: float = 0.1
    distribution: str = "gaussian"
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, _NAMES))}, but is {self.name!r}")
        check_noise(self.n_samples, self.noise_std, self.generator)
        if self.distribution not in ("gaussian", "rademacher"):
            raise ValueError(f"distribution must be 'gaussian' or 'rademacher', but is {self.distribution!r}")
        unused = [] if self.by_differences else ["noise_std"]
        for what in unused + (["n_samples", "distribution", "generator"] if self.name == "exact" else []):
            if getattr(self, what) != getattr(type(self), what):
                raise ValueError(f"estimator {self.name!r} has no use for {what}: leave it out")

    def __str__(self) -> str:
        """The settings that matter."""
        if self.name == "exact":
            return "estimator='exact'"
        std = f", noise_std={self.noise_std}" if self.by_differences else ""
        return f"estimator={self.name!r}, n_samples={self.n_samples}{std}, distribution={self.distribution!r}"

    @property
    def by_differences(self) -> bool:
        """Whether it compares values at displaced points, and takes no derivative."""
        return self.name in _BY_DIFFERENCES

    def directions(self, density: LogDensity) -> Points:
        """Noise of mean 0 and covariance 1, (K, N, ...) for each input."""
        return standard_noise(density.inputs, self.n_samples, self.distribution, self.generator)

    def __call__(self, density: LogDensity, values: Tensor | None, *, create_graph: bool) -> Tensor:
        """The trace (N,).

        Args:
            density: Opened; for "hutchinson" and "exact" with second derivatives.
            values: The log-density (1, N) at the examples, where it is known already.
            create_graph: Whether the result can be differentiated by the model's parameters.
        """
        if self.name == "exact":
            return _exact(density, create_graph)
        directions = self.directions(density)
        if self.by_differences:
            noise = tuple(self.noise_std * u for u in directions)
            plus, minus, middle = displaced_values(density, values, noise, one_sided=self.name == "taylor")
            # Differences of neighbours first, which are nearly exact, then their sum.
            differences = (plus - middle) * 2 if minus is None else (plus - middle) + (minus - middle)
            return differences.mean(0) / self.noise_std**2
        curvatures = density.curvatures(directions, create_graph=create_graph)
        warn_if_flat(curvatures)
        return curvatures.mean(0)


def check_noise(
    n_samples: int, noise_std: float, generator: torch.Generator | None = None, *, name: str = "n_samples"
) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: A number of samples below 1, or a standard deviation that is not positive and finite.
        TypeError: A number of samples that is no integer, a standard deviation that is no number, or a generator that
            is none.
    """
    if not isinstance(n_samples, int) or isinstance(n_samples, bool):
        raise TypeError(f"{name} must be an integer, but is {n_samples!r}")
    if n_samples < 1:
        raise ValueError(f"{name} must be at least 1, but is {n_samples}")
    if not isinstance(noise_std, numbers.Real) or isinstance(noise_std, bool):
        raise TypeError(f"noise_std must be a number, but is {noise_std!r}")
    if not 0 < noise_std < float("inf"):
        raise ValueError(f"noise_std must be positive and finite, but is {noise_std}; it has the inputs' units")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, but is {generator!r}")


def displaced_values(
    density: LogDensity, values: Tensor | None, noise: Points, *, one_sided: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """f(x + v), f(x - v) (K, N) and f(x) (1, N), in as few runs as can be."""
    k = len(noise[0])
    values = density.clean_values if values is None else values
    signed = noise if one_sided else tuple(torch.cat([v, -v]) for v in noise)
    points = density.displaced(signed)
    if values is None:
        points = tuple(torch.cat([p, x]) for p, x in zip(points, density.points(), strict=True))
    displaced = density.values(points)
    middle = displaced[-1:] if values is None else values
    if not bool((displaced != middle).any()):
        density.require_gradient()
    return displaced[:k], None if one_sided else displaced[k : 2 * k], middle


def warn_if_flat(curvatures: Tensor) -> None:
    """Warn of a second derivative that is nothing but zero."""
    if not bool(curvatures.detach().any()):
        warn(
            "every second derivative is exactly zero: the log-density is piecewise linear, as a ReLU network's logits "
            "are, or constant, so this Hessian says nothing; take estimator='antithetic' with a finite noise_std, or "
            "evaluate the model within captum_density.density.softplus_surrogate"
        )


def _exact(density: LogDensity, create_graph: bool) -> Tensor:
    """The sum of e'He over all unit vectors e, as many at once as may run."""
    d = sum(x[0].numel() for x in density.inputs)
    size = density.copies_at_once or d
    parts = []
    for start in range(0, d, size):
        directions = _unit_vectors(density.inputs, start, min(start + size, d))
        parts.append(density.curvatures(directions, create_graph=create_graph))
    curvatures = torch.cat(parts)
    warn_if_flat(curvatures)
    return curvatures.sum(0)


def _unit_vectors(inputs: tuple[Tensor, ...], start: int, stop: int) -> Points:
    """Those of the elements from start to stop, counted through all inputs, (stop - start, N, ...) for each."""
    vectors, offset = [], 0
    for x in inputs:
        d = x[0].numel()
        rows = torch.arange(start, stop, device=x.device)[:, None]
        ones = (rows == torch.arange(offset, offset + d, device=x.device)).to(x)
        vectors.append(ones.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape))
        offset += d
    return tuple(vectors)
