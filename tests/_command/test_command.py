"""The command line on a user's own model and data: what it writes, what it refuses, and how it goes on."""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import ToTensor

from captum_density.__main__ import main
from captum_density._command.arguments import interrupts_wait
from captum_density.audit import AuditReport, audit
from captum_density.audit._figures import MODEL_FIGURES
from tests._command.users import (
    FEW,
    audited,
    by_hand,
    check_model_figures,
    failures,
    forget_modules,
    of_folder,
    refused,
    untimed,
    user_model,
    write_images,
)

METHODS = [
    "Saliency",
    "Saliency, centered",
    "InputXGradient, balanced",
    "IntegratedGradients",
    "CompleteDeepLift",
    "SmoothGrad",
    "FullGrad",
    "FullGrad, complete",
    "SimpleFullGrad",
    "SmoothFullGrad",
]


def test_a_folder_of_images_and_a_file_of_weights(user, capsys):
    model = user_model()
    torch.save(model.state_dict(), "weights.pt")
    state = torch.get_rng_state()
    options = ["--attributions", *METHODS[:2], "--metrics", "accuracy", "gradient_norm", "infidelity"]
    report = audited("--weights", "weights.pt", *options, out="new/report")
    assert torch.equal(torch.get_rng_state(), state)
    check_model_figures(report, model, *of_folder("images", ToTensor()))
    assert report.settings["model"] == "my_package.model:build"
    assert report.settings["examples"] == 18 and report.settings["classes"] == 3
    assert list(report.methods) == METHODS[:2] and not failures(report)
    printed = capsys.readouterr()
    assert "audit: 100%" in printed.err and "Traceback" not in printed.err
    assert str(report) in printed.out
    out = Path("new/report")
    for picture in ("figures.png", "saliency.png"):
        with Image.open(out / picture) as image:
            assert image.size[0] > 300
    assert report.verdict in html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert (out / "table.md").read_text(encoding="utf-8") == f"{report}\n"
    files = {"report.html", "report.json", "table.md", "figures.csv", "figures.png", "saliency.png", "maps.npz"}
    assert {path.name for path in out.iterdir()} == {"cells", *files}
    for name in files:
        assert name in printed.out.splitlines()[-1]


def test_default_methods_and_figures(user, undrawn):
    report = audited("--limit", "2")
    assert list(report.methods) == METHODS and not failures(report)
    wanted = [figure.name for figure in MODEL_FIGURES if figure.needs is None and figure.task != "regression"]
    assert list(report.model) == wanted
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-4


@pytest.mark.slow
def test_a_network_of_torchvision(user, undrawn):
    write_images(user / "pets", sizes=(20, 31), n=2, classes=("goldfish", "tabby"))
    arguments = ["--transform", "ResNet18_Weights.DEFAULT", "--limit", "2", "--metrics", "completeness_gap", "accuracy"]
    main(["--model", "torchvision.models:resnet18", "--data", "pets", *arguments, *FEW])
    report = AuditReport.from_json(Path("report/report.json").read_text())
    assert report.settings["classes"] == 1000 and report.settings["examples"] == 2
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-3
    assert not failures(report)


@pytest.mark.parametrize(
    "data", ["dataset", "Items", "pair", "function", "loader", "shuffled", "uneven:0", "alone", "broken", "random"]
)
def test_data_of_the_users(data, user, undrawn):
    import my_package.data

    my_package.data.first = [my_package.data.uneven[0]]
    name = "first" if data == "uneven:0" else data
    model = user_model(seed=0)  # as --seed makes it
    report = audited("--metrics", "accuracy", "gradient_norm", *FEW, data=f"my_package.data:{name}")
    x, y = my_package.data.x, my_package.data.y
    if data == "uneven:0":
        x, y = x[:4], y[:4]
    elif data == "random":
        torch.manual_seed(0)
        x = torch.rand(12, 3, 8, 8)
    elif data == "broken":
        kept = [i for i in range(12) if i not in (3, 7)]
        x, y = x[kept], y[kept]
        assert report.skipped == ("example 3 (KeyError: 'no such record')", "example 7 (KeyError: 'no such record')")
    assert report.settings["examples"] == len(x)
    if data == "alone":
        assert report.model["accuracy"].value is None and report.model["accuracy"].note == "the data have no labels"
        assert report.model["gradient_norm"].value == pytest.approx(by_hand(model, x, y)[1], rel=1e-4)
    else:
        check_model_figures(report, model, x, y)


