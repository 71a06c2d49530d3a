"""The bias of one operation: what is left of its output after its linear part at the point of evaluation.

An operation y = op(u_1, ..., u_k) of activations is there equal to

    y = sum_j J_j u_j + r,      r = y - sum_j J_j u_j,      J_j = d op / d u_j.

r is always `y - jvp(op, u, u)`. Euler's theorem and plain affinity give it for less: an operation that is positively
homogeneous of degree p has sum_j J_j u_j = p y, so r = (1 - p) y; an affine one has r = op(0). The tables below hold
nothing but such shortcuts: an operation that is in none of them goes through its derivative.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor

from captum_density._model.calls import Call, is_continuous, tensors_in
from captum_density._model.evaluation import load_forward_mode

__all__ = ["Rule", "remainders", "reverse_mode_product", "reverse_products", "select_rule"]

# Positively homogeneous of degree 1 in the one activation they read; whatever else they read scales, selects or shapes.
_LINEAR = frozenset(
    """
    relu leaky_relu prelu rrelu abs neg negative positive dropout dropout1d dropout2d dropout3d feature_dropout
    fractional_max_pool2d fractional_max_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d max_unpool1d
    max_unpool2d max_unpool3d interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle pixel_unshuffle
    channel_shuffle grid_sample fold unfold
    sum mean amax amin cumsum trace diff nansum
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze permute transpose t T mT H mH adjoint
    swapaxes swapdims movedim moveaxis expand expand_as broadcast_to repeat tile repeat_interleave ravel
    getitem select narrow chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split hsplit vsplit dsplit
    unbind index_select gather take take_along_dim masked_select diagonal diag diag_embed tril triu roll flip fliplr
    flipud rot90 sort topk as_strided unfold alias clone contiguous to type type_as float double half bfloat16 cpu cuda
    requires_grad identity atleast_1d atleast_2d atleast_3d view_as_real view_as_complex real imag complex
    fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn
    fft_fftshift fft_ifftshift stft istft
    """.split()
)

# Affine in all the tensors they read together: without constants the bias is zero, else it is op at zero activations.
_AFFINE = frozenset(
    """
    add sub rsub cat concat concatenate stack hstack vstack dstack column_stack where masked_fill masked_scatter
    setitem copy index_put index_copy index_add index_fill scatter scatter_add slice_scatter select_scatter
    block_diag zero fill new_tensor
    """.split()
)

# Linear in each tensor they read: homogeneous of degree (number of activations) in the activations together.
_MULTILINEAR = frozenset("mul matmul bmm mm mv dot inner outer ger einsum tensordot kron vdot linalg_multi_dot".split())

# With a symmetric Jacobian, most of them elementwise: J u = J^T u, one step of the backward pass that is there anyway.
_SYMMETRIC = frozenset(
    """
    sigmoid tanh silu gelu elu selu celu mish softplus hardswish hardsigmoid hardtanh relu6 clamp clip clamp_min
    clamp_max exp expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc threshold
    hardshrink softshrink logsigmoid softsign tanhshrink exp2 softmax
    """.split()
)

_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}

# op(input, weight, bias, ...): linear in the input, plus a bias along the given axis of the output.
_BIASED = {"linear": -1, "convolution": 1} | {f"conv{t}{k}d": -1 - k for t in ("", "_transpose") for k in (1, 2, 3)}

Kind = Literal["zero", "degree", "bias", "batch_norm", "at_zero", "symmetric", "derivative"]


@dataclass(frozen=True)
class Rule:
    """How to get r for one call; `degree` is p where the operation is homogeneous."""

    kind: Kind
    degree: float = 1.0

    @property
    def evaluates(self) -> bool:
        """Whether the call is run a second time, so that what it overwrites must be kept."""
        return self.kind in ("at_zero", "symmetric", "derivative")


_ZERO, _DERIVATIVE = Rule("zero"), Rule("derivative")


def _homogeneous(degree: float) -> Rule:
    return _ZERO if degree == 1 else Rule("degree", degree)


def select_rule(call: Call) -> Rule:
    """The cheapest exact rule for a call; the derivative where no shortcut is known."""
    name, count = call.name, len(call.activations)
    if call.func is torch.autograd.grad:
        raise NotImplementedError("torch.autograd.grad hides what it computes; use torch.func.grad under torch.vmap")
    if name in _LINEAR:
        return _ZERO if count == 1 else _DERIVATIVE
    if name in _AFFINE:
        return Rule("at_zero") if call.has_constants() else _ZERO
    if name in _MULTILINEAR:
        return _homogeneous(count)
    if name in _BIASED:
        return Rule("bias") if count == 1 and call.is_activation(call.argument(0, "input")) else _DERIVATIVE
    if name in _SYMMETRIC and count == 1 and not call.activations[0].is_complex():  # J of exp(z) is no symmetric 2x2
        return Rule("symmetric")
    if name in _POWERS:
        return _homogeneous(_POWERS[name])
    if name == "div" and call.kwargs.get("rounding_mode") is None:
        return _homogeneous(
            call.is_activation(call.argument(0, "input")) - float(call.is_activation(call.argument(1, "other")))
        )
    if name == "pow" and isinstance(exponent := call.argument(1, "exponent"), numbers.Real):
        return _homogeneous(float(exponent))
    if name in ("maximum", "minimum") or (name in ("max", "min") and count == len(list(tensors_in(call.args)))):
        return _DERIVATIVE if call.has_constants() and name in ("maximum", "minimum") else _ZERO
    if name == "pad":
        value = call.argument(3, "value")
        return _ZERO if (call.argument(2, "mode") or "constant") != "constant" or not value else Rule("at_zero")
    if call.func is F.batch_norm and not call.argument(5, "training") and count == 1:
        return Rule("batch_norm")
    return _DERIVATIVE


def remainders(rule: Rule, call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor | None]:
    """r for each output of a call: a tensor that broadcasts to the output, or None for zero.

    Args:
        rule: What `select_rule` said before the call ran.
        call: The call; where `rule.evaluates`, as `Call.frozen` recorded it.
        outputs: The tensors it returned or wrote, as they are now.
        create_graph: Whether r shall carry its own graph.

    Raises:
        NotImplementedError: If the operation has neither a forward-mode nor a second reverse-mode derivative.
    """
    if rule.kind == "zero":
        return [None] * len(outputs)
    with torch.set_grad_enabled(create_graph):
        values = list(outputs) if create_graph else [y.detach() for y in outputs]
        if rule.kind == "degree":
            return [(1 - rule.degree) * y for y in values]
        if rule.kind == "bias":
            bias = call.argument(2, "bias")
            if bias is None:
                return [None]
            shape = [1] * values[0].ndim
            shape[_BIASED[call.name]] = -1
            return [bias.view(shape)]
        if rule.kind == "batch_norm":
            return [_batch_norm_bias(call, values[0].ndim)]
        if rule.kind == "at_zero":
            # A masked score is -inf and has gradient zero: it adds nothing to f, where -inf * 0 would be NaN.
            return [_finite(y) if is_continuous(y) else None for y in call.evaluate(torch.zeros_like)]
        products = _transposed_product(call, outputs, create_graph) if rule.kind == "symmetric" else None
        if products is None:
            products = _jacobian_products(call, create_graph)
        elif not create_graph:
            return [product.neg_().add_(y) for y, product in zip(values, products, strict=True)]
        return [y - product for y, product in zip(values, products, strict=True)]


def _finite(t: Tensor) -> Tensor:
    return torch.nan_to_num(t, nan=float("nan"), posinf=0.0, neginf=0.0)


def _batch_norm_bias(call: Call, ndim: int) -> Tensor:
    """beta - gamma * mean / sqrt(variance + eps), the bias of a batch norm on stored statistics."""
    mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
    gamma, beta, eps = call.argument(3, "weight"), call.argument(4, "bias"), call.argument(7, "eps")
    shift = -mean * torch.rsqrt(variance + (1e-5 if eps is None else eps))
    shift = shift if gamma is None else shift * gamma
    shift = shift if beta is None else shift + beta
    return shift.view([1, -1] + [1] * (ndim - 2))


def _transposed_product(call: Call, outputs: Sequence[Tensor], create_graph: bool) -> list[Tensor] | None:
    """J^T u through the graph of the call itself; None where that does not lead from its one output to its operand."""
    (u,), (y,) = call.activations, outputs
    if u.shape != y.shape or u.dtype != y.dtype or call.edge is None or not y.requires_grad:
        return None
    vector = _finite(u) if call.name == "softmax" else u  # a masked score would spoil its whole row
    (product,) = torch.autograd.grad(
        y, [call.edge], vector if create_graph else vector.detach(), retain_graph=True, create_graph=create_graph,
        allow_unused=True,
    )  # fmt: skip
    if product is None:
        return None
    if create_graph:
        return [_finite(product)]
    # An infinite score has a derivative of zero, and adds nothing.
    return [torch.nan_to_num_(product, nan=0.0, posinf=0.0, neginf=0.0)]


def _jacobian_products(call: Call, create_graph: bool) -> list[Tensor]:
    """sum_j J_j u_j for each output: forward mode, or reverse mode twice where an operation has no forward mode."""

    def point(u: Tensor) -> Tensor:
        return u if create_graph else u.detach()

    def dual(u: Tensor) -> Tensor:
        # In-place operations write to both, so both must be copies then.
        primal = point(u).clone() if call.mutated else point(u)
        return forward_ad.make_dual(primal, _finite(point(u)))

    load_forward_mode()
    try:
        with forward_ad.dual_level():
            pairs = [forward_ad.unpack_dual(y) for y in call.evaluate(dual)]
            return [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]
    except (NotImplementedError, RuntimeError) as forward_error:
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
    """sum_j J_j u_j of an output with a graph to the points u_j: the derivative of v -> sum_j <J_j^T v, u_j>."""
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
