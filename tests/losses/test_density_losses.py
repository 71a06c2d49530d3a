import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, Uniform
from torch.nn.functional import softplus

from captum_density._density import hessian_trace as _trace
from captum_density.density import hessian_trace, marginal_log_density
from captum_density.losses import (
    AntiScoreMatchingLoss,
    ContrastiveDivergenceLoss,
    DenoisingScoreMatchingLoss,
    FiniteDifferenceScoreMatchingLoss,
    GradientNormLoss,
    NoiseContrastiveLoss,
    ScoreMatchingLoss,
    SlicedScoreMatchingLoss,
    _denoising,
)

DOUBLE = torch.float64
LABELS = torch.tensor([2, 0, 1, 1])
NOISE = Independent(Normal(torch.zeros(3, dtype=DOUBLE), 2 * torch.ones(3, dtype=DOUBLE)), 1)
TINY = 1e-300  # a step size that moves nothing


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Each with a generator, where it draws.
LOSSES = {
    "antithetic": lambda g: ScoreMatchingLoss(n_samples=2, generator=g),
    "taylor": lambda g: ScoreMatchingLoss("taylor", 2, 0.3, stability=0.01, generator=g),
    "hutchinson": lambda g: ScoreMatchingLoss("hutchinson", 2, stability=0.01, generator=g),
    "exact": lambda g: ScoreMatchingLoss("exact", stability=0.01),
    "anti": lambda g: AntiScoreMatchingLoss(n_samples=2, generator=g),
    "anti, taylor": lambda g: AntiScoreMatchingLoss(estimator="taylor", n_samples=2, generator=g),
    "anti, hutchinson": lambda g: AntiScoreMatchingLoss(estimator="hutchinson", generator=g),
    "anti, exact": lambda g: AntiScoreMatchingLoss(estimator="exact"),
    "sliced": lambda g: SlicedScoreMatchingLoss(2, generator=g),
    "sliced, projected": lambda g: SlicedScoreMatchingLoss(2, False, distribution="gaussian", generator=g),
    "finite differences": lambda g: FiniteDifferenceScoreMatchingLoss(2, 0.2, 0.01, generator=g),
    "denoising": lambda g: DenoisingScoreMatchingLoss(0.2, 2, generator=g),
    "gradient norm": lambda g: GradientNormLoss(),
    "noise contrast": lambda g: NoiseContrastiveLoss(NOISE, 3, generator=g).double(),
    "contrastive divergence": lambda g: ContrastiveDivergenceLoss(0.01, 2, 16, generator=g, regularization=0.1),
}
PARTS = {
    "antithetic": {"trace", "gradient_norm", "stability_penalty"},
    "taylor": {"trace", "gradient_norm", "stability_penalty"},
    "hutchinson": {"trace", "gradient_norm", "stability_penalty"},
    "exact": {"trace", "gradient_norm", "stability_penalty"},
    "anti": {"trace"},
    "anti, taylor": {"trace"},
    "anti, hutchinson": {"trace"},
    "anti, exact": {"trace"},
    "sliced": {"trace", "gradient_norm"},
    "sliced, projected": {"trace", "gradient_norm"},
    "finite differences": {"trace", "gradient_norm", "stability_penalty"},
    "denoising": {"gradient_norm"},
    "gradient norm": {"gradient_norm"},
    "noise contrast": {"accuracy"},
    "contrastive divergence": {"positive", "negative"},
}
# Those that compare values, and those of one input of a fixed shape.
COMPARED = ("antithetic", "taylor", "anti", "anti, taylor", "finite differences")
STATEFUL = ("noise contrast", "contrastive divergence")
every = pytest.mark.parametrize("name", LOSSES)
targets = pytest.mark.parametrize("target", [1, LABELS, None], ids=["int", "tensor", "None"])


def network(*last):
    return nn.Sequential(nn.Linear(3, 5), nn.Softplus(), nn.Linear(5, 3), *last).double()


@pytest.fixture
def model():
    return network()


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=DOUBLE)


def log_density_of(model, target, n):
    """Of one example, number n."""

    def log_density(one):
        logits = model(one[None])[0]
        return logits.logsumexp(0) if target is None else logits[target if isinstance(target, int) else target[n]]

    return log_density


