"""Along any path the attributions sum to f(x) - f(x'); along the straight one they are Captum's."""

import math
from itertools import pairwise

import pytest
import torch
from captum.attr import IntegratedGradients, NoiseTunnel
from captum.log import log_usage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import (
    FunctionPath,
    PathIntegratedGradients,
    PiecewiseLinearPath,
    PowerPath,
    StraightPath,
)
from captum_density.testing import attribution_checks, check_attribution

METHODS = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid")
ANALYTIC = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def smooth(features=4, classes=3, activation=nn.Tanh):
    layers = nn.Linear(features, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, classes)
    return nn.Sequential(*layers).double().eval()


class Two(nn.Module):
    """Of two inputs and an additional argument with a row for each example."""

    def __init__(self):
        super().__init__()
        self.left, self.right = smooth(4), smooth(6)

    def forward(self, left, right, scale=1.0):
        return self.left(left) * self.right(right.flatten(1)) * scale


def arc(alpha, baseline, x):
    """A half turn away from the line, in a direction of its own for each feature."""
    return baseline + alpha * (x - baseline) + torch.sin(math.pi * alpha) * torch.cos(3 * x)


def of_kind(kind, x):
    """A path for inputs like x."""
    return {
        "straight": StraightPath,
        "power": lambda: PowerPath(1 + 2 * torch.rand(x.shape[1:])),
        "piecewise": lambda: PiecewiseLinearPath(normal(2, *x.shape[1:])),
        "piecewise, of each example": lambda: PiecewiseLinearPath(normal(3, *x.shape)),
        "function": lambda: FunctionPath(arc),
        "function with a derivative": lambda: FunctionPath(
            arc, lambda alpha, b, x: x - b + math.pi * torch.cos(math.pi * alpha) * torch.cos(3 * x)
        ),
    }[kind]()


KINDS = ("straight", "power", "piecewise", "piecewise, of each example", "function", "function with a derivative")


# The laws.


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.sampled_from(ANALYTIC), st.integers(0, 2**31), st.integers(0, 2))
def test_completeness_along_any_path(kind, activation, seed, target):
    torch.manual_seed(seed)
    model, x, baseline = smooth(activation=activation), normal(3, 4), normal(3, 4)
    attributions, delta = PathIntegratedGradients(model, of_kind(kind, x)).attribute(
        x, baseline, target, n_steps=80 if kind.startswith("function") else 240, return_convergence_delta=True
    )
    gap = attributions.sum(1) - (model(x) - model(baseline))[:, target].detach()
    assert float(gap.abs().max()) < 1e-7
    assert_close(delta, gap, rtol=0, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 6), st.booleans(), st.integers(0, 2**31))
