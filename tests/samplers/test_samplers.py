"""Samplers: chains computed once more with the same noise, densities whose moments are known, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.samplers import ActivationMaximization, LangevinSampler, Samples


def seeded(seed=1):  # not that of the global generator, which draws what chains start from
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=None):
    return torch.randn(*shape, dtype=torch.float64, generator=None if seed is None else seeded(seed))


def standard(x):
    return -0.5 * x.flatten(1).pow(2).sum(1)


def score_at(model, x, target=None):
    """The gradient of log p at one example, and log p."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf[None])[0]
    value = logits.exp().sum().log() if target is None else logits[target]
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient


def slowly(model, x, targets, *, step_size, n_steps, temperature, bounds, metropolis, generator):
    """Every chain by itself, one example at a time; the noise of a batch, in the order it is drawn in."""
    now, path, moves = x.clone(), [x.clone()], torch.zeros(len(x))
    for _ in range(n_steps):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        uniform = torch.rand(len(x), dtype=x.dtype, generator=generator) if metropolis else None
        after = now.clone()
        for i, target in enumerate(targets):
            value, slope = score_at(model, now[i], target)
            new = now[i] + step_size / 2 * slope / temperature + math.sqrt(step_size) * noise[i]
            if not metropolis:
                after[i] = new if bounds is None else new.clamp(*bounds)
                moves[i] += 1
                continue
            inside = bounds is None or bool((new >= bounds[0]).all() and (new <= bounds[1]).all())
            new_value, new_slope = score_at(model, new, target)

            def log_q(to, start, slope):  # of a step, as a normal distribution
                mean = start + step_size / 2 * slope / temperature
                return torch.distributions.Normal(mean, math.sqrt(step_size)).log_prob(to).sum().item()

            log_ratio = (new_value - value) / temperature
            log_ratio += log_q(now[i], new, new_slope) - log_q(new, now[i], slope)
            if inside and uniform[i] < math.exp(min(log_ratio, 0.0)):
                after[i] = new
                moves[i] += 1
        now = after
        path.append(now)
    return torch.stack(path), moves.double() / n_steps


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.sampled_from([1.0, 0.25, 3.0]),
    st.sampled_from([None, (-1.0, 1.5), (0.0, math.inf)]),
    st.booleans(),
)
def test_chains_are_those_of_one_example_at_a_time(seed, metropolis, step_size, temperature, bounds, marginal):
    torch.manual_seed(seed)
    x = torch.rand(3, 2, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model[3].weight.data *= 4
    targets = [None] * 3 if marginal else torch.randint(3, (3,)).tolist()
    options = {"step_size": step_size, "temperature": temperature, "bounds": bounds, "metropolis": metropolis}
    sampler = LangevinSampler(model, n_steps=6, **options, generator=seeded(seed))
    result = sampler.sample(x, None if marginal else targets, return_trajectory=True)
    path, rate = slowly(model, x, targets, n_steps=6, **options, generator=seeded(seed))
    assert isinstance(result, Samples)
    assert_close(result.trajectory, path)
    assert_close(result.acceptance_rate, rate)
    assert torch.equal(result.samples, result.trajectory[-1]) and torch.equal(x, result.trajectory[0])
    if bounds is not None:
        assert bool((result.trajectory >= bounds[0]).all() and (result.trajectory <= bounds[1]).all())


def test_one_step_by_hand():
    noise = torch.randn(2, 3, generator=seeded(5))
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    result = LangevinSampler(standard, 0.04, 1, temperature=0.5, generator=seeded(5)).sample(x)
    assert_close(result.samples, x - 0.04 / 2 * x / 0.5 + 0.2 * noise)
    # The dynamics of Grathwohl et al., x + a grad log p + s N(0, 1), as the docstring has it.
    a, s = 0.3, 0.2
    result = LangevinSampler(standard, s**2, 1, temperature=s**2 / (2 * a), generator=seeded(5)).sample(x)
    assert_close(result.samples, x - a * x + s * noise)


# ----------------------------------------------------------------------------------------------------------------------
# Moments. Chains are independent, so that N of them have means within a few sigma / sqrt(N), variances within a few
# sigma^2 sqrt(2 / N). Seeds are fixed.


def correlated():
    """A normal density in two dimensions, its mean and its covariance."""
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    precision = covariance.inverse()
    return lambda x: -0.5 * torch.einsum("ni,ij,nj->n", x - mean, precision, x - mean), mean, covariance


@pytest.mark.parametrize("temperature", [1.0, 0.25, 4.0])
def test_metropolis_has_the_moments_of_a_gaussian(temperature):
    density, mean, covariance = correlated()
    n = 8000
    sampler = LangevinSampler(
        density, 0.8 * temperature, 60, temperature=temperature, metropolis=True, generator=seeded()
    )
    x = sampler.sample(3 * normal(n, 2)).samples
    expected = temperature * covariance
    variances = expected.diagonal()
    assert bool(((x.mean(0) - mean).abs() < 4 * (variances / n).sqrt()).all())
    errors = (torch.outer(variances, variances) + expected**2).div(n).sqrt()  # of a Gaussian's covariances
    assert bool(((x.T.cov() - expected).abs() < 4 * errors).all())


@pytest.mark.parametrize(("variance", "share", "temperature"), [(1.0, 1.0, 1.0), (0.25, 2.0, 1.0), (1.0, 1.5, 3.0)])
def test_the_unadjusted_chain_has_its_known_bias(variance, share, temperature):
    # x' = (1 - e / 2 s2) x + sqrt(e) z: a variance v with v = (1 - e / 2 s2)^2 v + e is s2 / (1 - e / 4 s2). At a
    # temperature T the density's s2 is T times the model's.
    n, s2 = 40_000, variance * temperature
    step = share * s2
    density = lambda x: -0.5 * x[:, 0].pow(2) / variance  # noqa: E731
    sampler = LangevinSampler(density, step, 40, temperature=temperature, generator=seeded())
    x = sampler.sample(torch.zeros(n, 1, dtype=torch.float64)).samples
    expected = s2 / (1 - step / (4 * s2))
    assert expected > 1.3 * s2
    assert abs(x.var().item() - expected) < 4 * expected * math.sqrt(2 / n)
    assert abs(x.mean().item()) < 4 * math.sqrt(expected / n)


def farthest(x, distribution):
    """Kolmogorov and Smirnov's distance of samples from a distribution function, times sqrt(N)."""
    values, n = x.flatten().sort().values, x.numel()
    exact = distribution(values)
    above = torch.arange(1, n + 1) / n - exact
    below = exact - torch.arange(n) / n
    return float(torch.maximum(above, below).max()) * math.sqrt(n)


def test_metropolis_weighs_the_modes_of_a_mixture():
    # Two classes of weights 0.3 and 0.7: logits log w - (x - m)^2 / 2 at means -1.5 and 1.5, summed to p(x).
    weights, means = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([-1.5, 1.5], dtype=torch.float64)
    model = lambda x: weights.log() - 0.5 * (x - means).pow(2)  # noqa: E731
    cdf = lambda x: (weights * torch.special.ndtr(x[:, None] - means)).sum(1)  # noqa: E731
    sampler = LangevinSampler(model, 1.5, 150, metropolis=True, generator=seeded())
    result = sampler.sample(normal(4000, 1))
    # 1.95 is exceeded by one in a thousand.
    assert farthest(result.samples, cdf) < 1.95
    # A class's logit alone is one mode; each chain has its own.
    target = torch.arange(4000) % 2
    of_classes = sampler.sample(normal(4000, 1), target).samples
    for y in (0, 1):
        assert farthest(of_classes[target == y] - means[y], torch.special.ndtr) < 1.95


@pytest.mark.parametrize("bounds", [(0.0, 1.5), (-0.5, 3.0), (1.0, math.inf)])
def test_metropolis_within_bounds_is_the_truncated_density(bounds):
    low, high = bounds
    start = low + torch.rand(4000, 1, dtype=torch.float64)
    sampler = LangevinSampler(standard, 0.4, 100, bounds=bounds, metropolis=True, generator=seeded())
    result = sampler.sample(start, return_trajectory=True)
    assert bool((result.trajectory >= low).all() and (result.trajectory <= high).all())
    phi = lambda t: math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    cdf = lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2)))  # noqa: E731
    z = cdf(high) - cdf(low)
    mean = (phi(low) - phi(high)) / z
    variance = 1 + (low * phi(low) - (0 if high == math.inf else high * phi(high))) / z - mean**2
    assert abs(result.samples.mean().item() - mean) < 4 * math.sqrt(variance / 4000)
    # A truncated variance's error is below the normal one's.
    assert abs(result.samples.var().item() - variance) < 4 * variance * math.sqrt(2 / 4000)
    # Refused steps stay, they do not pile up at the edge.
    assert not bool((result.samples == low).any() or (result.samples == high).any())