@pytest.mark.parametrize("data", ["shuffled", "drawn"])
def test_what_data_draw_is_of_the_seed(data, user):
    import my_package.data

    def report_of(state):
        torch.manual_seed(state)
        before, source = torch.get_rng_state(), getattr(my_package.data, data)
        report = audit(model, source, ["Saliency"], metrics=["gradient_norm"], limit=5, seed=2)
        assert torch.equal(torch.get_rng_state(), before)
        return report.model["gradient_norm"]

    model = user_model()
    assert report_of(0) == report_of(1)


def test_attributions_and_metrics_by_name(user, undrawn, capsys):
    names = [
        "Saliency, centered",
        "InputXGradient",
        "my_package.attributions:signed",
        "captum.attr:IntegratedGradients",
    ]
    report = audited("--attributions", *names, "--metrics", "infidelity", "accuracy", "--limit", "7")
    assert list(report.methods) == names and report.settings["examples"] == 7
    assert list(report.model) == ["accuracy"] and all(list(row) == ["infidelity"] for row in report.methods.values())
    figures = [row["infidelity"].value for row in report.methods.values()]
    assert figures[1] == figures[2] and len(set(figures)) == 3


def test_seed_decides_everything_but_the_time(user, undrawn):
    def report_of(seed, data, model):
        forget_modules()
        torch.manual_seed(time.time_ns() % 2**32)
        figures, noisy = ["--metrics", "accuracy", "gradient_norm", "infidelity"], ["--attributions", "SmoothGrad"]
        return untimed(audited("--seed", str(seed), "--limit", "3", *noisy, *figures, data=data, model=model))

    things = [("images", "build"), ("images", "ready")]  # the latter is made when its module is imported
    things += [(f"my_package.data:{name}", "build") for name in ("shuffled", "drawn", "random")]
    for data, model in things:
        first, again, other = (report_of(seed, data, model) for seed in (0, 0, 1))
        assert first == again, (data, model)
        del first["settings"], other["settings"]
        assert first["model"]["gradient_norm"] != other["model"]["gradient_norm"]
        assert first["methods"]["SmoothGrad"]["infidelity"] != other["methods"]["SmoothGrad"]["infidelity"]


def test_seed_makes_the_model_whatever_its_module_draws(user, undrawn):
    report = audited("--metrics", "accuracy", "gradient_norm", "--attributions", "Saliency", "--seed", "5")
    check_model_figures(report, user_model(seed=5), *of_folder("images", ToTensor()))


def test_gan_test_asks_the_proxy(user, undrawn):
    arguments = ["--metrics", "gan_test", "--attributions", "Saliency"]
    same = audited(*arguments, "--proxy", "my_package.model:judge")
    assert same.model["gan_test"].value > 0.9  # made like the model, from the same seed
    x, y = of_folder("images", ToTensor())
    assert same.model["gan_test"].reference == by_hand(user_model(seed=0), x, y)[0]
    other = audited(*arguments, "--proxy", "my_package.model:vit", data="images")
    assert other.model["gan_test"].failed and "8" in other.model["gan_test"].note  # images of 8 pixels, not 16


def test_diff_roar_retrains(user, undrawn):
    write_images(user / "training", n=6)
    report = audited("--metrics", "diff_roar", "--attributions", "Saliency", "--train", "training", "--limit", "4")
    result = report.methods["Saliency"]["diff_roar"]
    assert result.low <= result.value <= result.high and not failures(report)
    assert report.settings["examples"] == 4  # and models are tested on all of them
    folder = user / "report" / "cells" / "retraining"
    cells = cells_in(folder)
    assert len(cells) > 4
    again = audited("--metrics", "diff_roar", *FEW, "--train", "training", "--limit", "4", "--resume")
    assert again.methods["Saliency"] == report.methods["Saliency"]
    assert cells.items() < cells_in(folder).items()
    anew = audited("--metrics", "diff_roar", "--attributions", "Saliency", "--train", "training", "--limit", "4")
    assert anew.methods == report.methods
    assert cells_in(folder).keys() == cells.keys() and all(cells_in(folder)[name] > cells[name] for name in cells)


