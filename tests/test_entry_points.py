"""NumPy arrays work wherever tensors do, data sets and loaders wherever pairs do: each public entry point, once."""

import copy
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset

import captum_density
from captum_density import (
    attr,
    datasets,
    density,
    ground_truth,
    losses,
    metrics,
    plots,
    retraining,
    rewriting,
    samplers,
    softmax_shift,
    testing,
)
from captum_density.audit import Retraining, audit
from captum_density.rules import BalancedGradients

torch.manual_seed(0)
X, NEAR, Y, SCALE = torch.randn(4, 6), torch.randn(4, 6), torch.arange(4) % 3, torch.rand(4, 3) + 0.5
IMAGES, LABELS, KEPT = torch.rand(6, 1, 4, 4), torch.arange(6) % 2, torch.rand(6, 1, 4, 4) > 0.5
TOKENS, PLANE = torch.randn(3, 5, 8), torch.randn(30, 2) @ torch.randn(2, 6)
EACH, OTHERS, AGAIN, ONE = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1]), torch.tensor(1)
PAIR, TWO, BLOCK = torch.tensor([[0, 1]]), torch.tensor([0, 2]), torch.tensor([0.6, 0.8, 0.0])
FRACTIONS, RADII = torch.tensor([0.0, 0.5]), torch.tensor([0.1, 0.2])
HALVES = torch.tensor([[0, 0, 0, 1, 1, 1]])
GROUPS, RANKS = torch.arange(16).view(1, 4, 4), torch.arange(16).repeat(6, 1)
COLUMNS, SENTENCE = torch.rand(4, 10), ground_truth.SubjectVerbAgreement().examples(1).inputs[0]
NETWORK = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
LAYER = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
GENERATOR = "cpu"
LANGUAGE = nn.Sequential(LAYER, nn.Linear(8, 4)).eval()
READER = nn.Sequential(LAYER, nn.Flatten(), nn.Linear(40, 3)).eval()


