"""Gradients under rules, FullGrad on them and CompleteDeepLift, against Captum's InputXGradient: time and peak memory.

Goals, from width 512 on: InputXGradient of BalancedGradients at most 1.25 times the time and 1.2 times the memory of
InputXGradient; from length 512 on, FullGrad of BalancedGradients at most 2 times the time; CompleteDeepLift at most 4.

Run from the root of the repository: python -m tests.benchmarks.bench_rules --help
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from captum.attr import Attribution, InputXGradient
from torch import Tensor, nn

from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.rules import BalancedGradients
from tests.benchmarks.harness import Call, Case, compare, table, write

MODELS = ("vit_b_16", "bert", "llama")
LENGTHS = (64, 256, 512, 1024)
RULES = ("libragrad", "attnlrp", "cp-lrp")
REFERENCE = "InputXGradient"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_rules",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="a length is of text models alone")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens")
    parser.add_argument("--width", type=int, default=512, help="of the text models, in heads of 64")
    parser.add_argument("--layers", type=int, default=4, help="of the text models")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES[:1], help="rule sets")
    parser.add_argument("--batch-size", type=int, default=2, help="examples per call")
    parser.add_argument("--runs", type=int, default=10, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/rules.json"), help="file to write")
    arguments = parser.parse_args()

    comparisons = []
    for name in arguments.models:
        for length in (None,) if name == "vit_b_16" else arguments.lengths:
            setting = (name, length, arguments.width, arguments.layers, arguments.batch_size, arguments.device)
            cases: dict[str, Case] = {
                REFERENCE: partial(plain, *setting),
                "FullGrad": partial(full_grad, None, *setting),
            }
            for rules in arguments.rules:
                cases[f"InputXGradient, {rules}"] = partial(balanced, rules, *setting)
                cases[f"FullGrad, {rules}"] = partial(full_grad, rules, *setting)
            cases["CompleteDeepLift"] = partial(deep_lift, *setting)
            comparison = compare(
                name if length is None else f"{name}, {length} tokens",
                cases,
                reference=REFERENCE,
                device=arguments.device,
                runs=arguments.runs,
                threads=arguments.threads,
                memory=not arguments.no_memory,
            )
            comparisons.append(comparison)
            print(table([comparison]), flush=True)
    facts = {key: getattr(arguments, key) for key in ("batch_size", "runs", "width", "layers")}
    write(arguments.out, comparisons, device=arguments.device, threads=arguments.threads, **facts)
    print(f"\n{table(comparisons)}\n\nwritten to {arguments.out}")


def plain(*setting: Any) -> Call:
    return _call(InputXGradient, *setting)


def balanced(rules: str, *setting: Any) -> Call:
    return _call(lambda model: InputXGradient(BalancedGradients(model, rules)), *setting)


def full_grad(rules: str | None, *setting: Any) -> Call:
    def make(model: Callable[..., Tensor]) -> Attribution:
        return FullGrad(model if rules is None else BalancedGradients(model, rules), complete=True)

    return _call(make, *setting)


def deep_lift(*setting: Any) -> Call:
    return _call(CompleteDeepLift, *setting)


def _call(make: Callable[[Callable[..., Tensor]], Attribution], *setting: Any) -> Call:
    model, inputs = _setup(*setting)
    return partial(make(model).attribute, inputs, target=1)


def _setup(
    name: str, length: int | None, width: int, layers: int, batch_size: int, device: str
) -> tuple[Callable[..., Tensor], Tensor]:
    """Return a model in evaluation mode, with nothing left at 0 or 1, and inputs; the same on every call."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.vit_b_16() if length is None else _text_model(name, length, width, layers)
    model = model.eval().to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    # Captum's warning about inputs that do not require gradients is not what is timed.
    if length is None:
        return model, torch.randn(batch_size, 3, 224, 224, device=device).requires_grad_()
    embeddings = torch.randn(batch_size, length, width, device=device).requires_grad_()
    return (lambda x: model(inputs_embeds=x).logits), embeddings


def _text_model(name: str, length: int, width: int, layers: int) -> nn.Module:
    import transformers

    size: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 64),
        "vocab_size": 100, "pad_token_id": 0, "max_position_embeddings": length, "num_labels": 2,
    }  # fmt: skip
    if name == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**size, intermediate_size=4 * width))
    config = transformers.LlamaConfig(**size, intermediate_size=8 * width // 3, use_cache=False)
    return transformers.LlamaForSequenceClassification(config)


if __name__ == "__main__":
    main()
