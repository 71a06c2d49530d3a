"""The ledger of a logit: its terms by layer, position and kind, and how to add them up."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_density.attr._ledger_page import ledger_picture, ledger_section, page
from captum_density.attr._words import words_of

__all__ = ["KINDS", "NO_POSITION", "Ledger", "LedgerEntry", "LedgerTarget", "LedgerTerm"]

KINDS = ("input", "bias", "remainder")
NO_POSITION = "no position"


@dataclass(frozen=True)
class LedgerTarget:
    """What a ledger explains.

    Attributes:
        row: The row of the batch.
        position: Where the logit is read, a position of the ledger; None where the model has one output for each row.
        token: The id of the explained token, or the class.
        contrast: The id of the token whose logit is subtracted, None without.
        log_prob: Whether it is the token's log-probability.
        label: The token in words.
    """

    row: int
    position: int | None
    token: int
    contrast: int | None = None
    log_prob: bool = False
    label: str = ""

    def __str__(self) -> str:
        what = repr(self.label) if self.label else str(self.token)
        what += "" if self.contrast is None else f" against {self.contrast}"
        where = "" if self.position is None else f" at {self.position}"
        return f"row {self.row}: {'log p of ' if self.log_prob else ''}{what}{where}"


@dataclass(frozen=True)
class LedgerTerm:
    """What one operation leaves.

    Attributes:
        name: "module.path:operation", numbered "#2", "#3", ... where it runs again.
        layer: The layer, a number of `Ledger.layers`.
        kind: "bias", a constant that the operation adds, or "remainder", what its linear map leaves of a nonlinear one.
    """

    name: str
    layer: int
    kind: str

    @property
    def module(self) -> str:
        """The module's path, "" outside all."""
        return self.name.rpartition(":")[0]


@dataclass(frozen=True)
class LedgerEntry:
    """One cell of a ledger.

    Attributes:
        value: Its share of the logit.
        kind: "input", "bias" or "remainder".
        layer: The layer, in words.
        position: The position, None without.
        token: The token there, in words.
    """

    value: float
    kind: str
    layer: str
    position: int | None
    token: str

    def __str__(self) -> str:
        where = "" if self.position is None else f" {self.position}"
        return f"{self.value:+.4g}  {self.kind}, layer {self.layer}, {self.token!r}{where}"


