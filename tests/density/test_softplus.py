import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from captum_density.density import class_log_density, hessian_trace, softplus_surrogate

DOUBLE = torch.float64
BETA = 3.0


class Spelled(nn.Module):
    """A layer, a rectification spelled in some way, a layer."""

    def __init__(self, rectify):
        super().__init__()
        self.first, self.rectify, self.last = nn.Linear(3, 8), rectify, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.rectify(self.first(x)))


def smooth(u, slope=0.0):
    """The slow form: log(1 + exp(beta u)) / beta, for a leaky one between it and a line."""
    return (1 - slope) * torch.log1p(torch.exp(BETA * u)) / BETA + slope * u


PLAIN = {
    "nn.ReLU": nn.ReLU(),
    "F.relu": functional.relu,
    "F.relu by name": lambda u: functional.relu(input=u, inplace=False),
    "torch.relu": torch.relu,
    "torch.relu by name": lambda u: torch.relu(input=u),
    "tensor.relu": lambda u: u.relu(),
    "torch.clamp": lambda u: torch.clamp(u, 0),
    "torch.clamp by name": lambda u: torch.clamp(input=u, min=0.0, max=None),
    "tensor.clamp": lambda u: u.clamp(min=0),
    "tensor.clamp_min": lambda u: u.clamp_min(0),
    "torch.clip": lambda u: torch.clip(u, 0.0),
}
IN_PLACE = {
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu in place": lambda u: functional.relu(u, True),
    "F.relu in place by name": lambda u: functional.relu(u, inplace=True),
    "F.relu_": functional.relu_,
    "torch.relu_": torch.relu_,
    "tensor.relu_": lambda u: u.relu_(),
    "torch.clamp_": lambda u: torch.clamp_(u, min=0),
    "tensor.clamp_": lambda u: u.clamp_(0),
    "tensor.clamp_min_": lambda u: u.clamp_min_(0),
    "tensor.clip_": lambda u: u.clip_(min=0),
}
LEAKY = {
    "nn.LeakyReLU": (nn.LeakyReLU(), 0.01),
    "nn.LeakyReLU in place": (nn.LeakyReLU(0.2, inplace=True), 0.2),
    "F.leaky_relu": (lambda u: functional.leaky_relu(u, 0.3), 0.3),
    "F.leaky_relu by name": (lambda u: functional.leaky_relu(input=u, negative_slope=0.3), 0.3),
    "F.leaky_relu_": (lambda u: functional.leaky_relu_(u, 0.3), 0.3),
}
SPELLINGS = {name: (f, 0.0) for name, f in {**PLAIN, **IN_PLACE}.items()} | LEAKY


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=DOUBLE)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_replaced(x, name):
    rectify, slope = SPELLINGS[name]
    model, twin = Spelled(rectify).double(), Spelled(lambda u: smooth(u, slope)).double()
    twin.load_state_dict(model.state_dict())
    original = model(x)
    with softplus_surrogate(model, BETA) as within:
        assert within is model
        torch.testing.assert_close(model(x), twin(x))
        torch.testing.assert_close(hessian_trace(model, x, 1, "exact"), hessian_trace(twin, x, 1, "exact"))
        assert hessian_trace(model, x, 1, "exact").all()
        first = torch.autograd.grad(model(x).square().sum(), model.first.weight)
        torch.testing.assert_close(first, torch.autograd.grad(twin(x).square().sum(), twin.first.weight))
        # Trained through the second derivative, too.
        by_weights = torch.autograd.grad(
            hessian_trace(model, x, 1, "exact", create_graph=True).sum(), model.first.weight
        )
        expected = torch.autograd.grad(hessian_trace(twin, x, 1, "exact", create_graph=True).sum(), twin.first.weight)
        torch.testing.assert_close(by_weights, expected)
    assert torch.equal(model(x), original)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_is_in_place(x, name):
    class Remembers(nn.Module):
        def forward(self, x):
            u = x * 2
            result = IN_PLACE[name](u)
            assert result is u
            return u + result  # what was overwritten is used again

    model = Remembers()
    with softplus_surrogate(model, BETA):
        torch.testing.assert_close(model(x), 2 * smooth(2 * x))
        assert torch.autograd.gradcheck(model, x.requires_grad_())
        assert torch.autograd.gradgradcheck(model, x)


