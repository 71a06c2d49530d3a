"""The operations in which attention weights arise: how each is read, differentiated and masked."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_density._attention.layout import WeightLayout
from captum_density._model.calls import operation_name, tensors_in

__all__ = ["AttentionCall", "Observed", "attention_call_of", "hides_attention"]


class Observed(NamedTuple):
    """Attention weights of one call.

    Args:
        weights: (N, heads, queries, positions), detached.
        handle: What to differentiate by.
        arrange: A gradient by `handle` in the layout of `weights`.
    """

    weights: Tensor
    handle: Tensor | GradientEdge
    arrange: Callable[[Tensor], Tensor]


class AttentionCall(ABC):
    """One call of an operation that makes attention weights of scores.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._func, self._args, self._kwargs = func, args, kwargs
        #: How many of the last positions are none of the model's: scores of sinks, which no value belongs to.
        self.sinks = 0
        #: Of examples and heads that share a dimension, whether the examples of a head are side by side.
        self.heads_first: Callable[[], bool] = lambda: False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return tensors_in((self._args, self._kwargs))[0].device

    def unchanged(self) -> Any:
        """Run it as it is."""
        return self._func(*self._args, **self._kwargs)

    @property
    def examples(self) -> int | None:
        """How many examples it has, where its own shape tells; else None."""
        return None

    def arranged_scores(self, n: int, heads_first: bool) -> Tensor | None:
        """What its weights are a softmax of, (N, heads, queries, positions), masks left out; None unless folded."""
        return None

    @abstractmethod
    def observe(self, n: int) -> tuple[Any, Observed]:
        """Run it so that its result can be differentiated by its weights: the result, and the weights of N examples."""

    @abstractmethod
    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        """Run it with some scores at minus infinity: their weights are zero, and the others sum to 1.

        Args:
            erased: From the shape (N, heads, queries, positions) to a mask that broadcasts to it, True where erased.
            n: The number of examples.

        Raises:
            ValueError: A query has nothing left to attend to.
        """


class Softmax(AttentionCall):
    """`softmax` of scores, by any of its names."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(func, args, kwargs)
        self._scores: Tensor = args[0] if args else kwargs["input"]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if dim is None:  # what PyTorch takes it to be
            dim = 0 if self._scores.ndim in (0, 1, 3) else 1
        self._dim = int(dim)

    @property
    def examples(self) -> int | None:
        """The first of four dimensions."""
        return len(self._scores) if self._scores.ndim == 4 and self._dim in (-1, 3) else None

    def of_last(self, shape: torch.Size) -> bool:
        """Whether it is over the last dimension of scores of a shape."""
        return self._scores.shape == shape and self._dim in (-1, len(shape) - 1)

    def arranged_scores(self, n: int, heads_first: bool) -> Tensor | None:
        layout = WeightLayout(self._scores.shape, self._dim, n)
        return layout.arranged(self._scores.detach(), heads_first) if layout.folded else None

    def observe(self, n: int) -> tuple[Any, Observed]:
        leaf = _leaf(self.unchanged())
        layout, of_positions = WeightLayout(leaf.shape, self._dim, n), slice(leaf.shape[self._dim] - self.sinks)
        heads_first = layout.folded and self.heads_first()

        def arrange(values: Tensor) -> Tensor:
            return layout.arranged(values, heads_first)[..., of_positions]

        # A copy, as the model may write to its weights.
        return leaf.clone(), Observed(arrange(leaf.detach()), leaf, arrange)

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        layout = WeightLayout(self._scores.shape, self._dim, n)
        mask = _mask(erased, layout.shape, self.sinks)
        heads_first = _matters(layout, mask) and self.heads_first()
        scores = layout.arranged(self._scores, heads_first)
        left = layout.back(_left(scores, mask), heads_first)
        args = (left, *self._args[1:]) if self._args else ()
        kwargs = self._kwargs if self._args else {**self._kwargs, "input": left}
        return self._func(*args, **kwargs)


_OF_SCALED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class ScaledDotProduct(AttentionCall):
    """`scaled_dot_product_attention`: softmax(scale q k^T + mask) v."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(func, args, kwargs)
        self._given = {**dict(zip(_OF_SCALED, args, strict=False)), **kwargs}
        self._q, self._k, self._v = (self._given[name] for name in _OF_SCALED[:3])
        if self._given.get("enable_gqa"):
            times = self._q.shape[-3] // self._k.shape[-3]
            self._k, self._v = (t.repeat_interleave(times, -3) for t in (self._k, self._v))

    @property
    def examples(self) -> int | None:
        """The first of four dimensions."""
        return len(self._q) if self._q.ndim == 4 else None

    def _scores(self) -> Tensor:
        scale = self._given.get("scale")
        scale = self._q.shape[-1] ** -0.5 if scale is None else scale
        single = torch.promote_types(self._q.dtype, torch.float32)  # half precision overflows, which no kernel does
        return self._q.to(single) * scale @ self._k.to(single).transpose(-2, -1)

    def arranged_scores(self, n: int, heads_first: bool) -> Tensor | None:
        scores = self._scores().detach()
        layout = WeightLayout(scores.shape, -1, n)
        return layout.arranged(scores, heads_first) if layout.folded else None

    def observe(self, n: int) -> tuple[Any, Observed]:
        scores, bias = self._scores(), self._bias()
        scores = scores if bias is None else scores + bias
        # Queries that may attend to nothing: PyTorch's kernels give zeros.
        weights = torch.softmax(scores, -1).masked_fill(~_live(scores, -torch.inf), 0)
        leaf = _leaf(weights.to(self._v.dtype))
        used = F.dropout(leaf, p) if (p := self._given.get("dropout_p", 0.0)) else leaf
        layout = WeightLayout(leaf.shape, -1, n)
        heads_first = layout.folded and self.heads_first()
        return used @ self._v, Observed(
            layout.arranged(leaf.detach(), heads_first), leaf, lambda g: layout.arranged(g, heads_first)
        )

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        q, k, bias = self._q, self._k, self._bias()
        shape = (*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2])
        layout = WeightLayout(shape, -1, n)
        mask = _mask(erased, layout.shape)
        heads_first = _matters(layout, mask) and self.heads_first()
        scores = layout.arranged((q.new_zeros(()) if bias is None else bias).expand(shape), heads_first)
        changed = {"attn_mask": layout.back(_left(scores, mask), heads_first), "is_causal": False}
        return self._func(**{**self._given, **changed})

    def _bias(self) -> Tensor | None:
        mask: Tensor | None = self._given.get("attn_mask")
        if self._given.get("is_causal"):
            mask = torch.ones(self._q.shape[-2], self._k.shape[-2], dtype=torch.bool, device=self._q.device).tril()
        return None if mask is None else _additive(mask, self._q.dtype, keep=True)


