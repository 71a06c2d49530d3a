"""Kernel Stein discrepancy: whether samples are those of a density known only by its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from captum_density._model.arrays import as_tensors, takes_arrays

__all__ = ["kernel_stein_discrepancy"]

# Of how many samples at most the median distance is taken: 2,000,000 pairs.
_MEDIAN_OF = 2000


@takes_arrays
def kernel_stein_discrepancy(
    score_func: Callable[[Tensor], Any],
    samples: Tensor,
    *,
    kernel: Literal["imq", "gaussian"] = "imq",
    bandwidth: float | None = None,
    unbiased: bool = True,
    max_pairs_per_batch: int = 2**22,
) -> Tensor:
    r"""Kernel Stein discrepancy, squared, between samples and the density whose score is given; no normaliser needed.

    .. math:: \mathbb{E}_{x, x'} \left[ s(x)^\top s(x') k + s(x)^\top \nabla_{x'} k + s(x')^\top \nabla_x k +
        \nabla_x \cdot \nabla_{x'} k \right]

    which is 0 if and only if the samples are of the density with score s. Data as samples and a model's score measure
    how well the density in the model fits the data; samples drawn of the model measure the sampler.

    Args:
        score_func: s: samples (N, ...) to grad log p, alike, such as
            `lambda x: captum_density.density.class_score(model, x, target)`.
        samples: Floating-point (N, ...), independent draws; N of at least 2.
        kernel: "imq", (1 + |x - x'|^2 / h^2)^(-1/2), which also tells in high dimensions and far tails; or "gaussian",
            exp(-|x - x'|^2 / (2 h^2)).
        bandwidth: h, in the samples' units; None for the median distance between samples.
        unbiased: Whether to leave out pairs of a sample with itself (U-statistic): mean 0 for samples of the density,
            values below 0 included. Else (V-statistic) at least 0.
        max_pairs_per_batch: Pairs of samples worked on at once, which bounds memory.

    Returns:
        A scalar in float64, in 1 / squared units of the samples; lower is better. Compare it between scores on the
        same samples with the same bandwidth.

    Raises:
        ValueError: If there are fewer than two samples or all are the same, a number is out of range, the score has
            another shape, or samples or scores are not finite.
        TypeError: If the samples are not floating-point.

    References:
        Q. Liu, J. Lee and M. Jordan, "A Kernelized Stein Discrepancy for Goodness-of-fit Tests", ICML 2016,
        arXiv:1602.03253, theorem 3.6; J. Gorham and L. Mackey, "Measuring Sample Quality with Kernels", ICML 2017,
        arXiv:1703.01717 (the inverse multiquadric kernel).

    Example:
        >>> import torch
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> right, wrong = (kernel_stein_discrepancy(s, x).item() for s in (lambda x: -x, lambda x: -(x - 1)))
        >>> right < 0.05 < 0.5 < wrong
        True
    """
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        raise TypeError("samples must be a floating-point tensor (N, ...)")
    if samples.ndim == 0 or len(samples) < 2:
        raise ValueError(f"samples must be two or more, but have shape {tuple(samples.shape)}")
    if kernel not in ("imq", "gaussian"):
        raise ValueError(f"kernel must be 'imq' or 'gaussian', but is {kernel!r}")
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive and finite, but is {bandwidth}")
    if max_pairs_per_batch < 1:
        raise ValueError(f"max_pairs_per_batch must be at least 1, but is {max_pairs_per_batch}")
    scores = as_tensors(score_func(samples.detach().clone()))
    if not isinstance(scores, Tensor) or scores.shape != samples.shape:
        received = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"score_func must return what it takes, {tuple(samples.shape)}, but returned {received}")
    x, s = (t.detach().double().reshape(len(samples), -1) for t in (samples, scores))
    if not bool(x.isfinite().all() and s.isfinite().all()):
        raise ValueError("samples or scores contain NaN or infinity")

    n = len(x)
    h2 = _median_distance(x) ** 2 if bandwidth is None else bandwidth**2
    rows = max(1, max_pairs_per_batch // n)
    total = x.new_zeros(())
    for start in range(0, n, rows):
        terms = _stein_kernel(x[start : start + rows], s[start : start + rows], x, s, h2, kernel)
        if unbiased:
            terms.diagonal(start).zero_()
        total += terms.sum()
    return total / (n * (n - 1) if unbiased else n * n)


def _stein_kernel(x: Tensor, s: Tensor, y: Tensor, t: Tensor, h2: float, kernel: str) -> Tensor:
    """u(x, y) for all pairs, (rows, N). Both kernels are phi(|x - y|^2), with phi' and phi'' as below."""
    d = x.shape[1]
    # Not by expanding the square, which loses neighbours to rounding.
    squared = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    if kernel == "imq":
        base = 1 + squared / h2
        phi, first, second = base**-0.5, -0.5 / h2 * base**-1.5, 0.75 / h2**2 * base**-2.5
    else:
        phi = torch.exp(-squared / (2 * h2))
        first, second = -phi / (2 * h2), phi / (4 * h2**2)
    # grad_x k = 2 phi' (x - y) = -grad_y k; the trace of the mixed derivative is -4 phi'' |x - y|^2 - 2 d phi'.
    along = (s * x).sum(1)[:, None] - s @ y.T - x @ t.T + (t * y).sum(1)[None]  # <s - t, x - y>
    return (s @ t.T) * phi - 2 * first * along - 4 * second * squared - 2 * d * first


def _median_distance(x: Tensor) -> float:
    some = x[:: -(-len(x) // _MEDIAN_OF)]  # from all over: samples may be sorted by class
    median = torch.pdist(some).median().item()
    if median == 0:
        raise ValueError("more than half of the samples are the same, so that they give no bandwidth; pass one")
    return median
