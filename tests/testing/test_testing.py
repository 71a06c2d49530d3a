"""The conformance suite passes what is right and fails what is broken, one attributor a check."""

import dataclasses
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from captum.attr import Attribution, GradientShap, LayerGradientXActivation, NeuronAttribution, Occlusion, Saliency
from captum.log import log_usage
from hypothesis import given, settings
from torch import Tensor, nn

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.testing import (
    CAPTUM_DEPARTURES,
    ConformanceError,
    assert_complete,
    attribution_checks,
    check_attribution,
    networks,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of calls on tensors of a few numbers: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def failing(make_attribution: Callable[[nn.Module], Attribution], **options: Any) -> set[str]:
    try:
        check_attribution(make_attribution, **options)
    except ConformanceError as error:
        return {failure.check for failure in error.failures}
    return set()


# ----------------------------------------------------------------------------------------------------------------------
# Attributors that do everything right, to be broken one law at a time


class Clean(Saliency):
    """The gradient, without Saliency's faults. `before` and `after` are where the others break it."""

    @log_usage()
    def attribute(self, inputs, target=None, additional_forward_args=None):
        return self.work(inputs, target, additional_forward_args)

    def work(self, inputs, target, args):
        single = isinstance(inputs, Tensor)
        arguments = (inputs,) if single else inputs
        self.before(arguments)
        points = tuple(x.detach().clone().requires_grad_() for x in arguments)
        gradients = self.gradient_func(self.forward_func, points, target, args)
        result = tuple(self.after(g.contiguous(), x.detach()) for g, x in zip(gradients, points, strict=True))
        return result[0] if single else result

    def before(self, inputs):
        """Broken attributors do their damage here, ahead of a bad target's or a model's exception."""

    def after(self, gradient, x):
        return gradient


class CleanDelta(Clean):
    """Input times gradient, with a convergence delta."""

    def has_convergence_delta(self):
        return True

    @log_usage()
    def attribute(self, inputs, target=None, additional_forward_args=None, return_convergence_delta=False):
        result = self.work(inputs, target, additional_forward_args)
        if not return_convergence_delta:
            return result
        return result, self.delta(result, inputs, target, additional_forward_args)

    def delta(self, result, inputs, target, args):
        return self.compute_convergence_delta(result, None, inputs, target=target, additional_forward_args=args)

    def after(self, gradient, x):
        return gradient * x


class Noisy(Clean):
    """The gradient at one noisy point."""

    def work(self, inputs, target, args):
        def add(x):
            return x + 0.1 * torch.randn_like(x)

        return super().work(add(inputs) if isinstance(inputs, Tensor) else tuple(map(add, inputs)), target, args)


def broken(base: type[Clean] = Clean, **methods: Callable[..., Any]) -> type[Clean]:
    return type("Broken", (base,), methods)


def with_target(change: Callable[[Any], Any]) -> type[Clean]:
    return broken(work=lambda self, inputs, target, args: Clean.work(self, inputs, change(target), args))


def first(target: Any) -> Any:
    return target[0] if isinstance(target, list) or (isinstance(target, Tensor) and target.dim()) else target


def refuse(kind: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def change(target: Any) -> Any:
        if kind(target):
            raise TypeError("refused")
        return target

    return change


class WrongError(Clean):
    def work(self, inputs, target, args):
        try:
            return super().work(inputs, target, args)
        except AssertionError as error:
            raise KeyError("target") from error


class NoGradient(Clean):
    """Runs its forward pass in the caller's grad mode."""

    def work(self, inputs, target, args):
        if not torch.is_grad_enabled():
            return torch.zeros_like(inputs) if isinstance(inputs, Tensor) else tuple(map(torch.zeros_like, inputs))
        return super().work(inputs, target, args)


class Swallows(Clean):
    def work(self, inputs, target, args):
        try:
            return super().work(inputs, target, args)
        except RuntimeError:
            return torch.zeros_like(inputs) if isinstance(inputs, Tensor) else tuple(map(torch.zeros_like, inputs))


class Undecorated(Clean):
    def attribute(self, inputs, target=None, additional_forward_args=None):
        return self.work(inputs, target, additional_forward_args)


class Accumulates(Clean):
    calls = 0

    def after(self, gradient, x):
        self.calls += 1
        return gradient * self.calls


class OnlyTensors(Clean):
    def before(self, inputs):
        if len(inputs) == 1 and len(inputs[0]) != 3 * 2:
            return
        raise ValueError("an expanded batch")


def leave_hook(self, inputs):
    next(self.forward_func.children()).register_forward_hook(lambda *_: None)


def write_parameter(self, inputs):
    with torch.no_grad():
        next(self.forward_func.parameters()).add_(0.1)


def write_grad(self, inputs):
    for parameter in self.forward_func.parameters():
        parameter.grad = torch.zeros_like(parameter)


def write_inputs(self, inputs):
    with torch.no_grad():
        inputs[0].add_(1.0)


STATE = {
    "hooks": leave_hook,
    "training_mode": lambda self, inputs: self.forward_func.eval(),
    "parameters": write_parameter,
    "requires_grad": lambda self, inputs: self.forward_func.requires_grad_(False),
    "grad": write_grad,
    "rng": lambda self, inputs: torch.rand(1),
    "inputs": write_inputs,
    "torch_settings": lambda self, inputs: torch._C._set_mkldnn_enabled(False),
}
BROKEN: dict[str, Callable[[nn.Module], Attribution]] = {
    "output_form": broken(work=lambda self, inputs, *rest: Clean.work(self, (inputs,), *rest)),
    "finite": broken(after=lambda self, gradient, x: gradient * (x / x)),
    "dtype": broken(after=lambda self, gradient, x: gradient.float()),
    "reduced_precision": broken(after=lambda self, gradient, x: gradient * torch.ones(x.shape[1:])),
    "device": broken(after=lambda self, gradient, x: gradient.to("meta")),
    "contiguous": broken(after=lambda self, gradient, x: torch.stack([gradient, gradient], -1)[..., 0]),
    "strided_inputs": broken(before=lambda self, inputs: [x.view(-1) for x in inputs]),
    "detached": broken(after=lambda self, gradient, x: gradient.requires_grad_()),
    "under_no_grad": NoGradient,
    "differentiable_inputs": broken(before=lambda self, inputs: [x.numpy() for x in inputs]),
    "frozen_parameters": broken(
        before=lambda self, _: next(p for p in self.forward_func.parameters() if p.requires_grad)
    ),
    "repeatable": Accumulates,
    "batch_independence": broken(after=lambda self, gradient, x: gradient / gradient.abs().max()),
    "target_forms": with_target(refuse(lambda target: isinstance(target, Tensor) and target.dim() == 0)),
    "target_tuples": with_target(lambda target: target[0] if isinstance(target, list) and target else target),
    "target_per_example": with_target(first),
    "target_used": with_target(lambda target: 0 if isinstance(target, int) else target),
    "target_none": with_target(refuse(lambda target: target is None)),
    "target_refused": WrongError,
    "additional_forward_args": broken(
        work=lambda self, inputs, target, args: Clean.work(self, inputs, target, args and args[:1])
    ),
    "model_error_propagates": Swallows,
    "noise_tunnel": Undecorated,
    "infidelity": broken(after=lambda self, gradient, x: gradient.sum(1, keepdim=True)),
    "sensitivity_max": OnlyTensors,
    "convergence_delta": broken(CleanDelta, delta=lambda self, *args: CleanDelta.delta(self, *args).mean()),
    "convergence_delta_value": broken(CleanDelta, delta=lambda self, *args: -CleanDelta.delta(self, *args)),
} | {
    f"{aspect}_after_{scenario}": broken(before=damage)
    for aspect, damage in STATE.items()
    for scenario in ("success", "bad_target", "raising_model")
}


# ----------------------------------------------------------------------------------------------------------------------
# check_attribution


def _departing(name):
    quick = name == "LayerGradientXActivation" or not name.startswith(("Layer", "Neuron", "Inter"))
    return name if quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [_departing(name) for name in CAPTUM_DEPARTURES])
def test_captum_departs_exactly_as_listed(name):
    # Strict: where Captum mends one, this says so, and CAPTUM_DEPARTURES loses a line.
    few = {"n_steps": 3} if name.endswith(("IntegratedGradients", "Conductance", "Influence")) else {}
    assert failing(getattr(captum.attr, name), attribute_kwargs=few) == set(CAPTUM_DEPARTURES[name])


class Pooled(LayerGradientXActivation):
    """Gradient times activation, summed over the layer's last dimension, and twice that for several inputs."""

    @log_usage()
    def attribute(self, inputs, target=None, additional_forward_args=None):
        return super().attribute(inputs, target, additional_forward_args).sum(-1)


class OtherLayer(LayerGradientXActivation):
    """Of what the layer takes, where what it returns is asked for."""

    @log_usage()
    def attribute(self, inputs, target=None, additional_forward_args=None):
        return super().attribute(inputs, target, additional_forward_args, attribute_to_layer_input=True)


@pytest.mark.parametrize("make", [Pooled, OtherLayer, lambda model, layer: Pooled(model, layer)])
def test_layer_methods_have_the_layers_shapes(make):
    checks = ("output_form", "target_forms", "hooks_after_success")
    assert check_attribution(LayerGradientXActivation, checks=checks) == checks
    assert failing(make, checks=checks) == {"output_form"}


def test_neuron_methods_have_the_inputs_shapes_and_no_target():
    ran = check_attribution(lambda model, layer: NeuronSaliency(model, layer), models=("mlp", "two_inputs"))
    assert {"output_form", "infidelity", "additional_forward_args"} <= set(ran)
    assert not [name for name in ran if name.startswith("target")]


class NeuronSaliency(NeuronAttribution):
    """The gradient of a neuron of two dimensions."""

    @log_usage()
    def attribute(self, inputs, neuron_selector, additional_forward_args=None):
        def neuron(*args):
            values = []
            handle = self.layer.register_forward_hook(lambda module, args, output: values.append(output))
            try:
                self.forward_func(*args)
            finally:
                handle.remove()
            return values[0]

        return Clean(neuron).attribute(inputs, neuron_selector, additional_forward_args)


def test_every_law_can_be_kept():
    ran = set(check_attribution(Clean)) | set(check_attribution(CleanDelta))
    assert ran == set(attribution_checks())


@pytest.mark.parametrize("name", attribution_checks())
def test_each_check_fails_an_attributor_broken_on_purpose(name):
    assert name in BROKEN, f"write an attributor that breaks {name}, so that the check has been seen to fail"
    with pytest.raises(ConformanceError) as caught:
        check_attribution(BROKEN[name], checks=(name,))
    assert {failure.check for failure in caught.value.failures} == {name}
    for failure in caught.value.failures:
        assert all(failure)
        assert failure.expected != failure.received
    text = str(caught.value)
    assert name in text
    assert attribution_checks()[name] in text
    assert caught.value.failures[0].mend in text


def test_a_broken_attributor_fails_only_its_own_check():
    for name in ("detached", "hooks_after_bad_target"):
        aspect = name.partition("_after_")[0]
        assert failing(BROKEN[name], models=("mlp", "cnn")) <= {other for other in BROKEN if other.startswith(aspect)}


def test_full_grad_keeps_every_law():
    assert set(check_attribution(partial(FullGrad, complete=True))) == set(attribution_checks())
    ran = check_attribution(FullGrad, models=("mlp", "cnn", "two_inputs"))
    assert set(attribution_checks()) - set(ran) == {"convergence_delta_value", "target_tuples"}


def test_simple_and_smooth_full_grad_keep_every_law():
    check_attribution(SimpleFullGrad, models=("mlp", "cnn"))
    check_attribution(SmoothFullGrad, models=("cnn", "two_inputs"), attribute_kwargs={"nt_samples": 2}, stochastic=True)


def patch_forward(self, inputs):
    self.forward_func.forward = self.forward_func.forward


def global_hook(self, inputs):
    nn.modules.module.register_module_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("aspect", "damage"),
    [
        ("hooks", global_hook),
        ("hooks", patch_forward),
        ("hooks", lambda self, inputs: list(self.forward_func.parameters())[-1].register_hook(lambda g: g)),
        ("hooks", lambda self, inputs: next(self.forward_func.children()).register_forward_pre_hook(lambda *_: None)),
        ("hooks", lambda self, inputs: next(self.forward_func.children()).register_full_backward_hook(lambda *_: None)),
        ("hooks", lambda self, inputs: [module._forward_hooks.clear() for module in self.forward_func.modules()]),
        ("hooks", lambda self, inputs: [setattr(m, "inplace", False) for m in self.forward_func.modules()]),
        ("training_mode", lambda self, inputs: self.forward_func.train()),
        ("requires_grad", lambda self, inputs: [x.requires_grad_() for x in inputs]),
        ("grad", lambda self, inputs: [setattr(x, "grad", None) for x in inputs]),
        ("grad", lambda self, inputs: [p.grad.add_(1) for p in self.forward_func.parameters() if p.grad is not None]),
        ("rng", lambda self, inputs: np.random.rand()),
        ("rng", lambda self, inputs: random.random()),
        ("torch_settings", lambda self, inputs: torch.set_grad_enabled(False)),
        ("torch_settings", lambda self, inputs: torch.set_default_dtype(torch.float64)),
    ],
)
def test_state_left_behind_in_other_ways_is_seen_and_put_back(aspect, damage):
    # That it is put back, conftest's fixture sees: it fails a test that leaves torch's global state changed.
    assert f"{aspect}_after_success" in failing(broken(before=damage), checks=(f"{aspect}_after_success",))


