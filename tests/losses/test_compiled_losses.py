"""Losses of compiled models, and under autocast: the numbers are those of the plain model."""

import copy
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from captum_density.losses import GradientNormLoss
from tests.losses.distributed_step import LOSSES, batch, network

# Those that take no derivative twice run what was compiled.
RUN_COMPILED = [
    "distillation",
    "anti score matching, antithetic",
    "finite difference",
    "noise contrastive",
    "contrastive divergence",
]

Backend = Callable[..., Any]


# The compiler's own, which looks at the .grad of whatever a compiled function is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """Compiles to what runs the traced operations, and counts the runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


class Refusing:
    """Finds no module, and is not to be asked for one."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        assert name != self.module, f"{name} is loaded"


def around(model: nn.Module, backend: Backend | str) -> nn.Module:
    return torch.compile(model, backend=backend)


def within(model: nn.Module, backend: Backend | str) -> nn.Module:
    return nn.Sequential(torch.compile(model[:3], backend=backend), model[3:])


def in_place(model: nn.Module, backend: Backend | str) -> nn.Module:
    model.compile(backend=backend)
    return model


How = Callable[[nn.Module, Backend | str], nn.Module]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[[How], tuple[nn.Module, nn.Module]]]:
    """Makes a network and what is compiled of it, once for all losses, as that takes longest.

    Its backward pass is compiled as well, and cannot be differentiated: as the default backend's.
    """

    @functools.cache
    def make(how: How) -> tuple[nn.Module, nn.Module]:
        model = network(True)
        return model, how(model, "aot_eager")

    # By default, code of which there are eight versions is left as it is.
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield make
    torch._dynamo.reset()


def trained(model: nn.Module, loss: nn.Module) -> list[Tensor | None]:
    """The loss and its gradients, after a step's cross-entropy."""
    x, y = batch()
    value = loss(model, x, y)
    (cross_entropy(model(x), y) + value).backward()
    return [value.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, around) for name in LOSSES),
        *((name, how) for name in ("gradient norm", "finite difference") for how in (within, in_place)),
    ],
)
def test_a_compiled_model_has_the_same_loss_and_gradients(
    name: str, how: How, compiled: Callable[[How], tuple[nn.Module, nn.Module]]
) -> None:
    plain = network(True)
    of_compiled, model = compiled(how)
    of_compiled.load_state_dict(plain.state_dict())
    of_compiled.zero_grad()
    expected = trained(plain, LOSSES[name]())
    torch.testing.assert_close(trained(model, LOSSES[name]()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_run_compiled(name: str) -> None:
    counting, (x, y) = Counting(), batch()
    model = around(network(False), counting)
    LOSSES[name]()(model, x, y).backward()
    assert (counting.runs > 0) == (name in RUN_COMPILED)
    before = counting.runs
    model(x)
    assert counting.runs == before + 1, "compiled code is switched off still"


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_step_has_the_same_gradients(name: str) -> None:
    counting, (x, y) = Counting(), batch()
    plain, model = network(False), network(False)
    (cross_entropy(plain(x), y) + LOSSES[name]()(plain, x, y)).backward()
    loss = LOSSES[name]()

    @torch.compile(backend=counting)
    def step(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y) + loss(model, x, y)

    step(x, y).backward()
    assert counting.runs > 0
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-9, atol=1e-12)


UNCOMPILED = """
import torch
from captum_density.losses import SlicedScoreMatchingLoss
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softplus(), torch.nn.Linear(4, 2))
SlicedScoreMatchingLoss()(model, torch.rand(4, 3), 0).backward()
"""


def test_nothing_of_the_compiler_is_loaded_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_dynamo", raising=False)
    for name in [name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refusing("torch._dynamo"), *sys.meta_path])
    exec(UNCOMPILED, {})
    with pytest.raises(AssertionError, match=r"torch\._dynamo is loaded"):
        torch._dynamo.reset()


@pytest.mark.slow
def test_nor_is_it_loaded_in_a_new_interpreter() -> None:
    code = f"{UNCOMPILED}\nimport sys\nassert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=120)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_leaves_the_loss_in_full_precision(name: str) -> None:
    x, y = batch()
    x = x.float()
    plain = network(True).float()
    model = copy.deepcopy(plain)
    expected = LOSSES[name]().float()(plain, x, y)
    expected.backward()

    loss = LOSSES[name]().float()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        # The loss first: the cross-entropy's forward pass moves the running statistics.
        value = loss(model, x, y)
        entropy = cross_entropy(model(x), y)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    own = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    for result, parameter in zip(own, plain.parameters(), strict=True):
        assert (result is None) == (parameter.grad is None)
        assert result is None or torch.equal(result, parameter.grad)

    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(entropy + value).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() >= 2.0, "the step was skipped"
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad.isfinite().all()
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, old)


def test_in_one_process_only_what_the_loss_depends_on_has_a_gradient() -> None:
    """The zeros that several processes need are no NaN here, though the derivative of sqrt at 0 is infinite."""
    weight, offset = torch.ones(3, requires_grad=True), torch.zeros((), requires_grad=True)
    GradientNormLoss()(lambda x: x @ weight + offset.sqrt(), torch.randn(4, 3)).backward()
    assert torch.equal(weight.grad, torch.ones(3))
    assert offset.grad is None
