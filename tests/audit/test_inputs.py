"""Audits of all kinds of inputs and outputs: each small, with the words and pictures that fit."""

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerIntegratedGradients, Saliency
from torch import nn

from captum_density import metrics
from captum_density.audit import AuditReport, Method, audit

STEPS = {"n_steps": 6}
METHODS = {"gradient": Saliency, "IG": Method(IntegratedGradients, STEPS), "product": InputXGradient}
FEW = {"infidelity_samples": 5, "sensitivity_samples": 2}
N = 18


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def checked(report):
    """A report of which nothing failed, which is itself again after JSON."""
    rows = {**report.methods, "the model": report.model}
    assert {f"{row} {name}": figure.note for row in rows for name, figure in rows[row].items() if figure.failed} == {}
    assert AuditReport.from_json(report.to_json()) == report
    return report


def values(report, figure):
    return {name: row[figure].value or 0.0 for name, row in report.methods.items()}


class Text(nn.Module):
    """Mean of the words that are no padding; padding is told by ids, by a mask or not at all."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.hidden, self.output = nn.Embedding(20, 6, padding_idx=0), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        mask = (ids != 0 if mask is None else mask).float()
        words = self.hidden(self.embeddings(ids)).tanh() * mask.unsqueeze(-1)
        return self.output(words.sum(1) / mask.sum(1, keepdim=True))


@pytest.fixture
def ids():
    ids = torch.randint(1, 20, (N, 7))
    ids[::3, 4:] = 0
    return ids


def test_token_ids_through_a_layer(ids):
    model, labels = Text(), torch.randint(3, (N,))
    report = checked(
        audit(
            model,
            (ids, labels),
            METHODS,
            layer=model.embeddings,
            tokens=lambda row: [f"word{i}" for i in row],
            class_names=["bad", "so so", "good"],
            limit=12,
            **FEW,
        )
    )
    assert report.settings["kind"] == "text" and not model.embeddings._forward_hooks
    assert "tokens beyond chance" in report.table() and "pixels" not in str(report).replace("pixel_perturbation", "")
    place = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:12].sort().values[0]
    assert report.shown.tokens[0] == tuple(f"word{i}" for i in ids[place].tolist())
    predicted, label = report.shown.labels[0].split("\n")
    assert predicted.removeprefix("predicted ") in ("bad", "so so", "good")
    assert label == f"label {('bad', 'so so', 'good')[labels[place]]}"
    assert len(report.maps().axes) == 5  # a block for each text
    # What is audited is Captum's method for the layer.
    shown = LayerIntegratedGradients(model, model.embeddings).attribute(
        ids[place][None], target=report.shown.targets[0], **STEPS
    )
    own = shown.sum(-1)[0] / shown.sum(-1).abs().max()
    assert torch.allclose(report.shown.maps["IG"][0, 0].double(), own.double(), atol=2e-3)


@pytest.mark.parametrize("batch", [5, 64])
def test_masks_go_with_their_examples(ids, batch):
    model, methods = Text(), {name: METHODS[name] for name in ("gradient", "IG")}
    figures = ["completeness_gap", "infidelity", "pixel_perturbation", "density_ratio"]
    options = {"metrics": figures, "layer": model.embeddings, "limit": 8, "max_examples_per_batch": batch}
    options |= {"infidelity_samples": 5}
    by_ids = audit(model, ids, methods, **options)
    by_mask = audit(model, ids, methods, additional_forward_args=ids != 0, **options)
    for figure in figures[:3]:
        assert values(checked(by_mask), figure) == pytest.approx(values(by_ids, figure), rel=1e-4, abs=1e-6)
    options |= {"metrics": "infidelity"}
    everything = audit(model, ids, methods, additional_forward_args=torch.ones_like(ids), **options)
    assert values(everything, "infidelity") != values(by_ids, "infidelity")


def test_features_of_unlike_scales_are_counted_in_their_own_deviations():
    unit, mean = torch.tensor([1e-3, 1.0, 1e4, 5.0]), torch.tensor([0.0, 2.0, 0.0, 2000.0])
    z = torch.randn(200, 4)
    z = (z - z.mean(0)) / z.std(0, unbiased=False)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    class Table(nn.Module):
        def forward(self, x):
            return network((x - mean) / unit)

    names = ["tiny", "plain", "large", "year"]
    report = checked(audit(Table(), z * unit + mean, METHODS, limit=16, feature_names=names, **FEW))
    of_methods, of_model = (
        ["infidelity", "pixel_perturbation"],
        ["common_gradient", "off_manifold_gradient", "density_ratio"],
    )
    plain = audit(
        network, z, METHODS, metrics=of_methods + of_model, limit=16, noise_std=0.3, perturb_radius=0.05, **FEW
    )
    for figure in of_methods:
        assert values(report, figure) == pytest.approx(values(plain, figure), rel=0.02, abs=2e-3)
    for figure in of_model:
        assert report.model[figure].value == pytest.approx(plain.model[figure].value, rel=0.02, abs=2e-3)
    assert "differ in scale" in report.summary() and "differ in scale" not in plain.summary()
    texts = [label.get_text() for label in report.maps().axes[0].get_yticklabels()]
    assert [text.split()[0] for text in texts] == names and texts[3].split()[1][:2] in ("19", "20")
    assert "features beyond chance" in report.table()
    raw = audit(Table(), z * unit + mean, METHODS, metrics="gradient_norm", standardize=False)
    assert "scales" not in raw.settings
    assert "were counted in one unit" in raw.summary() and "counted in one unit" not in report.summary()
    raw = audit(Table(), z * unit + mean, METHODS, metrics="off_manifold_gradient", standardize=False)
    assert raw.model["off_manifold_gradient"].value is None  # small features are not off the data


def test_signals_have_their_channels_ranked_together():
    model = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12, 3))
    x = torch.randn(N, 2, 12)
    report = checked(audit(model, x, METHODS, **FEW))
    assert report.settings["kind"] == "signal" and "time steps beyond chance" in report.table()
    assert report.shown.maps["IG"].shape == (5, 1, 12)
    assert len(report.maps().axes) == 5 * (1 + len(METHODS))

    def last(x):
        return model(x.mT)

    other = audit(last, x.mT, METHODS, channel_dim=-1, metrics="pixel_perturbation")
    assert values(other, "pixel_perturbation") == pytest.approx(values(report, "pixel_perturbation"), rel=1e-4)


def test_numbers_have_no_classes():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(N, 5)
    labels = model(x).detach() + 0.1 * torch.randn(N, 2)
    report = checked(audit(model, (x, labels), METHODS, target=1, class_names=["price", "weight"], **FEW))
    assert report.settings["task"] == "regression" and "accuracy" not in report.model
    residual = (labels - model(x))[:, 1].square().sum() / (labels[:, 1] - labels[:, 1].mean()).square().sum()
    assert report.model["r_squared"].value == pytest.approx(1 - residual.item(), rel=1e-4)
    for figure in (report.model["common_gradient"], report.methods["IG"]["shift_sensitivity"]):
        assert figure.value is None and "regression" in figure.note
    assert report.methods["IG"]["pixel_perturbation"].value > 0
    assert report.shown.labels[0].startswith("weight predicted")
    assert "class" not in report.summary()
    flat = audit(nn.Sequential(model, nn.Linear(2, 1), nn.Flatten(0)), x, METHODS, metrics=["r_squared", "seconds"])
    assert checked(flat).settings["task"] == "regression" and flat.model["r_squared"].value is None
    bad = audit(model, (x, -labels), METHODS, target=0, metrics="r_squared")
    assert bad.verdict.startswith("No: it predicts these data no better than their mean")


def test_one_output_is_judged_by_its_sigmoid():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(N, 4)
    labels = (model(x)[:, 0] > 0).float()  # as of BCEWithLogitsLoss
    report = checked(audit(model, (x, labels), METHODS, class_names=["no", "yes"], **FEW))
    assert report.model["accuracy"].value == 1
    assert {*report.shown.labels} <= {"predicted no\nlabel no", "predicted yes\nlabel yes"}
    two = audit(
        lambda x: torch.cat([-model(x) / 2, model(x) / 2], 1), (x, labels.long()), METHODS, metrics="pixel_perturbation"
    )
    assert values(report, "pixel_perturbation") == pytest.approx(values(two, "pixel_perturbation"), abs=1e-5)
    sigmoid = nn.Sequential(model, nn.Sigmoid(), nn.Flatten(0))
    sigmoid = audit(sigmoid, (x, labels), METHODS, metrics="pixel_perturbation")
    assert sigmoid.methods["IG"]["pixel_perturbation"].reference == pytest.approx(
        report.methods["IG"]["pixel_perturbation"].reference, abs=1e-5
    )


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.table, self.output = nn.Linear(9, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, image, table):
        return self.output(torch.cat([self.image(image.flatten(1)), self.table(table)], 1).tanh())


def test_several_inputs():
    model, image, table = Two(), torch.rand(N, 1, 3, 3), torch.randn(N, 3)
    names = [[f"pixel {i}" for i in range(9)], ["age", "height", "weight"]]
    labels = torch.randint(2, (N,))
    report = checked(audit(model, ((image, table), labels), METHODS, feature_names=names, **FEW))
    assert report.settings["kind"] == "inputs" and report.shown.names[-1] == "weight"
    joined = IntegratedGradients(model).attribute((image[:1], table[:1]), target=report.shown.targets[0], **STEPS)
    joined = torch.cat([part.flatten() for part in joined])
    own = report.shown.maps["IG"][0].double()
    assert torch.allclose(own, (joined / joined.abs().max()).double(), atol=2e-3)
    assert "input 1 [2]" in audit(model, ((image, table), None), METHODS, metrics="seconds").shown.names
    some = audit(model, ((image, table), None), METHODS, metrics="seconds", feature_names=[None, names[1]]).shown.names
    assert some[8:] == ("input 0 [8]", "age", "height", "weight")


def test_segmentation_is_of_the_region_of_the_explained_class():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x = torch.rand(N, 3, 6, 6)
    predicted = model(x).argmax(1)
    names = ["background", "cat", "dog"]
    report = checked(audit(model, (x, predicted), METHODS, class_names=names, **FEW))
    assert report.model["accuracy"].value == 1 and report.settings["classes"] == 3
    classes = [row.flatten().bincount(minlength=3).tolist() for row in predicted]
    wanted = [max((1, 2), key=lambda c: row[c]) if sum(row[1:]) else 0 for row in classes]
    assert report.shown.targets == tuple(wanted[i * N // 5] for i in range(5))
    row, target = 0, report.shown.targets[0]
    region = (predicted[row] == target).float()
    score = IntegratedGradients(lambda x: (model(x)[:, target] * region).sum((1, 2), keepdim=True)[:, :, 0])
    own = score.attribute(x[:1], target=0, **STEPS).sum(1, keepdim=True)
    assert torch.allclose(report.shown.maps["IG"][:1].double(), (own / own.abs().max()).double(), atol=3e-3)
    with pytest.raises(ValueError, match="give target='predicted'"):
        audit(lambda x: model(x) + torch.tensor([9.0, 0, 0]).view(3, 1, 1), x, METHODS, target=2)


class Bright(nn.Module):
    """What is bright is of the second class, and no gradient says so."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.output = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        logits = self.output(nn.functional.pad(self.second(self.first(x).relu()).relu(), (1, 1, 1, 1)))
        return logits + torch.tensor([0, 50]).view(2, 1, 1) * (x.mean(1, keepdim=True) > 1.4)


