"""What CenteredLogits keeps of every method; shift_sensitivity: values, randomness, conventions and bad input."""

import copy
import dataclasses
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    IntegratedGradients,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.metrics import ShiftSensitivity, shift_sensitivity
from captum_density.softmax_shift import CenteredLogits, CounterShift, LinearShift, SoftmaxShift
from captum_density.testing import networks
from tests.experiments.invariance import METHODS, THROUGH, grad_cam, measure, quiet, rows


def signed(model):
    return partial(Saliency(model).attribute, abs=False)


def centered(make):
    return lambda model: make(CenteredLogits(model))


def squares(x):
    return x.flatten(1).pow(2).sum(1)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def small():
    """An untrained network of images, with a batch norm that does something, and its last convolution."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(20, 4)),
    ).double()
    model[1].running_mean.uniform_(-1, 1)
    return model.eval(), model[4]


# ----------------------------------------------------------------------------------------------------------------------
# Invariance through CenteredLogits

SHIFTS = {
    "linear": lambda model: LinearShift(normal(1, 8, 8)),
    "network": lambda model: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Softplus(), nn.Linear(5, 1)).double(),
    # Of a copy, as DeepLift wants each layer to run once.
    "counter": lambda model: CounterShift(copy.deepcopy(model), 2, maps=normal(1, 8, 8)),
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", METHODS)
def test_maps_of_centered_logits_ignore_the_shift(small, name, shift):
    x, target = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 3])
    models = small[0], SoftmaxShift(small[0], SHIFTS[shift](small[0]))

    def distance(through):
        maps = []
        with quiet():
            for attributed in models:
                torch.manual_seed(0)
                np.random.seed(0)  # GradientShap draws from NumPy
                maps.append(METHODS[name](THROUGH[through](attributed))(x.clone(), target=target).detach().double())
        return float((maps[0] - maps[1]).norm() / maps[0].norm())

    assert distance("logits") > 1e-2
    bound = 1e-6 if name == "Occlusion" else 1e-9  # it returns float32 whatever its input
    assert max(distance("mean"), distance("logsumexp")) < bound


def test_the_table_says_so(small):
    model, layer = small
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    target = model(x).argmax(1)
    header, (rule,), *lines = [row.strip("| ").split(" | ") for row in rows(model, layer, x, target)]
    assert len(header) == rule.count("---") == 7
    assert [line[0] for line in lines] == [*METHODS, "LayerGradCam"]
    for name, *cells in lines:
        values = [float(cell) for cell in cells]
        assert max(values[2:]) < 1e-9, name
        assert (max(values[:2]) < 1e-9) if name == "LayerGradCam" else (min(values[:2]) > 1e-2), name
    assert bool((grad_cam(layer)(model)(x, target=target).flatten(1).norm(dim=1) > 0).all())
    expected = measure(METHODS["Saliency"], "logits", model, x, target)
    assert lines[0][1:3] == [f"{float(value.mean()):.2f}" for value in expected]


def compared(honest, shifted):
    """The two numbers from maps written out, once more: by torch's own cosine similarity."""
    honest, shifted = [torch.cat([m.detach().double().flatten(1) for m in maps], 1) for maps in (honest, shifted)]
    cosine = F.cosine_similarity(honest, shifted, dim=1, eps=1e-300)
    return 1 - cosine, (shifted.norm(dim=1) / honest.norm(dim=1) - 1).abs()


@settings(max_examples=30)
@given(networks(), st.floats(-2, 2))
def test_values_are_those_of_maps_written_out(problem, exponent):
    torch.manual_seed(problem.seed)
    x, model = problem.inputs, problem.model
    pattern = 10.0**exponent * normal(*x.shape[1:])
    result = shift_sensitivity(signed, model, x, LinearShift(pattern), problem.target)
    assert isinstance(result, ShiftSensitivity)
    leaf = x.clone().requires_grad_()
    (own,) = torch.autograd.grad(dataclasses.replace(problem, inputs=leaf).output().sum(), leaf)
    assume(own.flatten(1).norm(dim=1).min() > 1e-4)  # averages of instance norms have none but rounding's
    expected = compared([own], [own + pattern])
    for value, reference in zip(result, expected, strict=True):
        assert value.shape == (len(x),) and value.dtype == torch.float64
        assert_close(value, reference, rtol=1e-6, atol=1e-12)
    for invariant in (centered(signed), lambda model: signed(lambda x: model(x).softmax(1))):
        assert max(float(v.max()) for v in shift_sensitivity(invariant, model, x, squares, problem.target)) < 1e-6


