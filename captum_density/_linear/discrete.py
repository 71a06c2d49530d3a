r"""Discrete gradients: linear maps A between two points u and u' with sum_j A_j (u_j - u'_j) = y - y', exactly.

Each function here gives an operation's outputs their values at u, and for a derivative the transposed map. Coefficients
count as constants. Where the two points coincide, each map is the derivative; between them:

- an elementwise function has its secant, (y - y') / (u - u');
- softmax, log_softmax and logsumexp are exp(u - log sum exp u) step by step: log-means of the exponentials;
- attention is softmax between two products at the midpoint, in blocks, so that no matrix of weights is kept;
- a normalisation is a centred u times (mean of squares + eps)^(-1/2), step by step: a product at the midpoint, and the
  secant of the root;
- a maximum has Gonzalez' discrete gradient within each window: the one-hot vector of the maximum at the midpoint, and
  what that leaves of y - y' along du / |du|^2;
- anything else has it for each example: the Jacobian at the midpoint, and what that leaves along du / |du|^2.

O. Gonzalez, "Time integration and discrete Hamiltonian systems", Journal of Nonlinear Science 6, 1996.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from captum_density._linear.blocks import blocks
from captum_density._model.calls import Versions

__all__ = [
    "Mapped",
    "UnrepresentableError",
    "adaptive_windows",
    "among",
    "attention",
    "extremum",
    "gonzalez",
    "log_softmax",
    "logsumexp",
    "mapped",
    "normalised",
    "pool_windows",
    "secant",
    "softmax",
    "windows",
]  # fmt: skip

# <g_1, ..., g_k> by the outputs to gradients by the activations, None for zero.
Transposed = Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]


class UnrepresentableError(RuntimeError):
    """An output differs between the two points where no activation does, so that no linear map tells of it."""


class Mapped(torch.autograd.Function):
    """Outputs of values of their own, with a linear map for their derivative."""

    @staticmethod
    def forward(ctx: Any, transposed: Transposed, outputs: tuple[Tensor, ...], *activations: Tensor) -> Any:
        ctx.transposed, ctx.dtypes = transposed, [u.dtype for u in activations]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(y for y in outputs if not y.is_floating_point() and not y.is_complex()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        back = ctx.transposed(gradients)
        return None, None, *(None if g is None else g.to(d) for g, d in zip(back, ctx.dtypes, strict=True))


def mapped(outputs: Sequence[Tensor], activations: Sequence[Tensor], transposed: Transposed) -> list[Tensor]:
    """The outputs, with the transposed of a linear map in the activations for their backward."""
    return list(Mapped.apply(transposed, tuple(y.detach() for y in outputs), *activations))


def difference(u: Tensor, v: Tensor) -> Tensor:
    """u - v, 0 where both are the same infinity."""
    return torch.where(u == v, torch.zeros_like(u), u - v)


def midpoint(u: Tensor, v: Tensor) -> Tensor:
    return torch.where(u == v, u, (u + v) / 2)


def _finite(t: Tensor) -> Tensor:
    return torch.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0)


def _refuse_if(any_element: Tensor) -> None:
    if bool(any_element.any()):
        raise UnrepresentableError(
            "no linear map leads to f(x) - f(x'), which is not finite, or is there where x and x' are alike; "
            "take other baselines"
        )


def _along(du: Tensor, rest: Tensor) -> Tensor:
    """rest du / |du|^2 over the last dimension: what adds rest (...) to the sum, in proportion to the squares of du."""
    length = torch.linalg.vector_norm(du, dim=-1)  # which squares numbers so that small ones do not vanish
    _refuse_if(((length == 0) & (rest.abs() > torch.finfo(rest.dtype).tiny)) | ~rest.isfinite() | ~length.isfinite())
    length = torch.where(length == 0, torch.ones_like(length), length)
    return (du / length.unsqueeze(-1)) * (rest / length).unsqueeze(-1)


# -- elementwise functions


def secant(u: Tensor, v: Tensor, y: Tensor, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """y = function(u), elementwise.

    Where y - y' is rounding, so is its quotient by u - u': there the slope is the derivative at the midpoint, wherever
    that agrees with y - y' up to rounding; at a corner it does not.
    """
    du, dy = difference(u, v), difference(y, z)
    slope = dy / du
    same, size = du == 0, y.abs() + z.abs()
    eps = torch.finfo(y.dtype).eps
    near = same | ((dy != 0) & (dy.abs() <= eps ** (1 / 3) * size))
    if bool(near.any()):
        with torch.enable_grad():
            point = midpoint(u, v).requires_grad_()
            value = function(point)
            (derivative,) = torch.autograd.grad(value, point, torch.ones_like(value), allow_unused=True)
        derivative = torch.zeros_like(u) if derivative is None else _finite(derivative)
        rounding = (dy - derivative * du).abs() <= 8 * eps * size
        slope = torch.where(same | (near & rounding), derivative, slope)
    _refuse_if(~slope.isfinite() | (du.isinf() & (dy != 0)))
    return mapped([y], [u], lambda g: [None if g[0] is None else g[0] * slope])[0]


def among(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], y: Tensor, z: Tensor, activations: Sequence[Tensor]
) -> Tensor:
    """An elementwise choice among several tensors of one shape, as maximum and where are.

    Args:
        parts: Of each its value at the two points, and its share of y at the midpoint.
        y: The value.
        z: The value at the other point.
        activations: Those of the parts that depend on the inputs, in turn; None stands for one that does not.
    """
    changes = [difference(u, v) for u, v, _ in parts]
    rest = difference(y, z)
    for du, (_, _, share) in zip(changes, parts, strict=True):
        rest = rest - torch.where(share == 0, torch.zeros_like(du), share * du)
    along = _along(torch.stack(changes, -1), rest).unbind(-1)
    maps = [share + a for a, (_, _, share) in zip(along, parts, strict=True)]
    return mapped([y], activations, lambda g: [None if g[0] is None else g[0] * a for a in maps])[0]


# -- softmax


def _log_mean(larger: Tensor, t: Tensor) -> Tensor:
    """(a - b) / (log a - log b) of positive numbers, by the larger and |log a - log b|."""
    return torch.where(t == 0, larger, larger * -torch.expm1(-t) / t)


def _share(u: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """w with log sum exp u - log sum exp u' = <w, u - u'> along a dimension; and u and u' less these."""
    top = torch.maximum(u, v).amax(dim, keepdim=True)
    a, b = u - top, v - top
    log_sums = torch.logsumexp(a, dim, keepdim=True), torch.logsumexp(b, dim, keepdim=True)
    change = difference(a, b).abs()
    _refuse_if(change.isinf() & (torch.maximum(a, b).exp() > 0))
    larger = torch.maximum(log_sums[0], log_sums[1]).exp()
    of_log = 1 / _log_mean(larger, (log_sums[0] - log_sums[1]).abs())
    return _log_mean(torch.maximum(a, b).exp(), change) * of_log, a - log_sums[0], b - log_sums[1]


