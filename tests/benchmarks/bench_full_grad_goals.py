"""What FullGrad costs over a plain gradient of the same output, held against goals; one thread, CPU time.

A row is a model, and the goal that it has. Beside the time there is peak memory, where it has a goal; a loop of small
operations is judged by the microseconds that FullGrad adds to each of them. A map that is to be differentiated
(`create_graph=True`), and a training step that is made of one, are held against a plain training step.

Run from the root of the repository: python -m tests.benchmarks.bench_full_grad_goals --help
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from captum.attr import Saliency
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captum_density.attr import FullGrad
from tests.benchmarks.harness import Call, Case, compare, machine

LENGTHS = (128, 512, 1024)
STEPS = (100, 500)
OPERATIONS = 200
STEP = "training step"
PLAIN, SALIENCY_MAP, COMPLETE = "plain gradient", "FullGrad", "FullGrad, complete"

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One model and its goal.

    Attributes:
        setup: Makes the model and its input.
        goal: The most that FullGrad may take: times a plain gradient, or, of a loop, microseconds an operation more.
        memory_goal: The most peak memory, times a plain gradient's.
        reference: What it is held against: a gradient by autograd or by Captum's Saliency, or a training step.
        trains: Whether FullGrad's map is a loss, whose own backward pass counts.
    """

    setup: Callable[[], tuple[Model, Tensor]]
    goal: float
    memory_goal: float | None = None
    reference: str = PLAIN
    trains: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_full_grad_goals",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", default=[], help=f"which of {', '.join(ROWS)}; all if none is named")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/goals.json"), help="file to write")
    arguments = parser.parse_args()
    print("| model | goal | FullGrad | complete | memory goal | memory |\n|---|---|---|---|---|---|")
    results = {}
    for name in arguments.rows or ROWS:
        results[name] = measured(name, arguments.runs, not arguments.no_memory)
        print(line(name, results[name]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "rows": results}, indent=2) + "\n", encoding="utf-8")


def measured(name: str, runs: int, memory: bool) -> dict[str, float]:
    """Time of FullGrad's two maps in the unit of the row's goal, and peak memory where it has a goal."""
    row = ROWS[name]
    cases: dict[str, Case] = {
        PLAIN: partial(gradient, name),
        SALIENCY_MAP: partial(full_grad, name, False),
        COMPLETE: partial(full_grad, name, True),
    }
    result = compare(
        name, cases, reference=PLAIN, runs=runs, memory=memory and row.memory_goal is not None,
        clock=time.process_time,
    )  # fmt: skip
    failures = [m.failure for m in result.measurements.values() if m.failure]
    if failures:
        raise RuntimeError(failures[0])
    seconds = {case: m.seconds or 0.0 for case, m in result.measurements.items()}
    if is_loop(name):
        figures = {case: 1e6 * (seconds[case] - seconds[PLAIN]) / OPERATIONS for case in (SALIENCY_MAP, COMPLETE)}
    else:
        figures = {case: seconds[case] / seconds[PLAIN] for case in (SALIENCY_MAP, COMPLETE)}
    peak = result.ratio(SALIENCY_MAP, "peak_bytes")
    return figures | {"plain_ms": 1e3 * seconds[PLAIN]} | ({} if peak is None else {"memory": peak})


def line(name: str, figures: dict[str, float]) -> str:
    """A row of the table; what misses its goal is bold."""
    row, unit = ROWS[name], " us" if is_loop(name) else ""

    def shown(value: float | None, goal: float | None) -> str:
        text = "" if value is None else f"{value:.0f}{unit}" if unit else f"{value:.2f}"
        return f"**{text}**" if value is not None and goal is not None and value > goal else text

    cells = [name, f"{row.goal:g}{unit}", *(shown(figures[case], row.goal) for case in (SALIENCY_MAP, COMPLETE))]
    cells += ["" if row.memory_goal is None else f"{row.memory_goal:g}", shown(figures.get("memory"), row.memory_goal)]
    return f"| {' | '.join(cells)} |"


def is_loop(name: str) -> bool:
    """Whether a row is one of small operations, judged by the microseconds that are added to each."""
    return name.startswith("loop")