def test_a_convergence_delta_accepted_and_ignored_is_a_failure():
    class Ignores(Clean):
        @log_usage()
        def attribute(self, inputs, target=None, additional_forward_args=None, **ignored):
            return self.work(inputs, target, additional_forward_args)

    assert failing(Ignores) == {"convergence_delta"}


def test_what_an_attributor_does_not_take_is_not_checked():
    class Untargeted(Clean):
        @log_usage()
        def attribute(self, inputs):
            return self.work(inputs, 0, None)

    names = [name for name in attribution_checks() if name not in ("infidelity",)]
    ran = check_attribution(Untargeted, models=("mlp", "cnn"), checks=names)
    assert not {name for name in ran if "target" in name or name == "additional_forward_args"}
    assert {"batch_independence", "hooks_after_raising_model"} <= set(ran)


def test_a_stochastic_attributor_declares_itself():
    assert {"repeatable", "rng_after_success", "batch_independence"} <= failing(Noisy, models=("mlp",))
    assert failing(Noisy, stochastic=True) == set()


def test_attribute_kwargs_may_depend_on_the_inputs():
    # Found with this suite: GradientShap draws its noise in float32, so a bfloat16 model refuses it.
    def baselines(inputs):
        zeros = tuple(map(torch.zeros_like, inputs if isinstance(inputs, tuple) else (inputs,)))
        return {"baselines": zeros if isinstance(inputs, tuple) else zeros[0]}

    models = ("mlp", "two_inputs")
    assert failing(GradientShap, models=models, attribute_kwargs=baselines, stochastic=True) == {"reduced_precision"}


