"""The full-gradient representation, term by term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density._linear.sweep import per_example
from captum_density._model.precision import accumulation_dtype

__all__ = ["FullGradients"]


@dataclass(frozen=True)
class FullGradients:
    """The full-gradient representation of f at a batch of inputs: f(x) = <df/dx, x> + sum over y of <df/dy, r>.

    See `FullGrad.decompose`, which makes it.

    Attributes:
        output: (N,) f(x).
        inputs: Input terms df/dx * x, each of its input's shape (N, ...).
        biases: Bias terms df/dy * r by name, "module.path:operation", in forward order, each (N, ...).
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    biases: dict[str, Tensor]

    def total(self) -> Tensor:
        """(N,) sum of all terms of each example, which equals `output` up to rounding."""
        terms = [*self.inputs, *self.biases.values()]
        return sum((per_example(t.double()) for t in terms), torch.zeros_like(self.output).double()).to(
            accumulation_dtype(*terms)
        )

    def gap(self) -> Tensor:
        """(N,) |total - output| over the sum of the terms' absolute values: in [0, 1], lower is better.

        Up to 1e-4 in float32 (1e-11 in float64) is taken for rounding. Where terms cancel that are 1e5 times as large
        as f(x), as a shift of logits that is subtracted again, that may be much of f(x): compare `total` with `output`
        then, and use float64.
        """
        terms = [*self.inputs, *self.biases.values()]
        magnitude = sum((per_example(t.double().abs()) for t in terms), self.output.double().abs() * 0)
        total = sum((per_example(t.double()) for t in terms), torch.zeros_like(magnitude))
        return (total - self.output.double()).abs() / magnitude.clamp(min=torch.finfo(torch.float64).tiny)

    def __repr__(self) -> str:
        terms = {f"input {i}": t for i, t in enumerate(self.inputs)} | self.biases
        width = max(map(len, terms))
        rows = [f"  {name:<{width}}  {_mean(t):>12.5g}  {tuple(t.shape)}" for name, t in terms.items()]
        head = f"FullGradients of {len(self.output)} examples; sum per term, mean over examples:"
        total, output = float(self.total().mean()), float(self.output.double().mean())
        tail = f"  {'total':<{width}}  {total:>12.5g}  output {output:.5g}"
        return "\n".join([head, *rows, tail])


def _mean(term: Tensor) -> float:
    return float(term.detach().double().sum()) / len(term)