def test_clamped_chains_stand_at_the_edge():
    result = LangevinSampler(lambda x: 5 * x.sum(1), 0.5, 30, bounds=(-1.0, 2.0), generator=seeded()).sample(
        torch.full((500, 1), 9.0), return_trajectory=True
    )
    assert result.trajectory[0].eq(9).all()
    assert bool((result.trajectory[1:] <= 2).all()) and float(result.samples.eq(2).float().mean()) > 0.5


def test_acceptance_falls_with_the_step():
    start = normal(300, 10)
    rates = [
        LangevinSampler(standard, step, 20, metropolis=True, generator=seeded()).sample(start).acceptance_rate
        for step in (1e-4, 0.1, 0.5, 1.0, 2.0, 4.0)
    ]
    assert all(rate.shape == (300,) and rate.dtype == torch.float64 for rate in rates)
    means = [float(rate.mean()) for rate in rates]
    assert means == sorted(means, reverse=True) and means[0] > 0.999 and means[-1] < 0.1


@pytest.mark.parametrize("length", [1.2, 1.651, 2.0])
def test_acceptance_in_high_dimensions_is_the_known_one(length):
    # Of a standard normal density the log ratio is -e/8 (|x'|^2 - |x|^2), exactly: with a = 1 - e/2 and x' = a x +
    # sqrt(e) z, of mean -d e^3 / 32 and variance d e^2 / 64 (2 (1 - a^2)^2 + 4 a^2 e + 2 e^2), and normal for large d.
    d, phi = 1000, lambda t: 0.5 * math.erfc(-t / math.sqrt(2))

    def expected(d):
        e = length**2 * d ** (-1 / 3)
        a = 1 - e / 2
        mean = -d * e**3 / 32
        spread = math.sqrt(d * e**2 / 64 * (2 * (1 - a**2) ** 2 + 4 * a**2 * e + 2 * e**2))
        return phi(mean / spread) + math.exp(mean + spread**2 / 2) * phi(-spread - mean / spread)

    step = length**2 * d ** (-1 / 3)
    result = LangevinSampler(standard, step, 4, metropolis=True, generator=seeded()).sample(normal(2000, d))
    # A chain's four are alike, so that the error is that of 2000 draws at most.
    assert abs(float(result.acceptance_rate.mean()) - expected(d)) < 4 * 0.5 / math.sqrt(2000)
    # The limit of G. O. Roberts and J. S. Rosenthal, J. R. Statist. Soc. B 60, 1998: 2 Phi(-l^3 K / 2), K = 1/4 here;
    # 0.574 at the l of 1.65 that makes chains fastest.
    assert abs(expected(1e12) - 2 * phi(-(length**3) / 8)) < 1e-3
    assert length != 1.651 or abs(expected(1e12) - 0.574) < 1e-3


