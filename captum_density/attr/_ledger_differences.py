"""A ledger against baselines: what each token adds to the logit that the baselines have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from captum_density._linear.ledger import TermTable
from captum_density._linear.sweep import Sweep
from captum_density._model.batch import ModelOnBatch
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import expanded_baselines
from captum_density.attr._complete_deep_lift import multipliers_of
from captum_density.attr._prompts import Outputs, Prompt

__all__ = ["BASELINE", "check_halves", "differences", "embedded_baselines"]

BASELINE = "baseline:output"


def check_halves(halves: Any, baselines: Any, rules: Any) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: No baselines, or rules beside them; a count that is none.
    """
    if isinstance(halves, bool) or not isinstance(halves, int) or halves < 0:
        raise ValueError(f"halves must be a number of random halves, 0 or more, but is {halves!r}")
    if baselines is None and halves:
        raise ValueError("halves are of tokens that stand in place of baselines; pass baselines, or leave halves out")
    if baselines is not None and rules is not None:
        raise ValueError(
            "against baselines every operation has its discrete gradient, and rules choose maps at one point: leave "
            "out baselines, or rules"
        )


def embedded_baselines(prompt: Prompt, baselines: Any, look_up: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """x' for each of the embeddings (N, L, E).

    Args:
        prompt: What the model is given.
        baselines: As `LogitLedger.attribute`.
        look_up: Of which of the embeddings, and ids: their embeddings.

    Raises:
        TypeError: Ids of a model without input embeddings.
        ValueError: Baselines that are not as many as the embeddings, or do not fit.
    """
    xs = tuple(prompt.embeddings.values())
    values = list(baselines) if isinstance(baselines, tuple) else [baselines] * len(xs)
    if len(values) != len(xs):
        raise ValueError(f"pass one baseline, or one for each of {len(xs)} inputs, not {len(values)}")
    for i, (x, value) in enumerate(zip(xs, values, strict=True)):
        if value is None:
            values[i] = x
            continue
        ids = torch.as_tensor(value, device=x.device)
        if ids.is_floating_point():
            continue
        if ids.ndim > 2 or ids.numel() == 0 or (ids.ndim and ids.size(-1) not in (1, x.size(1))):
            raise ValueError(
                f"baselines must be a token's id, (L,) or (N, L) ids of L = {x.size(1)} tokens, or floating-point "
                f"embeddings, but are {tuple(ids.shape)} {ids.dtype}"
            )
        values[i] = look_up(i, ids.reshape(1, -1) if ids.ndim < 2 else ids)
    return expanded_baselines(tuple(values), xs)


def differences(
    outputs: Outputs, prompt: Prompt, others: tuple[Any, ...], starts: tuple[Tensor, ...], halves: int,
    generator: torch.Generator | None,
) -> list[Sweep[TermTable]]:  # fmt: skip
    """For each of K outputs the tokens' shares of f(x) - f(x'), and f(x').

    Args:
        outputs: The model as a function of its embeddings.
        prompt: What it is given.
        others: What it takes after the embeddings.
        starts: x' for each of the embeddings.
        halves: As `LogitLedger.attribute`.
        generator: As `LogitLedger.attribute`.
    """
    xs = tuple(prompt.embeddings.values())
    batch = ModelOnBatch(outputs, xs, None, others, name="model")
    with batch.evaluation(), torch.no_grad():
        ends, bases = batch.run(xs), batch.run(starts)
    dtype = accumulation_dtype(*xs)
    columns = sum(x.size(1) for x in xs)
    chosen = list(_halves(prompt, halves, generator))
    result = []
    for k in range(ends.size(1)):

        def step(a: tuple[Tensor, ...], b: tuple[Tensor, ...], k: int = k) -> Tensor:
            """(N, P) from a to b."""
            lifted = multipliers_of(ModelOnBatch(outputs, b, k, others, name="model"), a)
            parts = zip(lifted, a, b, strict=True)
            return torch.cat([(m.to(dtype) * (y.to(dtype) - x.to(dtype))).sum(2) for m, x, y in parts], 1)

        shares = step(starts, xs)
        if chosen:
            paths = torch.zeros_like(shares)
            for half in chosen:
                for first in (half, [~part for part in half]):
                    middle = tuple(
                        torch.where(part[..., None].to(x.device), x, b)
                        for part, x, b in zip(first, xs, starts, strict=True)
                    )
                    paths += step(starts, middle) + step(middle, xs)
            shares = (shares + paths / (2 * len(chosen))) / 2
        base = bases[:, k].detach().to(dtype)
        sums = base.new_zeros(1, prompt.n, columns + 1)
        sums[0, :, -1] = base.to(sums.device)
        result.append(Sweep(ends[:, k].detach(), TermTable(shares, [(BASELINE, True)], sums)))
    return result


def _halves(prompt: Prompt, count: int, generator: torch.Generator | None) -> Iterator[list[Tensor]]:
    """Of each of the embeddings (N, L) whether a position is in a random half of its row's tokens.

    Rows of as many tokens have the same, wherever their padding is, so that a batch equals single rows.
    """
    if not count:
        return
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    masks = prompt.masks()
    for i in range(count):
        half = torch.cat(masks, 1)
        for row in half:
            at = row.nonzero().squeeze(1)
            order = torch.randperm(len(at), generator=torch.Generator("cpu").manual_seed(seed + i), device="cpu")
            row[at[order[len(at) // 2 :]]] = False
        yield list(half.split([mask.size(1) for mask in masks], 1))
