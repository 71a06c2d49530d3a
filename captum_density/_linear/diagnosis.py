"""Two more kinds of trace, for a sum that is not met: is it an operation's fault, or that of rounding?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_density._linear.jacobian import reverse_products
from captum_density._linear.remainders import Remainder
from captum_density._linear.trace import Trace
from captum_density._model.calls import Call

__all__ = ["CulpritTrace", "RoundingTrace"]


class CulpritTrace(Trace):
    """Compare each r with what autograd says of the graph, which takes a second evaluation of every call.

    Attributes:
        culprit: Name of the first operation of which they differ, None if there is none.
    """

    culprit: str | None = None

    def _prepare(self, call: Call, remainder: Remainder) -> None:
        super()._prepare(call, remainder)
        call.record_rng(always=True)

    def _factors(self, remainder: Remainder, call: Call, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        factors = super()._factors(remainder, call, outputs)
        if self.culprit is None and not call.mutated:
            self._compare(call, outputs, factors)
        return factors

    def _compare(self, call: Call, outputs: Sequence[Tensor], remainders: Sequence[Tensor | None]) -> None:
        with contextlib.suppress(RuntimeError):  # no second derivative: nothing to compare with
            for y, r, product in zip(outputs, remainders, reverse_products(call), strict=True):
                if y.requires_grad:
                    error = y.detach() - product if r is None else y.detach() - product - r.detach()
                    if float(error.abs().max()) > 1e-3 * float(y.detach().abs().max()):
                        self.culprit = self._name(call.name)


class RoundingTrace(Trace):
    """The factor of an operation is not its r, but the size of the numbers that the rounding of its output comes from.

    That is |y|, and the logarithm of the sum of exponentials (the largest u) where the operation subtracts it inside.
    """

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
