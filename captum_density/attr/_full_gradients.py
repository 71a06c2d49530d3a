"""The full-gradient representation, term by term: of a model's inputs, and of a layer's tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density._linear.sweep import per_example
from captum_density._model.precision import accumulation_dtype

__all__ = ["FullGradients", "LayerFullGradients"]


@dataclass(frozen=True)
class _Terms(ABC):
    """What sums to the output, (N,)."""

    output: Tensor

    @abstractmethod
    def _named(self) -> dict[str, Tensor]:
        """Every term (N, ...) or (N,), by name."""

    def total(self) -> Tensor:
        """(N,) sum of all terms of each example, which equals `output` up to rounding."""
        terms = self._named().values()
        return self._total(terms).to(accumulation_dtype(*terms))

    def gap(self) -> Tensor:
        """(N,) |total - output| over the sum of the terms' absolute values: in [0, 1], lower is better.

        Up to 1e-4 in float32 (1e-11 in float64) is taken for rounding. Where terms cancel that are 1e5 times as large
        as f(x), as a shift of logits that is subtracted again, that may be much of f(x): compare `total` with `output`
        then, and use float64.
        """
        return self._share((self._total(self._named().values()) - self.output.double()).abs())

    def _total(self, terms: Iterable[Tensor]) -> Tensor:
        return sum((per_example(t.double()) for t in terms), torch.zeros_like(self.output).double())

    def _share(self, size: Tensor) -> Tensor:
        whole = _size(self._named().values(), self.output)
        return size / whole.clamp(min=torch.finfo(torch.float64).tiny)

    def __repr__(self) -> str:
        terms = self._named()
        width = max(map(len, terms))
        rows = [f"  {name:<{width}}  {_mean(t):>12.5g}  {tuple(t.shape)}" for name, t in terms.items()]
        head = f"{type(self).__name__} of {len(self.output)} examples; sum per term, mean over examples:"
        total, output = float(self.total().mean()), float(self.output.double().mean())
        tail = f"  {'total':<{width}}  {total:>12.5g}  output {output:.5g}"
        return "\n".join([head, *rows, tail])


@dataclass(frozen=True, repr=False)
class FullGradients(_Terms):
    """The full-gradient representation of f at a batch of inputs: f(x) = <df/dx, x> + sum over y of <df/dy, r>.

    See `FullGrad.decompose`, which makes it.

    Attributes:
        output: (N,) f(x).
        inputs: Input terms df/dx * x, each of its input's shape (N, ...).
        biases: Bias terms df/dy * r by name, "module.path:operation", in forward order, each (N, ...).
        unplaced: (N,) sum of |df/dy * r| over elements that have no place on the inputs; None where it was not
            measured.
    """

    inputs: tuple[Tensor, ...]
    biases: dict[str, Tensor]
    unplaced: Tensor | None = None

    def _named(self) -> dict[str, Tensor]:
        return _numbered("input", self.inputs) | self.biases

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


@dataclass(frozen=True, repr=False)
class LayerFullGradients(_Terms):
    """The full-gradient representation of f at a layer's tensors z: f(x) = <df/dz, z> + what is after + around it.

    See `LayerFullGrad.decompose`, which makes it.

    Attributes:
        output: (N,) f(x).
        layer: Terms df/dz * z of the layer's tensors, each (N, ...) of its tensor's shape.
        after: Bias terms df/dy * r of the operations that read something made of the layer's tensors, by name,
            "module.path:operation", in forward order, each (N, ...).
        around: (N,) sums of the terms that reach f past the layer, by name: "input 0" for df/dx * x of the model's
            inputs, and the bias terms of operations made of inputs alone.
        unplaced: (N,) sum of |df/dy * r| over elements of `after` that have no place on the layer's tensors.
    """

    layer: tuple[Tensor, ...]
    after: dict[str, Tensor]
    around: dict[str, Tensor]
    unplaced: Tensor

    def _named(self) -> dict[str, Tensor]:
        around = {f"around {name}": t for name, t in self.around.items()}
        return _numbered("layer", self.layer) | self.after | around

    def parts(self) -> dict[str, Tensor]:
        """(N,) sum of the terms of each part: "layer", "after" and "around"."""
        parts = {"layer": self.layer, "after": self.after.values(), "around": self.around.values()}
        return {name: self._total(terms).to(self.total().dtype) for name, terms in parts.items()}

    def unplaced_share(self) -> Tensor:
        """(N,) share of |terms| that is after the layer and has no place on it: in [0, 1]."""
        return self._share(self.unplaced)


def _numbered(what: str, terms: Iterable[Tensor]) -> dict[str, Tensor]:
    return {f"{what} {i}": t for i, t in enumerate(terms)}


def _size(terms: Iterable[Tensor], output: Tensor) -> Tensor:
    """(N,) sum of absolute values."""
    return sum((per_example(t.detach().double().abs()) for t in terms), torch.zeros_like(output.detach()).double())


def _mean(term: Tensor) -> float:
    return float(term.detach().double().sum()) / len(term)
