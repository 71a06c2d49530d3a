"""Completeness: whether attributions sum to what they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density.metrics._attribution_rows import attribution_rows
from captum_density.metrics._axioms._feature_vectors import FeatureVectors, quotient

__all__ = ["completeness_gap"]


@takes_arrays
def completeness_gap(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    attributions: TensorOrTupleOfTensorsGeneric,
    baselines: float | Tensor | tuple[float | Tensor, ...] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    complete_to: Literal["difference", "output"] = "difference",
) -> Tensor:
    r"""How far attributions are from summing to the change of the output, f(x) - f(x').

    .. math:: \frac{|\sum_i a_i - (f(x) - f(x'))|}{\max(|f(x) - f(x')|, \sum_i |a_i|)}

    Args:
        forward_func: f. It runs without gradients, batch norm on its running statistics.
        inputs: x, a floating-point tensor (N, ...) or tuple of such.
        attributions: a, (N, ...) or a tuple of such, of any shapes: all that belongs to an example is summed.
        baselines: x': a number, or a tensor that broadcasts to the input, or a tuple of them; None for 0.
        additional_forward_args: As Captum's.
        target: As Captum's.
        complete_to: "difference" as above; "output" for sums to f(x) alone, as `FullGrad(complete=True)` promises,
            which has no baseline.

    Returns:
        (N,) float64 in [0, 2], lower is better: 0 for complete attributions, 1 for none at all, 2 for their opposite.
        0/0 is 0.

    Raises:
        ValueError: Shapes that do not fit, inputs, baselines, attributions or outputs that are not finite, baselines
            with `complete_to="output"`, or a model that draws random numbers (dropout in training mode).
        TypeError: Inputs that are not floating-point, attributions that are no tensors.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 3. The scale is ours.

    Example:
        >>> import torch
        >>> f, x = (lambda x: x.sum(1) + 1), torch.tensor([[1.0, 2.0]])
        >>> completeness_gap(f, x, x).item(), completeness_gap(f, x, -x).item()
        (0.0, 2.0)
        >>> completeness_gap(f, x, x, complete_to="output").item()
        0.25
    """
    if complete_to not in ("difference", "output"):
        raise ValueError(f"complete_to must be 'difference' or 'output', but is {complete_to!r}")
    if complete_to == "output" and baselines is not None:
        raise ValueError("complete_to='output' compares with f(x) alone; leave baselines out")
    vectors = FeatureVectors(forward_func, inputs, baselines, additional_forward_args, target)
    a = attribution_rows(attributions, vectors.n).to(vectors.x.device)
    change = vectors.outputs(vectors.x)
    if complete_to == "difference":
        change = change - vectors.outputs(vectors.baselines)
    return quotient((a.sum(1) - change).abs(), torch.maximum(change.abs(), a.abs().sum(1)))
