"""DeepLift's multipliers of a batch: one run at x and x' together, one backward pass, and the sum made sure of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density._linear import discrete
from captum_density._linear.two_points import ExamplesLostError, TwoPointsMode, WaysPartError
from captum_density._model.batch import ModelOnBatch
from captum_density._model.calls import OverwrittenError
from captum_density._model.modules import as_written

__all__ = ["Multipliers", "multipliers"]

_WHOLE = "the model"


@dataclass
class Multipliers:
    """m with <m, x - x'> = f(x) - f(x') for each example.

    Attributes:
        values: m for each input, of its shape.
        steps: The modules that are one step, and why; "the model" for all of it.
        precision: The coarsest epsilon of what was computed.
    """

    values: list[Tensor]
    steps: dict[str, str]
    precision: float


def multipliers(batch: ModelOnBatch, baselines: Sequence[Tensor]) -> Multipliers:
    """Multipliers between a batch and baselines of its inputs' shapes.

    Raises:
        RuntimeError: The sum of an example is missed; names the operation responsible.
        ValueError: A model that draws random numbers, and whatever `ModelOnBatch` refuses.
    """
    with as_written(), batch.evaluation(comparison=True):
        with torch.no_grad():
            start = batch.selected(tuple(baselines)).clone()
        return _multipliers(batch, baselines, start)


def _multipliers(batch: ModelOnBatch, baselines: Sequence[Tensor], start: Tensor) -> Multipliers:
    try:
        result, output = _followed(batch, baselines, start)
        if _is_complete(batch, baselines, result, output, start):
            return result
        if batch.n == 1:
            raise _diagnosis(batch, baselines, result)
    except ExamplesLostError:  # which needs several
        pass
    rows = [slice(i, i + 1) for i in range(batch.n)]
    each = [_multipliers(batch.at(row), [b[row] for b in baselines], start[row]) for row in rows]
    steps = {path: reason for part in each for path, reason in part.steps.items()}
    values = [torch.cat(parts) for parts in zip(*(part.values for part in each), strict=True)]
    return Multipliers(values, steps, max(part.precision for part in each))


def _followed(batch: ModelOnBatch, baselines: Sequence[Tensor], start: Tensor) -> tuple[Multipliers, Tensor]:
    """Multipliers and f(x), with as many modules for one step as it takes."""
    steps, in_blocks = dict[str, str](), True
    while _WHOLE not in steps:
        try:
            mode = TwoPointsMode(batch.n, frozenset(steps), in_blocks=in_blocks)
            values, output, other = _run(mode, batch, baselines)
            if torch.allclose(other, start, rtol=mode.precision**0.5, atol=mode.precision**0.5):
                return Multipliers(values, steps, mode.precision), output
            steps[_WHOLE] = "it hides operations"
        except OverwrittenError:
            in_blocks = False
        except WaysPartError as error:
            path = error.path
            while path in steps:
                path = path.rpartition(".")[0]
            steps[path or _WHOLE] = error.reason
    return _as_one_step(batch, baselines, start, steps)


def _run(mode: TwoPointsMode, batch: ModelOnBatch, baselines: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """m, f(x), and f(x') as the counterpart of f(x)."""
    with mode.watching(), mode, _derivatives():
        leaves, copies = mode.track(batch.inputs, baselines)
        output = batch.selected(copies)
        other = mode.counterpart(output)
    other = output.detach() if other is None else other
    values = [torch.zeros_like(x) for x in leaves]
    if output.requires_grad:
        with _derivatives():
            gradients = torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)
        values = [m if g is None else g for m, g in zip(values, gradients, strict=True)]
    return values, output.detach(), other


@contextlib.contextmanager
def _derivatives() -> Iterator[None]:
    """Within, PyTorch's lack of a derivative comes with what to do."""
    try:
        yield
    except NotImplementedError as error:
        if "derivative" not in str(error):
            raise
        raise NotImplementedError(
            f"an operation has no derivative, which a discrete gradient needs ({str(error).rstrip('.')}); write it "
            "with others, or take captum.attr.FeatureAblation, which needs none"
        ) from error


def _as_one_step(
    batch: ModelOnBatch, baselines: Sequence[Tensor], start: Tensor, steps: dict[str, str]
) -> tuple[Multipliers, Tensor]:
    """Gonzalez' discrete gradient of all of f."""
    with torch.no_grad():
        output = batch.selected().clone()
    leaves = [x.detach().clone().requires_grad_() for x in batch.inputs]

    def run(points: list[Tensor]) -> list[Tensor]:
        return [batch.selected(tuple(p.clone() for p in points))]

    (y,) = discrete.gonzalez(leaves, baselines, [output], [start], run, batch.n)
    gradients = torch.autograd.grad(y, leaves, torch.ones_like(y))
    return Multipliers(list(gradients), {_WHOLE: steps[_WHOLE]}, torch.finfo(output.dtype).eps), output


def _terms(batch: ModelOnBatch, baselines: Sequence[Tensor], result: Multipliers) -> Tensor:
    """(N, elements), the summands of f(x) - f(x')."""
    inputs = zip(batch.inputs, baselines, result.values, strict=True)
    return torch.cat([(m * (x - b)).detach().double().reshape(batch.n, -1) for x, b, m in inputs], 1)


def _is_complete(
    batch: ModelOnBatch, baselines: Sequence[Tensor], result: Multipliers, output: Tensor, start: Tensor
) -> bool:
    """Whether the terms of each example sum to f(x) - f(x'), up to rounding of the terms and of f."""
    terms = _terms(batch, baselines, result)
    ends, eps = (output.double(), start.double()), result.precision
    gap = (terms.sum(1) - (ends[0] - ends[1])).abs()
    rounding = eps**0.5 * terms.abs().sum(1) + 64 * eps * (ends[0].abs() + ends[1].abs() + 1)
    return bool((gap <= rounding).all())


def _diagnosis(batch: ModelOnBatch, baselines: Sequence[Tensor], result: Multipliers) -> RuntimeError:
    mode = TwoPointsMode(batch.n, frozenset(result.steps), tested=True)
    with contextlib.suppress(WaysPartError, OverwrittenError):
        _run(mode, batch, baselines)
    where = mode.culprit or "no single operation (the numbers may be too large for this precision; try float64)"
    return RuntimeError(f"attributions do not sum to f(x) - f(x'); the sum is missed by {where}")
