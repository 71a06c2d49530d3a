"""What is to be seen on a machine with one GPU, in a few minutes and without a network, as one file of JSON.

The tests marked `cuda`; how often a call waits for the GPU; short benchmarks; a language model of Llama's shape, of 1.2
billion parameters in bfloat16, explained by FullGrad and under BalancedGradients: time, peak memory, and by how much
the sum is missed. `.ci/gpu` runs it, from the root of the repository.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from captum.attr import Attribution, InputXGradient, Saliency
from torch import Tensor

from captum_density.attr import FullGrad
from captum_density.audit import audit
from captum_density.rules import BalancedGradients
from captum_density.samplers import LangevinSampler
from tests.benchmarks.harness import machine
from tests.waits import waits

# Seconds after which a part is stopped: all of them, 8 minutes at most. Each benchmark has its share.
SECONDS = {"tests": 150, "waits": 70, "benchmarks": 160, "language model": 80}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "small": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 100,
    },
}  # fmt: skip
LENGTHS = {"1b": 512, "small": 16}
# Of each benchmark its arguments, and those for the small size, for which it is left out where there are none.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "rules": (
        "--models bert llama --lengths 512 --width 1024 --runs 10 --no-memory --out",
        "--models llama --lengths 8 --width 64 --layers 1 --runs 1 --no-memory --out",
    ),
    "losses": (
        "--models resnet18 --samples 1 --batch-size 128 --runs 5 --repeats 4 --no-memory --json",
        "",
    ),
    "full_grad": (
        "--models resnet50 vit_b_16 swin_t --batch-size 16 --runs 10 --out",
        "--models resnet18 --batch-size 1 --runs 1 --out",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=".ci/gpu", description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b", help="of the language model and of the benchmarks")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/gpu.json"), help="file to write")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one part, in this process
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.alone:
        (part,) = arguments.parts
        content: dict[str, Any] = {}
        for name, figure in waits_by_call(arguments.size) if part == "waits" else language_model(arguments.size):
            content[name] = figure
            print(name, figure, flush=True)
            arguments.out.write_text(json.dumps(content), encoding="utf-8")  # what there is if it is stopped
        return

    report: dict[str, Any] = {"machine": machine("cuda"), "size": arguments.size}
    ran = True
    for part in arguments.parts:
        start = time.perf_counter()
        print(f"\n== {part}", flush=True)
        try:
            report[part] = of_part(part, arguments.size, arguments.out)
        except Exception as error:  # whatever it is, the other parts run
            report[part] = {"failed": [f"{type(error).__name__}: {error}"]}
        report[part]["seconds"] = round(time.perf_counter() - start, 1)
        ran = ran and not report[part]["failed"]
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")  # what there is by now
    print(f"\n{json.dumps(report, indent=2)}\n\nwritten to {arguments.out}")
    sys.exit(not ran)


def of_part(part: str, size: str, out: Path) -> dict[str, Any]:
    """What came of a part, and what of it failed."""
    until = time.perf_counter() + SECONDS[part]
    if part == "tests":
        failed, text = _run(
            ["-m", "pytest", "-m", "cuda and not slow", "-n0", "-q", "-p", "no:cacheprovider", "tests"], until
        )
        return {"failed": failed, "said": text.splitlines()[-1:]}
    if part != "benchmarks":
        path = out.with_name(f"{out.stem}-{part.replace(' ', '-')}.json")
        own = ["-m", "tests.benchmarks.gpu", "--alone", "--size", size, "--parts", part, "--out", str(path)]
        return _result(own, path, until)
    results: dict[str, Any] = {"failed": []}
    chosen = {name: both for name, both in BENCHMARKS.items() if size == "1b" or both[1]}
    for left, (name, (full, small)) in zip(range(len(chosen), 0, -1), chosen.items(), strict=True):
        now = time.perf_counter()
        path = out.with_name(f"{out.stem}-{name}.json")
        options = (full if size == "1b" else small).split()
        results[name] = _result(
            ["-m", f"tests.benchmarks.bench_{name}", "--device", "cuda", *options, str(path)],
            path,
            now + (until - now) / left,
        )
        results["failed"] += results[name].pop("failed")
    return results


def _result(command: list[str], path: Path, until: float) -> dict[str, Any]:
    path.unlink(missing_ok=True)
    failed, _ = _run(command, until)
    content: dict[str, Any] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # it was stopped before there was any, or while it was written
        failed = failed or [f"{' '.join(command)}: no results ({error})"]
    path.unlink(missing_ok=True)
    content.pop("machine", None)
    return {**content, "failed": failed}


def _run(command: list[str], until: float) -> tuple[list[str], str]:
    """Run Python; returns why it failed, if it did, and what it said."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what it started is stopped with it
    )
    try:
        text, _ = process.communicate(timeout=max(1.0, until - time.perf_counter()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        print(text)
        return [f"{' '.join(command)}: stopped, out of time"], text
    print(text, flush=True)
    return ([f"{' '.join(command)}: status {process.returncode}"] if process.returncode else []), text


def waits_by_call(size: str) -> Iterator[tuple[str, Any]]:
    """How often calls wait, second ones, beside a plain gradient of the same model."""
    names = ("resnet18", "densenet121", "vit_b_16", "swin_t") if size == "1b" else ("swin_t",)
    side = 224 if size == "1b" else 64
    with torch.device("cuda"):
        for name in names:
            model, images = torchvision.models.get_model(name).eval(), torch.randn(4, 3, side, side)
            target = torch.arange(4)
            calls = {
                "Saliency": partial(Saliency(model).attribute, images, target=target),
                "FullGrad": partial(FullGrad(model).attribute, images, target=target),
                "FullGrad, complete": partial(FullGrad(model, complete=True).attribute, images, target=target),
            }
            yield name, {what: {"first": waits(call), "then": waits(call)} for what, call in calls.items()}
        small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        digits = torch.rand(4, 1, 8, 8)
        yield "100 steps of Langevin", waits(partial(LangevinSampler(small, 0.1, 100).sample, digits))
        yield "audit of 4 examples", waits(partial(audit, small, (digits, target % 3), show_progress=False))


def language_model(size: str) -> Iterator[tuple[str, Any]]:
    """A causal language model's likeliest next token, explained at its embeddings."""
    import transformers

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            config = transformers.LlamaConfig(**SIZES[size], tie_word_embeddings=True, use_cache=False)
            model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
            tokens = torch.randint(config.vocab_size, (1, LENGTHS[size]))
            embeddings = model.get_input_embeddings()(tokens).detach()
    finally:
        torch.set_default_dtype(before)

    def next_token(x: Tensor) -> Tensor:
        return model(inputs_embeds=x, logits_to_keep=1).logits[:, -1].float()

    with torch.no_grad():
        logits = next_token(embeddings)
    target = int(logits.argmax())
    balanced = BalancedGradients(next_token, "libragrad")
    methods: dict[str, Attribution] = {
        "InputXGradient": InputXGradient(next_token),
        "FullGrad, complete": FullGrad(next_token, complete=True),
        "InputXGradient, balanced": InputXGradient(balanced),
        "FullGrad, complete, balanced": FullGrad(balanced, complete=True),
    }
    output = float(logits[0, target])
    yield "parameters", sum(parameter.numel() for parameter in model.parameters())
    yield "tokens", tokens.shape[1]
    yield "output", output
    for name, attribution in methods.items():
        yield name, _measured(partial(attribution.attribute, embeddings, target=target), output)


def _measured(call: Callable[[], Tensor], output: float) -> dict[str, float]:
    """Seconds of the second and third call, the peak of memory above what was in use, and |sum - f| / |f|."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    in_use = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        attributions = call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    total = float(attributions.double().sum())
    return {
        "seconds": min(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() - in_use,
        "sum": total,
        "gap": abs(total - output) / abs(output),
    }


if __name__ == "__main__":
    main()
