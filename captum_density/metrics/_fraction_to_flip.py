"""Fraction to flip: how much has to be erased, from the top of a ranking down, before the decision changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_density._attention import Place
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TensorOrTupleOfTensorsGeneric
from captum_density._model.generators import derived_seed
from captum_density.metrics._attention_examples import AttentionExamples
from captum_density.metrics._masks import ranks

__all__ = ["FractionToFlip", "fraction_to_flip"]

_OURS = ("attention", "gradient", "gradient x attention", "random")


class FractionToFlip(NamedTuple):
    """How soon decisions flip, for each ranking and example. See `fraction_to_flip`.

    Args:
        names: Of the R rankings.
        fraction: (R, N) of the positions that a mask leaves, erased when the decision flips first, in (0, 1]; lower is
            better: the ranking puts first what the decision needs. 1 where it never flips.
        flipped: (R, N) whether it flips before one position is left.
    """

    names: tuple[str, ...]
    fraction: Tensor
    flipped: Tensor


@takes_arrays
def fraction_to_flip(
    model: Callable[..., Any],
    layer: str | nn.Module,
    inputs: TensorOrTupleOfTensorsGeneric,
    additional_forward_args: object = None,
    *,
    rankings: Sequence[str] | Mapping[str, str | Tensor] = _OURS,
    query: Place | None = None,
    run: int | None = None,
    seed: int = 0,
    max_examples_per_batch: int | None = None,
) -> FractionToFlip:
    r"""Erase attention to one position after another, the highest ranked first, until the decision flips.

    A ranking that tells what the decision rests on flips it soon. Rankings of the same model are compared with each
    other, and with a random one.

    Args:
        model, layer, inputs, additional_forward_args: As `attention_erasure`.
        rankings: Names of some of "attention" (the weights), "gradient" (of the predicted class's log-probability by
            the weights, signed), "gradient x attention" and "random"; or a mapping from any name to one of these, or to
            importances (N, positions), higher first, of any attribution.
        query, run, max_examples_per_batch: As `attention_erasure`.
        seed: Of the random ranking.

    Returns:
        Fractions and flips, (R, N) each. Equal importances are taken in the order of their positions.

    Raises:
        ValueError: As `attention_erasure`; an unknown ranking, or importances of another shape or not finite.
        TypeError: A model, layer, inputs or query of the wrong type.

    References:
        S. Serrano and N. A. Smith, "Is Attention Interpretable?", ACL 2019, arXiv:1906.03731, section 5.

    Example:
        >>> import torch
        >>> class Pooled(torch.nn.Module):
        ...     def forward(self, x):  # attends to large numbers, and adds up what it attends to
        ...         mean = (x.softmax(1) * x).sum(1)
        ...         return torch.stack([mean, 1.5 - mean], dim=1)
        >>> model = Pooled()
        >>> x = torch.tensor([[0.0, 0.5, 1.0, 2.0]])
        >>> fraction_to_flip(model, model, x, rankings={"attention": "attention", "last": -x}).fraction.tolist()
        [[0.25], [1.0]]
    """
    names = list(rankings)
    if isinstance(rankings, str | Tensor) or not names or any(not isinstance(name, str) for name in names):
        raise ValueError(f"rankings must be names, of {', '.join(_OURS)}, or a mapping of names to importances")
    named = dict(rankings) if isinstance(rankings, Mapping) else {name: name for name in names}
    examples = AttentionExamples(model, layer, inputs, additional_forward_args, query, run, max_examples_per_batch)
    importances = _Importances(examples, seed)
    orders = [importances.ranks(name, ranking) for name, ranking in named.items()]
    before = examples.probabilities(torch.arange(examples.n, device=examples.device)).argmax(1)
    results = [_erase_until(examples, order, before) for order in orders]
    fraction, flipped = (torch.stack(parts) for parts in zip(*results, strict=True))
    return FractionToFlip(tuple(named), fraction, flipped)


class _Importances:
    def __init__(self, examples: AttentionExamples, seed: int) -> None:
        self._examples, self._seed = examples, seed

    def ranks(self, name: str, ranking: str | Tensor) -> Tensor:
        """(N, positions) the place of each in the order, 0 first; those that a mask hides come last."""
        values = self._named(name, ranking) if isinstance(ranking, str) else ranking
        weights = self._examples.weights
        if not isinstance(values, Tensor) or values.shape != weights.shape:
            received = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"ranking {name!r} must hold importances {tuple(weights.shape)}, but is {received}")
        values = values.detach().to(weights.device).double()
        if not bool(values[self._examples.live].isfinite().all()):
            raise ValueError(f"ranking {name!r} contains NaN or infinity")
        return ranks(values.masked_fill(~self._examples.live, -torch.inf))

    def _named(self, name: str, ranking: str) -> Tensor:
        weights = self._examples.weights
        if ranking == "attention":
            return weights
        if ranking == "random":
            generator = torch.Generator().manual_seed(derived_seed(self._seed, "random ranking"))
            return torch.rand(weights.shape, generator=generator, dtype=torch.float64, device="cpu")
        if ranking not in _OURS:
            raise ValueError(f"ranking {name!r} must be one of {', '.join(_OURS)}, or importances, but is {ranking!r}")
        return self._examples.gradients(multiply_by_weights=ranking != "gradient")


def _erase_until(examples: AttentionExamples, order: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """For each example the fraction erased at the first flip, 1 for none, and whether there is one.

    Erasures run side by side: of one position, then of two and three, and so on, twice as many each time.
    """
    positions = examples.live.sum(1)
    fraction = torch.ones(examples.n, dtype=torch.float64, device=order.device)
    flipped = torch.zeros(examples.n, dtype=torch.bool, device=order.device)
    most, done, size = int(positions.max()), 0, 1
    while done + 1 < most:
        rows = (~flipped & (positions > done + 1)).nonzero().flatten()
        if not len(rows):
            break
        size = min(size, max(1, examples.at_once // len(rows)), most - 1 - done)
        counts = torch.arange(done + 1, done + size + 1, device=order.device)
        # One position is left at least; none is erased that a mask hides, as they come last.
        k, r = (counts[:, None] < positions[rows]).nonzero(as_tuple=True)
        flips = torch.zeros(len(counts), len(rows), dtype=torch.bool, device=order.device)
        predicted = examples.probabilities(rows[r], order[rows[r]] < counts[k, None]).argmax(1)
        flips[k, r] = predicted != before[rows[r]]
        first, flipped[rows] = flips.int().argmax(0), flips.any(0)
        fraction[rows] = torch.where(flips.any(0), counts[first] / positions[rows].double(), 1.0)
        done, size = done + size, 2 * size
    return fraction, flipped