def test_a_method_for_images_is_checked_on_images():
    # Found with this suite: Occlusion gives float32 whatever the input; without a target it gives one attribution for
    # each output, as documented.
    windows = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)}
    result = failing(Occlusion, models=("cnn",), attribute_kwargs=windows)
    assert result == {"dtype", "reduced_precision", "target_refused"}


def test_checks_and_skip_select_by_name():
    names = tuple(CAPTUM_DEPARTURES["Saliency"])
    assert set(check_attribution(Saliency, models=("mlp", "cnn"), skip=names)).isdisjoint(names)
    assert check_attribution(Saliency, checks=("dtype", "device"), skip=("dtype",)) == ("device",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checks": ("dtype", "dtypes")}, "checks takes a collection of output_form, .*; received dtypes"),
        ({"checks": "dtype"}, "checks takes a collection"),
        ({"skip": ("hook",)}, "skip takes a collection of .*; received hook"),
        ({"models": ("resnet",)}, "models takes a collection of mlp, cnn, .*; received resnet"),
    ],
)
def test_unknown_names_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_attribution(Saliency, **options)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        (nn.Linear(2, 2), "pass a function of the model, such as Saliency"),
        (None, "pass a function of the model, such as Saliency"),
        (lambda model: nn.Linear(1, 1), "pass the attributor's class, or a function of the model"),
        (lambda model: partial(Saliency(model).attribute, abs=False), "options as attribute_kwargs"),
    ],
)
def test_what_makes_no_attribution_is_told_what_does(method, remedy):
    with pytest.raises(TypeError, match=remedy):
        check_attribution(method)