def softmax(u: Tensor, v: Tensor, y: Tensor, z: Tensor, dim: int) -> Tensor:
    """y = exp(log_softmax(u))."""
    w, log_y, log_z = _share(u.to(y.dtype), v.to(y.dtype), dim)
    slope = _log_mean(torch.maximum(y, z), difference(log_y, log_z).abs())

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        if g[0] is None:
            return [None]
        scaled = g[0] * slope
        return [scaled - w * scaled.sum(dim, keepdim=True)]

    return mapped([y], [u], transposed)[0]


def log_softmax(u: Tensor, v: Tensor, y: Tensor, z: Tensor, dim: int) -> Tensor:
    """y = u - log sum exp u."""
    w = _share(u.to(y.dtype), v.to(y.dtype), dim)[0]
    return mapped([y], [u], lambda g: [None if g[0] is None else g[0] - w * g[0].sum(dim, keepdim=True)])[0]


def logsumexp(u: Tensor, v: Tensor, y: Tensor, z: Tensor, dim: int, keepdim: bool) -> Tensor:
    """y = log sum exp u along one dimension."""
    w = _share(u, v, dim)[0]
    return mapped([y], [u], lambda g: [None if g[0] is None else w * (g[0] if keepdim else g[0].unsqueeze(dim))])[0]


