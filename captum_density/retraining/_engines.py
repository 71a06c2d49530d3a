"""Two ways to train the same models: one after another, or all at once as a stack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state
from torch.nn.functional import cross_entropy

from captum_density._model.generators import derived_seed, seeded
from captum_density._model.validation import picked
from captum_density.retraining._config import Fit, FitConfig
from captum_density.retraining._seeds import batches, count_batches
from captum_density.retraining._view import Kept, View

__all__ = ["Check", "check_logits", "correct_of", "correct_of_stack", "train_loop", "train_stack"]

# Called before every step: raises where the work is no longer wanted.
Check = Callable[[], None]
Attack = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]

_TEST_BATCH = 1024


def train_loop(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    config: FitConfig,
    *,
    seed: int,
    run: int,
    check: Check = lambda: None,
    attack: Attack | None = None,
    max_steps: int | None = None,
) -> None:
    """Train one model in place: a loop over batches of tensors.

    Args:
        model: On the inputs' device.
        inputs: (N, ...).
        labels: (N,) int64.
        config: How.
        seed: The base seed.
        run: Which order of batches, and which random numbers for what the model draws.
        check: Called before every step.
        attack: What to make of a batch first, from (model, inputs, labels, generator).
        max_steps: To stop early; None for all.
    """
    device, n = inputs.device, len(inputs)
    model.train()
    fit = Fit(config, list(model.parameters()), count_batches(n, config.batch_size, config.epochs))
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "attack", run))
    with seeded(derived_seed(seed, "training", run), device), torch.enable_grad():
        for step, rows in enumerate(batches(n, config.batch_size, config.epochs, seed, run, device)):
            if step == max_steps:
                return
            check()
            x, y = inputs[rows], labels[rows]
            if attack is not None:
                x = attack(model, x, y, generator)
            logits = model(x)
            if step == 0:
                check_logits(logits, int(labels.max()))
            fit.step(cross_entropy(logits, y))


@torch.no_grad()
def correct_of(model: nn.Module, view: View, kept: Kept, run: int, check: Check) -> Tensor:
    """(M,) whether the class of each test example is predicted, in evaluation mode."""
    model.eval()
    labels = view.labels[1]
    inputs = None if view.lazy else view.whole(1, kept, run, check)
    correct = []
    for start in range(0, len(labels), _TEST_BATCH):
        check()
        part = slice(start, start + _TEST_BATCH)
        x = view.rows(1, part, kept) if inputs is None else inputs[part]
        correct.append(_right(model(x), labels[part]))
    return torch.cat(correct).cpu()


def train_stack(
    models: Sequence[nn.Module],
    view: View,
    kept: Sequence[Kept],
    runs: Sequence[int],
    config: FitConfig,
    *,
    seed: int,
    check: Check = lambda: None,
    max_steps: int | None = None,
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """Train models at once: their parameters stacked, the forward pass vmapped over them.

    Each model's loss reaches its own slice of the stack alone, and steps of the optimizer are elementwise: the numbers
    are those of `train_loop`, up to rounding.

    Returns:
        A module without values, and the trained parameters and buffers, stacked.

    Raises:
        RuntimeError: What vmap cannot do: data-dependent control flow, random numbers, and more.
    """
    device, labels = view.labels[0].device, view.labels[0]
    parameters, buffers = _stacked(models)
    skeleton = copy.deepcopy(models[0]).train()
    n = view.size(0)
    steps = count_batches(n, config.batch_size, config.epochs)
    fit = Fit(config, list(parameters.values()), steps, may_lay_out=True)
    low, high = torch.tensor(kept, device=device).T
    orders = sorted(set(runs))  # one for each run
    of_run = torch.tensor([orders.index(run) for run in runs], device=device)
    forward, inputs = _vmapped(skeleton), view.of_models(0, low, high)
    orders_of_batches = zip(
        *(batches(n, config.batch_size, config.epochs, seed, run, device) for run in orders), strict=True
    )
    with seeded(derived_seed(seed, "training", *orders), device), torch.enable_grad():
        for step, batch in enumerate(orders_of_batches):
            if step == max_steps:
                break
            check()
            rows = batch[0] if len(orders) == 1 else torch.stack(batch)[of_run]
            y = labels[rows].expand(len(models), -1)
            logits = forward(parameters, buffers, inputs(rows))
            if step == 0:
                check_logits(logits[0], int(labels.max()))
            # The sum over models of each one's mean.
            fit.step(cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1])
    return skeleton, parameters, buffers


@torch.no_grad()
def correct_of_stack(
    trained: tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]],
    view: View,
    kept: Sequence[Kept],
    check: Check,
    max_examples: int | None = None,
) -> Tensor:
    """(models, M) whether the class of each test example is predicted, in evaluation mode."""
    skeleton, parameters, buffers = trained
    forward = _vmapped(skeleton.eval())
    labels = view.labels[1][:max_examples]
    low, high = torch.tensor(kept, device=labels.device).T
    correct = []
    size = max(1, _TEST_BATCH // len(kept))
    for start in range(0, len(labels), size):
        check()
        part = slice(start, min(start + size, len(labels)))
        correct.append(_right(forward(parameters, buffers, view.stacked(1, part, low, high)), labels[part]))
    return torch.cat(correct, dim=1).cpu()


def _stacked(models: Sequence[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trainable = {name: p.requires_grad for name, p in models[0].named_parameters()}
    parameters, buffers = stack_module_state(list(models))
    # stack_module_state makes everything require a gradient, what the model has frozen too.
    parameters = {name: p.detach().requires_grad_(trainable[name]) for name, p in parameters.items()}
    return parameters, {name: b.detach().clone() for name, b in buffers.items()}


def _vmapped(skeleton: nn.Module) -> Callable[[dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]:
    """The forward pass of a stack, from its parameters, its buffers and (M, B, ...) inputs.

    As `torch.func.functional_call` within `torch.vmap` has it, but for where each value belongs, and which are tied,
    being looked up once: in each step it would take as long as the rest of a small model's forward pass.
    """
    slots = _slots(skeleton)
    own = [[table[name] for table, name in places] for places in slots.values()]

    def of_one(x: Tensor, *values: Tensor) -> Tensor:
        for places, value in zip(slots.values(), values, strict=True):
            for table, name in places:
                table[name] = value
        output: Tensor = skeleton(x)
        return output

    mapped = torch.vmap(of_one, randomness="error")

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        values = {**parameters, **buffers}
        try:
            return mapped(x, *(values[name] for name in slots))
        finally:
            for places, tensors in zip(slots.values(), own, strict=True):
                for (table, name), tensor in zip(places, tensors, strict=True):
                    table[name] = tensor

    return forward


def _slots(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Of each parameter and buffer, by its first name, the tables of modules that hold it, and its name there."""
    first: dict[int, str] = {}
    slots: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for prefix, holder in module.named_modules(remove_duplicate=False):
        for table in (holder._parameters, holder._buffers):
            for name, value in table.items():
                if value is not None:
                    full = first.setdefault(id(value), f"{prefix}.{name}" if prefix else name)
                    slots.setdefault(full, []).append((table, name))
    return slots


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each class is predicted; a model that returns NaN predicts none."""
    return (logits.argmax(-1) == labels) & ~logits.isnan().any(-1)


def check_logits(output: object, largest: int) -> None:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model must return logits (N, classes), but returned {type(output).__name__}; let make_model return a "
            f"module that picks them, as `{picked(output)}` does"
        )
    if output.ndim != 2:
        raise ValueError(f"the model must return logits (N, classes), but returned {tuple(output.shape)}")
    if largest >= output.shape[1]:
        raise ValueError(f"the model has {output.shape[1]} outputs, but label {largest} is among the labels")
