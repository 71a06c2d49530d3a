"""More kinds of trace, for a sum that is not met: is it an operation's fault, that of rounding, or of no number?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from captum_density._linear.jacobian import reverse_mode_product, reverse_products
from captum_density._linear.remainders import Remainder
from captum_density._linear.trace import Trace
from captum_density._model.calls import Call

__all__ = ["CulpritTrace", "FiniteTrace", "RoundingTrace"]


class CulpritTrace(Trace):
    """Compare each r with what autograd says of the graph, which takes a second evaluation of every call.

    Attributes:
        culprit: Name of the first operation of which they differ, None if there is none.
    """

    postpones = False
    culprit: str | None = None

    def _prepare(self, call: Call, remainder: Remainder) -> None:
        super()._prepare(call, remainder)
        call.record_rng(always=True)

    def _factors(self, remainder: Remainder, call: Call, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        factors = super()._factors(remainder, call, outputs)
        if self.culprit is None and not call.mutated:
            with contextlib.suppress(RuntimeError):  # no second derivative: nothing to compare with
                self._compare(call, outputs, factors, reverse_products(call))
        return factors

    def tell(self, call: Call, outputs: Sequence[Tensor], remainders: Sequence[Tensor | None]) -> None:
        # Of several activations one may be computed from another, and then the graph does not tell their shares apart.
        if self.culprit is None and len(call.activations) == 1:
            with self.paused(), contextlib.suppress(RuntimeError):
                products = [reverse_mode_product(y, call.activations) for y in outputs]
                self._compare(call, outputs, remainders, products)
        super().tell(call, outputs, remainders)

    def _compare(
        self,
        call: Call,
        outputs: Sequence[Tensor],
        remainders: Sequence[Tensor | None],
        products: Sequence[Tensor],
    ) -> None:
        for y, r, product in zip(outputs, remainders, products, strict=True):
            if y.requires_grad:
                error = y.detach() - product if r is None else y.detach() - product - r.detach()
                if float(error.abs().max()) > 1e-3 * float(y.detach().abs().max()):
                    self.culprit = self._name(call.name)


class RoundingTrace(Trace):
    """The factor of an operation is not its r, but the size of the numbers that the rounding of its output comes from.

    That is |y|, and the logarithm of the sum of exponentials (the largest u) where the operation subtracts it inside.
    """

    postpones = False

    def _factors(self, remainder: Remainder, call: Call, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        return [_size(call, y) for y in outputs]

    def tell(self, call: Call, outputs: Sequence[Tensor], remainders: Sequence[Tensor | None]) -> None:
        with self.paused():
            sizes = [_size(call, y) for y in outputs]
        super().tell(call, outputs, sizes)


def _size(call: Call, y: Tensor) -> Tensor:
    size = y.detach().abs()
    if call.name in ("log_softmax", "cross_entropy"):
        u = call.argument(0, "input").detach()
        dim = min(1, u.ndim - 1) if call.name == "cross_entropy" else call.argument(1, "dim")
        top = u.amax(-1 if dim is None else dim, keepdim=True).abs()
        size = size + (top if y.ndim == u.ndim else top.squeeze(dim) if y.ndim > 0 else top.max())
    return torch.complex(size, size) if y.is_complex() else size


@dataclass(frozen=True)
class _Step:
    """An operation: where its outputs and its activations stand in the graph."""

    name: str
    outputs: list[GradientEdge]
    activations: list[GradientEdge]


class FiniteTrace(Trace):
    """Find the operation where numbers stop being finite.

    Attributes:
        first_nan: The first operation whose output has NaN and whose activations have none, None if there is none.
        last_infinity: The last operation whose output has an infinity and whose activations are finite.
    """

    postpones = False
    first_nan: str | None = None
    last_infinity: str | None = None

    def __init__(self, create_graph: bool = False, keep_activations: bool = False) -> None:
        super().__init__(create_graph, keep_activations)
        self._steps: list[_Step] = []
        self._before: list[GradientEdge] = []

    def first_gradient(self, output: Tensor) -> str | None:
        """The operation whose incoming gradient is finite and whose outgoing is not.

        Of `y = op(u, v)` where v = h(u), the gradient by u runs through h as well. So op may seem to be the one where h
        is; h runs before it, and so the earliest is the one.
        """
        edges = [edge for step in self._steps for edge in step.outputs]
        gradients = iter(torch.autograd.grad(output.sum(), edges, retain_graph=True, allow_unused=True))
        incoming = [[next(gradients) for _ in step.outputs] for step in self._steps]
        for step, given in zip(self._steps, incoming, strict=True):
            pairs = [(edge, g) for edge, g in zip(step.outputs, given, strict=True) if g is not None]
            if not pairs or not _all_finite(g for _, g in pairs):
                continue
            outputs, cotangents = zip(*pairs, strict=True)
            outgoing = torch.autograd.grad(outputs, step.activations, cotangents, retain_graph=True, allow_unused=True)
            if not _all_finite(g for g in outgoing if g is not None):
                return step.name
        return None

    def _prepare(self, call: Call, remainder: Remainder) -> None:
        super()._prepare(call, remainder)
        self._before = _edges(call.activations)  # an operation may overwrite them

    def _factors(self, remainder: Remainder, call: Call, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        self._note(call, self._before, outputs)
        return super()._factors(remainder, call, outputs)

    def tell(self, call: Call, outputs: Sequence[Tensor], remainders: Sequence[Tensor | None]) -> None:
        with self.paused():
            self._note(call, _edges(call.activations), outputs)
        super().tell(call, outputs, remainders)

    def _note(self, call: Call, before: list[GradientEdge], outputs: Sequence[Tensor]) -> None:
        name = self._name(call.name)
        self._steps.append(_Step(name, _edges(outputs), before))
        with torch.no_grad():
            if self.first_nan is None and _any_nan(outputs) and not _any_nan(call.activations):
                self.first_nan = name
            if not _all_finite(outputs) and _all_finite(call.activations):
                self.last_infinity = name


def _edges(tensors: Sequence[Tensor]) -> list[GradientEdge]:
    return [get_gradient_edge(t) for t in tensors if t.requires_grad]


def _any_nan(tensors: Iterable[Tensor]) -> bool:
    return any(bool(t.isnan().any()) for t in tensors)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)
