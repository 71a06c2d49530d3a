"""BoundedShift: the post-softmax case, where predictions move a little and gradients as much as one likes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.refusals import refuse_where
from captum_density.softmax_shift._logits import LogitsWrapper
from captum_density.softmax_shift._patterns import check_patterns, floating, leading, product

__all__ = ["BoundedShift"]


class BoundedShift(LogitsWrapper):
    r"""A small, fast wave on each logit: probabilities hardly move, gradients of anything move much.

    .. math:: \tilde f_i(x) = f_i(x) + h_i(x), \quad
        h_i(x) = a \, \mathrm{tri}(\omega \langle d, x \rangle + 4 k_i / C + 1 / \pi)

    with amplitude a, frequency omega, a unit vector d, and tri the triangle wave of period 4 between -1 and 1, whose
    slope is 1 or -1. The phases of the C classes are spread evenly over one period, so no centring of the
    logits removes the waves; k is a permutation that puts neighbouring classes far apart, k_i = s i mod C with s near
    0.38 C.

    What moves:

    - a logit by at most a, its gradient by exactly a * omega in Euclidean norm, along d, for every class and almost
      every x;
    - log p_i by at most 2 a, its gradient, and so the loss's, by
      a omega (s_i - sum_j p~_j s_j) d + sum_j (p_j - p~_j) grad f_j, with the slopes s_j = ±1: in proportion to omega
      where classes that share the probability have opposite slopes, which two of them have at half of all x, on
      average over pairs. Where one class is certain, p~_i = 1, its first part vanishes;
    - a probability by at most `probability_bound` = tanh(a / 2), for every class, set of classes and x.

    The bound: with z = log(p_i / (1 - p_i)), the perturbed probability p_i e^{h_i} / sum_j p_j e^{h_j} is largest where
    h_i = a and all others are -a, and is then sigmoid(z + 2 a). The difference sigmoid(z + 2 a) - sigmoid(z) is
    largest at z = -a, where it is sigmoid(a) - sigmoid(-a) = tanh(a / 2). The same holds for a set of classes, and for
    decreases by symmetry. It is attained for an even number of classes (each has one in opposite phase); for an odd
    number two waves differ by at most 2 a (1 - 1 / C), so that tanh(a (1 - 1 / C) / 2) is attained: the bound is tight
    within a factor C / (C - 1), at most 1.5. No prediction whose top logit leads by more than 2 a changes.

    Precision: each sum f_i + h_i is rounded to the logits' dtype, and where |f| times that rounding comes near a, the
    waves are lost, and with them the exact bound; the phase omega <d, x> is computed in float32 at least.

    Args:
        model: Module or function that returns logits. A module is shared, not copied.
        amplitude: a, in logits; above 0.
        frequency: omega, per unit of <d, x>; above 0. The waves repeat when x moves by 4 / omega along d.
        pattern: The direction d, of one example's shape (of the model's first argument), of any length but zero; it is
            brought to norm 1. None: white noise, the same for all inputs of a shape.
        class_dim: As `CenteredLogits`. All positions of an example have the same waves.

    Raises:
        TypeError: If the model cannot be called, returns no floating-point tensor, or is given one that is not.
        ValueError: If amplitude or frequency is not finite and positive, or the pattern is not finite or is zero; from
            a call: if it does not have the inputs' shape and device, or the logits no such class dimension.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2, for the question of gradients after the
        softmax; the construction and its bounds are derived above.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> model, x = torch.nn.Linear(4, 2), torch.randn(3, 4, requires_grad=True)
        >>> waved = BoundedShift(model, amplitude=0.01, frequency=1e4)
        >>> round(waved.probability_bound, 4), bool((waved(x).softmax(1) - model(x).softmax(1)).abs().max() < 0.0051)
        (0.005, True)
        >>> change = Saliency(waved).attribute(x, 0, abs=False) - Saliency(model).attribute(x, 0, abs=False)
        >>> change.norm(dim=1).round()
        tensor([100., 100., 100.])
    """

    _harm = "which waves added to them take out of [0, 1]"

    @takes_arrays
    def __init__(
        self,
        model: Callable[..., Any],
        amplitude: float,
        frequency: float,
        pattern: Tensor | None = None,
        class_dim: int | None = None,
    ) -> None:
        super().__init__(model, class_dim)
        for name, value in (("amplitude", amplitude), ("frequency", frequency)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and above 0, but is {value}")
        self.amplitude = amplitude
        self.frequency = frequency
        if pattern is not None:
            check_patterns((pattern,))
            pattern = (pattern.double() / torch.linalg.vector_norm(pattern.double())).detach()
        self.register_buffer("pattern", pattern)

    pattern: Tensor | None

    @property
    def probability_bound(self) -> float:
        """The most by which any probability, of a class or a set of classes, moves: tanh(amplitude / 2)."""
        return math.tanh(self.amplitude / 2)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's logits plus the waves, of the same shape and dtype.

        Args:
            args: The model's own arguments; the waves run along the first.
            kwargs: The model's own keyword arguments.

        Returns:
            A tensor of the logits' shape and dtype.
        """
        logits, dim = self.logits(*args, **kwargs)
        phase = self.frequency * self._projection(*leading(args, 1))
        text = f"frequency {self.frequency:g} times <d, x> is NaN or infinite; lower it"
        refuse_where(~phase.isfinite().all(), partial(ValueError, text))
        # Within one period first: beside a large phase the differences between the classes would be rounded away.
        waves = self.amplitude * _triangle(phase.remainder(4)[:, None] + _phases(logits.shape[dim]).to(phase))
        shape = [1] * logits.ndim
        shape[0], shape[dim] = waves.shape
        return self.last(logits + waves.reshape(shape).to(logits.dtype))

    def _projection(self, x: Any) -> Tensor:
        """<d, x>, (N,), in float32 at least: half precision would lose the phase."""
        x = floating(x)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        pattern = self.pattern
        if pattern is None:
            pattern = torch.from_numpy(_white_noise(tuple(x.shape[1:]))).to(x.device, x.dtype)
        return product(pattern, x)

    def extra_repr(self) -> str:
        """What `print` shows beside the model."""
        return f"amplitude={self.amplitude:g}, frequency={self.frequency:g}, {super().extra_repr()}"


def _phases(classes: int) -> Tensor:
    """(C,) evenly over one period, neighbours far apart, and none at a peak for x = 0."""
    return (
        4 * (torch.arange(classes, dtype=torch.float64, device="cpu") * _phase_step(classes) % classes) / classes
        + 1 / math.pi
    )


@lru_cache(maxsize=8)
def _phase_step(classes: int) -> int:
    """s of k_i = s i mod C: the number prime to C, which makes k a permutation, that is nearest to 0.38 C.

    0.38 is 1 - 0.62, the golden ratio: multiples of it, modulo 1, keep neighbours farthest apart.
    """
    return min((s for s in range(1, classes) if math.gcd(s, classes) == 1), key=lambda s: abs(s - 0.38 * classes))


# NumPy's, as torch draws nothing under `torch.func.vmap`, and an array, as a tensor kept from inference mode could not
# be differentiated with.
@lru_cache(maxsize=8)
def _white_noise(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The same unit vector for the same shape."""
    noise = np.random.default_rng(0).standard_normal(shape)
    return np.asarray(noise / np.linalg.norm(noise))


def _triangle(t: Tensor) -> Tensor:
    """The triangle wave of period 4, between -1 and 1, with slope -1 on (0, 2) and 1 on (2, 4)."""
    return (t.remainder(4) - 2).abs() - 1
