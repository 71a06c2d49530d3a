import base64
import functools
import hashlib
import json
import random
import threading
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import (
    DeepLift,
    GradientShap,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Saliency,
)
from torch import nn

import captum_density
import captum_density.audit
from captum_density import metrics
from captum_density.attr import CompleteDeepLift, FullGrad
from captum_density.audit import AuditReport, Method, Retraining, audit
from captum_density.density import class_score, hessian_trace
from captum_density.retraining import FitConfig
from captum_density.rules import BalancedGradients
from captum_density.softmax_shift import CenteredLogits, SoftmaxShift

FEW = {"infidelity_samples": 20, "sensitivity_samples": 3}


class TwoProducts(nn.Module):
    """f_0(x) = x_0 * x_1 + 1 and f_1(x) = x_0: IG of f_0 is x_0 * x_1 / 2 for both inputs, its gradient (x_1, x_0)."""

    def forward(self, x):
        return torch.stack([x[:, 0] * x[:, 1] + 1, x[:, 0]], dim=1)


@pytest.fixture
def inputs():
    return torch.tensor([[1.0, 2.0], [3.0, 0.5], [-1.0, 1.0]])


@pytest.fixture
def target():
    return torch.zeros(3, dtype=torch.int64)


def figures(report, measure):
    return {name: row[measure].value for name, row in report.methods.items()}


def untimed(report):
    """All figures of the methods but the time."""
    return {
        name: {measure: figure for measure, figure in row.items() if measure != "seconds"}
        for name, row in report.methods.items()
    }


class Nothing(IntegratedGradients):
    """Attributions of zero, with the delta that belongs to them: everything is left unexplained."""

    def attribute(self, inputs, target=None, return_convergence_delta=False):
        attributions, delta = super().attribute(inputs, target=target, return_convergence_delta=True)
        if isinstance(inputs, tuple):  # as sensitivity_max calls it
            return tuple(attribution * 0 for attribution in attributions)
        missing = delta - attributions.flatten(1).sum(1)
        return (attributions * 0, missing) if return_convergence_delta else attributions * 0


def test_completeness_gap_is_relative_to_what_should_be_explained(inputs, target):
    methods = {"IG": IntegratedGradients, "nothing": Nothing, "Saliency": Saliency}
    values = figures(audit(TwoProducts(), inputs, methods, target=target, **FEW), "completeness_gap")
    assert values["IG"] < 1e-5  # the integrand is linear: Gauss-Legendre is exact up to rounding
    assert values["nothing"] == pytest.approx(1, abs=1e-6)
    assert values["Saliency"] is None


def test_delta_per_noisy_sample_is_averaged(inputs, target):
    # Gradients at the middle and the end of the path, (x_1, x_0) / 2 and (x_1, x_0): the attributions sum to
    # 1.5 * x_0 * x_1 where x_0 * x_1 is to be explained, sample by sample.
    steps = {"n_steps": 2, "method": "riemann_right"}
    method = Method(lambda model: NoiseTunnel(IntegratedGradients(model)), {"nt_samples": 4, "stdevs": 0.5, **steps})
    values = figures(audit(TwoProducts(), inputs, {"noisy": method}, target=target, **FEW), "completeness_gap")
    assert values["noisy"] == pytest.approx(0.5, abs=1e-5)


def test_infidelity_is_zero_for_a_linear_model_whichever_kind_the_attribution_is(inputs, target):
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    methods = {
        "contribution": InputXGradient,
        "slope": Method(Saliency, {"abs": False}),
        "wrong kind": Method(Saliency, {"abs": False}, multiplies_by_inputs=True),
    }
    report = audit(model, inputs, methods, target=target, **FEW)
    contribution, slope, wrong = figures(report, "infidelity").values()
    zero = report.methods["slope"]["infidelity"].reference
    assert abs(contribution) < 1e-5 * zero
    assert abs(slope) < 1e-5 * zero
    assert wrong > 1e-3 * zero


def test_zero_infidelity_is_the_mean_squared_change(inputs, target):
    # f = x_0: a fifth of the erasures remove x_0, the change then is x_0, so the mean square is 0.2 * x_0 ** 2.
    report = audit(TwoProducts(), inputs, {"any": Saliency}, target=target + 1, infidelity_samples=4000)
    assert report.methods["any"]["infidelity"].reference == pytest.approx(0.2 * (1 + 9 + 1) / 3, rel=0.1)


def test_sensitivity_is_the_largest_relative_change(inputs, target):
    # The gradient of f_0 is (x_1, x_0), so it moves by as much as the input: at most radius * sqrt(2) over the norm.
    radius = {"sensitivity_samples": 300, "perturb_radius": 0.1}
    values = figures(audit(TwoProducts(), inputs, {"grad": Saliency}, target=target, **radius), "sensitivity_max")
    bound = (0.1 * 2**0.5 / inputs.norm(dim=1)).mean().item()
    assert 0.8 * bound < values["grad"] <= bound * (1 + 1e-5)


