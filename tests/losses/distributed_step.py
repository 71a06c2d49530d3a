"""Training steps on two processes against the same on one: what each process runs for tests/losses/test_distributed.py.

`run_rank` writes to a file what came of each check: the largest difference of a gradient, or an error's text.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from captum_density.losses import (
    AntiScoreMatchingLoss,
    AttentionMapLoss,
    ContrastiveDivergenceLoss,
    DenoisingScoreMatchingLoss,
    DistillationLoss,
    FiniteDifferenceScoreMatchingLoss,
    FoolingLoss,
    GradientNormLoss,
    JacobianMatchingLoss,
    NoiseContrastiveLoss,
    ScoreMatchingLoss,
    SlicedScoreMatchingLoss,
)
from captum_density.softmax_shift import CenteredLogits

PROCESSES = 2
STEPS = 2
RATE = 0.1
SIDE = 6


def _generator() -> torch.Generator:
    """The same on every process, so that each half of the batch sees the noise that it sees in a single one."""
    return torch.Generator().manual_seed(7)


def noise_contrastive() -> NoiseContrastiveLoss:
    one = torch.ones(1, SIDE, SIDE, dtype=torch.float64)
    return NoiseContrastiveLoss(Independent(Normal(0.5 * one, 0.3 * one), 3), generator=_generator()).double()


class OfTeacher(nn.Module):
    """A loss of a student and a teacher, which knows no labels."""

    def __init__(self, make: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
        super().__init__()
        self.make, self.teacher = make, network(True, seed=1).eval().requires_grad_(False)

    def forward(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.make(self.teacher, model)(model, x)
        return loss


def attention_maps(teacher: nn.Module, student: nn.Module) -> AttentionMapLoss:
    first, other = (next(m for m in model.modules() if isinstance(m, nn.Conv2d)) for model in (student, teacher))
    return AttentionMapLoss(teacher, [(first, other)])


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "score matching, antithetic": lambda: ScoreMatchingLoss(generator=_generator()),
    "score matching, hutchinson": lambda: ScoreMatchingLoss("hutchinson", generator=_generator()),
    "anti score matching, antithetic": lambda: AntiScoreMatchingLoss(generator=_generator()),
    "anti score matching, exact": lambda: AntiScoreMatchingLoss(estimator="exact"),
    "gradient norm": GradientNormLoss,
    "sliced": lambda: SlicedScoreMatchingLoss(generator=_generator()),
    "denoising": lambda: DenoisingScoreMatchingLoss(generator=_generator()),
    "finite difference": lambda: FiniteDifferenceScoreMatchingLoss(generator=_generator()),
    "noise contrastive": noise_contrastive,
    "contrastive divergence": lambda: ContrastiveDivergenceLoss(0.01, 3, 16, generator=_generator()),
    "jacobian matching": lambda: OfTeacher(lambda teacher, _: JacobianMatchingLoss(teacher, "all")),
    "distillation": lambda: OfTeacher(lambda teacher, _: DistillationLoss(teacher)),
    "attention maps": lambda: OfTeacher(attention_maps),
    "fooling": lambda: FoolingLoss(torch.linspace(-1, 1, SIDE * SIDE, dtype=torch.float64).reshape(1, SIDE, SIDE)),
}


def _parallel(model: nn.Module, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


def _compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()  # after eight versions of a function, the compiler leaves it as it is
    return torch.compile(model, backend="aot_eager")


@dataclass(frozen=True)
class Setting:
    """How a step is taken.

    Args:
        terms: Of the loss, in order: "entropy" and "density".
        wrap: Makes of the network what a user trains on several processes.
        view: Makes of either what the losses and the cross-entropy see.
        batch_norm: Whether the network has one.
        training: The network's mode.
        apart: Whether each term has a backward pass of its own.
        accumulated: Whether a first part of the batch is not synchronized.
        together: Whether all losses are in one step.
    """

    terms: Sequence[str] = ("entropy", "density")
    wrap: Callable[[nn.Module], nn.Module] = _parallel
    view: Callable[[nn.Module], nn.Module] = lambda model: model
    batch_norm: bool = False
    training: bool = True
    apart: bool = False
    accumulated: bool = False
    together: bool = False
    losses: Sequence[str] = field(default=tuple(LOSSES))

    def checks(self) -> list[Sequence[str]]:
        return [self.losses] if self.together else [(name,) for name in self.losses]

    def on_one_process(self) -> "Setting":
        """A setting with the same gradients by definition, of which many have one.

        Without batch norm, no term sees what another's forward pass has done.
        """
        order = {} if self.batch_norm else {"terms": tuple(sorted(self.terms)), "apart": False}
        return replace(self, wrap=_parallel, **order)


_unused = {"find_unused_parameters": True}
# For each loss the model is compiled anew: one that switches compiled code off, and two that run it.
_few = {
    "losses": ("gradient norm", "finite difference", "distillation"),
    "together": True,
    "batch_norm": True,
}
SETTINGS = {
    "density last": Setting(),
    "density first": Setting(("density", "entropy")),
    "alone": Setting(("density",)),
    "all in one step": Setting(together=True),
    "all in one step, batch norm": Setting(together=True, batch_norm=True),
    "two backward passes": Setting(apart=True),
    "two backward passes, density first": Setting(("density", "entropy"), apart=True),
    "accumulated": Setting(accumulated=True),
    "unused parameters sought": Setting(wrap=lambda model: _parallel(model, **_unused)),
    "unused parameters sought, density first": Setting(
        ("density", "entropy"), wrap=lambda model: _parallel(model, **_unused)
    ),
    "unused parameters sought, alone": Setting(("density",), wrap=lambda model: _parallel(model, **_unused)),
    "batch norm": Setting(batch_norm=True),
    "batch norm, density first": Setting(("density", "entropy"), batch_norm=True),
    "batch norm, evaluation mode": Setting(batch_norm=True, training=False),
    "gradients in buckets": Setting(wrap=lambda model: _parallel(model, gradient_as_bucket_view=True)),
    "centered": Setting(view=CenteredLogits, batch_norm=True),
    "compiled within": Setting(wrap=lambda model: _parallel(_compiled(model)), **_few),
    "compiled around": Setting(wrap=lambda model: _compiled(_parallel(model)), **_few),
}
STATIC, NORMALIZER, RESTORED = "static graph", "normalizer", "restored"
CHECKS = [
    *(f"{setting}: {', '.join(names)}" for setting, how in SETTINGS.items() for names in how.checks()),
    STATIC,
    NORMALIZER,
    RESTORED,
]


def network(batch_norm: bool, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=not batch_norm), norm, nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(8, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (8,), generator=generator)


def parts(t: Tensor) -> Sequence[Tensor]:
    """What each process trains on."""
    return t.chunk(PROCESSES)


def take_step(
    models: Sequence[nn.Module], losses: Sequence[Sequence[nn.Module]], how: Setting, halves: Sequence[Any]
) -> None:
    """Backward passes of each model's loss on its part of the batch; here are all models that one process has."""
    totals: list[Any] = [0.0 for _ in models]
    for term in how.terms:
        if term == "entropy":
            # What DistributedDataParallel does before a forward pass.
            for model in models[1:]:
                for own, first in zip(model.buffers(), models[0].buffers(), strict=True):
                    own.data.copy_(first)
        for i, (model, own, (x, y)) in enumerate(zip(models, losses, halves, strict=True)):
            loss = cross_entropy(model(x), y) if term == "entropy" else sum(0.1 * loss(model, x, y) for loss in own)
            if how.apart:
                loss.backward()
            else:
                totals[i] = totals[i] + loss
    if not how.apart:
        for total in totals:
            total.backward()


