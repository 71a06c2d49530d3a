"""The full-gradient representation, term by term."""

from __future__ import annotations

from collections.abc import Iterable
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
        unplaced: (N,) sum of |df/dy * r| over elements that have no place on the inputs; None where it was not
            measured.
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    biases: dict[str, Tensor]
    unplaced: Tensor | None = None

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
        total = sum((per_example(t.double()) for t in terms), torch.zeros_like(self.output).double())
        return self._share((total - self.output.double()).abs())

    def leak(self) -> Tensor:
        """(N,) share of |terms| that is on biases, not on the inputs: in [0, 1]."""
        return self._share(_size(self.biases.values(), self.output))

    def unplaced_share(self) -> Tensor:
        """(N,) share of |terms| that has no place on the inputs: in [0, 1]. See `FullGrad.attribute`.

        Raises:
            ValueError: It was not measured.
        """
        if self.unplaced is None:
            raise ValueError("what has no place was not measured; FullGrad(model).decompose(inputs) does")
        return self._share(self.unplaced)

    def _share(self, size: Tensor) -> Tensor:
        whole = _size([*self.inputs, *self.biases.values()], self.output)
        return size / whole.clamp(min=torch.finfo(torch.float64).tiny)

    def __repr__(self) -> str:
        terms = {f"input {i}": t for i, t in enumerate(self.inputs)} | self.biases
        width = max(map(len, terms))
        rows = [f"  {name:<{width}}  {_mean(t):>12.5g}  {tuple(t.shape)}" for name, t in terms.items()]
        head = f"FullGradients of {len(self.output)} examples; sum per term, mean over examples:"
        total, output = float(self.total().mean()), float(self.output.double().mean())
        tail = f"  {'total':<{width}}  {total:>12.5g}  output {output:.5g}"
        return "\n".join([head, *rows, tail])


def _size(terms: Iterable[Tensor], output: Tensor) -> Tensor:
    """(N,) sum of absolute values."""
    return sum((per_example(t.detach().double().abs()) for t in terms), torch.zeros_like(output.detach()).double())


def _mean(term: Tensor) -> float:
    return float(term.detach().double().sum()) / len(term)
