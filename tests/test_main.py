import dataclasses
import json
import sys

import pytest
import torch

import captum_density
from captum_density.__main__ import main
from captum_density.datasets import digits

METHODS = [
    "Saliency",
    "Saliency, centered",
    "IntegratedGradients",
    "IntegratedGradients, centered",
    "SmoothGrad",
    "FullGrad",
    "FullGrad, complete",
    "SimpleFullGrad",
    "SmoothFullGrad",
]


def test_whole_run(tmp_path, capsys):
    state = torch.get_rng_state()
    out = tmp_path / "made" / "report"
    main(["--out", str(out), "--seed", "3"])
    assert torch.equal(torch.get_rng_state(), state)

    printed = capsys.readouterr()
    assert "training" in printed.err  # the progress bar
    table = (out / "table.md").read_text()
    assert table in printed.out
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == METHODS
    assert report["accuracy"] >= 0.97
    assert f"{report['accuracy']:.4f}" in table
    for picture in ("saliency.png", "softmax_shift.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in printed.out

    rows = {row["name"]: row for row in report["rows"]}
    assert rows["FullGrad, complete"]["completeness_gap"] < 1e-5
    assert rows["IntegratedGradients"]["completeness_gap"] < 0.05
    claims = {name for name, row in rows.items() if row["completeness_gap"] is not None}
    assert claims == {"FullGrad, complete", "IntegratedGradients", "IntegratedGradients, centered"}
    for row in report["rows"]:
        assert 0 < row["infidelity"] < row["zero_infidelity"], row
        assert 0 < row["sensitivity_max"] < 1, row
        assert (row["zero_infidelity"] == report["zero_infidelity"]) == ("centered" not in row["name"])
        if "centered" in row["name"]:
            assert row["shift_sensitivity"] < 1e-6, row
    for name in ("Saliency", "IntegratedGradients", "SmoothGrad"):
        assert rows[name]["shift_sensitivity"] > 0.05, name

    shift = report["softmax_shift"]
    assert shift["largest_difference"] < 1e-5
    assert sum(shift["softmax"]) == pytest.approx(1, abs=1e-5)
    for softmax in ("softmax", "shifted_softmax"):
        assert " ".join(f"{probability:.4f}" for probability in shift[softmax]) in printed.out
    assert f"{shift['largest_difference']:.0e}" in printed.out


@pytest.fixture(scope="module")
def fooled():
    from captum_density import _demo

    data = digits()
    return _demo.fool(_demo.train(data, seed=0, epochs=4), data.test_images[:64], seed=0)


def test_the_shift_prints_its_picture_and_centering_takes_it_away(fooled):
    smile = fooled.picture[1].flatten()
    assert not fooled.picture[0].any()
    assert torch.equal(fooled.picture[:2], fooled.picture[2:])
    assert set(fooled.attributions) == {
        *("Saliency", "InputXGradient", "IntegratedGradients", "SmoothGrad", "DeepLift", "Occlusion")
    }
    for name, maps in fooled.attributions.items():
        # What is multiplied by the input shows the picture where there is ink.
        shown = smile if name in ("Saliency", "SmoothGrad") else smile * fooled.image.flatten()
        logits, shifted, centered, both = maps.flatten(1)
        assert torch.cosine_similarity(shifted, shown, dim=0) > 0.95, name
        assert torch.cosine_similarity(logits, shown, dim=0) < 0.7, name
        assert torch.allclose(both, centered, atol=1e-4 * float(centered.abs().max())), name
        assert torch.cosine_similarity(centered, logits, dim=0) > 0.7, name


def test_all_four_have_one_softmax_and_the_printed_difference_is_measured(fooled):
    assert (fooled.probabilities - fooled.probabilities[0]).abs().max() < 1e-5
    assert 0.5 < fooled.probabilities[0].max() < 0.9999
    moved = fooled.probabilities.clone()
    moved[1, 3] += 0.3
    moved = dataclasses.replace(fooled, probabilities=moved)
    assert moved.difference() == pytest.approx(0.3, abs=1e-5)
    assert "largest difference of the 10 probabilities: 3e-01" in moved.text()


def test_seed_decides_everything_but_the_time(tmp_path):
    from captum_density import _demo

    def figures(seed, name):
        _demo.run(tmp_path / name, seed=seed, device="cpu", epochs=1, examples=4)
        report = json.loads((tmp_path / name / "report.json").read_text())
        for row in report["rows"]:
            del row["seconds"]
        del report["seed"]
        return report

    first = figures(0, "a")
    torch.manual_seed(99)
    assert figures(0, "b") == first
    assert figures(1, "c") != first


@pytest.mark.cuda
def test_cuda_run(tmp_path):
    main(["--out", str(tmp_path), "--device", "cuda"])
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"] >= 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed"),
        (["--seed", "many"], "expected an integer from 0 to 2**63 - 1, got 'many'"),
        (["--seed", str(2**63)], "--seed"),
        (["--device", "tpu"], "--device"),
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
    assert "no CUDA device" in capsys.readouterr().err


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
        assert expected in capsys.readouterr().out