class Attending(nn.Module):
    """Reads its answer from the first token."""

    def __init__(self):
        super().__init__()
        self.embeddings, self.position = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(12, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.output = nn.Linear(8, 2)

    def forward(self, ids):
        words = self.embeddings(ids) + self.position.weight
        return self.output(self.layer(words, src_key_padding_mask=ids == 0)[:, 0])


# Where attention's fast path is off (`torch.backends.mha`), the text's figures are 0.88, above the threshold.
@pytest.mark.slow
def test_maps_that_place_alone_makes_alike_are_not_said_to_hardly_depend_on_the_model():
    """What is near a region counts, and no padding, and the first token for more, whatever the weights."""
    x = 1 + 0.2 * torch.rand(N, 2, 16, 16)
    for i, (row, column) in enumerate(torch.randint(2, 10, (N, 2)).tolist()):
        x[i, :, row : row + 4, column : column + 4] += 0.5
    segments = Bright()
    words = torch.randint(1, 20, (N, 12)).masked_fill(torch.arange(12) >= torch.randint(5, 9, (N, 1)), 0)
    text = Attending()
    methods = {"gradient": Saliency, "product": InputXGradient}
    for model, data, options in ((segments, x, {}), (text, words, {"layer": text.embeddings})):
        report = audit(model, data, methods, metrics="randomisation", **options)
        figures = [row["randomisation"] for row in report.methods.values()]
        assert all((each.value is None and "cannot be told" in each.note) or each.low <= 0.55 for each in figures)
        assert not any("much the same" in finding.text for finding in report.findings)


def test_a_map_of_the_input_is_found_where_place_counts_too():
    x = torch.rand(N, 2, 12, 12)
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    class Copy(Saliency):
        def attribute(self, inputs, target=None, additional_forward_args=None):
            return inputs.abs()

    report = audit(model, x, {"copy": Copy}, metrics="randomisation")
    assert report.methods["copy"]["randomisation"].low > 0.99
    assert any("copy shows much the same" in finding.text for finding in report.findings)


def test_few_features_are_not_alike_by_chance():
    """Of one draw, a linear model's gradients rank three features alike in one of six seeds."""
    accused = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model, x = nn.Linear(3, 3), torch.randn(20, 3)
        report = audit(model, x, {"gradient": Saliency}, metrics="randomisation", seed=seed)
        accused += any("much the same" in finding.text for finding in report.findings)
    assert accused == 0


def test_a_hidden_layer_of_images():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 3))
    report = checked(audit(model, torch.rand(N, 1, 6, 6), METHODS, layer=model[0], **FEW))
    assert report.settings["kind"] == "layer" and report.settings["shape"] == [2, 4, 4]
    with pytest.raises(ValueError, match="no maps to draw"):
        report.maps()


