"""NoiseMatchingLoss: a student that answers as the teacher does around the data as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_density._density.hessian_trace import check_noise
from captum_density._model.copies import ModelOnCopies, Points
from captum_density._model.generators import standard_noise
from captum_density._model.validation import check_limit
from captum_density.losses._density_loss import Log
from captum_density.losses._transfer import TransferLoss, require_same_outputs

__all__ = ["NoiseMatchingLoss"]


class _Lesson(NamedTuple):
    """Points (K, N, ...) and the teacher's outputs there, (K, N, ...)."""

    points: Points
    outputs: Tensor


class NoiseMatchingLoss(TransferLoss):
    r"""Squared error between a student's and a teacher's outputs on noisy inputs, averaged over the batch.

    .. math:: \frac{1}{N} \sum_n \mathbb{E}_\xi \| T(x_n + \xi) - S(x_n + \xi) \|^2
        = \frac{1}{N} \sum_n \| d(x_n) \|^2 + \sigma^2 \left( \| \nabla d(x_n) \|^2 + \langle d(x_n), \Delta d(x_n)
        \rangle \right) + O(\sigma^4), \qquad d = T - S

    with xi Gaussian of standard deviation sigma, the same for both. It matches outputs and Jacobians at once, without a
    second derivative: the paper's proposition has |d|^2 and the Jacobians' squared error |grad d|^2, which is
    `JacobianMatchingLoss` of "all" without `normalize`. The Laplacian Delta d is zero for linear and, as far as the
    noise meets no bend, ReLU networks, and for others no smaller than the rest unless d is.

    Args:
        teacher: As `JacobianMatchingLoss`.
        noise_std: sigma, in the inputs' units.
        Other arguments: As `ScoreMatchingLoss`.

    Attributes:
        agreement: Share of the noisy examples whose largest output is the same for both, of the last call, in [0, 1].

    Raises:
        TypeError: If the teacher cannot be called, or an argument is of another type.
        ValueError: If an argument is out of range; from a call, where `forward` says so.

    References:
        S. Srinivas and F. Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv:1803.00443,
        proposition 1.

    Example:
        >>> import torch
        >>> teacher, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
        >>> shifted = lambda x: teacher(x) + 0.5  # as far away with noise as without
        >>> round(NoiseMatchingLoss(teacher, noise_std=0.1)(shifted, x).item(), 4)
        0.75
    """

    agreement: Tensor | None

    def __init__(
        self,
        teacher: Callable[..., Any],
        noise_std: float = 0.1,
        n_samples: int = 1,
        *,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(teacher, max_examples_per_batch)
        check_limit(max_examples_per_batch)
        check_noise(n_samples, noise_std, generator)
        self.noise_std, self.n_samples, self.generator = noise_std, n_samples, generator
        self.agreement = None

    def _lesson(self, teacher: ModelOnCopies) -> _Lesson:
        noise = standard_noise(teacher.inputs, self.n_samples, "gaussian", self.generator)
        points = teacher.displaced(tuple(self.noise_std * u for u in noise))
        with torch.no_grad():
            return _Lesson(points, teacher.outputs(tuple(p.clone() for p in points)))  # which a model may write to

    def _compare(self, student: ModelOnCopies, lesson: _Lesson, create_graph: bool) -> tuple[Tensor, Log]:
        outputs = student.outputs(lesson.points)
        require_same_outputs(tuple(lesson.outputs.shape[2:]), tuple(outputs.shape[2:]))
        theirs, ours = (o.reshape(*o.shape[:2], -1) for o in (lesson.outputs, outputs))
        agreement = (theirs.argmax(2) == ours.argmax(2)).to(ours.dtype).mean()
        return ((theirs - ours) ** 2).sum(2).mean(), {"agreement": agreement}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"noise_std={self.noise_std}, n_samples={self.n_samples}"
