"""The table of operations: all that the engine knows of any one.

A row is an operation, by the one name that `operation_name` has for all its spellings; a column is something that the
engine wants to know of it. Operations whose columns agree share a line. A new operation is a name in a line or a line;
another choice of linear map for each operation (the Jacobian is the choice that `remainder` belongs to) is a field of
`Row` and a value in each line that does not take the default. An operation that is not in the table is `UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from captum_density._linear.remainders import (
    Remainder,
    affine,
    any_call,
    autograd,
    batch_norm,
    biased,
    extremum,
    homogeneous,
    linear,
    multilinear,
    padding,
    power,
    quotient,
    symmetric,
)
from captum_density._model.calls import Call

__all__ = ["ROWS", "UNKNOWN", "Layout", "Row", "row"]


@dataclass(frozen=True)
class Layout:
    """How the elements of an operation's output lie on the grid of its input.

    Attributes:
        kind: "kept": where they lay, as far as the shapes agree. "channels first", "channels last": the same, and it
            shows which dimension of the input holds channels. "mixed last": the last dimension is mixed, the others
            are kept. "permuted", "reshaped", "selected": elements are moved about, in the first two without one
            appearing or vanishing, in the first dimension by dimension. "spatial": a regular map (N, C, *grid) of its
            own resolution.
        rank: For "spatial", the number of dimensions of the grid; 0 for that of the input.
    """

    kind: Literal[
        "kept", "channels first", "channels last", "mixed last", "permuted", "reshaped", "selected", "spatial"
    ]
    rank: int = 0

    @property
    def moves(self) -> bool:
        """Whether the operation only moves elements about."""
        return self.kind in ("permuted", "reshaped", "selected")


@dataclass(frozen=True)
class Row:
    """What is known of an operation.

    Attributes:
        layout: Where the elements of its output lie on the input's grid.
        remainder: The cheapest exact way to what its Jacobian leaves of a call.
    """

    layout: Layout
    remainder: Callable[[Call], Remainder]


_KEPT, _FIRST, _LAST, _MIXED = Layout("kept"), Layout("channels first"), Layout("channels last"), Layout("mixed last")
_PERMUTED, _RESHAPED, _SELECTED = Layout("permuted"), Layout("reshaped"), Layout("selected")
_MAP, _MAP1, _MAP2, _MAP3 = (Layout("spatial", rank) for rank in range(4))

UNKNOWN = Row(_KEPT, any_call)

# fmt: off
_TABLE: tuple[tuple[Layout, Callable[[Call], Remainder], str], ...] = (
    # layout    remainder          operations
    # elementwise
    (_KEPT,     linear,            "relu leaky_relu prelu rrelu abs neg negative positive"),
    (_KEPT,     linear,            "dropout dropout1d dropout2d dropout3d feature_dropout"),
    (_KEPT,     linear,            "alias clone contiguous requires_grad identity to type type_as cpu cuda"),
    (_KEPT,     linear,            "float double half bfloat16 real imag complex view_as_real view_as_complex"),
    (_KEPT,     symmetric,         "sigmoid hardsigmoid logsigmoid tanh softsign tanhshrink hardtanh silu"),
    (_KEPT,     symmetric,         "mish hardswish gelu elu selu celu softplus relu6 threshold hardshrink softshrink"),
    (_KEPT,     symmetric,         "clamp clip clamp_min clamp_max erf erfc exp exp2 expm1 log log1p log2 log10"),
    (_KEPT,     symmetric,         "sin cos tan asin acos atan sinh cosh asinh acosh atanh"),
    (_KEPT,     homogeneous(2),    "square"),
    (_KEPT,     homogeneous(0.5),  "sqrt"),
    (_KEPT,     homogeneous(-0.5), "rsqrt"),
    (_KEPT,     homogeneous(-1),   "reciprocal"),
    (_KEPT,     power,             "pow"),
    (_KEPT,     multilinear,       "mul"),
    (_KEPT,     quotient,          "div"),
    (_KEPT,     affine,            "add sub rsub where masked_fill masked_scatter zero fill new_tensor copy setitem"),
    (_KEPT,     affine,            "index_put index_copy index_add index_fill scatter scatter_add slice_scatter"),
    (_KEPT,     affine,            "select_scatter"),
    # over dimensions
    (_KEPT,     linear,            "sum nansum mean amax amin cumsum trace diff sort topk"),
    (_KEPT,     extremum,          "max min maximum minimum"),
    (_KEPT,     linear,            "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"),
    (_KEPT,     linear,            "fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift stft istft"),
    # elements moved about
    (_PERMUTED, linear,            "permute transpose swapaxes movedim roll"),
    (_RESHAPED, linear,            "view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze"),
    (_RESHAPED, linear,            "t T mT H mH adjoint swapdims moveaxis flip fliplr flipud rot90"),
    (_SELECTED, linear,            "getitem select narrow index_select gather take_along_dim diagonal unfold unbind"),
    (_SELECTED, linear,            "chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split"),
    (_SELECTED, linear,            "hsplit vsplit dsplit expand expand_as broadcast_to repeat tile repeat_interleave"),
    (_SELECTED, affine,            "cat concat concatenate stack hstack vstack dstack"),
    (_SELECTED, padding,           "pad"),
    (_KEPT,     linear,            "take masked_select diag diag_embed tril triu fold as_strided channel_shuffle"),
    (_KEPT,     linear,            "atleast_1d atleast_2d atleast_3d"),
    (_KEPT,     affine,            "column_stack block_diag"),
    # dense layers and attention
    (_MIXED,    biased(-1),        "linear"),
    (_MIXED,    multilinear,       "matmul mm bmm"),
    (_MIXED,    any_call,          "addmm baddbmm bilinear lstm gru rnn_tanh rnn_relu"),
    (_MIXED,    any_call,          "scaled_dot_product_attention multi_head_attention_forward"),
    (_KEPT,     multilinear,       "mv dot inner outer ger vdot kron einsum tensordot linalg_multi_dot"),
    # normalisations
    (_LAST,     symmetric,         "softmax"),
    (_LAST,     any_call,          "log_softmax layer_norm rms_norm"),
    (_FIRST,    any_call,          "instance_norm group_norm"),
    (_FIRST,    batch_norm,        "batch_norm"),
    # convolutions and pooling
    (_MAP,      biased(1),         "convolution"),
    (_MAP1,     biased(-2),        "conv1d conv_transpose1d"),
    (_MAP2,     biased(-3),        "conv2d conv_transpose2d"),
    (_MAP3,     biased(-4),        "conv3d conv_transpose3d"),
    (_MAP1,     linear,            "avg_pool1d adaptive_avg_pool1d max_pool1d max_pool1d_with_indices"),
    (_MAP2,     linear,            "avg_pool2d adaptive_avg_pool2d max_pool2d max_pool2d_with_indices"),
    (_MAP3,     linear,            "avg_pool3d adaptive_avg_pool3d max_pool3d max_pool3d_with_indices"),
    (_MAP1,     linear,            "adaptive_max_pool1d"),
    (_MAP2,     linear,            "adaptive_max_pool2d pixel_shuffle pixel_unshuffle grid_sample"),
    (_MAP3,     linear,            "adaptive_max_pool3d"),
    (_MAP1,     any_call,          "lp_pool1d"),
    (_MAP2,     any_call,          "lp_pool2d"),
    (_MAP3,     any_call,          "lp_pool3d"),
    (_MAP,      linear,            "interpolate upsample"),
    (_KEPT,     linear,            "upsample_nearest upsample_bilinear max_unpool1d max_unpool2d max_unpool3d"),
    (_KEPT,     linear,            "fractional_max_pool2d fractional_max_pool3d"),
    # what hides operations
    (_KEPT,     autograd,          "grad"),
)
# fmt: on

ROWS: dict[str, Row] = {name: Row(layout, remainder) for layout, remainder, names in _TABLE for name in names.split()}


def row(call: Call) -> Row:
    """What the table has of a call's operation."""
    return ROWS.get(call.name, UNKNOWN)