class Dice(IntegratedGradients):
    """Numbers from every generator there is."""

    def attribute(self, inputs, target=None, return_convergence_delta=False):
        if isinstance(inputs, tuple):  # as sensitivity_max calls it
            return tuple(map(self.attribute, inputs))
        rolled = torch.rand_like(inputs) + np.random.rand() + random.random()
        return (rolled, rolled.sum(1)) if return_convergence_delta else rolled


NOISY = {
    "NoiseTunnel": Method(lambda model: NoiseTunnel(Saliency(model)), {"nt_samples": 3}),
    # Draws its baselines from NumPy.
    "GradientShap": Method(
        GradientShap, {"baselines": torch.tensor([[0.0, 0.0], [1.0, 5.0], [-3.0, 2.0], [2.0, 2.0]])}
    ),
    "Dice": Method(Dice),
}


def _random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("name", NOISY)
def test_a_method_has_the_same_figures_in_any_company_and_random_state_stays(name, inputs, target):
    model, noisy = TwoProducts(), NOISY[name]
    states = _random_states()
    alone = audit(model, inputs, {"noisy": noisy}, target=target, **FEW)
    assert _random_states() == states
    np.random.rand(), random.random(), torch.rand(1)
    together = audit(model, inputs, {"other": noisy, "noisy": noisy}, target=target, **FEW)
    other_seed = audit(model, inputs, {"noisy": noisy}, target=target, seed=2**63 - 1, **FEW)
    assert untimed(alone)["noisy"] == untimed(together)["noisy"] == untimed(together)["other"]
    for figure in ("infidelity", "sensitivity_max", "shift_sensitivity", "pixel_perturbation"):
        assert untimed(alone)["noisy"][figure] != untimed(other_seed)["noisy"][figure]


def test_shift_sensitivity_is_the_mean_of_the_metric(inputs, target):
    model = TwoProducts()
    report = audit(model, inputs, {"grad": Method(Saliency, {"abs": False})}, target=target, **FEW)
    moved = metrics.shift_sensitivity(lambda model: Saliency(model).attribute, model, inputs, target=target, abs=False)
    result = report.methods["grad"]["shift_sensitivity"]
    assert result.value == pytest.approx(moved.cosine_distance.mean().item(), rel=1e-12)
    assert result.value > 0.05
    assert result.spread == pytest.approx(moved.cosine_distance.std().item(), rel=1e-6)


@pytest.mark.parametrize("method", [Saliency, IntegratedGradients, DeepLift, FullGrad])
def test_a_view_is_what_is_explained(method, target):
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 6)
    methods = {"logits": method, "centered": Method(method, view=CenteredLogits)}
    report = audit(model, inputs, methods, target=target, **FEW)
    of_the_view = audit(CenteredLogits(model), inputs, {"any": method}, target=target, **FEW)
    logits, centered, direct = (*report.methods.values(), of_the_view.methods["any"])
    for figure in ("completeness_gap", "infidelity", "sensitivity_max"):
        assert centered[figure] == direct[figure]
    assert centered["infidelity"].reference == direct["infidelity"].reference != logits["infidelity"].reference
    assert centered["shift_sensitivity"].value < 1e-6
    assert logits["shift_sensitivity"].value > 1e-4  # a linear shift moves one of FullGrad's many terms, the input's


def test_a_named_method_can_be_centered(target):
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 6)
    named = audit(model, inputs, ["Saliency, centered"], target=target, **FEW)
    written = audit(model, inputs, {"Saliency, centered": Method(Saliency, view=CenteredLogits)}, target=target, **FEW)
    assert untimed(named) == untimed(written)


OF_OPERATIONS = {
    "InputXGradient, balanced": lambda model: InputXGradient(BalancedGradients(model)),
    "CompleteDeepLift": CompleteDeepLift,
}


def test_methods_of_operations_by_name(target):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 4))
    inputs, few = torch.randn(3, 6), {**FEW, "metrics": ["completeness_gap", "infidelity", "shift_sensitivity"]}
    named = audit(
        model, inputs, [*OF_OPERATIONS, *(f"{name}, centered" for name in OF_OPERATIONS)], target=target, **few
    )
    written = audit(model, inputs, {**OF_OPERATIONS, "plain": InputXGradient}, target=target, **few)
    for name in OF_OPERATIONS:
        assert named.methods[name] == written.methods[name]
        assert named.methods[f"{name}, centered"]["shift_sensitivity"].value < 1e-6
    assert named.methods["CompleteDeepLift"]["completeness_gap"].value < 1e-5
    assert written.methods["plain"]["infidelity"] != named.methods["InputXGradient, balanced"]["infidelity"]


def test_a_model_whose_operations_cannot_be_seen_is_refused_in_the_methods_rows(target):
    with pytest.warns(FutureWarning, match="deprecated"):
        model = torch.jit.script(nn.Sequential(nn.Linear(6, 4)))
    names = [*OF_OPERATIONS, "FullGrad, complete"]
    report = audit(model, torch.randn(3, 6), [*names, "Saliency"], target=target, **FEW, metrics=["infidelity"])
    notes = {
        name: figures["infidelity"].note for name, figures in report.methods.items() if figures["infidelity"].failed
    }
    assert set(notes) == set(names)
    assert all("it was made from" in note for note in notes.values())


