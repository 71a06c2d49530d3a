"""Attention erasure: does the model need what it attends to most?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_density._attention import Place
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TensorOrTupleOfTensorsGeneric
from captum_density._model.generators import derived_seed
from captum_density.metrics._attention_examples import AttentionExamples

__all__ = ["AttentionErasure", "attention_erasure"]


class AttentionErasure(NamedTuple):
    """What becomes of predictions when one position is attended to no longer, per example. See `attention_erasure`.

    Args:
        top: (N,) the position of the largest attention weight.
        other: (N,) one of the others, at random.
        delta_attention: (N,) weight of the top less that of the other, in [0, 1].
        js_top: (N,) Jensen-Shannon divergence of the output distribution without the top from the one with it, in nats,
            in [0, log 2]; higher is more change.
        js_other: (N,) the same without the other.
        flips_top: (N,) whether another class is predicted without the top.
        flips_other: (N,) the same without the other.
        compared: (N,) whether there are two positions to compare; where not, the divergences are NaN, and nothing
            flips.
    """

    top: Tensor
    other: Tensor
    delta_attention: Tensor
    js_top: Tensor
    js_other: Tensor
    flips_top: Tensor
    flips_other: Tensor
    compared: Tensor

    @property
    def delta_js(self) -> Tensor:
        """(N,) js_top - js_other, in [-log 2, log 2]; above 0 where the top matters more than the other."""
        return self.js_top - self.js_other

    @property
    def flip_table(self) -> dict[str, float]:
        """Percent of the examples compared, which sum to 100: which erasure flips the decision.

        "top only" above "other only" says that the weights tell important positions; a large "neither", that hardly any
        single one is.
        """
        top, other = self.flips_top[self.compared], self.flips_other[self.compared]
        cells = {"both": top & other, "top only": top & ~other, "other only": ~top & other, "neither": ~top & ~other}
        return {name: 100 * cell.double().mean().item() for name, cell in cells.items()}


@takes_arrays
def attention_erasure(
    model: Callable[..., Any],
    layer: str | nn.Module,
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
    *,
    query: Place | None = None,
    run: int | None = None,
    seed: int = 0,
    max_examples_per_batch: int | None = None,
) -> AttentionErasure:
    """Erase the top position of a layer's attention, or one other at random, and see how far the prediction moves.

    If attention tells what matters, the output moves further without the top position than without another one, the
    more so the larger its weight is beside the other's. Erasing sets the weight to zero in every head and renormalises
    the rest.

    Args:
        model: A classifier, logits (N, C), or an output that has them as `logits`.
        layer: The module whose forward pass runs attention once, or its name in the model.
        inputs: Tensor (N, ...) or tuple of such, such as token ids. Positions that a mask hides do not count.
        additional_forward_args: As Captum's: passed on after the inputs, such as an attention mask.
        query: Whose attention is ranked and erased, such as 0 for a class token; (N,) each example's own, such as
            ``mask.sum(1) - 1`` where a causal model's inputs are padded on the right; None for all queries, ranked by
            the mean of their weights.
        run: Which of the layer's runs in a pass is ranked and erased, from 0, or -1 for the last; None where it runs
            once.
        seed: Of the other positions.
        max_examples_per_batch: How many examples run at once; None for all.

    Returns:
        Tensors (N,): positions, divergences in nats, flips; `flip_table` counts them in percent.

    Raises:
        ValueError: Inputs that are empty or unequally many; a layer without attention, or with several calls; a model
            that returns no logits of two classes or draws random numbers (dropout in training mode); a query that
            attends to the erased position alone, as the first one of a causal model does.
        TypeError: A model, layer, inputs or query of the wrong type.

    References:
        S. Serrano and N. A. Smith, "Is Attention Interpretable?", ACL 2019, arXiv:1906.03731, section 4.

    Example:
        >>> import torch
        >>> class Pooled(torch.nn.Module):
        ...     def forward(self, x):  # attends to large numbers, and adds up what it attends to
        ...         mean = (x.softmax(1) * x).sum(1)
        ...         return torch.stack([mean, 2.5 - mean], dim=1)
        >>> model = Pooled()
        >>> result = attention_erasure(model, model, torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 1.5]]))
        >>> result.top.tolist(), result.flips_top.tolist()
        ([2, 2], [True, False])
    """
    examples = AttentionExamples(model, layer, inputs, additional_forward_args, query, run, max_examples_per_batch)
    weights, live = examples.weights, examples.live
    compared = live.sum(1) > 1
    top = weights.argmax(1)
    generator = torch.Generator().manual_seed(derived_seed(seed, "other positions"))
    draws = torch.rand(weights.shape, generator=generator, dtype=torch.float64, device="cpu").to(weights.device)
    others = live.scatter(1, top[:, None], False)
    other = draws.masked_fill(~others, -1.0).argmax(1)
    rows = compared.nonzero().flatten()
    js = weights.new_full((2, examples.n), torch.nan, dtype=torch.float64)
    flips = torch.zeros(2, examples.n, dtype=torch.bool, device=weights.device)
    before = examples.probabilities(torch.arange(examples.n, device=weights.device))[rows]
    if len(rows):
        for i, position in enumerate((top, other)):
            erased = torch.zeros_like(live).scatter(1, position[:, None], True)
            after = examples.probabilities(rows, erased[rows])
            js[i, rows] = jensen_shannon(before, after)
            flips[i, rows] = before.argmax(1) != after.argmax(1)
    delta = (weights.gather(1, top[:, None]) - weights.gather(1, other[:, None]))[:, 0]
    return AttentionErasure(top, other, delta, js[0], js[1], flips[0], flips[1], compared)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Of rows of probabilities, in nats, in [0, log 2]."""
    middle = (p + q) / 2
    halves = (torch.special.xlogy(a, a) - torch.special.xlogy(a, middle) for a in (p, q))
    return sum(half.sum(1) for half in halves).div(2).clamp(0.0, math.log(2))
