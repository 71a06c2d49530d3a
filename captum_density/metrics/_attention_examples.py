"""What a classifier predicts when attention of one of its layers is erased."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from captum_density._attention import Place, find_layer, logits_of, run_from_start
from captum_density._model.batch import ModelOnBatch, Rows, rows_of
from captum_density._model.captum import TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import refuse_random_numbers
from captum_density._model.shared_settings import EAGER_CODE
from captum_density._model.validation import received
from captum_density.attr import AttentionGradient, AttentionWeights, erase_attention

__all__ = ["AttentionExamples"]

_AT_ONCE = 32  # versions of fewer examples


class AttentionExamples(ModelOnBatch):
    """Examples, and the weights by which a layer attends to their positions.

    Args:
        model: Returns logits (N, C), or what has them as `logits`.
        layer: Where attention runs once.
        inputs: The examples.
        additional_forward_args: As Captum's.
        query: Whose attention, one or (N,) each example's own; None for all queries, whose weights are averaged.
        run: Of which of the layer's runs in a pass; None where it runs once.
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
        run: int | None,
        max_examples_per_batch: int | None,
    ) -> None:
        if isinstance(query, str | bool):
            raise TypeError(f"query must be a position, (N,) positions, or None for all queries, but is {query!r}")
        inner, module = find_layer(model, layer)
        self._layer: nn.Module = module
        super().__init__(
            inner,
            inputs,
            None,
            additional_forward_args,
            max_examples_per_batch=max_examples_per_batch,
            differentiable=False,
            name="model",
        )
        if isinstance(query, Tensor) and query.shape not in ((), (self.n,)):
            raise ValueError(f"query has shape {tuple(query.shape)}, but must be one position or ({self.n},)")
        self._query: Place | None = query
        with self.evaluation():
            self._run = run_from_start(self.at(next(iter(self.parts()))), self._layer, run)
        #: (N, positions), the mean over heads; 0 where a mask lets nothing attend.
        self.weights = torch.cat([self._weights(at) for at in self.parts(unlimited=self.n)])
        self.live = self.weights > 0

    @property
    def at_once(self) -> int:
        """How many versions of examples run at once."""
        return self.limit or max(self.n, _AT_ONCE)

    def probabilities(self, rows: Tensor, erased: Tensor | None = None) -> Tensor:
        """Softmax of the logits, (R, C) float64.

        Args:
            rows: (R,) which examples.
            erased: (R, positions) what is attended to no longer; None for nothing.

        Raises:
            ValueError: The model returns no logits of two classes or more, NaN, or draws random numbers.
        """

        def predict(at: slice) -> Tensor:
            with self.evaluation(), torch.no_grad():
                erasure: AbstractContextManager[None] = nullcontext()
                if erased is not None:
                    query = self._query_of(rows[at])
                    erasure = erase_attention(self.forward_func, self._layer, erased[at], query=query, run=self._run)
                with erasure:
                    output = self.run(rows=rows[at])
            return _checked(logits_of(output), len(rows[at])).double().softmax(1)

        return torch.cat([predict(at) for at in self.parts(len(rows), unlimited=self.at_once)])

    def gradients(self, multiply_by_weights: bool) -> Tensor:
        """(N, positions) d log p / d weight of the predicted class, the mean over heads and queries."""

        def differentiate(at: slice) -> Tensor:
            xs, args = self.inputs_of(at), self.args_of(at)
            with self.evaluation():
                with torch.no_grad():
                    predicted = self._log_probabilities(*xs, *(args or ())).argmax(1)
                attribution = AttentionGradient(self._log_probabilities, self._layer, multiply_by_weights)
                options = {"additional_forward_args": args, "query": self._query_of(at, "mean"), "run": self._run}
                return attribution.attribute(xs, target=predicted, **options)

        return torch.cat([differentiate(at) for at in self.parts(unlimited=self.n)])

    def _weights(self, at: slice) -> Tensor:
        with self.evaluation():
            attention = AttentionWeights(self.forward_func, self._layer)
            return attention.attribute(
                self.inputs_of(at), self.args_of(at), query=self._query_of(at, "mean"), run=self._run
            )

    @contextmanager
    def evaluation(self, *, comparison: bool = True) -> Iterator[None]:
        """As `ModelOnBatch.evaluation`, in the form in which attention can be erased."""
        with ExitStack() as stack:
            stack.enter_context(super().evaluation(comparison=comparison))
            # Erasing keeps PyTorch off the fused path of nn.TransformerEncoder, which sets padding to zero, and off
            # compiled code: what it is compared with must be so too. While any mode is on, the fused path is not taken.
            stack.enter_context(BaseTorchFunctionMode())
            stack.enter_context(EAGER_CODE)
            stack.enter_context(refuse_random_numbers(self.inputs[0]))  # attributions run the model, too
            yield

    def _log_probabilities(self, *inputs: Any) -> Tensor:
        return _checked(logits_of(self.forward_func(*inputs)), len(inputs[0])).log_softmax(1)

    def _query_of(self, rows: Rows, otherwise: Any = None) -> Any:
        query = self._query
        if query is None:
            return otherwise
        return rows_of(query, rows) if isinstance(query, Tensor) and query.ndim else query


def _checked(logits: Any, n: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        remedy = "; two classes of one output z are `torch.cat([torch.zeros_like(z), z], dim=1)`"
        raise ValueError(
            f"the model must return logits of at least two classes, ({n}, C), but returned {received(logits)}"
            f"{remedy if isinstance(logits, Tensor) else ''}"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("the model returned NaN or infinite logits")
    return logits
