"""erase_attention: a model as it is without some of its attention."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._attention import AttentionCalls, Place, find_layer, places
from captum_density._model.arrays import takes_arrays
from captum_density._model.interrupts import CleanInterrupts

__all__ = ["erase_attention"]


@contextmanager
@takes_arrays
def erase_attention(
    model: Callable[..., Any],
    layer: str | nn.Module,
    positions: int | Sequence[int] | Tensor,
    *,
    query: Place | None = None,
    heads: int | Sequence[int] | None = None,
    run: int | None = None,
) -> Iterator[None]:
    r"""Within, chosen attention weights of a layer are zero and the others renormalised to sum to 1.

    Their scores are minus infinity before the softmax, so that weight j becomes
    \alpha_j / \sum_{k kept} \alpha_k. The model itself is as it was afterwards, also where it raises. Nothing erased
    changes nothing, to the last bit, unless PyTorch would have taken the fused path of `nn.TransformerEncoderLayer`.
    Where activations are checkpointed, the backward pass has to be within, too, as it runs the layer again.

    Args:
        model: An `nn.Module`, or a function of the inputs; what is run within must be this model.
        layer: The module whose forward pass runs attention once, or its name in the model.
        positions: What is attended to no longer. A position or a list of them: in all examples, -1 for the last. An
            integer tensor (N,) or (N, P): in each example its own. A bool tensor, (positions,), (N, positions) or
            (N, heads, queries, positions): where it is True.
        query: Of which query only; (N,) of each example's own; None for all.
        heads: Of which head or heads only; None for all.
        run: In which of the layer's runs only, from 0: of each pass of the model, or, where that is a function, of all
            that runs within; None for each of them.

    Yields:
        Nothing.

    Raises:
        TypeError: No model or layer, TorchScript, or positions or a run of another type.
        ValueError: A name that the model does not have; positions, a query, heads or a run that there are not; a run
            counted from the last one, which is not known before; another number of examples than the positions are for;
            a query that is left with nothing to attend to; a layer that has several attention calls, or, at the end,
            none, or that did not run; folded heads, as `AttentionWeights`.

    References:
        S. Serrano and N. A. Smith, "Is Attention Interpretable?", ACL 2019, arXiv:1906.03731, section 3.

    Example:
        >>> import torch
        >>> from captum_density.attr import AttentionWeights
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> with erase_attention(model, "self_attn", 2):
        ...     erased = model(x)
        >>> bool((erased != model(x)).any())
        True
    """
    inner, module = find_layer(model, layer)
    erasure = _Erasure(positions, query, heads)
    run = None if run is None else _integers(run, "run")[0]
    if run is not None and run < 0:
        raise ValueError(
            f"run must be 0 or above, not {run}: which run of a pass is the last one is not known before it is over"
        )
    if erasure.is_empty:
        yield
        return

    def without(call: Any, n: int) -> Any:
        return call.without(erasure.mask, erasure.n or call.examples or n)

    with CleanInterrupts(), AttentionCalls(inner, module, without, erasure.n, run) as calls:
        yield
    calls.check_seen()


class _Erasure:
    """Which weights are erased, as a mask of any layer's shape."""

    def __init__(self, positions: Any, query: Place | None, heads: Any) -> None:
        self._query, self._heads = query, None if heads is None else _integers(heads, "heads")
        self._per_example = isinstance(positions, Tensor) and positions.ndim > 0
        if self._per_example:
            tensor = positions.detach()
        else:
            tensor = torch.tensor([_integers(positions, "positions")], dtype=torch.long, device="cpu")
        self._positions = tensor if tensor.dtype == torch.bool or tensor.is_floating_point() else tensor.long()
        self._per_example &= not (self._positions.dtype == torch.bool and self._positions.ndim == 1)
        ranks = (1, 2, 4) if self._positions.dtype == torch.bool else (1, 2)
        if self._positions.is_floating_point() or self._positions.is_complex() or self._positions.ndim not in ranks:
            raise TypeError(
                "positions must be integers, a tensor of integers (N,) or (N, P), or a tensor of bools (positions,), "
                f"(N, positions) or (N, heads, queries, positions), but is {tuple(self._positions.shape)} of "
                f"{self._positions.dtype}"
            )

    @property
    def n(self) -> int | None:
        """The number of examples that the positions are for; None for any."""
        return len(self._positions) if self._per_example else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is erased, whatever the shape."""
        any_erased = self._positions.any() if self._positions.dtype == torch.bool else self._positions.numel()
        return not bool(any_erased) or self._heads == []

    def mask(self, shape: tuple[int, int, int, int]) -> Tensor:
        """True where erased, broadcastable to (N, heads, queries, positions)."""
        n, heads, queries, positions = shape
        erased = self._positions
        if self._per_example and len(erased) != n:
            raise ValueError(f"positions are for {len(erased)} examples, but the layer attends in {n}")
        if erased.dtype == torch.bool:
            erased = erased if erased.ndim == 4 else erased.view(-1, 1, 1, erased.shape[-1])
            if (
                any(a not in (1, b) for a, b in zip(erased.shape[1:-1], shape[1:-1], strict=True))
                or erased.shape[-1] != positions
            ):
                raise ValueError(
                    f"positions of shape {tuple(self._positions.shape)} do not fit attention of shape {shape}"
                )
            mask = erased
        else:
            erased = erased.long()
            if bool(((erased < -positions) | (erased >= positions)).any()):
                raise ValueError(f"positions {erased.unique().tolist()} are not all among the {positions} attended to")
            columns = (erased % positions).view(len(erased), -1)
            mask = torch.zeros(len(erased), positions, dtype=torch.bool, device=erased.device)
            mask = mask.scatter(1, columns, True).view(-1, 1, 1, positions)
        if self._heads is not None:
            in_heads = torch.zeros(heads, dtype=torch.bool, device=mask.device)
            in_heads[[int(places(head, n, heads, "heads")) for head in self._heads]] = True
            mask = mask & in_heads.view(1, -1, 1, 1)
        if self._query is not None:
            rows = places(self._query, n, queries, "query").to(mask.device)
            mask = mask & (torch.arange(queries, device=mask.device) == rows[:, None]).view(-1, 1, queries, 1)
        return mask


def _integers(argument: Any, name: str) -> list[int]:
    """One integer, or several, as a list."""
    single = not isinstance(argument, Iterable) or (isinstance(argument, Tensor) and not argument.ndim)
    values = [argument] if single else [*argument]
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        return [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"{name} must be an integer or integers, but is {argument!r}") from None
