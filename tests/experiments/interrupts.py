"""Ctrl-C at random moments of calls that change something for a while: whether anything stays changed.

    python -m tests.experiments.interrupts --number 2000 --seed 0

Another process sends the signal, so that it comes at any moment and not only where Python looks. After each one, what
a call may change for a while is compared with what it was: PyTorch's modes, hooks and flags, the handlers of signals,
the generators, the models and the folder of scratch files. After the last one, every call gives what it gave before.
The exit status is the number of interrupts that left something, or were swallowed.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from captum.attr import InputXGradient, Saliency
from torch import Tensor, nn
from torch.testing import assert_close

from captum_density import attr, density, losses, metrics, retraining, samplers
from captum_density.audit import audit
from captum_density.rules import BalancedGradients

_SENDER = """
import os, signal, sys, time
for line in sys.stdin:
    time.sleep(float(line))
    os.kill(os.getppid(), signal.SIGINT)
"""
_SWALLOWED = 5.0  # seconds after which an interrupt does not come any more


def calls() -> tuple[dict[str, Callable[[], Any]], list[nn.Module]]:
    """Calls of some milliseconds, and the models that they are given."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten()]
    images = nn.Sequential(*layers, nn.Linear(64, 3)).eval()
    attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    tokens = nn.Sequential(attention, nn.Flatten(), nn.Linear(48, 3)).eval()
    recurrent = nn.LSTM(8, 8, 2, batch_first=True).eval()
    x, y, text = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.randn(4, 6, 8)
    rows, labels = torch.randn(24, 64), torch.arange(24) % 2

    def last(x: Tensor) -> Tensor:
        output: Tensor = recurrent(x)[0][:, -1]
        return output

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def erased() -> Tensor:
        with attr.erase_attention(tokens, "0.self_attn", [0, 1]):
            output: Tensor = tokens(text)
        return output

    def retrained() -> Tensor:
        result = metrics.diff_roar(
            lambda: nn.Linear(64, 2), (rows, labels), (rows, labels), {"a": lambda x: x}, fractions=[0.5], runs=1,
            fit=retraining.FitConfig(epochs=2, batch_size=8), controls=[],
        )  # fmt: skip
        return result.correct

    def gradients(loss: nn.Module) -> Tensor:
        parameters = list(images.parameters())
        slopes = torch.autograd.grad(loss(images, x, y), parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.flatten() for slope in slopes])

    deep = attr.CompleteDeepLift(images)
    attacked = retraining.pgd
    return {
        "FullGrad": lambda: attr.FullGrad(images).attribute(x, y),
        "FullGrad, complete, of attention": lambda: attr.FullGrad(tokens, complete=True).attribute(text, y),
        "FullGrad of a recurrent layer": lambda: attr.FullGrad(last).attribute(text, y),
        "SmoothFullGrad": lambda: attr.SmoothFullGrad(images).attribute(x, y, nt_samples=2, generator=generator()),
        "rules": lambda: InputXGradient(BalancedGradients(tokens, "libragrad")).attribute(text, y),
        "CompleteDeepLift": lambda: deep.attribute(x, target=y),
        "attention's weights": lambda: attr.AttentionWeights(tokens, "0.self_attn").attribute(text),
        "attention's gradients": lambda: attr.AttentionGradient(tokens, "0.self_attn").attribute(text, y),
        "erased attention": erased,
        "score matching": lambda: gradients(losses.ScoreMatchingLoss(generator=generator())),
        "gradient norm": lambda: gradients(losses.GradientNormLoss()),
        "a score": lambda: density.class_score(images, x, y),
        "a Hessian trace": lambda: density.hessian_trace(images, x, y, n_samples=2, generator=generator()),
        "a sampler": lambda: samplers.LangevinSampler(images, 1e-3, 5, generator=generator()).sample(x, y).samples,
        "an attack": lambda: attacked(images, x, y, norm="linf", radius=0.1, n_steps=5, random_start=False),
        "retraining": retrained,
        "shift sensitivity": lambda: metrics.shift_sensitivity(Saliency, images, x, target=y).cosine_distance,
        "pixel perturbation": lambda: metrics.pixel_perturbation(images, x, x, target=y).probability,
        "an audit": lambda: audit(images, (x, y), ["Saliency"], metrics=["infidelity", "shift_sensitivity"]).to_json(),
    }, [images, tokens, recurrent]


