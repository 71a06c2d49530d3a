"""From terms to a ledger: a reduction that keeps of each term its sums at the positions where it sits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density._linear.grids import Cells
from captum_density._linear.places import Lie, Spread
from captum_density._linear.sweep import Term, per_example

__all__ = ["LedgerSums", "TermTable"]


@dataclass(frozen=True)
class TermTable:
    """The terms of f(x), each summed at the positions of the inputs, one input after the other.

    Attributes:
        inputs: (N, P) the input terms.
        names: (operation, whether it is what the operation adds, a constant) of each other term, in forward order.
        sums: (terms, N, P + 1) these terms; the last column is what has no position.
    """

    inputs: Tensor
    names: list[tuple[str, bool]]
    sums: Tensor

    def of_names(self, names: Sequence[tuple[str, bool]]) -> Tensor:
        """The sums of terms in the order of these names, zeros of those that are absent."""
        if list(names) == self.names:
            return self.sums
        result = self.sums.new_zeros(len(names), *self.sums.shape[1:])
        at = {name: i for i, name in enumerate(names)}
        result[[at[name] for name in self.names]] = self.sums
        return result


class LedgerSums:
    """Sums of every term at every position.

    Args:
        lengths: How many positions each input has.
    """

    together = False

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._sums: dict[tuple[str, bool], Tensor] = {}

    def add(self, term: Term) -> Tensor:
        whole = self._placed(term.gradient, term.remainder, term.spread)
        if isinstance(term.constant, Tensor):
            constant = self._placed(term.gradient, term.constant, term.spread)
            self._sums[term.name, False] = whole - constant
            self._sums[term.name, True] = constant
        else:
            self._sums[term.name, term.constant] = whole
        return whole.sum(1)

    def result(self, products: list[Tensor], positions: Sequence[Sequence[int]]) -> TermTable:
        device = products[0].device
        inputs = torch.cat([product.flatten(2).sum(2).to(device) for product in products], 1)
        names = list(reversed(self._sums))
        columns = [self._sums[name].to(device) for name in names]
        sums = torch.stack(columns) if columns else inputs.new_zeros(0, len(inputs), inputs.size(1) + 1)
        return TermTable(inputs, names, sums)

    def join(self, results: list[TermTable]) -> TermTable:
        names = list(dict.fromkeys(name for result in results for name in result.names))
        sums = torch.cat([result.of_names(names) for result in results], 1)
        return TermTable(torch.cat([result.inputs for result in results]), names, sums)

    def _placed(self, gradient: Tensor, factor: Tensor, spread: Spread) -> Tensor:
        """(N, P + 1) sums of a product at each position, and of what has none."""
        lies = [spread.lies.get(i) for i in range(len(self._lengths))]
        (lie,) = lies if len(lies) == 1 else (None,)
        if lie is not None and spread.nowhere is False:
            placed = _at_positions(lie, _cell_sums(lie, gradient, factor), self._lengths[0])
            return torch.cat([placed, placed.new_zeros(len(placed), 1)], 1)
        values = gradient * factor
        columns = [
            values.new_zeros(len(values), length) if lie is None else _at_positions(lie, lie.sums(values), length)
            for lie, length in zip(lies, self._lengths, strict=True)
        ]
        placed = torch.cat(columns, 1)
        rest = (per_example(values) - placed.sum(1)) if spread.nowhere is not False else placed.new_zeros(len(placed))
        return torch.cat([placed, rest.unsqueeze(1)], 1)


def _cell_sums(lie: Lie, gradient: Tensor, factor: Tensor) -> Tensor:
    """(N, *cells) sums of a product over the elements of each cell."""
    along_last = factor.numel() == factor.shape[-1] == gradient.shape[-1] and lie.index.shape[-1] == 1
    if along_last and lie.share is None and gradient.ndim > 2:  # a bias, without the product
        gradient = (gradient @ factor.flatten()).unsqueeze(-1)
        return lie.sums(gradient)
    return lie.sums(gradient * factor)


def _at_positions(lie: Lie, sums: Tensor, length: int) -> Tensor:
    """(N, length) of sums by cell."""
    single = len(lie.axes) == 1 and lie.listed is None and not lie.axes[0].has_constants
    if single and lie.axes[0].cells is Cells.even(length, length):
        return sums
    # Positions that a model splits, as into chunks, lie on rows and columns.
    return lie.on_positions(sums, "area").reshape(len(sums), length)