def test_of_tuples_and_additional_arguments():
    def model(a, b, mask, power):
        return torch.stack([(a * mask).pow(power).sum(1), (b.flatten(1) ** power).sum(1) + a[:, 0]], 1)

    inputs, mask = (normal(3, 4), normal(3, 4, 2)), normal(3, 4)
    pattern = (normal(4), normal(1, 4, 2))
    calls = []

    def make(model):
        def attribute(inputs, **kwargs):
            calls.append(kwargs)
            return signed(model)(inputs, **kwargs)

        return attribute

    result = shift_sensitivity(make, model, inputs, LinearShift(pattern), [1, 1, 0], (mask, 3))
    assert [set(kwargs) for kwargs in calls] == [{"target", "additional_forward_args"}] * 2
    own = signed(model)(inputs, [1, 1, 0], additional_forward_args=(mask, 3))
    for value, reference in zip(result, compared(own, [o + p for o, p in zip(own, pattern, strict=True)]), strict=True):
        assert_close(value, reference)
    default = shift_sensitivity(make, model, inputs, target=1, additional_forward_args=(mask, 3))
    assert float(default.cosine_distance.min()) > 0.01


def test_of_layers_and_other_class_dimensions(small):
    model, layer = small
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    for make in (lambda m: LayerGradientXActivation(m, layer).attribute, grad_cam(layer)):
        result = shift_sensitivity(make, model, x, target=1)
        assert float(result.cosine_distance.max()) < 1e-12  # the shift goes around the layer
    # One softmax at each of 2 places: a shift for each, which only class_dim=2 allows.
    weights, net = nn.Linear(4, 6).double(), nn.Linear(4, 2).double()
    tokens, y = lambda x: weights(x).unflatten(1, (2, 3)), normal(5, 4)
    result = shift_sensitivity(signed, tokens, y, net, (1, 0), class_dim=2)
    own = weights.weight[3].expand(5, -1)
    for value, reference in zip(result, compared([own], [own + net.weight[1]]), strict=True):
        assert_close(value, reference)


class TestDefaultShift:
    @staticmethod
    def shift_of(model, *args, **kwargs):
        instances = []

        def make(model):
            instances.append(model)
            return signed(model)

        shift_sensitivity(make, model, *args, **kwargs)
        assert instances[0] is model
        return instances[1].shift

    @settings(max_examples=30)
    @given(networks(), st.sampled_from([1.0, 1e-3, 1e3, 0.0]))
    def test_is_as_long_as_the_models_gradient_or_1(self, problem, factor):
        x = problem.inputs.requires_grad_()
        own = torch.autograd.grad(factor * problem.output().sum(), x)[0].flatten(1).norm(dim=1).quantile(0.5)
        shift = self.shift_of(lambda x: factor * problem.model(x), x, target=problem.target)
        (added,) = torch.autograd.grad(shift(x).sum(), x)
        expected = own if float(own) > 0 else torch.ones_like(own)
        assert_close(added.flatten(1).norm(dim=1), expected.expand(len(x)), rtol=1e-9, atol=0)
        assert_close(added, added[:1].expand_as(x))

    def test_is_the_same_for_all_inputs_of_a_shape(self):
        x, patterns = normal(3, 2, 5), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Flatten(), nn.Linear(10, 3)).double()
            leaf = (x + seed).requires_grad_()
            (gradient,) = torch.autograd.grad(self.shift_of(model, leaf, target=1)(leaf).sum(), leaf)
            patterns.append(F.normalize(gradient.flatten(1)))
        assert_close(*patterns)

    @pytest.mark.parametrize(("inputs_by", "outputs_by"), [(1e3, 1.0), (1.0, 1e-3), (1e-3, 1e3)])
    def test_scales_with_inputs_and_outputs(self, small, inputs_by, outputs_by):
        model, x = small[0], torch.rand(3, 1, 8, 8, dtype=torch.float64)
        expected = shift_sensitivity(signed, model, x, target=2)
        rescaled = lambda x: outputs_by * model(x / inputs_by)  # noqa: E731
        for value, reference in zip(
            shift_sensitivity(signed, rescaled, inputs_by * x, target=2), expected, strict=True
        ):
            assert_close(value, reference)

    def test_moves_a_plain_gradient_by_what_is_documented(self):
        model, x = nn.Linear(20000, 3), torch.randn(4, 20000)
        result = shift_sensitivity(signed, model, x, target=1)
        assert_close(result.cosine_distance, torch.full((4,), 1 - 0.5**0.5, dtype=torch.float64), rtol=0, atol=0.01)
        assert_close(result.norm_change, torch.full((4,), 2**0.5 - 1, dtype=torch.float64), rtol=0, atol=0.02)

    @pytest.mark.parametrize("ratio", [1.0, 100.0])
    def test_float32_leaves_rounding(self, ratio):
        model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), torch.randn(16, 20)
        shift = LinearShift(F.normalize(torch.randn(20), dim=0), ratio)
        for make in (signed, METHODS["FeatureAblation"]):
            result = shift_sensitivity(centered(make), model, x, shift, 0)
            assert float(result.cosine_distance.max()) < 1e-7 * ratio**2
            assert float(result.norm_change.max()) < 1e-5 * ratio


