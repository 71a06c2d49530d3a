"""ShiftFooledGradient is Saliency on the shifted model, and keeps every law of an attribution."""

import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import ShiftFooledGradient
from captum_density.softmax_shift import (
    CounterShift,
    LinearShift,
    NetworkShift,
    Shift,
    SoftmaxShift,
)
from captum_density.testing import attribution_checks, check_attribution, networks
from tests.softmax_shift.test_shift_wrappers import TwoArguments, squares


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def saliency(model, inputs, target, **options):
    inputs = tuple(x.clone().requires_grad_() for x in inputs) if isinstance(inputs, tuple) else inputs.clone()
    return Saliency(model).attribute(inputs, target, **options)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_keeps_every_law(device):
    ran = check_attribution(lambda model: ShiftFooledGradient(model, squares), device=device)
    assert set(attribution_checks()) - set(ran) == {"convergence_delta_value"}  # there is no delta


@settings(max_examples=60)
@given(networks(), st.booleans())
def test_is_saliency_on_the_shifted_model(problem, absolute):
    torch.manual_seed(problem.seed)
    for shift in (squares, LinearShift(normal(*problem.inputs.shape[1:]), 5.0), CounterShift(problem.model)):
        attributions = ShiftFooledGradient(problem.model, shift).attribute(problem.inputs, problem.target, abs=absolute)
        shifted = SoftmaxShift(problem.model, shift)
        assert_close(
            attributions, saliency(shifted, problem.inputs, problem.target, abs=absolute), rtol=1e-9, atol=1e-10
        )
        assert absolute <= bool((attributions >= 0).all())


def test_absolute_values_are_the_default():
    model, x = TwoArguments().double().eval(), normal(3, 4)
    attribution = ShiftFooledGradient(model, lambda x: -100 * x.sum(1))
    assert bool((attribution.attribute(x, 0) > 0).all())
    assert bool((attribution.attribute(x, 0, abs=False) < 0).all())


@pytest.mark.parametrize("target", [1, torch.tensor(1), [0, 2, 1], torch.tensor([0, 2, 1])])
def test_every_form_of_target(target):
    model, x = TwoArguments().double().eval(), normal(3, 4)
    attributions = ShiftFooledGradient(model, squares).attribute(x, target, abs=False)
    assert_close(attributions, saliency(model, x, target, abs=False) + 2 * x)


@pytest.mark.parametrize(("dim", "target"), [(1, (1, 2, 0)), (2, (2, 1, 0)), (-1, [(2, 0, 1), (0, 1, 2)])])
def test_a_shift_for_each_of_several_softmaxes(dim, target):
    weights, net = nn.Linear(4, 27).double(), nn.Linear(4, 9).double()
    x, model = normal(2, 4), lambda x: weights(x).reshape(-1, 3, 3, 3)
    shift = lambda x: net(x).reshape(-1, 3, 3)  # noqa: E731
    attributions = ShiftFooledGradient(model, shift, dim).attribute(x, target)
    assert_close(attributions, saliency(SoftmaxShift(model, shift, dim), x, target))
    assert float((attributions - saliency(model, x, target)).abs().min()) > 0
    if dim == 1:
        assert not torch.allclose(attributions, ShiftFooledGradient(model, shift, 2).attribute(x, target))


def test_several_inputs_and_additional_arguments():
    def model(a, b, mask, power):
        return torch.stack([(a * mask).sum(1), (b.flatten(1) ** power).sum(1)], 1)

    class Both(Shift):
        def forward(self, a, b, mask, power):
            return a.pow(power).sum(1) + (b.sum(2) * mask).sum(1)

    inputs, args = (normal(3, 4), normal(3, 4, 2)), (normal(3, 4), 3)
    for shift in (
        Both(),
        squares,
        LinearShift((normal(4), normal(4, 2))),
        NetworkShift(lambda a, b: (a @ b[0])[:, 0], 2),
    ):
        attributions = ShiftFooledGradient(model, shift).attribute(inputs, 1, additional_forward_args=args)
        assert isinstance(attributions, tuple)
        shifted = SoftmaxShift(model, shift)
        for f, e in zip(attributions, saliency(shifted, inputs, 1, additional_forward_args=args), strict=True):
            assert_close(f, e)
    assert_close(
        attributions[1][1:], saliency(model, inputs, 1, additional_forward_args=args)[1][1:]
    )  # reads b[0] alone


def test_under_a_noise_tunnel():
    model, x = TwoArguments().eval(), torch.randn(3, 4)
    maps = []
    for method in (ShiftFooledGradient(model, squares), Saliency(SoftmaxShift(model, squares))):
        torch.manual_seed(1)
        maps.append(NoiseTunnel(method).attribute(x, target=1, nt_samples=4, stdevs=0.5, abs=False))
    assert_close(*maps)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"forward_func": "model"}, TypeError, "must be a torch.nn.Module or a function, but is str"),
        ({"shift": 3.0}, TypeError, "a shift must be .*, but is float"),
        ({"forward_func": lambda x: [x]}, TypeError, "the model returned list"),
        ({"shift": lambda x: x.sum(1).long()}, TypeError, r"the shift returned torch\.int64"),
        ({"shift": lambda x: x}, ValueError, "the shift must have shape"),
        ({"shift": lambda x: x.sum(1).detach()}, ValueError, "does not depend on the inputs"),
        ({"shift": lambda x: x.sum(1) / 0}, ValueError, "NaN or infin"),
        ({"shift": lambda x: torch.zeros(2, device="meta")}, ValueError, "the shift is on meta"),
        ({"shift": LinearShift(torch.ones(5))}, ValueError, r"must have that of one example, \(4,\)"),
        ({"inputs": torch.ones(2, 4, dtype=torch.long)}, TypeError, "has no gradient"),
        ({"inputs": [torch.ones(2, 4)]}, TypeError, "but is list"),
        ({"inputs": torch.ones(0, 4)}, ValueError, "at least one example"),
        ({"inputs": torch.full((2, 4), torch.nan)}, ValueError, "NaN or infinity"),
        ({"inputs": torch.ones(2, 4, device="meta")}, ValueError, "input 0 is on meta, the model on cpu"),
        ({"target": None}, AssertionError, "Target not provided"),
    ],
)
def test_bad_input_is_refused_by_shift_fooled_gradient(change, error, words):
    given_values = {
        "forward_func": nn.Linear(4, 3),
        "shift": squares,
        "inputs": torch.ones(2, 4),
        "target": 1,
        **change,
    }
    with pytest.raises(error, match=words):
        ShiftFooledGradient(given_values["forward_func"], given_values["shift"]).attribute(
            given_values["inputs"], given_values["target"]
        )