def model(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    y: torch.Tensor = NETWORK(x)
    return y if scale is None else y * scale


def last_layer() -> nn.Module:
    return [*NETWORK.children()][-1]


def symmetric(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x.sum(1, keepdim=True) * scale


def backwards(t: torch.Tensor) -> np.ndarray[Any, Any]:
    """The same numbers in an array that PyTorch can neither share nor write to."""
    array = np.ascontiguousarray(t.numpy()[::-1])[::-1] if t.ndim else t.numpy().copy()
    array.flags.writeable = False
    return array


def generator() -> torch.Generator:
    return torch.Generator(GENERATOR).manual_seed(0)


def linear() -> nn.Linear:
    return nn.Linear(6, 3, device="cpu")


def seeded_linear() -> nn.Linear:
    torch.manual_seed(0)
    return linear()


def call(loss: nn.Module, t: Any) -> Any:
    return loss(model, t(X), t(Y), t(SCALE))


def erased(t: Any) -> Any:
    with attr.erase_attention(READER, "0.self_attn", t(OTHERS), query=t(AGAIN)):
        return READER(TOKENS)


def drawn(picture: Any) -> list[np.ndarray[Any, Any]]:
    plt.close(picture)
    return [np.asarray(shown.get_array(), dtype=float) for axes in picture.axes for shown in axes.get_images()] + [
        line.get_xydata() for axes in picture.axes for line in axes.get_lines()
    ]


def shifted(shift: Any) -> Any:
    return softmax_shift.SoftmaxShift(NETWORK, shift)(X)


FIT = retraining.FitConfig(epochs=1, batch_size=4)
# What has arguments for tensors, by its qualified name, called with each of them made by `t`.
CALLS = {
    "AttentionWeights.attribute": lambda t: attr.AttentionWeights(READER, "0.self_attn").attribute(
        t(TOKENS), query=t(EACH)
    ),
    "AttentionGradient.attribute": lambda t: attr.AttentionGradient(READER, "0.self_attn").attribute(
        t(TOKENS), t(EACH), query=t(ONE)
    ),
    "CompleteDeepLift.attribute": lambda t: attr.CompleteDeepLift(model).attribute(t(X), t(NEAR), t(Y), t(SCALE)),
    "CompleteDeepLiftShap.attribute": lambda t: attr.CompleteDeepLiftShap(model).attribute(
        (t(X),), (t(NEAR),), t(Y), (t(SCALE),)
    ),
    "CompleteDeepLiftShap, its function": lambda t: attr.CompleteDeepLiftShap(model).attribute(X, lambda: t(NEAR), Y),
    "FullGrad.attribute": lambda t: attr.FullGrad(model).attribute(t(X), t(Y), t(SCALE)),
    "FullGrad.compute_convergence_delta": lambda t: attr.FullGrad(model, complete=True).compute_convergence_delta(
        t(NEAR), t(X), t(Y), t(SCALE)
    ),
    "FullGrad.decompose": lambda t: attr.FullGrad(model).decompose(t(X), t(Y), t(SCALE)).inputs,
    "LayerCompleteDeepLift.attribute": lambda t: attr.LayerCompleteDeepLift(model, last_layer()).attribute(
        t(X), t(NEAR), t(Y), t(SCALE)
    ),
    "LayerFullGrad.attribute": lambda t: attr.LayerFullGrad(model, last_layer()).attribute(t(X), t(Y), t(SCALE)),
    "LayerFullGrad.compute_convergence_delta": lambda t: attr.LayerFullGrad(
        model, last_layer(), complete=True
    ).compute_convergence_delta(t(NEAR), t(X), t(Y), t(SCALE)),
    "LayerFullGrad.decompose": lambda t: attr.LayerFullGrad(model, last_layer()).decompose(t(X), t(Y), t(SCALE)).layer,
    "LayerPathIntegratedGradients.attribute": lambda t: attr.LayerPathIntegratedGradients(
        model, last_layer()
    ).attribute(t(X), t(NEAR), t(Y), t(SCALE), return_convergence_delta=True),
    "LayerShiftFooledGradient.attribute": lambda t: attr.LayerShiftFooledGradient(
        model, last_layer(), lambda z, *_: z.sum(1)
    ).attribute(t(X), t(Y), additional_forward_args=t(SCALE)),
    "NeuronFullGrad.attribute": lambda t: attr.NeuronFullGrad(model, last_layer()).attribute(t(X), 1, t(SCALE)),
    "LogitLedger.attribute": lambda t: (
        attr.LogitLedger(LANGUAGE).attribute(inputs_embeds=t(TOKENS), targets=t(EACH)).table()
    ),
    "PathIntegratedGradients.attribute": lambda t: attr.PathIntegratedGradients(model).attribute(
        t(X), t(NEAR), t(Y), t(SCALE), return_convergence_delta=True
    ),
    "PiecewiseLinearPath.__init__": lambda t: attr.PathIntegratedGradients(
        model, attr.PiecewiseLinearPath(t(NEAR[None]))
    ).attribute(X, target=Y),
    "PowerPath.__init__": lambda t: attr.PathIntegratedGradients(model, attr.PowerPath(t(1 + X[0].abs()))).attribute(
        X, target=Y
    ),
    "ShiftFooledGradient.attribute": lambda t: attr.ShiftFooledGradient(
        model, softmax_shift.LinearShift(NEAR[0])
    ).attribute(t(X), t(Y), additional_forward_args=t(SCALE)),
    "SimpleFullGrad.attribute": lambda t: attr.SimpleFullGrad(model).attribute(t(X), t(Y), t(SCALE)),
    "SmoothFullGrad.attribute": lambda t: attr.SmoothFullGrad(model).attribute(
        t(X), t(Y), t(SCALE), generator=generator()
    ),
    "erase_attention": erased,
    "BlockImages.__init__": lambda t: datasets.BlockImages(t(IMAGES), t(LABELS))[3],
    "feature_leakage": lambda t: datasets.feature_leakage(4, 2, 3, u=t(BLOCK)),
    "KnownFunction.function": lambda t: ground_truth.KnownFunction.function(t(COLUMNS)),
    "KnownFunction.shapley_values": lambda t: ground_truth.KnownFunction.shapley_values(t(COLUMNS)),
    "SubjectVerbAgreement.words": lambda t: ground_truth.SubjectVerbAgreement.words(t(SENTENCE)),
    "class_log_density": lambda t: density.class_log_density(model, t(X), t(Y), t(SCALE)),
    "class_score": lambda t: density.class_score(model, t(X), t(Y), t(SCALE)),
    "hessian_trace": lambda t: density.hessian_trace(model, t(X), t(Y), "exact", additional_forward_args=t(SCALE)),
    "marginal_log_density": lambda t: density.marginal_log_density(model, t(X), t(SCALE)),
    "marginal_score": lambda t: density.marginal_score(model, t(X), t(SCALE)),
    "DensityLoss.forward": lambda t: call(losses.GradientNormLoss(), t),
    "TransferLoss.forward": lambda t: call(losses.JacobianMatchingLoss(lambda x, scale: x[:, :3]), t),
    "FoolingLoss.__init__": lambda t: call(losses.FoolingLoss(t(NEAR[:1])), t),
    "FoolingLoss, its function": lambda t: losses.FoolingLoss(target_maps=lambda x: t(NEAR))(model, X, Y),
    "ContrastiveDivergenceLoss.__init__": lambda t: losses.ContrastiveDivergenceLoss(
        0.1, 2, bounds=(t(X.amin(0)), 9.0), generator=generator()
    )(model, t(X)),
    "attention_erasure": lambda t: metrics.attention_erasure(
        READER, "0.self_attn", t(TOKENS), query=t(EACH)
    ),
    "common_gradient": lambda t: metrics.common_gradient(model, t(X), t(SCALE)),
    "finite_difference_gap": lambda t: metrics.finite_difference_gap(model, t(X), t(Y), t(SCALE)),
    "off_manifold_gradient": lambda t: metrics.off_manifold_gradient(model, t(X), t(PLANE), t(Y), t(SCALE)),
    "fraction_to_flip": lambda t: metrics.fraction_to_flip(
        READER, "0.self_attn", t(TOKENS), rankings={"mine": t(TOKENS[:, :, 0])}, query=t(ONE)
    )[1:],
    "density_ratio": lambda t: metrics.density_ratio(
        model, t(X), t(RADII), None, t(SCALE), t(Y), generator=generator()
    ),
    "density_ratio, its perturb_func": lambda t: metrics.density_ratio(model, X, perturb_func=lambda x: t(x + 1)),
    "gan_test": lambda t: metrics.gan_test(model, t(X), t(Y), t(SCALE)),
    "completeness_gap": lambda t: metrics.completeness_gap(model, t(X), t(NEAR), t(0 * X), t(SCALE), t(Y)),
    "implementation_gap": lambda t: metrics.implementation_gap(
        Saliency, model, lambda x, scale: NETWORK(x) * scale, t(X), t(NEAR), t(SCALE), t(Y)
    ),
    "sensitivity_gap": lambda t: metrics.sensitivity_gap(
        Saliency(model), model, t(X), t(NEAR), t(SCALE), t(Y), features=t(TWO)
    ),
    "sensitivity_gap, its function": lambda t: metrics.sensitivity_gap(lambda x: t(NEAR), model, X, NEAR, target=Y),
    "symmetry_gap": lambda t: metrics.symmetry_gap(
        Saliency(symmetric), symmetric, t(X[:, :1].repeat(1, 6)), t(PAIR), t(0 * X), t(SCALE), t(Y)
    ),
    "kernel_stein_discrepancy": lambda t: metrics.kernel_stein_discrepancy(lambda x: t(-x), t(X)),
    "pixel_perturbation": lambda t: metrics.pixel_perturbation(
        model, t(X), t(NEAR), t(0 * X[:1]), t(SCALE), t(Y), channels="singly", fractions=t(FRACTIONS)
    ),
    "group_perturbation": lambda t: metrics.group_perturbation(
        model, t(X), t(NEAR), t(0 * X[:1]), t(SCALE), t(Y), feature_mask=t(HALVES), fractions=t(FRACTIONS)
    ),
    "in_domain_single_deletion": lambda t: metrics.in_domain_single_deletion(
        model, t(X), t(NEAR), t(0 * X[:1]), t(SCALE), t(Y), feature_mask=t(HALVES)
    ),
    "patch_mask": lambda t: metrics.patch_mask(t(IMAGES), 2),
    "parameter_randomisation": lambda t: metrics.parameter_randomisation(
        Saliency, model, t(X), t(Y), t(SCALE)
    ).layers,  # other weights are drawn on a GPU
    "random_weights_map": lambda t: metrics.random_weights_map(
        Saliency, model, t(X), t(Y), t(SCALE)
    ).shape,  # as above
    "control_maps": lambda t: [
        *metrics.control_maps(t(IMAGES), t(IMAGES - 0.5), t(0 * IMAGES[:1]), t(LABELS)).values()
    ],
    "compare_with_controls": lambda t: metrics.compare_with_controls(
        lambda maps: maps.flatten(1).mean(1), t(IMAGES), {"a": t(IMAGES - 0.5)}
    ).values,
    "pointing_game": lambda t: metrics.pointing_game(t(IMAGES), t(KEPT)),
    "relevance_mass": lambda t: metrics.relevance_mass(t(IMAGES), t(KEPT)),
    "relevance_rank": lambda t: metrics.relevance_rank(t(IMAGES), t(KEPT)),
    "shift_sensitivity": lambda t: metrics.shift_sensitivity(Saliency, model, t(X), None, t(Y), t(SCALE)),
    "signal_block_share": lambda t: metrics.signal_block_share(t(IMAGES), t(KEPT)),
    "density_ratio_curves": lambda t: drawn(
        plots.density_ratio_curves(t(RADII), {"a": t(X[:2]), "b": t(NEAR[:2])})
    ),
    "saliency_grid": lambda t: drawn(plots.saliency_grid(t(IMAGES), {"a": t(IMAGES - 0.5)})),
    "sample_grid": lambda t: drawn(plots.sample_grid({"a": t(IMAGES)})),
    "noisy_linear_imputation": lambda t: retraining.noisy_linear_imputation(t(IMAGES), t(KEPT), noise_std=0),
    "pgd": lambda t: retraining.pgd(
        NETWORK, t(X), t(Y), norm="linf", radius=0.1, bounds=(t(X.amin(0)), t(X.amax())), random_start=False
    ),
    "adversarial_fit": lambda t: retraining.adversarial_fit(
        linear, (t(X), t(Y)), radius=0.1, bounds=(t(X.amin(0)), t(X.amax())), fit=FIT
    ).weight,
    "single_deletion": lambda t: retraining.single_deletion(t(X), t(HALVES), t(NEAR[0]), generator=generator()),
    "random_deletion": lambda t: retraining.random_deletion(t(X), 0.5, t(HALVES), t(NEAR[0]), generator=generator()),
    "Examples.__init__": lambda t: (
        (examples := retraining.Examples(
            (t(IMAGES), t(LABELS)), (t(IMAGES), t(LABELS)), groups=t(GROUPS), fill=t(IMAGES[0]),
            ranks=(t(RANKS), t(RANKS)),
        )) and [result.correct for result in retraining.fit_many(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2, device="cpu")), [retraining.Job(examples, (0, 8))],
            fit=FIT,
        )]
    ),
    "diff_roar, its functions": lambda t: metrics.diff_roar(
        linear, (X, Y), (X, Y), {"a": lambda x: t(x)}, baselines=lambda x, kept, generator: t(0 * x),
        fractions=[0.5], runs=1, fit=FIT, controls=["random"],
    ).correct,
    "Sampler.sample": lambda t: samplers.LangevinSampler(model, 0.1, 2, generator=generator()).sample(
        t(X), t(Y), t(SCALE)
    ).samples,
    "LangevinSampler.__init__": lambda t: samplers.LangevinSampler(
        model, 0.1, 2, bounds=(t(X.amin(0)), 9.0), generator=generator()
    ).sample(X).samples,
    "LangevinSampler, adjusted": lambda t: samplers.LangevinSampler(
        model, 0.1, 2, metropolis=True, bounds=(t(X.amin(0) - 1), 9.0), generator=generator()
    ).sample(X).samples,
    "ActivationMaximization.__init__": lambda t: samplers.ActivationMaximization(
        model, 0.1, 2, reference=t(NEAR), decay=1.0, bounds=(t(X.amin(0)), 9.0)
    ).sample(X, Y).samples,
    "LinearShift.__init__": lambda t: shifted(softmax_shift.LinearShift(t(NEAR[0]))),
    "BoundedShift.__init__": lambda t: softmax_shift.BoundedShift(NETWORK, 1.0, 2.0, pattern=t(NEAR[0]))(X),
    "CounterShift.__init__": lambda t: shifted(softmax_shift.CounterShift(NETWORK, t(Y), t(NEAR), t(X))),
    "assert_complete": lambda t: testing.assert_complete(t(X), t(X.sum(1))),
    "audit": lambda t: audit(
        NETWORK, (t(X), t(Y)), ["Saliency"], metrics=["completeness_gap"], target=t(Y)
    ).methods["Saliency"]["completeness_gap"].value,
}  # fmt: skip
# Data, each of them a pair, a data set or a loader.
DATA = {
    "audit": lambda data: audit(NETWORK, data, ["InputXGradient"], metrics=["completeness_gap"], limit=None).to_json(),
    "Retraining": lambda data: Retraining(nn.Linear, data, data).gathered(0)[0].train,
    "Examples": lambda data: retraining.Examples(data, data).splits,
    "adversarial_fit": lambda data: retraining.adversarial_fit(
        linear, data, radius=0.1, fit=FIT
    ).weight,
    "f_fidelity": lambda data: metrics.f_fidelity(
        seeded_linear(), data, data, {"a": lambda x: x}, runs=1, n_samples=2, beta=0.4, fit=FIT
    ).right,
    "fine_tune": lambda data: retraining.fine_tune(
        seeded_linear(), data, lambda x, generator: x + 1, fit=FIT
    ).weight,
    **{
        name: lambda data, metric=metric: metric(
            linear, data, data, {"saliency": lambda x: x}, fractions=[0.5], runs=1, fit=FIT,
            controls=["random"],
        ).correct
        for name, metric in (("diff_roar", metrics.diff_roar), ("roar", metrics.roar), ("kar", metrics.kar))
    },
}  # fmt: skip
# Has tensors in its signature, and is not to be called with data: why, and what.
SPARED = {
    "a result, which its function makes": {
        "FullGradients.__init__", "Ledger.__init__", "LayerFullGradients.__init__", "RetrainingResult.__init__",
        "JobResult.__init__", "AuditReport.__init__", "Problem.__init__", "TaskExamples.__init__", "Effects.__init__",
        "Examination.__init__", "GroundTruthTable.__init__", "FFidelity.__init__", "ControlComparison.__init__",
    },
    "called by an attribution, with tensors": {
        f"{path}.{method}"
        for path in ("Path", "StraightPath", "PowerPath", "PiecewiseLinearPath", "FunctionPath")
        for method in ("points", "derivatives", "legs")
    },
    "called by a model, with its logits": {"Shift.add_to"},
    "called by a metric, with tensors": {"Trial.output", "Trial.scores", "Trial.spread"},
}  # fmt: skip
_TENSORS = re.compile(r"\bTensor|TargetType|BaselineType|\bMaps\b|\bBounds\b|\bPlace\b|\bData\b|\bArray\b")


