"""The axioms as figures: known answers, slow oracles, the literature's table, and what is refused."""

import copy
import json
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import (
    DeepLift,
    InputXGradient,
    IntegratedGradients,
    LayerGradientXActivation,
    NoiseTunnel,
    Saliency,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from captum_density.attr import FullGrad
from captum_density.metrics import (
    AxiomTable,
    axiom_table,
    completeness_gap,
    implementation_gap,
    sensitivity_gap,
    symmetry_gap,
)
from captum_density.metrics._axioms import _methods
from captum_density.rewriting import insert_identity, split_layer


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def clipped(x):
    return x.clamp(max=1).sum(1)


def constant(*values):
    """An explanation that is the same whatever it explains."""
    return lambda x: torch.tensor([values], dtype=x.dtype).expand(len(x), -1)


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


# ----------------------------------------------------------------------------------------------------------------------
# Completeness


@pytest.mark.parametrize(
    ("attributions", "gap"),
    [((1, 2), 0), ((-1, -2), 2), ((0, 0), 1), ((3, 3), 0.5), ((4, -1), 0), ((5, -5), 0.3), ((1, 1), 1 / 3)],
)
def test_completeness_by_hand(attributions, gap):
    # f(x) - f(0) = 3; |sum - 3| over the larger of 3 and the sum of absolute values
    gaps = completeness_gap(lambda x: x.sum(1) + 5, row(1, 2), row(*attributions))
    assert gaps.dtype == torch.float64
    assert gaps.item() == pytest.approx(gap, abs=1e-15)


def test_nothing_to_explain_is_explained_by_nothing():
    assert completeness_gap(lambda x: 0 * x.sum(1), row(1, 2), row(0, 0)).item() == 0
    assert completeness_gap(lambda x: 0 * x.sum(1), row(1, 2), row(1e-300, 0)).item() == 1


def test_complete_to_the_output(network):
    x = normal(4, 3)
    a = FullGrad(network, complete=True).attribute(x, target=1)
    assert completeness_gap(network, x, a, target=1, complete_to="output").max() < 1e-12
    assert completeness_gap(network, x, a, target=1).min() > 1e-3
    assert completeness_gap(network, x, a, target=0, complete_to="output").min() > 1e-3


@settings(max_examples=20)
@given(st.integers(0, 1000), st.booleans())
def test_integrated_gradients_of_a_square_are_complete(seed, per_example):
    generator = torch.Generator().manual_seed(seed)
    w, x, y = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (1, 3, 3))
    baselines = (y if per_example else y[:1], 0.5)

    def f(x, y, scale):
        return scale * (w * x * y).sum(1)

    at = (x, x + 1)
    scale = torch.arange(1.0, 4)
    expanded = (baselines[0].expand(3, 4), torch.full((3, 4), 0.5, dtype=torch.float64))
    a = IntegratedGradients(f).attribute(at, expanded, additional_forward_args=(scale,), n_steps=5)
    assert completeness_gap(f, at, a, baselines, (scale,)).max() < 1e-12
    assert completeness_gap(f, at, a, 0.0, (scale,)).max() > 1e-6


def test_completeness_is_per_example(network):
    x, target = normal(5, 3), [0, 1, 1, 0, 1]
    a = InputXGradient(network).attribute(x, target=target)
    whole = completeness_gap(network, x, a, target=torch.tensor(target))
    single = [completeness_gap(network, x[i : i + 1], a[i : i + 1], target=target[i]) for i in range(5)]
    assert_close(whole, torch.cat(single))
    assert whole.min() > 0


# ----------------------------------------------------------------------------------------------------------------------
# Sensitivity


@pytest.mark.parametrize(("x", "gap"), [((2, 2), 1), ((2, 0.5), 0.5), ((0.5, -3), 0), ((0, 0), 0), ((2, 0), 1)])
def test_gradients_where_a_function_is_flat(x, gap):
    assert sensitivity_gap(Saliency(clipped), clipped, row(*x)).item() == gap
    assert sensitivity_gap(IntegratedGradients(clipped).attribute, clipped, row(*x), n_steps=40).item() == 0


