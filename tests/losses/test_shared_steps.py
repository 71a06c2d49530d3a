"""Losses in a training step that has the logits already, and on a random share of its batch."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn.functional import cross_entropy

from captum_density.losses import (
    AntiScoreMatchingLoss,
    ContrastiveDivergenceLoss,
    DenoisingScoreMatchingLoss,
    FiniteDifferenceScoreMatchingLoss,
    FoolingLoss,
    GradientNormLoss,
    NoiseContrastiveLoss,
    ScoreMatchingLoss,
    SlicedScoreMatchingLoss,
)
from tests.losses.test_density_losses import DOUBLE, LABELS, LOSSES, NOISE, network, seeded

PATTERN = torch.tensor([1.0, -1.0, 0.5], dtype=DOUBLE)
NOT_OF_THE_EXAMPLES = ("denoising", "anti, hutchinson", "anti, exact")
GIVEN = {name: make for name, make in LOSSES.items() if name not in NOT_OF_THE_EXAMPLES}
GIVEN |= {"fooling": lambda g: FoolingLoss(PATTERN)}
# The model does not run beside the logits.
ALONE = ("gradient norm", "fooling")
SHARED = {
    "antithetic": lambda **o: ScoreMatchingLoss(**o),
    "exact": lambda **o: ScoreMatchingLoss("exact", **o),
    "anti": lambda **o: AntiScoreMatchingLoss(**o),
    "sliced": lambda **o: SlicedScoreMatchingLoss(**o),
    "finite differences": lambda **o: FiniteDifferenceScoreMatchingLoss(**o),
    "denoising": lambda **o: DenoisingScoreMatchingLoss(**o),
    "gradient norm": lambda **o: GradientNormLoss(**o),
    "noise contrast": lambda **o: NoiseContrastiveLoss(NOISE, **o).double(),
    "contrastive divergence": lambda **o: ContrastiveDivergenceLoss(0.01, 2, 16, **o),
}
given = pytest.mark.parametrize("name", GIVEN)
shared = pytest.mark.parametrize("name", SHARED)


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=DOUBLE)


class Counted(nn.Module):
    """A model, and how many rows each of its runs had."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.model(x)


def normed(training=True):
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Softplus(), nn.Linear(5, 3)).double().train(training)


def slopes(loss, model):
    return torch.autograd.grad(loss, [*model.parameters()], allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("target", [LABELS, None], ids=["labels", "None"])
@pytest.mark.parametrize("make", [network, lambda: normed(training=False)], ids=["no norm", "batch norm, eval"])
@given
def test_given_logits_make_no_difference(name, make, target, x):
    model = make()
    apart = cross_entropy(model(x), LABELS) + GIVEN[name](seeded())(model, x, target)
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    together = cross_entropy(logits, LABELS) + GIVEN[name](seeded())(model, leaf, target, logits=logits)
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(slopes(together, model), slopes(apart, model), atol=1e-9, rtol=1e-9)


@given
def test_given_logits_spare_the_examples_run(name, x):
    rows = {}
    for shares in (False, True):
        model, leaf = Counted(network()), x.clone().requires_grad_()
        logits = model(leaf)
        GIVEN[name](seeded())(model, leaf, LABELS, logits=logits if shares else None)
        rows[shares] = sum(model.rows)
    # But for the one row, in the losses' own run, that tells whether these are the model's logits.
    assert rows[False] - rows[True] == (4 if name in ALONE else 3)


def test_given_logits_of_several_inputs_and_a_share():
    one, other = (torch.randn(4, 2, dtype=DOUBLE) for _ in range(2))
    layer = nn.Linear(4, 3).double()

    def model(x, y):
        return torch.tanh(layer(torch.cat([x, y], 1)))

    apart, together = (GradientNormLoss(share=0.5, generator=seeded()) for _ in range(2))
    leaves = tuple(part.clone().requires_grad_() for part in (one, other))
    result = together(model, leaves, LABELS, logits=model(*leaves))
    torch.testing.assert_close(result, apart(model, (one, other), LABELS))


@pytest.mark.parametrize("name", ALONE)
def test_batch_norm_in_training_mode_stays_in_the_gradient_of_given_logits(name, x):
    model, leaf = normed(), x.clone().requires_grad_()
    logits = model(leaf)
    statistics = model[1].running_mean.clone()
    loss = GIVEN[name](None)(model, leaf, LABELS, logits=logits)
    gradient = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), leaf)[0]
    if name == "fooling":
        expected = 1 - nn.functional.cosine_similarity(gradient, PATTERN.expand(4, 3)).mean()
    else:
        expected = 0.5 * gradient.square().sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert not torch.isclose(loss, GIVEN[name](None)(model, x, LABELS))  # of the running statistics
    assert torch.equal(model[1].running_mean, statistics)  # moved by the step's forward pass, and not again
    assert model.training


