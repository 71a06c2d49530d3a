"""The table of operations: all that the engine knows of any one.

A row is an operation, by the one name that `operation_name` has for all its spellings; a column is something that the
engine wants to know of it. Operations whose columns agree share a line. A new operation is a name in a line or a line;
another choice of linear map for each operation (the Jacobian is the choice that `remainder` belongs to) is a field of
`Row` and a value in each line. An operation that is not in the table is `UNKNOWN`.
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

__all__ = ["ROWS", "UNKNOWN", "Balance", "Difference", "Layout", "Row", "row"]


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


# What an operation is where a balanced map stands for its Jacobian: a nonlinear function of each element, or a linear
# one beside numbers ("scaled") or none ("same"); elements moved about, which leaves a factor what it is; a product of
# activations, alone or beside a summand; a quotient; attention weights, or attention as a whole; a normalisation; what
# is made of other operations, in Python code of torch's ("opened"), by a definition ("defined") or step by step
# ("recurrent"). Everything else keeps its own Jacobian.
Balance = Literal[
    "own", "nonlinear", "scaled", "same", "moved", "product", "summed product", "quotient", "weights", "attention",
    "normalisation", "opened", "defined", "recurrent",
]  # fmt: skip


# What its discrete gradient is made of where a model is run at two points: its own backward pass, exact for what is
# affine; the secant of an elementwise function; the Jacobian at the midpoint, of products of two; a maximum, alone
# ("extremum") or in windows; a choice by a mask; a form of its own ("closed"); its "pieces", by `DEFINITIONS`,
# `RECURRENT` or torch's own Python code; or "any": Gonzalez' discrete gradient.
Difference = Literal[
    "linear", "secant", "midpoint", "extremum", "windows", "choice", "closed", "pieces", "any"
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What is known of an operation.

    Attributes:
        layout: Where the elements of its output lie on the input's grid.
        remainder: The cheapest exact way to what its Jacobian leaves of a call.
        balance: What kind of choice it leaves to rules that balance gradients.
        difference: What its discrete gradient between two points is.
    """

    layout: Layout
    remainder: Callable[[Call], Remainder]
    balance: Balance = "own"
    difference: Difference = "any"


_KEPT, _FIRST, _LAST, _MIXED = Layout("kept"), Layout("channels first"), Layout("channels last"), Layout("mixed last")
_PERMUTED, _RESHAPED, _SELECTED = Layout("permuted"), Layout("reshaped"), Layout("selected")
_MAP, _MAP1, _MAP2, _MAP3 = (Layout("spatial", rank) for rank in range(4))

_OWN: Balance = "own"
_SECANT: Balance = "nonlinear"
_SCALE: Balance = "scaled"
_SAME: Balance = "same"
_MOVE: Balance = "moved"
_PRODUCT: Balance = "product"
_PLUS: Balance = "summed product"
_DIVIDE: Balance = "quotient"
_GATE: Balance = "weights"
_ATTEND: Balance = "attention"
_NORM: Balance = "normalisation"
_OPEN: Balance = "opened"
_PARTS: Balance = "defined"
_STEPS: Balance = "recurrent"

_LINEAR: Difference = "linear"
_CHORD: Difference = "secant"
_MIDDLE: Difference = "midpoint"
_EXTREME: Difference = "extremum"
_WINDOWS: Difference = "windows"
_CHOICE: Difference = "choice"
_CLOSED: Difference = "closed"
_PIECES: Difference = "pieces"
_ANY: Difference = "any"

UNKNOWN = Row(_KEPT, any_call)