def paper_form(attribute, f, x, baselines):
    """One input, one baseline and one feature at a time."""
    gaps = []
    for example, baseline in zip(x, baselines, strict=True):
        changed, missed = 0, 0
        for i in range(len(example)):
            point = baseline.clone()
            point[i] = example[i]
            if (f(point[None]) - f(baseline[None])).abs().item() > 1e-9:
                changed += 1
                missed += attribute(point[None])[0, i].abs().item() < 1e-12
        gaps.append(missed / changed if changed else 0.0)
    return torch.tensor(gaps, dtype=torch.float64)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([None, 1, 3, 5, 8, 100]))
def test_sensitivity_is_the_papers(seed, limit):
    generator = torch.Generator().manual_seed(seed)
    x, baselines = (torch.randn(4, 5, generator=generator, dtype=torch.float64).round(decimals=1) for _ in range(2))

    def f(x):
        return (x[:, 0] * x[:, 1]).clamp(max=0.5) + (x[:, 2] - 0.5).relu() + x[:, 3].clamp(-0.5, 0.5)

    attribute = partial(Saliency(f).attribute, abs=False)
    gaps = sensitivity_gap(attribute, f, x, baselines, max_examples_per_batch=limit)
    assert_close(gaps, paper_form(attribute, f, x, baselines))


def test_features_are_counted_over_all_inputs():
    x, y = normal(2, 1, 2).abs() + 1, normal(2, 3).abs() + 1

    def f(x, y):
        return x.flatten(1).sum(1) + y[:, 0].clamp(max=1) + y[:, 2]

    saliency = Saliency(f).attribute
    for features, gap in (((2,), 1), ((0, 1), 0), ((3,), 0), ((2, 4), 0.5), (None, 0.25)):
        assert sensitivity_gap(saliency, f, (x, y), features=features).tolist() == [gap, gap], features


def test_targets_arguments_and_baselines_follow_their_examples():
    x = torch.full((3, 2), 2.0, dtype=torch.float64)

    def f(x, ceiling):
        return torch.stack([x.sum(1), torch.minimum(x, ceiling[:, None]).sum(1)], dim=1)

    ceiling = torch.tensor([1.0, 1, 9], dtype=torch.float64)
    baselines = torch.tensor([[0.0], [2], [0]], dtype=torch.float64)
    for target, gaps in (
        ([1, 1, 1], [1, 0, 0]),
        ([0, 1, 1], [0, 0, 0]),
        (1, [1, 0, 0]),
        (torch.tensor([1, 0, 1]), [1, 0, 0]),
    ):
        for limit in (None, 2, 6):
            own_gaps = sensitivity_gap(
                Saliency(f).attribute, f, x, baselines, ceiling, target, max_examples_per_batch=limit
            )
            assert own_gaps.tolist() == gaps, (target, limit)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("stretch", [1e-6, 1.0, 1e6])
def test_units_of_input_and_output_do_not_matter(scale, stretch):
    def f(x):
        return scale * (x / stretch).clamp(max=1).sum(1)

    x = stretch * row(2, 0.5)
    assert sensitivity_gap(Saliency(f).attribute, f, x).item() == 0.5
    assert sensitivity_gap(InputXGradient(f).attribute, f, x).item() == 0.5
    # What rounding leaves is zero.
    almost = constant(*[1e-9 * scale * min(1, 1 / stretch)] * 2)
    assert sensitivity_gap(almost, f, x).item() == 1
    assert sensitivity_gap(almost, f, x, tolerance=1e-12).item() == 0


def test_rounding_of_the_output_is_no_change():
    def f(x):
        return 1e6 + 1e-9 * x[:, 0] + x[:, 1]  # 9 units in the last place

    assert sensitivity_gap(constant(0.0, 1.0), f, row(1, 1)).item() == 0
    assert sensitivity_gap(constant(0.0, 1.0), lambda x: f(x) - 1e6 + 0.01 * x[:, 0], row(1, 1)).item() == 0.5