def gradients(
    models: Sequence[nn.Module], losses: Sequence[Sequence[nn.Module]], how: Setting, halves: Sequence[Any]
) -> Iterator[list[Tensor]]:
    """Of each step, the mean over the models; after it they move along."""
    for _ in range(STEPS):
        for model in models:
            model.zero_grad()
        if how.accumulated:
            with contextlib.ExitStack() as stack:
                for model in models:
                    if isinstance(model, DistributedDataParallel):  # else nothing is synchronized
                        stack.enter_context(model.no_sync())
                take_step(models, losses, how, [(x[:2], y[:2]) for x, y in halves])
            take_step(models, losses, how, [(x[2:], y[2:]) for x, y in halves])
        else:
            take_step(models, losses, how, halves)
        means = []
        for same in zip(*(model.parameters() for model in models), strict=True):
            means.append(sum(torch.zeros_like(p) if p.grad is None else p.grad for p in same) / len(same))
            for p in same:
                p.data -= RATE * means[-1]
        yield [g.clone() for g in means]


def split_batch() -> list[tuple[Tensor, Tensor]]:
    x, y = batch()
    return list(zip(parts(x), parts(y), strict=True))


def losses_of(names: Sequence[str]) -> list[nn.Module]:
    return [LOSSES[name]() for name in names]


