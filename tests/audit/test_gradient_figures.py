"""Whether an audit tells a model from the same model with a gradient laid over it, and what it needs to."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from captum_density import metrics
from captum_density.audit import audit
from captum_density.softmax_shift import BoundedShift, CenteredLogits, LinearShift, SoftmaxShift

FIGURES = ["common_gradient", "off_manifold_gradient", "finite_difference_gap"]
D, ON = 16, 8
BASIS = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(3))).Q


def plane(n=300, seed=0):
    """Data that vary in half of the dimensions."""
    return torch.randn(n, ON, generator=torch.Generator().manual_seed(seed)) @ BASIS[:ON]


class Network(nn.Module):
    """A perceptron that reads what varies, with logits as unlike as those of a trained one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(ON, 16), nn.Tanh(), nn.Linear(16, 8))
        self.layers[0].weight.data *= 4  # gradients differ between examples

    def forward(self, x):
        logits = self.layers(x @ BASIS[:ON].mT)
        return logits - 0.8 * logits.mean(1, keepdim=True)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Network().eval()


def length(model, x):
    gradient = torch.autograd.grad(model(x.requires_grad_()).amax(1).sum(), x)[0]
    return gradient.norm(dim=1).mean().item()


def off(model, size):
    signs = size * torch.tensor([1.0, -1.0]).repeat(4)
    return lambda x: model(x) + (x @ BASIS[-1])[:, None] * signs


LIES = {
    "common_gradient": lambda model, size: SoftmaxShift(model, LinearShift(size * BASIS[:1])),
    "off_manifold_gradient": off,
    "finite_difference_gap": lambda model, size: BoundedShift(model, 1e-2, size / 1e-2, BASIS[0]),
}


def kinds(model, x=None):
    report = audit(model, plane() if x is None else x, ["Saliency"], metrics=FIGURES)
    return {f.text.split(" (")[0]: f.kind for f in report.findings}, report


def test_an_honest_network_is_cleared(network):
    findings, report = kinds(network)
    assert [*findings.values()] == ["good"] * 3
    assert "yes: nothing was found against the model" in report.verdict


@pytest.mark.parametrize("figure", FIGURES)
def test_each_lie_as_long_as_the_gradient_is_found_by_its_figure_alone(figure, network):
    _, before = kinds(network)
    lying = LIES[figure](network, 1.5 * length(network, plane()))
    findings, report = kinds(lying)
    assert [*findings.values()].count("warning") == 1
    assert report.model[figure].low > 2 * before.model[figure].high
    assert report.verdict.startswith("No, not as they are")


def test_figures_are_the_metrics(network):
    x = plane()
    report = audit(network, x, ["Saliency"], metrics=FIGURES, limit=None)
    target = network(x).argmax(1)
    common = metrics.common_gradient(network, x)
    off = metrics.off_manifold_gradient(CenteredLogits(network), x, x, target)
    for name, values in zip(FIGURES, (common, off, missing(network, x, target)), strict=True):
        assert_close(torch.tensor(report.model[name].value), values.mean(), rtol=1e-3, atol=1e-5)


def missing(model, x, target):
    """Of what gradients promise in all, in steps as long as a typical gradient's."""
    spread = model(x).std(unbiased=False).item()
    gradients = torch.autograd.grad(model(x.requires_grad_()).gather(1, target[:, None]).sum(), x)[0]
    lengths = gradients.norm(dim=1)
    promises = (lengths / (lengths.square().sum() / lengths.sum())).clamp(max=1)
    changes = spread * torch.tensor([0.003, 0.01, 0.03, 0.1])[:, None] * promises
    gaps = metrics.finite_difference_gap(model, x.detach(), target, changes=changes, signed=True)
    return ((gaps * promises).sum(1) / promises.sum()).max()


@pytest.mark.parametrize("kind", ["tensors", "data set"])
def test_more_data_than_are_audited_show_how_they_vary(kind, network):
    x = plane(400)
    data = x if kind == "tensors" else Rows(x)
    model = off(network, 1.0)
    report = audit(model, data, ["Saliency"], metrics=FIGURES, limit=16)
    assert report.settings["examples"] == 16
    assert report.model["off_manifold_gradient"].low > 0.1
    # sixteen alone lie in as many directions as their halves do not share
    assert audit(model, x[:16], ["Saliency"], metrics=FIGURES).model["off_manifold_gradient"].value is None


