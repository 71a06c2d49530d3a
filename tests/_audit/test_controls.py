"""Maps that know nothing of the model's reasons: what they are, and that audits are in favour of none of them.

Of private parts where a control is a map that an audit shows the figure of only.
"""

import itertools

import pytest
import torch
from captum.attr import GuidedBackprop, InputXGradient, Saliency
from scipy.stats import spearmanr
from torch import nn

from captum_density import metrics
from captum_density._display.rank_correlation import rank_correlation
from captum_density.audit import Method, audit
from captum_density.audit._controls import another_examples_map, common_maps, compared, of_same_spectrum

PIXELS = ["pixel_perturbation"]
OF_METHODS = ["completeness_gap", "infidelity", "sensitivity_max", *PIXELS, "randomisation", "class_likeness"]


class SettingStub:
    """What the controls ask of a setting."""

    seed = 0

    def __init__(self, inputs, target=None):
        self.inputs, self.target, self.has_channels = inputs, target, inputs.ndim == 4

    def shared(self, key, make):
        return make()


def a_map(make):
    """A method that returns the same map for whatever model there is."""

    class Map(Saliency):
        def attribute(self, inputs, target=None):
            # Captum's sensitivity_max gives a tuple.
            return tuple(map(make, inputs)) if isinstance(inputs, tuple) else make(inputs)

    return Map


def summing(make):
    """The same, scaled to the sum that it promises."""

    class Summing(a_map(make)):
        def has_convergence_delta(self):
            return True

        def attribute(self, inputs, target=None, return_convergence_delta=False):
            x = inputs[0] if isinstance(inputs, tuple) else inputs
            ought = self.forward_func(x).gather(1, target[:, None])[:, 0]
            values = make(x) * (ought / make(x).flatten(1).sum(1)).view(-1, 1, 1, 1)
            return (values, torch.zeros(len(x))) if return_convergence_delta else values

    return Summing


def blob(width):
    def make(inputs):
        at = (torch.arange(inputs.shape[-1]) + 0.5) / inputs.shape[-1] - 0.5
        return (-(at[:, None] ** 2 + at**2) / (2 * width**2)).exp().expand_as(inputs)

    return make


class Corner(nn.Module):
    """Two classes by the brightness of some pixels."""

    def __init__(self, rows, columns):
        super().__init__()
        self.at, self.gain = (..., rows, columns), nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x):
        return 8 * (x[self.at].flatten(1).mean(1, keepdim=True) - 0.5) * self.gain


def network(seed, layers=2):
    torch.manual_seed(seed)
    later = [layer for _ in range(layers - 1) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), *later, nn.Flatten(), nn.Linear(16 * 64, 3))