# fmt: off
_TABLE: tuple[tuple[Layout, Callable[[Call], Remainder], Balance, Difference, str], ...] = (
    # layout     remainder          balance    difference operations
    # elementwise
    (_KEPT,      linear,            _SECANT,   _CHORD,   "relu leaky_relu abs absolute"),
    (_KEPT,      linear,            _OWN,      _CHORD,   "prelu rrelu"),
    (_KEPT,      linear,            _SCALE,    _LINEAR,  "neg negative positive"),
    (_KEPT,      linear,            _SAME,     _LINEAR,  "dropout dropout1d dropout2d dropout3d feature_dropout"),
    (_KEPT,      linear,            _SAME,     _LINEAR,  "alias clone contiguous identity to type type_as cpu cuda"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "requires_grad"),
    (_KEPT,      linear,            _SAME,     _LINEAR,  "float double half bfloat16"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "real imag complex view_as_real view_as_complex"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "sigmoid hardsigmoid logsigmoid log_sigmoid tanh"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "softsign tanhshrink"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "silu mish hardswish gelu elu selu celu softplus"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "relu6 hardtanh"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "threshold hardshrink softshrink clamp clip"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "clamp_min clamp_max"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "erf erfc erfinv exp exp2 expm1 log log1p log2 log10 logit"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "special_expit special_erf special_erfc"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "special_exp2 special_expm1"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "special_log1p special_ndtr sinc special_sinc"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "sin cos tan asin acos atan sinh cosh asinh acosh atanh"),
    (_KEPT,      symmetric,         _SECANT,   _CHORD,   "arcsin arccos arctan arcsinh arccosh arctanh"),
    (_KEPT,      homogeneous(2),    _SECANT,   _CHORD,   "square"),
    (_KEPT,      homogeneous(0.5),  _SECANT,   _CHORD,   "sqrt"),
    (_KEPT,      homogeneous(-0.5), _SECANT,   _CHORD,   "rsqrt"),
    (_KEPT,      homogeneous(-1),   _SECANT,   _CHORD,   "reciprocal"),
    (_KEPT,      power,             _SECANT,   _CHORD,   "pow float_power"),
    (_KEPT,      any_call,          _SECANT,   _CHORD,   "rpow rdiv"),
    (_KEPT,      multilinear,       _PRODUCT,  _MIDDLE,  "mul"),
    (_KEPT,      quotient,          _DIVIDE,   _PIECES,  "div"),
    (_KEPT,      any_call,          _PARTS,    _PIECES,  "glu softmin addcmul addcdiv lerp"),
    (_KEPT,      affine,            _SCALE,    _LINEAR,  "add sub rsub"),
    (_KEPT,      affine,            _MOVE,     _CHOICE,  "where masked_fill"),
    (_KEPT,      affine,            _OWN,      _LINEAR,  "masked_scatter zero fill new_tensor copy setitem"),
    (_KEPT,      affine,            _MOVE,     _LINEAR,  "scatter"),
    (_KEPT,      affine,            _OWN,      _LINEAR,  "index_put index_copy index_add index_fill scatter_add"),
    (_KEPT,      affine,            _OWN,      _LINEAR,  "slice_scatter select_scatter"),
    (_KEPT,      any_call,          _MOVE,     _CHORD,   "nan_to_num"),
    # over dimensions
    (_KEPT,      linear,            _OWN,      _LINEAR,  "sum nansum mean cumsum trace diff"),
    (_KEPT,      linear,            _OWN,      _EXTREME, "amax amin"),
    (_KEPT,      linear,            _MOVE,     _ANY,     "sort topk"),
    (_KEPT,      extremum,          _OWN,      _EXTREME, "max min maximum minimum"),
    (_KEPT,      any_call,          _PRODUCT,  _ANY,     "prod"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "fft_rfft2 fft_irfft2"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "fft_fftn fft_ifftn fft_rfftn fft_irfftn"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "fft_fftshift fft_ifftshift"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "stft istft"),
    # elements moved about
    (_PERMUTED,  linear,            _MOVE,     _LINEAR,  "permute transpose swapaxes movedim roll"),
    (_RESHAPED,  linear,            _MOVE,     _LINEAR,  "view view_as reshape reshape_as flatten unflatten ravel"),
    (_RESHAPED,  linear,            _MOVE,     _LINEAR,  "squeeze unsqueeze t T mT H mH adjoint swapdims moveaxis"),
    (_RESHAPED,  linear,            _MOVE,     _LINEAR,  "flip fliplr flipud"),
    (_RESHAPED,  linear,            _OWN,      _LINEAR,  "rot90"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "getitem select narrow index_select gather"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "take_along_dim diagonal"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "unfold unbind"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "chunk split split_with_sizes tensor_split"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "unsafe_chunk unsafe_split"),
    (_SELECTED,  linear,            _OWN,      _LINEAR,  "hsplit vsplit dsplit"),
    (_SELECTED,  linear,            _MOVE,     _LINEAR,  "expand expand_as broadcast_to repeat tile repeat_interleave"),
    (_SELECTED,  affine,            _MOVE,     _LINEAR,  "cat concat stack"),
    (_SELECTED,  affine,            _OWN,      _LINEAR,  "concatenate hstack vstack dstack"),
    (_SELECTED,  padding,           _MOVE,     _LINEAR,  "pad"),
    (_KEPT,      linear,            _MOVE,     _LINEAR,  "take tril triu as_strided"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "masked_select diag diag_embed fold channel_shuffle"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "atleast_1d atleast_2d atleast_3d"),
    (_KEPT,      affine,            _OWN,      _LINEAR,  "column_stack block_diag"),
    (_KEPT,      any_call,          _OWN,      _LINEAR,  "pack_padded_sequence pad_packed_sequence"),
    # dense layers and attention
    (_MIXED,     biased(-1),        _PRODUCT,  _MIDDLE,  "linear"),
    (_MIXED,     multilinear,       _PRODUCT,  _MIDDLE,  "matmul linalg_matmul mm bmm"),
    (_MIXED,     any_call,          _PLUS,     _MIDDLE,  "addmm baddbmm addbmm addmv addr"),
    (_MIXED,     any_call,          _PRODUCT,  _MIDDLE,  "bilinear"),
    (_MIXED,     any_call,          _STEPS,    _PIECES,  "lstm gru rnn_tanh rnn_relu"),
    (_MIXED,     any_call,          _ATTEND,   _PIECES,  "scaled_dot_product_attention"),
    (_MIXED,     any_call,          _OPEN,     _PIECES,  "multi_head_attention_forward"),
    (_KEPT,      multilinear,       _PRODUCT,  _MIDDLE,  "mv dot inner outer ger vdot kron einsum tensordot"),
    (_KEPT,      multilinear,       _PRODUCT,  _MIDDLE,  "linalg_multi_dot chain_matmul"),
    # normalisations
    (_LAST,      symmetric,         _GATE,     _CLOSED,  "softmax special_softmax"),
    (_LAST,      any_call,          _OWN,      _CLOSED,  "log_softmax"),
    (_KEPT,      any_call,          _OPEN,     _PIECES,  "normalize"),
    (_KEPT,      any_call,          _OWN,      _PIECES,  "linalg_vector_norm"),
    (_KEPT,      any_call,          _OWN,      _CLOSED,  "logsumexp"),
    (_KEPT,      any_call,          _PARTS,    _PIECES,  "cosine_similarity local_response_norm"),
    (_LAST,      any_call,          _NORM,     _CLOSED,  "layer_norm rms_norm"),
    (_FIRST,     any_call,          _NORM,     _CLOSED,  "instance_norm group_norm"),
    (_FIRST,     batch_norm,        _OWN,      _LINEAR,  "batch_norm"),
    # convolutions and pooling
    (_MAP,       biased(1),         _PRODUCT,  _MIDDLE,  "convolution"),
    (_MAP1,      biased(-2),        _PRODUCT,  _MIDDLE,  "conv1d conv_transpose1d"),
    (_MAP2,      biased(-3),        _PRODUCT,  _MIDDLE,  "conv2d conv_transpose2d"),
    (_MAP3,      biased(-4),        _PRODUCT,  _MIDDLE,  "conv3d conv_transpose3d"),
    (_MAP1,      linear,            _OWN,      _LINEAR,  "avg_pool1d adaptive_avg_pool1d"),
    (_MAP1,      linear,            _OWN,      _WINDOWS, "max_pool1d max_pool1d_with_indices"),
    (_MAP2,      linear,            _OWN,      _LINEAR,  "avg_pool2d adaptive_avg_pool2d"),
    (_MAP2,      linear,            _OWN,      _WINDOWS, "max_pool2d max_pool2d_with_indices"),
    (_MAP3,      linear,            _OWN,      _LINEAR,  "avg_pool3d adaptive_avg_pool3d"),
    (_MAP3,      linear,            _OWN,      _WINDOWS, "max_pool3d max_pool3d_with_indices"),
    (_MAP1,      linear,            _OWN,      _WINDOWS, "adaptive_max_pool1d"),
    (_MAP2,      linear,            _OWN,      _WINDOWS, "adaptive_max_pool2d"),
    (_MAP2,      linear,            _OWN,      _LINEAR,  "pixel_shuffle pixel_unshuffle"),
    (_MAP2,      linear,            _OWN,      _ANY,     "grid_sample"),
    (_MAP3,      linear,            _OWN,      _WINDOWS, "adaptive_max_pool3d"),
    (_MAP1,      any_call,          _OWN,      _ANY,     "lp_pool1d"),
    (_MAP2,      any_call,          _OWN,      _ANY,     "lp_pool2d"),
    (_MAP3,      any_call,          _OWN,      _ANY,     "lp_pool3d"),
    (_MAP,       linear,            _OWN,      _LINEAR,  "interpolate upsample"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "upsample_nearest upsample_bilinear max_unpool1d"),
    (_KEPT,      linear,            _OWN,      _LINEAR,  "max_unpool2d max_unpool3d"),
    (_KEPT,      linear,            _OWN,      _ANY,     "fractional_max_pool2d fractional_max_pool3d"),
    # what hides operations
    (_KEPT,      autograd,          _OWN,      _ANY,     "grad"),
)
# fmt: on

ROWS: dict[str, Row] = {
    name: Row(layout, remainder, balance, difference)
    for layout, remainder, balance, difference, names in _TABLE
    for name in names.split()
}


def row(call: Call) -> Row:
    """What the table has of a call's operation."""
    return ROWS.get(call.name, UNKNOWN)