def test_where_the_density_is_zero_or_nan_no_chain_goes():
    half = lambda x: torch.where(x[:, 0] > 0, x[:, 0].clamp_min(1e-30).log() - x[:, 0], -math.inf)  # noqa: E731
    sampler = LangevinSampler(half, 0.8, 100, metropolis=True, generator=seeded())
    x = sampler.sample(torch.ones(3000, 1, dtype=torch.float64)).samples  # x e^-x: mean and variance 2
    assert bool((x > 0).all()) and abs(x.mean().item() - 2) < 0.15
    undefined = LangevinSampler(lambda x: (1 - x[:, 0] ** 2).sqrt(), 0.5, 50, metropolis=True, generator=seeded())
    assert bool((undefined.sample(torch.zeros(200, 1)).samples.abs() <= 1).all())


# ----------------------------------------------------------------------------------------------------------------------
# What both samplers keep of their hosts

SAMPLERS = {
    "langevin": lambda model, **options: LangevinSampler(model, 0.1, **{"n_steps": 5, **options}),
    "metropolis": lambda model, **options: LangevinSampler(model, 0.1, **{"n_steps": 5, **options}, metropolis=True),
    "maximization": lambda model, **options: ActivationMaximization(model, 0.1, **{"n_steps": 5, **options}),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shapes_and_dtypes(make, dtype):
    x = torch.randn(3, 1, 4, 4).to(dtype).requires_grad_()
    before = x.detach().clone()
    result = make(standard).sample(x, return_trajectory=True)
    assert result.samples.shape == x.shape and result.samples.dtype == dtype and not result.samples.requires_grad
    assert result.trajectory.shape == (6, 3, 1, 4, 4) and not result.trajectory.requires_grad
    assert torch.equal(result.trajectory[0], before) and torch.equal(result.trajectory[-1], result.samples)
    assert result.acceptance_rate.shape == (3,) and not bool((result.samples == before).all())
    assert x.grad is None and torch.equal(x, before)
    assert make(standard).sample(x).trajectory is None


@every_sampler
@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_shown_where_it_is_asked_for(make, shown, capsys):
    make(standard).sample(torch.ones(2, 3), show_progress=shown)
    out, err = capsys.readouterr()
    assert out == "" and ("5/5" in err and ("angevin" in err or "activation maximization" in err) if shown else not err)


@every_sampler
def test_several_inputs_are_one_chain(make):
    x, y = normal(3, 2), normal(3, 2, 2)
    options = [{}, {}] if make is SAMPLERS["maximization"] else [{"generator": seeded()}, {"generator": seeded()}]
    density = lambda x, y: -0.5 * (x.pow(2).sum(1) * y.flatten(1).exp().sum(1))  # noqa: E731
    result = make(density, **options[0]).sample((x, y), return_trajectory=True)
    assert isinstance(result.samples, tuple) and [t.shape for t in result.trajectory] == [(6, 3, 2), (6, 3, 2, 2)]
    assert torch.equal(result.samples[1], result.trajectory[1][-1])
    one = make(standard, **options[1]).sample((x,))
    assert isinstance(one.samples, tuple) and len(one.samples) == 1
    if make is SAMPLERS["maximization"]:
        joined = lambda z: density(z[:, :2], z[:, 2:].reshape(-1, 2, 2))  # noqa: E731
        z = make(joined).sample(torch.cat([x, y.flatten(1)], 1)).samples
        assert_close(torch.cat([result.samples[0], result.samples[1].flatten(1)], 1), z)


def test_several_inputs_move_and_are_accepted_as_one():
    x, y = normal(400, 1), normal(400, 1)
    joint = lambda x, y: -0.5 * (x.pow(2) + y.pow(2) - 1.6 * x * y).sum(1) / (1 - 0.64)  # noqa: E731
    sampler = LangevinSampler(joint, 0.3, 40, metropolis=True, generator=seeded())
    result = sampler.sample((x, y), return_trajectory=True)
    moved = [path.diff(dim=0).ne(0) for path in result.trajectory]
    assert torch.equal(*moved)
    assert_close(result.acceptance_rate, moved[0][:, :, 0].double().mean(0))
    correlation = torch.corrcoef(torch.cat(result.samples, 1).T)[0, 1].item()
    assert abs(correlation - 0.8) < 4 * (1 - 0.64) / math.sqrt(400)


def test_several_inputs_are_those_of_one_joined():
    x, y, step, bounds = torch.rand(60, 2).double(), torch.rand(60, 1, 2).double(), 0.3, (-1.5, 1.5)
    density = lambda z: (2 * z).sin().prod(1) - 0.02 * z.pow(4).sum(1)  # noqa: E731
    sampler = LangevinSampler(
        lambda x, y: density(torch.cat([x, y.flatten(1)], 1)),
        *(step, 10),
        bounds=bounds,
        metropolis=True,
        generator=seeded(),
    )
    result = sampler.sample((x, y), return_trajectory=True)

    def drift(z):
        leaf = z.clone().requires_grad_()
        value = density(leaf)
        return z + step / 2 * torch.autograd.grad(value.sum(), leaf)[0], value.detach()

    generator, z, outside = seeded(), torch.cat([x, y.flatten(1)], 1), 0
    for number in range(1, 11):
        noise = [torch.randn(60, 2, dtype=torch.float64, generator=generator) for _ in range(2)]
        uniform = torch.rand(60, dtype=torch.float64, generator=generator)
        (mean, value), new = drift(z), drift(z)[0] + math.sqrt(step) * torch.cat(noise, 1)
        new_mean, new_value = drift(new)
        forth, back = ((a - b).pow(2).sum(1) / (2 * step) for a, b in ((new, mean), (z, new_mean)))
        inside = new.abs().le(1.5)
        outside += int((inside[:, :2].all(1) ^ inside[:, 2:].all(1)).sum())
        moves = (uniform < (new_value - value + forth - back).exp()) & inside.all(1)
        z = torch.where(moves[:, None], new, z)
        assert_close(torch.cat([result.trajectory[0][number], result.trajectory[1][number].flatten(1)], 1), z)
    assert outside > 5  # steps that one input alone made leave the bounds


@every_sampler
def test_additional_arguments(make):
    x, weight = normal(3, 2), normal(3, 4)
    model = nn.Linear(2, 4).double()
    batches = []

    def forward(x, weight, factor, name):
        batches.append((len(weight), name))
        return model(x) * weight * factor

    options = {} if make is SAMPLERS["maximization"] else {"generator": seeded()}
    result = make(forward, **options).sample(x, [0, 1, 3], (weight, 2.0, "name"))
    assert set(batches) == {(3, "name")}
    options = {} if make is SAMPLERS["maximization"] else {"generator": seeded()}
    inside = make(lambda x: model(x) * weight * 2, **options).sample(x, torch.tensor([0, 1, 3]))
    assert torch.equal(result.samples, inside.samples)


@every_sampler
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before_and_batch_norm_is_fixed(make, training):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    model[1].running_mean.uniform_(-1, 1)
    model.train(training)
    model[0].weight.grad = torch.ones(5, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(6, 4)
    torch.manual_seed(1)
    result = make(model).sample(x, 1)
    assert model.training == model[1].training == training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].weight.grad.eq(1).all() and all(p.grad is None for p in model[3].parameters())
    torch.manual_seed(1)
    assert torch.equal(make(model.eval()).sample(x, 1).samples, result.samples)


@every_sampler
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(make, mode):
    torch.manual_seed(1)
    expected = make(standard).sample(torch.ones(2, 3)).samples
    torch.manual_seed(1)
    with mode():
        assert torch.equal(make(standard).sample(torch.ones(2, 3)).samples, expected)


@pytest.mark.parametrize("make", [SAMPLERS["langevin"], SAMPLERS["metropolis"]])
def test_random_numbers_are_the_generators_or_the_global_ones(make):
    x, generator = torch.ones(2, 3), seeded(3)
    before = torch.get_rng_state()
    first, second = make(standard, generator=generator).sample(x).samples, make(standard, generator=seeded(3)).sample(x)
    assert torch.equal(first, second.samples) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(make(standard, generator=generator).sample(x).samples, first)
    torch.manual_seed(3)
    assert torch.equal(make(standard).sample(x).samples, first)
    assert not torch.equal(before, torch.get_rng_state())


def test_dropout_is_refused_where_values_are_compared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    x, before = torch.randn(2, 4), torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers"):
        LangevinSampler(model, 0.1, 3, metropolis=True, generator=seeded()).sample(x, 0)
    assert torch.equal(before, torch.get_rng_state())
    LangevinSampler(model, 0.1, 3, generator=seeded()).sample(x, 0)
    LangevinSampler(model.eval(), 0.1, 3, metropolis=True, generator=seeded()).sample(x, 0)


@pytest.mark.parametrize("metropolis", [False, True])
def test_a_start_out_of_bounds(metropolis):
    sampler = LangevinSampler(standard, 0.01, 3, bounds=(0.0, 1.0), metropolis=metropolis)
    x = torch.tensor([[0.5], [1.0001]])
    if metropolis:
        with pytest.raises(ValueError, match=r"must start within its bounds, \(0.0, 1.0\)"):
            sampler.sample(x)
        sampler.sample(x.clamp(max=1.0))  # the edge is inside
    else:
        assert bool((sampler.sample(x).samples <= 1).all())


@pytest.mark.parametrize(
    ("make", "number"),
    [
        # Each step multiplies by 1e20 or so: float32 ends at 3e38, the second step.
        (lambda: LangevinSampler(standard, 1e20, 50), 2),
        (lambda: LangevinSampler(lambda x: x.pow(2).sum(1), 1e20, 50), 2),
        (lambda: LangevinSampler(lambda x: x.sum(1).sqrt(), 0.1, 50), 1),  # a gradient of NaN or infinity at the start
        (lambda: ActivationMaximization(standard, 1e20), 2),
        (lambda: ActivationMaximization(lambda x: x.pow(2).sum(1), 10.0), None),
        (lambda: ActivationMaximization(lambda x: x.sum(1).sqrt(), 0.1), 1),
    ],
)
def test_running_away_is_said(make, number):
    x = torch.zeros(2, 3) if number == 1 else torch.ones(2, 3)
    words = rf"step {r'[0-9]+' if number is None else number} left the finite numbers.*take a smaller step_size"
    with pytest.raises(ValueError, match=words):
        make().sample(x)


NUMBERS = [
    ({"step_size": 0.0}, "step_size must be positive and finite, but is 0.0"),
    ({"step_size": -1.0}, "step_size must be positive"),
    ({"step_size": math.nan}, "step_size must be positive"),
    ({"step_size": math.inf}, "step_size must be positive"),
    ({"n_steps": 0}, "n_steps must be an integer of at least 1, but is 0"),
    ({"bounds": (1.0, 1.0)}, r"low < high, but is \(1.0, 1.0\)"),
    ({"bounds": (1.0, 0.0)}, "low < high"),
    ({"bounds": (0.0, math.nan)}, "low < high"),
    ({"bounds": (0.0, 1.0, 2.0)}, "low < high"),
]


@pytest.mark.parametrize("kind", [LangevinSampler, ActivationMaximization])
@pytest.mark.parametrize(("change", "words"), NUMBERS)
def test_numbers_out_of_range(kind, change, words):
    with pytest.raises(ValueError, match=words):
        kind(**{"forward_func": standard, "step_size": 0.1, **change})


@pytest.mark.parametrize("options", [{"metropolis": False}, {"metropolis": True}, None])
def test_bounds_may_differ_by_element(options):
    def sample(bounds):
        if options is None:
            return ActivationMaximization(lambda x: 9 * standard(x - 1), 0.5, 5, bounds=bounds).sample(x)
        return LangevinSampler(standard, 2.0, 5, bounds=bounds, generator=seeded(), **options).sample(x)

    x = torch.zeros(40, 2, 3, 3)
    assert_close(sample((torch.full((2, 1, 1), -1.0), 1)), sample((-1.0, 1.0)))
    low, high = torch.tensor([-0.5, -2.0]).view(2, 1, 1), torch.tensor([0.25, 3.0]).view(2, 1, 1)
    samples = sample((low, high)).samples
    assert ((samples >= low) & (samples <= high)).all()
    assert options == {"metropolis": True} or ((samples[:, 0] == 0.25).any() and (samples[:, 1] > 0.5).any())
    with pytest.raises(ValueError, match="a tensor that broadcasts to the inputs"):
        sample((torch.zeros(7), 1.0))
    with pytest.raises(ValueError, match="low < high"):
        sample((low, torch.tensor([0.0, -3.0]).view(2, 1, 1)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        LangevinSampler(standard, 0.1, temperature=temperature)


@pytest.mark.parametrize("decay", [-0.1, math.nan, math.inf])
def test_decays_out_of_range(decay):
    with pytest.raises(ValueError, match="decay must be at least 0 and finite"):
        ActivationMaximization(standard, 0.1, decay=decay)


@every_sampler
@pytest.mark.parametrize(
    ("model", "x", "target", "error", "words"),
    [
        (nn.Identity(), torch.ones(2, 3).int(), 0, TypeError, "int32"),
        (nn.Identity(), torch.ones(0, 3), 0, ValueError, "at least one example"),
        (nn.Identity(), torch.ones(2, 3) * torch.nan, 0, ValueError, "NaN"),
        (nn.Identity(), [torch.ones(2, 3)], 0, TypeError, "list"),
        (3, torch.ones(2, 3), 0, TypeError, "but is int"),
        (lambda x: x.detach(), torch.ones(2, 3), 0, ValueError, "no gradient by its inputs"),
        (lambda x: x.sum(), torch.ones(2, 3), 0, ValueError, "examples must come first"),
        (nn.Identity(), torch.ones(2, 3), [0, 1, 2], AssertionError, None),
        (nn.Identity(), torch.ones(2, 3, 4), None, ValueError, "name a target"),
    ],
)
def test_what_is_refused(make, model, x, target, error, words):
    before = torch.get_rng_state()
    with pytest.raises(error, match=words):
        make(model).sample(x, target)
    assert torch.equal(before, torch.get_rng_state())


# ----------------------------------------------------------------------------------------------------------------------
# Activation maximization


def quadratic(d=3):
    """A concave quadratic, its maximum and its negative Hessian."""
    root = normal(d, d)
    precision, mean = root @ root.T / d + torch.eye(d, dtype=torch.float64), normal(d)
    return lambda x: -0.5 * torch.einsum("ni,ij,nj->n", x - mean, precision, x - mean), mean, precision


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("form", ["number", "one for all", "one for each", "tuple"])
def test_every_step_of_a_quadratic_in_closed_form(decay, form):
    density, mean, precision = quadratic()
    start, eta = normal(4, 3), 0.1
    reference = {"number": 1.5, "one for all": normal(3), "one for each": normal(4, 3), "tuple": (normal(1, 3),)}[form]
    sampler = ActivationMaximization(density, eta, 300, decay=decay, reference=reference)
    result = sampler.sample(start, return_trajectory=True)
    given_reference = torch.as_tensor(reference[0] if form == "tuple" else reference, dtype=torch.float64)
    hessian = precision + decay * torch.eye(3, dtype=torch.float64)
    best = torch.linalg.solve(hessian, (mean @ precision + decay * given_reference.expand(4, 3)).T).T
    step = torch.eye(3, dtype=torch.float64) - eta * hessian
    for t in (0, 1, 2, 7, 50):  # x_t - x* = (1 - eta H)^t (x_0 - x*)
        assert_close(result.trajectory[t] - best, (start - best) @ torch.linalg.matrix_power(step, t))
    assert_close(result.samples, best, rtol=1e-8, atol=1e-8)
    assert result.acceptance_rate.tolist() == [1, 1, 1, 1]


def test_it_draws_nothing():
    model, x, before = nn.Linear(4, 3), torch.randn(2, 4), torch.get_rng_state()
    first, second = (ActivationMaximization(model, 0.1, 5).sample(x, 0).samples for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())


def test_each_example_climbs_its_own_class():
    model, x = nn.Linear(4, 3).double(), normal(3, 4)
    result = ActivationMaximization(model, 0.1, 7).sample(x, [2, 0, 1]).samples
    assert_close(result, (x + 0.7 * model.weight[[2, 0, 1]]).detach())
    marginal = ActivationMaximization(model, 0.1, 1).sample(x).samples
    assert_close(marginal, (x + 0.1 * model(x).softmax(1) @ model.weight).detach())


@given(st.integers(0, 10**6), st.floats(-30, 30))
def test_normalized_steps_have_one_length(seed, exponent):
    torch.manual_seed(seed)
    scale = 10.0**exponent
    x = torch.randn(4, 2, 3)  # in single precision, whose squares of 1e-30 are 0 and of 1e30 infinite
    density = lambda x: scale * (x.sin() * torch.arange(1.0, 7).reshape(2, 3)).flatten(1).sum(1)  # noqa: E731
    result = ActivationMaximization(density, 0.25, 6, normalize=True).sample(x, return_trajectory=True)
    steps = result.trajectory.double().diff(dim=0).flatten(2)
    assert_close(steps.norm(dim=2), torch.full((6, 4), 0.25, dtype=torch.float64), rtol=0, atol=1e-5)
    slope = result.trajectory[:-1].double().cos() * torch.arange(1.0, 7).reshape(2, 3)
    cosines = torch.cosine_similarity(steps, slope.flatten(2), dim=2)
    assert bool((cosines > 1 - 1e-5).all())


def test_normalized_over_all_inputs_and_with_decay_apart():
    x, y = normal(3, 2), normal(3, 1, 2)
    forward = lambda x, y: 3 * x.sum(1) - 4 * y.flatten(1).sum(1)  # noqa: E731
    result = ActivationMaximization(forward, 0.5, 1, normalize=True, decay=0.3, reference=(1.0, 2.0)).sample((x, y))
    length = math.sqrt(2 * 9 + 2 * 16)
    assert_close(result.samples[0], x + 0.5 * (3 / length - 0.3 * (x - 1)))
    assert_close(result.samples[1], y + 0.5 * (-4 / length - 0.3 * (y - 2)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_gradient_of_zero_stays(normalize, dtype):
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=dtype)
    result = ActivationMaximization(standard, 0.1, 4, normalize=normalize).sample(x).samples
    assert result[0].tolist() == [0, 0] and not torch.equal(result[1], x[1]) and result.dtype == dtype


def test_bounds_hold_at_every_step():
    center = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    density = lambda x: -0.5 * (x - center).pow(2).sum(1)  # noqa: E731
    result = ActivationMaximization(density, 0.5, 60, bounds=(0.0, 1.0)).sample(normal(2, 3), return_trajectory=True)
    assert bool((result.trajectory[1:] >= 0).all() and (result.trajectory[1:] <= 1).all())
    assert_close(result.samples, center.clamp(0, 1).expand(2, 3))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (torch.ones(4), "reference must fit the inputs"),
        (torch.ones(3, 2, 3), "reference must fit the inputs"),
        ((0.0, 0.0), "one for each of 1 inputs"),
        ((), "one for each of 1 inputs"),
        (math.nan, "left the finite numbers|reference"),
    ],
)
def test_references_that_do_not_fit(reference, words):
    with pytest.raises(ValueError, match=words):
        ActivationMaximization(standard, 0.1, decay=0.1, reference=reference).sample(torch.ones(2, 3))