def test_a_method_is_made_once_for_the_model_and_once_for_its_shifted_twin(inputs, target):
    model, calls = TwoProducts(), []

    def make(model):
        calls.append(model)
        return Saliency(model)

    audit(model, inputs, {"seen": make}, target=target, **FEW)
    assert calls[0] is model
    assert [type(each) for each in calls[1:]] == [SoftmaxShift]


def test_one_output_has_no_softmax(inputs):
    report = audit(nn.Linear(2, 1), (inputs, torch.tensor([0, 1, 1])), {"grad": Saliency}, **FEW)
    for figure in ("shift_sensitivity", "class_likeness"):
        assert report.methods["grad"][figure].value is None
        assert not report.methods["grad"][figure].failed
        assert "one output" in report.methods["grad"][figure].note
    assert report.model["accuracy"].value in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)
    assert report.model["density_ratio"].value is not None
    assert report.methods["grad"]["pixel_perturbation"].value is not None  # by the sigmoid


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid()])
def test_one_output_predicts_before_and_after_a_sigmoid(last):
    model = nn.Sequential(nn.Linear(1, 1, bias=False), last)
    nn.init.ones_(model[0].weight)
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    report = audit(model, (x, (x[:, 0] > 0).long()), {"grad": Saliency}, metrics=["accuracy"])
    assert report.model["accuracy"].value == 1


def test_inputs_and_model_are_left_as_they_were(inputs, target):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[0].eval()
    inputs.requires_grad_()
    audit(model, inputs, {"IG": IntegratedGradients}, target=target, **FEW)
    assert inputs.requires_grad
    assert inputs.grad is None
    assert model.training and model[1].training and not model[0].training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_fails_is_left_as_it_was(inputs):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3)).train()
    with pytest.raises(ValueError, match="the model fails on inputs of shape"):
        audit(model, inputs, {"IG": IntegratedGradients}, **FEW)
    assert model[0].training


# The same figures however the examples are divided.
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches(batch, target):
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double(), torch.randn(3, 6).double()
    methods = {"IG": IntegratedGradients, "FullGrad": FullGrad, "grad": Saliency}
    metrics = ["completeness_gap", "pixel_perturbation", "density_ratio", "gradient_norm", "hessian_trace", "accuracy"]
    whole = audit(model, (inputs, target), methods, metrics=metrics, max_examples_per_batch=64)
    parts = audit(model, (inputs, target), methods, metrics=metrics, max_examples_per_batch=batch)
    for one, other in ((whole.model, parts.model), *zip(whole.methods.values(), parts.methods.values(), strict=True)):
        for name, figure in one.items():
            assert other[name].value == (figure.value and pytest.approx(figure.value, rel=1e-6, abs=1e-9)), name


def test_figures_of_the_model_are_those_of_the_package():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs, labels = torch.rand(40, 3, 2, 2).double(), torch.randint(3, (40,))
    report = audit(model, (inputs, labels), ["Saliency"], target="label", noise_std=0.2, seed=5)
    assert report.model["accuracy"].value == (model(inputs).argmax(1) == labels).double().mean()
    noise = torch.Generator().manual_seed(5)
    ratio = metrics.density_ratio(model, inputs, 0.2, target=labels, generator=noise)
    assert report.model["density_ratio"].value == pytest.approx(ratio.mean().item())
    assert report.model["density_ratio"].spread == pytest.approx(ratio.std().item())
    score = class_score(model, inputs, labels)
    assert report.model["gradient_norm"].value == pytest.approx(score.flatten(1).square().sum(1).mean().item())
    noise = torch.Generator().manual_seed(5)
    trace = hessian_trace(model, inputs, labels, n_samples=20, noise_std=0.2, generator=noise)
    assert report.model["hessian_trace"].value == pytest.approx(trace.mean().item())


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_accuracy_has_a_score_interval(right, n, low, high):
    # Wilson's, from R's prop.test(..., correct = FALSE).
    labels = (torch.arange(n) >= right).long()
    report = audit(
        lambda x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1),
        (torch.rand(n, 2), labels),
        ["Saliency"],
        metrics=["accuracy"],
        limit=None,
    )
    accuracy = report.model["accuracy"]
    assert accuracy.value == right / n
    assert (accuracy.low, accuracy.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_pixels_beyond_chance_tell_the_ranking_that_knows():
    class Ranking(Saliency):
        order = 1.0

        def attribute(self, inputs, target=None):
            return self.order * torch.arange(8.0, 0, -1).expand_as(inputs)

    class Reversed(Ranking):
        order = -1.0  # by absolute value the same, which is what ranks

    class Backward(Ranking):
        def attribute(self, inputs, target=None):
            return torch.arange(1.0, 9).expand_as(inputs)

    torch.manual_seed(0)
    model = lambda x: torch.stack([4 * x[:, 0], 0 * x[:, 0]], 1)  # noqa: E731
    inputs = torch.rand(60, 8)
    inputs[:, 0] = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0)  # the mean, which takes its place, tells nothing
    methods = {"knows": Ranking, "same": Reversed, "misleads": Backward}
    rows = audit(model, inputs, methods, metrics=["pixel_perturbation"]).methods
    knows, same, misleads = (figures["pixel_perturbation"] for figures in rows.values())
    assert knows == same
    assert misleads.high < 0 < knows.low < knows.value < knows.high
    assert knows.reference == misleads.reference