def test_explanations_get_what_they_take():
    calls = {}

    def explain(x, baselines, target=None):
        calls.update(baselines=baselines.tolist(), target=target)
        return torch.ones_like(x)

    f = lambda x, y: torch.stack([x[:, 0] * y, x[:, 0]], 1)  # noqa: E731
    sensitivity_gap(explain, f, row(1, 2), baselines=0.5, additional_forward_args=3, target=1)
    assert calls == {"baselines": [[0.5, 0.5]], "target": 1}

    def explain_any(x, **more):
        calls.clear()
        calls.update(more)
        return torch.ones_like(x)

    sensitivity_gap(explain_any, f, row(1, 2), additional_forward_args=3, target=1, steps=7)
    assert calls == {"additional_forward_args": (3,), "target": 1, "steps": 7}
    sensitivity_gap(explain_any, f, row(1, 2), 0.5, 3, 1)
    assert calls["baselines"].tolist() == [[0.5, 0.5]]


def test_baselines_follow_the_features_that_are_tried():
    def explain(x, baselines):
        assert (x != baselines).sum(1).tolist() == [1] * len(x)
        return x - baselines

    x, baselines = row(1, 2, 3).expand(3, 3), row(0, 2, 4, 5, 3, 3, 0, 0, 0).reshape(3, 3)
    for limit in (None, 4, 9):
        assert sensitivity_gap(explain, f, x, baselines, max_examples_per_batch=limit).tolist() == [0, 0, 0]


# ----------------------------------------------------------------------------------------------------------------------
# Implementation invariance


def linear(weight, bias):
    layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer


def figure_7():
    """f = relu(relu(x1) - 1 - relu(x2)) and g = relu(relu(x1 - 1) - relu(x2)): arXiv:1703.01365, figure 7."""
    unit, difference = [[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0]]
    f = nn.Sequential(linear(unit, [0.0, 0.0]), nn.ReLU(), linear(difference, [-1.0]), nn.ReLU())
    g = nn.Sequential(linear(unit, [-1.0, 0.0]), nn.ReLU(), linear(difference, [0.0]), nn.ReLU())
    return f, g


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes:UserWarning")
def test_figure_7():
    f, g = figure_7()
    x = 3 * normal(1000, 2)
    assert torch.equal(f(x) > 0, g(x) > 0)
    assert_close(f(x), g(x))
    # The figure's numbers: DeepLift 1.5, -0.5 and 2, -1; integrated gradients 1.5, -0.5 for both.
    assert DeepLift(f).attribute(row(3, 1)).tolist() == [[1.5, -0.5]]
    assert DeepLift(g).attribute(row(3, 1)).tolist() == [[2, -1]]
    gap = math.sqrt(0.5) / (math.sqrt(2.5) + math.sqrt(5))
    assert implementation_gap(DeepLift, f, g, row(3, 1)).item() == pytest.approx(gap, rel=1e-12)
    assert implementation_gap(IntegratedGradients, f, g, row(3, 1)).item() == 0


@pytest.mark.parametrize(
    ("first", "second", "gap"),
    [((1, 0), (1, 0), 0), ((1, 0), (-1, 0), 1), ((0, 0), (3, 1), 1), ((0, 0), (0, 0), 0), ((3, 0), (0, 4), 5 / 7)],
)
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_implementation_by_hand(first, second, gap, scale):
    explanations = {False: constant(*first), True: constant(*second)}
    models = [nn.Identity(), nn.Sequential(nn.Identity())]

    def make(model):
        return lambda x: explanations[model is models[1]](model(x)) * scale

    gaps = implementation_gap(make, *models, row(2, 5), target=0)
    assert gaps.item() == pytest.approx(gap, rel=1e-12)


def test_both_networks_get_the_same_random_numbers(network):
    x, before = normal(4, 3), states()
    make = lambda model: partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=3, stdevs=1.0)  # noqa: E731
    assert implementation_gap(make, network, split_layer(network, "0"), x, target=1).max() < 1e-12
    assert states() == before


