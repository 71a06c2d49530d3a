"""Kernel Stein discrepancy: against autograd, its laws, and samples told apart from those of other densities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.density import class_score, marginal_score
from captum_density.metrics import _kernel_stein, kernel_stein_discrepancy

KERNELS = {
    "imq": lambda x, y, h: (1 + (x - y).pow(2).sum() / h**2) ** -0.5,
    "gaussian": lambda x, y, h: (-(x - y).pow(2).sum() / (2 * h**2)).exp(),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(score, samples, kernel, h):
    """u(x_i, x_j) for all pairs, each term of the definition by autograd through the kernel."""
    x = samples.reshape(len(samples), -1)
    s = score(samples).reshape(len(samples), -1)
    u = torch.zeros(len(x), len(x), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(x)):
            a, b = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
            k = KERNELS[kernel](a, b, h)
            by_a, by_b = torch.autograd.grad(k, (a, b), create_graph=True)
            mixed = sum(torch.autograd.grad(by_a[m], b, retain_graph=True)[0][m] for m in range(len(a)))
            u[i, j] = (s[i] @ s[j] * k + s[i] @ by_b + s[j] @ by_a + mixed).detach()
    return u


def median_distance(samples):
    distances = torch.pdist(samples.flatten(1).double()).sort().values
    return distances[(len(distances) - 1) // 2].item()


@settings(max_examples=30)
@given(
    st.integers(0, 10**6),
    st.sampled_from([*KERNELS]),
    st.sampled_from([None, 0.3, 1.0, 5.0]),
    st.booleans(),
    st.sampled_from([1, 2, 5, 7, 13, 2**22]),
)
def test_values_are_those_of_autograd(seed, kernel, bandwidth, unbiased, batch):
    torch.manual_seed(seed)
    n, d = int(torch.randint(2, 6, ())), int(torch.randint(1, 4, ()))
    samples, weight, offset = normal(n, d, 1, seed=seed), normal(d, d, seed=seed + 1), 10 * normal(d, 1, seed=seed + 2)
    score = lambda x: weight @ torch.sin(x) + offset  # of no density, which the definition does not ask  # noqa: E731
    discrepancy = kernel_stein_discrepancy(
        score, samples, kernel=kernel, bandwidth=bandwidth, unbiased=unbiased, max_pairs_per_batch=batch
    )
    u = pairs(score, samples, kernel, median_distance(samples) if bandwidth is None else bandwidth)
    expected = (u.sum() - u.trace()) / (n * (n - 1)) if unbiased else u.mean()
    assert discrepancy.shape == () and discrepancy.dtype == torch.float64 and not discrepancy.requires_grad
    # The squared score, of hundreds, is what rounds.
    assert_close(discrepancy, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
def test_parts_of_any_size_give_the_same(kernel, unbiased):
    x = normal(37, 3)
    score = lambda x: -x + 0.3  # noqa: E731
    options = {"kernel": kernel, "unbiased": unbiased}
    whole = kernel_stein_discrepancy(score, x, **options)
    for batch in (1, 36, 37, 38, 100, 37 * 36, 37 * 37):
        assert_close(kernel_stein_discrepancy(score, x, max_pairs_per_batch=batch, **options), whole)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([*KERNELS]), st.booleans(), st.floats(-2, 2))
def test_laws(seed, kernel, unbiased, exponent):
    x, options = normal(8, 3, seed=seed), {"kernel": kernel, "unbiased": unbiased}
    s = normal(8, 3, seed=seed + 1)
    of = lambda scores, samples, **more: kernel_stein_discrepancy(lambda _: scores, samples, **options, **more)  # noqa: E731
    value = of(s, x)
    scale = 10.0**exponent
    # Units: scores are in 1 / those of the samples, and so is the root of the discrepancy.
    assert_close(of(s / scale, x * scale) * scale**2, value, rtol=1e-8, atol=1e-8)
    assert_close(
        of(s / scale, x * scale, bandwidth=2.5 * scale) * scale**2, of(s, x, bandwidth=2.5), rtol=1e-8, atol=1e-8
    )
    rotation = torch.linalg.qr(normal(3, 3, seed=seed + 2)).Q
    assert_close(of(s @ rotation, x @ rotation + 5.0), value, rtol=1e-8, atol=1e-8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert_close(of(s[order], x[order]), value, rtol=1e-8, atol=1e-8)
    assert_close(of(s.reshape(8, 1, 3), x.reshape(8, 1, 3)), value)
    if not unbiased:
        assert value >= -1e-10


def test_two_samples_by_hand():
    # x = 0 and 2, score -x, h = 1, imq: k = 5^(-1/2), and s(0) = 0 leaves grad terms and the mixed derivative.
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    k, first, second = 5**-0.5, -0.5 * 5**-1.5, 0.75 * 5**-2.5
    along = -2 * 2 * first * (0 - -2) * (0 - 2) / 2  # -2 phi' <s - t, x - y>
    expected = 0 * k + along - 4 * second * 4 - 2 * first
    assert_close(kernel_stein_discrepancy(lambda x: -x, x, bandwidth=1.0).item(), expected)
    # A sample with itself: |s|^2 + d / h^2.
    v = kernel_stein_discrepancy(lambda x: -x, x, bandwidth=1.0, unbiased=False)
    assert_close(v.item(), (2 * expected + (0 + 1) + (4 + 1)) / 4)


def spread(score, x, kernel):
    """The standard deviation of the U-statistic where its mean is 0, sqrt(2 E u^2) / n: from a few samples, twice."""
    some = x[:10]
    u = pairs(score, some, kernel, median_distance(x[:200]))
    u.fill_diagonal_(0)
    return math.sqrt(2 * float(u.pow(2).sum()) / (10 * 9)) / len(x)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 3])
def test_right_scores_are_told_from_wrong_ones(kernel, d):
    precision = torch.diag(torch.linspace(0.5, 2.0, d, dtype=torch.float64))
    x = 1.5 + normal(700, d) @ precision.inverse().sqrt()
    scores = {
        "right": lambda x: -(x - 1.5) @ precision,
        "shifted": lambda x: -(x - 1.0) @ precision,
        "narrow": lambda x: -2 * (x - 1.5) @ precision,
        "wide": lambda x: -0.5 * (x - 1.5) @ precision,
        "flat": torch.zeros_like,
    }
    discrepancy = {name: kernel_stein_discrepancy(score, x, kernel=kernel).item() for name, score in scores.items()}
    error = spread(scores["right"], x, kernel)
    assert abs(discrepancy.pop("right")) < 4 * error
    assert all(value > 8 * error for value in discrepancy.values()), (discrepancy, error)


def test_the_unbiased_one_is_and_the_other_is_not():
    values = [
        [
            kernel_stein_discrepancy(lambda x: -x, normal(30, 2, seed=seed), bandwidth=1.0, unbiased=u)
            for u in (True, False)
        ]
        for seed in range(300)
    ]
    unbiased, biased = torch.tensor(values).T
    error = float(unbiased.std()) / 300**0.5
    assert abs(float(unbiased.mean())) < 4 * error and float((unbiased < 0).double().mean()) > 0.3
    # The mean of a sample with itself, |x|^2 + d, is 4; the V-statistic holds 1 / 30 of it.
    assert abs(float(biased.mean()) - 4 / 30) < 4 * error and float(biased.min()) > 0


class Mixture(nn.Module):
    """Logits that are the classes' normal log-densities, of means -2 and 2."""

    def forward(self, x):
        return -0.5 * torch.stack([(x + 2).pow(2).sum(1), (x - 2).pow(2).sum(1)], 1)


