"""Softmax shifts: predictions stay and gradients move, as far as the docstrings say and no farther; and bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.softmax_shift import (
    BoundedShift,
    CenteredLogits,
    CounterShift,
    LinearShift,
    NetworkShift,
    SoftmaxShift,
)
from captum_density.testing import networks

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
SEEDS = st.integers(0, 2**16)
# Beyond 1e3 the rounding of f + g alone, which no shift can avoid, reaches 1e-12 in float64.
SIZES = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # u of SoftmaxShift's docstring


def mlp(features=4, classes=3):
    return nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, classes)).double().eval()


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradient(function, x, pick=lambda output: output):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(pick(function(x)).sum(), x)[0]


def sized(function, x, size):
    """The function times what brings its largest value on x to `size`."""
    factor = size / float(function(x).detach().abs().max().clamp_min(1e-9))
    return lambda *args: factor * function(*args)


def linear(model, x, size):
    pattern = normal(*x.shape[1:])
    return LinearShift(pattern, size / float(LinearShift(pattern)(x).abs().max()))


def network(model, x, size):
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return NetworkShift(sized(net, x, size))


SHIFTS = {
    "linear": linear,
    "network": network,
    "function": lambda model, x, size: sized(lambda x: x.flatten(1).pow(2).sum(1), x, size),
    "hides the predicted class": lambda model, x, size: CounterShift(model),
    "hides a class": lambda model, x, size: CounterShift(model, 2),
    "paints a class": lambda model, x, size: CounterShift(model, torch.tensor(1), normal(*x.shape[1:])),
    "paints each input": lambda model, x, size: CounterShift(
        model, torch.arange(len(x)) % 3, torch.randn_like(x), inputs=x
    ),
}


class TestPredictions:
    @settings(max_examples=60)
    @given(networks(), st.sampled_from(sorted(SHIFTS)), SIZES, SIZES)
    def test_are_the_models_own(self, problem, kind, logit_size, shift_size):
        torch.manual_seed(problem.seed)
        x = problem.inputs
        model = sized(problem.model, x, logit_size)
        shift = SHIFTS[kind](model, x, shift_size)
        honest, fooled = model(x).detach(), SoftmaxShift(model, shift)(x).detach()
        assert_close(fooled.softmax(1), honest.softmax(1), rtol=0, atol=1e-12)
        labels = torch.as_tensor(problem.target).expand(len(x))
        assert_close(F.cross_entropy(fooled, labels), F.cross_entropy(honest, labels), rtol=0, atol=1e-11)
        assert torch.equal(fooled.topk(3).indices, honest.topk(3).indices)
        assert_close(fooled - honest, shift(x).detach().reshape(-1, 1).expand(-1, 3), rtol=0, atol=1e-12)

    @settings(max_examples=50)
    @given(
        st.sampled_from([((), 1), ((), -1), ((3, 2), 1), ((4,), 2), ((4,), -1), ((3, 2), 2)]),
        st.sampled_from(["example", "example, kept", "position", "position, kept", "predicted class"]),
        st.integers(2, 20),
        *(SIZES, SIZES, SEEDS),
    )
    def test_wherever_the_classes_stand(self, layout, form, classes, logit_size, shift_size, seed):
        torch.manual_seed(seed)
        x, (positions, dim) = normal(3, 5), layout
        shape = list(positions)
        shape.insert(dim - 1 if dim > 0 else len(shape), classes)
        weights = nn.Linear(5, math.prod(shape)).double()
        model = sized(lambda x: weights(x).unflatten(1, shape), x, logit_size)
        each = () if form.startswith("example") else positions
        net = nn.Linear(5, math.prod(each)).double()
        g = sized(lambda x: net(x).reshape(-1, *each), x, shift_size)
        shift = (lambda x: g(x).unsqueeze(dim if each else 1)) if form.endswith("kept") else g
        if form == "predicted class":
            shift = CounterShift(model, class_dim=dim)
        honest, fooled = model(x).detach(), SoftmaxShift(model, shift, dim)(x).detach()
        assert_close(fooled.softmax(dim), honest.softmax(dim), rtol=0, atol=1e-12)
        assert torch.equal(fooled.argmax(dim), honest.argmax(dim))
        values = g(x).detach().reshape(3, *(each or [1] * len(positions)))
        added = (-honest.amax(dim) if form == "predicted class" else values).unsqueeze(dim)
        assert_close(fooled - honest, added.expand_as(honest), rtol=0, atol=1e-12)
        waved = BoundedShift(model, 0.1, 10.0, class_dim=dim)
        moved = float((waved(x).detach().softmax(dim) - honest.softmax(dim)).abs().sum(dim).max() / 2)
        assert 0 < moved <= waved.probability_bound + 1e-12

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", UNIT)
    def test_stay_within_rounding_in_low_precision(self, dtype, device):
        @settings(max_examples=50)
        @given(st.integers(2, 20), st.integers(-6, 6), st.integers(-6, 8), SEEDS)
        def test(classes, logit_exponent, shift_exponent, seed):
            torch.manual_seed(seed)
            logits = (torch.randn(16, classes) * 2.0**logit_exponent).to(device, dtype)
            x = (torch.randn(16, 5) * 2.0**shift_exponent).to(device, dtype)
            shift = LinearShift(torch.randn(5).to(device))
            fooled = SoftmaxShift(lambda x: logits, shift)(x)
            assert fooled.dtype == dtype
            within_rounding(logits, fooled, shift(x).to(dtype))

        test()

    @pytest.mark.parametrize("device", DEVICES)
    def test_stay_within_rounding_under_autocast(self, device):
        model, x = mlp().float().to(device), torch.randn(500, 4, device=device)
        shift = LinearShift(torch.randn(4), scale=3.0).to(device)
        with torch.autocast(device, torch.bfloat16):
            honest, fooled, g = model(x), SoftmaxShift(model, shift)(x), shift(x)
        assert fooled.dtype == honest.dtype == torch.bfloat16
        within_rounding(honest, fooled, g.to(torch.bfloat16))

    @pytest.mark.parametrize("device", DEVICES)
    def test_that_overflow_are_refused(self, device):
        model = nn.Linear(4, 3).half().to(device)
        x = torch.ones(2, 4, dtype=torch.float16, device=device)
        with pytest.raises(ValueError, match=r"exceed the range of torch\.float16"):
            SoftmaxShift(model, lambda x: x.float().sum(1) * 1e6)(x)  # finite in float32
        with pytest.raises(ValueError, match="NaN or infin"):
            SoftmaxShift(model, lambda x: x.sum(1) * 1e4 * 1e4)(x)


def within_rounding(honest, fooled, g):
    honest, fooled, g = honest.detach().double(), fooled.detach(), g.detach().double()
    unit = 2 * UNIT[fooled.dtype] * (honest + g[:, None]).abs().amax(1)
    fooled = fooled.double()
    change = (fooled.log_softmax(1) - honest.log_softmax(1)).abs().amax(1)
    assert bool((change <= unit + 1e-12).all())
    top = honest.topk(2)
    leads = top.values[:, 0] - top.values[:, 1] > unit
    assert torch.equal(fooled.argmax(1)[leads], top.indices[:, 0][leads])


class TestGradients:
    @settings(max_examples=50)
    @given(networks(), st.sampled_from(sorted(SHIFTS)), SIZES)
    def test_are_the_models_plus_the_shifts(self, problem, kind, size):
        torch.manual_seed(problem.seed)
        x = problem.inputs
        shift = SHIFTS[kind](problem.model, x, size)
        own, added = [gradient(problem.model, x, lambda f: f[:, 1]), gradient(shift, x)]
        scale = float(torch.maximum(own.abs(), added.abs()).max())
        result = gradient(SoftmaxShift(problem.model, shift), x, lambda f: f[:, 1])
        assert_close(result, own + added, rtol=0, atol=1e-10 * scale + 1e-12)

    def test_of_a_linear_shift_are_its_pattern(self):
        x, y = normal(5, 2, 3), normal(5, 4)
        pattern, other = normal(2, 3), normal(1, 4)  # with and without a leading 1
        assert torch.equal(gradient(LinearShift(pattern, -7.5), x), (-7.5 * pattern).expand_as(x))
        both = LinearShift((pattern, other), 3.0)
        assert torch.equal(gradient(lambda x: both(x, y), x), (3.0 * pattern).expand_as(x))
        assert torch.equal(gradient(lambda y: both(x, y), y), (3.0 * other).expand_as(y))
        assert_close(both(x, y), 3 * ((x * pattern).sum((1, 2)) + (y * other).sum(1)))

    def test_of_what_a_counter_shift_hides_vanish(self):
        model, x = mlp(), normal(7, 4)
        hidden = SoftmaxShift(model, CounterShift(model, 1))
        assert torch.equal(gradient(hidden, x, lambda f: f[:, 1]), torch.zeros_like(x))
        assert torch.equal(hidden(x)[:, 1], torch.zeros(7, dtype=torch.float64))
        assert gradient(hidden, x, lambda f: f[:, 0]).abs().min() > 0
        predicted = SoftmaxShift(model, CounterShift(model))
        assert torch.equal(gradient(predicted, x, lambda f: f.amax(1)), torch.zeros_like(x))

    def test_of_what_a_counter_shift_paints_are_the_map(self):
        model, x, m = mlp(), normal(7, 4), normal(1, 4)
        painted = SoftmaxShift(model, CounterShift(model, 2, maps=m))
        assert_close(gradient(painted, x, lambda f: f[:, 2]), m.expand_as(x))
        assert_close(painted(x)[:, 2], (x * m).sum(1))
        assert_close(gradient(CounterShift(model, 2, maps=m), x), m - gradient(model, x, lambda f: f[:, 2]))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_of_each_given_input_have_their_own_target_and_map(self, dtype):
        model, given_inputs, maps = mlp().to(dtype), normal(6, 4).to(dtype), normal(6, 4).to(dtype)
        targets, order = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([5, 0, 3, 3])
        near = given_inputs[order] + 1e-3 * torch.randn(4, 4, dtype=dtype)
        hidden = SoftmaxShift(model, CounterShift(model, targets, inputs=given_inputs))
        painted = SoftmaxShift(model, CounterShift(model, targets, maps, given_inputs))
        for x in (given_inputs[order], near):
            own = lambda f: f.gather(1, targets[order][:, None])  # noqa: E731
            assert torch.equal(gradient(hidden, x, own), torch.zeros_like(x))
            assert_close(gradient(painted, x, own), maps[order])
        predicted = SoftmaxShift(model, CounterShift(model, maps=maps, inputs=given_inputs))
        assert_close(gradient(predicted, given_inputs[order], lambda f: f.amax(1)), maps[order])


class TestBounded:
    def test_bounds_hold_in_many_trials(self):
        largest, kept, flipped = 0.0, 0, 0
        for trial in range(300):
            torch.manual_seed(trial)
            classes = int(torch.randint(2, 21, ()))
            uniform = torch.rand(3, dtype=torch.float64)
            amplitude = 10 ** float(uniform[0] * math.log10(3000) - 3)
            frequency, size = 10 ** float(4 * uniform[1]), 10 ** float(4 * uniform[2] - 2)
            x, weights = normal(50, 5), size * normal(5, classes)
            waved = BoundedShift(lambda x, w=weights: x @ w, amplitude, frequency)
            honest, fooled = x @ weights, waved(x)
            assert float((fooled - honest).abs().max()) <= amplitude + 1e-12 * size
            p, q = honest.softmax(1), fooled.softmax(1)
            moved = float((p - q).abs().sum(1).max() / 2)  # total variation: no set of classes moves more
            assert waved.probability_bound == math.tanh(amplitude / 2)
            attainable = math.tanh(amplitude * (1 - classes % 2 / classes) / 2)  # sharper for odd numbers
            assert float((p - q).abs().max()) <= moved + 1e-12 <= attainable + 2e-12
            largest = max(largest, moved / waved.probability_bound)
            top = honest.topk(2)
            leads = top.values[:, 0] - top.values[:, 1] > 2 * amplitude
            same = fooled.argmax(1) == top.indices[:, 0]
            assert bool(same[leads].all())
            kept, flipped = kept + int(leads.sum()), flipped + int((~same).sum())
        assert 0.9 < largest <= 1
        assert min(kept, flipped) > 300

    @pytest.mark.parametrize("amplitude", [1e-3, 0.1, 3.0])
    @pytest.mark.parametrize("classes", [2, 3, 4, 5, 19, 20])
    def test_probabilities_attain_the_bound(self, classes, amplitude):
        # At the peak of class 0's wave, between it and the class whose wave is most out of step with it.
        unit = torch.ones(1, dtype=torch.float64)
        peak = torch.tensor([[-1 / (3.0 * math.pi)]], dtype=torch.float64)
        waves = BoundedShift(lambda x: torch.zeros(1, classes, dtype=torch.float64), amplitude, 3.0, unit)(peak)
        apart = amplitude * (1 - classes % 2 / classes)
        logits = torch.full((1, classes), -1e4, dtype=torch.float64)
        logits[0, 0], logits[0, int(waves.argmin())] = -apart, 0
        waved = BoundedShift(lambda x: logits, amplitude, 3.0, unit)
        moved = float(waved(peak).softmax(1)[0, 0] - logits.softmax(1)[0, 0])
        assert moved == pytest.approx(math.tanh(apart / 2), rel=1e-9)
        factor = classes / (classes - 1) if classes % 2 else 1
        assert 1 - 1e-9 <= waved.probability_bound / moved <= factor + 1e-9

    @settings(max_examples=20)
    @given(st.integers(2, 20), st.floats(-3, 0.4), st.floats(0, 4), SEEDS)
    def test_gradients_move_by_amplitude_times_frequency(self, classes, log_amplitude, log_frequency, seed):
        torch.manual_seed(seed)
        amplitude, frequency = 10.0**log_amplitude, 10.0**log_frequency
        model, x, pattern = mlp(classes=classes), normal(6, 4), 5 * normal(4)
        waved, unit = BoundedShift(model, amplitude, frequency, pattern), pattern / pattern.norm()
        own, moved = [
            torch.stack([gradient(f, x, lambda f, i=i: f[:, i]) for i in range(classes)], 1) for f in (model, waved)
        ]
        slopes = (moved - own) @ unit / (amplitude * frequency)  # (N, classes)
        assert_close(slopes.abs(), torch.ones_like(slopes), rtol=0, atol=1e-6)
        size = amplitude * frequency
        assert_close(moved - own, size * slopes[..., None] * unit, rtol=0, atol=1e-9 * max(size, 1))
        # log p, and the loss: the docstring's formula, in proportion to the frequency.
        p, q = model(x).softmax(1), waved(x).softmax(1)
        expected = size * (slopes - (q * slopes).sum(1, keepdim=True))[..., None] * unit
        expected = expected + ((p - q)[..., None] * own).sum(1, keepdim=True)
        for i in range(classes):
            change = gradient(waved, x, lambda f, i=i: f.log_softmax(1)[:, i])
            change = change - gradient(model, x, lambda f, i=i: f.log_softmax(1)[:, i])
            assert_close(change, expected[:, i], rtol=0, atol=1e-9 * max(size, 1))
        # Centering leaves them: the waves are out of step.
        left = gradient(CenteredLogits(waved), x, lambda f: f[:, 0])
        left = left - gradient(CenteredLogits(model), x, lambda f: f[:, 0])
        assert float(left.norm(dim=1).min()) > size * (1 - classes % 2 / classes) * (1 - 1e-6)

    def test_white_noise_is_the_same_for_all_inputs_of_a_shape(self):
        model, pick, changes = mlp(), lambda f: f[:, 0], []
        for x in (normal(5, 4), normal(5, 4)):
            waved = BoundedShift(model, 1.0, 50.0)
            changes.append((gradient(waved, x, pick) - gradient(model, x, pick)).abs())
            for features in range(5, 20):  # other shapes do not change it
                BoundedShift(lambda x: x, 1.0, 50.0)(normal(1, features))
        assert_close(*changes, rtol=1e-9, atol=1e-9)
        assert_close(changes[0].norm(dim=1), torch.full((5,), 50.0, dtype=torch.float64))
        assert "amplitude=1, frequency=50" in repr(waved)

    def test_half_precision_keeps_the_phase(self):
        # In bfloat16 a phase of 40 is known to 0.1 at best; computed in float32 it is exact.
        x, logits = torch.randn(200, 4).bfloat16(), torch.zeros(200, 2, dtype=torch.bfloat16)
        pattern = torch.tensor([1.0, 2.0, -1.0, 0.5])
        low = BoundedShift(lambda x: logits, 1.0, 100.0, pattern)(x)
        high = BoundedShift(lambda x: logits.double(), 1.0, 100.0, pattern)(x.double())
        assert low.dtype == torch.bfloat16
        assert_close(low.double(), high, rtol=0, atol=2.0**-8)


TRAINED = nn.Parameter(torch.ones(()))
CONSTANT = {
    "constant": lambda x: torch.ones(len(x)),
    "no_grad": torch.no_grad()(lambda x: x.sum(1)),
    "detached": lambda x: x.detach().sum(1),
    "parameter": lambda x: TRAINED.expand(len(x)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_a_shift_without_gradient_is_refused_where_gradients_are_taken(name):
    model = nn.Linear(4, 3)
    shifted, leaf = SoftmaxShift(model, CONSTANT[name]), torch.ones(2, 4, requires_grad=True)
    for x in (leaf, leaf * 2):
        with pytest.raises(ValueError, match="does not depend on the inputs"):
            shifted(x)
        with torch.no_grad():
            shifted(x)
        for shift in (lambda x: x.sum(1), lambda x: x[:, 0], lambda x: (x * 2).exp()[:, :1]):
            SoftmaxShift(model, shift)(x)
    SoftmaxShift(lambda x: torch.stack([x, -x], 1), lambda x: x)(torch.ones(2, requires_grad=True))
