import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softplus

from captum_density.density import hessian_trace

DOUBLE = torch.float64
ESTIMATORS = ("antithetic", "taylor", "hutchinson", "exact")
LABELS = torch.tensor([2, 0, 1, 1])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Network(nn.Module):
    """Smooth, of two inputs and a further argument."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x, y=None, factor=1.0):
        hidden = self.first(x.flatten(1))
        hidden = hidden if y is None else hidden + self.second(y)
        return self.head(softplus(hidden * factor))


class Cube(torch.autograd.Function):
    """Has no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class WithCube(Network):
    def forward(self, x):
        return self.head(Cube.apply(self.first(x.flatten(1))))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.embed, self.head = (
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(3, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        x = self.embed(x)
        x = self.own(x, x, x, need_weights=False)[0]
        return self.head(scaled_dot_product_attention(x, x, x).mean(1))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.GELU(), nn.LayerNorm((4, 2)), nn.MaxPool1d(2), nn.Flatten()
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layers(x))


class Normed(nn.Module):
    """(N, 2, 3) to 4 channels of 5, normalised, to 3 logits."""

    def __init__(self, norm):
        super().__init__()
        self.before, self.norm, self.after = nn.Linear(6, 20), norm, nn.Linear(20, 3)
        for p in norm.parameters():
            nn.init.normal_(p)

    def forward(self, x):
        y = self.norm(nn.functional.softplus(self.before(x.flatten(1))).reshape(-1, 4, 5))
        return self.after(nn.functional.softplus(y.flatten(1)))


MODELS = {
    "softplus": Network,
    "no forward mode": WithCube,
    "convolutions and norms": Convolutions,
    "attention": Attention,
    "transformer": lambda: nn.Sequential(
        nn.Linear(3, 4),
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "instance norm": lambda: Normed(nn.InstanceNorm1d(4, affine=True)),
    "group norm": lambda: Normed(nn.GroupNorm(2, 4)),
    "RMS norm": lambda: Normed(nn.RMSNorm(5)),
    "RNN": lambda: Recurrent(nn.RNN),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
}


def random_softplus(width=64):
    return nn.Sequential(nn.Linear(8, width), nn.Softplus(), nn.Linear(width, 3)).double()


def hessian(log_density):
    """By reverse mode twice: forward mode, which the package takes, warns when first used."""
    return torch.func.jacrev(torch.func.jacrev(log_density))


def slow_hessians(log_density, x):
    """(N, d, d) example by example; `log_density` maps one example to a number."""
    d = x[0].numel()
    return torch.stack([hessian(log_density)(one).reshape(d, d) for one in x.detach()])


@pytest.fixture
def x():
    return torch.randn(4, 2, 3, dtype=DOUBLE)


@pytest.mark.parametrize("target", [1, LABELS, LABELS.tolist(), None], ids=["int", "tensor", "list", "None"])
def test_exact_is_the_trace_of_the_hessian(x, target):
    model = Network().double()
    classes = [target] * 4 if target is None or isinstance(target, int) else list(target)
    for n, c in enumerate(classes):
        hessians = slow_hessians(
            lambda a, c=c: model(a[None])[0].logsumexp(0) if c is None else model(a[None])[0, c], x
        )
        expected = hessians[n].trace()
        torch.testing.assert_close(hessian_trace(model, x, target, "exact")[n], expected)


def test_exact_is_over_all_inputs(x):
    model, y, factor = Network().double(), torch.randn(4, 4, dtype=DOUBLE), torch.rand(4, 1, dtype=DOUBLE)
    expected = []
    for n in range(4):

        def log_density(both, n=n):
            return model(both[None, :6], both[None, 6:], factor[n])[0, LABELS[n]]

        expected.append(hessian(log_density)(torch.cat([x[n].flatten(), y[n]])).trace())
    result = hessian_trace(model, (x, y), LABELS, "exact", additional_forward_args=factor)
    torch.testing.assert_close(result, torch.stack(expected))
    for samples in (1, 3):  # of the estimators too, the argument going with its example
        result = hessian_trace(
            model,
            (x, y),
            LABELS,
            noise_std=1e-3,
            n_samples=samples,
            generator=seeded(),
            additional_forward_args=(factor,),
        )
        generator = seeded()
        u, w = (torch.randn((samples, *a.shape), generator=generator, dtype=DOUBLE) for a in (x, y))
        for n in range(4):

            def log_density(both, n=n):
                return model(both[None, :6], both[None, 6:], factor[n])[0, LABELS[n]]

            matrix = hessian(log_density)(torch.cat([x[n].flatten(), y[n]]))
            directions = torch.cat([u[:, n].flatten(1), w[:, n]], dim=1)
            quadratic = torch.einsum("ki,ij,kj->k", directions, matrix, directions).mean()
            assert result[n].item() == pytest.approx(quadratic.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("samples", [1, 3])
def test_hutchinson_is_the_drawn_quadratic_form(x, distribution, samples):
    model = Network().double()
    result = hessian_trace(model, x, 1, "hutchinson", samples, generator=seeded(), distribution=distribution)
    if distribution == "rademacher":
        u = 2 * torch.randint(0, 2, (samples, 4, 2, 3), generator=seeded()).to(DOUBLE) - 1
    else:
        u = torch.randn((samples, 4, 2, 3), generator=seeded(), dtype=DOUBLE)
    hessians = slow_hessians(lambda a: model(a[None])[0, 1], x)
    expected = torch.einsum("kni,nij,knj->kn", u.flatten(2), hessians, u.flatten(2)).mean(0)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("std", [1.0, 0.1, 0.01])
def test_antithetic_is_exact_on_quadratics(std, samples):
    """Each sample is v'Hv / std^2 to rounding, which is below 8 eps |f| / std^2 with |f| below 40."""
    a = torch.randn(5, 5, dtype=DOUBLE)
    hessian, slope, x = a + a.T, torch.randn(5, dtype=DOUBLE), torch.randn(4, 5, dtype=DOUBLE)

    def log_density(x):
        return 0.5 * torch.einsum("ni,ij,nj->n", x, hessian, x) + x @ slope + 1

    result = hessian_trace(log_density, x, None, "antithetic", samples, std, seeded())
    u = torch.randn((samples, 4, 5), generator=seeded(), dtype=DOUBLE)
    expected = torch.einsum("kni,ij,knj->kn", u, hessian, u).mean(0)
    assert log_density(x).abs().max() < 40
    floor = 8 * torch.finfo(DOUBLE).eps * 40 / std**2
    torch.testing.assert_close(result, expected, atol=floor + 1e-12, rtol=0)
    # The one-sided estimate has the gradient in it.
    result = hessian_trace(log_density, x, None, "taylor", samples, std, seeded())
    expected = expected + 2 / std * (u * (x @ hessian + slope)).sum(2).mean(0)
    torch.testing.assert_close(result, expected, atol=floor + 1e-12, rtol=0)


def test_defaults(x):
    model = Network().double()
    result = hessian_trace(model, x, 1, generator=seeded())
    expected = hessian_trace(model, x, 1, "antithetic", 1, 0.1, seeded(), None, distribution="gaussian")
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", MODELS)
def test_forward_over_reverse_is_reverse_over_reverse(x, name):
    model = MODELS[name]().double().eval()
    u = torch.randn((5, 4, 2, 3), generator=seeded(), dtype=DOUBLE)
    # A third way: differences of gradients, in float64 good to a part in a million.
    leaf = (x + 1e-4 * u).requires_grad_()
    (plus,) = torch.autograd.grad(model(leaf.flatten(0, 1))[:, 1].sum(), leaf)
    leaf = (x - 1e-4 * u).requires_grad_()
    (minus,) = torch.autograd.grad(model(leaf.flatten(0, 1))[:, 1].sum(), leaf)
    expected = (u * (plus - minus) / 2e-4).flatten(2).sum(2).mean(0)
    trace = partial(hessian_trace, model, x, 1, "hutchinson", 5)
    by_forward = trace(generator=seeded())  # where an operation has no forward mode, by reverse mode too
    by_reverse = trace(generator=seeded(), create_graph=True)
    torch.testing.assert_close(by_reverse, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_forward, by_reverse.detach())
    # In single precision, where attention and recurrence have fused kernels.
    single = hessian_trace(copy.deepcopy(model).float(), x.float(), 1, "exact")
    torch.testing.assert_close(single.double(), hessian_trace(model, x, 1, "exact"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_have_gradients_by_the_weights(x, name):
    """Those of the curvature along a line, against its differences."""
    model = MODELS[name]().double().eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    trace = hessian_trace(model, x, 1, "hutchinson", 2, generator=seeded(), create_graph=True).sum()
    slopes = torch.autograd.grad(trace, weights, allow_unused=True, materialize_grads=True)
    direction = [torch.randn_like(p) for p in weights]
    ends = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for p, d in zip(weights, direction, strict=True):
                p += step * d
        ends.append(hessian_trace(model, x, 1, "hutchinson", 2, generator=seeded()).sum().item())
        with torch.no_grad():
            for p, d in zip(weights, direction, strict=True):
                p -= step * d
    expected = sum((s * d).sum().item() for s, d in zip(slopes, direction, strict=True))
    assert expected == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "name", ["softplus", "convolutions and norms", "attention", "transformer", "GRU", "LSTM", "RNN"]
)
def test_forward_mode_is_what_runs(x, name):
    """One run of the model for all directions, and no second graph: inputs of the model are dual numbers."""
    tangents = []

    def recorder(x):
        tangents.append(torch.autograd.forward_ad.unpack_dual(x).tangent is not None)
        return model(x)

    model = MODELS[name]().double().eval()
    hessian_trace(recorder, x, 1, "exact")
    assert tangents == [True]


def test_recurrence_is_not_fused_of_a_bound_method_either(x):
    class Recorded(Recurrent):
        def forward(self, x):
            fused.append((torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled))
            return super().forward(x)

    fused, model = [], Recorded(nn.GRU).double()
    for forward in (model, model.forward):
        hessian_trace(forward, x, 1, "exact")
    assert set(fused) == {(False, False)}


def test_compiled_model_is_differentiated_twice(x):
    model = Network().double()
    result = hessian_trace(torch.compile(model), x, 1, "exact")  # not run, so nothing is compiled
    assert torch.equal(result, hessian_trace(model, x, 1, "exact"))


def of_many(model, n, *args, std_error=None, **options):
    """Mean and its standard error over n independent estimates at one point."""
    point = torch.linspace(-1, 1, 8, dtype=DOUBLE)
    result = hessian_trace(model, point.expand(n, 8), 1, *args, **options)
    return result.mean().item(), result.std().item() / math.sqrt(n)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", ["antithetic", "taylor", "hutchinson"])
def test_estimators_are_unbiased(name, distribution):
    """Within 5 standard errors, at a std where the curvature's change is below them."""
    model = random_softplus()
    exact = hessian_trace(model, torch.linspace(-1, 1, 8, dtype=DOUBLE)[None], 1, "exact").item()
    options = {} if name == "hutchinson" else {"noise_std": 0.02}
    mean, error = of_many(model, 20_000, name, generator=seeded(), distribution=distribution, **options)
    assert error > 0
    assert abs(mean - exact) < 5 * error
    if name != "taylor":  # whose error is as large as the trace: see the test of its formula
        assert error < 0.1 * abs(exact)


def test_antithetic_has_a_thousandth_of_the_variance():
    # Measured 1e4 at std 0.01 for a network trained on digits.
    model = random_softplus()
    variances = [
        of_many(model, 2000, name, noise_std=0.01, generator=seeded())[1] ** 2 for name in ("antithetic", "taylor")
    ]
    assert variances[1] > 1000 * variances[0]


def test_rademacher_has_no_variance_on_a_diagonal_hessian():
    weight, x = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)
    for options in ({"noise_std": 0.5}, {"estimator": "hutchinson"}):
        result = hessian_trace(lambda x: -0.5 * (weight * x**2).sum(1), x, distribution="rademacher", **options)
        torch.testing.assert_close(result, torch.full((4,), -6.0, dtype=DOUBLE))


@pytest.mark.parametrize("name", ["antithetic", "taylor"])
@pytest.mark.parametrize("std", [0.1, 1.0])
def test_mean_is_the_trace_of_the_smoothed_function(name, std):
    """Of |x|, whose second derivative smoothed by variance t is twice the normal density of that variance at x."""
    points = torch.tensor([0.0, 0.05, 0.3, 1.0], dtype=DOUBLE)
    root = std * math.sqrt(2)
    smoothed = std * math.sqrt(2 / math.pi) * (-((points / root) ** 2)).exp() + points * torch.erf(points / root)
    expected = 2 * (smoothed - points) / std**2
    # The same from the heat equation: averaged over variances from 0 to std^2, by midpoints of t = (s std)^2.
    s = (torch.arange(20_000, dtype=DOUBLE) + 0.5) / 20_000
    density = (-((points[:, None] / (s * std)) ** 2) / 2).exp() / (math.sqrt(2 * math.pi) * s * std)
    torch.testing.assert_close((2 * density * 2 * s).mean(1), expected, atol=1e-6, rtol=1e-4)
    n = 40_000
    result = hessian_trace(lambda x: x.abs(), points.repeat(n), None, name, 1, std, seeded()).reshape(n, 4)
    error = result.std(0) / math.sqrt(n)
    # Far from the corner hardly a sample meets it, and rounding is all there is.
    assert bool(((result.mean(0) - expected).abs() <= 5 * error + 1e-9).all())
    if name == "antithetic":
        assert result[:, 0].mean().item() == pytest.approx(2 / std * math.sqrt(2 / math.pi), rel=0.02)


@pytest.mark.parametrize("name", ["exact", "hutchinson"])
def test_relu_networks_have_no_second_derivative(x, name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with pytest.warns(UserWarning, match=r"every second derivative is exactly zero.*softplus_surrogate"):
        result = hessian_trace(model, x, 1, name)
    assert result.tolist() == [0.0] * 4
    # At a finite distance there is curvature, and in the logsumexp there always is.
    assert hessian_trace(model, x, 1, noise_std=1.0).any()
    assert hessian_trace(model, x, None, name).all()


@pytest.mark.parametrize("name", ["antithetic", "taylor", "hutchinson"])
def test_generator(x, name):
    model = Network().double()
    before = torch.get_rng_state()
    result = hessian_trace(model, x, 1, name, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(hessian_trace(model, x, 1, name, generator=seeded(3)), result)
    assert not torch.equal(hessian_trace(model, x, 1, name, generator=seeded(4)), result)
    generator = seeded(3)
    hessian_trace(model, x, 1, name, generator=generator)
    assert not torch.equal(hessian_trace(model, x, 1, name, generator=generator), result)
    torch.manual_seed(3)
    assert torch.equal(hessian_trace(model, x, 1, name), result)
    assert not torch.equal(torch.get_rng_state(), before)


def test_exact_draws_nothing(x):
    model = Network().double()
    before = torch.get_rng_state()
    hessian_trace(model, x, 1, "exact")
    assert torch.equal(torch.get_rng_state(), before)


class Recorder:
    def __init__(self, model):
        self.model, self.sizes = model, []

    def __call__(self, x):
        self.sizes.append(len(x))
        return self.model(x)


@pytest.mark.parametrize("limit", [1, 4, 5, 11, 12, 1000, None])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_batches_are_bounded_and_make_no_difference(x, name, limit):
    model = Network().double()
    options = {} if name == "exact" else {"n_samples": 5, "generator": seeded()}
    expected = hessian_trace(model, x, LABELS, name, **options)
    if name != "exact":
        options["generator"] = seeded()
    recorder = Recorder(model)
    result = hessian_trace(recorder, x, LABELS, name, max_examples_per_batch=limit, **options)
    # Rounding of the evaluations, over noise_std^2 = 0.01.
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=1e-12)
    copies = {"antithetic": 11, "taylor": 6, "hutchinson": 5, "exact": 6}[name]  # 2 K + 1, K + 1, K, d
    size = copies if limit is None else min(copies, max(1, limit // 4))
    whole, rest = divmod(copies, size)
    assert recorder.sizes == [4 * size] * whole + [4 * rest] * (rest > 0)


def test_exact_bounds_its_batches_itself():
    recorder = Recorder(lambda x: (x**3).sum(1))
    x = torch.randn(16, 100)
    torch.testing.assert_close(hessian_trace(recorder, x, None, "exact"), (6 * x).sum(1), atol=1e-4, rtol=1e-4)
    assert recorder.sizes == [1024, 576]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"estimator": "hessian"},
            ValueError,
            "one of 'antithetic', 'taylor', 'hutchinson', 'exact', but is 'hessian'",
        ),
        ({"estimator": "exact", "n_samples": 2}, ValueError, "'exact' has no use for n_samples: leave it out"),
        ({"estimator": "exact", "distribution": "rademacher"}, ValueError, "no use for distribution"),
        ({"estimator": "exact", "generator": seeded()}, ValueError, "no use for generator"),
        ({"estimator": "exact", "noise_std": 0.2}, ValueError, "no use for noise_std"),
        ({"estimator": "hutchinson", "noise_std": 0.2}, ValueError, "'hutchinson' has no use for noise_std"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator, but is 0"),
        ({"distribution": "uniform"}, ValueError, "'gaussian' or 'rademacher', but is 'uniform'"),
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1, but is 0"),
        ({"n_samples": -1}, ValueError, "n_samples must be at least 1, but is -1"),
        ({"n_samples": 2.0}, TypeError, r"n_samples must be an integer, but is 2\.0"),
        ({"n_samples": True}, TypeError, "n_samples must be an integer, but is True"),
        ({"noise_std": 0}, ValueError, "noise_std must be positive and finite, but is 0"),
        ({"noise_std": 0.0, "estimator": "taylor"}, ValueError, "noise_std must be positive"),
        ({"noise_std": -0.1}, ValueError, "noise_std must be positive"),
        ({"noise_std": math.nan}, ValueError, "noise_std must be positive and finite, but is nan"),
        ({"noise_std": math.inf}, ValueError, "noise_std must be positive and finite, but is inf"),
        (
            {"max_examples_per_batch": 0},
            ValueError,
            "max_examples_per_batch must be an integer of at least 1, but is 0",
        ),
    ],
)
def test_bad_options_are_refused_before_the_model_runs(x, options, error, message):
    recorder = Recorder(Network().double())
    with pytest.raises(error, match=message):
        hessian_trace(recorder, x, 1, **options)
    assert recorder.sizes == []


@pytest.mark.parametrize("name", ESTIMATORS)
def test_random_models(x, name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3)).double()
    before = torch.get_rng_state()
    options = {} if name == "exact" else {"generator": seeded()}
    if name in ("antithetic", "taylor"):
        with pytest.raises(ValueError, match=r"draws random numbers .*model\.eval\(\)"):
            hessian_trace(model, x, 1, name, **options)
        assert torch.equal(torch.get_rng_state(), before)
    else:
        hessian_trace(model, x, 1, name, **options)
    assert model.training
    hessian_trace(model.eval(), x, 1, name, **options)


def test_flat_where_it_stands_is_no_error(x):
    # A gradient of zero, but a gradient: ReLU that is dead all around.
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU()).double()
    model[1].bias.data.fill_(-1000)
    assert not hessian_trace(model, x, 1).any()
    assert not hessian_trace(model, x, 1, "taylor", 1).any()


def test_half_precision(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).half().float()
    x = x.half().float()
    expected = hessian_trace(model, x, 1, "exact")
    result = hessian_trace(model.half(), x.half(), 1, "exact")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=0.01, rtol=0.01)
    result = hessian_trace(model, x.half(), 1, noise_std=1.0)
    assert result.dtype == torch.float32
    assert bool(result.isfinite().all())


def test_caller_in_forward_mode_gets_reverse_mode(x):
    # Forward mode does not nest; the second derivatives come another way.
    model = Network().double()
    expected = hessian_trace(model, x, 1, "exact")
    with torch.autograd.forward_ad.dual_level():
        torch.testing.assert_close(hessian_trace(model, x, 1, "exact"), expected)


def test_nothing_is_warned_of_where_there_is_curvature(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ESTIMATORS:
            hessian_trace(Network().double(), x, 1, name)
