"""The table of operations: all that the engine knows of any one.

A row is an operation, by the one name that `operation_name` has for all its spellings; a column is something that the
engine wants to know of it. Operations whose columns agree share a line. A new operation is a name in a line or a line;
another choice of linear map for each operation (the Jacobian is the choice that `remainder` belongs to) is a field of
`Row` and a value in each line. An operation that is not in the table is `UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from captum_density._linear.closed_forms import added, biased, dot_attention, normalisation, smooth
from captum_density._linear.layouts import (
    CONVOLUTION,
    EINSUM,
    LAST_MIXED,
    MODULE_ATTENTION,
    PRODUCT,
    RECURRENT,
    TRANSPOSED,
    Layout,
    assigned,
    attention,
    concatenated,
    contracted,
    copied,
    expanded,
    indexed,
    kept,
    mixed,
    moved,
    nowhere,
    padded,
    paired,
    patches,
    permuted,
    pooled,
    reduced,
    repeated,
    reshaped,
    rolled,
    shared,
    unknown,
)
from captum_density._linear.recurrent_tangents import recurrent
from captum_density._linear.remainders import (
    Remainder,
    affine,
    any_call,
    autograd,
    batch_norm,
    extremum,
    homogeneous,
    linear,
    multilinear,
    padding,
    parts,
    power,
    quotient,
    shift,
    symmetric,
)
from captum_density._model.calls import Call, operation_name

__all__ = ["ROWS", "UNKNOWN", "Balance", "Difference", "Row", "row"]


# What an operation is where a balanced map stands for its Jacobian: a nonlinear function of each element, one that
# divisors are made with ("divisor"), or a linear one beside numbers ("scaled") or none ("same"); elements moved about,
# which leaves a factor what it is; a product of activations, alone or beside a summand; a quotient; attention weights,
# or attention as a whole; a normalisation; what is made of other operations, in Python code of torch's ("opened"), by a
# definition ("defined") or step by step ("recurrent"). Everything else keeps its own Jacobian.
Balance = Literal[
    "own", "nonlinear", "divisor", "scaled", "same", "moved", "product", "summed product", "quotient", "weights",
    "attention", "normalisation", "opened", "defined", "recurrent",
]  # fmt: skip


# What its discrete gradient is made of where a model is run at two points: its own backward pass, exact for what is
# affine; the secant of an elementwise function; the Jacobian at the midpoint, of products of two; a maximum, alone
# ("extremum") or in windows; a choice by a mask; a form of its own ("closed"), or that of "attention"; its "pieces", by
# `DEFINITIONS`, `RECURRENT` or torch's own Python code; or "any": Gonzalez' discrete gradient.
Difference = Literal[
    "linear", "secant", "midpoint", "extremum", "windows", "choice", "closed", "attention", "pieces", "any"
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


_KEEP, _OPAQUE, _LOST = Layout(kept), Layout(unknown, reads=True), Layout(nowhere)
_TURN, _VIEW, _INDEX = Layout(permuted), Layout(reshaped), Layout(indexed, reads=True)
_ALONG1, _ALONG2 = Layout(moved(1), reads=True), Layout(moved(2), reads=True)
_SHIFT, _WHOLE = Layout(moved(rolled)), Layout(moved(lambda call: None), reads=True)
_WIDEN, _TILE, _PAD = Layout(expanded), Layout(repeated), Layout(padded)
_WRITE, _COPY, _PATCH = Layout(assigned, reads=True), Layout(copied), Layout(patches)
_JOIN, _STACK, _ACROSS = Layout(concatenated()), Layout(concatenated(new=True)), Layout(concatenated(1))
_OVER1, _OVER2, _OVER_ALL = Layout(reduced(1)), Layout(reduced(2)), Layout(reduced(None))
_FFT1, _FFT2 = Layout(contracted(-1)), Layout(contracted(-2, -1))
_DENSE, _DOT, _SUMMED, _STEP = LAST_MIXED, PRODUCT, EINSUM, RECURRENT
_QUERY, _HEADS = Layout(attention), MODULE_ATTENTION
_CONV, _TCONV, _POOL, _SHARE, _PAIRS = CONVOLUTION, TRANSPOSED, Layout(pooled), Layout(shared), Layout(paired)
_MIX1, _MIX2 = Layout(mixed(1)), Layout(mixed(2))

_OWN: Balance = "own"
_SECANT: Balance = "nonlinear"
_ROOT: Balance = "divisor"
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
_BLOCKS: Difference = "attention"
_PIECES: Difference = "pieces"
_ANY: Difference = "any"

UNKNOWN = Row(_OPAQUE, any_call)

# fmt: off
_TABLE: tuple[tuple[Layout, Callable[[Call], Remainder], Balance, Difference, str], ...] = (
    # layout   remainder          balance    difference operations
    # elementwise
    (_KEEP,     linear,            _SECANT,   _CHORD,   "relu leaky_relu abs absolute"),
    (_KEEP,     linear,            _OWN,      _CHORD,   "prelu rrelu"),
    (_KEEP,     linear,            _SCALE,    _LINEAR,  "neg negative positive"),
    (_KEEP,     linear,            _SAME,     _LINEAR,  "dropout dropout1d dropout2d dropout3d feature_dropout"),
    (_KEEP,     linear,            _SAME,     _LINEAR,  "alias clone contiguous identity to type type_as cpu cuda"),
    (_KEEP,     linear,            _OWN,      _LINEAR,  "requires_grad"),
    (_KEEP,     linear,            _SAME,     _LINEAR,  "float double half bfloat16"),
    (_KEEP,     linear,            _OWN,      _LINEAR,  "real imag complex"),
    (_PAIRS,    linear,            _OWN,      _LINEAR,  "view_as_real view_as_complex"),
    (_KEEP,     smooth,            _SECANT,   _CHORD,   "sigmoid tanh gelu silu hardswish hardsigmoid exp"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "logsigmoid log_sigmoid"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "softsign tanhshrink"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "mish elu selu celu softplus"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "relu6 hardtanh"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "threshold hardshrink softshrink clamp clip"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "clamp_min clamp_max"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "erf erfc erfinv exp2 expm1 log log1p log2 log10 logit"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "special_expit special_erf special_erfc"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "special_exp2 special_expm1"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "special_log1p special_ndtr sinc special_sinc"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "sin cos tan asin acos atan sinh cosh asinh acosh atanh"),
    (_KEEP,     symmetric,         _SECANT,   _CHORD,   "arcsin arccos arctan arcsinh arccosh arctanh"),
    (_KEEP,     homogeneous(2),    _SECANT,   _CHORD,   "square"),
    (_KEEP,     homogeneous(0.5),  _ROOT,     _CHORD,   "sqrt"),
    (_KEEP,     homogeneous(-0.5), _ROOT,     _CHORD,   "rsqrt"),
    (_KEEP,     homogeneous(-1),   _ROOT,     _CHORD,   "reciprocal"),
    (_KEEP,     power,             _SECANT,   _CHORD,   "pow float_power"),
    (_KEEP,     any_call,          _SECANT,   _CHORD,   "rpow"),
    (_KEEP,     any_call,          _ROOT,     _CHORD,   "rdiv"),
    (_KEEP,     multilinear,       _PRODUCT,  _MIDDLE,  "mul"),
    (_KEEP,     quotient,          _DIVIDE,   _PIECES,  "div"),
    (_MIX1,     any_call,          _PARTS,    _PIECES,  "glu"),
    (_KEEP,     any_call,          _PARTS,    _PIECES,  "softmin addcmul addcdiv lerp"),
    (_KEEP,     shift,             _SCALE,    _LINEAR,  "add sub rsub"),
    (_KEEP,     affine,            _MOVE,     _CHOICE,  "where masked_fill"),
    (_LOST,     affine,            _OWN,      _LINEAR,  "masked_scatter"),
    (_KEEP,     affine,            _OWN,      _LINEAR,  "zero fill new_tensor"),
    (_COPY,     affine,            _OWN,      _LINEAR,  "copy"),
    (_WRITE,    affine,            _OWN,      _LINEAR,  "setitem"),
    (_LOST,     affine,            _MOVE,     _LINEAR,  "scatter"),
    (_LOST,     affine,            _OWN,      _LINEAR,  "index_put index_copy index_add index_fill scatter_add"),
    (_LOST,     affine,            _OWN,      _LINEAR,  "slice_scatter select_scatter"),
    (_KEEP,     any_call,          _MOVE,     _CHORD,   "nan_to_num"),
    # over dimensions
    (_OVER1,    linear,            _OWN,      _LINEAR,  "sum nansum mean"),
    (_MIX2,     linear,            _OWN,      _LINEAR,  "diff"),
    (_KEEP,     linear,            _OWN,      _LINEAR,  "cumsum"),
    (_LOST,     linear,            _OWN,      _LINEAR,  "trace"),
    (_OVER1,    linear,            _OWN,      _EXTREME, "amax amin"),
    (_MIX1,     linear,            _MOVE,     _ANY,     "sort"),
    (_MIX2,     linear,            _MOVE,     _ANY,     "topk"),
    (_OVER1,    extremum,          _OWN,      _EXTREME, "max min"),
    (_KEEP,     extremum,          _OWN,      _EXTREME, "maximum minimum"),
    (_OVER1,    any_call,          _PRODUCT,  _ANY,     "prod"),
    (_OVER1,    any_call,          _OWN,      _ANY,     "median std var"),
    (_OVER2,    any_call,          _OWN,      _ANY,     "norm linalg_norm"),
    (_FFT1,     linear,            _OWN,      _LINEAR,  "fft_fft fft_ifft fft_rfft fft_irfft"),
    (_FFT2,     linear,            _OWN,      _LINEAR,  "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2"),
    (_OVER_ALL, linear,            _OWN,      _LINEAR,  "fft_fftn fft_ifftn fft_rfftn fft_irfftn"),
    (_WHOLE,    linear,            _OWN,      _LINEAR,  "fft_fftshift fft_ifftshift"),
    (_LOST,     linear,            _OWN,      _LINEAR,  "stft istft"),
    # elements moved about
    (_TURN,     linear,            _MOVE,     _LINEAR,  "permute transpose swapaxes movedim"),
    (_SHIFT,    linear,            _MOVE,     _LINEAR,  "roll"),
    (_VIEW,     linear,            _MOVE,     _LINEAR,  "view view_as reshape reshape_as flatten unflatten ravel"),
    (_VIEW,     linear,            _MOVE,     _LINEAR,  "squeeze"),
    (_TURN,     linear,            _MOVE,     _LINEAR,  "unsqueeze t T mT H mH adjoint swapdims moveaxis"),
    (_TURN,     linear,            _MOVE,     _LINEAR,  "flip fliplr flipud"),
    (_WHOLE,    linear,            _OWN,      _LINEAR,  "rot90"),
    (_INDEX,    linear,            _MOVE,     _LINEAR,  "getitem"),
    (_ALONG1,   linear,            _MOVE,     _LINEAR,  "select narrow index_select"),
    (_WHOLE,    linear,            _MOVE,     _LINEAR,  "gather take_along_dim diagonal"),
    (_PATCH,    linear,            _MOVE,     _LINEAR,  "unfold"),
    (_ALONG1,   linear,            _MOVE,     _LINEAR,  "unbind"),
    (_ALONG2,   linear,            _MOVE,     _LINEAR,  "chunk split split_with_sizes tensor_split"),
    (_ALONG2,   linear,            _MOVE,     _LINEAR,  "unsafe_chunk unsafe_split"),
    (_WHOLE,    linear,            _OWN,      _LINEAR,  "hsplit vsplit dsplit"),
    (_WIDEN,    linear,            _MOVE,     _LINEAR,  "expand expand_as broadcast_to"),
    (_TILE,     linear,            _MOVE,     _LINEAR,  "repeat tile"),
    (_ALONG2,   linear,            _MOVE,     _LINEAR,  "repeat_interleave"),
    (_JOIN,     affine,            _MOVE,     _LINEAR,  "cat concat"),
    (_STACK,    affine,            _MOVE,     _LINEAR,  "stack"),
    (_JOIN,     affine,            _OWN,      _LINEAR,  "concatenate"),
    (_LOST,     affine,            _OWN,      _LINEAR,  "hstack vstack dstack"),
    (_PAD,      padding,           _MOVE,     _LINEAR,  "pad"),
    (_LOST,     linear,            _MOVE,     _LINEAR,  "take as_strided"),
    (_KEEP,     linear,            _MOVE,     _LINEAR,  "tril triu"),
    (_WHOLE,    linear,            _OWN,      _LINEAR,  "masked_select channel_shuffle"),
    (_LOST,     linear,            _OWN,      _LINEAR,  "diag diag_embed fold"),
    (_VIEW,     linear,            _OWN,      _LINEAR,  "atleast_1d atleast_2d atleast_3d"),
    (_LOST,     affine,            _OWN,      _LINEAR,  "column_stack block_diag"),
    (_OPAQUE,   any_call,          _OWN,      _LINEAR,  "pack_padded_sequence pad_packed_sequence"),
    # dense layers and attention
    (_DENSE,    biased(-1),        _PRODUCT,  _MIDDLE,  "linear"),
    (_DOT,      multilinear,       _PRODUCT,  _MIDDLE,  "matmul mm bmm"),
    (_DOT,      multilinear,       _PRODUCT,  _MIDDLE,  "linalg_matmul"),
    (_DOT,      added,             _PLUS,     _MIDDLE,  "addmm baddbmm"),
    (_LOST,     added,             _PLUS,     _MIDDLE,  "addbmm addmv addr"),
    (_LOST,     biased(-1, 3),     _PRODUCT,  _MIDDLE,  "bilinear"),
    (_STEP,     recurrent,         _STEPS,    _PIECES,  "lstm gru rnn_tanh rnn_relu"),
    (_QUERY,    dot_attention,     _ATTEND,   _BLOCKS,  "scaled_dot_product_attention"),
    (_HEADS,    parts,             _OPEN,     _PIECES,  "multi_head_attention_forward"),
    (_LOST,     multilinear,       _PRODUCT,  _MIDDLE,  "mv dot inner outer ger vdot kron tensordot"),
    (_SUMMED,   multilinear,       _PRODUCT,  _MIDDLE,  "einsum"),
    (_DENSE,    multilinear,       _OWN,      _LINEAR,  "grouped_mm"),
    (_LOST,     multilinear,       _PRODUCT,  _MIDDLE,  "linalg_multi_dot"),
    (_LOST,     multilinear,       _PRODUCT,  _MIDDLE,  "chain_matmul"),
    # normalisations
    (_KEEP,     smooth,            _GATE,     _CLOSED,  "softmax"),
    (_KEEP,     symmetric,         _GATE,     _CLOSED,  "special_softmax"),
    (_KEEP,     any_call,          _OWN,      _CLOSED,  "log_softmax"),
    (_KEEP,     any_call,          _OPEN,     _PIECES,  "normalize"),
    (_OVER2,    any_call,          _OWN,      _PIECES,  "linalg_vector_norm"),
    (_OVER1,    any_call,          _OWN,      _CLOSED,  "logsumexp"),
    (_LOST,     any_call,          _PARTS,    _PIECES,  "cosine_similarity"),
    (_KEEP,     any_call,          _PARTS,    _PIECES,  "local_response_norm"),
    (_KEEP,     normalisation,     _NORM,     _CLOSED,  "layer_norm rms_norm instance_norm group_norm"),
    (_KEEP,     batch_norm,        _OWN,      _LINEAR,  "batch_norm"),
    # convolutions and pooling
    (_CONV,     biased(1),         _PRODUCT,  _MIDDLE,  "convolution"),
    (_CONV,     biased(-2),        _PRODUCT,  _MIDDLE,  "conv1d"),
    (_TCONV,    biased(-2),        _PRODUCT,  _MIDDLE,  "conv_transpose1d"),
    (_CONV,     biased(-3),        _PRODUCT,  _MIDDLE,  "conv2d"),
    (_TCONV,    biased(-3),        _PRODUCT,  _MIDDLE,  "conv_transpose2d"),
    (_CONV,     biased(-4),        _PRODUCT,  _MIDDLE,  "conv3d"),
    (_TCONV,    biased(-4),        _PRODUCT,  _MIDDLE,  "conv_transpose3d"),
    (_POOL,     linear,            _OWN,      _LINEAR,  "avg_pool1d"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "adaptive_avg_pool1d"),
    (_POOL,     linear,            _OWN,      _WINDOWS, "max_pool1d max_pool1d_with_indices"),
    (_POOL,     linear,            _OWN,      _LINEAR,  "avg_pool2d"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "adaptive_avg_pool2d"),
    (_POOL,     linear,            _OWN,      _WINDOWS, "max_pool2d max_pool2d_with_indices"),
    (_POOL,     linear,            _OWN,      _LINEAR,  "avg_pool3d"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "adaptive_avg_pool3d"),
    (_POOL,     linear,            _OWN,      _WINDOWS, "max_pool3d max_pool3d_with_indices"),
    (_SHARE,    linear,            _OWN,      _WINDOWS, "adaptive_max_pool1d adaptive_max_pool2d"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "pixel_shuffle"),
    (_WHOLE,    linear,            _OWN,      _LINEAR,  "pixel_unshuffle"),
    (_LOST,     linear,            _OWN,      _ANY,     "grid_sample"),
    (_SHARE,    linear,            _OWN,      _WINDOWS, "adaptive_max_pool3d"),
    (_POOL,     any_call,          _OWN,      _ANY,     "lp_pool1d lp_pool2d lp_pool3d"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "interpolate upsample"),
    (_SHARE,    linear,            _OWN,      _LINEAR,  "upsample_nearest upsample_bilinear"),
    (_LOST,     linear,            _OWN,      _LINEAR,  "max_unpool1d max_unpool2d max_unpool3d"),
    (_LOST,     linear,            _OWN,      _ANY,     "fractional_max_pool2d fractional_max_pool3d"),
    # what hides operations
    (_KEEP,     autograd,          _OWN,      _ANY,     "grad"),
)
# fmt: on

ROWS: dict[str, Row] = {
    name: Row(layout, remainder, balance, difference)
    for layout, remainder, balance, difference, names in _TABLE
    for name in names.split()
}


def row(call: Call) -> Row:
    """What the table has of a call's operation."""
    return _row(call.func)


@lru_cache(maxsize=4096)
def _row(func: Callable[..., Any]) -> Row:
    return ROWS.get(operation_name(func), UNKNOWN)
