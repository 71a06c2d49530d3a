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

A token's score is the ledger's input column, or all that sits at the token: input, bias and remainder.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_density.attr import Ledger, LogitLedger
from tests.experiments.faithfulness_tasks import BLANK, EXAMPLES, Decoder, prompts, recall

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.experiments.recall", description=__doc__.partition("\n")[0])
    parser.add_argument("--states", type=Path, help="folder that keeps trained models from one run to the next")
    arguments = parser.parse_args()
    rows = [measures(decoder(seed, arguments.states), seed) for seed in range(SEEDS)]
    summary = {name: {key: [row[name][key] for row in rows] for key in rows[0][name]} for name in rows[0]}
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
    losses = ablation(model, embeddings, answers)
    result = {}
    for name, choice in rules.items():
        ledger = LogitLedger(model, rules=choice).attribute(inputs_embeds=embeddings, targets=answers)
        for kind, score in SCORES.items():
            scores = score(ledger)
            result[f"{name}: {kind}"] = {
                "on top": float((scores.argmax(1) == deciding).float().mean()),
                "rank correlation": correlation(ranks(scores), ranks(losses)),
                "correlation": correlation(scores, losses),
                "unaccounted": unaccounted(ledger),
                "gap": float(ledger.gap().max()),
            }
    return result


def ablation(model: Decoder, embeddings: Tensor, answers: Tensor) -> Tensor:
    """(N, L) what the answer's logit loses when each token alone is blank."""
    whole = model(embeddings).gather(1, answers[:, None])
    losses = []
    for position in range(embeddings.size(1)):
        without = embeddings.clone()
        without[:, position] = model.embed.weight[BLANK]
        losses.append(whole - model(without).gather(1, answers[:, None]))
    return torch.cat(losses, 1)


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
        means = [sum(row[key]) / len(row[key]) if key != "gap" else max(row[key]) for key in keys]
        cells = [f"{mean:.1g}" if key == "gap" else f"{mean:.2f}" for key, mean in zip(keys, means, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