@dataclass(frozen=True)
class Ledger:
    """For each explained token, a table of layers x positions x {input, bias, remainder}, which sums to its logit.

    See `LogitLedger`, which makes it. T tokens are explained, over P positions and K layers; of the Q = P + 1 columns
    of a table the last is what has no position, as what is left after pooling.

    Attributes:
        output: (T,) the logits, or contrasts or log-probabilities.
        targets: What is explained: T records of row, position, token (an id, or a class), contrast, log_prob and label.
        layers: The K layers in words: "embedding", "0", "1", ..., "final"; those of an encoder first.
        tokens: The P tokens in words, of each row of the batch.
        inputs: (T, P) the input terms, of layer "embedding".
        terms: What all other terms are of: records of name ("module.path:operation"), module, layer (a number of
            `layers`) and kind: "bias", constants that the operation adds; "remainder", what its linear map leaves.
        sums: (T, M, Q) these M terms, at each position.
    """

    output: Tensor
    targets: list[LedgerTarget]
    layers: list[str]
    tokens: list[list[str]]
    inputs: Tensor
    terms: list[LedgerTerm]
    sums: Tensor

    # -- sums

    def table(self) -> Tensor:
        """(T, K, Q, 3) all there is: layers x positions x {input, bias, remainder}."""
        table = self.inputs.new_zeros(len(self), len(self.layers), self.inputs.size(1) + 1, 3)
        table[:, 0, :-1, 0] = self.inputs
        for kind in (1, 2):
            chosen = [i for i, term in enumerate(self.terms) if term.kind == KINDS[kind]]
            layers = torch.tensor([self.terms[i].layer for i in chosen], dtype=torch.int64, device=table.device)
            table[..., kind].index_add_(1, layers, self.sums[:, chosen])
        return table

    def by_layer(self) -> Tensor:
        """(T, K, 3) summed over positions."""
        return self.table().sum(2)

    def by_position(self) -> Tensor:
        """(T, Q, 3) summed over layers; of these [..., 0] is what the tokens themselves have."""
        return self.table().sum(1)

    def by_module(self) -> dict[str, Tensor]:
        """(T, 3) of each module that leaves anything, by its path, in the order in which they run; "input" first."""
        result = {"input": self.inputs.new_zeros(len(self), 3)}
        result["input"][:, 0] = self.inputs.sum(1)
        for i, term in enumerate(self.terms):
            if term.module not in result:
                result[term.module] = self.inputs.new_zeros(len(self), 3)
            result[term.module][:, KINDS.index(term.kind)] += self.sums[:, i].sum(1)
        return result

    def top(self, k: int = 10) -> list[list[LedgerEntry]]:
        """The k cells of largest absolute value for each explained token, largest first.

        Args:
            k: How many, at least 1.

        Returns:
            T lists of records of value, kind, layer, position (None without) and token.

        Raises:
            ValueError: `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, but is {k}")
        table = self.table()
        result = []
        for cells, target in zip(table, self.targets, strict=True):
            flat = cells.flatten()
            order = flat.abs().argsort(descending=True, stable=True)[:k]
            at = torch.unravel_index(order, cells.shape)
            words = [*self.tokens[target.row], NO_POSITION]
            entries = [
                LedgerEntry(
                    float(flat[i]), KINDS[kind], self.layers[layer], p if p < len(words) - 1 else None, words[p]
                )
                for i, layer, p, kind in zip(order.tolist(), *(d.tolist() for d in at), strict=True)
            ]
            result.append(entries)
        return result

    # -- the check

    def total(self) -> Tensor:
        """(T,) the sum of all terms, which equals `output` up to rounding; float64."""
        return self.inputs.double().sum(1) + self.sums.double().sum((1, 2))

    def gap(self) -> Tensor:
        """(T,) |total - output| over the sum of the terms' absolute values: in [0, 1], lower is better; float64."""
        size = self.inputs.double().abs().sum(1) + self.sums.double().abs().sum((1, 2))
        return (self.total() - self.output.double()).abs() / size.clamp(min=torch.finfo(torch.float64).tiny)

    # -- parts

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int | slice) -> Ledger:
        """The ledger of one explained token, or of several.

        Raises:
            IndexError: There are fewer.
        """
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"a ledger of {len(self)} tokens has no number {index}")
            index = slice(index % len(self), index % len(self) + 1)
        return replace(
            self, output=self.output[index], targets=self.targets[index], inputs=self.inputs[index],
            sums=self.sums[index],
        )  # fmt: skip

    def __iter__(self) -> Iterator[Ledger]:
        return (self[i] for i in range(len(self)))

    def merge(self, words: Sequence[int | None] | None = None) -> Ledger:
        """The ledger over words, each the sum of its sub-word tokens.

        Args:
            words: For each position the number of its word, as a tokenizer's `word_ids()`; None for a position that
                stands alone. Left out, words are read from the tokens' marks: "##" continues one, "Ġ" and "▁" begin
                one.

        Returns:
            The ledger, whose positions, the targets' among them, are words.

        Raises:
            ValueError: The explained tokens are of several rows, whose words differ; or `words` is of another length.

        Example:
            >>> import torch
            >>> from captum_density.attr import LogitLedger
            >>> model = torch.nn.Linear(4, 3)
            >>> ledger = LogitLedger(model).attribute(inputs_embeds=torch.randn(1, 3, 4), targets=0)
            >>> ledger.merge([0, 0, 1]).inputs.shape
            torch.Size([1, 2])
        """
        rows = {target.row for target in self.targets}
        if len(rows) != 1:
            raise ValueError(
                f"words differ by row, and these tokens are of {len(rows)} rows; merge each, as ledger[i].merge(...)"
            )
        (row,) = rows
        tokens = self.tokens[row]
        groups, names = words_of(tokens, words)
        index = torch.tensor(groups, dtype=torch.int64, device=self.inputs.device)
        columns = torch.cat([index, index.new_tensor([len(names)])])
        inputs = self.inputs.new_zeros(len(self), len(names)).index_add_(1, index, self.inputs)
        sums = self.sums.new_zeros(*self.sums.shape[:2], len(names) + 1).index_add_(2, columns, self.sums)
        targets = [t if t.position is None else replace(t, position=groups[t.position]) for t in self.targets]
        named = [names if i == row else own for i, own in enumerate(self.tokens)]
        return replace(self, targets=targets, tokens=named, inputs=inputs, sums=sums)

    # -- what to look at

    def to_dict(self) -> dict[str, Any]:
        """Numbers and strings alone, for JSON: for each explained token its target, output, gap, and table.

        Returns:
            A dictionary of "layers", "kinds", and "ledgers": of each token "target", "output", "gap", "tokens" (the
            last is what has no position) and "table" (layers x positions x kinds).
        """
        ledgers = [
            {
                "target": vars(target).copy(),
                "output": float(output),
                "gap": float(gap),
                "tokens": [*self.tokens[target.row], NO_POSITION],
                "table": table.tolist(),
            }
            for target, output, gap, table in zip(self.targets, self.output, self.gap(), self.table(), strict=True)
        ]
        return {"layers": self.layers, "kinds": list(KINDS), "ledgers": ledgers}

    def to_html(self) -> str:
        """A page: of each explained token, the tokens coloured, and a heat map of layers and tokens.

        Nothing is loaded from elsewhere, and all text is escaped.
        """
        return page([self._section(i) for i in range(len(self))])

    def _section(self, i: int) -> str:
        target = self.targets[i]
        table, gap = self[i].table()[0], float(self[i].gap())
        return ledger_section(str(target), float(self.output[i]), gap, self.tokens[target.row], self.layers, table)

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, index: int = 0) -> Figure:
        """A picture of one explained token: a heat map of layers and positions, and the tokens' sums below.

        Args:
            index: Which of the explained tokens.

        Returns:
            A figure, free of pyplot's state. Save it with `figure.savefig("ledger.png")`.

        Raises:
            IndexError: There are fewer.
        """
        one = self[index]
        (target,) = one.targets
        return ledger_picture(str(target), float(one.output), self.tokens[target.row], self.layers, one.table()[0])

    def __repr__(self) -> str:
        head = f"Ledger of {len(self)} tokens, {len(self.layers)} layers x {self.inputs.size(1)} positions"
        lines = [f"  {'':<40}{'output':>11}{'input':>11}{'bias':>11}{'remainder':>11}{'gap':>8}"]
        kinds, gaps = self.table().sum((1, 2)), self.gap()
        for target, output, (x, b, r), gap in zip(self.targets[:10], self.output, kinds.tolist(), gaps, strict=False):
            name = str(target)
            name = name if len(name) < 40 else name[:37] + "..."
            lines.append(f"  {name:<40}{float(output):>11.4g}{x:>11.4g}{b:>11.4g}{r:>11.4g}{float(gap):>8.1g}")
        if len(self) > 10:
            lines.append(f"  ... and {len(self) - 10} more")
        return "\n".join([head, *lines])