def entry_points() -> set[str]:
    """The public functions and methods whose signatures have tensors in them, callables aside."""
    names = set()
    for namespace in captum_density._NAMESPACES:
        module = importlib.import_module(f"captum_density.{namespace}")
        for public in (getattr(module, name) for name in module.__all__):
            functions = [value for _, value in inspect.getmembers(public)] if inspect.isclass(public) else [public]
            functions = [f for f in functions if inspect.isfunction(f) and f.__module__.startswith("captum_density")]
            for function in functions:
                types = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
                types = [re.sub(r"Callable\[.*?\](?!\])(?:, \w+\])?", "", type) for type in types]
                hidden = function.__name__.startswith("_") and function.__name__ != "__init__"
                if not hidden and any(map(_TENSORS.search, types)):
                    names.add(function.__qualname__)
    return names - set.union(*SPARED.values())


def test_every_entry_point_is_called_here():
    assert not entry_points() - {*CALLS, *DATA}
    assert not set.union(*SPARED.values()) & {*CALLS, *DATA}


def same(received: Any, expected: Any) -> None:
    if isinstance(expected, str):
        assert received == expected
    elif isinstance(expected, tuple) and not isinstance(received, torch.Tensor):
        for one, other in zip(received, expected, strict=True):
            same(one, other)
    elif expected is not None:
        assert_close(received, expected, rtol=0, atol=0, equal_nan=True)


