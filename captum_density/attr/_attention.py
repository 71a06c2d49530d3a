"""AttentionWeights and AttentionGradient: what a query attends to, and what the output makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._attention import AttentionCalls, Observed, Place, find_layer, logits_of, places, run_from_start
from captum_density._model.arrays import takes_arrays
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric, log_usage
from captum_density._model.evaluation import grad_mode
from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.interrupts import CleanInterrupts
from captum_density._model.validation import selected_output
from captum_density.attr._repr import shown

__all__ = ["AttentionGradient", "AttentionWeights"]

Heads = int | Literal["mean", "all"]
Query = Place | Literal["mean", "all"]


class _LayerAttention(Attribution):
    """A model and its layer that attends."""

    def __init__(self, model: Callable[..., Any], layer: str | nn.Module) -> None:
        self._model, self.layer = find_layer(model, layer)
        super().__init__(model)

    def __repr__(self) -> str:
        return shown(self, self.forward_func, **self._settings())

    def _batch(self, inputs: Any, target: TargetType, additional_forward_args: object) -> ModelOnBatch:
        return ModelOnBatch(self._model, inputs, target, additional_forward_args, differentiable=False, name="model")

    def _settings(self) -> dict[str, object]:
        modules = self._model.named_modules() if isinstance(self._model, nn.Module) else ()
        return {"layer": next((name for name, module in modules if module is self.layer), self.layer)}


class AttentionWeights(_LayerAttention):
    """The attention weights of one layer, as attributions of the positions that its queries attend to.

    They are read as the model runs, from a softmax of scores, `scaled_dot_product_attention` or
    `nn.MultiheadAttention`, whichever the layer calls: of a model of one's own as of a Hugging Face model with
    ``attn_implementation`` "eager" or "sdpa", masks included. What a model takes by keyword only is passed by a
    function of the inputs, ``lambda ids, mask: model(input_ids=ids, attention_mask=mask)``, and the layer as a module.
    Of a layer that several blocks share, as ALBERT's do, or that decodes step by step, `run` says which run.

    Only the end of a pass tells whether a layer ran once, so that the whole model runs where `run` is None. Where it is
    given, the pass ends with that run: ``run=0`` is the faster call for a layer that runs once.

    Whether weights explain anything is another question: see `captum_density.metrics.attention_erasure`.

    Args:
        model: An `nn.Module`, or a function of the inputs; DataParallel, DistributedDataParallel and compiled models
            are unwrapped.
        layer: The module whose forward pass runs attention once, or its name in the model.

    Raises:
        TypeError: No model or layer, or TorchScript.
        ValueError: A name that the model does not have.

    References:
        D. Bahdanau, K. Cho and Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate", ICLR
        2015, arXiv:1409.0473; A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> weights = AttentionWeights(model, "self_attn").attribute(torch.randn(3, 5, 8), query=0)
        >>> weights.shape, torch.allclose(weights.sum(1), torch.ones(3))
        (torch.Size([3, 5]), True)
    """

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        additional_forward_args: object = None,
        *,
        query: Query = "mean",
        heads: Heads = "mean",
        run: int | None = None,
    ) -> Tensor:
        """Attention weights, of N examples by the positions attended to.

        Args:
            inputs: Tensor (N, ...) or tuple of such: token ids, embeddings or whatever else the model takes.
            additional_forward_args: As Captum's: passed on after the inputs, such as an attention mask.
            query: Whose weights: a position, -1 for the last one; (N,) each example's own, such as
                ``mask.sum(1) - 1`` where a causal model's inputs are padded on the right; "mean" over all of them,
                padding included; "all".
            heads: Of which head: its number, "mean" or "all".
            run: Of which of the layer's runs in a pass: from 0, or -1 for the last one, which another pass counts
                first; the pass that is read ends there. None where it runs once.

        Returns:
            (N, positions) in [0, 1], higher is more attended to; each row sums to 1 (a query that a mask lets attend to
            nothing has zeros; sinks, as of GPT-OSS, have no position, and rows lack what they take; in training mode,
            `nn.MultiheadAttention`'s weights are those after its dropout). With
            ``heads="all"`` (N, heads, positions), with ``query="all"`` (N, queries, positions), with both (N, heads,
            queries, positions). Not differentiable.

        Raises:
            ValueError: A layer that did not run, ran several times without `run`, has no attention, or has several
                calls (named); a query, head or run that there is not; weights whose shape does not show the examples;
                folded heads of which a second pass does not tell whether those of an example are side by side; a kernel
                that shows no weights, such as flash attention.
            TypeError: Inputs that are no tensors; a run that is no integer.
        """
        batch = self._batch(inputs, None, additional_forward_args)
        with _observation(batch, self.layer, run, gradient=False) as (_, attention):
            return _reduced(attention.weights, query, heads)


class AttentionGradient(_LayerAttention):
    r"""Attention weights times the gradient of an output by them: \alpha_i \partial f / \partial \alpha_i.

    To first order, how much the output falls when weight i is taken away and the others are left as they are. The
    weights are differentiated as free numbers, though they sum to 1.

    Args:
        model, layer: As `AttentionWeights`.
        multiply_by_weights: False gives the gradient alone.

    Raises:
        TypeError: No model or layer, or TorchScript.
        ValueError: A name that the model does not have.

    References:
        S. Serrano and N. A. Smith, "Is Attention Interpretable?", ACL 2019, arXiv:1906.03731.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> x = torch.randn(3, 5, 8)
        >>> AttentionGradient(model, "self_attn").attribute(x, target=(0, 7), query=0).shape
        torch.Size([3, 5])
    """

    def __init__(self, model: Callable[..., Any], layer: str | nn.Module, multiply_by_weights: bool = True) -> None:
        super().__init__(model, layer)
        self.multiply_by_weights = multiply_by_weights

    def _settings(self) -> dict[str, object]:
        return super()._settings() | {"multiply_by_weights": self.multiply_by_weights}

    @log_usage()
    @takes_arrays
    def attribute(
        self,
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        query: Query = "mean",
        heads: Heads = "mean",
        run: int | None = None,
    ) -> Tensor:
        """Gradient x attention, of N examples by the positions attended to.

        Args:
            target: As Captum's: picks the output to differentiate; of a Hugging Face model, of its `logits`.
            inputs, additional_forward_args, query, heads, run: As `AttentionWeights.attribute`.

        Returns:
            (N, positions), with further dimensions as of `AttentionWeights`; signed, in units of the output.

        Raises:
            ValueError: As `AttentionWeights`; no gradient reaches the weights.
            TypeError: Inputs that are no tensors; a model that returns none.
            AssertionError: Captum's own, for a target that does not fit.
        """
        batch = self._batch(inputs, target, additional_forward_args)
        with _observation(batch, self.layer, run, gradient=True) as (output, attention):
            selected = selected_output(logits_of(output), target, batch.n, batch.span)
            gradient = None
            if selected.requires_grad:
                (gradient,) = torch.autograd.grad(selected.sum(), attention.handle, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    "the output has no gradient by the attention weights; does the model run under torch.no_grad(), "
                    "detach them, checkpoint the layer with use_reentrant=True, or leave its result unused?"
                )
            values = attention.arrange(gradient)
            return _reduced(values * attention.weights if self.multiply_by_weights else values, query, heads)


@contextmanager
def _observation(
    batch: ModelOnBatch, layer: nn.Module, run: int | None, gradient: bool
) -> Iterator[tuple[Any, Observed]]:
    """The model's output, None where the pass ended before, and the layer's attention weights."""
    observations: list[Observed] = []

    def observe(call: Any, n: int) -> Any:
        result, observed = call.observe(n)
        observations.append(observed)
        return result

    run, output = run_from_start(batch, layer, run), None
    fixed = fixed_modules(batch.forward_func, needs_statistics=False)
    with CleanInterrupts(), torch.inference_mode(False), grad_mode(gradient), fixed:
        xs = tuple(x.clone() if x.is_inference() else x for x in batch.inputs)
        with AttentionCalls(batch.forward_func, layer, observe, batch.n, run, ends_pass=not gradient) as calls:
            output = batch.run(xs)
        calls.check_seen()
        if len(observations) > 1:
            raise ValueError(
                f"{calls.name} ran {len(observations)} times in one pass; say whose attention is meant by run=0 to "
                f"run={len(observations) - 1}, or give the block in which it runs once"
            )
        yield output, observations[0]


def _reduced(values: Tensor, query: Query, heads: Heads) -> Tensor:
    """Of (N, heads, queries, positions), those asked for."""
    for name, selection, dim in (("query", query, 2), ("heads", heads, 1)):
        if isinstance(selection, str):
            if selection not in ("mean", "all"):
                raise ValueError(f'{name} must be "mean", "all" or a number, but is {selection!r}')
            values = values.mean(dim, keepdim=True) if selection == "mean" else values
        else:
            at = places(selection, len(values), values.shape[dim], name).to(values.device).view(-1, 1, 1, 1)
            shape = [1 if d == dim else size for d, size in enumerate(values.shape)]
            values = values.gather(dim, at.expand(shape))
    for selection, dim in ((query, 2), (heads, 1)):
        values = values if isinstance(selection, str) and selection == "all" else values.squeeze(dim)
    return values.detach().contiguous()