def test_methods_may_write_to_their_inputs(network):
    def make(model):
        return lambda x: InputXGradient(model).attribute(x.clone(), target=0) + 0 * x.zero_()

    x = normal(2, 3)
    before = x.clone()
    assert implementation_gap(make, network, split_layer(network, "0"), x, target=0).max() < 1e-12
    assert sensitivity_gap(make(network), network, x, target=0).max() < 1
    assert torch.equal(x, before)


def test_networks_may_write_to_their_inputs():
    def doubled(x):
        return (x.mul_(2) if not x.requires_grad else x * 2).sum(1)

    def explain(x, baselines):
        assert baselines.tolist() == [[1, 1]] * len(x)
        return x - baselines

    assert sensitivity_gap(explain, doubled, row(3, 5), 1.0).item() == 0
    assert symmetry_gap(explain, doubled, row(3, 3), [(0, 1)], 1.0).item() == 0


def test_networks_must_compute_the_same(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[2].bias[1] += 0.125
    with pytest.raises(ValueError, match=r"compute different functions: their outputs differ by up to 0\.12"):
        implementation_gap(Saliency, network, other, normal(2, 3), target=1)
    assert implementation_gap(Saliency, network, other, normal(2, 3), target=0).max() == 0

    def bump(x):  # the same at the baseline and the input, and not between
        return x.sum(1) * (1 + (x.sum(1) * (2 - x.sum(1))))

    with pytest.raises(ValueError, match="compute different functions"):
        implementation_gap(Saliency, lambda x: x.sum(1), bump, row(1, 1))
    network.float()
    rounded = implementation_gap(Saliency, network, split_layer(network, "0"), torch.randn(9, 3), target=0)
    assert 0 < rounded.max() < 1e-5


def test_methods_must_explain_what_they_are_given(network):
    with pytest.raises(ValueError, match="ran the first network and not the rewritten one"):
        implementation_gap(
            lambda model: Saliency(network).attribute, network, split_layer(network, "0"), normal(2, 3), target=0
        )
    with pytest.raises(TypeError, match="pass a function of the model"):
        implementation_gap(network, network, network, normal(2, 3), target=0)
    layer = lambda model: LayerGradientXActivation(model, model[0])  # noqa: E731
    rewritten = insert_identity(network, "0")
    assert implementation_gap(layer, network, rewritten, normal(2, 3), target=0).max() < 1e-12
    wide = nn.Sequential(nn.Linear(3, 7).double(), nn.Linear(7, 2).double())
    narrow = nn.Sequential(nn.Identity(), nn.Linear(3, 2).double())
    with torch.no_grad():
        narrow[1].weight.copy_(wide[1].weight @ wide[0].weight)
        narrow[1].bias.copy_(wide[1].weight @ wide[0].bias + wide[1].bias)
    with pytest.raises(ValueError, match="have 7 and 3 elements"):
        implementation_gap(layer, wide, narrow, normal(2, 3), target=0)


# ----------------------------------------------------------------------------------------------------------------------
# Symmetry


def product(x):
    return x[:, 0] * x[:, 1] + x[:, 2]


@pytest.mark.parametrize(
    ("attributions", "gap"),
    [((1, 1, 5), 0), ((3, 1, 5), 0.5), ((1, -1, 5), 1), ((0, 2, 5), 1), ((0, 0, 5), 0), ((1e-15, -1e-15, 5), 0)],
)
def test_symmetry_by_hand(attributions, gap):
    assert symmetry_gap(constant(*attributions), product, row(2, 2, 3), [(0, 1)]).item() == gap


def test_the_worst_pair_of_each_example():
    def explain(x):
        return torch.tensor([[1.0, 1, 3, 1], [1, 1, 1, 1], [0, 1, 1, 1]], dtype=x.dtype)

    gaps = symmetry_gap(explain, lambda x: x.sum(1), torch.ones(3, 4).double(), [(0, 1), (2, 3)])
    assert gaps.tolist() == [0.5, 0, 1]


def test_symmetry_over_inputs_with_baselines():
    x, y = normal(2, 1, 2), normal(2, 1)
    y[:, 0] = x[:, 0, 1]

    def f(x, y):
        return (x[:, 0, 1] * y[:, 0]).exp() * x[:, 0, 0]

    ig = IntegratedGradients(f)
    assert symmetry_gap(ig.attribute, f, (x, y), [(1, 2)], 0.25, n_steps=20).max() < 1e-12
    with pytest.raises(ValueError, match="the baselines differ in features 1 and 2"):
        symmetry_gap(ig.attribute, f, (x, y), [(1, 2)], (0.25, 0.5))


@pytest.mark.parametrize("f", [lambda x: x[:, 0] + 2 * x[:, 1], lambda x: (x[:, 0] - 2 * x[:, 1]).relu()])
def test_functions_that_are_not_symmetric(f):
    with pytest.raises(ValueError, match="not symmetric in features 0 and 1: swapping them changes an output by"):
        symmetry_gap(constant(1.0, 1.0), f, row(2, 2), [(0, 1)])
    with pytest.raises(ValueError, match="not symmetric"):  # nor where input and baseline agree
        symmetry_gap(constant(1.0, 1.0), f, row(0, 0), [(0, 1)])


# ----------------------------------------------------------------------------------------------------------------------
# The table


@pytest.fixture(scope="module", params=["300 steps", pytest.param("default", marks=pytest.mark.slow)])
def table(request):
    """As it is by default; or of fewer steps, in a third of the time, at a tolerance that is the larger."""
    before = states()
    if request.param == "default":
        result = axiom_table()
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(_methods._STEPS, "n_steps", 300)
            result = axiom_table(tolerance=0.03)
    assert states() == before
    return result


IMPLEMENTATION, OUTPUT = "implementation invariance", "completeness to output"


def test_table_reproduces_the_literature(table):
    holds = table.holds
    kept = {axiom: {method for method in holds if holds[method][axiom]} for axiom in table.axioms}
    paths = {f"PathIntegratedGradients, {path}" for path in ("straight", "bent", "one by one")}
    exact = {"IntegratedGradients", "ShapleyValues", *paths}
    assert kept["completeness"] == {*exact, "DeepLift"}
    assert kept[OUTPUT] == {"FullGrad(complete=True)"}
    assert kept["sensitivity"] == {*exact, "DeepLift", "FeatureAblation", "FullGrad(complete=True)"}
    # Whatever asks the function alone.
    assert kept[IMPLEMENTATION] == {*exact, "FeatureAblation", "gradient", "InputXGradient"}
    # Of the paths, the straight one.
    assert (
        not {"GuidedBackprop", "PathIntegratedGradients, bent", "PathIntegratedGradients, one by one"}
        & kept["symmetry"]
    )
    assert {"IntegratedGradients", "PathIntegratedGradients, straight", "ShapleyValues"} < kept["symmetry"]


def test_gradients_fail_where_the_function_is_flat(table):
    for method in ("gradient", "InputXGradient", "GuidedBackprop", "Deconvolution", "LRP, epsilon"):
        gaps = table.networks[method, "sensitivity"]
        assert gaps["min(x, 1) at 2"] == 1
        assert gaps["max(0, x - 10) at 15"] == 0


def test_figures_of_the_table(table):
    assert table.gaps.shape == (len(table.methods), 5)
    assert not table.gaps.isnan().any()
    assert table.gaps.min() >= 0
    assert table.networks["DeepLift", IMPLEMENTATION]["figure 7"] == pytest.approx(0.18524, abs=1e-5)
    # An integral of 300 or 1000 steps misses a kink by at most one of them.
    n_steps = 1000 if table.tolerance == 0.01 else 300
    assert 1e-6 < table.gaps[table.methods.index("IntegratedGradients"), 0] < 5 / n_steps
    lrp = table.networks["LRP, epsilon", IMPLEMENTATION]
    assert lrp["folded batch norm"].startswith("TypeError: Module of type")
    # Gradient times input, but for a relevance counted twice where an identity is inserted.
    assert max(lrp[name] for name in ("figure 7", "split layer", "permuted units", "dense convolution")) < 1e-6
    assert lrp["inserted identity"] == pytest.approx(1 / 3, abs=1e-6)


def test_full_gradients_depend_on_what_a_bias_belongs_to(table):
    # Of a convolution it is spread over the pixels it covers, of a linear layer over all.
    gaps = dict(table.networks["FullGrad(complete=True)", IMPLEMENTATION])
    assert gaps.pop("dense convolution") > 0.1
    assert max(gaps.values()) < 1e-12


def test_table_in_words(table):
    text, page = table.table(), table._repr_html_()
    lines = text.splitlines()
    assert len({len(line) for line in lines[: len(table.methods) + 2]}) == 1
    assert lines[2].startswith("| gradient ")
    lrp = next(line for line in lines if line.startswith("| LRP, epsilon "))
    assert "no* 0.33 " in lrp
    assert lines[-1].startswith("LRP, alpha 1 beta 0 refuses folded batch norm: TypeError")
    assert text.count(" refuses ") == 2
    assert page.count("<tr>") == len(table.methods) + 1
    assert "&lt;class" in page
    assert "IntegratedGradients: completeness, sensitivity, implementation invariance, symmetry" in repr(table)
    assert "GuidedBackprop: none" in repr(table)


def test_table_as_plain_values(table):
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain["tolerance"] == table.tolerance
    cell = plain["methods"]["gradient"]["sensitivity"]
    assert cell == {"gap": 1.0, "holds": False, "networks": table.networks["gradient", "sensitivity"]}


def test_lrp_with_positive_contributions_is_not_invariant(table):
    # What "DeepLift and LRP fail" is about: the rules that are used, not the one that is gradient times input.
    assert table.networks["LRP, alpha 1 beta 0", IMPLEMENTATION]["max(x1, x2) at (2, 1)"] > 0.1
    assert table.holds["LRP, alpha 1 beta 0"] == dict.fromkeys(table.axioms, False)


def test_methods_that_raise_do_not_lose_the_others():
    def refusing(model):
        raise NotImplementedError("not\nfor <this>")

    def spoiling(model):
        with torch.no_grad():
            next(model.parameters()).zero_()
        return InputXGradient(model)

    methods = {"refusing": refusing, "spoiling": spoiling, "after": InputXGradient}
    own_table = axiom_table(methods)
    assert own_table.methods == tuple(methods)
    assert own_table.gaps[0].isnan().all()
    assert own_table.holds["refusing"] == dict.fromkeys(own_table.axioms)
    assert own_table.to_dict()["methods"]["refusing"]["symmetry"]["gap"] is None
    assert own_table.table().count("refusing refuses") == 1
    assert "NotImplementedError: not for <this>" in own_table.table()
    assert "NotImplementedError: not for &lt;this&gt;" in own_table._repr_html_()
    assert "|            - |" in own_table.table().splitlines()[2]
    assert dict(own_table.networks["after", "symmetry"]) == dict(
        axiom_table({"x": InputXGradient}).networks["x", "symmetry"]
    )


def test_tolerance_decides():
    strict = axiom_table({"IG": lambda model: partial(IntegratedGradients(model).attribute, n_steps=5)}, tolerance=0.5)
    loose = AxiomTable(strict.methods, strict.axioms, strict.networks, 1e-9)
    assert strict.holds["IG"]["completeness"]
    assert not loose.holds["IG"]["completeness"]
    equal = AxiomTable(("m",), ("a",), {("m", "a"): {"n": 0.25}}, 0.25)
    assert equal.holds == {"m": {"a": True}}


# ----------------------------------------------------------------------------------------------------------------------
# Nothing is left behind, and bad input


class Watched(nn.Module):
    """Batch norm in training mode, a parameter with a gradient, and an order to raise."""

    def __init__(self, fails_after=None):
        super().__init__()
        self.layer, self.norm, self.calls, self.fails_after = nn.Linear(2, 2), nn.BatchNorm1d(2), 0, fails_after
        self.layer.weight.grad = torch.ones(2, 2)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        self.calls += 1
        if self.fails_after is not None and self.calls > self.fails_after:
            raise RuntimeError("enough")
        hidden = self.norm(self.layer(x))
        return hidden.sum(1) + 0 * self.layer.bias.sum()


def measures(model, x):
    saliency = Saliency(model).attribute
    return {
        "completeness": lambda: completeness_gap(model, x, x),
        "sensitivity": lambda: sensitivity_gap(saliency, model, x),
        "implementation": lambda: implementation_gap(Saliency, model, model, x),
        "symmetry": lambda: symmetry_gap(saliency, model, x, [(0, 1)]),
    }


@pytest.mark.parametrize("fails_after", [None, 0, 1, 3])
@pytest.mark.parametrize("measure", ["completeness", "sensitivity", "implementation", "symmetry"])
def test_everything_is_left_as_it_was(measure, fails_after):
    model = Watched(fails_after)
    with torch.no_grad():
        model.layer.weight[:, 1] = model.layer.weight[:, 0]  # symmetric
    x = torch.full((3, 2), 1.5, requires_grad=True)
    before, random_states = copy.deepcopy(model.state_dict()), states()
    if fails_after is None or (fails_after == 3 and measure == "completeness"):
        assert measures(model, x)[measure]().shape == (3,)
    else:
        with pytest.raises(RuntimeError, match="enough"):
            measures(model, x)[measure]()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert model.norm.training
    assert torch.equal(model.layer.weight.grad, torch.ones(2, 2))
    assert model.layer.bias.grad is None
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert x.grad is None
    assert x.requires_grad
    assert x.tolist() == [[1.5, 1.5]] * 3
    assert states() == random_states


@pytest.mark.parametrize("measure", ["completeness", "sensitivity", "implementation", "symmetry"])
def test_bad_models_and_inputs(measure):
    dropout, x = nn.Sequential(nn.Dropout(), nn.Flatten(0)), torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"draws random numbers"):
        measures(lambda x: dropout(x)[:1] + x[:, 0], x)[measure]()
    with pytest.raises(ValueError, match="output contains NaN or infinity"):
        measures(lambda x: x.sum(1) / 0, x)[measure]()
    with pytest.raises(TypeError, match="which has no gradient"):
        measures(lambda x: x.sum(1), x.long())[measure]()
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        measures(lambda x: x.sum(1), x * math.inf)[measure]()
    with pytest.raises(ValueError, match="at least one example"):
        measures(lambda x: x.sum(1), x[:0])[measure]()
    with pytest.raises(ValueError, match="have no features"):
        measures(lambda x: x.sum(1), x[:, :0])[measure]()