@pytest.mark.parametrize(("model", "fails"), [("vit", set()), ("twice", {"DeepLift"})])
def test_a_failing_method_keeps_its_row_and_the_others(model, fails, user, undrawn, capsys):
    write_images(user / "images", sizes=(16,))
    names = ["Saliency", "DeepLift", "CompleteDeepLift", "my_package.attributions:Raises", "FullGrad, complete"]
    fails = fails | {"my_package.attributions:Raises"}
    options = ["--metrics", "accuracy", "completeness_gap", "infidelity", "--limit", "3"]
    report = audited("--attributions", *names, *options, model=model)
    assert list(report.methods) == names
    assert failures(report) == fails
    for name in ("CompleteDeepLift", "FullGrad, complete"):
        assert report.methods[name]["completeness_gap"].value < 1e-4
    for name in fails:
        assert all(figure.failed and figure.note for figure in report.methods[name].values())
    text = "RuntimeError: out of patience"
    assert report.methods["my_package.attributions:Raises"]["infidelity"].note == text
    printed, page = capsys.readouterr().out, Path("report/report.html").read_text(encoding="utf-8")
    assert f"my_package.attributions:Raises failed: {text}" in " ".join(printed.split()) and text in page
    without = [name for name in names if name not in fails]
    alone = audited("--attributions", *without, *options, model=model)
    assert {name: row for name, row in untimed(report)["methods"].items() if name in without} == untimed(alone)[
        "methods"
    ]


@pytest.mark.slow
def test_a_vision_transformer_on_default_methods(user, undrawn):
    write_images(user / "images", sizes=(16,))
    report = audited("--limit", "6", model="vit")
    assert list(report.methods) == METHODS and not failures(report)
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-4
    assert report.methods["Saliency, centered"]["shift_sensitivity"].value < 1e-6


SLOWLY = ["--limit", "5", "--attributions", "my_package.attributions:Slow", "Saliency"]
CALLS = 7  # of Slow, in an audit


