"""Methods measured on tasks: every number against what it ought to be, stored, sent to workers and shown."""

import json
import pickle
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency
from torch.testing import assert_close

from captum_density.ground_truth import METHODS, METRICS, KnownFunction, SignalBlock, Trial, run
from captum_density.ground_truth.__main__ import main
from tests.ground_truth.small import Small, SmallSentences, right, wrong

AGAINST_THE_ANSWER = "relevance rank", "relevance mass", "pointing game"


@pytest.fixture(scope="module")
def table():
    return run({"right": right, "wrong": wrong}, [Small()], METRICS, seeds=[0, 1, 2], examples=6)


@pytest.mark.parametrize("metric", AGAINST_THE_ANSWER)
def test_a_method_that_marks_what_decides_has_1_and_one_that_marks_the_rest_0(table, metric):
    assert table.mean("small", "right", metric) == pytest.approx((1, 1, 1))
    assert table.mean("small", "wrong", metric) == (0, 0, 0)
    assert table.difference("small", "right", "wrong", metric) == pytest.approx((1, 1, 1))


def test_perturbation_tells_the_two_apart_and_its_parts_add_up(table):
    low = table.difference("small", "right", "wrong", "symmetric gain")[1]
    assert low > 0
    row = table.values["small"]["right"]
    assert_close(row["symmetric gain"], row["deletion"] + row["insertion"])
    assert all(values.shape == (3, 6) and values.isfinite().all() for values in row.values())


def test_deletion_is_the_slow_forms():
    seen = []

    def deletion(trial, attributions):
        seen.append((trial, attributions))
        return METRICS["deletion"](trial, attributions)

    result = run({"right": right}, [Small()], {"deletion": deletion}, seeds=[4], examples=2)
    trial, attributions = seen[0]
    for i in range(2):
        logits = []
        for part in range(9):
            x = trial.inputs[i].clone()
            order = sorted(range(10), key=lambda unit: -attributions[i, unit].item())
            x[order[: int(part * 10 / 8 + 0.5)]] = 0
            logits.append(trial.model(x[None])[0, trial.targets[i]])
        area = torch.trapezoid(torch.stack(logits).double(), dx=1 / 8)
        assert_close(result.values["small"]["right"]["deletion"][0, i], -area)


def test_effects_are_compared_where_they_are_known(table):
    assert "effects" not in table.values["small"]["right"]

    def exact(model):
        return KnownFunction.shapley_values

    class Quick(KnownFunction):
        def train(self, seed=0):
            return self.network().eval().requires_grad_(False)

    result = run({"exact": exact}, [Quick()], seeds=[0], examples=3)
    assert result.mean("known function", "exact", "effects")[0] == pytest.approx(1)
    assert result.mean("known function", "exact", "relevance rank")[0] == 1


def test_methods_are_given_what_their_signatures_ask_for():
    seen = {}

    def curious(model):
        def attribute(inputs, target, baselines, background, feature_mask):
            seen.update(vars())
            return inputs

        return attribute

    run({"curious": curious, "IG": IntegratedGradients}, [SmallSentences()], seeds=[0], examples=3)
    shapes = {key: tuple(seen[key].shape) for key in ("inputs", "target", "baselines", "background", "feature_mask")}
    size = shapes["inputs"][1:]
    assert shapes == {
        "inputs": (3, *size),
        "target": (3,),
        "baselines": (1, *size),
        "background": (8, *size),
        "feature_mask": (1, *size),
    }
    assert (seen["baselines"].sum(2) == 1).all() and seen["feature_mask"][0, 4].unique().tolist() == [4]


def test_one_number_for_each_unit_will_do():
    def subject(model):
        return lambda inputs: torch.rand(inputs.shape[:2])

    def expanded(model):
        return lambda inputs: torch.rand(inputs.shape[:2])[:, :, None] / inputs.shape[2]

    for method in (subject, expanded):
        result = run({"method": method}, [SmallSentences()], seeds=[0], examples=4)
        assert_close(result.values["small sentences"]["method"]["relevance mass"].sum() > 0, torch.tensor(True))
    one, other = (
        run({"method": m}, [SmallSentences()], ["relevance mass"], [0], examples=4) for m in (subject, expanded)
    )
    received, expected = (each.values["small sentences"]["method"]["relevance mass"] for each in (one, other))
    assert_close(received, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        (lambda inputs: 1 / 0, "ZeroDivisionError"),
        (lambda inputs: inputs / 0, "not finite"),
        (lambda inputs: inputs[0], "attributions must be"),
    ],
)
def test_a_method_that_does_not_run_is_left_out_with_its_reason(attribute, reason):
    result = run({"bad": lambda model: attribute, "right": right}, [Small()], seeds=[0], examples=2)
    assert list(result.values["small"]) == ["right"]
    assert reason in result.failures["small"]["bad"]


