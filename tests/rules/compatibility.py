"""What FullGrad, BalancedGradients and CompleteDeepLift work with: the rows of `tutorials/guides/compatibility.md`.

`python -m tests.rules.compatibility` prints the page's table.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from captum.attr import LRP, DeepLift, GuidedBackprop, InputXGradient, NoiseTunnel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.rules import BalancedGradients

Model = Callable[..., Any]
METHODS: dict[str, Callable[[Model], Any]] = {
    "FullGrad": lambda model: FullGrad(model, complete=True),
    "BalancedGradients": lambda model: InputXGradient(BalancedGradients(model)),
    "CompleteDeepLift": CompleteDeepLift,
}


class Network(nn.Module):
    """What each of the three has work with: a normalisation, a GELU, a ReLU, in parts that can be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 6) to (N, 3)."""
        return self.head(self.second(self.first(x)))


@functools.cache
def network() -> Network:
    """The network, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Network().eval()
        nn.init.normal_(model.first[1].bias)
    return model


def inputs() -> Tensor:
    """(4, 6)."""
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Cell:
    """What the page says of a method in a setting.

    Args:
        text: As on the page; "yes", and what is to be known, or "no", and what to do.
        refusal: A pattern of the error, where it is "no".
        warning: A pattern of a warning, where there is one.
        same: Whether attributions are those of the network by itself.
    """

    text: str
    refusal: str | None = None
    warning: str | None = None
    same: bool = True


@dataclass(frozen=True)
class Row:
    """A setting.

    Args:
        name: As on the page.
        cells: By method.
        settings: Each enters it, and gives the model and the inputs.
        attribute: Calls the method on these.
        tolerance: Of attributions and of their sums, relative to the largest.
    """

    name: str
    cells: dict[str, Cell]
    settings: tuple[Callable[[], contextlib.AbstractContextManager[tuple[Model, Tensor]]], ...]
    attribute: Callable[[Callable[[Model], Any], Model, Tensor], Any] = lambda make, model, x: make(model).attribute(
        x, target=1
    )
    tolerance: float = 1e-5


def _plain(model: Model) -> Callable[[], contextlib.AbstractContextManager[tuple[Model, Tensor]]]:
    return lambda: contextlib.nullcontext((model, inputs()))


@contextlib.contextmanager
def _compiled() -> Iterator[tuple[Model, Tensor]]:
    yield torch.compile(network(), backend="eager"), inputs()


@contextlib.contextmanager
def _compiled_part() -> Iterator[tuple[Model, Tensor]]:
    part = torch.compile(network().first, backend="eager")
    yield lambda x: network().head(network().second(part(x))), inputs()