def test_an_attributor_is_made_anew_for_each_model():
    class Settings(Clean):
        def __init__(self, model, factor):
            super().__init__(model)
            self.factor = factor

        def after(self, gradient, x):
            return gradient * self.factor

    own = nn.Linear(7, 2)  # whose inputs are no built-in model's
    few = ("mlp", "cnn")
    assert check_attribution(Settings(own, 2.0), models=few) == check_attribution(Clean, models=few)
    assert failing(Settings(own, float("nan")), checks=("finite",)) == {"finite"}


def causes(make_attribution: Callable[[nn.Module], Attribution], **options: Any) -> list[str]:
    """The error's paragraphs but the first and the last: one for each cause."""
    with pytest.raises(ConformanceError) as caught:
        check_attribution(make_attribution, **options)
    return str(caught.value).split("\n\n")[1:-1]


@pytest.mark.parametrize(
    "attributor",
    [
        broken(work=lambda self, inputs, *_: inputs.nothing_of_the_kind),
        broken(work=lambda self, inputs, *_: None),
        broken(after=lambda self, gradient, x: gradient[:1]),
        broken(after=lambda self, gradient, x: gradient * float("nan")),
        broken(before=leave_hook),
    ],
    ids=["raises", "returns nothing", "loses examples", "NaN", "leaves a hook"],
)
def test_one_cause_is_reported_once_with_the_checks_it_fails(attributor):
    failed = failing(attributor, models=("mlp",))
    assert len(failed) > 2
    (paragraph,) = causes(attributor, models=("mlp",))
    assert all(name in paragraph for name in failed)
    assert paragraph.count("to mend it") == 1


