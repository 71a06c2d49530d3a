import json
import random

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from captum_density import metrics
from captum_density.attr import FullGrad
from captum_density.audit import Method, audit
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
    ig, nothing, saliency = audit(TwoProducts(), inputs, target, methods, **FEW).rows
    assert ig.completeness_gap < 1e-5  # the integrand is linear: Gauss-Legendre is exact up to rounding
    assert nothing.completeness_gap == pytest.approx(1, abs=1e-6)
    assert saliency.completeness_gap is None


def test_delta_per_noisy_sample_is_averaged(inputs, target):
    # Gradients at the middle and the end of the path, (x_1, x_0) / 2 and (x_1, x_0): the attributions sum to
    # 1.5 * x_0 * x_1 where x_0 * x_1 is to be explained, sample by sample.
    steps = {"n_steps": 2, "method": "riemann_right"}
    method = Method(lambda model: NoiseTunnel(IntegratedGradients(model)), {"nt_samples": 4, "stdevs": 0.5, **steps})
    (row,) = audit(TwoProducts(), inputs, target, {"noisy": method}, **FEW).rows
    assert row.completeness_gap == pytest.approx(0.5, abs=1e-5)


def test_infidelity_is_zero_for_a_linear_model_whichever_kind_the_attribution_is(inputs, target):
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    methods = {
        "contribution": InputXGradient,
        "slope": Method(Saliency, {"abs": False}),
        "wrong kind": Method(Saliency, {"abs": False}, multiplies_by_inputs=True),
    }
    report = audit(model, inputs, target, methods, **FEW)
    contribution, slope, wrong = (row.infidelity for row in report.rows)
    assert abs(contribution) < 1e-5 * report.zero_infidelity
    assert abs(slope) < 1e-5 * report.zero_infidelity
    assert wrong > 1e-3 * report.zero_infidelity


def test_zero_infidelity_is_the_mean_squared_change(inputs, target):
    # f = x_0: a fifth of the erasures remove x_0, the change then is x_0, so the mean square is 0.2 * x_0 ** 2.
    report = audit(TwoProducts(), inputs, target + 1, {"any": Saliency}, infidelity_samples=4000)
    assert report.zero_infidelity == pytest.approx(0.2 * (1 + 9 + 1) / 3, rel=0.1)


def test_sensitivity_is_the_largest_relative_change(inputs, target):
    # The gradient of f_0 is (x_1, x_0), so it moves by as much as the input: at most radius * sqrt(2) over the norm.
    radius = {"sensitivity_samples": 300, "perturb_radius": 0.1}
    (row,) = audit(TwoProducts(), inputs, target, {"grad": Saliency}, **radius).rows
    bound = (0.1 * 2**0.5 / inputs.norm(dim=1)).mean().item()
    assert 0.8 * bound < row.sensitivity_max <= bound * (1 + 1e-5)


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
    alone = audit(model, inputs, target, {"noisy": noisy}, **FEW)
    assert _random_states() == states
    np.random.rand(), random.random(), torch.rand(1)
    together = audit(model, inputs, target, {"other": noisy, "noisy": noisy}, **FEW)
    other_seed = audit(model, inputs, target, {"noisy": noisy}, seed=2**63 - 1, **FEW)

    def figures(row):
        return (row.completeness_gap, row.infidelity, row.sensitivity_max, row.shift_sensitivity)

    assert figures(alone.rows[0]) == figures(together.rows[1])
    assert figures(alone.rows[0]) != figures(other_seed.rows[0])
    assert torch.equal(alone.attributions["noisy"], together.attributions["noisy"])
    assert not torch.equal(alone.attributions["noisy"], other_seed.attributions["noisy"])


def test_shift_sensitivity_is_the_mean_of_the_metric(inputs, target):
    model = TwoProducts()
    (row,) = audit(model, inputs, target, {"grad": Method(Saliency, {"abs": False})}, **FEW).rows
    moved = metrics.shift_sensitivity(lambda model: Saliency(model).attribute, model, inputs, target=target, abs=False)
    assert row.shift_sensitivity == moved.cosine_distance.mean().item() > 0.05


@pytest.mark.parametrize("method", [Saliency, IntegratedGradients, DeepLift, FullGrad])
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_a_view_is_what_is_explained(method, target):
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 6)
    methods = {"logits": method, "centered": Method(method, view=CenteredLogits)}
    report = audit(model, inputs, target, methods, **FEW)
    of_the_view = audit(CenteredLogits(model), inputs, target, {"any": method}, **FEW)
    logits, centered = report.rows
    (direct,) = of_the_view.rows
    assert torch.equal(report.attributions["centered"], of_the_view.attributions["any"])
    assert not torch.equal(report.attributions["centered"], report.attributions["logits"])
    for figure in ("completeness_gap", "infidelity", "zero_infidelity", "sensitivity_max"):
        assert getattr(centered, figure) == getattr(direct, figure)
    assert logits.zero_infidelity == report.zero_infidelity != centered.zero_infidelity == of_the_view.zero_infidelity
    assert centered.shift_sensitivity < 1e-6
    assert logits.shift_sensitivity > 1e-4  # a linear shift moves one of FullGrad's many terms, the input's


def test_views_are_told_apart_in_the_legend(inputs, target):
    methods = {"plain": Saliency}
    methods |= {name: Method(Saliency, view=CenteredLogits) for name in ("mean", "again")}
    methods["triple"] = Method(Saliency, view=lambda model: lambda x: 3 * model(x))
    report = audit(TwoProducts(), inputs, target, methods, **FEW)
    plain, mean, again, triple = (row.zero_infidelity for row in report.rows)
    assert plain == report.zero_infidelity
    assert mean == again
    assert triple == pytest.approx(9 * plain)
    scales = f"would score {plain:.3g}; {mean:.3g} for 'mean' and 'again'; {triple:.3g} for 'triple'."
    assert scales in report.table()
    assert f"would score {plain:.3g}." in audit(TwoProducts(), inputs, target, {"plain": Saliency}, **FEW).table()