@pytest.mark.parametrize("name", [name for name in GIVEN if name not in ALONE])
def test_logits_of_another_network_are_refused(name, x):
    model, leaf = normed(), x.clone().requires_grad_()
    logits = model(leaf)
    for training in (True, False):  # of a loss after the step's forward pass in training mode
        with pytest.raises(ValueError, match=r"call model.eval\(\) before both"):
            GIVEN[name](seeded())(model.train(training), leaf, LABELS, logits=logits)
    dropout = network(nn.Dropout(0.5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = dropout(leaf)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        GIVEN[name](seeded())(dropout.eval(), leaf, LABELS, logits=logits)


def test_dropout_of_given_logits_is_differentiated_as_drawn(x):
    model, leaf = network(nn.Dropout(0.5)), x.clone().requires_grad_()
    logits = model(leaf)
    loss = GradientNormLoss()(model, leaf, LABELS, logits=logits)
    gradient = torch.autograd.grad(logits.gather(1, LABELS[:, None]).sum(), leaf)[0]
    torch.testing.assert_close(loss, 0.5 * gradient.square().sum(1).mean())


def test_a_look_at_the_loss_leaves_the_steps_graph(x):
    model, leaf = network(), x.clone().requires_grad_()
    logits = model(leaf)
    with torch.no_grad():
        ScoreMatchingLoss()(model, leaf, LABELS, logits=logits)
    cross_entropy(logits, LABELS).backward()


@pytest.mark.parametrize("name", NOT_OF_THE_EXAMPLES)
def test_logits_without_a_use_are_refused(name, x):
    model = network()
    with pytest.raises(ValueError, match="leave logits out"):
        LOSSES[name](None)(model, x, LABELS, logits=model(x))


@pytest.mark.parametrize(
    ("change", "error", "remedy"),
    [
        (lambda logits: logits.detach(), ValueError, "do not detach"),
        (lambda logits: logits[:3], ValueError, r"\(4, ...\)"),
        (lambda logits: logits.half(), ValueError, "outside autocast"),
        (lambda logits: logits.argmax(1), TypeError, "what the model returned"),
        (lambda logits: [logits], TypeError, "what the model returned"),
        (lambda logits: logits.flip(0), ValueError, "leave logits out"),
    ],
)
def test_logits_that_are_not_the_steps_are_refused(x, change, error, remedy):
    model, leaf = network(), x.requires_grad_()
    with pytest.raises(error, match=remedy):
        ScoreMatchingLoss()(model, leaf, LABELS, logits=change(model(leaf)))


def test_the_inputs_must_have_required_a_gradient(x):
    model = network()
    with pytest.raises(ValueError, match=r"requires_grad_\(\) before"):
        ScoreMatchingLoss()(model, x, LABELS, logits=model(x))
    FiniteDifferenceScoreMatchingLoss()(model, x, LABELS, logits=model(x))  # which takes no gradient by them


@pytest.mark.parametrize(("share", "size"), [(0.5, 2), (0.7, 3), (0.01, 1), (1.0, 4)])
@shared
def test_a_share_of_the_examples_is_evaluated(name, share, size, x):
    rows = []
    for options in ({"share": share}, {}):
        model = Counted(network())
        SHARED[name](**options)(model, x if options else x[:size], LABELS if options else LABELS[:size])
        rows.append(model.rows)
    assert rows[0] == rows[1]


def test_an_argument_for_all_examples_may_have_as_many_rows_as_a_share(x):
    for_all, for_each = torch.randn(2, dtype=DOUBLE), torch.randn(4, 1, dtype=DOUBLE)

    def model(x, both, one):
        assert len(both) == 2 and len(one) == len(x)
        return torch.sin(x) * both.sum() * one

    loss = ScoreMatchingLoss(n_samples=2, share=0.5)
    loss(model, x, LABELS, (for_all, for_each))


def test_the_share_is_drawn_anew_from_the_generator(x):
    model, values = network(), []
    for seed in (0, 0, 1):
        loss = GradientNormLoss(share=0.5, generator=seeded(seed))
        values.append(torch.stack([loss(model, x, LABELS).detach() for _ in range(6)]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert len(values[0].unique()) > 2


@pytest.mark.parametrize("shares_logits", [False, True])
def test_gradients_of_a_share_are_those_of_the_batch_on_average(x, monkeypatch, shares_logits):
    """Over all pairs of four examples: the mean of their losses and gradients is the whole batch's, exactly."""
    model, leaf = network(), x.clone().requires_grad_()
    options = {"estimator": "exact", "stability": 0.01}
    whole = ScoreMatchingLoss(**options)(model, x, LABELS)
    half, parts = ScoreMatchingLoss(**options, share=0.5), []
    for pair in itertools.combinations(range(4), 2):
        order = torch.tensor([*pair, *({0, 1, 2, 3} - {*pair})])
        monkeypatch.setattr(torch, "randperm", lambda n, order=order, **options: order[:n])
        parts.append(half(model, leaf, LABELS, logits=model(leaf) if shares_logits else None))
    mean = torch.stack(parts).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(slopes(mean, model), slopes(whole, model))


def test_every_example_is_as_likely_in_a_share():
    seen = torch.zeros(5)
    loss = GradientNormLoss(share=0.4, generator=seeded())
    x = torch.arange(5.0)[:, None]

    def model(rows):
        seen[rows.detach()[:, 0].long()] += 1
        return rows * 1.0

    for _ in range(150):
        loss(model, x)
    assert (seen - 60).abs().max() < 24  # four standard deviations


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
@shared
def test_bad_shares_are_refused(name, share):
    with pytest.raises(ValueError, match="looks at half"):
        SHARED[name](share=share)


@shared
def test_a_share_is_shown(name):
    assert "share=0.25" in repr(SHARED[name](share=0.25))
    assert "share" not in repr(SHARED[name]())


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@shared
def test_cuda(name, device, x):
    model, leaf = network().cuda(), x.cuda().requires_grad_()
    options = {"share": 0.5, "generator": torch.Generator(device).manual_seed(0)}
    noise = Independent(Normal(torch.zeros(3, dtype=DOUBLE).cuda(), 2.0), 1)
    make = SHARED[name] if name != "noise contrast" else lambda **o: NoiseContrastiveLoss(noise, **o).double()
    loss = make(**options).cuda()
    given = {} if name == "denoising" else {"logits": model(leaf)}
    loss(model, leaf, LABELS.cuda(), **given).backward()
    assert all(p.grad is None or p.grad.is_cuda for p in model.parameters())