class Flex(AttentionCall):
    """`flex_attention` as it runs uncompiled: a function of each score, then a mask."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(func, args, kwargs)
        self._q, self._k, self._v, self._score_mod, *_ = args

    @property
    def examples(self) -> int | None:
        """The first of four dimensions."""
        return len(self._q)

    def _weights(self, score_mod: Callable[..., Tensor]) -> Tensor:
        """What it makes of values that are the positions themselves."""
        positions = torch.eye(self._k.shape[-2], dtype=self._q.dtype, device=self._q.device)
        values = positions.expand(*self._k.shape[:2], *positions.shape)
        with torch.no_grad():
            weights: Tensor = self._func(self._q, self._k, values, score_mod, *self._args[4:], **self._kwargs)[0]
        return weights.nan_to_num(0)

    def observe(self, n: int) -> tuple[Any, Observed]:
        weights = self._weights(self._score_mod)
        layout = WeightLayout(weights.shape, -1, n)
        with torch.no_grad():
            rest = self.unchanged()[1:]
        leaf = _leaf(weights)
        values = self._v.repeat_interleave(self._q.shape[1] // self._v.shape[1], 1)
        return (leaf.to(values.dtype) @ values, *rest), Observed(layout.arranged(leaf.detach()), leaf, layout.arranged)

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        before = self._weights(self._score_mod)
        mask = _mask(erased, WeightLayout(before.shape, -1, n).shape).expand_as(before).to(before.device)

        def erasing(
            score: Tensor, example: Tensor, head: Tensor, query: Tensor, position: Tensor, *more: Any
        ) -> Tensor:
            modified = self._score_mod(score, example, head, query, position, *more)
            return torch.where(mask[example, head, query, position], -torch.inf, modified)

        after = self._weights(erasing)
        _refuse_nothing_left(*((weights > 0).any(-1, keepdim=True) for weights in (before, after)))
        return self._func(*self._args[:3], erasing, *self._args[4:], **self._kwargs)


class MultiHead(AttentionCall):
    """`multi_head_attention_forward`, which `nn.MultiheadAttention` calls: queries (L, N, E) or (L, E)."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(func, args, kwargs)
        self._given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments

    def observe(self, n: int) -> tuple[Any, Observed]:
        # A mask that requires a gradient, so that there is a graph even if all parameters are frozen.
        masks = {
            "attn_mask": self._mask().detach().requires_grad_(),
            "key_padding_mask": self._padding(),
            "is_causal": False,
        }
        changed = {**masks, "need_weights": True, "average_attn_weights": False}
        with torch.enable_grad():
            output, weights = self._func(**{**self._given, **changed})
        detached = weights.detach().view(-1, *weights.shape[-3:])
        if len(detached) != n:
            raise ValueError(
                f"the layer attends in {len(detached)} sequences, but there are {n} examples (is batch_first=True "
                "missing, or are sequences cut into windows?)"
            )
        # Before they are reshaped they are (N * heads, queries, positions).
        observed = Observed(detached, _softmax_of(weights), lambda g: g.reshape(detached.shape))
        return self._returned(output, weights), observed

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        mask = self._mask()
        given = mask.view(-1, self._given["num_heads"], *mask.shape[1:])
        # Positions that are added to the inputs' after masking, and cannot be masked.
        more = int(self._given.get("bias_k") is not None) + int(bool(self._given.get("add_zero_attn")))
        scores = F.pad(given, (0, more))
        left = _left(scores, _mask(erased, scores.shape), check=False)
        if more and not bool(left[..., -more:].isfinite().all()):
            raise ValueError("positions that add_bias_kv or add_zero_attn add, the last ones, cannot be erased")
        padding = self._padding()
        seen = 0 if padding is None else F.pad(padding.view(-1, 1, 1, given.shape[-1]), (0, more))
        _refuse_nothing_left(_live(scores + seen), _live(left + seen))
        left = left[..., : given.shape[-1]].reshape(mask.shape)
        masks = {"attn_mask": left, "key_padding_mask": padding, "is_causal": False}
        return self._func(**{**self._given, **masks})

    def _mask(self) -> Tensor:
        """(N * heads, queries, positions), to add to the scores."""
        query, key, given = (self._given.get(name) for name in ("query", "key", "attn_mask"))
        assert query is not None and key is not None
        n = query.shape[1] if query.ndim == 3 else 1
        mask = query.new_zeros(()) if given is None else _additive(given, query.dtype, keep=False)
        return mask.expand(n * self._given["num_heads"], query.shape[0], key.shape[0]).clone()

    def _padding(self) -> Tensor | None:
        """(N, positions), or (positions,), to add to the scores."""
        mask: Tensor | None = self._given.get("key_padding_mask")
        return None if mask is None else _additive(mask, self._given["query"].dtype, keep=False)

    def _returned(self, output: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._given.get("need_weights", True):
            return output, None
        return output, weights.mean(-3) if self._given.get("average_attn_weights", True) else weights


_KINDS: dict[str, type[AttentionCall]] = {
    "softmax": Softmax,
    "special_softmax": Softmax,
    "scaled_dot_product_attention": ScaledDotProduct,
    "multi_head_attention_forward": MultiHead,
    "flex_attention": Flex,
}
# What kernels are called that return a result without weights; `flash_attn` is a package, the others are PyTorch's.
_HIDDEN = ("flash_attn", "flash_attention", "efficient_attention", "cudnn_attention", "varlen_attn")


def hides_attention(func: Callable[..., Any]) -> bool:
    """Whether an operation attends in a kernel that shows no weights."""
    return any(word in operation_name(func) for word in _HIDDEN)


def attention_call_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, AttentionCall] | None:
    """The name of an operation that makes attention weights, and the call; None for all others."""
    name = operation_name(func)
    kind = _KINDS.get(name)
    return None if kind is None else (name, kind(func, args, kwargs))


