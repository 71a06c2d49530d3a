"""What models in training mode do as they run, and that no evaluation of their density is moved by it."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from captum_density.density import class_log_density, class_score, hessian_trace, marginal_log_density
from captum_density.losses import (
    AntiScoreMatchingLoss,
    FiniteDifferenceScoreMatchingLoss,
    GradientNormLoss,
    ScoreMatchingLoss,
)
from captum_density.metrics import density_ratio, gan_test, pixel_perturbation
from captum_density.samplers import LangevinSampler

DOUBLE = torch.float64


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def spectral(kind):
    norm = parametrizations.spectral_norm if kind == "parametrized" else nn.utils.spectral_norm
    model = nn.Sequential(norm(nn.Linear(4, 8)), nn.Softplus(), norm(nn.Linear(8, 3))).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn_like(p)  # away from what the power iteration has converged to
    return model


class Counting(nn.Module):
    """Moves an average of what it sees and subtracts it."""

    def __init__(self, *, by_assignment: bool):
        super().__init__()
        self.by_assignment = by_assignment
        self.linear = nn.Linear(4, 3).double()
        self.register_buffer("mean", torch.zeros(3, dtype=DOUBLE))

    def forward(self, x):
        y = self.linear(x) ** 2
        if self.training and self.by_assignment:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        elif self.training:
            self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y - self.mean


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["parametrized", "hook"])
def test_spectral_norm_stands_still(kind):
    model, x = spectral(kind), torch.randn(5, 4, dtype=DOUBLE)
    before = buffers(model)
    losses = (
        lambda m: ScoreMatchingLoss(noise_std=0.01, generator=seeded())(m, x, 0),
        lambda m: AntiScoreMatchingLoss(noise_std=0.1, generator=seeded(), max_examples_per_batch=5)(m, x, 0),
        lambda m: density_ratio(m, x, 0.1, target=0, generator=seeded()),
        lambda m: class_log_density(m, x, 0),
    )
    for loss in losses:
        torch.testing.assert_close(loss(model.train()), loss(model.eval()))
    model.train()
    assert all(module.training for module in model.modules())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("by_assignment", [True, False])
def test_models_that_change_as_they_run(by_assignment):
    model, x = Counting(by_assignment=by_assignment), torch.randn(5, 4, dtype=DOUBLE)
    before = model.mean
    for compare in (
        lambda: ScoreMatchingLoss()(model, x, 0),
        lambda: density_ratio(model, x, 0.1, target=0),
        lambda: gan_test(model, x, 0),
        lambda: pixel_perturbation(model, x, x, target=0, channels="singly"),
    ):
        with pytest.raises(ValueError, match=r"'' \(Counting\) changes its buffer 'mean'.*model\.eval"):
            compare()
    GradientNormLoss()(model, x, 0).backward()  # one evaluation, which nothing is compared with
    assert model.mean is before
    assert not before.any()
    ScoreMatchingLoss()(model.eval(), x, 0)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("wrap", [lambda m: lambda x: m(x), lambda m: functools.partial(m), lambda m: m.forward])
def test_batch_norm_within_functions_stands_still(wrap):
    model, x = network(), torch.randn(6, 4, dtype=DOUBLE)
    model(3 * torch.randn(50, 4, dtype=DOUBLE))
    before = buffers(model)
    for measure in (
        lambda f: hessian_trace(f, x, 0, "exact"),
        lambda f: class_score(f, x, 0),
        lambda f: marginal_log_density(f, x),
        lambda f: ScoreMatchingLoss(generator=seeded())(f, x, 0),
        lambda f: gan_test(f, x, 0).probability,
        lambda f: LangevinSampler(f, 0.01, 3, generator=seeded()).sample(x, 0).samples,
    ):
        result = measure(wrap(model.train()))
        assert all(module.training for module in model.modules())
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name])
        torch.testing.assert_close(result, measure(model.eval()))


def test_batch_norm_without_statistics_within_functions_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="batch norm 'BatchNorm1d' keeps no running statistics"):
        class_log_density(lambda x: model(x), torch.randn(5, 4), 0)


def test_reentrant_checkpoints_are_refused_where_the_mode_is_switched():
    inner = network()

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_() if x.is_leaf else x, use_reentrant=True)

    model, x = Checkpointed(), torch.randn(6, 4, dtype=DOUBLE)
    loss = FiniteDifferenceScoreMatchingLoss(generator=seeded())
    with pytest.raises(ValueError, match=r"reentrant activation checkpointing.*model\.eval"):
        loss(model, x, 0)
    model.eval()
    again = FiniteDifferenceScoreMatchingLoss(generator=seeded())(model, x, 0)
    again.backward()
    fresh = FiniteDifferenceScoreMatchingLoss(generator=seeded())(inner, x, 0)
    torch.testing.assert_close(
        [p.grad for p in inner.parameters()], list(torch.autograd.grad(fresh, list(inner.parameters())))
    )


def test_statistics_that_move_before_the_backward_pass():
    """Batch norm in training mode overwrites its statistics without a word to autograd."""
    model, x = network().eval(), torch.randn(6, 4, dtype=DOUBLE)
    loss = GradientNormLoss()
    expected = torch.autograd.grad(loss(model, x, 0), model[0].weight)[0]
    value = loss(model, x, 0)
    model.train()(3 * x + 1)
    torch.testing.assert_close(torch.autograd.grad(value, model[0].weight)[0], expected)
