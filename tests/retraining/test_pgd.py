"""pgd: Captum's Linf attack step for step, the worst case of a linear model, and nothing left changed."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from captum.robust import PGD
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.datasets import digits
from captum_density.retraining import pgd

NORMS = ("linf", "l2")


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _cross_entropy(logits, target):
    return F.cross_entropy(logits, target, reduction="none")


def _network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype).eval()


def _batch(n=6, seed=0, dtype=torch.float64):
    inputs = torch.rand(n, 3, 2, 2, generator=_generator(seed), dtype=dtype)
    return inputs, torch.randint(0, 4, (n,), generator=_generator(seed + 1))


def _distance(change, norm):
    return change.flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)


def _flat(x):
    """A model without a gradient: what comes back is where the attack started."""
    return 0 * x.flatten(1)[:, :1].expand(-1, 3)


def test_bounds_of_each_channel_are_those_of_the_images_before_they_were_normalised():
    torch.manual_seed(0)
    mean, std = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1), torch.tensor([0.1, 0.3, 0.5]).view(3, 1, 1)
    images = torch.rand(4, 3, 5, 5).round(decimals=1)  # some of them 0 or 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 3))
    for bounds in (((0 - mean) / std, (1 - mean) / std), ((-mean.double() / std).numpy(), ((1 - mean) / std).numpy())):
        attacked = pgd(model, (images - mean) / std, 0, norm="linf", radius=100.0, bounds=bounds)
        pixels = attacked * std + mean
        assert_close(pixels.amin((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
        assert_close(pixels.amax((0, 2, 3)), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bounds", [None, (0.1, 0.9)])
@pytest.mark.parametrize("n_steps", range(1, 8))
def test_linf_is_captums_step_for_step(n_steps, bounds):
    model, (inputs, target) = _network(), _batch()
    inputs = inputs.clamp(0.1, 0.9)
    low, high = bounds or (-torch.inf, torch.inf)
    captum = PGD(model, _cross_entropy, low, high)
    captum.fgsm.zero_thresh = 0  # else small gradients are taken for none
    expected = captum.perturb(inputs, radius=0.3, step_size=0.07, step_num=n_steps, target=target, norm="Linf")
    attacks = pgd(
        model,
        inputs,
        target,
        norm="linf",
        radius=0.3,
        step_size=0.07,
        n_steps=n_steps,
        bounds=bounds,
        random_start=False,
    )
    assert (attacks - inputs).abs().max() > 0.06
    torch.testing.assert_close(attacks, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("random_start", [False, True])
def test_reaches_the_worst_case_of_a_linear_model(random_start):
    # With two classes the loss is a function of (w_y - w_other) x alone, so that the worst point in the ball is
    # x - r u, where u is w_y - w_other over its norm (l2), or its sign (linf).
    weight = torch.randn(2, 12, generator=_generator(3), dtype=torch.float64)
    model = lambda x: x.flatten(1) @ weight.T  # noqa: E731
    inputs = _batch(8)[0]
    target = torch.tensor([0, 1] * 4)
    difference = (weight[target] - weight[1 - target]).view_as(inputs)
    size = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for norm, worst in (("l2", inputs - 0.5 * difference / size), ("linf", inputs - 0.5 * difference.sign())):
        attacks = pgd(
            model,
            inputs,
            target,
            norm=norm,
            radius=0.5,
            step_size=0.2,
            n_steps=200,
            random_start=random_start,
            generator=_generator(),
        )
        torch.testing.assert_close(attacks, worst, rtol=0, atol=1e-9)


def _seen(norm, **options):
    """The inputs, and where the model was asked, (steps + 1, N, ...): the last is what the attack returned."""
    model, (inputs, target), points = _network(), _batch(), []

    def recorder(x):
        points.append(x.detach().clone())
        return model(x)

    attacks = pgd(recorder, inputs, target, norm=norm, **options)
    return inputs, torch.stack([*points, attacks])


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_has_the_size_it_is_given(norm):
    for step_size, expected in ((None, 2.5 * 4 / 10), (0.1, 0.1)):
        inputs, calls = _seen(norm, radius=4.0, step_size=step_size, random_start=False)
        assert len(calls) == 11
        assert torch.equal(calls[0], inputs)
        first = _distance(calls[1] - calls[0], norm)
        torch.testing.assert_close(first, torch.full((6,), expected, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_the_model_is_never_asked_outside(norm):
    inputs, calls = _seen(norm, radius=0.8, bounds=(0, 1), generator=_generator())
    assert calls.min() == 0
    assert calls.max() == 1
    assert all(_distance(x - inputs, norm).max() <= 0.8 + 1e-12 for x in calls)
    assert not torch.equal(calls[0], inputs)


@given(
    norm=st.sampled_from(NORMS),
    radius=st.floats(0, 3),
    step=st.floats(1e-3, 5),
    bounds=st.sampled_from([None, (0, 1), (-0.5, 1.25)]),
    random_start=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_stays_in_ball_and_bounds(norm, radius, step, bounds, random_start, dtype, seed):
    model, (inputs, target) = _network(seed, dtype), _batch(3, seed, dtype)
    attacks = pgd(
        model,
        inputs,
        target,
        norm=norm,
        radius=radius,
        step_size=step,
        n_steps=4,
        bounds=bounds,
        random_start=random_start,
        generator=_generator(seed),
    )
    assert attacks.shape == inputs.shape
    assert attacks.dtype == dtype
    assert _distance(attacks - inputs, norm).max() <= radius + 4 * torch.finfo(dtype).eps * (1 + radius)
    if bounds is not None:
        assert bounds[0] <= attacks.min()
        assert attacks.max() <= bounds[1]


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_is_uniform_in_the_ball(norm):
    inputs = torch.full((20_000, 3), 5.0, dtype=torch.float64)
    change = pgd(_flat, inputs, 0, norm=norm, radius=2.0, generator=_generator()) - inputs
    # The share of the volume within r of the centre is (r / radius)^d, so that this is uniform in [0, 1]: its mean has
    # deviation 1 / sqrt(12 n), its share below 0.1 has 0.3 / sqrt(n); tests at four of them.
    inside = (_distance(change, norm) / 2) ** 3
    assert inside.max() <= 1 + 1e-12
    assert abs(inside.mean().item() - 0.5) < 4 / (12 * 20_000) ** 0.5
    assert abs((inside < 0.1).double().mean().item() - 0.1) < 4 * 0.3 / 20_000**0.5
    # And no direction is preferred: a coordinate's deviation is 2 / sqrt(3) in the cube, 2 / sqrt(5) in the ball.
    deviation = 2 / (3 if norm == "linf" else 5) ** 0.5
    assert change.mean(0).abs().max() < 4 * deviation / 20_000**0.5
    torch.testing.assert_close(change.std(0), torch.full((3,), deviation, dtype=torch.float64), rtol=0.03, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_is_no_step(norm):
    inputs = torch.rand(4, 2, 3)
    assert torch.equal(pgd(_flat, inputs, 0, norm=norm, radius=0.5, random_start=False), inputs)
    # Where some examples have none, the others still move.
    gate = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(-1, 1)
    attacks = pgd(lambda x: gate * x.flatten(1), inputs, 0, norm=norm, radius=0.5, random_start=False)
    assert attacks.isfinite().all()
    assert torch.equal(attacks[1::2], inputs[1::2])
    assert (_distance(attacks - inputs, norm)[::2] > 0.4).all()


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_gradients_count(norm):
    # Squares of 1e-30 are 0 in float32; the direction is there all the same.
    inputs = torch.rand(4, 6)
    loss = lambda output, target: 1e-30 * output.sum(1)  # noqa: E731
    attacks = pgd(lambda x: x, inputs, None, norm=norm, radius=0.5, random_start=False, loss=loss)
    each = 0.5 if norm == "linf" else 0.5 / 6**0.5
    torch.testing.assert_close(attacks, inputs + each)


def test_radius_zero_gives_the_inputs_back():
    model, (inputs, target) = _network(), _batch()
    for norm in NORMS:
        attacks = pgd(model, inputs, target, norm=norm, radius=0)
        assert torch.equal(attacks, inputs)
        assert attacks.data_ptr() != inputs.data_ptr()


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_falls_with_the_radius(norm):
    data = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data.train_images), data.train_labels).backward()
        optimizer.step()
    images, labels = data.test_images, data.test_labels
    accuracies = []
    for radius in (0.0, 0.05, 0.1, 0.2, 0.4) if norm == "linf" else (0.0, 0.25, 0.5, 1.0, 2.0):
        attacked = pgd(model, images, labels, norm=norm, radius=radius, bounds=(0, 1), generator=_generator())
        accuracies.append((model(attacked).argmax(1) == labels).double().mean().item())
    assert accuracies[0] > 0.9
    assert all(smaller > larger for smaller, larger in pairwise(accuracies))
    assert accuracies[-1] < 0.02
    noise = pgd(_flat, images, 0, norm=norm, radius=0.1, bounds=(0, 1), generator=_generator())
    assert (model(noise).argmax(1) == labels).double().mean() > accuracies[0] - 0.02


class _Layers(nn.Module):
    """Everything that training mode changes, one layer frozen in evaluation mode by its owner."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(12, 4)
        self.raises = False

    def forward(self, x):
        if self.raises:
            raise RuntimeError("the model raised")
        return self.linear(self.drop(self.frozen(self.norm(x)).flatten(1)))