MODELS = {
    "centre": lambda seed: Corner(slice(2, 6), slice(2, 6)),
    "top left": lambda seed: Corner(slice(0, 4), slice(0, 4)),
    "network": network,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_a_constant_and_a_blob_are_never_in_favour(name, seed):
    # The narrower blob finds the centre better than the control does; still it knows nothing of the example.
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    methods = {"constant": a_map(torch.ones_like), "blob": a_map(blob(0.25)), "narrower": a_map(blob(0.1))}
    methods["contributions"] = Method(a_map(blob(0.1)), multiplies_by_inputs=True)
    methods["sum"] = Method(summing(blob(0.1)), multiplies_by_inputs=True)
    few = {"infidelity_samples": 30, "sensitivity_samples": 1}
    report = audit(MODELS[name](seed), x, methods, metrics=OF_METHODS, seed=seed, **few)
    assert not [figure.note for row in report.methods.values() for figure in row.values() if figure.failed]
    assert not any(finding.kind == "good" for finding in report.findings)
    assert report.recommendation().method is None and report.recommendation().measured
    for (title, row), figure in itertools.product(report.methods.items(), ("infidelity", "pixel_perturbation")):
        gains = {control.name: (control.low, control.high) for control in row[figure].controls}
        assert gains["another example's map"] == (0, 0), title
    assert report.methods["blob"]["pixel_perturbation"].strongest_control().gain <= 0


def test_ties_are_in_a_random_order():
    # In the order of places, a constant map would keep the decisive rows first.
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    row = audit(Corner(slice(0, 4), slice(None)), x, {"constant": a_map(torch.ones_like)}, metrics=PIXELS).methods
    figure = row["constant"]["pixel_perturbation"]
    assert figure.low < 0 < figure.high


def quarters(n, seed=0):
    """Two classes by which of the left quarters is bright, beside a right one that is so for no reason."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=generator)
    label, other = torch.randint(2, (2, n), generator=generator)
    for i in range(n):
        x[i, 0, 4 * label[i] : 4 * label[i] + 4, :4] += 0.5
        x[i, 0, 4 * other[i] : 4 * other[i] + 4, 4:] += 1.0
    return x, label


class Quarters(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 1, 8, 8))
        with torch.no_grad():
            self.weight[0, :, :4, :4], self.weight[1, :, 4:, :4] = 1, 1

    def forward(self, x):
        return torch.einsum("nchw,kchw->nk", x, self.weight) ** 2 / 8


def test_what_hardly_changes_the_prediction_is_not_found():
    """By a thousandth of the logits: gains are narrow, and as good as none."""
    x, label = quarters(40)
    model = Quarters()
    figures = [
        audit(lambda x, by=by: by * model(x), (x, label), {"grad": Saliency}, metrics=PIXELS).methods["grad"]
        for by in (1, 1e-3)
    ]
    clear, nothing = (row["pixel_perturbation"] for row in figures)
    assert clear.beats_every_control() and clear.least_gain < clear.controls[0].gain
    assert nothing.controls[0].low > 0 and nothing.least_gain == 0.001 and not nothing.beats_every_control()


def test_maps_are_not_compared_with_weights_that_are_not_there():
    x, label = quarters(16)
    weight = Quarters().weight.detach()
    report = audit(lambda x: torch.einsum("nchw,kchw->nk", x, weight) ** 2 / 8, (x, label), {"grad": Saliency})
    notes = [each.note for each in report.methods["grad"].values() if "not compared" in each.note]
    assert notes and all("weights: the model has no weights" in note for note in notes)
    assert "Error" not in str(report)


def test_a_map_that_knows_beats_every_control_and_is_recommended():
    x, label = quarters(40)
    methods = {"grad": Saliency, "input": a_map(torch.abs), "constant": a_map(torch.ones_like)}
    report = audit(Quarters(), (x, label), methods, metrics=[*PIXELS, "accuracy"])
    assert report.model["accuracy"].value > 0.95
    figure = report.methods["grad"]["pixel_perturbation"]
    names = {control.name for control in figure.controls}
    assert {"a constant map", "a blob in the centre", "an edge detector", "the input itself"} < names
    assert {"another example's map", "a random map of its spectrum", "its map at random weights"} < names
    assert figure.beats_every_control(3)
    choice = report.recommendation()
    assert choice.method == "grad" and choice.candidates == ("grad",)
    # What a user gives as a method is the control itself.
    (same,) = (c for c in report.methods["input"]["pixel_perturbation"].controls if c.name == "the input itself")
    assert (same.gain, same.low, same.high) == (0, 0, 0)


def test_infidelity_is_in_favour_of_a_map_that_knows():
    x, label = quarters(40)
    methods = {
        "grad": Saliency,
        "product": InputXGradient,
        "input": Method(a_map(torch.clone), multiplies_by_inputs=True),
        "edges": a_map(lambda x: x - x.roll(1, -1)),
    }
    report = audit(Quarters(), (x, label), methods, metrics=["infidelity"], infidelity_samples=50)
    good, bad = report.findings
    assert (good.kind, bad.kind) == ("good", "warning")
    assert "grad and product foretell" in good.text and "better than every control" in good.text
    assert "input and edges are no better than a" in bad.text
    figures = {name: row["infidelity"] for name, row in report.methods.items()}
    assert {control.name for control in figures["product"].controls} == {
        *("a constant map", "a blob in the centre", "an edge detector", "the input itself"),
        *("another example's map", "a random map of its spectrum", "its map at random weights"),
    }
    values = {name: {each.name: each.value for each in figure.controls} for name, figure in figures.items()}
    # As contributions the input foretells what a constant slope does, and as a method what it does as a control.
    assert values["product"]["the input itself"] == pytest.approx(figures["input"].value, rel=1e-4)
    assert values["product"]["the input itself"] == pytest.approx(values["grad"]["a constant map"], rel=1e-4)
    assert values["product"]["a constant map"] != pytest.approx(values["grad"]["a constant map"], rel=1e-2)
    assert figures["product"].controls[0].gain > 0 > figures["edges"].controls[0].gain


def test_cost_grows_with_the_examples_at_most(monkeypatch):
    """Also where 8 examples tell nothing, and 16 that methods beat controls, so that they are compared with more."""
    monkeypatch.setattr("captum_density.audit._budget._LARGE", -1)
    x, _ = quarters(16)
    options = {"metrics": ["infidelity", "pixel_perturbation", "randomisation"], "infidelity_samples": 25}
    few, many = (audit(Quarters(), x[:n], ["Saliency", "FullGrad"], **options) for n in (8, 16))
    assert many.recommendation().method is not None
    for each in ("forward_examples", "backward_examples"):
        assert many.cost[each] <= 1.05 * 16 / 8 * few.cost[each]


def test_a_maps_scale_and_sign_do_not_count_for_infidelity():
    x, label = quarters(12)
    methods = {"one": Saliency, "other": lambda model: Scaled(model)}
    figures = audit(Quarters(), (x, label), methods, metrics=["infidelity"], infidelity_samples=20).methods
    one, other = (figures[name]["infidelity"] for name in methods)
    assert other.value == pytest.approx(one.value, rel=1e-4)
    assert {each.name: each.value for each in other.controls} == pytest.approx(
        {each.name: each.value for each in one.controls}, rel=1e-3
    )


class Scaled(Saliency):
    def attribute(self, inputs, target=None):
        return -1000 * super().attribute(inputs, target)


def test_a_controls_figure_is_that_of_its_map():
    x, label = quarters(12)
    model = Quarters()
    report = audit(model, (x, label), {"grad": Saliency}, metrics=PIXELS, target="label", max_examples_per_batch=5)
    figure = report.methods["grad"]["pixel_perturbation"]

    def area(ranking):
        fill = x.mean(0, keepdim=True)
        return metrics.pixel_perturbation(model, x, ranking, fill, target=label).area.mean().item()

    values = {control.name: control.value + figure.reference for control in figure.controls}
    assert values["the input itself"] == pytest.approx(area(x), abs=1e-6)
    for control in figure.controls:
        assert control.gain == pytest.approx(figure.value - control.value, abs=1e-6)
        assert control.low <= control.gain <= control.high
    assert len(figure.values) == 12
    assert sum(figure.values) / 12 == pytest.approx(figure.value, abs=1e-5)


def test_the_gain_of_a_figure_that_is_better_when_lower():
    lower, higher = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 3.0])
    (control,) = compared(lower, {"other": higher}, 0, lower_is_better=True)
    assert (control.value, control.gain) == (3, 1) and 0 <= control.low <= 1 <= control.high <= 2
    (control,) = compared(lower, {"other": higher}, 0)
    assert control.gain == -1


def test_edges_are_where_brightness_changes():
    x = torch.zeros(2, 3, 6, 8)
    x[..., 4:] = 1
    edges = common_maps(SettingStub(x))["an edge detector"]
    assert edges.shape == (2, 1, 6, 8)
    # Of a step of 1, Sobel's filter gives 1 + 2 + 1.
    assert torch.equal(edges, torch.tensor([0.0, 0, 0, 4, 4, 0, 0, 0]).double().expand_as(edges))
    assert torch.allclose(common_maps(SettingStub(x.mT))["an edge detector"], edges.mT)


@pytest.mark.parametrize(("shape", "names"), [((2, 3, 8, 8), 3), ((2, 3, 8), 2), ((2, 8), 1), ((2, 1, 1, 8), 2)])
def test_controls_that_all_methods_share(shape, names):
    maps = common_maps(SettingStub(torch.randn(shape)))
    assert len(maps) == names
    if len(shape) > 2:
        centred = maps["a blob in the centre"]
        flat = centred[0].flatten(0) if len(shape) < 4 else centred[0, 0]
        assert torch.allclose(flat, flat.flip(-1)) and flat.flatten().argmax() not in (0, flat.numel() - 1)


def test_a_random_map_of_the_same_spectrum():
    setting = SettingStub(torch.randn(3, 2, 8, 9))
    attributions = torch.randn(3, 2, 8, 9)
    drawn = of_same_spectrum(setting, attributions)
    own = attributions.double().abs().sum(1, keepdim=True)
    spectra = [torch.fft.fft2(values).abs() for values in (own, drawn)]
    spectra = [spectrum.flatten(1)[:, 1:] for spectrum in spectra]  # but for the mean, which no ranking shows
    assert torch.allclose(*spectra) and (drawn >= 0).all()
    assert rank_correlation(own, drawn).abs().max() < 0.5
    signals = of_same_spectrum(SettingStub(torch.randn(3, 2, 9)), torch.randn(3, 2, 9))
    assert signals.shape == (3, 2, 9)


@pytest.mark.parametrize(
    ("target", "same"), [([0, 1, 2, 3], 0), ([0, 0, 1, 1, 2, 2], 0), ([0, 0, 0, 1], 2), ([1, 1, 1], 3), ([0, 1], 0)]
)
def test_another_examples_map_is_of_another_class_where_there_is_one(target, same):
    target = torch.tensor(target)
    own = torch.arange(float(len(target)))[:, None]
    other = another_examples_map(SettingStub(own, target), own)[:, 0].long()
    assert sorted(other.tolist()) == list(range(len(target)))
    assert (other != torch.arange(len(target))).all()
    assert int((target[other] == target).sum()) == same


def test_rank_correlation_is_spearmans():
    one, other = torch.randn(5, 3, 4), torch.randn(5, 12).round()  # with ties
    want = [spearmanr(a.flatten(), b).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlation(one, other).tolist() == pytest.approx(want)
    assert rank_correlation(torch.ones(1, 4), torch.rand(1, 4)).item() == 0
    assert rank_correlation(torch.ones(1, 4), torch.zeros(1, 4)).item() == 1
    assert rank_correlation(one, one).tolist() == pytest.approx([1] * 5)


def test_random_weights_leave_guided_backpropagation_and_input_maps_as_they_are():
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, :, :4] = 0  # where a product with the input is 0 whatever the model
    methods = {
        "guided": GuidedBackprop,
        "grad": Saliency,
        "product": InputXGradient,
        "edges": a_map(lambda x: x - x.roll(1, -1)),
    }
    report = audit(network(0, layers=5), x, methods, metrics=["randomisation", "class_likeness"])
    likeness = {name: row["randomisation"] for name, row in report.methods.items()}
    assert likeness["edges"].value == 1
    assert likeness["grad"].high < 0.5 < min(likeness["guided"].low, likeness["product"].low)
    assert all("last layer" in figure.note and "all layers" in figure.note for figure in likeness.values())
    (warned,) = (finding for finding in report.findings if finding.kind == "warning")
    assert all(name in warned.text for name in ("guided", "product", "edges")) and "grad" not in warned.text
