import json
import sys

import pytest
import torch

import captum_density
from captum_density.__main__ import main

METHODS = [
    "Saliency",
    "IntegratedGradients",
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
    assert (out / "saliency.png").read_bytes().startswith(b"\x89PNG")

    rows = {row["name"]: row for row in report["rows"]}
    assert rows["FullGrad, complete"]["completeness_gap"] < 1e-5
    assert rows["IntegratedGradients"]["completeness_gap"] < 0.05
    claims = {name for name, row in rows.items() if row["completeness_gap"] is not None}
    assert claims == {"FullGrad, complete", "IntegratedGradients"}
    for row in report["rows"]:
        assert 0 < row["infidelity"] < report["zero_infidelity"], row
        assert 0 < row["sensitivity_max"] < 1, row


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