def in_words(name, loss, model, x, target):
    """The loss and its parts from the formula, example by example and sample by sample, in torch.func."""
    d, n = x[0].numel(), len(x)
    fs = [log_density_of(model, target, i) for i in range(n)]
    gradients = [torch.func.grad(f)(one) for f, one in zip(fs, x, strict=True)]
    hessians = [torch.func.jacrev(torch.func.jacrev(f))(one) for f, one in zip(fs, x, strict=True)]
    norms = [(g**2).sum() for g in gradients]

    def mean(numbers):
        return sum(numbers) / len(numbers)

    generator = seeded()
    if "sliced" in name:
        if "projected" in name:
            u = torch.randn((2, n, d), generator=generator, dtype=DOUBLE)
        else:
            u = torch.randint(0, 2, (2, n, d), generator=generator).to(DOUBLE) * 2 - 1
        curvatures = [v @ h @ v for sample in u for v, h in zip(sample, hessians, strict=True)]
        squares = norms
        if "projected" in name:
            squares = [(v @ g) ** 2 for sample in u for v, g in zip(sample, gradients, strict=True)]
        return mean(curvatures) + 0.5 * mean(squares), {
            "trace": mean(curvatures), "gradient_norm": mean(squares) ** 0.5
        }  # fmt: skip
    if name == "gradient norm":
        return 0.5 * mean(norms), {"gradient_norm": mean(norms) ** 0.5}
    if name == "denoising":
        v = 0.2 * torch.randn((2, n, d), generator=generator, dtype=DOUBLE)
        residuals, result = [], []
        for k in range(2):
            for i in range(n):
                g = torch.func.grad(fs[i])(x[i] + v[k, i])
                result.append((g**2).sum())
                residuals.append(0.5 * ((g + v[k, i] / 0.2**2) ** 2).sum())
        return mean(residuals), {"gradient_norm": mean(result) ** 0.5}
    if name == "noise contrast":
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        noise = NOISE.sample((3, n))
        total, right = 0, []
        for i in range(n):
            c = loss.log_normalizer[0]
            h = [fs[i](p) - c - NOISE.log_prob(p) - math.log(3) for p in (x[i], *noise[:, i])]
            total = total + softplus(-h[0]) + sum(softplus(one) for one in h[1:])
            right += [h[0] > 0, *(one < 0 for one in h[1:])]
        return total / n, {"accuracy": mean([r.double() for r in right])}
    estimator = name.removeprefix("anti, ").replace("finite differences", "antithetic").replace("anti,", "")
    estimator = "antithetic" if estimator == "anti" else estimator
    std = {"taylor": 0.3, "finite differences": 0.2}.get(name, 0.1)
    samples = 1 if name == "anti, hutchinson" else 2
    u = torch.randn((samples, n, d), generator=generator, dtype=DOUBLE)
    traces, slopes = [], []
    for i, (f, one) in enumerate(zip(fs, x, strict=True)):
        if estimator == "exact":
            traces.append(hessians[i].trace())
        elif estimator == "hutchinson":
            traces.append(mean([v @ hessians[i] @ v for v in u[:, i]]))
        elif estimator == "taylor":
            traces.append(mean([2 * (f(one + std * v) - f(one)) / std**2 for v in u[:, i]]))
        else:
            traces.append(mean([(f(one + std * v) + f(one - std * v) - 2 * f(one)) / std**2 for v in u[:, i]]))
        slopes.append(mean([(f(one + std * v) - f(one - std * v)) ** 2 / (4 * std**2) for v in u[:, i]]))
    if name.startswith("anti") and name != "antithetic":
        return -mean([t.clamp(max=loss.threshold) for t in traces]), {"trace": mean(traces)}
    squares = slopes if name == "finite differences" else norms
    penalty = mean([loss.stability * t**2 for t in traces])
    total = mean(traces) + 0.5 * mean(squares) + penalty
    return total, {"trace": mean(traces), "gradient_norm": mean(squares) ** 0.5, "stability_penalty": penalty}


@targets
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "contrastive divergence"])
def test_formula(model, x, name, target):
    loss = LOSSES[name](seeded())
    if name == "noise contrast":
        loss.log_normalizer.data.fill_(0.3)
    result = loss(model, x, target)
    expected, parts = in_words(name, loss, model, x, target)
    assert result.shape == ()
    assert result.dtype == DOUBLE
    # Rounding of the evaluations, over the square of the standard deviation.
    torch.testing.assert_close(result, expected, atol=1e-11, rtol=1e-11)
    assert set(parts) == PARTS[name]
    for part, value in parts.items():
        value = getattr(loss, part)
        assert not value.requires_grad
        torch.testing.assert_close(value, value.detach(), atol=1e-11, rtol=1e-11)
    weights = [*model.parameters()]
    slopes = torch.autograd.grad(result, weights, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(
        slopes, torch.autograd.grad(expected, weights, allow_unused=True, materialize_grads=True), atol=1e-10, rtol=1e-9
    )


@every
def test_parts(model, x, name):
    loss = LOSSES[name](seeded())
    assert all(getattr(loss, part) is None for part in PARTS[name])
    value = loss(model, x, LABELS)
    part = {p: getattr(loss, p) for p in PARTS[name]}
    assert not any(p.requires_grad for p in part.values())
    if "stability_penalty" in part:
        total = part["trace"] + 0.5 * part["gradient_norm"] ** 2 + part["stability_penalty"]
        torch.testing.assert_close(value.detach(), total)
    if "trace" in part and len(part) == 1:
        torch.testing.assert_close(value.detach(), -part["trace"])
    if name == "contrastive divergence":
        without = ContrastiveDivergenceLoss(0.01, 2, 16, generator=seeded())
        result = without(model, x, LABELS)
        torch.testing.assert_close(result, without.negative - without.positive)
        torch.testing.assert_close(part, {"positive": without.positive, "negative": without.negative})
        ends = model(without.chains[:4]).gather(1, LABELS[:, None])
        penalty = 0.1 * (model(x).gather(1, LABELS[:, None]) ** 2 + ends**2).mean()
        torch.testing.assert_close(value, result + penalty)
    repr(loss)


@pytest.mark.parametrize("target", [LABELS, None], ids=["labels", "None"])
@every
def test_gradients_by_the_weights_are_those_of_finite_differences(x, name, target):
    model = nn.Sequential(nn.Linear(3, 2), nn.Softplus(), nn.Linear(2, 3)).double()
    names, weights = zip(*model.named_parameters(), strict=True)

    def of_weights(*weights):
        def call(inputs):
            return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))

        loss = LOSSES[name](seeded())
        if name == "contrastive divergence":
            # Its gradient takes the chains' ends for constants; these go nowhere.
            loss = ContrastiveDivergenceLoss(TINY, 1, 16, regularization=0.1, generator=seeded())
        return loss(call, x, target)

    assert torch.autograd.gradcheck(of_weights, weights)
    assert torch.autograd.gradgradcheck(of_weights, weights, fast_mode=True)


def test_gradient_by_the_normalizer(model, x):
    def of_normalizer(c):
        loss = NoiseContrastiveLoss(NOISE, 3, n_classes=3, generator=seeded()).double()
        return torch.func.functional_call(loss, {"log_normalizer": c}, (model, x, LABELS))

    c = torch.randn(3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(of_normalizer, c)
    assert torch.autograd.grad(of_normalizer(c), c)[0].all()


@every
def test_no_target_is_the_logsumexp(model, x, name):
    expected = LOSSES[name](seeded())(lambda x: model(x).logsumexp(1), x)
    torch.testing.assert_close(LOSSES[name](seeded())(model, x), expected)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x, y, factor):
        return self.head(torch.tanh(self.layer(torch.cat([x.flatten(1), y], dim=1)) * factor))


