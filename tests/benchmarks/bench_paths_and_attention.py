"""PathIntegratedGradients against Captum's IntegratedGradients; reading attention against a plain forward pass.

Run from the root of the repository: python -m tests.benchmarks.bench_paths_and_attention --help
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_density.attr import AttentionWeights, PathIntegratedGradients, PowerPath, erase_attention
from tests.benchmarks.harness import Call, Comparison, compare, table, write

TARGET = 0
STEPS = {"mlp": 50, "cnn": 50, "resnet18": 8}
ENCODERS = ("bert", "transformer_encoder")
LENGTH, VOCABULARY = 128, 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_paths_and_attention",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=(*STEPS, *ENCODERS), choices=(*STEPS, *ENCODERS))
    parser.add_argument("--batch-size", type=int, default=4, help="examples per call")
    parser.add_argument("--runs", type=int, default=20, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads in one operation")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/paths_and_attention.json"))
    arguments = parser.parse_args()

    comparisons: list[Comparison] = []
    for name in arguments.models:
        setting = (name, arguments.batch_size, arguments.device)
        cases: dict[str, Callable[[], Call]]
        if name in STEPS:
            reference = "captum IntegratedGradients"
            cases = {
                reference: partial(integrated, IntegratedGradients, *setting),
                "PathIntegratedGradients": partial(integrated, PathIntegratedGradients, *setting),
                "PathIntegratedGradients, PowerPath": partial(integrated, along_a_power_path, *setting),
            }
        else:
            reference = "forward, eager attention"
            cases = {
                reference: partial(forward, "eager", *setting),
                "forward, sdpa or fused": partial(forward, "sdpa", *setting),
                "AttentionWeights, eager": partial(weights, "eager", *setting),
                "AttentionWeights, sdpa": partial(weights, "sdpa", *setting),
                "erase_attention, eager": partial(erased, "eager", *setting),
                "erase_attention, sdpa": partial(erased, "sdpa", *setting),
            }
        comparison = compare(
            name,
            cases,
            reference=reference,
            device=arguments.device,
            runs=arguments.runs,
            threads=arguments.threads,
            memory=not arguments.no_memory,
        )
        comparisons.append(comparison)
        print(table([comparison]), flush=True)
    write(
        arguments.out,
        comparisons,
        device=arguments.device,
        threads=arguments.threads,
        batch_size=arguments.batch_size,
        runs=arguments.runs,
    )
    print(f"\n{table(comparisons)}\n\nwritten to {arguments.out}")


def integrated(make: Callable[[nn.Module], Any], name: str, batch_size: int, device: str) -> Call:
    model, inputs = _network(name, batch_size, device)
    return partial(make(model).attribute, inputs, target=TARGET, n_steps=STEPS[name])


def along_a_power_path(model: nn.Module) -> PathIntegratedGradients:
    return PathIntegratedGradients(model, PowerPath(2.0))


def forward(implementation: str, name: str, batch_size: int, device: str) -> Call:
    run, _, inputs = _encoder(implementation, name, batch_size, device)
    return partial(_without_gradient, run, inputs)


def weights(implementation: str, name: str, batch_size: int, device: str) -> Call:
    run, layer, inputs = _encoder(implementation, name, batch_size, device)
    return partial(AttentionWeights(run, layer).attribute, inputs, query="all", heads="all")


def erased(implementation: str, name: str, batch_size: int, device: str) -> Call:
    run, layer, inputs = _encoder(implementation, name, batch_size, device)

    def call() -> Any:
        with erase_attention(run, layer, 3):
            return _without_gradient(run, inputs)

    return call


def _without_gradient(run: Callable[..., Any], inputs: Tensor) -> Any:
    with torch.no_grad():
        return run(inputs)


def _network(name: str, batch_size: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    # Captum's warning about inputs that do not require gradients is not what is timed.
    if name == "mlp":
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        inputs = torch.randn(batch_size, 64)
    elif name == "cnn":
        body = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU())
        model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        inputs = torch.randn(batch_size, 3, 32, 32)
    else:
        model = torchvision.models.get_model(name, weights=None)
        inputs = torch.randn(batch_size, 3, 224, 224)
    return model.eval().to(device), inputs.to(device).requires_grad_()


def _encoder(implementation: str, name: str, batch_size: int, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model of four layers in evaluation mode, the attention of its second layer, and inputs."""
    torch.manual_seed(0)
    if name == "bert":
        import transformers

        size = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        settings: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": implementation, **size}
        config = transformers.BertConfig(**settings)
        model = transformers.BertForSequenceClassification(config).eval().to(device)
        inputs = torch.randint(1, VOCABULARY, (batch_size, LENGTH), device=device)
        return model, model.bert.encoder.layer[1].attention.self, inputs
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval().to(device)
    wrapped = encoder if implementation == "sdpa" else _Unfused(encoder)
    attention = encoder.layers[1].self_attn
    assert isinstance(attention, nn.Module)
    return wrapped, attention, torch.randn(batch_size, LENGTH, 256, device=device)


class _Unfused(nn.Module):
    """nn.TransformerEncoder as it is in training, without PyTorch's fused path."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            output: Tensor = self.encoder(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
        return output


if __name__ == "__main__":
    main()
