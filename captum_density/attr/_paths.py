"""Paths from a baseline to an input, along which gradients are integrated."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from captum_density._model.arrays import as_tensor, takes_arrays
from captum_density._model.evaluation import load_forward_mode
from captum_density.attr._repr import shown

__all__ = ["FunctionPath", "Leg", "Path", "PiecewiseLinearPath", "PowerPath", "StraightPath"]

Tensors = tuple[Tensor, ...]

# How far from the baseline and the input a path may end, relative to the largest element on the way.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Leg(NamedTuple):
    """A smooth piece of a path, as a path of its own.

    Args:
        path: Whose derivative has no jumps.
        start: Where it begins, for each input (N, ...).
        end: Where it ends.
    """

    path: Path
    start: Tensors
    end: Tensors


class Path(ABC):
    """gamma(alpha) from a baseline, alpha = 0, to an input, alpha = 1.

    Baselines and inputs are tuples of tensors (N, ...), and each result has a tensor for each of them.
    """

    def __repr__(self) -> str:
        return shown(self)

    @abstractmethod
    def points(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """gamma at S numbers alpha.

        Args:
            alphas: (S,) in [0, 1].
            baselines: x', a tensor (N, ...) for each input.
            inputs: x, a tensor (N, ...) each.

        Returns:
            A tensor (S, N, ...) for each input.

        Raises:
            ValueError: Powers, waypoints or a function that do not fit the inputs.
        """

    @abstractmethod
    def derivatives(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """d gamma / d alpha at S numbers alpha.

        Args:
            alphas: (S,) in [0, 1].
            baselines: x', a tensor (N, ...) for each input.
            inputs: x, a tensor (N, ...) each.

        Returns:
            A tensor (S, N, ...) for each input, or (1, N, ...) where it is the same at all alpha.

        Raises:
            ValueError: As `points`; a function that does not compute with alpha as a tensor.
        """

    def legs(self, baselines: Tensors, inputs: Tensors) -> list[Leg]:
        """The path in smooth pieces, one after another, each for an equal share of alpha.

        Args:
            baselines: x', a tensor (N, ...) for each input.
            inputs: x, a tensor (N, ...) each.

        Returns:
            At least one `Leg`.

        Raises:
            ValueError: As `points`; a function that is not finite, or not the baseline at 0 and the input at 1.
        """
        return [Leg(self, baselines, inputs)]


class StraightPath(Path):
    """The straight line gamma(alpha) = x' + alpha (x - x'), the path of integrated gradients.

    The one path that gives symmetric features of equal values equal attributions whatever the model (section 4.2).

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365.

    Example:
        >>> import torch
        >>> (point,) = StraightPath().points(torch.tensor([0.25]), (torch.zeros(1, 2),), (torch.tensor([[4.0, 8.0]]),))
        >>> point.tolist()
        [[[1.0, 2.0]]]
    """

    def points(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """gamma at S numbers alpha, (S, N, ...)."""
        return tuple(b + _beside(alphas, x) * (x - b) for b, x in zip(baselines, inputs, strict=True))

    def derivatives(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """x - x', the same everywhere, (1, N, ...)."""
        return tuple((x - b)[None] for b, x in zip(baselines, inputs, strict=True))