def test_a_models_scores():
    model = Mixture()
    x = normal(800, 2) + 2
    of_class = {
        y: kernel_stein_discrepancy(lambda x, y=y: class_score(model, x, y), x, bandwidth=1.0).item() for y in (0, 1)
    }
    assert abs(of_class[1]) < 0.02 and of_class[0] > 5
    assert_close(of_class[0], kernel_stein_discrepancy(lambda x: -(x + 2), x, bandwidth=1.0).item())
    both = torch.cat([x[:400], -x[400:]])
    target = torch.arange(800) // 400
    each = kernel_stein_discrepancy(lambda x: class_score(model, x, 1 - target), both, bandwidth=1.0)
    marginal = kernel_stein_discrepancy(lambda x: marginal_score(model, x), both, bandwidth=1.0)
    one = kernel_stein_discrepancy(lambda x: class_score(model, x, 1), both, bandwidth=1.0)
    assert abs(each) < 0.02 and abs(marginal) < 0.02 and one > 1
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_what_is_given_stays(dtype):
    x = normal(20, 1, 2, 2).to(dtype).requires_grad_()
    before = x.detach().clone()
    discrepancy = kernel_stein_discrepancy(lambda x: -x, x)
    assert (
        discrepancy.dtype == torch.float64
        and not discrepancy.requires_grad
        and x.grad is None
        and torch.equal(x, before)
    )
    # Once the samples are as they are, all is in double precision.
    assert_close(discrepancy, kernel_stein_discrepancy(lambda x: -x, before.double()))


