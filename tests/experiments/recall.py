"""Which token decides? Ledgers of a decoder of which it is known, by rule set.

`OMP_NUM_THREADS=1 python -m tests.experiments.recall` trains the recall task's 2-layer decoder with three seeds and
writes tests/experiments/results/recall.json, of which `tutorials/guides/ledger.md` has the numbers. A prompt is key,
value, key, value, ..., key; the answer is the last key's value. What is explained is the answer's logit, as the model
returns it, in float64.

- *on top*: the share of prompts in which the value that decides has the largest score of all tokens;
- *rank correlation* (Spearman's) and *correlation* (Pearson's) of the scores of a prompt's tokens with what the logit
  loses when a token alone is replaced by the decoder's blank, averaged over prompts;
- *unaccounted*: the part of the logit that is not on the tokens themselves: |bias + remainder| / |logit|;
- *gap*: the largest of `Ledger.gap`.

A token's score is the ledger's input column, or all that sits at the token: input, bias and remainder. Against a
baseline, the prompt of which every token is blank, these are one; what was chosen there (which baseline, how many
halves) was chosen on seeds 10 to 12, `--first 10`.

How far a rank correlation can go is told by *replacements* of another kind: the same loss where a token becomes another
of its kind (mean over 20), or the mean embedding; and by Shapley values of the tokens (30 orders).
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_density.attr import Ledger, LogitLedger
from tests.experiments.faithfulness_tasks import BLANK, EXAMPLES, KEYS, Decoder, prompts, recall

RESULTS = Path(__file__).parent / "results" / "recall.json"
SEEDS = 3
_ATTENTION = "scaled_dot_product_attention softmax matmul bmm baddbmm".split()
RULES: Mapping[str, Any] = {
    "none (FullGrad)": None,
    "libragrad": "libragrad",
    "attnlrp": "attnlrp",
    "cp-lrp": "cp-lrp",
    "libragrad, attention's own derivative": {"default": "libragrad", **dict.fromkeys(_ATTENTION, "jacobian")},
}
SCORES = {
    "input": lambda ledger: ledger.by_position()[:, :-1, 0],
    "all at the token": lambda ledger: ledger.by_position()[:, :-1].sum(2),
}
HALVES = {"against blanks": 0, "against blanks, 1 half": 1, "against blanks, 4 halves": 4}
BOUNDS = ("another token of its kind", "the mean embedding", "Shapley values")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.recall", description=__doc__.partition("\n")[0])
    parser.add_argument("--states", type=Path, help="folder that keeps trained models from one run to the next")
    parser.add_argument("--first", type=int, default=0, help="the first seed; results are written where it is 0")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + SEEDS)
    rows = [measures(decoder(seed, arguments.states), seed) for seed in seeds]
    summary = {name: {key: [row[name][key] for row in rows] for key in rows[0][name]} for name in rows[0]}
    if arguments.first == 0:
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(table(summary))


def decoder(seed: int, states: Path | None) -> Decoder:
    path = None if states is None else states / f"recall_{seed}.pt"
    if path is None or not path.exists():
        model: Decoder = recall(seed).model.model
        if path is not None:
            torch.save(model.state_dict(), path)
        return model
    model = Decoder().requires_grad_(False).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def measures(model: Decoder, seed: int, rules: Mapping[str, Any] = RULES) -> dict[str, dict[str, float]]:
    """Of every rule set and kind of score, what is said above."""
    model = model.double()
    ids, _, deciding = prompts(EXAMPLES, torch.Generator().manual_seed(1000 + seed))
    embeddings = model.embed(ids)
    answers = model(embeddings).argmax(1)
    losses = ablation(model, embeddings, answers, model.embed.weight[BLANK])
    result = {}

    def note(name: str, scores: Tensor, ledger: Ledger | None = None) -> None:
        result[name] = {
            "on top": float((scores.argmax(1) == deciding).float().mean()),
            "rank correlation": correlation(ranks(scores), ranks(losses)),
            "correlation": correlation(scores, losses),
        }
        if ledger is not None:
            result[name] |= {"unaccounted": unaccounted(ledger), "gap": float(ledger.gap().max())}

    for name, choice in rules.items():
        ledger = LogitLedger(model, rules=choice).attribute(inputs_embeds=embeddings, targets=answers)
        for kind, score in SCORES.items():
            note(f"{name}: {kind}", score(ledger), ledger)
    for name, halves in HALVES.items():
        generator = torch.Generator().manual_seed(seed)
        against = {"baselines": model.embed.weight[BLANK], "halves": halves, "generator": generator}
        ledger = LogitLedger(model).attribute(inputs_embeds=embeddings, targets=answers, **against)
        note(f"{name}: input", ledger.inputs, ledger)
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(KEYS, (20, *ids.shape), generator=generator) + KEYS * (ids >= KEYS)
    bounds = [
        torch.stack([ablation(model, embeddings, answers, model.embed(other)) for other in others]).mean(0),
        ablation(model, embeddings, answers, model.embed.weight[:BLANK].mean(0)),
        shapley_values(model, embeddings, answers, generator),
    ]
    for name, scores in zip(BOUNDS, bounds, strict=True):
        note(name, scores)
    return result


def ablation(model: Decoder, embeddings: Tensor, answers: Tensor, replacement: Tensor) -> Tensor:
    """(N, L) what the answer's logit loses when each token alone is replaced, by (E,) or (N, L, E)."""
    f = _logit(model, answers)
    losses = []
    for position in range(embeddings.size(1)):
        without = embeddings.clone()
        without[:, position] = replacement.expand_as(embeddings)[:, position]
        losses.append(f(embeddings) - f(without))
    return torch.stack(losses, 1)


def shapley_values(
    model: Decoder, embeddings: Tensor, answers: Tensor, generator: torch.Generator, orders: int = 30
) -> Tensor:
    """(N, L) what the answer's logit gains, on average, when each token takes a blank's place, in random orders."""
    f, rows = _logit(model, answers), torch.arange(len(embeddings))
    gains = embeddings.new_zeros(embeddings.shape[:2])
    for _ in range(orders):
        order = torch.rand(gains.shape, generator=generator).argsort(1)
        current = model.embed.weight[BLANK].expand_as(embeddings).clone()
        before = f(current)
        for position in order.T:
            current[rows, position] = embeddings[rows, position]
            after = f(current)
            gains[rows, position] += (after - before) / orders
            before = after
    return gains


def _logit(model: Decoder, answers: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda embeddings: model(embeddings).gather(1, answers[:, None]).squeeze(1)


def unaccounted(ledger: Ledger) -> float:
    return float((1 - ledger.inputs.sum(1) / ledger.output).abs().mean())


def ranks(values: Tensor) -> Tensor:
    return values.argsort(1).argsort(1).double()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of each row, averaged."""
    pairs = [torch.corrcoef(torch.stack([x, y]).double())[0, 1] for x, y in zip(a, b, strict=True)]
    return float(torch.stack(pairs).mean())


def table(summary: Mapping[str, Mapping[str, list[float]]]) -> str:
    keys = list(next(iter(summary.values())))
    lines = ["| rules: score | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    for name, row in summary.items():
        cells = [_cell(key, row.get(key, [])) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, values: list[float]) -> str:
    if not values:
        return ""
    return f"{max(values):.1g}" if key == "gap" else f"{sum(values) / len(values):.2f}"


if __name__ == "__main__":
    main()