X = torch.randn(N, 4)


@pytest.mark.parametrize(
    ("data", "change", "error", "message"),
    [
        (X.long(), {}, TypeError, "as in layer=model.embeddings"),
        (X, {"layer": "embeddings"}, TypeError, "such as model.embeddings"),
        (X, {"layer": nn.Linear(4, 4)}, ValueError, "runs 0 times; give a module of the model"),
        (X, {"task": "ranking"}, ValueError, "task must be 'classification' or 'regression'"),
        ((X, torch.randn(N, 3)), {}, ValueError, "name the one to explain, as in target=0"),
        (X, {"channel_dim": 0}, ValueError, "give -1"),
        (X, {"class_names": ["a"]}, ValueError, "a name for each of 3 classes"),
        (X, {"feature_names": ["a"]}, ValueError, "a name for each of 4 features"),
        (X, {"tokens": [["a"]] * N}, ValueError, "leave them out"),
        (torch.rand(N, 1, 2, 2), {"standardize": True}, ValueError, "leave it out"),
        ([(X, None)], {"additional_forward_args": torch.zeros(N)}, TypeError, "read the data set into tensors"),
    ],
)
def test_the_fix_is_said(data, change, error, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(error, match=message):
        audit(model, data, METHODS, metrics="seconds", **change)


@pytest.mark.cuda
def test_cuda(ids):
    model = Text().cuda()
    report = audit(model, ids, METHODS, layer=model.embeddings, additional_forward_args=ids != 0, limit=8, **FEW)
    assert checked(report).settings["device"].startswith("cuda")


def test_the_gradient_of_one_output_has_no_sign_of_its_own():
    # What pixel perturbation asks of the metric.
    model = nn.Linear(3, 1)
    x = torch.randn(N, 3)
    report = audit(model, (x, torch.arange(N) % 2), {"gradient": Saliency}, metrics="pixel_perturbation")
    target = (model(x)[:, 0] > 0).long()
    ranking = Saliency(model).attribute(x, target=0)
    area = metrics.pixel_perturbation(
        lambda x: torch.cat([-model(x) / 2, model(x) / 2], 1),
        x,
        ranking,
        x.mean(0, keepdim=True),
        target=target,
        channels="singly",
    ).area.mean()
    figure = report.methods["gradient"]["pixel_perturbation"]
    assert figure.value + figure.reference == pytest.approx(area.item(), abs=1e-5)


@pytest.mark.parametrize("labels", [torch.randint(2, (4,)), torch.randn(4)], ids=["one output", "numbers"])
def test_nothing_is_centered_by_default_where_there_is_one_output(labels):
    report = audit(nn.Linear(3, 1), (torch.randn(4, 3), labels), metrics="completeness_gap")
    assert len(report.methods) == 9
    assert not any(each.failed for row in report.methods.values() for each in row.values())