def state(models: Sequence[nn.Module]) -> dict[str, Any]:
    """What a call may change for a while."""
    hooks = {name: dict(value) for name, value in vars(nn.modules.module).items() if name.endswith("_hooks")}
    backends, cuda, numpy = torch.backends, torch.backends.cuda, np.random.get_state(legacy=False)
    of_models = {
        f"model {i}, {name}": (
            module.training,
            sorted(vars(module)),
            [len(value) for key, value in vars(module).items() if key.endswith("_hooks")],
            [(id(p), p.requires_grad, p.grad is None, p._version) for p in module.parameters(recurse=False)],
            [(id(b), b.detach().double().sum().item()) for b in module.buffers(recurse=False)],
        )
        for i, model in enumerate(models)
        for name, module in model.named_modules()
    }
    return {
        "hooks of all modules": hooks,
        **of_models,
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "functorch": torch._C._functorch.peek_interpreter_stack(),
        "forward mode": torch.autograd.forward_ad._current_level,
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        "kernels": (backends.mkldnn.enabled, backends.cudnn.enabled, backends.mha.get_fastpath_enabled()),
        "precision": (torch.is_autocast_enabled("cpu"), torch.get_default_dtype()),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "threads": torch.get_num_threads(),
        "generators": (torch.get_rng_state().numpy().tobytes(), numpy["state"]["key"].tobytes(), random.getstate()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "scratch": sorted(path.name for path in Path(tempfile.gettempdir()).iterdir()),
    }  # fmt: skip


class Sender:
    """Another process, which sends Ctrl-C here when it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _SENDER], stdin=subprocess.PIPE, text=True)

    def send(self, seconds: float) -> None:
        """So many seconds from now."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """No more will come."""
        self._process.kill()
        self._process.communicate()


def interrupted(call: Callable[[], Any], sender: Sender, seconds: float) -> str:
    """Where an interrupt came that was sent so long after the call began: "within", "after", or "swallowed"."""
    came = "within"
    try:
        sender.send(seconds)
        call()
        came = "after"
        time.sleep(_SWALLOWED)
        came = "swallowed"
    except KeyboardInterrupt:
        pass
    return came


def main(arguments: Sequence[str] | None = None) -> int:
    """Interrupt each call so often; returns how many interrupts left something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=2000, help="of interrupts within calls, all calls together")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:  # in which no other process makes anything
        tempfile.tempdir = folder
        return _main(chosen.number, chosen.seed)


def _main(number: int, seed: int) -> int:
    moments, sender = random.Random(seed), Sender()
    run, models = calls()
    of_each, bad, total = -(-number // len(run)), 0, 0
    assert threading.current_thread() is threading.main_thread()
    for name, call in run.items():
        call()
        start = time.perf_counter()
        expected = call()
        seconds = time.perf_counter() - start
        count = left = 0
        while count < of_each:
            before = state(models)
            came = interrupted(call, sender, moments.uniform(0, seconds))
            after = state(models)
            changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
            count += came != "after"
            if changed or came == "swallowed":
                left += 1
                print(f"  {name}: {came}, left {changed}", flush=True)
        received = call()
        if isinstance(expected, Tensor):
            assert_close(received, expected)
        bad, total = bad + left, total + count
        print(f"{name}: {1000 * seconds:.0f} ms, {count} interrupts, {left} left something", flush=True)
    sender.close()
    print(f"{total} interrupts, {bad} left something")
    return bad


if __name__ == "__main__":
    sys.exit(main())