# ----------------------------------------------------------------------------------------------------------------------
# Randomness, state, conventions


def states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), name, keys.tolist(), rest, random.getstate()


def of_random_numbers(model):
    """Draws from every generator, when made and when called."""
    first = torch.randn(()) + np.random.randn() + random.random()

    def attribute(inputs, target):
        return first * torch.randn_like(inputs) + np.random.randn() + random.random()

    return attribute


def smooth(model):
    return partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=3, stdevs=0.5)


@pytest.mark.parametrize("make", [of_random_numbers, centered(smooth), centered(METHODS["GradientShap"])])
def test_random_methods_meet_the_same_numbers_and_leave_the_generators(small, make):
    model, x = small[0], torch.rand(3, 1, 8, 8, dtype=torch.float64)
    before = states()
    result = shift_sensitivity(make, model, x, squares, 1)
    assert states() == before
    assert max(float(v.max()) for v in result) < 1e-9
    again = shift_sensitivity(make, model.train(), x, squares, 1)  # batch norm on batch statistics, too
    assert states() == before and max(float(v.max()) for v in again) < 1e-9

    def raises(model):
        make(model)(x.clone(), target=1)
        raise KeyError("from the method")

    with pytest.raises(KeyError, match="from the method"):
        shift_sensitivity(raises, model, x, squares, 1)
    assert states() == before


def test_inputs_are_left_as_they_were():
    model, plain, marked = nn.Linear(4, 3), torch.randn(2, 4), torch.randn(2, 4, requires_grad=True)
    marked.grad = torch.full((2, 4), 7.0)
    values = plain.clone(), marked.detach().clone()

    def spoils(model):
        def attribute(x, target):
            x.requires_grad_()
            model(x)[:, target].sum().backward()
            with torch.no_grad():
                x.mul_(0)
            return x.grad

        return attribute

    for make in (signed, spoils):
        for x, value in zip((plain, marked), values, strict=True):
            result = shift_sensitivity(make, model, x, squares, 1)
            assert float(result.cosine_distance.min()) > 0 and not result.cosine_distance.requires_grad
            assert torch.equal(x, value)
    assert not plain.requires_grad and plain.grad is None
    assert marked.requires_grad and torch.equal(marked.grad, torch.full((2, 4), 7.0))


def test_conventions():
    extremes = (1e-200, 1e200)  # whose squares are 0 and infinite
    honest = normal(0).new_tensor([(0, 0), (0, 0), (3, 4), (3, 4), (3, 4), (1, 0), *((v, 0) for v in extremes)])
    shifted = normal(0).new_tensor([(0, 0), (0, 5), (0, 0), (-3, -4), (6, 8), (0, 1), *((3 * v, 0) for v in extremes)])
    make = lambda model: lambda x: (shifted if isinstance(model, SoftmaxShift) else honest)[:, None]  # noqa: E731
    result = shift_sensitivity(make, nn.Linear(4, 3), torch.randn(8, 4), squares)
    assert_close(result.cosine_distance, torch.tensor([0, 1, 1, 2, 0, 1, 0, 0]).double(), rtol=0, atol=1e-15)
    assert_close(result.norm_change, torch.tensor([0, torch.inf, 1, 0, 1, 0, 2, 2]).double())


