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

__all__ = ["ROWS", "UNKNOWN", "Balance", "Layout", "Row", "row"]


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


@dataclass(frozen=True)
class Row:
    """What is known of an operation.

    Attributes:
        layout: Where the elements of its output lie on the input's grid.
        remainder: The cheapest exact way to what its Jacobian leaves of a call.
        balance: What kind of choice it leaves to rules that balance gradients.
    """

    layout: Layout
    remainder: Callable[[Call], Remainder]
    balance: Balance = "own"


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

UNKNOWN = Row(_KEPT, any_call)

# fmt: off
_TABLE: tuple[tuple[Layout, Callable[[Call], Remainder], Balance, str], ...] = (
    # layout     remainder          balance    operations
    # elementwise
    (_KEPT,      linear,            _SECANT,   "relu leaky_relu abs absolute"),
    (_KEPT,      linear,            _OWN,      "prelu rrelu"),
    (_KEPT,      linear,            _SCALE,    "neg negative positive"),
    (_KEPT,      linear,            _SAME,     "dropout dropout1d dropout2d dropout3d feature_dropout"),
    (_KEPT,      linear,            _SAME,     "alias clone contiguous identity to type type_as cpu cuda"),
    (_KEPT,      linear,            _OWN,      "requires_grad"),
    (_KEPT,      linear,            _SAME,     "float double half bfloat16"),
    (_KEPT,      linear,            _OWN,      "real imag complex view_as_real view_as_complex"),
    (_KEPT,      symmetric,         _SECANT,   "sigmoid hardsigmoid logsigmoid log_sigmoid tanh softsign tanhshrink"),
    (_KEPT,      symmetric,         _SECANT,   "silu mish hardswish gelu elu selu celu softplus relu6 hardtanh"),
    (_KEPT,      symmetric,         _SECANT,   "threshold hardshrink softshrink clamp clip clamp_min clamp_max"),
    (_KEPT,      symmetric,         _SECANT,   "erf erfc erfinv exp exp2 expm1 log log1p log2 log10 logit"),
    (_KEPT,      symmetric,         _SECANT,   "special_expit special_erf special_erfc special_exp2 special_expm1"),
    (_KEPT,      symmetric,         _SECANT,   "special_log1p special_ndtr sinc special_sinc"),
    (_KEPT,      symmetric,         _SECANT,   "sin cos tan asin acos atan sinh cosh asinh acosh atanh"),
    (_KEPT,      symmetric,         _SECANT,   "arcsin arccos arctan arcsinh arccosh arctanh"),
    (_KEPT,      homogeneous(2),    _SECANT,   "square"),
    (_KEPT,      homogeneous(0.5),  _SECANT,   "sqrt"),
    (_KEPT,      homogeneous(-0.5), _SECANT,   "rsqrt"),
    (_KEPT,      homogeneous(-1),   _SECANT,   "reciprocal"),
    (_KEPT,      power,             _SECANT,   "pow float_power"),
    (_KEPT,      any_call,          _SECANT,   "rpow rdiv"),
    (_KEPT,      multilinear,       _PRODUCT,  "mul"),
    (_KEPT,      quotient,          _DIVIDE,   "div"),
    (_KEPT,      any_call,          _PARTS,    "glu softmin addcmul addcdiv lerp"),
    (_KEPT,      affine,            _SCALE,    "add sub rsub"),
    (_KEPT,      affine,            _MOVE,     "where masked_fill"),
    (_KEPT,      affine,            _OWN,      "masked_scatter zero fill new_tensor copy setitem"),
    (_KEPT,      affine,            _MOVE,     "scatter"),
    (_KEPT,      affine,            _OWN,      "index_put index_copy index_add index_fill scatter_add"),
    (_KEPT,      affine,            _OWN,      "slice_scatter select_scatter"),
    (_KEPT,      any_call,          _MOVE,     "nan_to_num"),
    # over dimensions
    (_KEPT,      linear,            _OWN,      "sum nansum mean amax amin cumsum trace diff"),
    (_KEPT,      linear,            _MOVE,     "sort topk"),
    (_KEPT,      extremum,          _OWN,      "max min maximum minimum"),
    (_KEPT,      any_call,          _PRODUCT,  "prod"),
    (_KEPT,      linear,            _OWN,      "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2"),
    (_KEPT,      linear,            _OWN,      "fft_rfft2 fft_irfft2"),
    (_KEPT,      linear,            _OWN,      "fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift"),
    (_KEPT,      linear,            _OWN,      "stft istft"),
    # elements moved about
    (_PERMUTED,  linear,            _MOVE,     "permute transpose swapaxes movedim roll"),
    (_RESHAPED,  linear,            _MOVE,     "view view_as reshape reshape_as flatten unflatten ravel"),
    (_RESHAPED,  linear,            _MOVE,     "squeeze unsqueeze t T mT H mH adjoint swapdims moveaxis"),
    (_RESHAPED,  linear,            _MOVE,     "flip fliplr flipud"),
    (_RESHAPED,  linear,            _OWN,      "rot90"),
    (_SELECTED,  linear,            _MOVE,     "getitem select narrow index_select gather take_along_dim diagonal"),
    (_SELECTED,  linear,            _MOVE,     "unfold unbind"),
    (_SELECTED,  linear,            _MOVE,     "chunk split split_with_sizes tensor_split"),
    (_SELECTED,  linear,            _MOVE,     "unsafe_chunk unsafe_split"),
    (_SELECTED,  linear,            _OWN,      "hsplit vsplit dsplit"),
    (_SELECTED,  linear,            _MOVE,     "expand expand_as broadcast_to repeat tile repeat_interleave"),
    (_SELECTED,  affine,            _MOVE,     "cat concat stack"),
    (_SELECTED,  affine,            _OWN,      "concatenate hstack vstack dstack"),
    (_SELECTED,  padding,           _MOVE,     "pad"),
    (_KEPT,      linear,            _MOVE,     "take tril triu as_strided"),
    (_KEPT,      linear,            _OWN,      "masked_select diag diag_embed fold channel_shuffle"),
    (_KEPT,      linear,            _OWN,      "atleast_1d atleast_2d atleast_3d"),
    (_KEPT,      affine,            _OWN,      "column_stack block_diag"),
    # dense layers and attention
    (_MIXED,     biased(-1),        _PRODUCT,  "linear"),
    (_MIXED,     multilinear,       _PRODUCT,  "matmul linalg_matmul mm bmm"),
    (_MIXED,     any_call,          _PLUS,     "addmm baddbmm addbmm addmv addr"),
    (_MIXED,     any_call,          _PRODUCT,  "bilinear"),
    (_MIXED,     any_call,          _STEPS,    "lstm gru rnn_tanh rnn_relu"),
    (_MIXED,     any_call,          _ATTEND,   "scaled_dot_product_attention"),
    (_MIXED,     any_call,          _OPEN,     "multi_head_attention_forward"),
    (_KEPT,      multilinear,       _PRODUCT,  "mv dot inner outer ger vdot kron einsum tensordot"),
    (_KEPT,      multilinear,       _PRODUCT,  "linalg_multi_dot chain_matmul"),
    # normalisations
    (_LAST,      symmetric,         _GATE,     "softmax special_softmax"),
    (_LAST,      any_call,          _OWN,      "log_softmax"),
    (_KEPT,      any_call,          _OPEN,     "normalize"),
    (_KEPT,      any_call,          _PARTS,    "cosine_similarity local_response_norm"),
    (_LAST,      any_call,          _NORM,     "layer_norm rms_norm"),
    (_FIRST,     any_call,          _NORM,     "instance_norm group_norm"),
    (_FIRST,     batch_norm,        _OWN,      "batch_norm"),
    # convolutions and pooling
    (_MAP,       biased(1),         _PRODUCT,  "convolution"),
    (_MAP1,      biased(-2),        _PRODUCT,  "conv1d conv_transpose1d"),
    (_MAP2,      biased(-3),        _PRODUCT,  "conv2d conv_transpose2d"),
    (_MAP3,      biased(-4),        _PRODUCT,  "conv3d conv_transpose3d"),
    (_MAP1,      linear,            _OWN,      "avg_pool1d adaptive_avg_pool1d max_pool1d max_pool1d_with_indices"),
    (_MAP2,      linear,            _OWN,      "avg_pool2d adaptive_avg_pool2d max_pool2d max_pool2d_with_indices"),
    (_MAP3,      linear,            _OWN,      "avg_pool3d adaptive_avg_pool3d max_pool3d max_pool3d_with_indices"),
    (_MAP1,      linear,            _OWN,      "adaptive_max_pool1d"),
    (_MAP2,      linear,            _OWN,      "adaptive_max_pool2d pixel_shuffle pixel_unshuffle grid_sample"),
    (_MAP3,      linear,            _OWN,      "adaptive_max_pool3d"),
    (_MAP1,      any_call,          _OWN,      "lp_pool1d"),
    (_MAP2,      any_call,          _OWN,      "lp_pool2d"),
    (_MAP3,      any_call,          _OWN,      "lp_pool3d"),
    (_MAP,       linear,            _OWN,      "interpolate upsample"),
    (_KEPT,      linear,            _OWN,      "upsample_nearest upsample_bilinear max_unpool1d"),
    (_KEPT,      linear,            _OWN,      "max_unpool2d max_unpool3d"),
    (_KEPT,      linear,            _OWN,      "fractional_max_pool2d fractional_max_pool3d"),
    # what hides operations
    (_KEPT,      autograd,          _OWN,      "grad"),
)
# fmt: on

ROWS: dict[str, Row] = {
    name: Row(layout, remainder, balance) for layout, remainder, balance, names in _TABLE for name in names.split()
}


def row(call: Call) -> Row:
    """What the table has of a call's operation."""
    return ROWS.get(call.name, UNKNOWN)