def made_of_the_point(inputs, n_samples, distribution, generator):
    """Noise that is a function of each element, and so the same in any batch or arrangement."""
    return tuple(torch.stack([1.5 * torch.sin(1e4 * (k + 1) * x) for k in range(n_samples)]) for x in inputs)


@pytest.fixture
def fixed_noise(monkeypatch):
    for module in (_trace, _denoising):
        monkeypatch.setattr(module, "standard_noise", made_of_the_point)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in STATEFUL])
def test_several_inputs_are_one(fixed_noise, name):
    model, factor = TwoInputs().double(), torch.rand(4, 1, dtype=DOUBLE) + 0.5
    x, y = torch.randn(4, 3, 1, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    both = torch.cat([x.flatten(1), y], dim=1)
    expected = LOSSES[name](None)(lambda z, factor: model(z[:, :3], z[:, 3:], factor), both, LABELS, factor)
    for args in (factor, (factor,)):
        result = LOSSES[name](None)(model, (x, y), LABELS, args)
        torch.testing.assert_close(result, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in STATEFUL])
def test_mean_of_the_examples(fixed_noise, model, x, name):
    loss = LOSSES[name](None)
    one_by_one = torch.stack([loss(model, x[i : i + 1], LABELS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(loss(model, x, LABELS), one_by_one.mean(), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("limit", [1, 4, 9, 100])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("gradient norm", "contrastive divergence")])
def test_batches_are_bounded_and_make_no_difference(model, x, name, limit):
    sizes = []

    def recorded(x):
        sizes.append(len(x))
        return model(x)

    expected, loss = LOSSES[name](seeded())(model, x, LABELS), LOSSES[name](seeded())
    loss.max_examples_per_batch = limit
    result = loss(recorded, x, LABELS)
    torch.testing.assert_close(result, expected, atol=1e-11, rtol=1e-11)
    assert max(sizes) <= max(4, limit)
    weights = [*model.parameters()]
    slopes = [torch.autograd.grad(v, weights, allow_unused=True, materialize_grads=True) for v in (result, expected)]
    torch.testing.assert_close(*slopes, atol=1e-10, rtol=1e-10)


def test_max_examples_is_an_argument(model, x):
    for loss in (
        ScoreMatchingLoss(max_examples_per_batch=1),
        AntiScoreMatchingLoss(max_examples_per_batch=1),
        SlicedScoreMatchingLoss(max_examples_per_batch=1),
        FiniteDifferenceScoreMatchingLoss(max_examples_per_batch=1),
        DenoisingScoreMatchingLoss(max_examples_per_batch=1),
        NoiseContrastiveLoss(NOISE, max_examples_per_batch=1),
    ):
        assert loss.max_examples_per_batch == 1


def test_threshold_leaves_alone_what_is_beyond():
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=DOUBLE)
    scale = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    loss = AntiScoreMatchingLoss(threshold=15.0, estimator="exact")
    value = loss(lambda x: scale * x**3, x)  # traces 6, 12, 18
    assert value.item() == pytest.approx(-(6 + 12 + 15) / 3)
    assert loss.trace.item() == pytest.approx(12)
    assert torch.autograd.grad(value, scale)[0].item() == pytest.approx(-(6 + 12) / 3)


# --- What score matching and its kin are for: the density of data -----------------------------------------------------


class Gaussian(nn.Module):
    """An unnormalised log-density whose precision and mean are to be result."""

    def __init__(self, d=2):
        super().__init__()
        self.root = nn.Parameter(torch.eye(d, dtype=DOUBLE))
        self.slope = nn.Parameter(torch.zeros(d, dtype=DOUBLE))

    @property
    def precision(self):
        return 0.5 * (self.root + self.root.T)

    def forward(self, x):
        return -0.5 * torch.einsum("ni,ij,nj->n", x, self.precision, x) + x @ self.slope


PRECISION = torch.tensor([[2.0, -0.6], [-0.6, 1.0]], dtype=DOUBLE)
MEAN = torch.tensor([1.0, -0.5], dtype=DOUBLE)


def samples(n):
    root = torch.linalg.cholesky(PRECISION.inverse())
    return MEAN + torch.randn(n, 2, dtype=DOUBLE, generator=seeded(1)) @ root.T


def minimum(make, x, **options):
    """The Gaussian at the loss's minimum, the noise being the same at each step."""
    model, generator = Gaussian(), seeded()
    loss = make(generator)
    optimizer = torch.optim.LBFGS(
        [*model.parameters(), *loss.parameters()], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure():
        generator.manual_seed(0)
        optimizer.zero_grad()
        value = loss(model, x, **options)
        value.backward()
        return value

    optimizer.step(closure)
    return model, loss


def test_score_matching_finds_the_inverse_covariance():
    """Hyvarinen's closed form: the minimum is at the inverse of the sample's own covariance, and its mean."""
    x = samples(500)
    model, _ = minimum(lambda g: ScoreMatchingLoss("exact", stability=0), x)
    expected = torch.cov(x.T, correction=0).inverse()
    torch.testing.assert_close(model.precision.detach(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        torch.linalg.solve(model.precision, model.slope).detach(), x.mean(0), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda g: ScoreMatchingLoss("antithetic", 3, 0.3, 0, generator=g),
        lambda g: ScoreMatchingLoss("hutchinson", 3, stability=0, generator=g),
        lambda g: SlicedScoreMatchingLoss(3, distribution="gaussian", generator=g),
    ],
    ids=["antithetic", "hutchinson", "sliced"],
)
def test_estimated_traces_have_their_own_closed_form(make):
    """With U the mean of the noise's u u', -tr(PU) + tr(PSP) / 2 has its minimum where SP + PS = 2U."""
    x = samples(500)
    model, _ = minimum(make, x)
    u = torch.randn((3, 500, 2), generator=seeded(), dtype=DOUBLE).flatten(0, 1)
    second, covariance = u.T @ u / len(u), torch.cov(x.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    rotated = vectors.T @ second @ vectors
    expected = vectors @ (2 * rotated / (values[:, None] + values)) @ vectors.T
    torch.testing.assert_close(model.precision.detach(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(expected, PRECISION, atol=0.3, rtol=0)


def test_finite_differences_are_sliced_score_matching_on_quadratics():
    """(f(x + v) - f(x - v))^2 / 8 std^2 is (u'grad f)^2 / 2, and the second difference v'Hv, with no remainder."""
    model, x = Gaussian(), samples(500)
    for std in (0.1, 3.0):
        differences = FiniteDifferenceScoreMatchingLoss(2, std, 0, generator=seeded())
        sliced = SlicedScoreMatchingLoss(2, False, distribution="gaussian", generator=seeded())
        torch.testing.assert_close(differences(model, x), sliced(model, x))
        torch.testing.assert_close(differences.trace, sliced.trace)
        torch.testing.assert_close(differences.gradient_norm, sliced.gradient_norm)
    result = [
        minimum(make, x)[0].precision.detach()
        for make in (
            lambda g: FiniteDifferenceScoreMatchingLoss(10, 0.1, 0, generator=g),
            lambda g: SlicedScoreMatchingLoss(10, False, distribution="gaussian", generator=g),
        )
    ]
    torch.testing.assert_close(*result, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result[0], PRECISION, atol=0.3, rtol=0)


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_denoising_finds_the_smoothed_density(std):
    x = samples(5000)
    model, _ = minimum(lambda g: DenoisingScoreMatchingLoss(std, 10, generator=g), x)
    smoothed = (PRECISION.inverse() + std**2 * torch.eye(2, dtype=DOUBLE)).inverse()
    torch.testing.assert_close(model.precision.detach(), smoothed, atol=0.06, rtol=0)
    assert (PRECISION - smoothed).abs().max() > 0.2  # not by chance the data's own


def log_normalizer(precision, slope):
    d = len(slope)
    return 0.5 * (d * math.log(2 * math.pi) - precision.logdet() + slope @ torch.linalg.solve(precision, slope))


def test_noise_contrast_finds_the_density_and_its_normalizer():
    wide = Independent(Normal(torch.zeros(2, dtype=DOUBLE), 2 * torch.ones(2, dtype=DOUBLE)), 1)
    x = samples(5000)
    model, loss = minimum(lambda g: NoiseContrastiveLoss(wide, 5, generator=g).double(), x)
    torch.testing.assert_close(model.precision.detach(), PRECISION, atol=0.15, rtol=0)
    expected = log_normalizer(model.precision, model.slope).item()
    assert loss.log_normalizer.item() == pytest.approx(expected, abs=0.05)
    assert 0.6 < loss.accuracy < 1


def test_each_class_has_a_normalizer():
    """Two classes' unnormalised densities, which are given; their normalisers are learned."""
    scales, constants = torch.tensor([1.0, 0.5], dtype=DOUBLE), torch.tensor([3.0, -2.0], dtype=DOUBLE)

    def logits(x):
        return -0.5 * (x / scales) ** 2 + constants

    labels = torch.arange(8000) % 2
    x = torch.randn(8000, 1, dtype=DOUBLE, generator=seeded(1)) * scales[labels, None]
    noise = Independent(Normal(torch.zeros(1, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)), 1)
    generator = seeded()
    loss = NoiseContrastiveLoss(noise, 4, n_classes=2, generator=generator).double()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure():
        generator.manual_seed(0)
        optimizer.zero_grad()
        value = loss(logits, x, labels)
        value.backward()
        return value

    optimizer.step(closure)
    expected = (math.sqrt(2 * math.pi) * scales).log() + constants
    torch.testing.assert_close(loss.log_normalizer.detach(), expected, atol=0.06, rtol=0)


def test_contrastive_divergence_finds_the_density():
    x, model = samples(2000), Gaussian()
    loss = ContrastiveDivergenceLoss(0.2, 3, 2000, restart=0.0, generator=seeded())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    precisions = []
    for _ in range(120):
        optimizer.zero_grad()
        loss(model, x).backward()
        optimizer.step()
        precisions.append(model.precision.detach().clone())
    # Without a Metropolis step the chains are a little wide: their precision is P - step P^2 / 4.
    precision = torch.stack(precisions[80:]).mean(0)
    torch.testing.assert_close(precision - 0.05 * precision @ precision, torch.cov(x.T).inverse(), atol=0.2, rtol=0)


# --- Chains -----------------------------------------------------------------------------------------------------------


def test_gradient_is_that_of_the_mean_log_densities(model, x):
    """Of the data's less that of the chains' ends, which are what the buffer holds."""
    loss = ContrastiveDivergenceLoss(0.1, 3, 16, generator=seeded())
    weights = [*model.parameters()]
    result = torch.autograd.grad(loss(model, x), weights)
    ends = loss.chains[:4]
    expected = marginal_log_density(model, ends).mean() - marginal_log_density(model, x).mean()
    torch.testing.assert_close(result, torch.autograd.grad(expected, weights))


def test_chains_take_langevin_steps(model, x):
    """x + step / 2 * score / temperature + noise, written out, from where they start."""
    loss = ContrastiveDivergenceLoss(0.1, 2, 4, temperature=0.5, generator=seeded())
    loss(model, x, LABELS)
    generator = seeded()
    z = x.mean() + torch.randn(x.shape, generator=generator, dtype=DOUBLE) * x.std(correction=0)
    for _ in range(2):
        z = z.detach().requires_grad_()
        (score,) = torch.autograd.grad(model(z).gather(1, LABELS[:, None]).sum(), z)
        z = z + 0.1 / 2 * score / 0.5 + math.sqrt(0.1) * torch.randn((1, 4, 3), generator=generator, dtype=DOUBLE)[0]
    torch.testing.assert_close(loss.chains, z.detach())
    assert torch.equal(loss.chain_targets, LABELS)


def test_buffer_fills_and_goes_on(model, x):
    loss = ContrastiveDivergenceLoss(0.01, 1, 10, restart=0.0, generator=seeded())
    sizes = []
    for _ in range(5):
        chains = loss.chains.clone()
        loss(model, x, LABELS)
        sizes.append(len(loss.chains))
        if 0 < len(chains) < 8:  # what is there already stays while there is room
            assert torch.equal(loss.chains[: len(chains)], chains)
    assert sizes == [4, 8, 10, 10, 10]
    assert len(loss.chain_targets) == 10
    assert loss.chains.dtype == DOUBLE
    # Once full, chains go on from where they stood.
    loss, start = ContrastiveDivergenceLoss(TINY, 1, 4, restart=0.0, generator=seeded()), None
    for _ in range(3):
        loss(model, x)
        start = loss.chains.clone() if start is None else start
        assert torch.equal(loss.chains, start)


def test_chains_are_part_of_the_state(model, x):
    loss = ContrastiveDivergenceLoss(0.01, 2, 6, generator=seeded())
    for _ in range(3):
        loss(model, x, LABELS)
    whole = nn.ModuleDict({"contrast": ContrastiveDivergenceLoss(0.01, 2, 6, generator=seeded(7))})
    assert len(whole["contrast"].chains) == 0
    whole.load_state_dict(nn.ModuleDict({"contrast": loss}).state_dict())
    other = whole["contrast"]
    assert torch.equal(other.chains, loss.chains)
    assert torch.equal(other.chain_targets, loss.chain_targets)
    assert other.chains is not loss.chains
    loss.generator.manual_seed(7)
    assert torch.equal(other(model, x, LABELS), loss(model, x, LABELS))
    # Into one that has chains already, too, and an empty state into one that has some.
    loss.load_state_dict(ContrastiveDivergenceLoss(0.01).state_dict())
    assert len(loss.chains) == 0
    loss(model, x)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.chains, loss.chains)
    assert not list(loss.parameters())
    copied = copy.deepcopy(other)
    assert torch.equal(copied.chains, other.chains)
    assert [b.device.type for b in copied.to("meta").buffers()] == ["meta", "meta"]


def test_restart_of_one_keeps_no_chain(model, x):
    loss = ContrastiveDivergenceLoss(TINY, 1, 4, restart=1.0, bounds=(0.0, 1.0), generator=seeded())
    loss(model, x)
    loss.chains.fill_(1e6)
    loss(model, x)
    assert loss.negative.abs() < 1e3
    assert (loss.chains <= 1).any()


def test_chains_keep_their_classes():
    x = torch.randn(4, 3, dtype=DOUBLE)
    log_densities = torch.tensor([0.0, 10.0, 20.0], dtype=DOUBLE)

    def model(x):
        return log_densities + 0 * x.sum(1, keepdim=True)

    loss = ContrastiveDivergenceLoss(TINY, 1, 4, restart=0.0, generator=seeded())
    loss(model, x, 2)
    assert loss.chain_targets.tolist() == [2, 2, 2, 2]
    assert (loss.positive, loss.negative) == (20, 20)
    # Full of the third class; the batch is of the first.
    for target in (0, [0, 0, 0, 0], torch.tensor([0, 0, 0, 0])):
        loss(model, x, target)
        assert (loss.positive, loss.negative) == (0, 20)
    loss.restart = 1.0
    loss(model, x, LABELS)
    assert (loss.positive, loss.negative) == (10, 10)
    slots = loss.chain_targets
    assert set(slots.tolist()) <= {0, 1, 2}


def test_bounds_hold_the_chains(model):
    x = torch.rand(64, 3, dtype=DOUBLE)
    loss = ContrastiveDivergenceLoss(1.0, 3, 64, bounds=(-0.5, 0.25), generator=seeded())
    loss(model, x)
    assert loss.chains.min() == -0.5
    assert loss.chains.max() == 0.25
    # They start all over the box.
    loss = ContrastiveDivergenceLoss(TINY, 1, 1000, bounds=(-2.0, 4.0), generator=seeded())
    loss(model, torch.rand(1000, 3, dtype=DOUBLE))
    assert loss.chains.min() >= -2
    assert loss.chains.max() <= 4
    assert loss.chains.mean().item() == pytest.approx(1, abs=5 * math.sqrt(3 / 3000))
    assert loss.chains.var().item() == pytest.approx(3, rel=0.1)


def test_without_bounds_chains_start_from_the_batchs_moments(model):
    x = 5 + 3 * torch.randn(2000, 3, dtype=DOUBLE, generator=seeded(1))
    loss = ContrastiveDivergenceLoss(TINY, 1, 2000, generator=seeded())
    loss(model, x)
    assert loss.chains.mean().item() == pytest.approx(5, abs=0.2)
    assert loss.chains.std().item() == pytest.approx(3, rel=0.05)


def test_what_chains_cannot_do_is_refused(model, x):
    loss = ContrastiveDivergenceLoss(0.01, 1)
    loss(model, x)
    with pytest.raises(ValueError, match=r"examples have shape \(4,\), the chains kept \(3,\); use a loss for each"):
        loss(nn.Linear(4, 3).double(), torch.ones(2, 4, dtype=DOUBLE))
    with pytest.raises(ValueError, match="one input, but there are 2; concatenate them"):
        loss(model, (x, x))
    with pytest.raises(ValueError, match=r"one for each of 4 examples, as integers, but is tensor\(\[2, 0, 1\]\)"):
        loss(model, x, LABELS[:3])
    with pytest.raises(ValueError, match=r"one for each of 2 examples, as integers, but is \(0, 1\)"):
        loss(lambda x: (x**2)[:, None, :], x[:2], (0, 1))  # which is an index, and not two classes
    with pytest.raises(ValueError, match="one for each of 4 examples, as integers, but is -1"):
        loss(model, x, -1)  # of which chains of p(x) are kept
    with pytest.raises(ValueError, match="left the finite numbers"):
        ContrastiveDivergenceLoss(1.0, 50)(lambda x: (x**4).sum(1), x)


# --- What holds for all -----------------------------------------------------------------------------------------------


def everything(model):
    """Which tensors a model holds, what is in them, and in which mode it is."""
    return (
        [(id(b), b.tolist()) for b in model.buffers()],
        [module.training for module in model.modules()],
        [(p.grad, p.requires_grad) for p in model.parameters()],
    )


def normed():
    """In training mode, with statistics that have moved from the initial ones."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Softplus(), nn.Linear(4, 3)).double()
    for _ in range(3):
        model(torch.randn(8, 3, dtype=DOUBLE) + 1)
    return model


@every
def test_batch_norm_in_training_mode_is_that_of_evaluation(x, name):
    """Even where a training step of the classifier comes between the forward and the backward pass."""
    model = normed()
    reference, before = copy.deepcopy(model).eval(), everything(model)
    expected = LOSSES[name](seeded())(reference, x, LABELS)
    expected.backward()
    result = LOSSES[name](seeded())(model, x, LABELS)
    assert everything(model) == before
    torch.testing.assert_close(result, expected)
    model(100 * torch.randn(8, 3, dtype=DOUBLE))
    result.backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@every
def test_batch_norm_without_statistics_is_refused(x, name):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)).double()
    for mode in (True, False):
        with pytest.raises(ValueError, match="batch norm '1' keeps no running statistics"):
            LOSSES[name](seeded())(model.train(mode), x, LABELS)


class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("of the model's own")


@every
def test_all_is_restored_after_an_exception(x, name):
    model, state = nn.Sequential(*normed(), Raises()), torch.get_rng_state()
    before, loss = everything(model), LOSSES[name](seeded())
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(KeyError):
            loss(model, x, LABELS)
        assert torch.is_autocast_enabled("cpu")
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert x.requires_grad
    assert x.grad is None
    assert all(getattr(loss, part) is None for part in PARTS[name])


@every
def test_inputs_weights_and_random_numbers_are_left_alone(model, x, name):
    x.requires_grad_()
    kept, state, loss = x.detach().clone(), torch.get_rng_state(), LOSSES[name](seeded())
    value = loss(model, x, LABELS)
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    assert any(p.grad is not None for p in model.parameters())
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("exact", "anti, exact", "gradient norm")])
def test_generator(model, x, name):
    expected = LOSSES[name](seeded(3))(model, x, LABELS)
    assert torch.equal(LOSSES[name](seeded(3))(model, x, LABELS), expected)
    assert not torch.equal(LOSSES[name](seeded(4))(model, x, LABELS), expected)
    loss = LOSSES[name](seeded(3))
    loss(model, x, LABELS)
    assert not torch.equal(loss(model, x, LABELS), expected)
    state = torch.get_rng_state()
    result = LOSSES[name](None)(model, x, LABELS)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(LOSSES[name](None)(model, x, LABELS), result)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every
def test_only_the_value_where_gradients_are_off(model, x, name, mode):
    expected = LOSSES[name](seeded())(model, x, LABELS)
    assert expected.requires_grad
    with mode():
        loss = LOSSES[name](seeded())
        result = loss(model, x.clone(), LABELS)
        assert not torch.is_grad_enabled()
    assert not result.requires_grad
    # Where there is no graph second derivatives come by forward mode, and round differently.
    torch.testing.assert_close(result, expected.detach(), atol=1e-12, rtol=1e-12)


@every
def test_autocast_is_off(model, x, name):
    model, x = model.float(), x.float()
    expected = LOSSES[name](seeded()).float()(model, x, LABELS)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = LOSSES[name](seeded()).float()(model, x, LABELS)
    assert torch.equal(result, expected)
    slopes = [torch.autograd.grad(v, model[0].weight) for v in (result, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_half_precision_gives_a_single_precision_loss(model, x, name, dtype):
    loss = LOSSES[name](seeded()).float()
    value = loss(model.to(dtype), x.to(dtype), LABELS)
    assert value.dtype == torch.float32
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every
def test_dropout(x, name):
    model = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Dropout(), nn.Linear(8, 3)).double()
    state = torch.get_rng_state()
    if name in COMPARED:
        with pytest.raises(ValueError, match=r"draws random numbers .*model\.eval\(\)"):
            LOSSES[name](seeded())(model, x, LABELS)
        assert torch.equal(torch.get_rng_state(), state)
    else:
        LOSSES[name](seeded())(model, x, LABELS).backward()
    assert model.training
    model.zero_grad()
    LOSSES[name](seeded())(model.eval(), x, LABELS).backward()


X = torch.ones(4, 3, dtype=DOUBLE)


@every
def test_bad_calls_are_refused(model, name):
    for argument, inputs, error, message in (
        ("net", X, TypeError, "must be a torch.nn.Module or a function, but is str"),
        (model, [X], TypeError, "inputs must be a tensor or a non-empty tuple of tensors, but is list"),
        (model, X.long(), TypeError, r"input 0 has dtype torch\.int64"),
        (model, X[:0], ValueError, "at least one example"),
        (model, X * torch.nan, ValueError, "NaN or infinity"),
        (model, X.to("meta"), ValueError, "input 0 is on meta, the model on cpu"),
        (lambda x: (x, x), X, TypeError, "the model returned tuple, not a tensor"),
        (lambda x: x.sum(0), X, ValueError, "examples must come first"),
        (lambda x: x.sum(), X, ValueError, "examples must come first"),
    ):
        with pytest.raises(error, match=message):
            LOSSES[name](seeded())(argument, inputs, 0)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        LOSSES[name](seeded())(model, X, 3)


@every
def test_targets_that_do_not_fit(model, name):
    error = (AssertionError, ValueError) if name == "contrastive divergence" else AssertionError
    for target in (LABELS[:3], [0, 1], (0, 1)):
        with pytest.raises(error):
            LOSSES[name](seeded())(model, X, target)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "noise contrast"])
def test_no_path_from_the_input_is_refused(name):
    weight = torch.ones(3, 3, dtype=DOUBLE, requires_grad=True)
    for model in (lambda x: weight.expand(len(x), 3, 3)[:, 0], lambda x: nn.functional.linear(x.detach(), weight)):
        if name in ("anti", "anti, taylor", "finite differences") and not torch.equal(model(X), model(2 * X)):
            continue  # values do change, and are all that is looked at
        with pytest.raises(ValueError, match="no gradient by its inputs"):
            LOSSES[name](seeded())(model, X, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: ScoreMatchingLoss(**o),
        lambda **o: AntiScoreMatchingLoss(**o),
        lambda **o: FiniteDifferenceScoreMatchingLoss(**o),
        lambda **o: DenoisingScoreMatchingLoss(**o),
    ],
    ids=["score matching", "anti", "finite differences", "denoising"],
)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"noise_std": 0}, ValueError, "noise_std must be positive and finite, but is 0"),
        ({"noise_std": -1.0}, ValueError, "noise_std must be positive"),
        ({"noise_std": math.nan}, ValueError, "noise_std must be positive"),
        ({"noise_std": math.inf}, ValueError, "noise_std must be positive"),
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1, but is 0"),
        ({"n_samples": 1.0}, TypeError, "n_samples must be an integer"),
    ],
)
def test_bad_noise_is_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ScoreMatchingLoss("trace"), ValueError, "estimator must be one of"),
        (lambda: ScoreMatchingLoss("exact", 2), ValueError, "no use for n_samples: leave it out"),
        (lambda: ScoreMatchingLoss("hutchinson", noise_std=0.2), ValueError, "leave it out"),
        (lambda: AntiScoreMatchingLoss(estimator="exact", generator=seeded()), ValueError, "no use for generator"),
        (lambda: ScoreMatchingLoss(stability=-1e-4), ValueError, "stability must be at least 0 and finite"),
        (lambda: ScoreMatchingLoss(stability=math.nan), ValueError, "stability must be at least 0"),
        (lambda: FiniteDifferenceScoreMatchingLoss(stability=math.inf), ValueError, "stability must be at least 0"),
        (lambda: FiniteDifferenceScoreMatchingLoss(distribution="x"), ValueError, "'gaussian' or 'rademacher'"),
        (lambda: AntiScoreMatchingLoss(threshold=math.inf), ValueError, "threshold must be finite, but is inf"),
        (lambda: AntiScoreMatchingLoss(threshold=math.nan), ValueError, "threshold must be finite"),
        (lambda: SlicedScoreMatchingLoss(0), ValueError, "n_samples must be at least 1"),
        (lambda: SlicedScoreMatchingLoss(1.5), TypeError, "n_samples must be an integer"),
        (lambda: SlicedScoreMatchingLoss(distribution="sphere"), ValueError, "'gaussian' or 'rademacher'"),
        (lambda: NoiseContrastiveLoss(torch.randn(3)), TypeError, "torch.distributions.Distribution, but is Tensor"),
        (lambda: NoiseContrastiveLoss(NOISE, 0), ValueError, "ratio must be an integer of at least 1, but is 0"),
        (lambda: NoiseContrastiveLoss(NOISE, 1, 0), ValueError, "n_classes must be at least 1, but is 0"),
        (lambda: ContrastiveDivergenceLoss(0), ValueError, "step_size must be positive and finite, but is 0"),
        (lambda: ContrastiveDivergenceLoss(math.nan), ValueError, "step_size must be positive"),
        (lambda: ContrastiveDivergenceLoss(0.1, 0), ValueError, "n_steps must be an integer of at least 1, but is 0"),
        (
            lambda: ContrastiveDivergenceLoss(0.1, buffer_size=0),
            ValueError,
            "buffer_size must be an integer of at least 1",
        ),
        (lambda: ContrastiveDivergenceLoss(0.1, restart=1.5), ValueError, r"restart must be in \[0, 1\], but is 1\.5"),
        (lambda: ContrastiveDivergenceLoss(0.1, restart=math.nan), ValueError, "restart must be in"),
        (lambda: ContrastiveDivergenceLoss(0.1, temperature=0), ValueError, "temperature must be positive"),
        (lambda: ContrastiveDivergenceLoss(0.1, bounds=(1.0, 0.0)), ValueError, "low < high"),
        (lambda: ContrastiveDivergenceLoss(0.1, bounds=(1.0,)), ValueError, "low < high"),
        (lambda: ContrastiveDivergenceLoss(0.1, regularization=-1), ValueError, "regularization must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("noise", "n_classes", "inputs", "target", "message"),
    [
        (NOISE, None, (X, X), 0, "one input, but there are 2"),
        (NOISE, None, X[:, :2], 0, r"noise has examples of shape \(3,\), the inputs \(2,\)"),
        (NOISE.base_dist, None, X, 0, r"one number for each of 8 examples, but returned \(8, 3\); wrap it"),
        (NOISE, 3, X, None, "a class, or one for each of 4 examples, as integers, but is None"),
        (NOISE, 3, X, (0, 1), r"one for each of 4 examples, as integers, but is \(0, 1\)"),
        (NOISE, 3, X, LABELS[:3], "one for each of 4 examples"),
        (NOISE, 2, X, LABELS, "target holds class 2, but n_classes is 2"),
        (NOISE, 3, X, -1, "one for each of 4 examples, as integers, but is -1"),
    ],
)
def test_what_noise_cannot_do_is_refused(noise, n_classes, inputs, target, message):
    with pytest.raises(ValueError, match=message):
        NoiseContrastiveLoss(noise, 1, n_classes)(lambda *x: x[0] ** 2, inputs, target)


def test_uniform_noise(model):
    """Of log-density 0 throughout the box; at a classifier of zeros and c = 0 all is told apart by a coin."""
    x = torch.rand(4, 3, dtype=DOUBLE)
    noise = Independent(Uniform(torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)), 1)
    result = NoiseContrastiveLoss(noise, 1)(lambda x: 0 * x.sum(1), x)
    assert result.item() == pytest.approx(2 * math.log(2))


def test_sliced_losses_warn_of_relu(x):
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    for loss in (SlicedScoreMatchingLoss(), ScoreMatchingLoss("exact"), AntiScoreMatchingLoss(estimator="hutchinson")):
        with pytest.warns(UserWarning, match="every second derivative is exactly zero"):
            value = loss(model, x, LABELS)
        assert loss.trace == 0
        value.backward()  # which trains what there is to train
    for name in ("antithetic", "finite differences", "denoising", "gradient norm"):
        LOSSES[name](seeded())(model, x, LABELS).backward()


# --- Numbers of the papers' public reference implementation ----------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "data" / "srinivas_fleuret_reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def reference_network(reference, kind):
    def activation():
        return nn.ReLU() if kind == "relu" else nn.Softplus(5)

    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), activation(), nn.AvgPool2d(2),
        nn.Conv2d(16, 16, 3), activation(), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip
    weights = {name.removeprefix("weights."): w for name, w in reference.items() if name.startswith("weights.")}
    network.load_state_dict(weights)
    return network.eval()


@pytest.mark.parametrize("std", [0.1, 0.01])
@pytest.mark.parametrize("kind", ["relu", "softplus5"])
@pytest.mark.parametrize("training", [True, False])
def test_numbers_of_the_reference(monkeypatch, reference, kind, std, training):
    """With its noise. Rounding of float32 logits of about 0.3, some 2e-7 over std^2, is 2e-3 at std 0.01."""
    noise = reference["standard_normal_noise"]
    monkeypatch.setattr(torch, "randn", lambda shape, **_: noise[: shape[0]])
    model, x, target = reference_network(reference, kind).train(training), reference["inputs"], reference["target"]
    expected = reference[f"score_matching.{kind}.std{std}"]
    assert reference["logits"].abs().max() < 0.5
    tolerance = {"abs": 3e-7 / std**2}
    trace = hessian_trace(model, x, target, "taylor", 4, std).mean()
    assert trace.item() == pytest.approx(expected[1].item(), **tolerance)
    loss = ScoreMatchingLoss("taylor", 4, std, stability=1e-3)
    assert loss(model, x, target).item() == pytest.approx(expected[0].item(), **tolerance)
    assert loss.trace.item() == pytest.approx(expected[1].item(), **tolerance)
    assert loss.gradient_norm.item() ** 2 == pytest.approx(expected[2].item(), rel=1e-4)
    anti = AntiScoreMatchingLoss(1e4, "taylor", 4, std)(model, x, target)
    assert anti.item() == pytest.approx(reference[f"anti_score_matching.{kind}.std{std}"].item(), **tolerance)
    result = GradientNormLoss()(model, x, target)
    assert result.item() == pytest.approx(reference[f"gradient_norm.{kind}"].item(), rel=1e-4)


@pytest.mark.cuda
@every
def test_cuda(model, x, name):
    if name in STATEFUL:
        pytest.skip("draws other numbers there")
    expected = LOSSES[name](seeded())(model, x, LABELS)
    result = LOSSES[name](seeded())(model.cuda(), x.cuda(), LABELS.cuda())
    torch.testing.assert_close(result.cpu(), expected, atol=1e-8, rtol=1e-8)
    result.backward()


class Attending(nn.Module):
    """Attention among three tokens, which CUDA computes by fused kernels in this precision."""

    def __init__(self):
        super().__init__()
        self.project, self.head = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).flatten(1))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["hutchinson", "exact", "gradient norm"])
def test_cuda_attention_has_the_derivatives_of_a_loss(name):
    """Its fused kernels have one."""
    torch.manual_seed(0)
    model, x = Attending(), torch.randn(4, 3, 4)
    gradients = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        LOSSES[name](seeded())(model, x.to(device), LABELS.to(device)).backward()
        gradients.append([p.grad.cpu().clone() for p in model.project.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
def test_noise_of_a_generator_leaves_the_devices_numbers_alone(model, x):
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    LOSSES["noise contrast"](seeded())(model, x, LABELS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])


def test_each_chain_has_a_slot_of_its_own(model, x):
    """One old slot is never drawn twice, and a call that fails leaves the buffer as it was."""
    loss = ContrastiveDivergenceLoss(1e-12, 1, 4, restart=0.0, generator=seeded())
    loss(model, x)
    before = loss.chains.clone()
    for _ in range(5):
        loss(model, x)  # all four go on, whatever their order
        torch.testing.assert_close(loss.chains, before, atol=1e-4, rtol=0)
        slots, _, _ = loss._start(x, None)
        assert slots.sort().values.tolist() == [0, 1, 2, 3]
    chains = loss.chains.clone()
    with pytest.raises(ValueError, match="no gradient by its inputs"):
        loss(lambda x: torch.ones(len(x), requires_grad=True), x)
    assert torch.equal(loss.chains, chains)


def test_chains_of_p_x_do_not_go_on_as_those_of_classes(model, x):
    loss = ContrastiveDivergenceLoss(TINY, 1, 4, restart=0.0, generator=seeded())
    loss(model, x)
    unconditional = loss.chains.clone()
    assert (loss.chain_targets == -1).all()
    loss(model, x, LABELS)  # all start anew
    assert torch.equal(loss.chain_targets.sort().values, LABELS.sort().values)
    assert not any(torch.equal(a, b) for a in loss.chains for b in unconditional)
    conditional = loss.chains.clone()
    loss(model, x, LABELS)  # and go on
    torch.testing.assert_close(loss.chains, conditional)


def test_chains_keep_no_arguments_of_an_example(model, x):
    loss = ContrastiveDivergenceLoss(0.1, 1, 4)
    loss(lambda x, scale: model(x) * scale, x, None, 2.0)
    with pytest.raises(ValueError, match="one entry for each example"):
        loss(lambda x, scale: model(x) * scale[:, None], x, None, torch.ones(4, dtype=DOUBLE))


def test_chains_need_finite_bounds_to_start_between():
    with pytest.raises(ValueError, match="must be finite"):
        ContrastiveDivergenceLoss(0.1, bounds=(0.0, math.inf))


def test_settings_are_shown():
    assert "noise_std=0.2" in repr(ScoreMatchingLoss(noise_std=0.2))
    assert "noise_std" not in repr(ScoreMatchingLoss("hutchinson"))
    assert repr(ScoreMatchingLoss("exact")) == "ScoreMatchingLoss(estimator='exact', stability=0.0001)"
    assert "regularization=0.5" in repr(ContrastiveDivergenceLoss(0.1, regularization=0.5))
