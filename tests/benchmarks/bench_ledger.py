"""The ledger of a logit against a plain backward pass, and of a continuation against one call for each token.

Goal: at most 1.5 times InputXGradient's memory.

Run from the root of the repository: python -m tests.benchmarks.bench_ledger --help
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from captum.attr import InputXGradient
from torch import Tensor, nn

from captum_density.attr import LogitLedger
from captum_density.rules import BalancedGradients
from tests.benchmarks.harness import Call, Case, Comparison, compare, table, write

VOCABULARY = 1000
GENERATED = 32
REFERENCE = "InputXGradient"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_ledger",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--families", nargs="+", choices=("llama", "gpt2"), default=("llama",))
    parser.add_argument("--lengths", nargs="+", type=int, default=(64, 256, 1024), help="tokens")
    parser.add_argument("--layers", nargs="+", type=int, default=(2, 8, 24))
    parser.add_argument("--continued", nargs="*", type=int, default=(2, 8), help="layers of models that go on")
    parser.add_argument("--width", type=int, default=256, help="in heads of 64")
    parser.add_argument("--rules", nargs="+", default=("jacobian", "libragrad"))
    parser.add_argument("--baselines", action="store_true", help="the ledger against a baseline, too")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--shared", action="store_true", help="time of the process, where others share the machine")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/ledger.json"), help="file to write")
    arguments = parser.parse_args()

    comparisons = []
    for family in arguments.families:
        for layers in arguments.layers:
            for length in arguments.lengths:
                setting = (family, layers, length, arguments.width)
                cases: dict[str, Case] = {REFERENCE: partial(plain, None, *setting)}
                for rules in arguments.rules:
                    if rules != "jacobian":
                        cases[f"{REFERENCE}, {rules}"] = partial(plain, rules, *setting)
                    cases[f"ledger, {rules}"] = partial(ledger, rules, *setting)
                if arguments.baselines:
                    cases["ledger, baselines"] = partial(ledger, "jacobian", *setting, baselines=0)
                comparisons.append(
                    _compared(f"{family}, {layers} layers, {length} tokens", cases, REFERENCE, arguments)
                )
        for layers in arguments.continued:
            setting = (family, layers, min(arguments.lengths), arguments.width)
            cases = {"one by one": partial(one_by_one, *setting), "together": partial(together, *setting)}
            title = f"{family}, {layers} layers, {GENERATED} tokens after {min(arguments.lengths)}"
            comparisons.append(_compared(title, cases, "one by one", arguments))
    facts = {key: getattr(arguments, key) for key in ("runs", "width")}
    write(arguments.out, comparisons, device="cpu", threads=arguments.threads, **facts)
    print(f"\n{table(comparisons)}\n\nwritten to {arguments.out}")


def _compared(title: str, cases: dict[str, Case], reference: str, arguments: argparse.Namespace) -> Comparison:
    comparison = compare(
        title,
        cases,
        reference=reference,
        runs=arguments.runs,
        warm_up=1,
        threads=arguments.threads,
        memory=not arguments.no_memory,
        clock=time.process_time if arguments.shared else None,
    )
    print(table([comparison]), flush=True)
    return comparison


def decoder(family: str, layers: int, length: int, width: int) -> tuple[Any, Tensor]:
    """A decoder with random weights, and a prompt (1, length)."""
    import transformers

    heads = max(1, width // 64)
    if family == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=heads, n_positions=2048
        )
        model: nn.Module = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=2048,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False).eval(), ids


def plain(rules: str | None, family: str, layers: int, length: int, width: int) -> Call:
    """Gradient x input of the next token's logit."""
    model, ids = decoder(family, layers, length, width)
    embeddings = model.get_input_embeddings()(ids).requires_grad_()
    view = model if rules is None else BalancedGradients(model, rules)

    def logits(x: Tensor) -> Tensor:
        return view(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, -1]

    method = InputXGradient(logits)
    return lambda: method.attribute(embeddings, target=7).sum(2)


def ledger(rules: str, family: str, layers: int, length: int, width: int, baselines: int | None = None) -> Call:
    model, ids = decoder(family, layers, length, width)
    method = LogitLedger(model, rules=None if rules == "jacobian" else rules)
    return lambda: method.attribute(ids, targets=7, baselines=baselines)


def together(family: str, layers: int, length: int, width: int) -> Call:
    """Every token of a continuation, of one run."""
    model, ids = decoder(family, layers, length + GENERATED, width)
    method = LogitLedger(model)
    return lambda: method.attribute(ids, targets=slice(length, None))


def one_by_one(family: str, layers: int, length: int, width: int) -> Call:
    """Every token of a continuation, of a run each."""
    model, ids = decoder(family, layers, length + GENERATED, width)
    method = LogitLedger(model)

    def call() -> list[object]:
        steps = range(length, length + GENERATED)
        return [method.attribute(ids[:, :step], targets=int(ids[0, step])) for step in steps]

    return call


if __name__ == "__main__":
    main()