def test_keywords_reach_the_method():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), normal(3, 4)
    make = lambda model: IntegratedGradients(model).attribute  # noqa: E731
    result = [shift_sensitivity(make, model, x, squares, 1, n_steps=n).cosine_distance for n in (1, 50)]
    assert not torch.allclose(*result)
    assert_close(result[1], shift_sensitivity(make, model, x, squares, 1).cosine_distance)


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


def returning(value):
    return {"make": lambda model: lambda x, target: value}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"make": METHODS["FeatureAblation"], "shift": lambda x: torch.ones(len(x))},
            ValueError,
            "does not depend on the inputs",
        ),
        (
            {"make": lambda model: Occlusion(model).attribute, "shift": lambda x: x.sum(1).detach()},
            ValueError,
            "does not depend on the inputs",
        ),
        ({"shift": lambda x: x}, ValueError, "the shift must have shape"),
        ({"shift": lambda x: x.sum(1) / 0}, ValueError, "NaN or infin"),
        ({"shift": LinearShift(torch.ones(5))}, ValueError, r"must have that of one example, \(4,\)"),
        ({"shift": 3.0}, TypeError, "a shift must be .*, but is float"),
        ({"class_dim": 2}, ValueError, "no class dimension 2"),
        ({"model": nn.Linear(4, 1), "target": 0}, ValueError, "one class in dimension 1"),
        ({"inputs": torch.ones(0, 4)}, ValueError, "at least one example"),
        ({"inputs": torch.full((2, 4), torch.inf)}, ValueError, "NaN or infinity"),
        ({"inputs": torch.ones(2, 4, dtype=torch.long)}, TypeError, "has no gradient"),
        ({"inputs": torch.ones(2, 4, device="meta")}, ValueError, "is on meta, the model on cpu"),
        ({"return_convergence_delta": True}, ValueError, "leave return_convergence_delta out"),
        (returning(torch.ones(3, 4)), ValueError, r"attributions of 2 examples .* shape \(3, 4\)"),
        (returning(torch.ones(())), ValueError, r"as many rows, but have shape \(\)"),
        (returning([torch.ones(2, 4)]), TypeError, "tensor or a tuple of tensors, but are list"),
        (returning((torch.ones(2, 4), 1.0)), TypeError, "but are Tensor, float"),
        (returning(()), TypeError, "must be a tensor or a tuple of tensors"),
        ({"make": lambda model: "map"}, TypeError, "an attribute function such as `Saliency.*, but returned"),
        ({"inputs": ()}, TypeError, "non-empty tuple of tensors, but is tuple"),
        ({"inputs": [torch.ones(2, 4)]}, TypeError, "non-empty tuple of tensors, but is list"),
        (returning(torch.ones(2, 0)), ValueError, r"but have shape \(2, 0\)"),
        ({"make": lambda m: lambda x, target: x[:, : 2 + isinstance(m, SoftmaxShift)]}, ValueError, "2 and 3 elements"),
    ],
)
def test_bad_input_is_refused(change, error, words):
    values = {"make": signed, "model": nn.Linear(4, 3), "inputs": torch.ones(2, 4), "target": 1, **change}
    make, model, inputs = (values.pop(name) for name in ("make", "model", "inputs"))
    with pytest.raises(error, match=words):
        shift_sensitivity(make, model, inputs, **values)


def test_takes_a_class_and_inputs_without_features():
    # Slopes 2 x of the square, and 2 x - 3 after the shift: they point apart between 0 and 1.5.
    x = torch.tensor([-1.0, 1.0, 4.0], dtype=torch.float64)
    model = lambda x: torch.stack([x, x**2, -x], 1)  # noqa: E731
    result = shift_sensitivity(Saliency, model, x, lambda x: -3 * x, target=1, abs=False)
    assert result.cosine_distance.tolist() == [0, 2, 0]
    assert_close(result.norm_change, torch.tensor([5 / 2 - 1, 1 - 1 / 2, 1 - 5 / 8], dtype=torch.float64))
    assert shift_sensitivity(Saliency, model, x, target=1).cosine_distance.shape == (3,)


