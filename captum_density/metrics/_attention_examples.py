"""What a classifier predicts when attention of one of its layers is erased."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from captum_density._attention import Place, find_layer, logits_of
from captum_density._model.captum import TensorOrTupleOfTensorsGeneric, format_additional_forward_args, run_forward
from captum_density._model.evaluation import full_precision, refuse_random_numbers
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.validation import check_limit
from captum_density.attr import AttentionGradient, AttentionWeights, erase_attention

__all__ = ["AttentionExamples"]


class AttentionExamples:
    """Examples, and the weights by which a layer attends to their positions.

    Args:
        model: Returns logits (N, C), or what has them as `logits`.
        layer: Where attention runs once.
        inputs: The examples.
        additional_forward_args: As Captum's.
        query: Whose attention, one or (N,) each example's own; None for all queries, whose weights are averaged.
        max_examples_per_batch: How many run at once; None for all.

    Raises:
        TypeError: A model, layer, inputs or query of the wrong type.
        ValueError: Inputs that are empty or unequally many; no attention, or several calls, in the layer.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: str | nn.Module,
        inputs: TensorOrTupleOfTensorsGeneric,
        additional_forward_args: object,
        query: Place | None,
        max_examples_per_batch: int | None,
    ) -> None:
        check_limit(max_examples_per_batch)
        if isinstance(query, str | bool):
            raise TypeError(f"query must be a position, (N,) positions, or None for all queries, but is {query!r}")
        self._model, self._layer = find_layer(model, layer)
        self._inputs: tuple[Tensor, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
        if not self._inputs or any(not isinstance(x, Tensor) or x.ndim == 0 for x in self._inputs):
            raise TypeError("inputs must be a tensor with the examples first, or a non-empty tuple of such")
        self.n = len(self._inputs[0])
        if isinstance(query, Tensor) and query.shape not in ((), (self.n,)):
            raise ValueError(f"query has shape {tuple(query.shape)}, but must be one position or ({self.n},)")
        if self.n == 0 or any(len(x) != self.n for x in self._inputs):
            counts = ", ".join(str(len(x)) for x in self._inputs)
            raise ValueError(f"inputs hold {counts} examples; give as many of each, and at least one")
        self._args: tuple[Any, ...] = format_additional_forward_args(additional_forward_args) or ()
        self._query, self._limit = query, max_examples_per_batch or self.n
        self.device = self._inputs[0].device
        #: (N, positions), the mean over heads; 0 where a mask lets nothing attend.
        self.weights = self._in_parts(self._weights)
        self.live = self.weights > 0

    def probabilities(self, rows: Tensor, erased: Tensor | None = None) -> Tensor:
        """Softmax of the logits, (R, C) float64.

        Args:
            rows: (R,) which examples.
            erased: (R, positions) what is attended to no longer; None for nothing.

        Raises:
            ValueError: The model returns no logits of two classes or more, NaN, or draws random numbers.
        """

        def predict(at: slice) -> Tensor:
            with self._held(), torch.no_grad():  # in this order: leaving inference mode turns gradients on
                xs, args = self._rows(rows[at])
                if erased is None:
                    output = run_forward(self._model, xs, None, args)
                else:
                    with erase_attention(self._model, self._layer, erased[at], query=self._query_of(rows[at])):
                        output = run_forward(self._model, xs, None, args)
            return _checked(logits_of(output), len(xs[0])).double().softmax(1)

        return self._in_parts(predict, len(rows))

    def gradients(self, multiply_by_weights: bool) -> Tensor:
        """(N, positions) d log p / d weight of the predicted class, the mean over heads and queries."""

        def differentiate(at: slice) -> Tensor:
            with self._held():
                rows = torch.arange(at.start, min(at.stop, self.n), device=self.device)
                xs, args = self._rows(rows)
                with torch.no_grad():
                    predicted = self._log_probabilities(*xs, *args).argmax(1)
                attribution = AttentionGradient(self._log_probabilities, self._layer, multiply_by_weights)
                options = {"additional_forward_args": args or None, "query": self._query_of(rows, "mean")}
                return attribution.attribute(xs, target=predicted, **options)

        return self._in_parts(differentiate)

    def _weights(self, at: slice) -> Tensor:
        with self._held():
            rows = torch.arange(at.start, min(at.stop, self.n), device=self.device)
            xs, args = self._rows(rows)
            query = self._query_of(rows, "mean")
            return AttentionWeights(self._model, self._layer).attribute(xs, args or None, query=query)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Within, what is compared is of one network, whose tensors autograd can save."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            # Erasing keeps PyTorch off the fused path of nn.TransformerEncoder, which sets padding to zero, and off
            # compiled code: what it is compared with must be so too. While any mode is on, the fused path is not taken.
            stack.enter_context(BaseTorchFunctionMode())
            if "torch._dynamo" in sys.modules:  # only then can anything be compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(full_precision(self.device))
            stack.enter_context(fixed_modules(self._model, compared=True))
            stack.enter_context(refuse_random_numbers(self._inputs[0]))
            yield

    def _log_probabilities(self, *given: Any) -> Tensor:
        return _checked(logits_of(self._model(*given)), len(given[0])).log_softmax(1)

    def _rows(self, rows: Tensor) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        args = (a[rows] if isinstance(a, Tensor) and a.ndim and len(a) == self.n else a for a in self._args)
        return tuple(x[rows] for x in self._inputs), tuple(args)

    def _query_of(self, rows: Tensor, otherwise: Any = None) -> Any:
        query = self._query
        if query is None:
            return otherwise
        return query[rows.to(query.device)] if isinstance(query, Tensor) and query.ndim else query

    def _in_parts(self, function: Callable[[slice], Tensor], count: int | None = None) -> Tensor:
        count = self.n if count is None else count
        return torch.cat([function(slice(start, start + self._limit)) for start in range(0, count, self._limit)])


def _checked(logits: Any, n: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        is_tensor = isinstance(logits, Tensor)
        found = tuple(logits.shape) if is_tensor else type(logits).__name__
        remedy = "two classes of one output z are `torch.cat([torch.zeros_like(z), z], dim=1)`"
        remedy = remedy if is_tensor else "pass a function that picks the logits"
        raise ValueError(
            f"the model must return logits of at least two classes, ({n}, C), but returned {found}; {remedy}"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("the model returned NaN or infinite logits")
    return logits
