import json

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import nn

from captum_density.audit import Method, audit

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
    model = TwoProducts()
    methods = {"IG": IntegratedGradients(model), "nothing": Nothing(model), "Saliency": Saliency(model)}
    ig, nothing, saliency = audit(model, inputs, target, methods, **FEW).rows
    assert ig.completeness_gap < 1e-5  # the integrand is linear: Gauss-Legendre is exact up to rounding
    assert nothing.completeness_gap == pytest.approx(1, abs=1e-6)
    assert saliency.completeness_gap is None


def test_delta_per_noisy_sample_is_averaged(inputs, target):
    model = TwoProducts()
    # Gradients at the middle and the end of the path, (x_1, x_0) / 2 and (x_1, x_0): the attributions sum to
    # 1.5 * x_0 * x_1 where x_0 * x_1 is to be explained, sample by sample.
    steps = {"n_steps": 2, "method": "riemann_right"}
    method = Method(NoiseTunnel(IntegratedGradients(model)), {"nt_samples": 4, "stdevs": 0.5, **steps})
    (row,) = audit(model, inputs, target, {"noisy": method}, **FEW).rows
    assert row.completeness_gap == pytest.approx(0.5, abs=1e-5)


def test_infidelity_is_zero_for_a_linear_model_whichever_kind_the_attribution_is(inputs, target):
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    methods = {
        "contribution": InputXGradient(model),
        "slope": Method(Saliency(model), {"abs": False}),
        "wrong kind": Method(Saliency(model), {"abs": False}, multiplies_by_inputs=True),
    }
    report = audit(model, inputs, target, methods, **FEW)
    contribution, slope, wrong = (row.infidelity for row in report.rows)
    assert abs(contribution) < 1e-5 * report.zero_infidelity
    assert abs(slope) < 1e-5 * report.zero_infidelity
    assert wrong > 1e-3 * report.zero_infidelity


def test_zero_infidelity_is_the_mean_squared_change(inputs, target):
    # f = x_0: a fifth of the erasures remove x_0, the change then is x_0, so the mean square is 0.2 * x_0 ** 2.
    report = audit(TwoProducts(), inputs, target + 1, {"any": Saliency(TwoProducts())}, infidelity_samples=4000)
    assert report.zero_infidelity == pytest.approx(0.2 * (1 + 9 + 1) / 3, rel=0.1)


def test_sensitivity_is_the_largest_relative_change(inputs, target):
    # The gradient of f_0 is (x_1, x_0), so it moves by as much as the input: at most radius * sqrt(2) over the norm.
    model = TwoProducts()
    (row,) = audit(model, inputs, target, {"grad": Saliency(model)}, sensitivity_samples=300, perturb_radius=0.1).rows
    bound = (0.1 * 2**0.5 / inputs.norm(dim=1)).mean().item()
    assert 0.8 * bound < row.sensitivity_max <= bound * (1 + 1e-5)


def test_a_method_has_the_same_figures_in_any_company_and_random_state_stays(inputs, target):
    model = TwoProducts()
    noisy = Method(NoiseTunnel(Saliency(model)), {"nt_samples": 3})
    state = torch.get_rng_state()
    alone = audit(model, inputs, target, {"noisy": noisy}, **FEW)
    together = audit(model, inputs, target, {"other": noisy, "noisy": noisy}, **FEW)
    other_seed = audit(model, inputs, target, {"noisy": noisy}, seed=1, **FEW)
    assert torch.equal(torch.get_rng_state(), state)

    def figures(row):
        return (row.completeness_gap, row.infidelity, row.sensitivity_max)

    assert figures(alone.rows[0]) == figures(together.rows[1])
    assert figures(alone.rows[0]) != figures(other_seed.rows[0])
    assert torch.equal(alone.attributions["noisy"], together.attributions["noisy"])


def test_inputs_and_model_are_left_as_they_were(inputs, target):
    model = nn.Linear(2, 2).train()
    inputs.requires_grad_()
    audit(model, inputs, target, {"IG": IntegratedGradients(model)}, **FEW)
    assert inputs.requires_grad
    assert inputs.grad is None
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_table_and_dict_hold_the_figures(inputs, target):
    model = TwoProducts()
    methods = {"IG": IntegratedGradients(model), "a longer name": Saliency(model)}
    report = audit(model, inputs, target, methods, **FEW)
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[:4]}) == 1, "the columns are not aligned"
    assert [cell.strip() for cell in lines[3].split("|")[1:3]] == ["a longer name", "-"]
    assert "Lower is better" in lines[5]
    stored = json.loads(json.dumps(report.to_dict()))
    assert [row["name"] for row in stored["rows"]] == list(methods)
    assert stored["rows"][1]["completeness_gap"] is None
    assert stored["rows"][0]["infidelity"] == report.rows[0].infidelity
    assert stored["examples"] == 3


@pytest.mark.cuda
def test_cuda(inputs, target):
    model = nn.Linear(2, 2).cuda()
    state = torch.cuda.get_rng_state()
    methods = {"noisy": NoiseTunnel(Saliency(model)), "IG": IntegratedGradients(model)}
    report = audit(model, inputs.cuda(), target.cuda(), methods, **FEW)
    assert report.attributions["noisy"].is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inputs": [[1.0, 2.0]]}, TypeError, "floating-point tensor, got list"),
        ({"inputs": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"inputs": torch.ones(0, 2), "target": torch.ones(0).long()}, ValueError, r"N > 0, got \(0, 2\)"),
        ({"target": 0}, ValueError, r"shape \(3,\).*got int"),
        ({"target": torch.zeros(2).long()}, ValueError, r"shape \(3,\).*got \(2,\)"),
        ({"methods": {}}, ValueError, "methods is empty"),
    ],
)
def test_bad_input_names_what_is_wrong(inputs, target, change, error, message):
    arguments = {"inputs": inputs, "target": target, "methods": {"any": Saliency(TwoProducts())}, **change}
    with pytest.raises(error, match=message):
        audit(TwoProducts(), **arguments)
