"""Faults that only show on a GPU, planted one by one in a copy of the package: which test marked `cuda` catches each.

    python -m tests.experiments.device_faults

It needs a GPU, or a pretended one, whose pretend_device.py is on PYTHONPATH.

Each is tried on the tests that are likeliest to catch it, and on all that are marked `cuda` where those do not. The
exit status is the number of faults that none caught.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGE = "captum_density"


@dataclass(frozen=True)
class Fault:
    """One change of one file.

    Args:
        what: In words.
        file: Within the package.
        before: What stands there, once.
        after: What takes its place.
        tests: Where it is likeliest to be caught: a file, and what its tests' names contain.
    """

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, str]


FAULTS = (
    Fault(
        "a generator of the CPU is asked for noise on the GPU",
        "_model/generators.py",
        "device = x.device if generator is None else generator.device",
        "device = x.device",
        ("tests/test_entry_points.py", "gives_what_the_cpu_gives"),
    ),
    Fault(
        "noise stays where its generator is",
        "_model/generators.py",
        "dtype=x.dtype).to(x.device))",
        "dtype=x.dtype))",
        ("tests/test_entry_points.py", "gives_what_the_cpu_gives"),
    ),
    Fault(
        "the GPU's generator is not put back",
        "_model/generators.py",
        'cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None',
        "cuda = None",
        ("tests/audit/test_audit.py", "cuda"),
    ),
    Fault(
        "a tensor is made without saying where",
        "metrics/_masks.py",
        "torch.arange(order.shape[1], device=order.device)",
        "torch.arange(order.shape[1])",
        ("tests/test_entry_points.py", "gives_what_the_cpu_gives and pixel"),
    ),
    Fault(
        "a tensor is made on the default device",
        "metrics/_ranking.py",
        'dtype=torch.float64, device="cpu")))',
        "dtype=torch.float64)))",
        ("tests/test_entry_points.py", "uses_no_gpu"),
    ),
    Fault(
        "a mask stays on the CPU",
        "audit/_figures/infidelity.py",
        "< _ERASED).to(inputs.device)",
        "< _ERASED)",
        ("tests/audit/test_audit.py", "cuda"),
    ),
    Fault(
        "an index is on another device",
        "_linear/places.py",
        "flat.index_select(0, order.to(t.device))",
        "flat.index_select(0, order)",
        ("tests/_linear/test_waits.py", "full_grad"),
    ),
    Fault(
        "NumPy is given a tensor of the GPU",
        "_cache/identity.py",
        "value.detach().cpu().numpy() if",
        "value.detach().numpy() if",
        ("tests/audit/test_audit.py", "cuda"),
    ),
    Fault(
        "a picture is drawn of a tensor of the GPU",
        "plots/_saliency_grid.py",
        "images = images.detach().cpu()",
        "images = images.detach()",
        ("tests/test_entry_points.py", "gives_what_the_cpu_gives and saliency"),
    ),
    Fault(
        "a number is read at each step of a chain",
        "_density/langevin.py",
        "        root = self.step_size**0.5\n",
        "        root = self.step_size**0.5 + 0 * points[0].sum().item()\n",
        ("tests/_linear/test_waits.py", "samplers"),
    ),
    Fault(
        "each value that may be refused is looked at by itself",
        "_model/refusals.py",
        "waiting = _waiting.get()\n    if waiting is not None and",
        "waiting = _waiting.get()\n    if False and waiting is not None and",
        ("tests/_model/test_refusals.py", "waited"),
    ),
    Fault(
        "classes that there are not reach the GPU",
        "_model/validation.py",
        'if target.device.type in ("cpu", "meta") or',
        "if True or",
        ("tests/_model/test_batch.py", "classes"),
    ),
    Fault(
        "recurrent layers run as in evaluation, where cuDNN has no derivative",
        "_model/evaluation.py",
        'if device.type != "cuda" or not _may_recur(model):',
        "if True:",
        ("tests/test_entry_points.py", "recurrent_layers and FullGrad"),
    ),
    Fault(
        "fused attention is left on, which has one derivative only",
        "_model/evaluation.py",
        "stack.enter_context(PLAIN_ATTENTION)",
        "pass",
        ("tests/losses/test_density_losses.py", "attention"),
    ),
    Fault(
        "memory is read that was never written",
        "metrics/_shift_sensitivity.py",
        "floor = torch.zeros(",
        "floor = torch.empty(",
        ("tests/metrics/test_shift_sensitivity.py", "zeros"),
    ),
    Fault(
        "training on the CPU initialises the GPU, so that no process can be forked any more",
        "retraining/_seeds.py",
        'torch.device("cuda" if initialised else "cpu")',
        'torch.device("cuda" if torch.cuda.is_available() else "cpu")',
        ("tests/test_entry_points.py", "uses_no_gpu"),
    ),
)


def planted(fault: Fault, text: str) -> str:
    """A file's text with the fault.

    Raises:
        ValueError: What it changes is not there, or more than once.
    """
    if text.count(fault.before) != 1:
        raise ValueError(f"{fault.file} holds {fault.before!r} {text.count(fault.before)} times; say where it is now")
    return text.replace(fault.before, fault.after)


def catcher(root: Path, plugin: Sequence[str], where: Sequence[str]) -> str | None:
    """The first test marked `cuda` that fails in a copy of the tree; None where none does."""
    options = ["-m", "cuda and not slow", "-n0", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *plugin]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *where],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode in (0, 5):  # passed, or no test of that name
        return None
    names = re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    return names[0] if names else f"pytest itself: {run.stdout[-300:]}{run.stderr[-300:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant each fault; returns how many were caught by no test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of faults, from 1; all if not given")
    chosen = parser.parse_args(arguments).only or range(1, len(FAULTS) + 1)
    plugin = ["-p", "pretend_device"] if importlib.util.find_spec("pretend_device") else []
    if not plugin and not torch.cuda.is_available():
        print("skipped: there is no GPU, and no pretend_device.py on PYTHONPATH that makes one up")
        return 0
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__", ".git", "build", ".venv", "benchmark-results")
        shutil.copytree(ROOT, root, ignore=ignored, dirs_exist_ok=True)
        for number in chosen:
            fault = FAULTS[number - 1]
            path = root / PACKAGE / fault.file
            text = path.read_text(encoding="utf-8")
            path.write_text(planted(fault, text), encoding="utf-8")
            file, names = fault.tests
            test = catcher(root, plugin, [file, *(["-k", names] if names else [])]) or catcher(root, plugin, ["tests"])
            path.write_text(text, encoding="utf-8")
            missed += test is None
            print(f"{number}. {fault.what} ({fault.file}): {test or 'NOT CAUGHT'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())