Steps = list[list[Tensor]]
Reference = tuple[Setting, tuple[str, ...]]


def reference(how: Setting, names: Sequence[str]) -> Steps:
    """The gradients of a single process with both parts."""
    halves = split_batch()
    models = [how.view(network(how.batch_norm)).train(how.training) for _ in halves]
    return list(gradients(models, [losses_of(names) for _ in halves], how, halves))


def references() -> dict[Reference, Steps | str]:
    """For each setting on one process; each process computes its share. An error's text where one is raised."""
    every = [(how.on_one_process(), tuple(names)) for how in SETTINGS.values() for names in how.checks()]
    unique = list(dict.fromkeys(every))
    mine: list[Steps | str] = []
    for how, names in unique[torch.distributed.get_rank() :: PROCESSES]:
        try:
            mine.append(reference(how, names))
        except Exception as error:
            mine.append(f"{type(error).__name__}: {error}")
    shares: list[Any] = [None] * PROCESSES
    torch.distributed.all_gather_object(shares, mine)
    return {one: shares[i % PROCESSES][i // PROCESSES] for i, one in enumerate(unique)}


def difference(how: Setting, names: Sequence[str], expected: Steps | str) -> float:
    """The largest of a gradient on this process from that of a single process with both parts."""
    if isinstance(expected, str):
        raise RuntimeError(expected)
    own = split_batch()[torch.distributed.get_rank()]
    model = how.view(how.wrap(network(how.batch_norm))).train(how.training)
    steps = gradients([model], [losses_of(names)], how, [own])
    pairs = [pair for both in zip(expected, steps, strict=True) for pair in zip(*both, strict=True)]
    assert pairs
    return max(float((a - b).abs().max()) for a, b in pairs)


def static_graph() -> str:
    x, y = (parts(t)[0] for t in batch())
    model = DistributedDataParallel(network(False), static_graph=True)
    try:
        GradientNormLoss()(model, x, y)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def normalizer() -> float:
    """The difference of the normaliser's gradient, where the loss is in DistributedDataParallel as well."""
    x, y = batch()
    model, loss = network(False), noise_contrastive()
    for half in zip(parts(x), parts(y), strict=True):
        loss.generator = _generator()
        (loss(model, *half) / PROCESSES).backward()
    expected = loss.log_normalizer.grad

    model, loss = network(False), noise_contrastive()
    parallel_loss, parallel_model = DistributedDataParallel(loss), DistributedDataParallel(model)
    rank = torch.distributed.get_rank()
    parallel_loss(parallel_model, parts(x)[rank], parts(y)[rank]).backward()
    assert bool(expected)
    return float((loss.log_normalizer.grad - expected).abs().max())


def restored() -> float:
    """1 where a loss leaves DistributedDataParallel's buffers as they were not: broadcast or not."""
    x, y = (parts(t)[0] for t in batch())
    inner = network(True)
    model = DistributedDataParallel(inner)
    inner[1].running_mean += torch.distributed.get_rank()
    GradientNormLoss()(model, x, y)
    untouched = bool((inner[1].running_mean == torch.distributed.get_rank()).all())
    return float(not untouched or not model.broadcast_buffers)


def check(name: str, expected: dict[Reference, Steps | str]) -> float | str:
    special: dict[str, Callable[[], float | str]] = {
        STATIC: static_graph,
        NORMALIZER: normalizer,
        RESTORED: restored,
    }
    if name in special:
        return special[name]()
    setting, _, names = name.partition(": ")
    how = SETTINGS[setting]
    one = tuple(how.losses) if how.together else (names,)
    return difference(how, one, expected[how.on_one_process(), one])


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), world_size=PROCESSES, rank=rank
    )
    expected = references()
    results: dict[str, float | str] = {}
    for name in CHECKS:
        try:
            results[name] = check(name, expected)
        except Exception as error:  # on both, or the other waits for its time limit
            results[name] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
