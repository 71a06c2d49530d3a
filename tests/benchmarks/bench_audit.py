"""What an audit takes: seconds, CPU seconds, and examples that the model is run on, which no machine changes.

Run from the root of the repository: python -m tests.benchmarks.bench_audit --help
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from captum_density._display.tables import markdown
from captum_density.audit import audit


def small_cnn() -> nn.Module:
    """For images of 28 x 28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 36, 10)),
    )


MODELS = {
    "resnet18": (lambda: torchvision.models.resnet18(), (3, 224, 224)),
    "small_cnn": (small_cnn, (1, 28, 28)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench_audit",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS], help="with weights at random")
    parser.add_argument("--examples", nargs="+", type=int, default=[8, 16, 32], help="how many images to audit")
    parser.add_argument("--efforts", nargs="+", choices=("default", "thorough"), default=["default"])
    parser.add_argument("--threads", type=int, default=2, help="threads in one operation")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/audit.json"), help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.models:
        for effort in arguments.efforts:
            for examples in arguments.examples:
                rows.append({"model": name, "effort": effort, "examples": examples} | measured(name, effort, examples))
                print(json.dumps(rows[-1]), flush=True)
    content = {"threads": arguments.threads, "machine": platform.machine(), "torch": torch.__version__, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown([[*map(str, rows[0])], *([str(value) for value in row.values()] for row in rows)]))


def measured(name: str, effort: Any, examples: int) -> dict[str, float]:
    """One audit's cost."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, images = build().eval(), smooth_images(examples, *shape)
    start, cpu = time.perf_counter(), time.process_time()
    report = audit(model, images, effort=effort, limit=None)
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {name: round(value, 1) for name, value in seconds.items()} | dict(report.cost)


def smooth_images(n: int, channels: int, height: int, width: int) -> Tensor:
    """(N, C, H, W) in [0, 1], as smooth as photographs are."""
    coarse = torch.rand(n, channels, max(2, height // 16), max(2, width // 16))
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


if __name__ == "__main__":
    main()