def test_a_score_function_may_write_to_what_it_is_given():
    x = normal(20, 2)
    before = x.clone()
    assert_close(kernel_stein_discrepancy(lambda x: x.neg_(), x), kernel_stein_discrepancy(lambda x: -x, before))
    assert torch.equal(x, before)


def test_far_from_the_origin_nothing_is_lost():
    x = normal(30, 2)
    near = kernel_stein_discrepancy(lambda x: -x, x)
    far = kernel_stein_discrepancy(lambda y: -(y - 1e6), x + 1e6)
    assert_close(far, near, rtol=1e-7, atol=1e-7)


def test_the_median_is_that_of_the_distances():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)  # distances 1, 2, 3
    score = lambda x: -x  # noqa: E731
    assert_close(kernel_stein_discrepancy(score, x), kernel_stein_discrepancy(score, x, bandwidth=2.0))


ONES = torch.tensor([[0.0], [1.0], [2.0]])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"samples": [ONES]}, TypeError, "floating-point tensor"),
        ({"samples": ONES.int()}, TypeError, "floating-point tensor"),
        ({"samples": ONES[:1]}, ValueError, r"two or more.*\(1, 1\)"),
        ({"samples": torch.tensor(1.0)}, ValueError, "two or more"),
        ({"samples": torch.ones(4, 2)}, ValueError, "the same.*pass one"),
        ({"samples": ONES * torch.nan}, ValueError, "NaN"),
        ({"score_func": lambda x: x / 0 * 0}, ValueError, "scores contain NaN"),
        ({"score_func": lambda x: x.sum(1)}, ValueError, r"\(3, 1\), but returned \(3,\)"),
        ({"score_func": lambda x: (x,)}, ValueError, "but returned tuple"),
        ({"kernel": "rbf"}, ValueError, "'imq' or 'gaussian', but is 'rbf'"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be positive"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth must be positive"),
        ({"bandwidth": math.inf}, ValueError, "bandwidth must be positive"),
        ({"max_pairs_per_batch": 0}, ValueError, "at least 1, but is 0"),
    ],
)
def test_what_is_refused(change, error, words):
    arguments = {"score_func": lambda x: -x, "samples": ONES, **change}
    with pytest.raises(error, match=words):
        kernel_stein_discrepancy(**arguments)


def test_equal_samples_do_with_a_bandwidth():
    # u(x, x) = |s|^2 + d / h^2, for each pair.
    discrepancy = kernel_stein_discrepancy(lambda x: -x, torch.ones(4, 2), bandwidth=2.0)
    assert_close(discrepancy.item(), 2 + 2 / 4)


def test_the_bandwidth_of_many_samples_is_of_some_from_all_over(monkeypatch):
    """Samples may be sorted by class: the median distance of the first ones would be that within a class."""
    monkeypatch.setattr(_kernel_stein, "_MEDIAN_OF", 20)
    samples = torch.cat([normal(30, 2), normal(30, 2, seed=1) + 10])
    everywhere, first = (kernel_stein_discrepancy(lambda x: -x, samples, bandwidth=median_distance(some)) for some in (
        samples[::3], samples[:20]
    ))  # fmt: skip
    discrepancy = kernel_stein_discrepancy(lambda x: -x, samples)
    assert_close(discrepancy, everywhere)
    assert not torch.isclose(discrepancy, first, rtol=0.1)