def _leaf(weights: Tensor) -> Tensor:
    return weights.detach().requires_grad_()


def _mask(erased: Callable[[tuple[int, int, int, int]], Tensor], shape: Sequence[int], sinks: int = 0) -> Tensor:
    n, heads, queries, positions = shape
    return F.pad(erased((n, heads, queries, positions - sinks)), (0, sinks))


def _matters(layout: WeightLayout, mask: Tensor) -> bool:
    """Whether it matters in which order examples and heads are folded."""
    return layout.folded and mask.shape[:2] != (1, 1)


def _left(scores: Tensor, mask: Tensor, check: bool = True) -> Tensor:
    left = scores.masked_fill(mask.to(scores.device), -torch.inf)
    if check:
        _refuse_nothing_left(_live(scores), _live(left))
    return left


def _additive(mask: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """A mask to add to scores; of bools, True is to keep or to leave out."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask if keep else mask, -torch.inf)


def _live(scores: Tensor, floor: float = -9e3) -> Tensor:
    """Whether a query may attend to anything: models mask with minus infinity, the lowest number, -1e9 or -1e4."""
    return (scores > floor).any(-1, keepdim=True)


def _refuse_nothing_left(before: Tensor, after: Tensor) -> None:
    gone = (before & ~after).squeeze(-1).nonzero()
    if len(gone):
        n, _, query = gone[0].tolist()
        raise ValueError(
            f"all positions that query {query} of example {n} attends to are erased; leave it one, or erase for other "
            "queries only (query=)"
        )


def _softmax_of(weights: Tensor) -> GradientEdge:
    """Where the softmax, or the dropout after it, stands in the graph of weights that were only reshaped since."""
    node = weights.grad_fn
    while node is not None and not any(name in node.name() for name in ("Softmax", "Dropout", "Mul")):
        node = node.next_functions[0][0]
    if node is None:
        raise RuntimeError("this version of PyTorch computes attention weights in a way that is not known here")
    return GradientEdge(node, 0)