def check_arrays(name: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays give what tensors give, whatever device tensors are made on that do not say where they are."""
    expected = CALLS[name](lambda t: t)
    torch.manual_seed(0)
    for module in (torch.cuda, torch.cuda.random):  # once initialised, no process can be forked that uses a GPU
        monkeypatch.setattr(module, "_lazy_init", lambda: pytest.fail("a GPU is initialised for what is on the CPU"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with torch.device(default):
        received = CALLS[name](backwards)
    same(received, expected)


@pytest.mark.parametrize("name", CALLS)
def test_arrays_give_what_tensors_give(name, monkeypatch):
    check_arrays(name, "meta", monkeypatch)  # where tensors have no numbers


@pytest.mark.cuda
@pytest.mark.parametrize("name", CALLS)
def test_what_is_on_the_cpu_uses_no_gpu(name, monkeypatch):
    check_arrays(name, "cuda", monkeypatch)


def on_gpu(value: Any) -> Any:
    return value.cuda()


def move_to_gpu(monkeypatch: pytest.MonkeyPatch, **others: nn.Module) -> None:
    """This module's tensors and models, or others in their place."""
    module = sys.modules[__name__]
    for name, value in {**vars(module), **others}.items():
        if isinstance(value, torch.Tensor | nn.Module):
            monkeypatch.setattr(module, name, copy.deepcopy(value).cuda())


def on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, str):  # numbers, as strings cannot be close
        return tuple(map(ord, value))
    return tuple(map(on_cpu, value)) if isinstance(value, tuple | list) else value