class Fails(Saliency):
    def attribute(self, inputs, target=None):
        raise RuntimeError("no gradient\n to be had")


class Undefined(Saliency):
    def attribute(self, inputs, target=None):
        return inputs * torch.nan


class Smaller(Saliency):
    def attribute(self, inputs, target=None):
        return inputs[:, :1]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Fails, "RuntimeError: no gradient to be had"),
        (Undefined, "ValueError: 6 of the attributions are NaN or infinite"),
        (Smaller, "ValueError: attributions must have the inputs' shape, (3, 2), but have (3, 1)"),
        (lambda model: model, "TypeError: attributions['bad'] must make a captum.attr.Attribution"),
        (lambda model: 3, "TypeError: attributions['bad'] must return an attribution"),
        (lambda model: Saliency, "but made the class Saliency"),
        (GuidedBackprop, "AssertionError: Given model must be an instance of torch.nn.Module"),
    ],
)
def test_a_failing_method_is_reported_in_its_row(bad, words, inputs, target):
    def model(x):
        return TwoProducts()(x)

    report = audit(model, inputs, {"bad": bad, "good": InputXGradient}, target=target, **FEW)
    alone = audit(model, inputs, {"good": InputXGradient}, target=target, **FEW)
    assert untimed(report)["good"] == untimed(alone)["good"]
    assert not any(figure.failed for figure in report.methods["good"].values())
    assert all(figure.failed and words in figure.note for figure in report.methods["bad"].values())
    assert report.table().count("failed") == 8
    assert sum("bad failed: " in finding.text for finding in report.findings) == 1
    assert AuditReport.from_json(report.to_json()) == report


def test_one_figure_can_fail_alone(inputs, target):
    class Unsteady(Saliency):
        def attribute(self, inputs, target=None):
            if isinstance(inputs, tuple):  # as sensitivity_max calls it
                raise ValueError("a tensor, please")
            return super().attribute(inputs, target=target)

    report = audit(TwoProducts(), inputs, {"any": Unsteady}, target=target, **FEW)
    failed = {name: figure.note for name, figure in report.methods["any"].items() if figure.failed}
    assert failed == {"sensitivity_max": "ValueError: a tensor, please"}
    assert "any failed at sensitivity: ValueError: a tensor, please" in [finding.text for finding in report.findings]


def test_interrupts_are_not_failures(inputs, target):
    class Interrupted(Saliency):
        def attribute(self, inputs, target=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(TwoProducts(), inputs, {"any": Interrupted}, target=target, **FEW)


def test_asked_figures():
    torch.manual_seed(0)
    x = torch.randn(240, 4)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-4.0, 0.1, 0.2, 0.3], [4.0, 0.3, 0.2, 0.1]]))
    retraining = Retraining(
        lambda: nn.Linear(4, 2),
        (x[:120], y[:120]),
        torch.utils.data.TensorDataset(x[120:], y[120:]),
        {"fractions": [0.25], "runs": 2, "fit": FitConfig(lr=0.1)},
    )
    report = audit(
        model, (x, y), ["Saliency"], metrics=["gan_test", "diff_roar"], retraining=retraining, proxy=model, limit=30
    )
    assert set(report.model) == {"gan_test"} and set(report.methods["Saliency"]) == {"diff_roar"}
    result = report.methods["Saliency"]["diff_roar"]
    assert 0.2 < result.low <= result.value <= result.high
    assert abs(result.reference) < result.value
    assert report.model["gan_test"].value == 1  # the judge is the model
    assert report.model["gan_test"].reference == (model(x).argmax(1) == y)[_drawn(240, 30)].double().mean()


def _drawn(n, limit):
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:limit].sort().values


class Counted(Saliency):
    """Counts calls, and stops the audit at one of them."""

    calls, stop = 0, None

    def attribute(self, inputs, target=None, abs=True):
        type(self).calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        attributions = super().attribute(inputs, target=target, abs=abs)
        noisy = [
            part + torch.rand_like(part)
            for part in (attributions if isinstance(attributions, tuple) else (attributions,))
        ]
        return tuple(noisy) if isinstance(attributions, tuple) else noisy[0]


