"""Which engine trains a model: a rule that looks at the model and the data, and two steps that check its choice.

The rule times nothing, so that a call gives the same on a busy machine and on an idle one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from captum_density._model.generators import pinned, seeded
from captum_density.retraining._config import FitConfig
from captum_density.retraining._engines import correct_of_stack, train_loop, train_stack
from captum_density.retraining._view import View
from captum_density.retraining._work import Engine, StoppedError, Work, channels_last, check_of, model_of

__all__ = ["Choice", "choose_engine", "try_stack"]

# Where these are from: a step of training, stacked over in the loop, in CPU time on one thread of an AMD EPYC
# (PyTorch 2.14, batches of 64, adamw), for perceptrons, CNNs and GroupNorm ResNets on inputs of 16 to 1568 values.
# A stack saves the overhead of starting operations, and loses when what it holds no longer fits the nearest caches.
#
#     values a step   model                        4 models   8     20
#            28,000   MLP 64-64-10                      0.6   1.0   1.7
#           100,000   MLP 64-256-10                     0.9   1.4   1.5
#           182,000   CNN 16-32, 8x8                    1.2   1.5   1.7
#           314,000   ResNet of 8 channels, 8x8         1.4   1.7   1.6
#           387,000   MLP 64-1024-10                    0.8   0.9   1.0
#           489,000   CNN 16-32, 14x14                  1.2   1.3   1.1
#           509,000   MLP 1568-64-10                    1.0   1.1   1.0
#           883,000   MLP 784-256-10                    0.6   0.6   0.4
#         1,959,000   CNN 16-32, 28x28                  1.1   1.1   0.7
#
# On a GPU nothing has been measured: the figure there is an estimate, of launches of 5 us at 2 TB/s.
_FEWEST_MODELS = 8
_LARGEST_STEP = {"cpu": 320_000, "cuda": 4_000_000}
# Channels last takes longer for networks of up to 32 channels (0.91 to 0.97 times as fast, up to 7,300,000 values a
# step), and less for a ResNet-18 on images of 224x224 (1.15 to 1.25 times); nothing between has been measured.
_SMALLEST_LAYOUT = 2**23
_TOO_FEW = f"on the same examples are fewer than the {_FEWEST_MODELS} from which a stack gains"


class Choice(NamedTuple):
    """Which engine trains a model.

    Args:
        alone: What trains one model at a time: "loop" or "channels_last".
        stacks: Whether "vmap" trains many at a time.
        reason: One sentence.
    """

    alone: Engine
    stacks: bool
    reason: str

    def of(self, models: int) -> tuple[Engine, str]:
        """The engine for so many models on the same examples, and why it."""
        if self.stacks and models >= _FEWEST_MODELS:
            return "vmap", self.reason
        if self.stacks:
            return self.alone, f"{models} models {_TOO_FEW}"
        return self.alone, self.reason


def choose_engine(work: Work) -> Choice:
    """The engine that ought to be the fastest among those that give the loop's models.

    Raises:
        StoppedError: Nobody waits for it any more.
        ValueError: The model does not fit the examples.
    """
    with pinned(work.threads):
        trial = _Trial(work)
        size, largest = trial.step_size(), _LARGEST_STEP.get(torch.device(work.device).type, 0)
        words = f"a training step works on {size} values, and a stack gains up to {largest}"
        if size <= largest and len(work.runs) < _FEWEST_MODELS:
            return Choice("loop", False, f"{len(work.runs)} models {_TOO_FEW}")
        if size <= largest:
            fault = trial.stack_fault()
            return Choice("loop", fault is None, fault or words)
        if size >= _SMALLEST_LAYOUT and trial.has_layout():
            fault = trial.layout_fault()
            if fault is None:
                return Choice("channels_last", False, f"{words}; a network of this size gains from channels last")
            words += f"; {fault}"
        return Choice("loop", False, words)


def try_stack(work: Work) -> Choice:
    """Whether a stack gives the loop's models, and otherwise why not."""
    with pinned(work.threads):
        fault = _Trial(work).stack_fault()
        return Choice("loop", fault is None, fault or "")