def test_two_causes_are_reported_apart():
    attributor = broken(before=leave_hook, after=lambda self, gradient, x: gradient.float())
    dtypes, hooks = causes(attributor, checks=("dtype", "hooks_after_success", "hooks_after_bad_target"))
    assert "hooks_after" not in dtypes
    assert "hooks_after_success" in hooks
    assert "hooks_after_bad_target" in hooks


def test_an_exception_is_reported_with_the_line_that_raised_it():
    def work(self, inputs, target, args):
        raise ZeroDivisionError("here")

    line = work.__code__.co_firstlineno + 1
    (paragraph,) = causes(broken(work=work), checks=("output_form", "finite"))
    assert f"ZeroDivisionError: here (test_testing.py:{line})" in paragraph


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    failing(Noisy, models=("mlp", "cnn"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.cuda
@pytest.mark.parametrize("attributor", [Clean, CleanDelta])
def test_every_law_can_be_kept_on_a_gpu(attributor):
    check_attribution(attributor, device="cuda")


@pytest.mark.cuda
def test_moving_the_result_off_the_gpu_is_seen():
    assert failing(broken(after=lambda self, g, x: g.cpu()), device="cuda", checks=("device",)) == {"device"}


# ----------------------------------------------------------------------------------------------------------------------
# assert_complete


def full_gradients(model: nn.Sequential, x: Tensor) -> SimpleNamespace:
    """The decomposition of a Linear > ReLU > Linear network, written out by hand."""
    hidden, last = model[0], model[2]
    on = (hidden(x) > 0).to(x.dtype)
    gradient = (on * last.weight[0]) @ hidden.weight
    biases = {"0": on * last.weight[0] * hidden.bias, "2": last.bias.expand(len(x), 1)}
    return SimpleNamespace(output=model(x)[:, 0], inputs=(gradient * x,), biases=biases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_complete_terms_pass_in_every_dtype(dtype):
    model, x = nn.Sequential(nn.Linear(50, 60), nn.ReLU(), nn.Linear(60, 1)).to(dtype), torch.randn(8, 50, dtype=dtype)
    terms = full_gradients(model, x)
    assert_complete(terms)
    assert_complete(terms, model(x))
    assert_complete((*terms.inputs, *terms.biases.values()), terms.output)


@pytest.mark.parametrize("missing", ["0", "2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_missing_bias_is_noticed_and_the_worst_example_named(missing, dtype):
    model, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)).to(dtype), torch.randn(4, 5, dtype=dtype)
    terms = full_gradients(model, x)
    kept = [term for name, term in terms.biases.items() if name != missing]
    with pytest.raises(AssertionError, match=r"the terms of example \d sum to .* a gap of .* of 4 examples are out"):
        assert_complete((*terms.inputs, *kept), terms.output)
    with pytest.raises(AssertionError, match=r"example 2 .* 1 of 4 examples"):
        assert_complete(terms, terms.output + torch.tensor([0, 0, 1, 0]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_terms_that_are_not_finite_are_not_complete(value):
    with pytest.raises(AssertionError, match="example 1"):
        assert_complete(torch.tensor([[1.0], [value]]), torch.ones(2))


def test_rtol_is_relative_to_the_absolute_terms():
    terms = torch.tensor([[1000.0, -1000.0, 1.0]])
    assert_complete(terms, torch.tensor([2.0]), rtol=1e-3)
    with pytest.raises(AssertionError, match=r"a gap of 1, or 0\.0005 of"):
        assert_complete(terms, torch.tensor([2.0]), rtol=1e-4)
    assert_complete(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("terms", "output", "error", "words"),
    [
        ([1.0], torch.ones(1), TypeError, "must be a tensor, a tuple of tensors or full gradients; received list"),
        ((), torch.ones(1), TypeError, "batch dimension"),
        (torch.tensor(1.0), torch.ones(1), TypeError, "batch dimension"),
        (torch.ones(2, 3), None, TypeError, r"output must be a tensor \(N,\); received NoneType"),
        (torch.ones(2, 3), torch.ones(3), ValueError, r"output \(3,\) and terms \(2, 3\)"),
        ((torch.ones(2, 3), torch.ones(1, 3)), torch.ones(2), ValueError, r"terms \(2, 3\), \(1, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 4), ValueError, "Select the target's output first"),
    ],
)
def test_what_cannot_be_compared_is_refused(terms, output, error, words):
    with pytest.raises(error, match=words):
        assert_complete(terms, output)


# ----------------------------------------------------------------------------------------------------------------------
# networks


PARTS = {
    "piecewise_linear": {"ReLU", "PReLU", "BatchNorm1d", "addition", "concatenation"},
    "smooth": {"GELU", "Tanh", "SiLU", "product"},
    "convolutional": {"Conv2d", "MaxPool2d", "AdaptiveAvgPool2d", "addition in place"},
    "recurrent": {"RNN", "GRU", "LSTM"},
    "attention": {"DotProductAttention", "MultiheadAttention", "TransformerEncoderLayer", "LayerNorm"},
}


def test_every_kind_of_network_is_drawn_below():
    assert PARTS.keys() == set(inspect.signature(networks).parameters["kinds"].default)


@pytest.mark.parametrize("kind", PARTS)
def test_networks_run_differentiably_and_repeat(kind):
    parts = set()

    @settings(max_examples=60, database=None, derandomize=True)  # for the variety asserted at the end
    @given(networks([kind]))
    def test(problem):
        parts.update(getattr(module, "combination", type(module).__name__) for module in problem.model.modules())
        assert problem.kind == kind
        assert not problem.model.training
        assert problem.inputs.dtype == torch.float64
        problem.inputs.requires_grad_()
        output = problem.output()
        assert output.shape == problem.inputs.shape[:1]
        assert output.isfinite().all()
        assert torch.equal(output, problem.output())
        (gradient,) = torch.autograd.grad(output.sum(), problem.inputs)
        assert gradient.isfinite().all()
        singles = [problem.model(x[None]) for x in problem.inputs]
        torch.testing.assert_close(torch.cat(singles), problem.model(problem.inputs))

    test()
    assert PARTS[kind] <= parts


@settings(max_examples=30, database=None)
@given(networks(["piecewise_linear"]))
def test_piecewise_linear_networks_are(problem):
    # Between two points so near that no unit switches, the function is its own tangent.
    x = problem.inputs.requires_grad_()
    output = problem.output()
    (gradient,) = torch.autograd.grad(output.sum(), x)
    with torch.no_grad():
        step = 1e-7 * torch.randn_like(x)
        moved = dataclasses.replace(problem, inputs=x + step).output()
        torch.testing.assert_close(moved - output, (gradient * step).flatten(1).sum(1), rtol=0, atol=1e-12)


def test_networks_leave_the_random_state_alone_and_print_briefly():
    @settings(max_examples=5, database=None)
    @given(networks())
    def test(problem):
        assert torch.equal(torch.get_rng_state(), state)
        text = repr(problem)
        assert text.startswith(f"Problem({problem.kind}, ")
        assert "\n" not in text
        assert f"seed={problem.seed}" in text

    state = torch.get_rng_state()
    test()


def test_the_same_draw_gives_the_same_network():
    result = []

    @settings(max_examples=5, database=None, derandomize=True)
    @given(networks(dtype=torch.float32))
    def test(problem):
        result.append((repr(problem), problem.inputs, problem.model.state_dict()))

    test()
    half = len(result)
    torch.rand(1)
    test()
    for (text, inputs, state), (again, inputs_again, state_again) in zip(result[:half], result[half:], strict=True):
        assert text == again
        assert torch.equal(inputs, inputs_again)
        assert all(torch.equal(state[name], state_again[name]) for name in state)


@pytest.mark.parametrize("kinds", [(), ("linear",), "linear"])
def test_unknown_kinds_are_refused(kinds):
    with pytest.raises(ValueError, match="kinds takes a collection of piecewise_linear, smooth, "):
        networks(kinds)


def test_without_hypothesis_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"captum-density\[test\]"):
        networks()