class PowerPath(Path):
    r"""Coordinates at different speeds: gamma_i(alpha) = x'_i + alpha^{p_i} (x_i - x'_i).

    The larger p_i, the later feature i moves. Powers that differ bend the path, and then features that the model
    treats alike get different attributions.

    Args:
        powers: p >= 1, a number or a tensor that broadcasts to an example's shape; a tuple with one for each input.
            All divided by the smallest of them describe the same curve, and make powers below 1 ones above.

    Raises:
        ValueError: A power below 1, where the derivative is infinite at the baseline, or not finite.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4, on path methods; the family of powers is ours.

    Example:
        >>> import torch
        >>> path = PowerPath(torch.tensor([1.0, 2.0]))
        >>> (point,) = path.points(torch.tensor([0.5]), (torch.zeros(1, 2),), (torch.ones(1, 2),))
        >>> point.tolist()
        [[[0.5, 0.25]]]
    """

    @takes_arrays
    def __init__(self, powers: float | Tensor | tuple[float | Tensor, ...]) -> None:
        given = powers if isinstance(powers, tuple) else (powers,)
        self.powers = tuple(as_tensor(p, torch.float64) for p in given)
        if any(not bool((p.isfinite() & (p >= 1)).all()) for p in self.powers):
            raise ValueError(
                "powers must be finite and at least 1, or the path has an infinite derivative at the baseline; divide "
                "all of them by the smallest, which describes the same curve"
            )
        self._one = not isinstance(powers, tuple)

    def __repr__(self) -> str:
        return shown(self, self.powers)

    def points(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """gamma at S numbers alpha, (S, N, ...)."""
        powers = self._powers(inputs)
        return tuple(
            b + (_beside(alphas, x) ** p).to(x.dtype) * (x - b)
            for b, x, p in zip(baselines, inputs, powers, strict=True)
        )

    def derivatives(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """p alpha^(p - 1) (x - x'), (S, N, ...)."""
        powers = self._powers(inputs)
        return tuple(
            (p * _beside(alphas, x) ** (p - 1)).to(x.dtype) * (x - b)
            for b, x, p in zip(baselines, inputs, powers, strict=True)
        )

    def _powers(self, inputs: Tensors) -> Tensors:
        powers = self.powers * len(inputs) if self._one else self.powers
        if len(powers) != len(inputs):
            raise ValueError(f"powers are {len(powers)} tensors, but there are {len(inputs)} inputs; give one for each")
        for p, x in zip(powers, inputs, strict=True):
            _check_broadcasts(p, x, "powers")
        return tuple(p.to(x.device) for p, x in zip(powers, inputs, strict=True))


class PiecewiseLinearPath(Path):
    r"""Straight lines from the baseline through given points, in their order, to the input.

    Each line is integrated by itself, with its share of the steps, so that the bends cost no accuracy.

    Args:
        waypoints: A tensor (K, ...), K points for all examples alike, or (K, N, ...), K points for each of N examples;
            a tuple of such with one for each input, each with the same K. K = 0 is the straight line. What runs
            copies of the examples, as `NoiseTunnel` does, takes the same points for all.

    Raises:
        TypeError: Waypoints that are no tensors (K, ...).
        ValueError: Another K for one input than for another.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4, on path methods.

    Example:
        >>> import torch
        >>> path = PiecewiseLinearPath(torch.tensor([[0.0, 1.0]]))  # first along the second feature
        >>> (point,) = path.points(torch.tensor([0.75]), (torch.zeros(1, 2),), (torch.ones(1, 2),))
        >>> point.tolist()
        [[[0.5, 1.0]]]
    """

    @takes_arrays
    def __init__(self, waypoints: Tensor | tuple[Tensor, ...]) -> None:
        self.waypoints = waypoints if isinstance(waypoints, tuple) else (waypoints,)
        if not self.waypoints or any(not isinstance(w, Tensor) or w.ndim == 0 for w in self.waypoints):
            raise TypeError("waypoints must be a tensor (K, ...), or a tuple with such a tensor for each input")
        if len({len(w) for w in self.waypoints}) > 1:
            counts = ", ".join(str(len(w)) for w in self.waypoints)
            raise ValueError(f"waypoints are as many for each input, but here {counts}")

    def __repr__(self) -> str:
        return shown(self, self.waypoints)

    def legs(self, baselines: Tensors, inputs: Tensors) -> list[Leg]:
        """The lines between one point and the next."""
        stops = self._stops(baselines, inputs)
        return [Leg(StraightPath(), start, end) for start, end in itertools.pairwise(stops)]

    def points(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """gamma at S numbers alpha, (S, N, ...)."""
        return self._by_leg(StraightPath.points, alphas, baselines, inputs)

    def derivatives(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """d gamma / d alpha, (S, N, ...), at a bend that of the line that begins."""
        slopes = self._by_leg(StraightPath.derivatives, alphas, baselines, inputs)
        return tuple((len(self.waypoints[0]) + 1) * d for d in slopes)

    def _by_leg(self, values: Callable[..., Tensors], alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        legs = self.legs(baselines, inputs)
        at = (alphas * len(legs)).floor().clamp(0, len(legs) - 1).long()
        rows = [
            values(leg.path, (alpha * len(legs) - i)[None], leg.start, leg.end)
            for alpha, i, leg in ((alpha, i, legs[int(i)]) for alpha, i in zip(alphas, at, strict=True))
        ]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def _stops(self, baselines: Tensors, inputs: Tensors) -> list[Tensors]:
        if len(self.waypoints) != len(inputs):
            raise ValueError(f"waypoints are {len(self.waypoints)} tensors, but there are {len(inputs)} inputs")
        placed = []
        for w, x in zip(self.waypoints, inputs, strict=True):
            if w.shape[1:] not in (x.shape[1:], x.shape):
                raise ValueError(
                    f"waypoints have shape {tuple(w.shape)}, but must be (K, *{tuple(x.shape[1:])}), the same for all "
                    f"examples, or (K, *{tuple(x.shape)})"
                )
            if not bool(torch.isfinite(w).all()):
                raise ValueError("waypoints contain NaN or infinity: no path leads there")
            w = w.detach().to(x)
            placed.append((w if w.ndim == x.ndim + 1 else w[:, None]).expand(-1, *x.shape))
        return [baselines, *zip(*placed, strict=True), inputs]


class FunctionPath(Path):
    r"""A path by a function of one's own.

    Args:
        function: gamma: of alpha (a tensor without dimensions), the baseline and the input (tensors (N, ...), or tuples
            of such where there are several inputs); returns the point, in the same form. It must be the baseline at 0
            and the input at 1.
        derivative: d gamma / d alpha, a function of the same. None takes it by forward-mode differentiation, for which
            `function` must compute with alpha as a tensor.

    Raises:
        TypeError: If either is no function.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 4, on path methods.

    Example:
        >>> import torch
        >>> path = FunctionPath(lambda alpha, baseline, x: baseline + torch.sin(alpha * torch.pi / 2) * (x - baseline))
        >>> (slope,) = path.derivatives(torch.tensor([0.0]), (torch.zeros(1, 1),), (torch.ones(1, 1),))
        >>> round(slope.item(), 4)
        1.5708
    """

    def __init__(self, function: Callable[..., Any], derivative: Callable[..., Any] | None = None) -> None:
        for name, value in (("function", function), ("derivative", derivative)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function of (alpha, baseline, input), but is {type(value).__name__}")
        self.function, self.derivative = function, derivative

    def __repr__(self) -> str:
        return shown(self, self.function, derivative=self.derivative)

    def points(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """gamma at S numbers alpha, (S, N, ...)."""
        return _stacked([self._value(self.function, alpha, baselines, inputs) for alpha in alphas.to(inputs[0])])

    def derivatives(self, alphas: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        """d gamma / d alpha, (S, N, ...)."""
        alphas = alphas.to(inputs[0])
        if self.derivative is not None:
            return _stacked([self._value(self.derivative, alpha, baselines, inputs) for alpha in alphas])
        load_forward_mode()
        derivatives, moves = [], [False] * len(inputs)
        for alpha in alphas:
            with forward_mode.dual_level():
                dual = forward_mode.make_dual(alpha.clone(), torch.ones_like(alpha))
                try:
                    point = self._value(self.function, dual, baselines, inputs)
                except NotImplementedError as error:
                    raise ValueError(f"the path has no forward-mode derivative ({error}); give derivative=") from error
                tangents = [forward_mode.unpack_dual(p).tangent for p in point]
            moves = [m or t is not None for m, t in zip(moves, tangents, strict=True)]
            derivatives.append(
                tuple(torch.zeros_like(x) if t is None else t for t, x in zip(tangents, inputs, strict=True))
            )
        for moved, b, x in zip(moves, baselines, inputs, strict=True):
            if not moved and not torch.equal(b, x):
                raise ValueError(
                    "the path does not depend on alpha: compute with alpha as a tensor (no float(alpha) or "
                    "alpha.item()), or give derivative="
                )
        return _stacked(derivatives)

    def legs(self, baselines: Tensors, inputs: Tensors) -> list[Leg]:
        """The whole path."""
        at = self.points(torch.tensor([0.0, 0.5, 1.0], device="cpu"), baselines, inputs)
        for i, ends, what in ((0, baselines, "start at the baseline"), (2, inputs, "end at the input")):
            for points, end in zip(at, ends, strict=True):
                if not bool(points.isfinite().all()):
                    raise ValueError("the path returns NaN or infinity at alpha = 0, 0.5 or 1")
                gap, scale = (points[i] - end).abs().max(), torch.maximum(points[1].abs().max(), end.abs().max())
                if not bool(gap <= _TOLERANCE.get(end.dtype, 1e-2) * scale):
                    raise ValueError(
                        f"the path does not {what}: at alpha = {i // 2} it is up to {gap:.3g} away from it"
                    )
        return super().legs(baselines, inputs)

    def _value(self, function: Callable[..., Any], alpha: Tensor, baselines: Tensors, inputs: Tensors) -> Tensors:
        given = (baselines, inputs) if len(inputs) > 1 else (baselines[0], inputs[0])
        returned = function(alpha, *given)
        points = returned if isinstance(returned, tuple) else (returned,)
        shapes = [tuple(x.shape) for x in inputs]
        if any(not isinstance(p, Tensor) for p in points) or [tuple(p.shape) for p in points] != shapes:
            received = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in points]
            raise ValueError(f"the path must return points of the inputs' shapes {shapes}, but returned {received}")
        return points


def _beside(alphas: Tensor, x: Tensor) -> Tensor:
    return alphas.to(x).view(-1, *[1] * x.ndim)


def _stacked(rows: list[Tensors]) -> Tensors:
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def _check_broadcasts(value: Tensor, x: Tensor, what: str) -> None:
    try:
        fits = torch.broadcast_shapes(value.shape, x.shape[1:]) == x.shape[1:]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{what} have shape {tuple(value.shape)}, which does not broadcast to {tuple(x.shape[1:])}")