def test_a_method_is_made_once_for_the_model_and_once_for_its_shifted_twin(inputs, target):
    model, seen = TwoProducts(), []

    def make(model):
        seen.append(model)
        return Saliency(model)

    audit(model, inputs, target, {"seen": make}, **FEW)
    assert seen[0] is model
    assert [type(each) for each in seen[1:]] == [SoftmaxShift]


def test_one_output_has_no_shift_sensitivity(inputs, target):
    report = audit(nn.Linear(2, 1), inputs, target, {"grad": Saliency}, **FEW)
    assert report.rows[0].shift_sensitivity is None
    assert report.table().splitlines()[2].split("|")[5].strip() == "-"


def test_inputs_and_model_are_left_as_they_were(inputs, target):
    model = nn.Linear(2, 2).train()
    inputs.requires_grad_()
    audit(model, inputs, target, {"IG": IntegratedGradients}, **FEW)
    assert inputs.requires_grad
    assert inputs.grad is None
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_table_and_dict_hold_the_figures(inputs, target):
    centered = Method(Saliency, view=CenteredLogits)
    methods = {"IG": IntegratedGradients, "a longer name": Saliency, "centered": centered}
    report = audit(TwoProducts(), inputs, target, methods, **FEW)
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[:5]}) == 1, "the columns are not aligned"
    assert [cell.strip() for cell in lines[3].split("|")[1:3]] == ["a longer name", "-"]
    column = [line.split("|")[5].strip() for line in lines[:5]]
    assert column[0] == "shift sensitivity"
    assert column[2:4] == [f"{row.shift_sensitivity:.3g}" for row in report.rows[:2]]
    assert column[4] in ("0", "<1e-6")
    assert "Lower is better" in lines[6]
    assert all(len(line) <= 120 for line in lines)
    stored = json.loads(json.dumps(report.to_dict()))
    assert [row["name"] for row in stored["rows"]] == list(methods)
    assert stored["rows"][1]["completeness_gap"] is None
    for figure in ("infidelity", "zero_infidelity", "shift_sensitivity"):
        assert stored["rows"][0][figure] == getattr(report.rows[0], figure)
    assert stored["examples"] == 3


@pytest.mark.cuda
def test_cuda(inputs, target):
    model = nn.Linear(2, 2).cuda()
    state = torch.cuda.get_rng_state()
    methods = {
        "noisy": lambda model: NoiseTunnel(Saliency(model)),
        "IG": IntegratedGradients,
        "centered": Method(IntegratedGradients, view=CenteredLogits),
    }
    report = audit(model, inputs.cuda(), target.cuda(), methods, **FEW)
    assert report.attributions["noisy"].is_cuda
    assert report.rows[2].shift_sensitivity < 1e-6 < report.rows[1].shift_sensitivity
    assert torch.equal(torch.cuda.get_rng_state(), state)
    again = audit(model, inputs.cuda(), target.cuda(), methods, **FEW)
    assert torch.equal(again.attributions["noisy"], report.attributions["noisy"])
    audit(model.cpu(), inputs, target, methods, **FEW)
    assert torch.equal(torch.cuda.get_rng_state(), state), "measuring on the CPU moved the GPU's generator"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": [[1.0, 2.0]]}, TypeError, "floating-point tensor, got list"),
        ({"inputs": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"inputs": torch.ones(0, 2), "target": torch.ones(0).long()}, ValueError, r"N > 0, got \(0, 2\)"),
        ({"target": 0}, ValueError, r"shape \(3,\).*got int"),
        ({"target": torch.zeros(2).long()}, ValueError, r"shape \(3,\).*got \(2,\)"),
        ({"inputs": torch.full((3, 2), torch.nan)}, ValueError, "finite, got 6 NaN"),
        ({"methods": {}}, ValueError, "methods is empty"),
        ({"methods": {"a": Saliency(TwoProducts())}}, TypeError, r"methods\['a'\].*class Saliency; pass the class"),
        ({"methods": {"a": Saliency(TwoProducts()).attribute}}, TypeError, r"methods\['a'\].*pass the class"),
        ({"methods": {"a": "Saliency"}}, TypeError, r"methods\['a'\].*class str; pass the class"),
        ({"methods": {"a": lambda model: model}}, TypeError, r"methods\['a'\] must make.*but made.*TwoProducts"),
        ({"methods": {"a": lambda model: Saliency}}, TypeError, r"methods\['a'\] must make.*but made Saliency"),
    ],
)
def test_bad_input_names_what_is_wrong(inputs, target, change, error, message):
    arguments = {"inputs": inputs, "target": target, "methods": {"any": Saliency}, **change}
    with pytest.raises(error, match=message):
        audit(TwoProducts(), **arguments)


def test_a_method_refuses_an_attribution_and_a_view_that_is_no_function():
    with pytest.raises(TypeError, match=r"class IntegratedGradients; pass the class"):
        Method(IntegratedGradients(TwoProducts()))
    with pytest.raises(TypeError, match=r"class NoiseTunnel.*lambda model: NoiseTunnel\(Saliency\(model\)\)"):
        Method(NoiseTunnel(Saliency(TwoProducts())))
    with pytest.raises(TypeError, match=r"view.*such as CenteredLogits, but is an object of class str"):
        Method(Saliency, view="CenteredLogits")