def gradient(name: str) -> Call:
    """What FullGrad is held against: a gradient of the output that is explained, or a training step."""
    model, x = _setup(name)
    if ROWS[name].reference == "Saliency":
        return partial(Saliency(model).attribute, x, target=1)
    if ROWS[name].reference == STEP:
        labels = torch.arange(len(x)) % 10
        return partial(_train, model, lambda: cross_entropy(model(x.detach()), labels))
    return lambda: torch.autograd.grad(model(x)[:, 1].sum(), x)


def full_grad(name: str, complete: bool) -> Call:
    """FullGrad of the same output."""
    model, x = _setup(name)
    step = ROWS[name].reference == STEP
    full_grad = FullGrad(model, complete=complete)
    attribute = partial(full_grad.attribute, x.detach() if step else x, target=1, create_graph=step)
    return partial(_train, model, lambda: attribute().square().sum()) if ROWS[name].trains else attribute


def _train(model: Any, loss: Callable[[], Tensor]) -> None:
    model.zero_grad()
    loss().backward()


def _setup(name: str) -> tuple[Model, Tensor]:
    """A model in evaluation mode with nothing left at 0 or 1, and its input; the same on every call."""
    torch.manual_seed(0)
    model, x = ROWS[name].setup()
    if isinstance(model, nn.Module):
        _randomise(model)
    return model, x.requires_grad_()


def _randomise(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5)
    model.eval()


def _vision(name: str, batch_size: int) -> tuple[nn.Module, Tensor]:
    return torchvision.models.get_model(name, weights=None), torch.randn(batch_size, 3, 224, 224)


def _resnet() -> tuple[nn.Module, Tensor]:
    return torchvision.models.resnet18(num_classes=10), torch.randn(8, 3, 32, 32)


def _transformer() -> tuple[nn.Module, Tensor]:
    sizes = {"num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256, "num_classes": 10}
    return torchvision.models.VisionTransformer(image_size=32, patch_size=4, **sizes), torch.randn(8, 3, 32, 32)


def _text(name: str, length: int, width: int = 256, layers: int = 4) -> tuple[Model, Tensor]:
    import transformers

    small: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "intermediate_size": 4 * width, "vocab_size": 50, "max_position_embeddings": length, "pad_token_id": 0,
    }  # fmt: skip
    kind = {"bert": "Bert", "gpt2": "GPT2", "llama": "Llama"}[name]
    config = getattr(transformers, f"{kind}Config")(num_labels=3, **small)
    network = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    _randomise(network)
    return (lambda x: network(inputs_embeds=x).logits), torch.randn(1, length, width)


class _Recurrent(nn.Module):
    """The last step of a recurrent layer, and a dense layer."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def _recurrent(kind: type[nn.LSTM | nn.GRU], steps: int) -> tuple[nn.Module, Tensor]:
    return _Recurrent(kind), torch.randn(4, steps, 64)


def _perceptron() -> tuple[nn.Module, Tensor]:
    layers = nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    return nn.Sequential(*layers), torch.randn(1, 20)


def _loop() -> tuple[Model, Tensor]:
    """A quarter each of a scale, a shift, a nonlinear function and a residual sum."""
    shift = torch.randn(16)

    def model(x: Tensor) -> Tensor:
        for _ in range(OPERATIONS // 4):
            x = x + ((x * 0.5) + shift).tanh()
        return x

    return model, torch.randn(8, 16)


ROWS = {
    **{name: Row(partial(_vision, name, 4), 1.15) for name in ("resnet18", "vgg11_bn")},
    **{
        name: Row(partial(_vision, name, 2), 1.6)
        for name in ("vit_b_16", "vit_b_32", "convnext_tiny", "swin_t", "efficientnet_b0")
    },
    **{
        f"{name}-{length}": Row(partial(_text, name, length), 1.8, 1.5 if length == 1024 else None)
        for name in ("bert", "gpt2", "llama")
        for length in LENGTHS
    },
    **{
        f"{name}-{steps}": Row(partial(_recurrent, kind, steps), 3)
        for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU))
        for steps in STEPS
    },
    **{
        f"{name}, {'a training step' if trains else 'with a graph'}": Row(setup, 3, reference=STEP, trains=trains)
        for trains in (False, True)
        for name, setup in (("resnet18", _resnet), ("vit", _transformer))
    },
    "mlp, one row": Row(_perceptron, 3, reference="Saliency"),
    "loop of 200 operations": Row(_loop, 20),
}


if __name__ == "__main__":
    main()