def f(x):
    return x.sum(1)


BAD = {
    "no such sum": (lambda: completeness_gap(f, row(1), row(1), complete_to="x"), "must be 'difference' or 'output'"),
    "baseline of a sum": (
        lambda: completeness_gap(f, row(1), row(1), 1.0, complete_to="output"),
        "leave baselines out",
    ),
    "other rows": (lambda: completeness_gap(f, normal(2, 2), normal(3, 2)), "must have as many rows"),
    "infinite attributions": (lambda: completeness_gap(f, row(1), row(math.inf)), "contain NaN or infinity"),
    "baseline shape": (lambda: completeness_gap(f, row(1, 2), row(1, 2), normal(3)), "must broadcast to its input"),
    "baselines": (lambda: completeness_gap(f, row(1, 2), row(1, 2), (0, 0)), "a baseline for each of 1 inputs"),
    "tolerance": (lambda: sensitivity_gap(f, f, row(1), tolerance=1), r"must be in \[0, 1\)"),
    "features": (lambda: sensitivity_gap(f, f, row(1, 2), features=[2]), "indices from 0 to 1"),
    "no features": (lambda: sensitivity_gap(f, f, row(1, 2), features=[]), "at least one"),
    "features twice": (lambda: sensitivity_gap(f, f, row(1, 2), features=[0, 0]), "different indices"),
    "limit": (lambda: sensitivity_gap(f, f, row(1), max_examples_per_batch=0), "at least 1, but is 0"),
    "few attributions": (
        lambda: sensitivity_gap(lambda x: x[:, :1], f, row(1, 2)),
        "each of 2 features, but there are 1",
    ),
    "pairs": (lambda: symmetry_gap(f, f, row(1, 1), [(0, 2)]), "indices from 0 to 1"),
    "no pairs": (lambda: symmetry_gap(f, f, row(1, 1), []), "at least one"),
    "triple": (lambda: symmetry_gap(f, f, row(1, 1, 1), [(0, 1, 2)]), "pairs of different indices"),
    "self": (lambda: symmetry_gap(f, f, row(1, 1), [(0, 0)]), "pairs of different indices"),
    "unequal": (lambda: symmetry_gap(f, f, row(1, 2), [(0, 1)]), "the inputs differ in features 0 and 1"),
    "no methods": (lambda: axiom_table({}), "methods is empty"),
    "table tolerance": (lambda: axiom_table({"x": Saliency}, tolerance=-1), r"must be in \[0, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case):
    call, words = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_types():
    for explanation in (nn.Identity(), nn.Identity, 3):
        with pytest.raises(TypeError, match=r"pass such as `Saliency\(model\)`|must return an attribution"):
            sensitivity_gap(explanation, f, row(1))
    with pytest.raises(TypeError, match="pass the model that it explains"):
        completeness_gap(Saliency(f), row(1), row(1))
    with pytest.raises(TypeError, match="non-empty tuple"):
        completeness_gap(f, (), row(1))
    with pytest.raises(TypeError, match=r"methods\['x'\] .* pass a function of the model"):
        axiom_table({"x": nn.Identity()})
    with pytest.raises(TypeError, match="methods must be a mapping"):
        axiom_table([Saliency])


def test_a_method_is_a_class_an_attribution_its_method_or_a_function(network):
    x, rewritten = normal(2, 3), split_layer(network, "0")
    own = InputXGradient(network)
    forms = (own, own.attribute, partial(own.attribute), lambda model: InputXGradient(model).attribute)
    gap = implementation_gap(InputXGradient, network, rewritten, x, target=0)
    assert all(torch.equal(implementation_gap(form, network, rewritten, x, target=0), gap) for form in forms)
    of_the_class, of_an_object = (axiom_table({"x": method}) for method in (InputXGradient, own))
    assert of_the_class.to_dict() == of_an_object.to_dict()
    f, x = (lambda x: x.sum(1)), x[:, :1].expand(2, 3)
    for measure in (sensitivity_gap, partial(symmetry_gap, pairs=[(0, 1)])):
        own = InputXGradient(f)
        gap = measure(own.attribute, f, x)
        assert all(torch.equal(measure(form, f, x), gap) for form in (own, InputXGradient, partial(InputXGradient)))


def test_the_tables_former_name_for_its_results_warns():
    table = AxiomTable(("m",), ("a",), {("m", "a"): {"n": 0.25}})
    with pytest.deprecated_call(match="networks"):
        assert table.found is table.networks


def test_gaps_in_inference_mode():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), normal(2, 3)
    expected = sensitivity_gap(InputXGradient(model).attribute, model, x, target=0)
    with torch.inference_mode():
        assert torch.equal(sensitivity_gap(InputXGradient(model).attribute, model, x, target=0), expected)


def test_pairs_that_are_none_are_refused():
    with pytest.raises(TypeError, match="pairs must be pairs of indices"):
        symmetry_gap(Saliency(torch.sum).attribute, lambda x: x.sum(1), normal(2, 3), (0, 1))