@pytest.mark.parametrize("stop", [1, 2, 4, 7, 8, 10, 13])
def test_interrupted_and_resumed_is_the_same_report(stop, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(5, 1, 4, 4)
    methods = {"first": Counted, "second": Method(Counted, {"abs": False})}
    monkeypatch.setattr(Counted, "calls", 0)
    whole = audit(model, x, methods, store=tmp_path / "other", **FEW)
    needed = Counted.calls
    monkeypatch.setattr(Counted, "calls", 0)
    monkeypatch.setattr(Counted, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        audit(model, x, methods, store=tmp_path / "cells", **FEW)
    monkeypatch.setattr(Counted, "stop", None)
    resumed = audit(model, x, methods, store=tmp_path / "cells", **FEW)
    assert untimed(resumed) == untimed(whole) == untimed(audit(model, x, methods, **FEW))
    assert resumed.model == whole.model and resumed.shown == whole.shown and resumed.findings == whole.findings
    # Finished figures are not measured again; above, the last audit measured all of them once more.
    # The one that was interrupted begins again, at random weights with up to six maps.
    assert Counted.calls - needed < needed + 6
    # With everything there, nothing runs but what tells each method, and the report is the very same.
    calls = Counted.calls
    assert audit(model, x, methods, store=tmp_path / "cells", **FEW) == resumed
    assert Counted.calls == calls + len(methods)


BOMB = base64.b64encode(zlib.compress(bytes(2**26), 9)).decode("ascii")
HOSTILE = {
    "texts for numbers": lambda result: {**result, "value": "\x1b[2J"} if "value" in result else None,
    "other fields": lambda result: {"value": 1.0, "command": "rm"} if "value" in result else None,
    "no fields": lambda result: [1.0],
    "a picture that fills the memory": lambda result: {"map": {"shape": [2**25], "float16_zlib": BOMB}},
    "a picture of no bytes": lambda result: {"map": {"shape": [2**40], "float16_zlib": ""}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_prove_themselves_and_are_no_figures_are_set_aside_in_a_line(name, tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(3, 1, 4, 4)
    run = partial(audit, model, x, ["Saliency"], metrics=["sensitivity_max", "gradient_norm"], store=tmp_path)
    report = run()
    changed = 0
    for path in tmp_path.glob("*.json"):
        content = json.loads(path.read_text())
        result = HOSTILE[name](content["result"])
        if result is not None and ("map" in content["result"]) == ("map" in result or result == [1.0]):
            text = json.dumps(result, sort_keys=True, separators=(",", ":"))
            proof = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            path.write_text(json.dumps({**content, "result": result, "proof": proof}))
            changed += 1
    with pytest.warns(UserWarning, match="is no finished work .* it is computed again") as warned:
        assert untimed(run()) == untimed(report)
    assert changed == len(warned) == len(list(tmp_path.glob("*.rejected-*"))) > 0
    assert all("\n" not in str(warning.message) for warning in warned)


SCALE = 1.0


class Scaled(nn.Linear):
    def forward(self, x):
        return scaled(super().forward(x))


def scaled(x):
    return SCALE * x


class Signed(Saliency):
    sign = 1.0

    def attribute(self, inputs, target=None):
        return self.sign * super().attribute(inputs, target=target, abs=False) + (self.sign < 0)


def test_a_store_tells_code_apart_by_what_it_computes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, x = Scaled(4, 3), torch.rand(5, 4)
    kept = {"store": tmp_path, "metrics": ["gradient_norm", "pixel_perturbation"]}
    first = audit(model, x, {"any": Signed}, **kept)
    monkeypatch.setattr(Signed, "sign", -1.0)
    second = audit(model, x, {"any": Signed}, **kept)
    assert second.methods != first.methods and second.model == first.model
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    third = audit(model, x, {"any": Signed}, **kept)
    assert third.model["gradient_norm"].value == pytest.approx(9 * first.model["gradient_norm"].value)


def test_a_method_that_cannot_be_told_is_measured_and_not_kept(tmp_path, inputs, target):
    lock = threading.Lock()

    def make(model):
        assert lock
        return Saliency(model)

    audited = [audit(TwoProducts(), inputs, {"any": make, "IG": IntegratedGradients}, target=target, store=tmp_path)]
    assert not any(figure.failed for row in audited[0].methods.values() for figure in row.values())
    assert len(list(tmp_path.glob("*.json"))) == 7 + 8 + 1  # a map of the method that can be told


def test_another_figure_leaves_those_that_are_there(tmp_path):
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    audit(model, x, ["Saliency"], metrics=["accuracy", "density_ratio", "infidelity"], store=tmp_path)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    arguments = ["density_ratio", "infidelity", "gan_test"]
    audit(model, x, ["Saliency"], metrics=arguments, store=tmp_path, proxy=nn.Linear(4, 3))
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert kept.items() < after.items() and len(after) == len(kept) + 1


@pytest.mark.parametrize("kind", ["smoothgrad_sq", "vargrad"])
def test_squares_promise_no_sum(kind, inputs, target):
    method = Method(lambda model: NoiseTunnel(IntegratedGradients(model)), {"nt_type": kind, "nt_samples": 3})
    values = figures(audit(TwoProducts(), inputs, {"any": method}, target=target, **FEW), "completeness_gap")
    assert values == {"any": None}


def test_nothing_is_missing_of_nothing(inputs, target):
    inputs[0] = 0.0
    methods = {"IG": IntegratedGradients}
    report = audit(nn.Linear(2, 2), inputs, methods, target=target, metrics=["completeness_gap"])
    assert report.methods["IG"]["completeness_gap"].value < 1e-5


def test_one_example_has_no_pixels_beyond_chance(inputs):
    row = audit(TwoProducts(), inputs[:1], ["Saliency"], **FEW).methods["Saliency"]
    assert row["pixel_perturbation"].value is None and "one example" in row["pixel_perturbation"].note
    assert not any(figure.failed for figure in row.values())


def test_no_method_runs_for_figures_of_the_model_alone(inputs):
    assert audit(TwoProducts(), inputs, {"any": Fails}, metrics=["density_ratio"]).methods == {"any": {}}


def test_under_inference_mode():
    with torch.inference_mode():
        x = torch.rand(4, 2)
        report = audit(TwoProducts(), x, ["Saliency", "IntegratedGradients"], **FEW)
    assert not any(figure.failed for row in (report.model, *report.methods.values()) for figure in row.values())


def test_a_view_is_in_evaluation_mode(inputs, target):
    def dropped(model):
        return nn.Sequential(model, nn.Dropout(0.5))

    method = Method(IntegratedGradients, view=dropped)
    report = audit(TwoProducts(), inputs, {"any": method}, target=target, metrics=["completeness_gap"])
    assert report.methods["any"]["completeness_gap"].value < 1e-5


def test_making_a_method_may_draw_numbers(inputs, target):
    def make(model):
        torch.rand(3)
        return Dice(model)

    alone = audit(TwoProducts(), inputs, {"any": make}, target=target, metrics=["sensitivity_max"])
    beside = audit(TwoProducts(), inputs, {"any": make}, target=target, metrics=["infidelity", "sensitivity_max"])
    assert alone.methods["any"]["sensitivity_max"] == beside.methods["any"]["sensitivity_max"]


def test_the_verdict_says_that_something_failed(inputs, target):
    report = audit(TwoProducts(), inputs, {"bad": Fails, "good": Saliency}, target=target, **FEW)
    assert report.verdict.endswith("Some of it could not be measured.")
    assert "measured" not in audit(TwoProducts(), inputs, {"good": Saliency}, target=target, **FEW).verdict


def test_a_store_tells_other_audits_apart(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    kept = {"store": tmp_path, "metrics": ["infidelity", "density_ratio"]}
    first = audit(model, x, ["Saliency"], **kept)
    with torch.no_grad():
        model.weight += 0.1
    second = audit(model, x, ["Saliency"], **kept)
    assert second.methods != first.methods and second.model != first.model
    assert second.methods == audit(model, x, ["Saliency"], metrics=kept["metrics"]).methods
    for change in ({"data": x + 0.1}, {"seed": 1}, {"infidelity_samples": 7, "noise_std": 0.5}):
        other = audit(model, change.pop("data", x), ["Saliency"], **kept, **change)
        assert other.methods["Saliency"] != second.methods["Saliency"] and other.model != second.model
    options = audit(model, x, {"Saliency": Method(Saliency, {"abs": False})}, **kept)
    assert options.methods["Saliency"] != second.methods["Saliency"]


def test_a_failed_figure_is_tried_again(tmp_path, inputs, target):
    class Sometimes(Saliency):
        works = False

        def attribute(self, inputs, target=None):
            if not self.works:
                raise RuntimeError("out of memory")
            return super().attribute(inputs, target=target)

    def make(model):
        return Sometimes(model)

    assert audit(TwoProducts(), inputs, {"any": make}, target=target, store=tmp_path).methods["any"]["seconds"].failed
    Sometimes.works = True
    row = audit(TwoProducts(), inputs, {"any": make}, target=target, store=tmp_path).methods["any"]
    assert not any(figure.failed for figure in row.values())


def test_one_name_will_do(inputs):
    report = audit(TwoProducts(), inputs, "Saliency", metrics="infidelity", **FEW)
    assert list(report.methods) == ["Saliency"] and list(report.methods["Saliency"]) == ["infidelity"]


@pytest.mark.parametrize(
    ("last", "outputs"), [(nn.Softmax(1), "probabilities"), (nn.LogSoftmax(1), "log-probabilities")]
)
def test_a_softmax_at_the_end_is_noticed(last, outputs):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.rand(30, 6)
    warned = audit(nn.Sequential(model, last), x, "Saliency", metrics="density_ratio").findings[0]
    assert warned.kind == "warning" and f"look like {outputs}:" in warned.text
    assert "look like" not in audit(model, x, "Saliency", metrics="density_ratio").summary()


def test_the_module_can_be_called(inputs):
    assert captum_density.audit(TwoProducts(), inputs, ["Saliency"], metrics=["accuracy"]).settings["examples"] == 3


@pytest.mark.cuda
def test_cuda(inputs, target):
    model = nn.Linear(2, 2).cuda()
    torch.cuda.manual_seed(7)  # not the audit's seed
    state = torch.cuda.get_rng_state()
    methods = {
        "noisy": lambda model: NoiseTunnel(Saliency(model)),
        "IG": IntegratedGradients,
        "centered": Method(IntegratedGradients, view=CenteredLogits),
    }
    report = audit(model, (inputs, target), methods, **FEW)
    assert report.settings["device"].startswith("cuda")
    assert not [
        figure.note for row in (*report.methods.values(), report.model) for figure in row.values() if figure.failed
    ]
    values = figures(report, "shift_sensitivity")
    assert values["centered"] < 1e-6 < values["IG"]
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert untimed(audit(model, (inputs, target), methods, **FEW)) == untimed(report)
    audit(model.cpu(), (inputs, target), methods, **FEW)
    assert torch.equal(torch.cuda.get_rng_state(), state), "measuring on the CPU moved the GPU's generator"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": [[1.0, 2.0]]}, TypeError, "must yield tensors, but yields an object of class"),
        ({"data": 3}, TypeError, "inputs and labels, a data set or a loader, but is an object of class int"),
        ({"data": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "got torch.int64; of token ids"),
        ({"data": torch.ones(0, 2)}, ValueError, r"N > 0, got \(0, 2\)"),
        ({"data": torch.full((3, 2), torch.nan)}, ValueError, "finite, got 6 NaN"),
        ({"data": (torch.ones(3, 2), torch.ones(2).long())}, TypeError, "one for each of 3 examples"),
        ({"data": (torch.ones(3, 2), torch.ones(3))}, TypeError, r"floating-point of shape \(3, 1\)"),
        ({"target": torch.zeros(2).long()}, ValueError, "one for each of 3 examples"),
        ({"target": torch.full((3,), 2)}, ValueError, "target names output 2 of a model with 2 outputs"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"noise_std": 0.0}, ValueError, "noise_std must be positive and finite"),
        ({"perturb_radius": -1.0}, ValueError, "perturb_radius must be positive"),
        ({"infidelity_samples": 0}, ValueError, "infidelity_samples must be a positive integer"),
        ({"sensitivity_samples": True}, ValueError, "sensitivity_samples must be a positive integer"),
        ({"proxy": TwoProducts()}, ValueError, "proxy is for the metric 'gan_test'; ask for it"),
        ({"attributions": {3: Saliency}}, TypeError, "texts for names, but one is 3"),
        ({"target": "true"}, ValueError, "must be 'predicted', 'label', an integer or a tensor"),
        ({"target": "label"}, ValueError, "needs labels"),
        ({"attributions": {}}, ValueError, "attributions is empty"),
        ({"attributions": []}, ValueError, "attributions is empty"),
        ({"attributions": "Salience"}, ValueError, "there is no attribution 'Salience'"),
        ({"attributions": 3}, TypeError, "must map names .* or list names"),
        ({"attributions": ["Salience"]}, ValueError, "there is no attribution 'Salience'; there are 'Saliency'"),
        (
            {"attributions": {"a": Saliency(TwoProducts())}},
            ValueError,
            r"\['a'\] is made for another model",
        ),
        (
            {"attributions": {"a": Saliency(TwoProducts()).attribute}},
            ValueError,
            r"\['a'\] is made for another",
        ),
        ({"attributions": {"a": 3}}, TypeError, r"attributions\['a'\].*class int; pass a function of the model"),
        ({"attributions": {"a": TwoProducts()}}, TypeError, r"attributions\['a'\].*pass a function of the model"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module or a function"),
        ({"model": TwoProducts}, TypeError, "make an object of it"),
        ({"metrics": ["infidelty"]}, ValueError, "no metric 'infidelty'; there are default, all, completeness_gap"),
        ({"metrics": "infidelty"}, ValueError, "no metric 'infidelty'"),
        ({"metrics": []}, ValueError, "metrics is empty"),
        ({"metrics": ["gan_test"]}, ValueError, "needs the argument proxy"),
        ({"metrics": ["diff_roar"]}, ValueError, "needs the argument retraining"),
        ({"limit": 0}, ValueError, "limit must be a positive integer"),
        ({"max_examples_per_batch": 0}, ValueError, "max_examples_per_batch"),
        ({"model": lambda x: {"logits": x}}, TypeError, r"pass a function that picks one"),
        ({"model": lambda x: x[0]}, ValueError, r"shape \(N, classes\), .* but gives torch.float32 of shape \(2,\)"),
        ({"model": lambda x: x / 0}, ValueError, "NaN or infinite logits"),
        ({"model": nn.Linear(3, 2)}, ValueError, r"fails on inputs of shape \(3, 2\): RuntimeError: .*mat1"),
    ],
)
def test_bad_input_names_what_is_wrong(inputs, change, error, message):
    arguments = {"model": TwoProducts(), "data": inputs, "attributions": {"any": Saliency}, **change}
    with pytest.raises(error, match=message):
        audit(**arguments)


def test_an_attribution_of_the_model_is_made_anew_for_a_view_and_for_the_shifted_twin(target):
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 6)
    signed = {"abs": False}
    methods = {
        "instance": Method(Saliency(model), signed),
        "method": Method(Saliency(model).attribute, signed),
        "partial": functools.partial(Saliency(model).attribute, abs=False),
        "function": lambda model: functools.partial(Saliency(model).attribute, abs=False),
        "centered": Method(Saliency(model), signed, view=CenteredLogits),
    }
    rows = untimed(audit(model, inputs, methods, target=target, **FEW))
    classes = {"any": Method(Saliency, signed), "centered": Method(Saliency, signed, view=CenteredLogits)}
    expected = untimed(audit(model, inputs, classes, target=target, **FEW))
    assert not any(figure.failed for row in rows.values() for figure in row.values())
    assert rows.pop("centered") == expected["centered"] != expected["any"]
    assert all(row == expected["any"] for row in rows.values())


def test_a_method_refuses_a_model_and_a_view_that_is_no_function():
    with pytest.raises(TypeError, match="pass a function of the model"):
        Method(TwoProducts())
    with pytest.raises(TypeError, match=r"view.*such as CenteredLogits, but is an object of class str"):
        Method(Saliency, view="CenteredLogits")


def test_attributions_of_any_layout():
    """Gradients by what a model transposes are laid out as it left them, which Captum's metric cannot view as rows."""
    layer = nn.Linear(6, 2)
    report = audit(lambda x: layer(x.mT.flatten(1)), torch.rand(3, 3, 2), ["Saliency"], metrics=["sensitivity_max"])
    assert not report.methods["Saliency"]["sensitivity_max"].failed


def test_the_report_says_how_many_examples_were_run(inputs, target):
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2))
    methods = {"first": Method(Saliency), "second": Method(InputXGradient)}
    report = audit(model, inputs, methods, target=target, metrics=["seconds"])
    # One to see how large it is, the logits, and the gradients twice; all forward passes are of the same inputs.
    assert report.cost == {
        "forward_examples": 10,
        "backward_examples": 6,
        "different_forward_examples": 3,
        "different_backward_examples": 3,
    }
    assert AuditReport.from_json(report.to_json()).cost == report.cost
    assert "forward on 10 examples" in str(report) and "forward on 10 examples" in report.to_html()
    assert audit(lambda x: model(x), inputs, methods, target=target, metrics=["seconds"]).cost == {}


def image_model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 3))