@contextlib.contextmanager
def _autocast() -> Iterator[tuple[Model, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16):
        yield network(), inputs()


@contextlib.contextmanager
def _bfloat16() -> Iterator[tuple[Model, Tensor]]:
    yield copy.deepcopy(network()).bfloat16(), inputs().bfloat16()


@contextlib.contextmanager
def _no_grad() -> Iterator[tuple[Model, Tensor]]:
    with torch.no_grad():
        yield network(), inputs()


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _distributed() -> Iterator[tuple[Model, Tensor]]:
    with _one_process():
        yield nn.parallel.DistributedDataParallel(copy.deepcopy(network())), inputs()


@contextlib.contextmanager
def _fsdp() -> Iterator[tuple[Model, Tensor]]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with _one_process():
        yield FullyShardedDataParallel(copy.deepcopy(network()), device_id=torch.device("cpu")), inputs()


@contextlib.contextmanager
def _fully_shard() -> Iterator[tuple[Model, Tensor]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with _one_process():
        model, mesh = copy.deepcopy(network()), init_device_mesh("cpu", (1,))
        for part in (model.first, model.second, model):
            fully_shard(part, mesh=mesh)
        yield model, inputs()


@contextlib.contextmanager
def _known_to_lrp() -> Iterator[tuple[Model, Tensor]]:
    yield nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), inputs()


def _checkpointed(reentrant: bool) -> Model:
    def model(x: Tensor) -> Tensor:
        hidden = checkpoint(network().first, x * 1, use_reentrant=reentrant)
        return network().head(network().second(hidden))

    return model


def _within(method: Callable[..., Any]) -> Callable[[Callable[[Model], Any], Model, Tensor], Any]:
    """Calls what is tested while another method's hooks are on: on the view, or in a module that calls it."""

    class Calls(nn.Module):
        def __init__(self, make: Callable[[Model], Any], model: nn.Module) -> None:
            super().__init__()
            self.make, self.model = make, model

        def forward(self, x: Tensor) -> Tensor:
            return self.make(self.model).attribute(x.detach(), target=1)

    def attribute(make: Callable[[Model], Any], model: Model, x: Tensor) -> Any:
        made = make(model)
        view = made.forward_func if isinstance(made.forward_func, BalancedGradients) else Calls(make, model)
        return method(view).attribute(x, target=1)

    return attribute


def _second_derivative(make: Callable[[Model], Any], model: Model, x: Tensor) -> Any:
    """Attributions, once a derivative of theirs has been taken."""
    x = x.requires_grad_()
    made = make(model)
    if isinstance(made, FullGrad):
        attributions = made.attribute(x, target=1, create_graph=True)
    elif isinstance(made, InputXGradient):
        attributions = torch.autograd.grad(made.forward_func(x)[:, 1].sum(), x, create_graph=True)[0] * x
    else:
        attributions = made.attribute(x, target=1)
    (second,) = torch.autograd.grad(attributions.square().sum(), x)
    assert second.abs().max() > 0
    return attributions


def _noise_tunnel(make: Callable[[Model], Any], model: Model, x: Tensor) -> Any:
    return NoiseTunnel(make(model)).attribute(x, target=1, nt_samples=2, stdevs=0.0)


_YES = Cell("yes")
_WITHOUT_CHECKPOINTS = Cell(
    "no: `model.gradient_checkpointing_disable()`, or `model.eval()`", "gradient_checkpointing_disable"
)
_ANOTHER_METHOD = {
    "FullGrad": Cell("no: explain the model itself", "two methods at once"),
    "BalancedGradients": Cell("no: take `InputXGradient`, or another that has no hooks", "two methods at once"),
    "CompleteDeepLift": Cell("no: explain the model itself", "two methods at once"),
}


def _cells(full_grad: Cell, balanced: Cell, deep_lift: Cell) -> dict[str, Cell]:
    return dict(zip(METHODS, (full_grad, balanced, deep_lift), strict=True))


_HALF = Cell("yes, to bfloat16's precision")
ROWS = (
    Row(
        "`torch.compile`, of the model or a part",
        _cells(*[Cell("yes: runs as it was written")] * 3),
        (_compiled, _compiled_part),
    ),
    Row("`torch.autocast`", _cells(_HALF, _HALF, Cell("yes: switched off inside")), (_autocast,), tolerance=3e-2),
    Row("a model in bfloat16", _cells(_HALF, _HALF, _HALF), (_bfloat16,), tolerance=6e-2),
    Row(
        "`torch.vmap` inside the model",
        _cells(
            Cell("yes"),
            Cell("no: write it on the whole batch", "whole batch"),
            Cell("yes: the model is one step, and a warning says so", warning="one step", same=False),
        ),
        (_plain(lambda x: torch.vmap(network())(x)),),
    ),
    Row("`nn.DataParallel`", _cells(_YES, _YES, _YES), (_plain(nn.DataParallel(network())),)),
    Row("`DistributedDataParallel`", _cells(_YES, _YES, _YES), (_distributed,)),
    Row("`FullyShardedDataParallel`", _cells(_YES, _YES, _YES), (_fsdp,)),
    Row(
        "`fully_shard` (FSDP 2)",
        _cells(Cell("no: explain the model before it is sharded", "before"), _YES, _YES),
        (_fully_shard,),
    ),
    Row(
        "activation checkpointing, `use_reentrant=False`",
        _cells(_YES, _WITHOUT_CHECKPOINTS, _WITHOUT_CHECKPOINTS),
        (_plain(_checkpointed(False)),),
    ),
    Row(
        "activation checkpointing, `use_reentrant=True`",
        _cells(Cell("no: `use_reentrant=False`", "use_reentrant=False"), _WITHOUT_CHECKPOINTS, _WITHOUT_CHECKPOINTS),
        (_plain(_checkpointed(True)),),
    ),
    Row("called under `torch.no_grad`", _cells(_YES, _YES, _YES), (_no_grad,)),
    Row(
        "second derivatives",
        _cells(
            Cell("yes: `create_graph=True`"),
            Cell("no: `rules=\"jacobian\"`, or the model", "rules='jacobian'"),
            Cell("no: attributions have no graph", "does not require grad"),
        ),
        (_plain(network()),),
        _second_derivative,
    ),
    Row("inside Captum's `DeepLift`", _ANOTHER_METHOD, (_plain(network()),), _within(DeepLift)),
    Row("inside `GuidedBackprop`, `Deconvolution`", _ANOTHER_METHOD, (_plain(network()),), _within(GuidedBackprop)),
    Row("inside Captum's `LRP`", _ANOTHER_METHOD, (_known_to_lrp,), _within(LRP)),
    Row("inside `NoiseTunnel`", _cells(_YES, _YES, _YES), (_plain(network()),), _noise_tunnel),
)  # fmt: skip


def table() -> str:
    """The page's table."""
    lines = [["", *(f"`{name}`" for name in METHODS)], ["---"] * (1 + len(METHODS))]
    lines += [[row.name, *(row.cells[name].text for name in METHODS)] for row in ROWS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("|  |", "| |")


if __name__ == "__main__":
    print(table())