class _Trial:
    """A model trained for two steps by the loop, and others to compare with it."""

    def __init__(self, work: Work) -> None:
        assert isinstance(work.fit, FitConfig)
        self._work, self._device = work, torch.device(work.device)
        self._check = check_of(work.alive)
        self._check()
        self._view = View(work.examples, self._device, work.seed)
        self._run = work.runs[-1]
        self._inputs = self._view.whole(0, work.kept[-1], self._run)
        self._batch = self._inputs[: work.fit.batch_size]
        # Adam divides by the gradient's size, and makes steps of what is nothing but rounding.
        self._fit = replace(work.fit, optimizer="sgd", momentum=0.0, lr=min(work.fit.lr, 0.1))

    def step_size(self) -> int:
        """How many values a training step works on: those kept for the backward pass, and each parameter's four."""
        model, kept = self._model(), {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr(), tensor.shape] = tensor.numel()
            return tensor

        with seeded(0, self._device), torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.train()(self._batch.clone())
            del output
        return sum(kept.values()) + 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)

    def has_layout(self) -> bool:
        return any(p.ndim == 4 for p in self._model().parameters())

    def stack_fault(self) -> str | None:
        """Why a stack cannot train the model, or None."""
        # Threads of others, as a Dask worker has, draw as well, but not every time.
        model = self._model()
        if all(_draws(model, self._batch, self._device) for _ in range(4)):
            return "vmap cannot run this model (it draws random numbers, which a stack would share)"
        expected = self._looped(self._model())
        kept, runs = self._work.kept[-2:], self._work.runs[-2:]

        def stacked() -> dict[str, Tensor]:
            models = [model_of(self._work, run).to(self._device) for run in runs]
            stack = train_stack(
                models, self._view, kept, runs, self._fit, seed=self._work.seed, check=self._check, max_steps=2
            )
            with seeded(0, self._device):
                correct_of_stack(stack, self._view, kept, self._check, max_examples=8)
            return {name: values[-1] for name, values in {**stack[1], **stack[2]}.items()}

        return _fault(stacked, expected, "vmap cannot run this model", "a stack")

    def layout_fault(self) -> str | None:
        """Why a model in channels-last layout cannot be trained, or None."""
        model = channels_last(self._model())

        def laid_out() -> dict[str, Tensor]:
            values = self._looped(model)
            with seeded(0, self._device), torch.no_grad():
                model.eval()(self._inputs[:8])
            return values

        return _fault(laid_out, self._looped(self._model()), "channels last cannot run it", "channels last")

    def _model(self) -> nn.Module:
        return model_of(self._work, self._run).to(self._device)

    def _looped(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameters and buffers after two steps."""
        seed, labels = self._work.seed, self._view.labels[0]
        train_loop(model, self._inputs, labels, self._fit, seed=seed, run=self._run, check=self._check, max_steps=2)
        return {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def _fault(train: Callable[[], dict[str, Tensor]], expected: dict[str, Tensor], cannot: str, engine: str) -> str | None:
    """What a training raises, or of what it gives other values than the loop; None where neither."""
    try:
        values = train()
    except StoppedError:
        raise
    except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
        text = str(error).strip()
        return f"{cannot} ({text.splitlines()[0][:200] if text else type(error).__name__})"
    other = next((name for name, value in expected.items() if not _close(values[name], value)), None)
    return None if other is None else f"{engine} gives {other!r} other values than a loop does"


def _draws(model: nn.Module, x: Tensor, device: torch.device) -> bool:
    """Whether a model draws from the global generators as it trains; of NumPy's and Python's, vmap knows nothing."""
    with seeded(0, device), torch.no_grad():
        before = _random_state(device)
        model.train()(x.clone())
        return _random_state(device) != before


def _random_state(device: torch.device) -> tuple[object, ...]:
    of_torch = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    of_numpy = np.random.get_state(legacy=False)
    return (*(state.numpy().tobytes() for state in of_torch), repr(of_numpy), random.getstate())


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    scale = b.abs().max().clamp_min(1e-3) if b.numel() else b.new_ones(())
    return bool(((a - b).abs() <= 1e-3 * scale).all())