def test_a_full_audit_runs_little_twice():
    # What is left: the gradient methods' and FullGrads' own forward passes, and samples that figures share by chance.
    cost = audit(image_model(), torch.rand(4, 1, 8, 8), infidelity_samples=20, sensitivity_samples=2).cost
    assert cost["forward_examples"] <= 1.6 * cost["different_forward_examples"]
    assert cost["backward_examples"] <= 1.6 * cost["different_backward_examples"]


class Middling(nn.Module):
    """Two logits by the signs of values near 1; larger ones, which the input's own map ranks first, are passed over."""

    def forward(self, x):
        score = (x**3 * (-(x**2)).exp()).flatten(1).sum(1)
        return torch.stack([10 * score, -10 * score], dim=1)


def spots():
    """Images of size 4 throughout, but for one value of size 1 and either sign."""
    x = torch.full((24, 64), 4.0)
    x[torch.arange(24), torch.randperm(64, generator=torch.Generator().manual_seed(0))[:24]] = torch.tensor(
        [1.0, -1.0]
    ).repeat(12)
    return x.view(24, 1, 8, 8)


@pytest.mark.parametrize("finds", [True, False])
def test_a_large_models_audit_costs_less_and_comes_to_the_same(finds, monkeypatch):
    model, x = (Middling(), spots()) if finds else (image_model(), torch.rand(12, 1, 8, 8))
    few = {"metrics": ["infidelity", "sensitivity_max", "pixel_perturbation"], "max_examples_per_batch": 128}
    thorough = audit(model, x, effort="thorough", **few)
    monkeypatch.setattr("captum_density.audit._budget._LARGE", -1)  # any model is large
    default = audit(model, x, **few)
    assert default.cost["forward_examples"] < 0.3 * thorough.cost["forward_examples"]
    assert set(thorough.methods) - set(default.methods) == set(default.settings["left_out"])
    assert "IntegratedGradients, SmoothGrad and SmoothFullGrad were left out" in default.summary()
    for report in (thorough, default):
        assert (report.recommendation().method is not None) == finds
    spared = default.methods["CompleteDeepLift"]["sensitivity_max"]
    assert spared.value is None and not spared.failed and 'effort="thorough"' in spared.note
    assert thorough.methods["CompleteDeepLift"]["sensitivity_max"].value is not None
    if not finds:  # a control that is as good ends the comparison, before the dear one
        names = {each.name for each in default.methods["CompleteDeepLift"]["pixel_perturbation"].controls}
        assert "a constant map" in names and "its map at random weights" not in names


def test_an_effort_that_there_is_not(inputs):
    with pytest.raises(ValueError, match="'default' or 'thorough'"):
        audit(TwoProducts(), inputs, effort="quick")