def test_finished_rows_and_networks_are_not_made_again(tmp_path):
    methods = {"right": right, "Saliency": Saliency}
    options = {"tasks": [Small()], "seeds": [0, 1], "examples": 3, "store": tmp_path}
    first = run(methods, **options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(files) == 2 * (1 + 1 + 2)  # networks, checks, rows
    again = run({**methods, "wrong": wrong}, **options)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len([*tmp_path.glob("*.json")]) == len(files) + 2
    for name in methods:
        assert again.seconds["small"][name] == first.seconds["small"][name]
        for metric in AGAINST_THE_ANSWER:
            assert torch.equal(again.values["small"][name][metric], first.values["small"][name][metric])
    run(methods, **{**options, "examples": 4})
    assert len([*tmp_path.glob("*.json")]) == len(files) + 2 + 2 * (1 + 2)  # the networks are the same


class Sent(Executor):
    """Sends work as a pool of processes would."""

    def submit(self, function, work):
        future = Future()
        future.set_result(pickle.loads(pickle.dumps(function))(pickle.loads(pickle.dumps(work))))
        return future


@pytest.mark.parametrize("executor", [Sent(), ThreadPoolExecutor(2)], ids=["processes", "threads"])
def test_an_executor_gives_the_same(executor, monkeypatch):
    monkeypatch.setattr(SignalBlock, "training_examples", 200)
    methods = ["random", "InputXGradient", "GradientShap"]
    expected, received = (
        run(methods, ["signal block"] if each is None else [SignalBlock()], seeds=[0, 1], examples=3, executor=each)
        for each in (None, executor)
    )
    for name in methods:
        for metric, values in expected.values["signal block"][name].items():
            assert torch.equal(received.values["signal block"][name][metric], values)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_table_run_or_say_why_not(name):
    result = run([name], [Small()], ["relevance mass"], seeds=[0], examples=2)
    needs = {"LayerGradCam": "convolution", "GuidedGradCam": "convolution"}
    needs |= dict.fromkeys(("AttentionWeights", "AttentionGradient"), "does not attend")
    needs |= {
        "a blob in the centre": "a blob",
        "an edge detector": "an edge",
        "InputXGradient, its spectrum": "spectrum",
    }
    reason = result.failures["small"].get(name, "")
    assert needs[name] in reason if name in needs else not reason


def test_nothing_is_left_behind():
    before = torch.get_rng_state(), torch.get_num_threads()
    run(["random", "SmoothGrad", "KernelShap"], [Small()], METRICS, seeds=[0], examples=2)
    assert torch.equal(before[0], torch.get_rng_state()) and torch.get_num_threads() == before[1]


def test_tables_have_a_line_for_each_method_and_a_column_for_each_task(table):
    lines = table.table("relevance mass").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["right", "wrong"]
    assert "small" in lines[0] and "1.00 [1.00, 1.00]" in lines[2]
    assert set(table.checks["small"]) == {"accuracy", "changed", "unchanged"}
    content = json.loads(json.dumps(table.to_dict()))
    assert content["rows"]["small"]["wrong"]["pointing game"] == {
        "mean": [0, 0, 0],
        "seeds": [0, 0, 0],
        "above controls": False,
    }
    with pytest.raises(KeyError, match="not measured"):
        table.table("effects")


def test_tables_have_in_bold_what_is_above_every_control():
    methods = {**dict.fromkeys(["random", "the input itself"]), "right": right, "wrong": wrong}
    methods = {name: make or METHODS[name] for name, make in methods.items()}
    result = run(methods, [Small()], ["relevance mass"], seeds=[0, 1], examples=8)
    lines = {line.split("|")[1].strip(): line for line in result.table("relevance mass").splitlines()[2:]}
    assert [name for name, line in lines.items() if "**" in line] == ["right"]
    rows = result.to_dict()["rows"]["small"]
    assert [name for name in methods if rows[name]["relevance mass"]["above controls"]] == ["right"]


def test_a_trial_knows_units_and_answer():
    task = SmallSentences()
    trial = Trial(task, 0, task.network(), task.examples(3))
    assert torch.equal(trial.decides, trial.examples.masks[:, :, 0])
    scores = torch.rand(3, trial.decides.shape[1])
    assert_close(trial.scores(trial.spread(scores)), scores)
    assert torch.equal(trial.answer > 0, trial.examples.masks.expand_as(trial.inputs))


@pytest.mark.parametrize(
    ("error", "options", "remedy"),
    [
        (ValueError, {"methods": ["Salience"]}, "'Saliency'"),
        (ValueError, {"methods": {}}, "at least one"),
        (TypeError, {"methods": {"a": Small().network()}}, "must be functions"),
        (ValueError, {"metrics": "mass"}, "'relevance mass'"),
        (ValueError, {"tasks": ["signal"]}, "'signal block'"),
        (TypeError, {"tasks": [SignalBlock]}, r"such as SignalBlock\(\)"),
        (ValueError, {"tasks": [Small(), Small(eta=0.1)]}, "another name"),
        (ValueError, {"tasks": []}, "at least one"),
        (ValueError, {"seeds": []}, "at least one seed"),
        (ValueError, {"examples": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(error, options, remedy):
    with pytest.raises(error, match=remedy):
        run(**{"methods": ["Saliency"], "tasks": [Small()], **options})


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SignalBlock, "training_examples", 200)
    out = tmp_path / "table.json"
    main(["--tasks", "signal block", "--methods", "Saliency", "--seeds", "2", "--examples", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    content = json.loads(out.read_text())
    assert "relevance mass" in printed and "Saliency" in printed and "completeness gap" in printed
    assert content["table"]["seeds"] == [0, 1] and "signal block" in content["examination"]["rows"]["deletion"]


def refused(arguments, capsys):
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as ended:
        main(["--tasks", "signal block", "--methods", "random", "--seeds", "1", "--examples", "2", *arguments])
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(error) == 1, error
    return error[0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--seeds", "0"], "--seeds: expected a positive integer"),
        (["--seeds", "-2"], "--seeds"),
        (["--examples", "none"], "--examples"),
        (["--workers", "0"], "--workers"),
        (["--tasks", "signal"], "'signal block'"),
        (["--tasks"], "--tasks"),
        (["--methods", "Salience"], "Saliency"),
        (["--metrics", "mass"], "--metrics"),
        (["--store", ""], "no name"),
    ],
)
def test_the_command_refuses_bad_arguments_in_one_line(arguments, remedy, capsys):
    assert remedy in refused(arguments, capsys)


def test_the_command_refuses_bad_files_in_one_line_before_it_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(SignalBlock, "train", None)
    file = tmp_path / "file"
    file.write_text("no archive")
    assert "not a folder" in refused(["--store", str(file)], capsys)
    assert "missing" in refused(["--out", str(tmp_path / "missing" / "table.json")], capsys)
    assert "directory" in refused(["--out", str(tmp_path)], capsys)
    assert "nowhere" in refused(["--mnist", str(tmp_path / "nowhere.npz")], capsys)
    file.rename(tmp_path / "file.npz")
    assert "images x and labels y" in refused(["--mnist", str(tmp_path / "file.npz")], capsys)
    np.savez(tmp_path / "other.npz", x=np.zeros((3, 8, 8)), y=np.zeros(3))
    assert "(N, 28, 28)" in refused(["--mnist", str(tmp_path / "other.npz")], capsys)
    with monkeypatch.context() as changed:
        changed.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert "No space left" in refused(["--store", str(tmp_path / "store")], capsys)


def test_a_store_of_another_version_is_left_alone(tmp_path, monkeypatch):
    options = {"methods": ["random"], "tasks": [Small()], "seeds": [0], "examples": 2, "store": tmp_path}
    run(**options)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    monkeypatch.setattr("captum_density.ground_truth._trial.__version__", "0.0.1")
    run(**options)
    assert len([*tmp_path.glob("*.json")]) == 2 * len(before)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.cuda
def test_networks_are_explained_on_a_gpu():
    methods = {"InputXGradient": InputXGradient, "right": right}
    # Other weights are drawn on a GPU than on a CPU.
    metrics = {name: METRICS[name] for name in METRICS if name not in ("parameter_randomisation", "complexity rise")}
    expected, received = (
        run(methods, [Small()], metrics, seeds=[0], examples=3, device=device) for device in ("cpu", "cuda")
    )
    for name in methods:
        for metric, values in expected.values["small"][name].items():
            assert_close(received.values["small"][name][metric], values, rtol=1e-3, atol=1e-3)
