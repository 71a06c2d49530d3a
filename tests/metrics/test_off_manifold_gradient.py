"""The gradient off the data: of linear models on data in a subspace, in closed form."""

import pytest
import torch
from torch.testing import assert_close

from captum_density.metrics import off_manifold_gradient

N, D, ON = 20, 8, 5


def rotation():
    return torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q


def data_in(basis, m=200):
    """Data that vary in the first directions of a basis."""
    return 3.0 + torch.randn(m, ON, dtype=torch.float64) @ basis[:ON]


def test_a_manipulation_in_closed_form():
    basis = rotation()
    data = data_in(basis)
    own = torch.randn(ON, 2, dtype=torch.float64)
    weights = basis[:ON].mT @ own
    strengths = torch.tensor([0.5, -2.0], dtype=torch.float64)
    manipulated = weights + basis[ON][:, None] * strengths * weights.norm(dim=0)
    target = torch.arange(N) % 2
    assert off_manifold_gradient(lambda x: x @ weights, data[:N], data, target).max() < 1e-20
    shares = off_manifold_gradient(lambda x: x @ manipulated, data[:N], data, target)
    assert_close(shares, (strengths**2 / (1 + strengths**2))[target])


def test_what_is_spread_over_many_directions_is_not_gathered():
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    data = data_in(basis[:, :60][:ON], 200)
    each = torch.randn(N, 60, dtype=torch.float64)  # a direction for each example

    def model(x):
        return (x * each[: len(x)]).sum(1, keepdim=True)

    shares = off_manifold_gradient(model, data[:N], data, 0)
    assert 1 / N < shares.mean() < 0.25  # though nine tenths of each lie off the data


def test_data_that_vary_everywhere_leave_nothing():
    data = torch.randn(500, 3, dtype=torch.float64)
    assert off_manifold_gradient(lambda x: x.exp(), data[:N], data, 1).max() < 1e-20


def test_batches_and_additional_arguments():
    basis = rotation()
    data, weight = data_in(basis), basis[:, :1]

    def model(x, scale):
        return scale[:, None] * (x @ weight).tanh()

    scale = torch.rand(N, dtype=torch.float64) + 0.5
    whole = off_manifold_gradient(model, data[:N], data, 0, scale)
    assert whole.max() > 0.01
    assert_close(off_manifold_gradient(model, data[:N], data, 0, scale, max_examples_per_batch=7), whole)


def test_too_few_data_are_refused():
    data = torch.randn(30, 100)
    with pytest.raises(ValueError, match="more data"):
        off_manifold_gradient(lambda x: x, data, data, 0)
    with pytest.raises(ValueError, match="more data"):
        off_manifold_gradient(lambda x: x, data[:3], data[:3], 0)


def test_sorted_data_are_enough():
    data = torch.cat([data_in(rotation(), 3).repeat(30, 1), data_in(rotation(), 3).repeat(30, 1)])
    assert off_manifold_gradient(lambda x: x, data[:N], data, 0).shape == (N,)


@pytest.mark.parametrize(
    "data, kwargs, remedy",
    [
        (torch.randn(200, 7), {}, "inputs' shape"),
        (torch.full((200, 8), float("nan")), {}, "finite"),
        (torch.randn(200, 8), {"explained_variance": 1.0}, "in .0, 1."),
    ],
)
def test_refusals(data, kwargs, remedy):
    with pytest.raises(ValueError, match=remedy):
        off_manifold_gradient(lambda x: x, torch.randn(N, 8), data, 0, **kwargs)


@pytest.mark.cuda
def test_cuda():
    basis = rotation()
    data, weight = data_in(basis), basis[:, :1]
    expected = off_manifold_gradient(lambda x: (x @ weight).tanh(), data[:N], data, 0)
    on_device = weight.cuda()
    measured = off_manifold_gradient(lambda x: (x @ on_device).tanh(), data[:N].cuda(), data.cuda(), 0)
    assert measured.is_cuda
    assert_close(measured.cpu(), expected)