def started(folder, *arguments):
    """The command in a process of its own, in the user's folder."""
    command = [sys.executable, "-m", "captum_density", "--model", "my_package.model:build", "--data", "images"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with interruptible():  # children inherit it
        return subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def stopped(process, how, ready):
    """Send a signal once it is time; what the process says, and how it ends."""
    try:
        end = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err
    finally:
        process.kill()


def cells_in(folder):
    """Finished figures and when they were written."""
    named = [path for path in folder.glob("*.json") if re.fullmatch("[0-9a-f]{32}", path.stem)]
    return {path.name: path.stat().st_mtime_ns for path in named}


@contextmanager
def interruptible():
    """Workers of pytest, and tests in the background, have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interruption(*arguments):
    """The last line that the command writes to stderr when something in it interrupts it."""
    out, err = io.StringIO(), io.StringIO()
    with interruptible(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(["--model", "my_package.model:build", "--data", "images", *arguments])
    assert stop.value.code == 130 and out.getvalue() == ""
    return err.getvalue().splitlines()[-1]


def check_interruption(line, cells):
    assert line.endswith(
        f"interrupted; what was measured is kept in {cells}, and the same command with --resume goes on from there"
    )


def calls():
    return len(Path("calls.txt").read_text()) if Path("calls.txt").exists() else 0


def check_resumed(out, whole, n):
    """An audit that was stopped after n figures or some more goes on with the others."""
    cells = out / "cells"
    assert not (out / "report.json").exists()
    finished, before = cells_in(cells), calls()
    assert n <= len(finished) < 18
    assert untimed(audited(*SLOWLY, "--resume", out=out)) == whole
    assert {name: at for name, at in cells_in(cells).items() if name in finished} == finished
    if n > 8:  # of the 4 of the model and 7 of the slow method
        assert calls() - before < CALLS


def test_stopped_and_resumed_is_the_same_report_and_else_it_starts_anew(user, undrawn):
    whole = untimed(audited(*SLOWLY, out="whole"))
    assert calls() == CALLS
    out = user / "interrupted"
    Path("interrupted_at.txt").write_text(str(calls() + CALLS - 1))
    check_interruption(interruption("--out", str(out), *SLOWLY), out / "cells")
    check_resumed(out, whole, 9)
    # Finished, and asked again: nothing but what it takes to draw is left to do; without --resume, all of it.
    finished, before = cells_in(out / "cells"), calls()
    audited(*SLOWLY, "--resume", out=out)
    assert cells_in(out / "cells") == finished and calls() == before + 1  # to tell the method
    audited(*SLOWLY, out=out)
    again = cells_in(out / "cells")
    assert again.keys() == finished.keys() and all(again[name] > finished[name] for name in finished)
    assert calls() == before + 1 + CALLS


@pytest.mark.slow
def test_stopped_at_any_moment_and_resumed_is_the_same_report(user, undrawn):
    whole = untimed(audited(*SLOWLY, out="whole"))
    for n in (1, 3, 5, 7, 8, 10):
        for how in (signal.SIGINT, signal.SIGKILL):
            out = user / f"{how.name}-{n}"
            process = started(user, "--out", str(out), *SLOWLY)
            status, printed, err = stopped(process, how, lambda out=out, n=n: len(cells_in(out / "cells")) >= n)
            if how == signal.SIGINT:
                assert status == 130 and printed == "" and "Traceback" not in err
                check_interruption(err.splitlines()[-1], out / "cells")
            else:
                assert status == -signal.SIGKILL
            check_resumed(out, whole, n)


def test_interrupted_before_the_first_figure(user):
    (user / "my_package" / "interrupts.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    line = interruption("--proxy", "my_package.interrupts:build", "--metrics", "gan_test")
    assert line == "python -m captum_density: interrupted; nothing was measured yet"


def test_an_interrupt_waits_until_modules_are_loaded():
    loaded = []
    with interruptible():
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            loaded.append("all of it")
        assert loaded and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 3.0])
def test_interrupted_while_modules_are_loaded(seconds, user):
    (user / "my_package" / "waits.py").write_text("import time\ntime.sleep(100)\n")
    process = started(user, "--proxy", "my_package.waits:build", "--metrics", "gan_test")
    begun = time.monotonic()
    status, out, err = stopped(process, signal.SIGINT, lambda: time.monotonic() > begun + seconds)
    assert (status, out) == (130, "") and err.strip().endswith("interrupted; nothing was measured yet"), err


def test_nothing_but_cells_is_thrown_away(user, undrawn):
    cells = user / "report" / "cells"
    cells.mkdir(parents=True)
    for name in ("stained.png", "notes.json", "0123.json"):
        (cells / name).write_text("a biologist's")
    old = cells / f"{'0' * 32}.json"
    old.write_text("{}")
    audited("--metrics", "accuracy", "--attributions", "Saliency", "--resume")
    assert old.exists()
    audited("--metrics", "accuracy", "--attributions", "Saliency")
    assert not old.exists()
    assert {path.name for path in cells.iterdir()} > {"stained.png", "notes.json", "0123.json"}


def test_a_mistake_throws_nothing_away(user, undrawn, capsys):
    audited("--metrics", "accuracy", "--attributions", "Saliency")
    before = cells_in(user / "report" / "cells")
    refused(capsys, "--model", "my_package.model:raises", "--data", "images")
    refused(capsys, "--model", "my_package.model:build", "--data", "images", "--metrics", "accuracies")
    refused(capsys, "--metrics", "accuracies")
    arguments = ["--metrics", "diff_roar", "--train", "nowhere"]
    refused(capsys, "--model", "my_package.model:build", "--data", "images", *arguments)
    assert cells_in(user / "report" / "cells") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "my_package.models:build"}, ["--model: there is no module 'my_package.models'", "current folder"]),
        ({"model": "nowhere:build"}, ["--model: there is no module 'nowhere'", "installed packages"]),
        ({"model": "my_package.model"}, ["--model must be package.module:name or file.py:name, but is 'my_pack"]),
        ({"model": "my_package/models.py:build"}, ["--model: there is no file 'my_package/models.py'"]),
        ({"model": "my_package.stops:build"}, ["importing 'my_package.stops' fails: ZeroDivisionError"]),
        ({"model": "my_package.needs:build"}, ["importing 'my_package.needs' fails: ModuleNotFoundError", "'nowhere'"]),
        ({"model": "my_package.leaves:build"}, ["importing 'my_package.leaves' fails: SystemExit: usage: train.py"]),
        ({"model": "my_package.model:built"}, ["--model: 'my_package.model' has no 'built'"]),
        ({"model": "my_package.model:raises"}, ["my_package.model:raises() fails: RuntimeError: no such layer"]),
        ({"model": "my_package.model:leaves"}, ["my_package.model:leaves() fails: SystemExit: 3"]),
        (
            {"model": "my_package.model:sized"},
            ["needs the arguments classes; write a function without arguments, or a call", "model:sized(classes=...)"],
        ),
        ({"model": "my_package.model:sized(channels=1)"}, ["needs the arguments classes; write a function"]),
        ({"model": "my_package.model:sized(3, depth=1)"}, ["fails: TypeError", "unexpected keyword argument 'depth'"]),
        ({"model": "my_package.model:sized(number)"}, ["whose arguments are literals", "write a function without"]),
        ({"model": "my_package.model:sized(open('x', 'w'))"}, ["whose arguments are literals", "write a function"]),
        ({"model": "my_package.model:sized(*(3,))"}, ["whose arguments are literals", "write a function"]),
        ({"model": "my_package.model:sized(**{'classes': 3})"}, ["whose arguments are literals", "write a function"]),
        ({"model": "my_package.model:sized(3).double()"}, ["whose arguments are literals", "write a function"]),
        ({"model": "my_package.model:sized(3"}, ["whose arguments are literals", "write a function"]),
        ({"model": f"my_package.model:sized({'(' * 300}3{')' * 300})"}, ["whose arguments are literals"]),
        ({"model": "my_package.model:number()"}, ["my_package.model:number is a int, which cannot be called"]),
        ({"model": "my_package.model:no_module"}, ["must return a torch.nn.Module, but returns a str"]),
        ({"model": "my_package.model:number"}, ["must be a function that returns a model, but is a int"]),
        ({"model": "my_package.model:a_dict"}, ["must return a tensor of logits", "class dict", "model(x)['logits']"]),
        ({"model": "my_package.model:a_tuple"}, ["must return a tensor of logits", "class tuple", "model(x)[0]"]),
        ({"model": "my_package.model:nan"}, ["the model returns 54 NaN or infinite logits"]),
        ({"model": "my_package.model:misspelt"}, ["fails on inputs of shape (18, 3, 8, 8): NameError", "'logit'"]),
        ({"model": "my_package.model:gray"}, ["inputs of shape (18, 3, 8, 8)", "1 channels, but got 3", "a transform"]),
        ({"model": "my_package.model:\x1b[2J"}, ["has no '\\x1b[2J'"]),
        ({"proxy": "my_package.model:judges", "metrics": "gan_test"}, ["--proxy: 'my_package.model' has no 'judges'"]),
        ({"proxy": "my_package.model:judge"}, ["--proxy: is for the metric gan_test", "--metrics default gan_test"]),
        ({"metrics": "gan_test"}, ["--metrics: gan_test goes with --proxy"]),
        ({"metrics": "diff_roar"}, ["--metrics: diff_roar goes with --train"]),
        ({"metrics": "all"}, ["--metrics: gan_test goes with --proxy, and 'default' is"]),
        ({"metrics": "infidelty"}, ["--metrics: there is no metric 'infidelty'; there are default, all, comp"]),
        ({"train": "images"}, ["--train: is for the metric diff_roar", "--metrics default diff_roar"]),
        ({"train": "my_package.data:alone", "metrics": "diff_roar"}, ["data to train models on have no labels"]),
        ({"train": "my_package.data:number", "metrics": "diff_roar"}, ["data to train models on: data must be"]),
        ({"train": "nowhere", "metrics": "diff_roar"}, ["--train: there is no folder 'nowhere'"]),
        (
            {"train": "images", "metrics": "diff_roar", "model": "my_package.model:ready"},
            ["--train: diff_roar retrains new models, and --model my_package.model:ready is no function"],
        ),
        ({"attributions": "Salience"}, ["--attributions: there is no attribution 'Salience'; there are 'Saliency'"]),
        ({"attributions": "my_package.attributions:other"}, ["--attributions: 'my_package.attributions' has no"]),
        (
            {"attributions": "my_package.attributions:number"},
            ["--attributions: ", "of the model", "class int"],
        ),
        ({"data": "nowhere"}, ["--data: there is no folder 'nowhere'; give a folder of images, or package.module"]),
        ({"data": "x" * 300}, ["--data: there is no folder"]),
        ({"data": "images/cat/0.png"}, ["--data: there is no folder 'images/cat/0.png'"]),
        ({"data": "my_package.data:other"}, ["--data: 'my_package.data' has no 'other'"]),
        ({"data": "my_package.data:raises"}, ["--data: my_package.data:raises() fails: RuntimeError: no such file"]),
        ({"data": "my_package.data:number"}, ["data must be inputs, a pair", "class int"]),
        ({"data": "my_package.data:stream"}, ["the data fail after 1 batches: OSError: the disk is gone"]),
        ({"data": "my_package.data:uneven"}, ["differ in shape", "(3, 8, 8)", "(3, 6, 8)"]),
        ({"data": "my_package.data:levels"}, ["floating-point tensors, got torch.uint8; scale images to [0, 1]"]),
        ({"data": "my_package.data:deep_levels"}, ["got torch.int32; scale images to [0, 1], those of 16 bits by 655"]),
        ({"data": "my_package.data:TooLarge"}, ["GiB", "give the data a transform that resizes them, or a limit"]),
        ({"data": "my_package.data:floats"}, ["labels must be integers", "floating-point"]),
        ({"data": "my_package.data:named"}, ["labels must be numbers", "got str"]),
        ({"data": "my_package.data:x", "transform": "my_package.data:resize"}, ["--transform is for a folder"]),
        ({"transform": "ResNet18_Weights"}, ["--transform: torchvision has no weights 'ResNet18_Weights'; give"]),
        ({"transform": "ResNet18_Weights.BEST"}, ["torchvision has no weights 'ResNet18_Weights.BEST'", "DEFAULT"]),
        ({"transform": "my_package.data:number"}, ["--transform: my_package.data:number must be a transform"]),
        ({"transform": "my_package.data:nothing"}, ["--transform: 'my_package.data' has no 'nothing'"]),
        ({"weights": "nowhere.pt"}, ["--weights: nowhere.pt cannot be read: No such file or directory"]),
        ({"weights": "images"}, ["--weights: images cannot be read: Is a directory"]),
    ],
    ids=lambda value: next(iter(value.values()))[:40] if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_status_2(change, words, user, capsys):
    options = {"model": "my_package.model:build", "data": "images"} | change
    message = refused(capsys, *(text for name, value in options.items() for text in (f"--{name}", value)))
    assert all(text in message for text in words), message
    assert not (user / "report" / "report.json").exists()


def test_images_without_labels_are_audited_and_nothing_is_retrained(user, undrawn, capsys):
    report = audited("--metrics", "accuracy", "infidelity", "--attributions", "Saliency", data="my_package.data:alone")
    assert report.model["accuracy"].text() == "-" and report.methods["Saliency"]["infidelity"].value > 0
    arguments = ["--model", "my_package.model:build", "--data", "my_package.data:alone", "--train", "images"]
    assert "the data to test models on have no labels" in refused(capsys, *arguments, "--metrics", "diff_roar")


@pytest.mark.parametrize("digits", [True, False])
def test_out_that_cannot_be_written_is_one_line_before_any_work(digits, user, capsys):
    (user / "out").mkdir()
    (user / "out" / "cells").touch()
    arguments = [] if digits else ["--model", "my_package.model:build", "--data", "images"]
    message = refused(capsys, *arguments, "--out", "out")
    assert "argument --out: cannot write to out: " in message and "File exists" in message


def test_out_of_another_user_is_one_line(user, capsys, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    message = refused(capsys, "--model", "my_package.model:build", "--data", "images", "--out", "out")
    assert "argument --out: cannot write to out: " in message and "Permission denied" in message


@pytest.mark.parametrize("names", [["--metrics", "infidelty"], ["--attributions", "Salience"]])
def test_the_digits_are_not_trained_on_for_an_unknown_name(names, user, capsys):
    message = refused(capsys, *names)
    assert f"{names[0]}: there is no " in message and not (user / "report").exists()


def test_cuda_that_is_absent_is_one_line(user, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--model", "my_package.model:build", "--data", "images", "--device", "cuda"]
    assert "PyTorch finds no such CUDA device here; use cpu" in refused(capsys, *arguments)


@pytest.mark.cuda
def test_cuda(user, undrawn):
    model = user_model()
    torch.save(model.state_dict(), "weights.pt")
    report = audited("--weights", "weights.pt", "--device", "cuda", *FEW)
    assert report.settings["device"].startswith("cuda") and not failures(report)
    check_model_figures(report, model, *of_folder("images", ToTensor()))


ASKED = ["--metrics", "accuracy", "gradient_norm", "--attributions", "Saliency"]


@pytest.mark.parametrize(
    "call",
    ["sized(3)", "sized(classes=3)", "sized( 3, channels = 3 )", "Net(3, classes=3)", "Net", "sized(classes=+3)"],
)
def test_a_call_of_literals_makes_the_model(call, user, undrawn):
    report = audited(*ASKED, model=call)
    check_model_figures(report, user_model(seed=0), *of_folder("images", ToTensor()))
    assert report.settings["model"] == f"my_package.model:{call}"


def test_a_call_is_retrained(user, undrawn):
    arguments = ["--metrics", "diff_roar", "--attributions", "Saliency", "--train", "images", "--limit", "4"]
    report = audited(*arguments, model="sized(3)")
    assert report.methods["Saliency"]["diff_roar"].low is not None and not failures(report)


def test_data_of_a_call(user, undrawn):
    (user / "my_package" / "parts.py").write_text(
        "from my_package.data import x, y\n"
        "def part(n, *, labelled=True):\n    return (x[:n], y[:n]) if labelled else x[:n]\n"
    )
    report = audited(*ASKED, data="my_package.parts:part(7, labelled=False)")
    assert report.settings["examples"] == 7 and report.model["accuracy"].value is None


def test_attributions_of_a_call(user, undrawn):
    name = "captum.attr:InputXGradient"
    names = [name, f"{name}()", "captum.attr:IntegratedGradients(multiply_by_inputs=False)"]
    report = audited("--metrics", "infidelity", "--attributions", *names, "--limit", "4")
    values = [report.methods[name]["infidelity"].value for name in names]
    assert values[0] == values[1] and not failures(report)


@pytest.mark.parametrize("file", ["my_models.py", "./my_models.py", "code/my_models.py", "{user}/code/my_models.py"])
def test_a_model_in_a_file(file, user, undrawn, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(user))])
    path = Path(file.format(user=user))
    path.parent.mkdir(exist_ok=True)
    path.with_name("parts_of_it.py").write_text(Path("my_package/model.py").read_text())
    path.write_text("from parts_of_it import Net\n\n\ndef net():\n    return Net()\n")
    try:
        main(["--model", f"{path if '{' in file else file}:net", "--data", "images", *ASKED])
    finally:
        for name in ("my_models", "parts_of_it"):
            sys.modules.pop(name, None)
    report = AuditReport.from_json(Path("report/report.json").read_text())
    monkeypatch.syspath_prepend(str(user))
    check_model_figures(report, user_model(seed=0), *of_folder("images", ToTensor()))


def test_a_file_of_a_package_is_imported_as_its_module(user, undrawn):
    (user / "my_package" / "relative.py").write_text("from .model import build\n")
    main(["--model", "my_package/relative.py:build", "--data", "images", *ASKED])
    report = AuditReport.from_json(Path("report/report.json").read_text())
    check_model_figures(report, user_model(seed=0), *of_folder("images", ToTensor()))


def test_a_file_named_as_another_module_is_refused(user, capsys):
    (user / "json.py").write_text("def net():\n    return None\n")
    assert "give 'json.py' another name" in refused(capsys, "--model", "json.py:net", "--data", "images")


def test_no_picture_of_one_audit_lies_beside_the_report_of_another(user, capsys):
    audited(*ASKED, "--metrics", "infidelity")
    out = user / "report"
    pictures = {"figures.png", "saliency.png", "maps.npz"}
    assert pictures <= {path.name for path in out.iterdir()}
    # Of inputs that are no images there are no maps, and of a figure without a value no panel.
    (out / "notes.png").write_text("a biologist's")
    (user / "my_package" / "flat.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    return nn.Linear(5, 3)\nx = torch.rand(6, 5)\n"
    )
    main(["--model", "my_package.flat:net", "--data", "my_package.flat:x", "--metrics", "accuracy"])
    assert not pictures & {path.name for path in out.iterdir()}
    assert (out / "notes.png").read_text() == "a biologist's"


def test_pictures_of_the_digits_do_not_stay_beside_another_report(user, undrawn):
    digits = {
        "softmax_shift.png",
        "vision_transformer.png",
        "density_ratio.png",
        "samples.png",
        "pixel_perturbation.png",
        "photographs.png",
    }
    out = user / "report"

    def rerun(old):
        out.mkdir(exist_ok=True)
        for name in digits:
            (out / name).write_text("drawn")
        (out / "report.json").write_text(json.dumps(old))
        audited(*ASKED)
        return digits & {path.name for path in out.iterdir()}

    assert rerun({"captum_density_audit": 1, "density": {}}) == set()
    # Of no run on the digits, they are someone else's.
    assert rerun({"captum_density_audit": 1}) == rerun({"density": {}}) == rerun([]) == digits