def test_completeness_through_any_waypoints(count, of_each, seed):
    torch.manual_seed(seed)
    model, inputs, baselines = Two(), (normal(2, 4), normal(2, 2, 3)), (normal(2, 4), normal(1, 2, 3))
    path = PiecewiseLinearPath(tuple(2 * normal(count, *(x.shape if of_each else x.shape[1:])) for x in inputs))
    attributions = PathIntegratedGradients(model, path).attribute(inputs, baselines, 1, n_steps=40 * (count + 1))
    change = model(*inputs)[:, 1] - model(baselines[0], baselines[1].expand(2, 2, 3))[:, 1]
    assert_close(sum(f.flatten(1).sum(1) for f in attributions), change.detach(), rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(
    st.sampled_from(METHODS), st.integers(2, 40), st.booleans(), st.none() | st.integers(1, 20), st.integers(0, 2**31)
)
def test_the_straight_path_is_captums(method, n_steps, multiply, limit, seed):
    torch.manual_seed(seed)
    model, inputs, baselines = Two(), (normal(3, 4), normal(3, 2, 3)), (normal(3, 4), 0.5)
    options = {
        "baselines": baselines,
        "target": [0, 2, 1],
        "additional_forward_args": normal(3, 1),
        "n_steps": n_steps,
        "method": method,
    }
    attributions = PathIntegratedGradients(model, multiply_by_inputs=multiply).attribute(
        inputs, internal_batch_size=limit, **options
    )
    expected = IntegratedGradients(model, multiply_by_inputs=multiply).attribute(inputs, **options)
    for f, e in zip(attributions, expected, strict=True):
        assert_close(f, e, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_straight_path_is_captums_in_single_precision(method):
    model, x = smooth().float(), torch.randn(3, 4)
    attributions, delta = PathIntegratedGradients(model).attribute(
        x, 0.1, 1, method=method, return_convergence_delta=True
    )
    expected, gap = IntegratedGradients(model).attribute(x, 0.1, 1, method=method, return_convergence_delta=True)
    assert_close(attributions, expected, rtol=0, atol=1e-6)
    assert_close(delta, gap, rtol=0, atol=1e-6)


def error_of(method, n_steps, mend=1.0):
    x = torch.tensor([[1.5]], dtype=torch.float64)
    attributions = PathIntegratedGradients(lambda x: x.exp()).attribute(x, n_steps=n_steps, method=method)
    return abs(attributions.item() * mend - math.expm1(1.5))


@pytest.mark.parametrize(
    ("method", "order"), [("riemann_left", 1), ("riemann_right", 1), ("riemann_middle", 2), ("riemann_trapezoid", 1)]
)
def test_order_of_each_quadrature(method, order):
    errors = [error_of(method, n) for n in (64, 128, 256)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([order, order], abs=0.03)


def test_gauss_legendre_converges_faster_than_any_power():
    errors = [error_of("gausslegendre", n) for n in (1, 2, 3, 4)]
    rates = [math.log(a / b) / math.log((i + 2) / (i + 1)) for i, (a, b) in enumerate(pairwise(errors))]
    assert rates[0] > 4 and rates[1] > rates[0] and rates[2] > rates[1]
    assert error_of("gausslegendre", 8) < 1e-14


@pytest.mark.parametrize("n", [2, 5, 50])
def test_captums_trapezoid_is_the_trapezoid_times_one_less_than_the_steps(n):
    w, x = normal(4), normal(3, 4)
    attributions = PathIntegratedGradients(lambda x: x @ w).attribute(x, n_steps=n, method="riemann_trapezoid")
    assert_close(attributions, (1 - 1 / n) * x * w, rtol=1e-9, atol=0)
    mended = [error_of("riemann_trapezoid", n, mend=n / (n - 1)) for n in (65, 129)]
    assert math.log2(mended[0] / mended[1]) == pytest.approx(2, abs=0.03)


# The paths themselves.


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_baseline_to_the_input_with_the_derivative_of_the_points(kind):
    x, baseline = normal(2, 3), normal(2, 3)
    path, h = of_kind(kind, x), 1e-6
    (ends,) = path.points(torch.tensor([0.0, 1.0], dtype=torch.float64), (baseline,), (x,))
    assert_close(ends, torch.stack([baseline, x]))
    alphas = torch.tensor([0.1, 0.3, 0.45, 0.6, 0.9], dtype=torch.float64)  # none is at a bend
    (slopes,) = path.derivatives(alphas, (baseline,), (x,))
    (after,), (before,) = (path.points(alphas + sign * h, (baseline,), (x,)) for sign in (1, -1))
    assert_close(slopes.expand_as(after), (after - before) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_legs_follow_one_another_and_make_up_the_path(kind):
    x, baseline = normal(2, 3), normal(2, 3)
    path = of_kind(kind, x)
    legs = path.legs((baseline,), (x,))
    assert legs[0].start[0] is baseline and legs[-1].end[0] is x
    assert all(a.end[0] is b.start[0] for a, b in pairwise(legs))
    for i, leg in enumerate(legs):
        (of_leg,) = leg.path.points(torch.tensor([0.3], dtype=torch.float64), leg.start, leg.end)
        (of_path,) = path.points(torch.tensor([(i + 0.3) / len(legs)], dtype=torch.float64), (baseline,), (x,))
        assert_close(of_leg, of_path)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_powers_share_a_product_unequally(p):
    # The integrals of alpha^p and of p alpha^(p - 1) alpha over [0, 1].
    x = normal(3, 2)
    path = PowerPath(torch.tensor([1.0, p]))
    attributions = PathIntegratedGradients(lambda x: x[:, 0] * x[:, 1], path).attribute(x, n_steps=200)
    assert_close(
        attributions, x.prod(1, keepdim=True) * torch.tensor([1.0, p]).double() / (1 + p), rtol=1e-6, atol=1e-9
    )


def test_powers_in_the_same_ratios_are_the_same_curve():
    model, x, powers = smooth(), normal(3, 4), 1 + torch.rand(4, dtype=torch.float64)
    attributions = [
        PathIntegratedGradients(model, path).attribute(x, target=0, n_steps=300)
        for path in (PowerPath(powers / powers.min()), PowerPath(3 * powers / powers.min()))
    ]
    assert_close(*attributions, rtol=1e-4, atol=1e-7)


def test_powers_of_each_input():
    model, inputs = Two(), (normal(3, 4), normal(3, 2, 3))
    of_each = PathIntegratedGradients(model, PowerPath((2.0, 1 + torch.rand(3)))).attribute(inputs, target=0)
    of_all = PathIntegratedGradients(model, PowerPath(2.0)).attribute(inputs, target=0)
    straight = PathIntegratedGradients(model).attribute(inputs, target=0)
    for a, s in zip(of_all, straight, strict=True):
        assert_close(a, s, rtol=1e-7, atol=1e-9)  # all at one speed
    assert not torch.allclose(of_each[1], straight[1])


def test_speed_along_a_curve_does_not_matter():
    model, x, baseline = smooth(), normal(3, 4), normal(3, 4)
    attributions = [
        PathIntegratedGradients(model, path).attribute(x, baseline, 1)
        for path in (arc, lambda alpha, b, x: arc(alpha * alpha * (3 - 2 * alpha), b, x))
    ]
    assert_close(*attributions, rtol=1e-7, atol=1e-9)


def test_along_the_axes_the_feature_that_moves_last_gets_a_product():
    x, baseline = normal(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    second_first = torch.stack([torch.stack([baseline[:, 0], x[:, 1]], 1)])
    attributions = PathIntegratedGradients(lambda x: x[:, 0] * x[:, 1], PiecewiseLinearPath(second_first)).attribute(x)
    assert_close(attributions, torch.stack([x.prod(1), baseline[:, 1]], 1))


def test_waypoints_on_the_line_and_none_at_all_leave_it_straight():
    model, x, baseline = smooth(), normal(3, 4), normal(3, 4)
    on_the_line = torch.stack([baseline + t * (x - baseline) for t in (0.2, 0.7)])
    straight = PathIntegratedGradients(model).attribute(x, baseline, 1, n_steps=60)
    for waypoints in (on_the_line, torch.zeros(0, 4)):
        attributions = PathIntegratedGradients(model, PiecewiseLinearPath(waypoints)).attribute(
            x, baseline, 1, n_steps=60
        )
        assert_close(attributions, straight, rtol=1e-7, atol=1e-9)


def test_bends_cost_no_accuracy():
    # A quadrature over all of the path at once would be of order 1 at best, with its points on both sides of a bend.
    model, x = smooth(), normal(3, 4)
    path = PiecewiseLinearPath(normal(2, 4))
    *_, delta = PathIntegratedGradients(model, path).attribute(x, target=1, n_steps=60, return_convergence_delta=True)
    whole = PathIntegratedGradients(model, FunctionPath(lambda a, b, x: path.points(a[None], (b,), (x,))[0][0]))
    *_, coarse = whole.attribute(x, target=1, n_steps=60, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-9 < 1e-4 < float(coarse.abs().max())


def test_a_mean_of_gradients_along_pieces():
    model, x, points = smooth(), normal(3, 4), normal(1, 4)
    attributions = PathIntegratedGradients(model, PiecewiseLinearPath(points), multiply_by_inputs=False).attribute(
        x, target=1
    )
    middle = points.expand(3, 4).contiguous()
    captum = IntegratedGradients(model, multiply_by_inputs=False)
    first, second = (captum.attribute(b, a, 1, n_steps=25) for a, b in ((None, middle), (middle, x)))
    assert_close(attributions, (first + second) / 2, rtol=1e-6, atol=1e-9)


def test_a_path_of_ones_own():
    class Detour(StraightPath):
        def points(self, alphas, baselines, inputs):
            return tuple(torch.stack([arc(a, b, x) for a in alphas]) for b, x in zip(baselines, inputs, strict=True))

        def derivatives(self, alphas, baselines, inputs):
            return FunctionPath(arc).derivatives(alphas, baselines, inputs)

    model, x = smooth(), normal(3, 4)
    attributions = PathIntegratedGradients(model, Detour()).attribute(x, target=0)
    assert_close(attributions, PathIntegratedGradients(model, arc).attribute(x, target=0))


def test_functions_of_tuples():
    model, inputs = Two(), (normal(3, 4), normal(3, 2, 3))

    def both(alpha, baselines, inputs):
        return tuple(arc(alpha, b, x) for b, x in zip(baselines, inputs, strict=True))

    *_, delta = PathIntegratedGradients(model, both).attribute(inputs, target=2, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-8
    one = PathIntegratedGradients(model.left, arc)  # a tuple of one is as it is to a model: a tensor
    assert_close(one.attribute(inputs[:1], target=2)[0], one.attribute(inputs[0], target=2))
    points, slopes = (getattr(FunctionPath(both), what) for what in ("points", "derivatives"))
    alphas = torch.tensor([0.5], dtype=torch.float64)
    for of in (points, slopes):
        assert [p.shape for p in of(alphas, inputs, inputs)] == [(1, 3, 4), (1, 3, 2, 3)]


def test_alpha_has_the_inputs_dtype():
    calls = set()

    def path(alpha, baseline, x):
        calls.add((alpha.dtype, alpha.shape))
        return baseline + alpha.view(1) * (x - baseline)

    attributions = PathIntegratedGradients(smooth().float(), path).attribute(torch.randn(2, 4), target=0)
    assert attributions.dtype == torch.float32 and calls == {(torch.float32, torch.Size())}


def test_an_input_that_stays():
    model, inputs = Two(), (normal(3, 4), normal(3, 2, 3))
    path = FunctionPath(lambda alpha, b, x: (arc(alpha, b[0], x[0]), x[1]))
    moving, staying = PathIntegratedGradients(model, path).attribute(inputs, (0.0, inputs[1]), 1)
    expected = PathIntegratedGradients(lambda x: model(x, inputs[1].repeat(len(x) // 3, 1, 1)), arc)
    assert_close(moving, expected.attribute(inputs[0], target=1))
    assert bool((staying == 0).all())


# How it is called.


# Waypoints of each of N examples do not fit one of them alone, as many a check has it.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "piecewise, of each example"])
def test_keeps_every_law(kind):
    shapes = {"mlp": (5,), "cnn": (3, 8, 8)} | (
        {"sequence": (6, 5), "many_outputs": (5,)} if kind == "straight" else {}
    )
    ran = set()
    for name, shape in shapes.items():
        path = of_kind(kind, normal(1, *shape))
        ran.update(
            check_attribution(
                lambda model, path=path: PathIntegratedGradients(model, path),
                models=(name,),
                attribute_kwargs={"n_steps": 3 if kind.startswith("function") else 6},
            )
        )
    missing = {"additional_forward_args"} if kind == "straight" else {"additional_forward_args", "target_tuples"}
    assert set(attribution_checks()) - ran == missing  # the former is next


@pytest.mark.parametrize(
    "path",
    [
        PowerPath((torch.linspace(1, 3, 5), 2.0)),
        PiecewiseLinearPath((normal(1, 5), normal(1, 2, 3))),
        lambda alpha, b, x: (arc(alpha, b[0], x[0]), arc(alpha, b[1], x[1])),
    ],
    ids=["power", "piecewise", "function"],
)
def test_keeps_every_law_with_two_inputs(path):
    ran = check_attribution(
        lambda model: PathIntegratedGradients(model, path), models=("two_inputs",), attribute_kwargs={"n_steps": 3}
    )
    assert "additional_forward_args" in ran


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_size_give_the_same_numbers(kind):
    sizes = []

    def model(x, scale):
        sizes.append(len(x))
        return net(x * scale)

    net, x, scale = smooth(), normal(3, 4), normal(3, 4)
    attribution = PathIntegratedGradients(model, of_kind(kind, x))
    whole = attribution.attribute(x, 0.5, [0, 1, 2], scale, n_steps=12)
    for limit in (1, 3, 7, 100):
        sizes.clear()
        attributions = attribution.attribute(x, 0.5, [0, 1, 2], scale, n_steps=12, internal_batch_size=limit)
        assert_close(attributions, whole, rtol=1e-12, atol=1e-14)
        assert sum(sizes) == 36 and max(sizes) <= max(limit, 3)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
def test_steps_are_shared_out(pieces):
    rows = []

    def model(x):
        rows.append(len(x))
        return x.sum(1)

    path = PiecewiseLinearPath(normal(pieces - 1, 4))
    PathIntegratedGradients(model, path).attribute(normal(1, 4), n_steps=13)
    assert sum(rows) == 13 and len(rows) == pieces and max(rows) - min(rows) <= 1


@pytest.mark.parametrize("kind", ["straight", "power", "function"])
def test_every_form_of_baseline(kind):
    model, x = smooth(), normal(3, 4)
    path = of_kind(kind, x)
    attribution = PathIntegratedGradients(model, path)
    zero = attribution.attribute(x, target=0)
    for baseline in (0, 0.0, (0,), torch.zeros(1, 4), torch.zeros(3, 4), torch.tensor(0)):
        assert torch.equal(attribution.attribute(x, baseline, 0), zero)
    one = attribution.attribute(x, 1, 0)
    assert_close(attribution.attribute(x, torch.ones(1, 4, dtype=torch.int64), 0), one)
    assert not torch.allclose(one, zero)


def test_several_additional_arguments():
    net, x, mask = smooth(), normal(3, 4), normal(3, 4)

    def model(x, mask, power, shift):
        return net(x * mask**power) + shift

    args = (mask, 2, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1))
    attributions = PathIntegratedGradients(model).attribute(x, target=1, additional_forward_args=args)
    assert_close(
        attributions,
        IntegratedGradients(model).attribute(x, target=1, additional_forward_args=args),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", ["straight", "power", "piecewise", "function"])
def test_under_a_noise_tunnel(kind):
    model, x = smooth(), normal(2, 4)
    noisy = []

    class Recorder(PathIntegratedGradients):
        @log_usage()  # NoiseTunnel looks for what it wraps
        def attribute(self, inputs, **options):
            noisy.append(inputs.detach().clone())
            return super().attribute(inputs, **options)

    path = of_kind(kind, x)
    options = {"target": 0, "n_steps": 8, "baselines": 0.1}
    attributions = NoiseTunnel(Recorder(model, path)).attribute(x, nt_samples=5, stdevs=0.3, **options)
    rows = torch.cat(noisy)
    assert rows.shape == (10, 4) and float(rows.std()) > 0.1
    expected = torch.cat([PathIntegratedGradients(model, path).attribute(row[None], **options) for row in rows])
    assert_close(attributions, expected.view(2, 5, 4).mean(1))


@pytest.mark.parametrize("kind", ["straight", "power", "piecewise", "function"])
def test_under_no_grad_and_inference_mode(kind):
    model, x, mask = smooth(), normal(2, 4), normal(2, 4)
    attribution = PathIntegratedGradients(lambda x, mask: model(x * mask), of_kind(kind, x))
    expected = attribution.attribute(x, 0.5, 1, mask, return_convergence_delta=True)
    for limit in (None, 2):  # with one step at a time nothing is copied that need not be
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                attributions = attribution.attribute(
                    x.clone(), x.clone() * 0 + 0.5, 1, mask.clone(), 50, "gausslegendre", limit, True
                )
            assert_close(attributions, expected)
        assert not attributions[0].is_inference()


def test_a_path_that_hands_out_the_input_itself():
    class Still(StraightPath):
        def points(self, alphas, baselines, inputs):
            return tuple(x.expand(len(alphas), *x.shape) for x in inputs)

        def derivatives(self, alphas, baselines, inputs):
            return tuple(torch.zeros_like(x)[None] for x in inputs)

    model = smooth()
    with torch.inference_mode():
        x = normal(1, 4)
    for limit in (None, 1):
        attributions = PathIntegratedGradients(model, Still()).attribute(x, x, 0, internal_batch_size=limit)
        assert bool((attributions == 0).all()) and not x.requires_grad


def test_the_callers_tensors_are_as_they_were():
    model, x, baseline = smooth(), normal(2, 4).requires_grad_(), normal(2, 4)
    x.grad = torch.ones_like(x)
    waypoints = normal(1, 4).requires_grad_()
    before = [t.detach().clone() for t in (x, baseline, waypoints)]
    for path in (None, PiecewiseLinearPath(waypoints), arc, lambda a, b, x: x if a == 1 else b * (1 - a) + a * x):
        for limit in (None, 2):
            attributions = PathIntegratedGradients(model, path).attribute(x, baseline, 0, internal_batch_size=limit)
            assert not attributions.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (x, baseline, waypoints), strict=True))
    assert x.requires_grad and not baseline.requires_grad and torch.equal(x.grad, torch.ones_like(x))
    assert waypoints.grad is None and all(p.grad is None for p in model.parameters())


def test_half_precision_sums_in_single():
    model, x = smooth().bfloat16(), torch.randn(3, 4, dtype=torch.bfloat16)
    attributions = PathIntegratedGradients(model, PowerPath(2.0)).attribute(
        x, target=0, n_steps=400, internal_batch_size=3
    )
    assert attributions.dtype == torch.bfloat16
    exact = PathIntegratedGradients(model.double()).attribute(x.double(), target=0)
    assert_close(attributions.double(), exact, rtol=0.01, atol=1e-3)


def test_deltas_are_of_attributions_in_units_of_the_output():
    assert PathIntegratedGradients(smooth()).has_convergence_delta()
    assert PathIntegratedGradients(smooth()).multiplies_by_inputs
    mean = PathIntegratedGradients(smooth(), multiply_by_inputs=False)
    assert not mean.has_convergence_delta() and not mean.multiplies_by_inputs
    with pytest.raises(ValueError, match="leave multiply_by_inputs=True"):
        mean.attribute(normal(2, 4), target=0, return_convergence_delta=True)


# What is refused.


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (lambda a, b, x: b + 0.1 + a * (x - b - 0.1), "does not start at the baseline: at alpha = 0 it is up to 0.1"),
        (lambda a, b, x: b + 0.9 * a * (x - b), "does not end at the input: at alpha = 1 it is up to 0.1 away"),
        (lambda a, b, x: b + a * (x - b) / (1 - a), "returns NaN or infinity at alpha"),
        (lambda a, b, x: b + float(a) * (x - b), "does not depend on alpha: compute with alpha as a tensor"),
        (lambda a, b, x: (b, x), r"points of the inputs' shapes \[\(2, 4\)\], but returned \[\(2, 4\), \(2, 4\)\]"),
        (lambda a, b, x: a, r"but returned \[\(\)\]"),
        (lambda a, b, x: [b], r"but returned \['list'\]"),
        (PowerPath(torch.ones(3)), r"powers have shape \(3,\), which does not broadcast to \(4,\)"),
        (PowerPath(torch.ones(2, 4)), r"powers have shape \(2, 4\)"),
        (PowerPath((1.0, 2.0)), "powers are 2 tensors, but there are 1 inputs"),
        (PiecewiseLinearPath(torch.ones(1, 3)), r"waypoints have shape \(1, 3\), but must be \(K, \*\(4,\)\)"),
        (PiecewiseLinearPath(torch.ones(1, 3, 4)), r"waypoints have shape \(1, 3, 4\)"),
        (PiecewiseLinearPath((torch.ones(1, 4),) * 2), "waypoints are 2 tensors, but there are 1 inputs"),
        (PiecewiseLinearPath(torch.full((1, 4), torch.nan)), "waypoints contain NaN or infinity"),
    ],
)
def test_a_path_that_does_not_fit_is_refused(path, words):
    with pytest.raises(ValueError, match=words):
        PathIntegratedGradients(smooth(), path).attribute(torch.ones(2, 4).double(), target=0)


@pytest.mark.parametrize("gap", [0.0, 1e-7])
def test_ends_may_be_out_by_rounding(gap):
    result = PathIntegratedGradients(smooth().float(), lambda a, b, x: b + gap + a * (x - b))
    assert result.attribute(torch.ones(2, 4), target=0).shape == (2, 4)


@pytest.mark.parametrize("at", [0.0, 1.0, 1e-20])
def test_there_and_back_is_nothing(at):
    # sin(pi) is 1e-16, beside which the ends of the path may be small.
    attributions = PathIntegratedGradients(smooth(), arc).attribute(torch.full((2, 4), at).double(), at, 0)
    assert float(attributions.abs().max()) < 1e-7


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_ends_are_judged_by_the_size_of_the_path(size):
    x = torch.full((2, 4), size).double()
    with pytest.raises(ValueError, match="does not end at the input"):
        PathIntegratedGradients(smooth(), lambda a, b, x: b + 0.999 * a * (x - b)).attribute(x, target=0)


def test_a_function_without_forward_derivative_is_refused():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, alpha):
            return alpha.clone()

    def path(alpha, baseline, x):
        return baseline + Opaque.apply(alpha) * (x - baseline)

    with pytest.raises(ValueError, match=r"no forward-mode derivative .*give derivative="):
        PathIntegratedGradients(smooth(), path).attribute(normal(2, 4), target=0)
    given_one = FunctionPath(path, lambda alpha, baseline, x: x - baseline)
    x, model = normal(2, 4), smooth()
    assert_close(
        PathIntegratedGradients(model, given_one).attribute(x, target=0),
        PathIntegratedGradients(model).attribute(x, target=0),
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PathIntegratedGradients("model"), TypeError, "a torch.nn.Module or a function, but is str"),
        (lambda: PathIntegratedGradients(abs, StraightPath), TypeError, r"such as StraightPath\(...\)"),
        (lambda: PathIntegratedGradients(abs, "straight"), TypeError, r"\(alpha, baseline, input\), but is str"),
        (lambda: FunctionPath(arc, 3), TypeError, r"derivative must be a function .* but is int"),
        (lambda: PowerPath(0.5), ValueError, "at least 1, .* divide all of them by the smallest"),
        (lambda: PowerPath((1.0, torch.tensor([1.0, torch.inf]))), ValueError, "must be finite"),
        (lambda: PowerPath(math.nan), ValueError, "must be finite"),
        (lambda: PiecewiseLinearPath([1.0, 2.0]), TypeError, r"a tensor \(K, ...\)"),
        (lambda: PiecewiseLinearPath(()), TypeError, r"a tensor \(K, ...\)"),
        (lambda: PiecewiseLinearPath(torch.tensor(1.0)), TypeError, r"a tensor \(K, ...\)"),
        (lambda: PiecewiseLinearPath((torch.ones(2, 4), torch.ones(3, 4))), ValueError, "as many .* but here 2, 3"),
    ],
)
def test_what_cannot_be_made(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": "simpson"}, ValueError, "method must be one of .*gausslegendre.*but is 'simpson'"),
        ({"n_steps": 0}, ValueError, "at least 1 for a path with gausslegendre, but is 0"),
        ({"n_steps": 1, "method": "riemann_left"}, ValueError, "at least 2 for a path with riemann_left, but is 1"),
        ({"n_steps": 2.0}, ValueError, "must be an integer"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be an integer of at least 1, but is 0"),
        ({"baselines": (0, 1)}, ValueError, "a baseline for each of 1 inputs, but there are 2"),
        (
            {"baselines": torch.zeros(2, 4)},
            ValueError,
            r"must broadcast to its input, \(3, 4\), but has shape \(2, 4\)",
        ),
        ({"baselines": math.nan}, ValueError, "baselines contain NaN or infinity"),
        ({"inputs": torch.ones(2, 4, dtype=torch.long)}, TypeError, "has no gradient"),
        ({"inputs": torch.full((2, 4), torch.nan)}, ValueError, "NaN or infinity"),
        ({"inputs": [torch.ones(2, 4)]}, TypeError, "but is list"),
        ({"target": None}, AssertionError, "Target not provided"),
    ],
)
def test_bad_arguments_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        PathIntegratedGradients(smooth()).attribute(**{"inputs": normal(3, 4), "target": 1, **change})


def test_pieces_need_steps_each():
    attribution = PathIntegratedGradients(smooth(), PiecewiseLinearPath(normal(3, 4)))
    with pytest.raises(ValueError, match="at least 4 for a path of 4 pieces with gausslegendre, but is 3"):
        attribution.attribute(normal(2, 4), target=0, n_steps=3)
    with pytest.raises(ValueError, match="at least 8 for a path of 4 pieces with riemann_middle"):
        attribution.attribute(normal(2, 4), target=0, n_steps=7, method="riemann_middle")
    assert attribution.attribute(normal(2, 4), target=0, n_steps=4).shape == (2, 4)


@pytest.mark.parametrize("method", ["riemann_left", "riemann_trapezoid"])
def test_a_slope_without_end_is_refused(method):
    root = PathIntegratedGradients(lambda x: x.sum(1), lambda alpha, b, x: b + alpha.sqrt() * (x - b))
    with pytest.raises(ValueError, match="derivative is NaN or infinite at a step"):
        root.attribute(torch.ones(2, 3), method=method)
    assert_close(root.attribute(torch.ones(2, 3), n_steps=200), torch.ones(2, 3), rtol=1e-2, atol=0)


def test_half_precision_is_summed_in_single():
    bent = PathIntegratedGradients(lambda x: (300 * x).sum(1), PowerPath(3.0))
    attributions = bent.attribute(torch.full((1, 1), 150.0).half())
    assert abs(attributions.item() - 45000) < 50