def test_equals_the_network_with_softplus_modules():
    def network(activation):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), activation(), nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(4, 4, 2), activation()), nn.Flatten(), nn.Linear(16, 3),
        ).eval()  # fmt: skip

    for inplace in (False, True):
        model, twin = network(lambda inplace=inplace: nn.ReLU(inplace)), network(lambda: nn.Softplus(5))
        twin.load_state_dict(model.state_dict())
        x = torch.randn(2, 1, 8, 8)
        with softplus_surrogate(model, 5):
            assert torch.equal(model(x), twin(x))
            assert torch.equal(class_log_density(model, x, 1), class_log_density(twin, x, 1))
        assert not torch.allclose(model(x), twin(x))


def test_default_sharpness():
    with softplus_surrogate(nn.ReLU()) as model:
        assert model(torch.zeros(1)).item() == pytest.approx(math.log(2) / 10)


@pytest.mark.parametrize("beta", [1.0, 10.0, 1e4])
def test_distance_from_relu_is_bounded(beta):
    u = torch.linspace(-3, 3, 1001, dtype=DOUBLE)
    model = nn.ReLU()
    expected = model(u)
    with softplus_surrogate(model, beta):
        apart = model(u) - expected
    assert apart.min() >= 0
    assert apart.max().item() == pytest.approx(math.log(2) / beta)


@pytest.mark.parametrize(
    "rectify",
    [
        lambda u: u.clamp(0, 1),
        lambda u: u.clamp(min=0, max=1),
        lambda u: u.clamp(max=0),
        lambda u: u.clamp(min=-1),
        functional.relu6,
        functional.hardtanh,
        torch.abs,
        lambda u: u * torch.arange(-4, 4).clamp(min=0) * torch.arange(-4, 4).relu(),
    ],
    ids=["clamp to 1", "by name", "from above", "at -1", "relu6", "hardtanh", "abs", "integers"],
)
def test_what_is_no_relu_is_left_alone(x, rectify):
    model = Spelled(rectify).double()
    expected = model(x)
    with (
        pytest.warns(UserWarning, match="met no ReLU in this model, and changed nothing") as caught,
        softplus_surrogate(model),
    ):
        assert torch.equal(model(x), expected)
    assert caught[0].filename == __file__


def test_nothing_is_warned_of_where_the_model_did_not_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with softplus_surrogate(nn.Linear(3, 3)):
            pass


class Unlucky(nn.Module):
    def forward(self, x):
        raise KeyError("of the model's own")


def test_restored_after_success_and_after_exceptions(x):
    model = nn.Sequential(Spelled(torch.relu), nn.ReLU()).double()
    expected, before = model(x), dict(vars(model))
    with softplus_surrogate(model):
        assert not torch.equal(model(x), expected)
    assert vars(model) == before
    with pytest.raises(ZeroDivisionError), softplus_surrogate(model):
        raise ZeroDivisionError
    assert vars(model) == before
    unlucky = nn.Sequential(model, Unlucky())
    with pytest.raises(KeyError), softplus_surrogate(unlucky):
        unlucky(x)
    assert torch.equal(model(x), expected)
    assert torch.equal(torch.relu(-x.abs()), torch.zeros_like(x))


def test_a_forward_of_the_instances_own_is_put_back(x):
    model = nn.ReLU()

    def own(x):
        return torch.relu(x) + 1

    model.forward = own
    with softplus_surrogate(model, BETA):
        torch.testing.assert_close(model(x), smooth(x) + 1)
    assert model.forward is own


