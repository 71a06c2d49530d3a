"""The three operations in which attention weights arise: how each is read, differentiated and masked."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from captum_density._attention.layout import arranged
from captum_density._model.calls import operation_name

__all__ = ["AttentionCall", "Observed", "attention_call_of"]


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

    @property
    def examples(self) -> int | None:
        """How many examples it has, where its own shape tells; else None."""
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

    def observe(self, n: int) -> tuple[Any, Observed]:
        leaf = _leaf(self._func(*self._args, **self._kwargs))
        # A copy, as the model may write to its weights.
        return leaf.clone(), Observed(
            _arranged(leaf.detach(), self._dim, n), leaf, lambda g: _arranged(g, self._dim, n)
        )

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        scores, back = arranged(self._scores, self._dim, n)
        left = _without(scores, erased)
        _refuse_nothing_left(_live(scores), _live(left))
        args = (back(left), *self._args[1:]) if self._args else ()
        kwargs = self._kwargs if self._args else {**self._kwargs, "input": back(left)}
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

    def observe(self, n: int) -> tuple[Any, Observed]:
        scale = self._given.get("scale")
        scale = self._q.shape[-1] ** -0.5 if scale is None else scale
        single = torch.promote_types(self._q.dtype, torch.float32)  # half precision overflows, which no kernel does
        scores = self._q.to(single) * scale @ self._k.to(single).transpose(-2, -1)
        bias = self._bias()
        scores = scores if bias is None else scores + bias
        # Queries that may attend to nothing: PyTorch's kernels give zeros.
        weights = torch.softmax(scores, -1).masked_fill(~_live(scores, -torch.inf), 0)
        leaf = _leaf(weights.to(self._v.dtype))
        used = F.dropout(leaf, p) if (p := self._given.get("dropout_p", 0.0)) else leaf
        return used @ self._v, Observed(_arranged(leaf.detach(), -1, n), leaf, lambda g: _arranged(g, -1, n))

    def without(self, erased: Callable[[tuple[int, int, int, int]], Tensor], n: int) -> Any:
        q, k = self._q, self._k
        lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        bias = self._bias()
        bias = q.new_zeros(()) if bias is None else bias
        scores, back = arranged(bias.expand(*lead, q.shape[-2], k.shape[-2]), -1, n)
        left = _without(scores, erased)
        _refuse_nothing_left(_live(scores), _live(left))
        changed = {"attn_mask": back(left), "is_causal": False}
        return self._func(**{**self._given, **changed})

    def _bias(self) -> Tensor | None:
        mask: Tensor | None = self._given.get("attn_mask")
        if self._given.get("is_causal"):
            mask = torch.ones(self._q.shape[-2], self._k.shape[-2], dtype=torch.bool, device=self._q.device).tril()
        return None if mask is None else _additive(mask, self._q.dtype, keep=True)


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
        left = _without(scores, erased)
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
}


def attention_call_of(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, AttentionCall] | None:
    """The name of an operation that makes attention weights, and the call; None for all others."""
    name = operation_name(func)
    kind = _KINDS.get(name)
    return None if kind is None else (name, kind(func, args, kwargs))


def _leaf(weights: Tensor) -> Tensor:
    return weights.detach().requires_grad_()


def _arranged(values: Tensor, dim: int, n: int) -> Tensor:
    return arranged(values, dim, n)[0]


def _without(scores: Tensor, erased: Callable[[tuple[int, int, int, int]], Tensor]) -> Tensor:
    n, heads, queries, positions = scores.shape
    return scores.masked_fill(erased((n, heads, queries, positions)).to(scores.device), -torch.inf)


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
