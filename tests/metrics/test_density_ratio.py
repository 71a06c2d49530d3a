"""The density ratio: Gaussians and mixtures in closed form, noise drawn a second time, parts, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import density_ratio
from captum_density.testing import networks


def seeded(seed=1):  # not that of the global generator, which draws the inputs
    return torch.Generator().manual_seed(seed)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Gaussians(nn.Module):
    """Logits that are log-densities of normal distributions, up to constants of their own."""

    def __init__(self, means, precisions, constants):
        super().__init__()
        self.means, self.precisions, self.constants = means, precisions, constants

    def forward(self, x):
        away = x[:, None] - self.means
        return self.constants - 0.5 * torch.einsum("ncd,cde,nce->nc", away, self.precisions, away)


def gaussians(classes=3, d=4):
    roots = normal(classes, d, d)
    return Gaussians(normal(classes, d), roots @ roots.mT + 0.1 * torch.eye(d), 10 * normal(classes))


@pytest.mark.parametrize("target", [1, [0, 2, 1], torch.tensor([2, 2, 0])], ids=str)
def test_gaussians_in_closed_form(target):
    model, x = gaussians(), normal(3, 4)
    ratios = density_ratio(model, x, 0.7, target=target, n_perturb_samples=6, generator=seeded())
    eta = 0.7 * torch.randn(6, 3, 4, dtype=torch.float64, generator=seeded())
    expected = torch.zeros(3, dtype=torch.float64)
    for i, y in enumerate(torch.as_tensor(target).expand(3).tolist()):
        slope = -model.precisions[y] @ (x[i] - model.means[y])
        for k in range(6):  # of a quadratic, Taylor's series ends
            expected[i] += (slope @ eta[k, i] - 0.5 * eta[k, i] @ model.precisions[y] @ eta[k, i]) / 6
    assert_close(ratios, expected)
    assert not ratios.requires_grad


def test_its_mean_over_noise_is_the_curvature():
    # E log p(x + eta) - log p(x) = -sigma^2 / 2 trace(P), wherever x is.
    model, x, samples, std = gaussians(), normal(2, 4), 20_000, 0.5
    ratios = density_ratio(model, x, std, target=1, n_perturb_samples=samples)
    precision = model.precisions[1]
    expected = -(std**2) / 2 * precision.trace()
    slope = (x - model.means[1]) @ precision
    variance = std**2 * slope.pow(2).sum(1) + std**4 / 2 * precision.pow(2).sum()
    assert bool(((ratios - expected).abs() < 4 * (variance / samples).sqrt()).all())


def test_without_a_target_it_is_the_mixtures():
    model, x = gaussians(), normal(3, 4)
    ratios = density_ratio(model, x, 0.7, n_perturb_samples=5, generator=seeded())
    eta = 0.7 * torch.randn(5, 3, 4, dtype=torch.float64, generator=seeded())
    log_density = lambda x: model(x).exp().sum(1).log()  # noqa: E731
    assert_close(ratios, torch.stack([log_density(x + e) - log_density(x) for e in eta]).mean(0))


def test_shifts_of_all_logits_move_it_and_constants_do_not():
    model, x = gaussians(), normal(3, 4)
    options = {"noise_std": 0.3, "target": 0}
    plain = density_ratio(model, x, **options, generator=seeded())
    constant = density_ratio(lambda x: model(x) + 5.0, x, **options, generator=seeded())
    assert_close(constant, plain)
    shift = lambda x: x.pow(2).sum(1, keepdim=True)  # noqa: E731
    shifted = density_ratio(lambda x: model(x) + shift(x), x, **options, generator=seeded())
    alone = density_ratio(shift, x, noise_std=0.3, generator=seeded())
    assert_close(shifted, plain + alone)


def test_a_model_of_one_output_is_a_log_density():
    x = normal(3, 4)
    values = [
        density_ratio(f, x, 0.2, generator=seeded())
        for f in (lambda x: x.sin().sum(1), lambda x: x.sin().sum(1, keepdim=True))
    ]
    assert_close(*values)


@settings(max_examples=30)
@given(networks(), st.sampled_from([1, 2, 3, 5, 6, 7, 100]), st.integers(1, 4), st.booleans())
def test_values_are_those_of_one_at_a_time_whatever_the_parts(problem, batch, samples, marginal):
    stds, x = [0.1, 1.0], problem.inputs
    ratios = density_ratio(
        problem.model,
        x,
        stds,
        target=None if marginal else problem.target,
        n_perturb_samples=samples,
        generator=seeded(),
        max_examples_per_batch=batch,
    )
    eta = torch.randn(samples, *x.shape, dtype=x.dtype, generator=seeded())
    classes = torch.as_tensor(problem.target).expand(len(x))
    expected = torch.zeros(2, len(x), dtype=x.dtype)
    with torch.no_grad():
        for s, std in enumerate(stds):
            for i in range(len(x)):
                values = [problem.model(p[None])[0] for p in (x[i], *(x[i] + std * eta[:, i]))]
                logs = [v.logsumexp(0) if marginal else v[classes[i]] for v in values]
                expected[s, i] = torch.stack(logs[1:]).mean() - logs[0]
    assert_close(ratios, expected, rtol=1e-8, atol=1e-9)


def test_parts_are_of_whole_copies_and_as_large_as_allowed():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x

    density_ratio(model, torch.ones(3, 2), 0.1, target=0, n_perturb_samples=5, max_examples_per_batch=7)
    assert sizes == [3, 6, 6, 3]
    sizes.clear()
    density_ratio(model, torch.ones(3, 2), 0.1, target=0, n_perturb_samples=2, max_examples_per_batch=1)
    assert sizes == [3, 3, 3]
    sizes.clear()
    density_ratio(model, torch.ones(3, 2), [0.1, 0.2], target=0, n_perturb_samples=4)
    assert sizes == [3, 12, 12]


def test_a_curve_has_one_noise():
    model, x, stds = gaussians(), normal(3, 4), (0.1, 0.2, 0.8)
    curve = density_ratio(model, x, stds, target=2, generator=seeded())
    assert curve.shape == (3, 3)
    for std, values in zip(stds, curve, strict=True):
        assert_close(density_ratio(model, x, std, target=2, generator=seeded()), values)
    assert density_ratio(model, x, [0.1], target=2).shape == (1, 3)
    linear = density_ratio(nn.Linear(4, 3).double(), x, [0.1, 0.2, 0.8], target=2)  # of one noise, in proportion
    assert_close(linear[1], 2 * linear[0])
    assert_close(linear[2], 8 * linear[0])


def test_numbers_of_numpy_and_integers_are_numbers():
    x = normal(2, 3)
    expected = density_ratio(nn.Identity(), x, [1.0, 2.0], target=0, generator=seeded())
    assert_close(density_ratio(nn.Identity(), x, [np.float64(1), 2], target=0, generator=seeded()), expected)
    assert_close(density_ratio(nn.Identity(), x, np.float64(1), target=0, generator=seeded()), expected[0])


@pytest.mark.parametrize("target", [1, [0, 2, 1], torch.tensor([2, 2, 0])], ids=str)
def test_a_function_gets_whole_batches_and_targets_and_arguments_match(target):
    x, weight = normal(3, 4), normal(3, 5)
    steps = torch.arange(6.0).repeat_interleave(3)[:, None] - 2
    batches = []

    def perturb(copies):
        batches.append(copies.clone())
        return copies + steps

    model = nn.Linear(4, 5).double()
    calls = []

    def forward(x, weight, factor, table):
        calls.append(table)
        return model(x) * weight * factor

    ratios = density_ratio(
        forward, x, None, perturb, (weight, 2.0, "table"), target, n_perturb_samples=6, max_examples_per_batch=7
    )
    assert len(batches) == 1 and torch.equal(batches[0], x.repeat(6, 1)) and set(calls) == {"table"}
    rows, classes = torch.arange(3), torch.as_tensor(target).expand(3)
    at = lambda x: (model(x) * weight * 2)[rows, classes]  # noqa: E731
    expected = torch.stack([at(x + step) - at(x) for step in range(-2, 4)]).mean(0)
    assert_close(ratios, expected.detach())


@pytest.mark.parametrize("inference", [False, True])
def test_an_adversarial_perturbation_has_gradients(inference):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def climb(copies):
        leaf = copies.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        return copies + 0.01 * slope.sign() + 0 * leaf  # with a graph, which is left behind

    with torch.inference_mode(inference):
        ratios = density_ratio(model, normal(5, 4), perturb_func=climb, target=1, n_perturb_samples=2)
    assert bool((ratios > 0).all()) and not ratios.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_writes_to_its_inputs_changes_nothing():
    x, constant = normal(2, 3), normal(4, 3)
    copies = x.clone(), constant.clone()

    def model(x):
        return x.mul_(2)

    ratios = density_ratio(model, x, perturb_func=lambda _: constant, target=0, n_perturb_samples=2)
    assert torch.equal(x, copies[0]) and torch.equal(constant, copies[1])
    assert_close(ratios, 2 * (constant[:, 0].reshape(2, 2).mean(0) - x[:, 0]))
    density_ratio(model, x, 0.1, target=0)
    assert torch.equal(x, copies[0])


def test_several_inputs():
    x, y = normal(3, 4), normal(3, 2, 2)
    forward = lambda x, y: torch.cat([x.sin(), y.flatten(1).cos()], 1)  # noqa: E731
    ratios = density_ratio(forward, (x, y), 0.5, n_perturb_samples=2, generator=seeded())
    generator = seeded()
    u, v = (0.5 * torch.randn(2, *t.shape, dtype=t.dtype, generator=generator) for t in (x, y))
    total = lambda x, y: forward(x, y).logsumexp(1)  # noqa: E731
    assert_close(ratios, torch.stack([total(x + u[k], y + v[k]) - total(x, y) for k in range(2)]).mean(0))
    received = []

    def perturb(parts):
        received.append([tuple(part.shape) for part in parts])
        return tuple(part + 1 for part in parts)

    moved = density_ratio(forward, (x, y), perturb_func=perturb, target=5, n_perturb_samples=2)
    assert received == [[(6, 4), (6, 2, 2)]]
    assert_close(moved, ((y + 1).cos() - y.cos()).flatten(1)[:, 1])
    one = density_ratio(lambda x: x, (x,), perturb_func=lambda parts: (parts[0] + 1,), target=0)
    assert_close(one, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_dtypes(dtype, tolerance):
    x = torch.zeros(3, 4, dtype=dtype)
    ratios = density_ratio(lambda x: -0.5 * x.pow(2), x, 1.0, target=1, n_perturb_samples=8, generator=seeded())
    assert ratios.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    eta = torch.randn(8, 3, 4, dtype=dtype, generator=seeded()).double()
    assert_close(ratios.double(), -0.5 * eta[:, :, 1].pow(2).mean(0), rtol=tolerance, atol=tolerance)


def test_random_numbers_are_the_generators_or_the_global_ones():
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    before = torch.get_rng_state()
    first, second = (density_ratio(model, x, 0.1, target=0, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(density_ratio(model, x, 0.1, target=0), first)
    assert not torch.equal(density_ratio(model, x, 0.1, target=0), first)
    density_ratio(model, x, perturb_func=lambda x: x, target=0, n_perturb_samples=1)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before_and_batch_norm_is_fixed(training):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model[1].running_mean.uniform_(-1, 1)
    model.train(training)
    model[0].weight.grad = torch.ones(5, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(6, 4, requires_grad=True)
    ratios = density_ratio(model, x, 0.3, target=1, generator=seeded())
    assert model.training == model[1].training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert x.grad is None and model[0].weight.grad.eq(1).all() and not ratios.requires_grad and ratios.grad_fn is None
    assert torch.equal(density_ratio(model.eval(), x, 0.3, target=1, generator=seeded()), ratios)
    assert not model._forward_hooks


def test_autocast_is_off():
    model, x = nn.Linear(64, 3), torch.randn(2, 64)
    expected = density_ratio(model, x, 1e-4, target=0, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(density_ratio(model, x, 1e-4, target=0, generator=seeded()), expected)


def test_dropout_in_training_mode_is_refused_and_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    statistics = model[2].running_mean.clone()
    x, before = torch.randn(2, 4), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"draws random numbers .*model\.eval\(\)"):
        density_ratio(model, x, 0.1, target=0, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())
    assert model[2].training and torch.equal(model[2].running_mean, statistics)
    density_ratio(model.eval(), x, 0.1, target=0)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"noise_std": 0}, ValueError, "positive and finite, but is 0"),
        ({"noise_std": -1.0}, ValueError, "positive and finite, but is -1.0"),
        ({"noise_std": math.nan}, ValueError, "positive and finite, but is nan"),
        ({"noise_std": math.inf}, ValueError, "positive and finite, but is inf"),
        ({"noise_std": [0.1, 0.0]}, ValueError, "positive and finite, but is 0.0"),
        ({"noise_std": []}, TypeError, "empty"),
        ({"noise_std": "0.1"}, TypeError, "noise_std must be a number, but is '0.1'"),
        ({"noise_std": 0.1, "perturb_func": torch.tensor([0])}, TypeError, "a target is passed as target="),
        ({"noise_std": None}, TypeError, "either noise_std or perturb_func"),
        ({"perturb_func": lambda x: x}, TypeError, "either noise_std or perturb_func"),
        ({"noise_std": None, "perturb_func": lambda x: x, "generator": seeded()}, ValueError, "leave generator out"),
        ({"noise_std": None, "perturb_func": lambda x: x[:2]}, ValueError, r"\[\(20, 3\)\], but returned \[\(2, 3\)\]"),
        ({"noise_std": None, "perturb_func": lambda x: None}, ValueError, r"but returned \['NoneType'\]"),
        ({"noise_std": None, "perturb_func": lambda x: (x, x)}, ValueError, r"but returned \[\(20, 3\), \(20, 3\)\]"),
        ({"noise_std": None, "perturb_func": lambda x: x / 0}, ValueError, "perturb_func returned NaN or infinity"),
        ({"n_perturb_samples": 0}, ValueError, "samples must be at least 1"),
        ({"n_perturb_samples": 2.0}, TypeError, "samples must be an integer"),
        ({"max_examples_per_batch": 0}, ValueError, "max_examples_per_batch must be an integer of at least 1"),
        ({"inputs": X.int()}, TypeError, "int32"),
        ({"inputs": X[:0]}, ValueError, "at least one example"),
        ({"inputs": X * torch.nan}, ValueError, "NaN"),
        ({"inputs": [X]}, TypeError, "but is list"),
        ({"forward_func": 3}, TypeError, "but is int"),
        ({"forward_func": lambda x: x.sum()}, ValueError, "examples must come first"),
        ({"forward_func": lambda x: (x,)}, TypeError, "returned tuple"),
        ({"forward_func": lambda x: x[:, None].expand(-1, 2, 3), "target": None}, ValueError, "name a target"),
        ({"target": [0, 1, 2]}, AssertionError, None),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {"forward_func": nn.Identity(), "inputs": X, "noise_std": 0.1, "target": 0, **change}
    with pytest.raises(error, match=words):
        density_ratio(**arguments)


def test_standard_deviations_of_any_kind():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    expected = density_ratio(model, x, [0.1, 0.2], target=0, generator=seeded())
    for stds in ((0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2], dtype=torch.float64)):
        assert torch.equal(density_ratio(model, x, stds, target=0, generator=seeded()), expected)
    for std in (np.float64(0.1), torch.tensor(0.1, dtype=torch.float64)):
        assert torch.equal(density_ratio(model, x, std, target=0, generator=seeded()), expected[0])