def test_only_the_model_given_is_changed(x):
    shared = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double()
    part, whole, other = nn.Sequential(shared), nn.Sequential(shared, nn.Linear(3, 3).double(), nn.ReLU()), nn.ReLU()
    parts = {f: f(x) for f in (shared, whole, other)}
    with softplus_surrogate(part, BETA):
        # Their modules are the same objects, but it is the call of the given one that counts.
        torch.testing.assert_close(part(x), smooth(shared[0](x)))
        for f, expected in parts.items():
            assert torch.equal(f(x), expected)
        assert torch.equal(x.relu(), x.clamp(min=0))
    with softplus_surrogate(shared, BETA):
        torch.testing.assert_close(whole(x), whole[1](smooth(shared[0](x))).relu())
        assert torch.equal(part(x), shared(x))


def test_two_models_with_sharpnesses_of_their_own(x):
    inner, model = nn.ReLU(), nn.Sequential(nn.ReLU())
    with softplus_surrogate(inner, 1.0), softplus_surrogate(model, 5.0):
        assert torch.equal(inner(x), functional.softplus(x))
        assert torch.equal(model(x), functional.softplus(x, 5))
        assert torch.equal(inner(x), functional.softplus(x))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", functional.relu, nn.ReLU()], ids=["name", "function", "module"])
def test_transformer_in_evaluation_mode_takes_no_fast_path(activation, norm_first):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, **options).eval()
    twin = nn.TransformerEncoderLayer(8, 2, 16, activation=lambda u: functional.softplus(u, BETA), **options).eval()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 8)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode(), softplus_surrogate(layer, BETA):
            torch.testing.assert_close(layer(x), twin(x))
            encoder = nn.TransformerEncoder(twin, 1, enable_nested_tensor=False).eval()
            torch.testing.assert_close(layer(x), encoder(x))
    trace = []
    for model in (layer, twin):
        head = nn.Sequential(model, nn.Flatten(), nn.Linear(40, 3))
        head[2].weight.data.fill_(0.1)
        head[2].weight.data[:, ::3] = -0.3
        with softplus_surrogate(layer, BETA):
            trace.append(hessian_trace(head, x, 1, "exact"))
    torch.testing.assert_close(trace[0], trace[1], atol=1e-4, rtol=1e-4)


def test_relu_network_has_second_derivatives_within(x):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with pytest.warns(UserWarning, match="exactly zero"):
        assert not hessian_trace(model, x, 1, "exact").any()
    with softplus_surrogate(model):
        assert hessian_trace(model, x, 1, "exact").all()


@pytest.mark.parametrize("beta", [0, -1.0, math.nan, math.inf])
def test_bad_sharpness_is_refused(beta):
    with (
        pytest.raises(ValueError, match=f"beta must be positive and finite, but is {beta}"),
        softplus_surrogate(nn.ReLU(), beta),
    ):
        pass


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_runs_no_python_is_refused():
    relu = nn.ReLU()
    for model, name in (
        (torch.relu, "function|builtin"),
        (torch.compile(relu), "OptimizedModule"),
        (torch.jit.script(relu), "RecursiveScriptModule"),
        (nn.Sequential(nn.Linear(3, 3), torch.compile(relu)), "module '1' .*OptimizedModule"),
        (nn.Sequential(nn.Linear(3, 3), torch.jit.script(relu)), "module '1' .*ScriptModule"),
    ):
        with pytest.raises(TypeError, match=name), softplus_surrogate(model):
            pass


def test_copies_made_within_have_weights_of_their_own():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with softplus_surrogate(model):
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied[0].weight.zero_()
            copied[0].bias.zero_()
            torch.testing.assert_close(copied(torch.ones(1, 2)), torch.full((1, 2), math.log(2) / 10))
            assert not torch.equal(model(torch.ones(1, 2)), copied(torch.ones(1, 2)))