@pytest.mark.cuda
@pytest.mark.parametrize("name", CALLS)
def test_a_gpu_gives_what_the_cpu_gives(name, monkeypatch):
    expected = CALLS[name](lambda t: t)
    move_to_gpu(monkeypatch)
    assert_close(on_cpu(CALLS[name](on_gpu)), on_cpu(expected), rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.parametrize("name", [name for name, run in CALLS.items() if "generator" in run.__code__.co_names])
def test_a_gpu_s_generator_will_do_as_well(name, monkeypatch):
    move_to_gpu(monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "GENERATOR", "cuda")
    first = CALLS[name](on_gpu)
    assert_close(CALLS[name](on_gpu), first)


class Recurrent(nn.Module):
    """Of six numbers, one after the other, by a layer of two with dropout between them."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.last = kind(1, 4, 2, batch_first=True, dropout=0.5, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x[:, :, None])[0][:, -1])


OF_MODELS = [name for name, run in CALLS.items() if {"model", "call", "NETWORK", "shifted"} & {*run.__code__.co_names}]


@pytest.mark.cuda
@pytest.mark.parametrize("name", OF_MODELS)
def test_recurrent_layers_in_evaluation_mode_are_differentiated_on_a_gpu(name, monkeypatch):
    torch.manual_seed(0)
    network = Recurrent(nn.LSTM).eval()
    monkeypatch.setattr(sys.modules[__name__], "NETWORK", network)
    expected = CALLS[name](lambda t: t)
    move_to_gpu(monkeypatch, NETWORK=network)
    assert_close(on_cpu(CALLS[name](on_gpu)), on_cpu(expected), rtol=1e-3, atol=1e-4, equal_nan=True)


# A neuron's value is read before the model returns anything.
OF_OUTPUTS = [
    name for name, run in CALLS.items() if {"model", "call"} & {*run.__code__.co_names} and "Neuron" not in name
]


@pytest.mark.parametrize("name", OF_OUTPUTS)
def test_outputs_in_a_record_are_refused_with_the_code_that_picks_one(name, monkeypatch):
    def record(*args: torch.Tensor) -> dict[str, Any]:
        return {"loss": None, "logits": own(*args)}

    own = model
    monkeypatch.setattr(sys.modules[__name__], "model", record)
    with pytest.raises((TypeError, ValueError), match=r"`lambda x: model\(x\)\['logits'\]`"):
        CALLS[name](lambda t: t)


# An attribution method, as people pass it.
METHODS = {
    "class": lambda model: Saliency,
    "method of an instance": lambda model: Saliency(model).attribute,
    "function of a model": lambda model: lambda model: Saliency(model),
    "function of a model, its method": lambda model: lambda model: Saliency(model).attribute,
}
TAKEN_BY = {
    "audit": lambda method: audit(NETWORK, X, {"a": method(NETWORK)}, metrics=["shift_sensitivity"]).to_json(),
    "shift_sensitivity": lambda method: metrics.shift_sensitivity(method(NETWORK), NETWORK, X, target=Y),
    "implementation_gap": lambda method: metrics.implementation_gap(
        method(NETWORK), NETWORK, copy.deepcopy(NETWORK), X, target=Y
    ),
    "sensitivity_gap": lambda method: metrics.sensitivity_gap(method(NETWORK), NETWORK, X, target=Y),
    "symmetry_gap": lambda method: metrics.symmetry_gap(
        method(summed), summed, X[:, :1].repeat(1, 6), [(0, 1)], target=0
    ),
    "check_attribution": lambda method: testing.check_attribution(method(NETWORK), checks=["output_form", "finite"]),
}


def summed(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1, keepdim=True).sin()


@pytest.mark.parametrize("form", METHODS)
@pytest.mark.parametrize("name", TAKEN_BY)
def test_a_method_may_be_a_class_an_instance_or_a_function_of_a_model(name, form):
    same(TAKEN_BY[name](METHODS[form]), TAKEN_BY[name](Saliency))


@pytest.mark.parametrize("method", [Saliency, lambda model: Saliency(model), lambda model: Saliency(model).attribute])
def test_without_a_model_to_explain_the_method_has_to_be_made_for_one(method):
    with pytest.raises(TypeError, match=r"make it for a model first"):
        metrics.diff_roar(linear, (X, Y), (X, Y), {"a": method}, fit=FIT, runs=1, controls=[])


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x, target: attr.FullGrad(model).attribute(x, target),
        lambda model, x, target: attr.PathIntegratedGradients(model).attribute(x, target=target),
        lambda model, x, target: attr.CompleteDeepLift(model).attribute(x, target=target),
        lambda model, x, target: density.class_score(model, x, target),
        lambda model, x, target: metrics.completeness_gap(model, x, x, target=target),
        lambda model, x, target: metrics.sensitivity_gap(Saliency, model, x, target=target),
        lambda model, x, target: metrics.shift_sensitivity(Saliency, model, x, target=target),
        lambda model, x, target: metrics.shift_sensitivity(
            Saliency, model, x, softmax_shift.LinearShift(x[0]), target=target
        ),
    ],
)
@pytest.mark.parametrize("target", [1, (1, 2)])
def test_a_target_that_selects_several_numbers_is_not_called_missing(call, target):
    with pytest.raises(AssertionError, match=r"give an index for each dimension after the first, such as \(0, 0, 0\)"):
        call(nn.Conv2d(1, 3, 1), IMAGES, target)


class Arrays(Dataset):
    """Examples and labels as NumPy has them."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X.numpy()[i], Y.numpy()[i]


FORMS = {
    "arrays": (backwards(X), backwards(Y)),
    "data set": TensorDataset(X, Y),
    "data set of arrays": Arrays(),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DATA)
def test_every_form_of_data_gives_the_same(name, form):
    data = FORMS[form]
    same(numbers(DATA[name](data)), numbers(DATA[name]((X, Y))))


def numbers(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(numbers, value))
    return torch.tensor(value.copy()) if isinstance(value, np.ndarray) else value


@pytest.mark.cuda
@pytest.mark.parametrize("devices", [("cpu",), ("cuda:0",)])
@pytest.mark.parametrize("name", [name for name in DATA if name != "audit"])
def test_data_on_a_gpu_are_trained_on_where_it_is_asked_for(name, devices, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "FIT", retraining.FitConfig(epochs=1, batch_size=4, devices=devices))
    expected = numbers(DATA[name]((X, Y))) if devices == ("cpu",) else None
    received = numbers(DATA[name]((X.cuda(), Y.cuda())))
    same(on_cpu(received), expected)


NORMED = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
PLAIN = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def smoothed() -> torch.Tensor:
    with density.softplus_surrogate(PLAIN):
        output: torch.Tensor = PLAIN(X)
    return output


def ledger() -> list[torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval().to(X.device)
    return [attr.LogitLedger(model).attribute(torch.tensor([[3, 14, 15, 9]], device=X.device)).table()]


# What is given models or results and no tensors.
ON_GPU: dict[str, Callable[[], Any]] = {
    "fold_batch_norm": lambda: rewriting.fold_batch_norm(NORMED)(X),
    "insert_identity": lambda: rewriting.insert_identity(PLAIN, "0")(X),
    "permute_hidden_units": lambda: rewriting.permute_hidden_units(PLAIN, "0", "2")(X),
    "split_layer": lambda: rewriting.split_layer(PLAIN, "0")(X),
    "softplus_surrogate": smoothed,
    "BalancedGradients": lambda: Saliency(BalancedGradients(NETWORK, "libragrad")).attribute(X, target=Y),
    "LogitLedger": ledger,
    "CenteredLogits": lambda: softmax_shift.CenteredLogits(NETWORK)(X),
    "NetworkShift": lambda: shifted(softmax_shift.NetworkShift(lambda x: x.sum(1))),
    "attention_erasure_scatter": lambda: drawn(
        plots.attention_erasure_scatter(CALLS["attention_erasure"](lambda t: t))
    ),
    "fraction_to_flip_boxes": lambda: drawn(
        plots.fraction_to_flip_boxes(metrics.fraction_to_flip(READER, "0.self_attn", TOKENS, rankings=["attention"]))
    ),
    "pixel_perturbation_curves": lambda: drawn(
        plots.pixel_perturbation_curves({"a": CALLS["pixel_perturbation"](lambda t: t)})
    ),
}  # fmt: skip
# Public names that neither take nor hold tensors of a user's model, and what is tried on a GPU elsewhere.
ELSEWHERE = {
    "data, which are on the CPU": {
        "BlockSplits", "Digits", "FeatureLeakage", "ImageSplits", "Photographs", "block_digits", "block_mnist",
        "cifar10", "digits", "efficientnet_lite0", "imagenet10", "mnist", "photographs", "svhn",
    },
    "results, settings and errors": {
        "FullGradients", "LayerFullGradients", "Ledger", "AuditReport", "Control", "Finding", "Measured", "Method",
        "Recommendation", "AttentionErasure", "AxiomTable", "FractionToFlip", "GanTest", "PixelPerturbation",
        "GroupPerturbation", "ParameterRandomisation", "ControlComparison", "FFidelity",
        "RetrainingResult", "ShiftSensitivity", "FitConfig", "JobResult", "StoppedError", "Samples", "Failure",
        "Problem", "ConformanceError", "Shift", "FunctionPath", "StraightPath",
    },
    "networks of their own, on the CPU": {"axiom_table"},
    "numbers": {"WeightChoice", "choose_weight"},
    "tests/ground_truth": {
        "AssociativeRecall", "BlockDigits", "BlockMNIST", "Creatures", "Effects", "PlantedMotif",
        "SignalBlock", "Task", "TaskExamples", "Verification", "Watermark", "Examination",
        "GroundTruthTable", "METHODS", "METRICS", "TASKS", "Trial", "examine", "run",
    },
    "tests/losses": {
        "AntiScoreMatchingLoss", "AttentionMapLoss", "DenoisingScoreMatchingLoss", "DistillationLoss",
        "FiniteDifferenceScoreMatchingLoss", "NoiseContrastiveLoss", "NoiseMatchingLoss", "ScoreMatchingLoss",
        "SlicedScoreMatchingLoss",
    },
    "tests/softmax_shift": {"SoftmaxShift"},
    "tests/testing": {"CAPTUM_DEPARTURES", "attribution_checks", "check_attribution", "networks"},
}  # fmt: skip


def test_every_public_name_is_tried_on_a_gpu_or_said_not_to_be():
    names = {
        name
        for namespace in captum_density._NAMESPACES
        for name in importlib.import_module(f"captum_density.{namespace}").__all__
    }
    text = inspect.getsource(sys.modules[__name__])
    called = set(re.findall(r"\w+", text[text.index("CALLS = {") : text.index("SPARED = {")]))
    elsewhere = set.union(*ELSEWHERE.values())
    assert not names - called - ON_GPU.keys() - elsewhere, "add a call, to CALLS or ON_GPU"
    assert not elsewhere - names and not elsewhere & ON_GPU.keys()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ON_GPU)
def test_models_and_results_on_a_gpu_give_what_they_give_on_the_cpu(name, monkeypatch):
    expected = ON_GPU[name]()
    move_to_gpu(monkeypatch)
    received = ON_GPU[name]()
    assert isinstance(received, list) or received.is_cuda
    assert_close(on_cpu(received), on_cpu(expected), rtol=1e-3, atol=1e-4, equal_nan=True)