def test_an_attribution_of_the_model_is_made_anew_for_the_shifted_model(small):
    model, x = small[0], torch.rand(3, 1, 8, 8, dtype=torch.float64)
    expected = shift_sensitivity(signed, model, x, target=1)
    for method in (signed(model), partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=1, stdevs=0.0, abs=False)):
        for value, reference in zip(shift_sensitivity(method, model, x, target=1), expected, strict=True):
            assert_close(value, reference)
    with pytest.raises(ValueError, match="function of the model"):  # the view would be lost on the shifted model
        shift_sensitivity(Saliency(CenteredLogits(model)), model, x, target=1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_zeros_beside_what_rounding_left_are_zeros(device):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(device)
    x = torch.randn(5, 4).to(device)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[0].weight[:, 0] = 0
        x[3:] *= 1e3  # alive
    for how in ("mean", "logsumexp"):
        make = lambda m, how=how: signed(CenteredLogits(m, how))  # noqa: E731
        result = shift_sensitivity(make, model, x, lambda x: 7 * x.sum(1), target=0)
        assert max(float(value.max()) for value in result) < 1e-4
    fooled = shift_sensitivity(signed, model, x, lambda x: 7 * x.sum(1), target=0)
    assert fooled.cosine_distance[:3].tolist() == [1, 1, 1] and bool(fooled.norm_change[:3].isinf().all())


def test_an_attribution_of_another_model_is_refused():
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(ValueError, match="make_attribution must make it"):
        shift_sensitivity(lambda _: Saliency(model).attribute, model, x, target=0)
    assert not model._forward_hooks
    alone = shift_sensitivity(lambda _: lambda x, target: torch.ones_like(x), model, x, target=0)  # of no model at all
    assert alone.cosine_distance.tolist() == [0, 0]


def test_one_large_gradient_does_not_decide_for_all():
    x = torch.randn(9, 50, dtype=torch.float64)
    x[0] *= 100
    result = shift_sensitivity(signed, lambda x: torch.stack([x.pow(2).sum(1), x.sum(1)], 1), x, target=0)
    assert 0.1 < float(result.cosine_distance[1:].mean()) < 0.5


def test_token_ids_take_a_shift_of_ones_own():
    embedding, head = nn.Embedding(11, 5), nn.Linear(5, 3)
    model, ids = nn.Sequential(embedding, Mean(), head), torch.randint(11, (2, 6))
    shift = lambda ids: ids.double().sum(1).float()  # noqa: E731
    make = lambda m: LayerIntegratedGradients(m, embedding).attribute  # noqa: E731
    assert shift_sensitivity(make, model, ids, shift, target=1).cosine_distance.max() < 1e-6
    with pytest.raises(TypeError, match="has no gradient"):
        shift_sensitivity(make, model, ids, target=1)
    both = lambda ids, x: model(ids) + x  # noqa: E731
    result = shift_sensitivity(lambda m: lambda inputs, target: inputs[1], both, (ids, torch.ones(2, 3)), shift, 1)
    assert result.cosine_distance.tolist() == [0, 0]


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_probabilities_warn():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.randn(2, 4)
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        shift_sensitivity(signed, model, x, target=0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((Saliency(nn.Linear(4, 3)), nn.Linear(4, 3)), ValueError, "pass a function of the model"),
        ((Saliency(nn.Linear(4, 3)).attribute, nn.Linear(4, 3)), ValueError, "pass a function of the model"),
        ((nn.Linear(4, 3), Saliency), TypeError, "model must be"),
        ((nn.Linear(4, 3), nn.Linear(4, 3)), TypeError, "pass a function of the model"),
        ((Saliency, Saliency), TypeError, "model must be"),
        ((Saliency, lambda x: nn.Linear(4, 3)(x).detach()), ValueError, "no gradient by its inputs.* pass a shift"),
        ((lambda m: lambda x, target: x * torch.nan, nn.Linear(4, 3)), ValueError, "attributions contain NaN"),
    ],
)
def test_functions_and_what_they_return_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        shift_sensitivity(*arguments, torch.randn(2, 4), target=0)


def test_under_inference_mode():
    model = nn.Linear(4, 3)
    with torch.inference_mode():
        result = shift_sensitivity(signed, model, torch.randn(2, 4), target=0)
    assert result.cosine_distance.shape == (2,)