class Rows(Dataset):
    """A data set of which one in seven cannot be read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if i % 7 == 3:
            raise OSError("unreadable")
        return self.rows[i]


def test_what_cannot_be_told_is_said(network):
    few, report = kinds(network, plane(8))
    assert report.model["off_manifold_gradient"].value is None
    assert any(kind == "note" and "do not vary" in text for text, kind in few.items())
    unrelated = torch.randn(40, 200)
    _, report = kinds(nn.Linear(200, 3), unrelated)
    assert "more data" in report.model["off_manifold_gradient"].note
    _, report = kinds(nn.Linear(D, 1), plane())
    assert report.model["common_gradient"].value is None
    assert report.model["off_manifold_gradient"].value is not None


def test_a_constant_model_promises_nothing():
    report = audit(lambda x: 0 * x[:, :3], plane(), ["Saliency"], metrics=["finite_difference_gap"])
    assert report.model["finite_difference_gap"].note == "the outputs are all the same"


def kind_of(figure, model, data):
    """What a figure says of a model."""
    report = audit(model, data, ["Saliency"], metrics=figure)
    texts = {
        "common_gradient": "all classes",
        "off_manifold_gradient": "direction",
        "finite_difference_gap": "promises",
    }
    (kind,) = {f.kind for f in report.findings if texts[figure] in f.text or "cannot be told" in f.text}
    return kind, report.model[figure]


@pytest.mark.parametrize("scale", [3.0, 30.0])  # gradients of 1e-8 and zero
def test_saturated_outputs_are_no_waves(scale):
    x = scale * torch.randn(64, 4)
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    model[0].weight.data = torch.tensor([[2.0, 1.0, -1.0, 0.5]])
    gaps = metrics.finite_difference_gap(model, x, 0, changes=0.03)
    kind, gap = kind_of("finite_difference_gap", model, (x, (x @ model[0].weight[0] > 0).long()))
    assert gaps.mean() > 0.4
    assert (kind, abs(gap.value) < 0.05) == ("good", True)


def test_rounding_is_no_wave():
    weights, x = torch.randn(4), torch.randn(64, 4)
    exact, gap = kind_of("finite_difference_gap", lambda x: 3e4 + x @ weights, x)
    assert (exact, abs(gap.value) < 0.05) == ("good", True)
    report = audit(lambda x: 1e7 + x @ weights, x, ["Saliency"], metrics="finite_difference_gap")
    assert "rounded away" in report.model["finite_difference_gap"].note


def test_least_squares_on_features_that_go_together_accuse_no_one():
    x = torch.randn(300, 8)
    x[:, 4:] = x[:, :4] + 0.02 * torch.randn(300, 4)
    y = x[:, 0] + 0.1 * torch.randn(300)
    weights = torch.linalg.lstsq(x, y).solution
    kind, share = kind_of("off_manifold_gradient", lambda x: x @ weights, (x, y))
    assert kind == "note"
    assert share.low > 0.38


@pytest.mark.parametrize(("size", "kind"), [(0.0, "good"), (1.0, "note"), (4.0, "warning")])
def test_of_two_classes_first_weights_may_be_common(size, kind):
    apart, common = BASIS[:1], size * BASIS[1:2]
    verdict, _ = kind_of("common_gradient", lambda x: x @ torch.cat([apart + common, common - apart]).mT, plane())
    assert verdict == kind


def test_of_one_feature_that_outweighs_all_first_weights_may_be_common():
    """Three rows of a linear model whose gradients lie almost on one feature: their mean is long by chance."""
    weights = torch.randn(3, D) @ BASIS
    weights[:, 0] = torch.tensor([90.0, 100.0, 110.0])
    verdict, share = kind_of("common_gradient", lambda x: x @ weights.mT, plane())
    assert verdict == "note"
    assert share.low > 0.6