# -- attention

_BLOCK = 2**18  # weights at a time


def attention(
    operands: Sequence[Tensor], others: Sequence[Tensor], y: Tensor, mask: Tensor | None, causal: bool, scale: float,
    activations: Sequence[int],
) -> Tensor:  # fmt: skip
    """y = softmax(scale q k^T + mask) v: two products at the midpoint, and `softmax` between them.

    Args:
        operands: q (..., H, L, E), k (..., G, S, E) and v (..., G, S, V), where G divides H, or all without heads.
        others: The same at the other point.
        y: The value, (..., H, L, V).
        mask: The same at both points, broadcastable to (..., H, L, S): True where a query attends, or a summand.
        causal: Whether a query attends to no later key.
        scale: As above.
        activations: Which of the operands depend on the inputs.

    Raises:
        OverwrittenError: In the backward pass, if an operand or the mask has been overwritten.
    """
    read = Versions(t for t in (*operands, *others, mask) if t is not None)

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        if g[0] is None:
            return [None] * len(activations)
        read.check()
        back = _attention_transposed(g[0], operands, others, mask, causal, scale)
        return [back[i] for i in activations]

    return mapped([y], [operands[i] for i in activations], transposed)[0]


def _attention_transposed(
    g: Tensor, operands: Sequence[Tensor], others: Sequence[Tensor], mask: Tensor | None, causal: bool, scale: float
) -> list[Tensor]:
    """What `attention` sends back to q, k and v."""
    shape, count = g.shape[:-1], operands[1].shape[-2]  # (..., H, L), S
    dtype = torch.promote_types(g.dtype, torch.float32)

    def per_head(t: Tensor) -> Tensor:
        groups = shape[-2] // t.shape[-3] if t.ndim > 2 else 1
        t = t.detach() if groups == 1 else t.detach().repeat_interleave(groups, -3)
        return t.to(dtype).contiguous()

    (q, k, v), (q_, k_, v_) = ([per_head(t) for t in ends] for ends in (operands, others))
    middles = [torch.lerp(a, b, 0.5) for a, b in ((q, q_), (k, k_), (v, v_))]
    back = [torch.zeros_like(t) for t in middles]
    g = g.to(dtype)
    mask = None if mask is None else mask.detach().expand(*shape, count)
    for *batch, rows in blocks(shape, max(1, _BLOCK // max(count, 1))):
        at, keys = (*batch, rows), (*batch, slice(None))
        own = None if mask is None else mask[at]
        scores = [_masked(x[at] @ y[keys].mT * scale, own, rows if causal else None) for x, y in ((q, k), (q_, k_))]
        weights, slope, share = _softmax_map(*scores)
        back[2][keys] += weights.mT @ g[at]
        of_weights = (g[at] @ middles[2][keys].mT).mul_(slope)
        of_scores = of_weights.sub_(share.mul_(of_weights.sum(-1, keepdim=True))).mul_(scale)
        back[0][at] = of_scores @ middles[1][keys]
        back[1][keys] += of_scores.mT @ middles[0][at]

    def as_given(t: Tensor, like: Tensor) -> Tensor:
        return t if t.shape == like.shape else t.unflatten(-3, (like.shape[-3], -1)).sum(-3)

    return [as_given(t, like) for t, like in zip(back, operands, strict=True)]


def _masked(scores: Tensor, mask: Tensor | None, causal: slice | None) -> Tensor:
    """Scores with what a mask takes, or, of some queries, causal attention."""
    if causal is not None:
        queries = torch.arange(causal.start, causal.stop, device=scores.device)
        scores.masked_fill_(torch.arange(scores.shape[-1], device=scores.device) > queries[:, None], -torch.inf)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return scores


def _softmax_map(scores: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax along the last dimension: its mean; and s, w with dy = s (du - <w, du>), as in `softmax`."""
    logs = [t.logsumexp(-1, keepdim=True) for t in (scores, others)]
    change, of_log = difference(scores, others), difference(*logs)
    y, z = (t.softmax(-1).nan_to_num_(0.0) for t in (scores, others))  # nan where a query attends to nothing
    slope = _log_mean(torch.maximum(y, z), (change - of_log).abs_())
    # The exponentials in units of the larger of their sums.
    larger = torch.maximum(y * of_log.clamp_max(0).exp(), z * (-of_log).clamp_max(0).exp())
    share = _log_mean(larger, change.abs_()).div_(_log_mean(torch.ones_like(of_log), of_log.abs()))
    return y.add_(z).div_(2), slope, share


# -- normalisations


def normalised(
    u: Tensor, v: Tensor, y: Tensor, shape: Sequence[int], dims: tuple[int, ...], eps: float, weight: Tensor | None,
    centred: bool,
) -> Tensor:  # fmt: skip
    """y = c (mean c^2 + eps)^(-1/2) * weight + bias, with c = u - mean u, or u.

    Args:
        u: The activation.
        v: The same at the other point.
        y: The value.
        shape: In which u is grouped, so that means are over whole dimensions.
        dims: These dimensions.
        eps: As the operation's.
        weight: What broadcasts to y; None for 1.
        centred: Whether a mean is taken off.
    """
    c, d = u.detach().reshape(shape), v.reshape(shape)
    if centred:
        c, d = c - c.mean(dims, keepdim=True), d - d.mean(dims, keepdim=True)
    r, s = ((t.square().mean(dims, keepdim=True) + eps).rsqrt() for t in (c, d))
    middle, factor = (c + d) / 2, (r + s) / 2
    # r - s = slope ((mean c^2) - (mean d^2)), and the mean squares differ by 2 <middle, c - d> / count.
    slope = -((r * s) ** 2) / (r + s)
    count = c.numel() // r.numel()

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        if g[0] is None:
            return [None]
        back = (g[0] if weight is None else g[0] * weight).reshape(shape)
        back = factor * back + middle * (2 / count * slope * (back * middle).sum(dims, keepdim=True))
        back = back - back.mean(dims, keepdim=True) if centred else back
        return [back.reshape(u.shape)]

    return mapped([y], [u], transposed)[0]


# -- maxima


def _in_window(u: Tensor, v: Tensor, dy: Tensor) -> Tensor:
    """A (..., K) of a maximum over the last dimension, dy (...)."""
    du = difference(u, v)
    pick = torch.zeros_like(u).scatter_(-1, midpoint(u, v).argmax(-1, keepdim=True), 1.0)
    rest = dy - torch.where(pick == 0, pick, pick * du).sum(-1)
    return pick + _along(du, rest)


def extremum(u: Tensor, v: Tensor, y: Tensor, z: Tensor, dims: tuple[int, ...], keepdim: bool, sign: int) -> Tensor:
    """y = the maximum (sign 1) or minimum (sign -1) over dimensions."""
    dims = tuple(d % u.ndim for d in dims)
    order = [d for d in range(u.ndim) if d not in dims] + list(dims)
    kept = [u.shape[d] for d in range(u.ndim) if d not in dims]
    inverse = sorted(range(u.ndim), key=order.__getitem__)
    flat = [(sign * t.detach()).permute(order).reshape(*kept, -1) for t in (u, v)]
    a = _in_window(flat[0], flat[1], (sign * difference(y, z)).reshape(kept))
    shape = [u.shape[d] for d in order]
    a = a.reshape(shape).permute(inverse)

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        if g[0] is None:
            return [None]
        return [a * g[0].reshape([1 if d in dims else size for d, size in enumerate(u.shape)])]

    return mapped([y], [u], transposed)[0]


def windows(u: Tensor, v: Tensor, y: Tensor, z: Tensor, sizes: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """y = the maximum over windows of a regular grid.

    Args:
        u: The activation, (..., *grid).
        v: The same at the other point.
        y: The value, (..., *windows).
        z: The same at the other point.
        sizes: For each dimension of the grid and each window along it, the indices in it.
    """
    nd = len(sizes)
    grid, spots = u.shape[-nd:], y.shape[-nd:]
    index = torch.zeros([1] * (2 * nd), dtype=torch.long, device=u.device)
    inside = torch.ones([1] * (2 * nd), dtype=torch.bool, device=u.device)
    for d, along in enumerate(sizes):
        width = max(map(len, along))
        padded = torch.tensor([[*w, *[-1] * (width - len(w))] for w in along], device=u.device)
        shape = [1] * (2 * nd)
        shape[d], shape[nd + d] = padded.shape
        padded = padded.view(shape)
        index, inside = index * grid[d] + padded.clamp_min(0), inside & (padded >= 0)
    index, inside = (t.expand(*spots, *index.shape[nd:]).reshape(spots.numel(), -1) for t in (index, inside))
    flat = [t.detach().flatten(-nd)[..., index] for t in (u, v)]
    flat = [t.masked_fill(~inside, -torch.inf) for t in flat]
    a = _in_window(flat[0], flat[1], difference(y, z).flatten(-nd))

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        if g[0] is None:
            return [None]
        back = (a * g[0].flatten(-nd).unsqueeze(-1)).flatten(-2)
        zeros = torch.zeros(*u.shape[:-nd], grid.numel(), dtype=back.dtype, device=back.device)
        return [zeros.index_add(-1, index.flatten(), back).view(u.shape)]

    return mapped([y], [u], transposed)[0]


def pool_windows(size: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    """Which indices lie in each window of a pooling along one dimension."""
    starts = [o * stride - padding for o in range(count)]
    return [[i for i in range(s, s + kernel * dilation, dilation) if 0 <= i < size] for s in starts]


def adaptive_windows(size: int, count: int) -> list[list[int]]:
    """The same of an adaptive pooling."""
    return [list(range(o * size // count, -(-(o + 1) * size // count))) for o in range(count)]


# -- anything else


def gonzalez(
    us: Sequence[Tensor], vs: Sequence[Tensor], ys: Sequence[Tensor], zs: Sequence[Tensor],
    run: Callable[[list[Tensor]], list[Tensor]], examples: int | None,
) -> list[Tensor]:  # fmt: skip
    """Outputs of any function.

    Args:
        us: The activations.
        vs: The same at the other point.
        ys: The outputs.
        zs: The same at the other point.
        run: The function of the activations.
        examples: How many come first in all tensors; None if the function is of degree 2 in all activations together,
            whose Jacobian at the midpoint leaves nothing.
    """
    points = [midpoint(u.detach(), v) for u, v in zip(us, vs, strict=True)]
    with torch.enable_grad():
        points = [p.requires_grad_() for p in points]
        outputs = run(points)
    if examples is None:
        changes, ends = [], []
    else:
        changes = [difference(u.detach(), v) for u, v in zip(us, vs, strict=True)]
        ends = [difference(y.detach(), z) for y, z in zip(ys, zs, strict=True) if y.is_floating_point()]
        joint = torch.cat([du.reshape(examples, -1) for du in changes], 1)
        moved = _per_example([dy.abs() for dy in ends], examples)
        _along(joint, moved)  # which refuses what cannot be

    def transposed(g: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = [(o, h) for o, h in zip(outputs, g, strict=True) if h is not None and o.requires_grad]
        back: list[Tensor | None] = [None] * len(points)
        if pairs:
            back = list(
                torch.autograd.grad(
                    [o for o, _ in pairs], points, [h for _, h in pairs], retain_graph=True, allow_unused=True
                )
            )
        if examples is None:
            return back
        back = [None if b is None else _finite(b) for b in back]
        floats = [h for h, y in zip(g, ys, strict=True) if y.is_floating_point()]
        rest = _per_example([h * dy for h, dy in zip(floats, ends, strict=True) if h is not None], examples)
        rest = rest - _per_example([b * du for b, du in zip(back, changes, strict=True) if b is not None], examples)
        along = _along(joint, torch.where((joint == 0).all(1), torch.zeros_like(rest), rest))
        parts = along.split([du.numel() // examples for du in changes], 1)
        parts = [part.reshape(du.shape) for part, du in zip(parts, changes, strict=True)]
        return [a if b is None else a + b for a, b in zip(parts, back, strict=True)]

    return mapped(ys, us, transposed)


def _per_example(parts: Sequence[Tensor], examples: int) -> Tensor:
    """Sums over everything but the examples, (examples,); 0 of nothing."""
    return sum((part.reshape(examples, -1).sum(1) for part in parts), torch.zeros((), device="cpu"))
