"""sum_j J_j u_j of a call y = op(u_1, ..., u_k), where J_j = d op / d u_j."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from captum_density._model.calls import Call
from captum_density._model.evaluation import load_forward_mode

__all__ = ["finite", "jacobian_products", "reach", "reverse_mode_product", "reverse_products", "transposed_product"]

_PROBES = 3  # elements that must show something,
_TRIES = 12  # of this many at most


def jacobian_products(call: Call, create_graph: bool, shares: Mapping[int, float] | None = None) -> list[Tensor]:
    """sum_j J_j u_j for each output: forward mode, or reverse mode twice where an operation has no forward mode.

    Args:
        call: The call.
        create_graph: Whether the sum shall carry a graph.
        shares: What each summand is multiplied by, by the id of its activation; 1 where it is absent.

    Raises:
        NotImplementedError: The operation has neither.
    """

    def point(u: Tensor) -> Tensor:
        return u if create_graph else u.detach()

    def dual(u: Tensor) -> Tensor:
        # In-place operations write to both, so both must be copies then; what was expanded lets no tangent be written.
        expanded = any(step == 0 and size > 1 for step, size in zip(u.stride(), u.shape, strict=True))
        primal = point(u).clone() if call.mutated or expanded else point(u)
        share = 1.0 if shares is None else shares.get(id(u), 1.0)
        tangent = _finite_in(call.kwargs.get("dtype"), finite(point(u)))
        return forward_ad.make_dual(primal, tangent * share if share != 1 else tangent)

    load_forward_mode()
    try:
        with forward_ad.dual_level():
            pairs = [forward_ad.unpack_dual(y) for y in call.evaluate(dual)]
            return [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]
    except (NotImplementedError, RuntimeError) as forward_error:
        if shares:
            raise
        try:
            return reverse_products(call, create_graph)
        except (NotImplementedError, RuntimeError) as reverse_error:
            raise NotImplementedError(
                f"{call.name} has neither a forward-mode derivative ({forward_error}) nor a second reverse-mode "
                f"derivative ({reverse_error})"
            ) from reverse_error


def reverse_products(call: Call, create_graph: bool = False) -> list[Tensor]:
    """sum_j J_j u_j for each output of a call, by reverse mode twice over a second evaluation."""
    points: list[Tensor] = []

    def leaf(u: Tensor) -> Tensor:
        points.append(u.view_as(u) if create_graph else u.detach().requires_grad_())
        return points[-1].clone() if call.mutated else points[-1]

    with torch.enable_grad():
        outputs = call.evaluate(leaf)
    return [reverse_mode_product(y, points, create_graph) for y in outputs]


def reverse_mode_product(output: Tensor, points: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """sum_j J_j u_j of an output with a graph to the points u_j: the derivative of v -> sum_j <J_j^T v, u_j>.

    Raises:
        RuntimeError: The backward of what made the output is not differentiable.
    """
    if not output.requires_grad:
        return torch.zeros_like(output)
    with torch.enable_grad():
        cotangent = torch.ones_like(output, requires_grad=True)
        pullback = torch.autograd.grad(output, points, cotangent, create_graph=True, allow_unused=True)
        pairs = [(g, u if create_graph else u.detach()) for g, u in zip(pullback, points, strict=True) if g is not None]
        linked = [(g * u.conj()).sum().real for g, u in pairs if g.requires_grad]
        product = None
        if linked:
            pairing = torch.stack(linked).sum()
            (product,) = torch.autograd.grad(pairing, cotangent, create_graph=create_graph, allow_unused=True)
    # J^T v is linear in v: where it does not depend on v it is zero, or it was computed out of autograd's sight.
    if any(bool(g.detach().any()) for g, _ in pairs if product is None or not g.requires_grad):
        raise RuntimeError("its backward is not differentiable")
    return torch.zeros_like(output) if product is None else product


def reach(output: Tensor, points: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Along which dimensions an element of an output looks beyond its own place, in each point of the output's shape.

    Derivatives of a few elements tell. A dimension is left out where none depends more on another place than on its
    own, as in normalisations.
    """
    wide: list[set[int]] = [set() for _ in points]
    shown = [0] * len(points)
    for attempt in range(_TRIES):
        if min(shown, default=_PROBES) >= _PROBES:
            break
        at = tuple(int(n * ((0.377 + 0.236 * d + 0.618 * attempt) % 1)) for d, n in enumerate(output.shape))
        cotangent = torch.zeros_like(output)
        cotangent[at] = 1
        gradients = torch.autograd.grad(output, points, cotangent, retain_graph=True, allow_unused=True)
        for i, gradient in enumerate(gradients):
            size = torch.zeros((), device="cpu") if gradient is None else gradient.abs()
            largest = size.max()
            if bool(largest > 0):
                shown[i] += 1
                wide[i] |= {d for d, own in enumerate(at) if bool(size.select(d, own).max() < largest)}
    return [tuple(sorted(dims)) for dims in wide]


def transposed_product(call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor] | None:
    """J^T u through the graph of the call itself, which is J u where J is symmetric.

    None where the graph does not lead from the one output to the one activation.
    """
    (u,), (y,) = call.activations, outputs
    if u.shape != y.shape or u.dtype != y.dtype or not u.requires_grad or not y.requires_grad:
        return None
    edge = get_gradient_edge(u) if call.edge is None else call.edge
    vector = finite(u) if call.name == "softmax" else u  # a masked score would spoil its whole row
    (product,) = torch.autograd.grad(
        y, [edge], vector if create_graph else vector.detach(), retain_graph=True, create_graph=create_graph,
        allow_unused=True,
    )  # fmt: skip
    if product is None:
        return None
    if create_graph:
        return [finite(product)]
    # An infinite score has a derivative of zero, and adds nothing.
    return [torch.nan_to_num_(product, nan=0.0, posinf=0.0, neginf=0.0)]


def finite(t: Tensor) -> Tensor:
    """The same with 0 in place of infinity; NaN stays, so that it is seen."""
    return torch.nan_to_num(t, nan=float("nan"), posinf=0.0, neginf=0.0)


def _finite_in(dtype: Any, t: Tensor) -> Tensor:
    """The same with 0 where another dtype has infinity, as of this one's least number, with which scores are masked."""
    if not isinstance(dtype, torch.dtype) or not (dtype.is_floating_point and t.is_floating_point()):
        return t
    if torch.finfo(dtype).max >= torch.finfo(t.dtype).max:
        return t
    return t.masked_fill(t.detach().to(dtype).isinf(), 0.0)