def _trained_layers():
    torch.manual_seed(0)
    model = _Layers().double()
    model.norm(5 + 3 * torch.randn(32, 3, 2, 2, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    model.linear.bias.requires_grad_(False)
    return model


def _state(model):
    return (
        copy.deepcopy(model.state_dict()),
        {name: module.training for name, module in model.named_modules()},
        {name: (p.requires_grad, p.grad.clone()) for name, p in model.named_parameters()},
        torch.get_rng_state(),
    )


def _assert_same_state(before, after):
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    assert before[1] == after[1]
    for name, (required, gradient) in before[2].items():
        assert required == after[2][name][0]
        assert torch.equal(gradient, after[2][name][1])
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("raises", [False, True])
def test_leaves_everything_as_it_was(norm, raises):
    model, (inputs, target) = _trained_layers(), _batch()
    buffers = dict(model.named_buffers())
    inputs.requires_grad_()
    copied, before = inputs.detach().clone(), _state(model)
    model.raises = raises
    with torch.no_grad():
        if raises:
            with pytest.raises(RuntimeError, match="the model raised"):
                pgd(model, inputs, target, norm=norm, radius=0.2, generator=_generator())
        else:
            attacks = pgd(model, inputs, target, norm=norm, radius=0.2, generator=_generator())
            assert not attacks.requires_grad
            assert not torch.equal(attacks, copied)
    _assert_same_state(before, _state(model))
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    assert torch.equal(inputs, copied)
    assert inputs.requires_grad
    assert inputs.grad is None


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_the_result_has_no_graph(norm, random_start):
    model, (inputs, target) = _network(), _batch()
    attacks = pgd(model, inputs.requires_grad_(), target, norm=norm, radius=0.2, random_start=random_start)
    assert not attacks.requires_grad
    assert inputs.requires_grad
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_may_write_to_its_input(norm):
    model, (inputs, target) = _network(), _batch()
    options = {"norm": norm, "radius": 0.2, "random_start": False}
    before = inputs.clone()
    attacks = pgd(lambda x: model(x.mul_(2)), inputs, target, **options)
    assert torch.equal(inputs, before)
    torch.testing.assert_close(attacks, pgd(lambda x: model(2 * x), inputs, target, **options))


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_the_model_in_evaluation_mode(norm):
    # Else one example's attack would depend on the others, and on the dropout masks.
    model, (inputs, target) = _trained_layers(), _batch()
    options = {"norm": norm, "radius": 0.2, "random_start": False}
    in_training = pgd(model, inputs, target, **options)
    method = pgd(model.forward, inputs, target, **options)
    assert torch.equal(in_training, method)
    assert torch.equal(in_training, pgd(model.eval(), inputs, target, **options))
    alone = [pgd(model.train(), x, t, **options) for x, t in zip(inputs.split(1), target.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(alone), in_training)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_norm_within_a_function_is_held_still(norm):
    model, (inputs, target) = _trained_layers(), _batch()
    model.drop.eval()
    before = _state(model)
    attacks = pgd(lambda x: model(x), inputs, target, norm=norm, radius=0.2, random_start=False)
    _assert_same_state(before, _state(model))
    torch.testing.assert_close(attacks, pgd(model, inputs, target, norm=norm, radius=0.2, random_start=False))


@pytest.mark.parametrize("norm", NORMS)
def test_generator_decides_and_the_global_one_is_left(norm):
    model, (inputs, target) = _network(), _batch()
    state = torch.get_rng_state()
    options = {"norm": norm, "radius": 0.2, "step_size": 0.01, "n_steps": 2}  # so that starts do not end in one corner
    first, second, other = (pgd(model, inputs, target, generator=_generator(s), **options) for s in (0, 0, 1))
    pgd(model, inputs, target, random_start=False, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    pgd(model, inputs, target, **options)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_loss_of_ones_own():
    # Towards a point: the loss is minus the squared distance, highest there if it is in the ball.
    inputs = torch.rand(3, 5, dtype=torch.float64)
    goal = inputs + 0.1
    loss = lambda output, target: -((output - target) ** 2).sum(1)  # noqa: E731
    attacks = pgd(lambda x: x, inputs, goal, norm="linf", radius=0.5, step_size=0.02, n_steps=20, loss=loss)
    assert (attacks - goal).abs().max() < 0.5
    exact = pgd(
        lambda x: x, inputs, goal, norm="linf", radius=0.5, step_size=0.02, n_steps=5, random_start=False, loss=loss
    )
    torch.testing.assert_close(exact, goal)


@pytest.mark.parametrize("target", [2, [2] * 6, torch.full((6,), 2)])
def test_forms_of_a_target(target):
    model, (inputs, _) = _network(), _batch()
    options = {"norm": "l2", "radius": 0.2, "random_start": False}
    assert torch.equal(pgd(model, inputs, target, **options), pgd(model, inputs, torch.tensor([2] * 6), **options))


@pytest.mark.cuda
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_gpu(norm):
    model, (inputs, target) = _network(), _batch()
    here = pgd(model, inputs, target, norm=norm, radius=0.2, generator=_generator())
    there = pgd(model.cuda(), inputs.cuda(), target.cuda(), norm=norm, radius=0.2, generator=_generator())
    torch.testing.assert_close(there.cpu(), here)


INPUTS = torch.full((2, 3), 0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": "l1"}, ValueError, "norm must be 'linf' or 'l2', but is 'l1'"),
        ({"radius": -0.1}, ValueError, "radius must be at least 0"),
        ({"radius": torch.nan}, ValueError, "radius must be at least 0"),
        ({"radius": torch.inf}, ValueError, "radius must be at least 0"),
        ({"step_size": 0.0}, ValueError, "step_size must be positive"),
        ({"step_size": torch.inf}, ValueError, "step_size must be positive"),
        ({"n_steps": 0}, ValueError, "n_steps must be an integer of at least 1"),
        ({"n_steps": 2.5}, ValueError, "n_steps must be an integer of at least 1"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"bounds": (0, None)}, ValueError, "bounds must be"),
        ({"bounds": (0, torch.ones(7))}, ValueError, "tensor that broadcasts to the inputs"),
        ({"bounds": (torch.zeros(1), -torch.ones(1))}, ValueError, "low < high"),
        ({"bounds": (0.6, 1)}, ValueError, r"inputs must lie within the bounds \(0.6, 1\)"),
        ({"bounds": (0, 0.4)}, ValueError, r"inputs must lie within the bounds \(0, 0.4\)"),
        ({"inputs": INPUTS.long()}, TypeError, "dtype torch.int64"),
        ({"inputs": [0.5]}, TypeError, "inputs must be a tensor"),
        ({"inputs": INPUTS[:0]}, ValueError, "at least one example"),
        ({"inputs": INPUTS / 0}, ValueError, "NaN or infinity"),
        ({"target": 0.5}, ValueError, "target must be a class"),
        ({"target": [0, 1, 2]}, ValueError, "target must be a class"),
        ({"target": -1}, ValueError, "target must be a class"),
        ({"target": 3}, ValueError, "target holds class 3, but the model has 3 classes"),
        ({"model": lambda x: x.sum(1)}, ValueError, r"must return logits .* returned \(2,\)"),
        ({"model": lambda x: x[:1]}, ValueError, r"must return logits .* returned \(1, 3\)"),
        ({"model": lambda x: (x,)}, ValueError, r"must return logits .* returned tuple"),
        ({"model": lambda x: x.detach()}, ValueError, "does not depend on the inputs"),
        ({"model": lambda x: torch.ones(2, 3, requires_grad=True)}, ValueError, "does not depend on the inputs"),
        ({"model": lambda x: x + torch.nan}, ValueError, "gradient of the loss is NaN"),
        ({"loss": lambda output, target: output.sum()}, ValueError, r"one value for each of 2 examples.*'none'"),
        ({"loss": lambda output, target: output}, ValueError, r"but has shape \(2, 3\)"),
        (
            {"model": nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))},
            ValueError,
            "keeps no running statistics",
        ),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_bad_arguments_are_refused(norm, options, error, message):
    given_ = {"model": lambda x: x, "inputs": INPUTS, "target": 0, "norm": norm, "radius": 0.1, **options}
    with pytest.raises(error, match=message):
        pgd(**given_)
