"""assert_complete: whether terms sum to the output, to the rounding of their dtype."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_density._model.arrays import takes_arrays

__all__ = ["assert_complete"]

# Rounding of a sum over a network's terms, with room for ill-conditioned ones.
_RELATIVE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class _Decomposition(Protocol):
    """The output and the terms that should sum to it, as in `FullGradients`."""

    output: Tensor
    inputs: tuple[Tensor, ...]
    biases: Mapping[str, Tensor]


@takes_arrays
def assert_complete(
    terms: Tensor | tuple[Tensor, ...] | _Decomposition, output: Tensor | None = None, *, rtol: float | None = None
) -> None:
    r"""Assert completeness: for each example the terms sum to the output.

    .. math:: |\sum_t t_n - f(x_n)| \le rtol \cdot \max(\sum_t |t_n|, |f(x_n)|)

    The tolerance is relative to the sum of absolute terms, for that is the size of the rounding error of their sum. The
    sum itself is taken in float64.

    Args:
        terms: Attributions, a tensor (N, ...) or a tuple of them; or what `FullGrad.decompose` returns, or another
            object with `inputs` (tuple of tensors), `biases` (dict of tensors) and `output`.
        output: What the terms should sum to, (N,) or (N, 1): the model's output at the target, or its change from a
            baseline. By default `terms.output`.
        rtol: Relative tolerance; by default that of the coarsest dtype among terms and output: 1e-10 for float64,
            1e-5 for float32, 2e-2 for float16, 1e-1 for bfloat16.

    Raises:
        AssertionError: If an example's gap is larger, or not a number; it names the worst example and its gap.
        TypeError: If `terms` is none of these, or there is no output to compare with.
        ValueError: If the batch sizes differ.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        section 3 (completeness); S. Srinivas and F. Fleuret, NeurIPS 2019, arXiv:1905.00780, for full gradients.

    Example:
        For a linear function without bias, input times gradient is complete; the gradient alone is not:

        >>> import torch
        >>> x, w = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])
        >>> assert_complete(x * w, x @ w)
        >>> assert_complete(w.expand(2, 2), x @ w)
        Traceback (most recent call last):
            ...
        AssertionError: the terms of example 1 sum to 11, but its output is 39: a gap of 28, or 0.72 of the larger ...
    """
    parts: tuple[Any, ...]
    if isinstance(terms, Tensor | tuple):
        parts = terms if isinstance(terms, tuple) else (terms,)
    elif hasattr(terms, "inputs") and hasattr(terms, "biases"):
        parts = (*terms.inputs, *terms.biases.values())
        output = terms.output if output is None else output
    else:
        raise TypeError(
            f"terms must be a tensor, a tuple of tensors or full gradients; received {type(terms).__name__}"
        )
    if not parts or any(getattr(part, "ndim", 0) == 0 for part in parts):
        raise TypeError(f"terms must be tensors with a batch dimension; received {terms!r}")
    if not isinstance(output, Tensor):
        raise TypeError(f"output must be a tensor (N,); received {type(output).__name__}")
    if output.dim() == 0 or output.numel() != len(output) or any(len(part) != len(output) for part in parts):
        raise ValueError(
            f"one output an example is expected, (N,), and terms of as many; received output {tuple(output.shape)} and "
            f"terms {', '.join(str(tuple(part.shape)) for part in parts)}. Select the target's output first"
        )
    if rtol is None:
        rtol = max(_RELATIVE_TOLERANCE.get(tensor.dtype, 0.0) for tensor in (output, *parts))
    flat = torch.cat([_flat(part) for part in parts], dim=1)
    total, output = flat.sum(1), _flat(output).squeeze(1)
    gap, scale = (total - output).abs(), torch.maximum(flat.abs().sum(1), output.abs())
    complete = gap.isfinite() & (gap <= rtol * scale)
    if bool(complete.all()):
        return
    worst = int(torch.where(gap.isfinite(), gap / scale.clamp_min(1e-300), torch.inf).argmax())
    raise AssertionError(
        f"the terms of example {worst} sum to {total[worst]:.6g}, but its output is {output[worst]:.6g}: a gap of "
        f"{gap[worst]:.3g}, or {gap[worst] / scale[worst]:.2g} of the larger of its output and the sum of its absolute "
        f"terms, where rtol allows {rtol:.2g}; {int((~complete).sum())} of {len(total)} examples are out"
    )


def _flat(part: Tensor) -> Tensor:
    return part.detach().cpu().double().reshape(len(part), -1)
