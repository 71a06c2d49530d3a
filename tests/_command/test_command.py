"""The command line on a user's own model and data: what it writes, what it refuses, and how it goes on."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet18_Weights
from torchvision.transforms import ToTensor

from captum_density.__main__ import main
from captum_density._command.arguments import interrupts_wait
from captum_density.audit import AuditReport, audit

MODEL = '''
import torch
from torch import nn
from torchvision.models import VisionTransformer


class Net(nn.Module):
    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(4 * 16, classes)

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(self.relu(self.convolution(x)), 4).flatten(1))


class Twice(Net):
    """DeepLift refuses a ReLU that is used again."""

    def forward(self, x):
        return super().forward(self.relu(x))


class Returning(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.net, self.of = Net(), of

    def forward(self, x):
        return self.of(self.net(x))


def build():
    return Net()


def judge():
    return Net().double().float()


def vit():
    made = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(made.heads.head.weight)  # as made, it is zero
    return made


def twice():
    return Twice()


def cats():
    """Says class 281 of 1000, the tabby, whatever it is shown."""
    net = Net(classes=1000)
    with torch.no_grad():
        net.linear.bias[281] += 100
    return net


def normed():
    net = Net()
    return nn.Sequential(nn.BatchNorm2d(3), net)


def gray():
    return Net(channels=1)


def a_dict():
    return Returning(lambda logits: {"logits": logits})


def a_tuple():
    return Returning(lambda logits: (logits, None))


def one_number():
    return Returning(lambda logits: logits[:, 0])


def nan():
    return Returning(lambda logits: logits * float("nan"))


def misspelt():
    return Returning(lambda logits: logit)


def raises():
    raise RuntimeError("no such\\nlayer")


def leaves():
    raise SystemExit(3)


def no_module():
    return "a model"


ready = Net()
number = 3
'''
DATA = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision import transforms

generator = torch.Generator().manual_seed(5)
x, y = torch.rand(12, 3, 8, 8, generator=generator), torch.randint(3, (12,), generator=generator)


class Items(Dataset):
    samples = x  # no paths

    def __len__(self):
        return len(x)

    def __getitem__(self, i):
        return x[i], int(y[i])


class Broken(Items):
    def __getitem__(self, i):
        if i in (3, 7):
            raise KeyError("no such record")
        return super().__getitem__(i)


class BrokenStream(IterableDataset):
    def __iter__(self):
        yield x[:4], y[:4]
        raise OSError("the disk is gone")


class Named(Items):
    def __getitem__(self, i):
        return x[i], "cat"


class Drawn(Items):
    def __getitem__(self, i):
        return x[i] + torch.rand(3, 8, 8), int(y[i])


dataset, broken, stream, named, drawn = Items(), Broken(), BrokenStream(), Named(), Drawn()
pair, alone, number = (x, y), x, 3
loader = DataLoader(dataset, batch_size=5)
shuffled = DataLoader(dataset, batch_size=5, shuffle=True)
uneven = [(x[:4], y[:4]), (x[4:, :, :6], y[4:])]
floats = (x, y.float())
levels = [((x * 255).to(torch.uint8), y)]
resize = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])


def function():
    return x, y


def random():
    return torch.rand(12, 3, 8, 8), y


def raises():
    raise RuntimeError("no such file")
"""
ATTRIBUTIONS = '''
import time
from pathlib import Path

from captum.attr import InputXGradient, Saliency


class Raises(Saliency):
    def attribute(self, inputs, target=None):
        raise RuntimeError("out of\\npatience")


class Slow(Saliency):
    """Writes down each call, and takes its time."""

    def attribute(self, inputs, target=None):
        with Path("calls.txt").open("a") as file:
            file.write("x")
        time.sleep(0.05)
        return super().attribute(inputs, target=target, abs=False)


def signed(model):
    return InputXGradient(model)


number = 3
'''
FEW = ["--attributions", "Saliency", "FullGrad, complete"]


def write_images(folder, sizes=(8,), n=6, classes=("cat", "dog", "fish")):
    """Images whose brightest channel is, mostly, their class; every other one a JPEG."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            side = sizes[i % len(sizes)]
            image = random.integers(0, 200, (side, side + sizes[-1] - sizes[0], 3), dtype=np.uint8)
            image[..., label % 3] += 50
            Image.fromarray(image).save(folder / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    return folder


def forget_modules():
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's folder: a package with a model, data and attributions, and images of three classes."""
    package = tmp_path / "my_package"
    package.mkdir()
    for name, text in (("model", MODEL), ("data", DATA), ("attributions", ATTRIBUTIONS), ("__init__", "")):
        (package / f"{name}.py").write_text(text)
    (package / "stops.py").write_text("1 / 0\n")
    (package / "needs.py").write_text("import nowhere\n")
    (package / "leaves.py").write_text("import argparse, sys\nsys.exit('usage: train.py')\n")
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget_modules()
    yield tmp_path
    forget_modules()


def audited(*arguments, model="build", data="images", out="report"):
    main(["--model", f"my_package.model:{model}", "--data", data, "--out", out, *arguments])
    return AuditReport.from_json((Path(out) / "report.json").read_text())


def untimed(report):
    """Everything but the seconds, which no seed decides."""
    found = json.loads(report.to_json())
    for figures in found["methods"].values():
        figures.pop("seconds", None)
    return found


def made(name="build", seed=1):
    """The user's model as the test makes it, in the state that the weights' file has."""
    import my_package.model

    torch.manual_seed(seed)
    return getattr(my_package.model, name)().eval()


def by_hand(model, x, y):
    """Accuracy and mean squared gradient of the predicted logit."""
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), x)
    return (logits.argmax(1) == y).double().mean().item(), gradient.double().flatten(1).square().sum(1).mean().item()


def of_folder(folder, transform):
    pairs = list(ImageFolder(str(folder), transform=transform))
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


def check_model_figures(report, model, x, y):
    accuracy, squared = by_hand(model, x, y)
    assert report.model["accuracy"].value == accuracy
    assert report.model["gradient_norm"].value == pytest.approx(squared, rel=1e-4)


def failures(report):
    rows = {**report.methods, "model": report.model}
    return {name for name, figures in rows.items() for figure in figures.values() if figure.failed}


def test_a_folder_of_images_and_a_file_of_weights(user, capsys):
    model = made()
    torch.save(model.state_dict(), "weights.pt")
    state = torch.get_rng_state()
    report = audited("--weights", "weights.pt", out="made/report")
    assert torch.equal(torch.get_rng_state(), state)
    check_model_figures(report, model, *of_folder("images", ToTensor()))
    assert report.settings["model"] == "my_package.model:build"
    assert report.settings["examples"] == 18 and report.settings["classes"] == 3
    assert len(report.methods) == 8 and not failures(report)
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-4
    printed = capsys.readouterr()
    assert "audit: 100%" in printed.err and "Traceback" not in printed.err
    assert str(report) in printed.out
    out = Path("made/report")
    for picture in ("figures.png", "saliency.png"):
        with Image.open(out / picture) as image:
            assert image.size[0] > 300
    assert report.verdict in html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert (out / "table.md").read_text(encoding="utf-8") == f"{report}\n"
    assert {path.name for path in out.iterdir()} == {
        *("cells", "report.html", "report.json", "table.md", "figures.png", "saliency.png")
    }
    for name in ("report.html", "report.json", "table.md", "figures.png", "saliency.png"):
        assert name in printed.out.splitlines()[-1]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "optimizer": {}},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    ],
)
def test_weights_as_training_scripts_save_them(wrapped, user, undrawn):
    model = made()
    torch.save(wrapped(model.state_dict()), "weights.pt")
    report = audited("--weights", "weights.pt", "--metrics", "accuracy", "gradient_norm", *FEW)
    check_model_figures(report, model, *of_folder("images", ToTensor()))


def test_weights_of_an_older_version_that_pytorch_loads(user, undrawn):
    model = made("normed")
    state = {key: value for key, value in model.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, "weights.pt")
    report = audited("--weights", "weights.pt", "--metrics", "accuracy", "gradient_norm", *FEW, model="normed")
    check_model_figures(report, model, *of_folder("images", ToTensor()))


def test_hidden_folders_are_no_classes(user, undrawn):
    (user / "images" / ".ipynb_checkpoints").mkdir()
    report = audited("--metrics", "accuracy", "gradient_norm", *FEW)
    (user / "images" / ".ipynb_checkpoints").rmdir()
    check_model_figures(report, made(seed=0), *of_folder("images", ToTensor()))


def test_images_of_varying_sizes_with_a_transform_of_the_users(user, undrawn):
    from my_package.data import resize

    write_images(user / "varying", sizes=(6, 9, 14))
    model = made()
    torch.save(model.state_dict(), "weights.pt")
    report = audited("--weights", "weights.pt", "--transform", "my_package.data:resize", *FEW, data="varying")
    x, y = of_folder("varying", resize)
    assert report.settings["shape"] == [3, 8, 8] and len(x) == 18
    check_model_figures(report, model, x, y)
    assert not failures(report)


def test_transform_of_torchvision_weights_and_their_categories(user, undrawn):
    write_images(user / "pets", sizes=(20, 31), n=2, classes=("goldfish", "tabby", "golden retriever", "zebra"))
    asked = ["--transform", "ResNet18_Weights.DEFAULT", "--metrics", "accuracy", "gradient_norm"]
    report = audited(*asked, "--attributions", "Saliency", model="cats", data="pets")
    x, y = of_folder("pets", ResNet18_Weights.DEFAULT.transforms())
    labels = torch.tensor([207, 1, 281, 340])[y]  # of ImageNet, in the alphabetical order of the folders
    assert report.settings["shape"] == [3, 224, 224]
    torch.manual_seed(0)  # as --seed
    check_model_figures(report, made("cats", seed=0), x, labels)
    assert report.model["accuracy"].value == 0.25
    # Folders that are no categories are classes of their own, and there are not 1000 of them.
    (user / "pets" / "zebra").rename(user / "pets" / "my zebra")
    report = audited(*asked, "--attributions", "Saliency", model="cats", data="pets")
    assert report.model["accuracy"].value is None
    assert report.model["accuracy"].note == "the data have 4 classes and the model 1000 outputs"


@pytest.mark.slow
def test_a_network_of_torchvision(user, undrawn):
    write_images(user / "pets", sizes=(20, 31), n=2, classes=("goldfish", "tabby"))
    asked = ["--transform", "ResNet18_Weights.DEFAULT", "--limit", "2", "--metrics", "completeness_gap", "accuracy"]
    main(["--model", "torchvision.models:resnet18", "--data", "pets", *asked, *FEW])
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
    model = made(seed=0)  # as --seed makes it
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

    def found(state):
        torch.manual_seed(state)
        before, given = torch.get_rng_state(), getattr(my_package.data, data)
        report = audit(model, given, ["Saliency"], metrics=["gradient_norm"], limit=5, seed=2)
        assert torch.equal(torch.get_rng_state(), before)
        return report.model["gradient_norm"]

    model = made()
    assert found(0) == found(1)


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
    def found(seed, data, model):
        forget_modules()
        torch.manual_seed(time.time_ns() % 2**32)
        figures, noisy = ["--metrics", "accuracy", "gradient_norm", "infidelity"], ["--attributions", "SmoothGrad"]
        return untimed(audited("--seed", str(seed), "--limit", "5", *noisy, *figures, data=data, model=model))

    things = [("images", "build"), ("images", "ready")]  # the latter is made when its module is imported
    things += [(f"my_package.data:{name}", "build") for name in ("shuffled", "drawn", "random")]
    for data, model in things:
        first, again, other = (found(seed, data, model) for seed in (0, 0, 1))
        assert first == again, (data, model)
        del first["settings"], other["settings"]
        assert first["model"]["gradient_norm"] != other["model"]["gradient_norm"]
        assert first["methods"]["SmoothGrad"]["infidelity"] != other["methods"]["SmoothGrad"]["infidelity"]


def test_seed_makes_the_model_whatever_its_module_draws(user, undrawn):
    report = audited("--metrics", "accuracy", "gradient_norm", "--attributions", "Saliency", "--seed", "5")
    check_model_figures(report, made(seed=5), *of_folder("images", ToTensor()))


def test_gan_test_asks_the_proxy(user, undrawn):
    asked = ["--metrics", "gan_test", "--attributions", "Saliency"]
    same = audited(*asked, "--proxy", "my_package.model:judge")
    assert same.model["gan_test"].value > 0.9  # made like the model, from the same seed
    x, y = of_folder("images", ToTensor())
    assert same.model["gan_test"].reference == by_hand(made(seed=0), x, y)[0]
    other = audited(*asked, "--proxy", "my_package.model:vit", data="images")
    assert other.model["gan_test"].failed and "8" in other.model["gan_test"].note  # images of 8 pixels, not 16


def test_diff_roar_retrains(user, undrawn):
    write_images(user / "training", n=10)
    report = audited("--metrics", "diff_roar", "--attributions", "Saliency", "--train", "training", "--limit", "4")
    found = report.methods["Saliency"]["diff_roar"]
    assert found.low <= found.value <= found.high and not failures(report)
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
    names = ["Saliency", "DeepLift", "my_package.attributions:Raises", "FullGrad, complete"]
    fails = fails | {"my_package.attributions:Raises"}
    report = audited("--attributions", *names, "--limit", "6", model=model)
    assert list(report.methods) == names
    assert failures(report) == fails
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-4
    for name in fails:
        assert all(figure.failed and figure.note for figure in report.methods[name].values())
    text = "RuntimeError: out of patience"
    assert report.methods["my_package.attributions:Raises"]["infidelity"].note == text
    printed, page = capsys.readouterr().out, Path("report/report.html").read_text(encoding="utf-8")
    assert f"my_package.attributions:Raises failed: {text}" in " ".join(printed.split()) and text in page
    without = [name for name in names if name not in fails]
    alone = audited("--attributions", *without, "--limit", "6", model=model)
    assert {name: row for name, row in untimed(report)["methods"].items() if name in without} == untimed(alone)[
        "methods"
    ]


@pytest.mark.slow
def test_a_vision_transformer_on_default_methods(user, undrawn):
    write_images(user / "images", sizes=(16,))
    report = audited("--limit", "6", model="vit")
    assert len(report.methods) == 8 and not failures(report)
    assert report.methods["FullGrad, complete"]["completeness_gap"].value < 1e-4
    assert report.methods["Saliency, centered"]["shift_sensitivity"].value < 1e-6


SLOWLY = ["--limit", "5", "--attributions", "my_package.attributions:Slow", "Saliency"]


def started(folder, *arguments):
    """The command in a process of its own, in the user's folder."""
    command = [sys.executable, "-m", "captum_density", "--model", "my_package.model:build", "--data", "images"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    # Where tests run in the background, a shell has SIGINT ignored, which children inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


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


def check_interrupted(status, out, err, cells):
    assert status == 130 and out == ""
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.endswith(
        f"interrupted; what was measured is kept in {cells}, and the same command with --resume goes on from there"
    )


def calls():
    return len(Path("calls.txt").read_text()) if Path("calls.txt").exists() else 0


def check_goes_on(user, moments):
    """Stop at each moment, go on, and compare with an audit that was never stopped."""
    whole = untimed(audited(*SLOWLY, out="whole"))
    needed = calls()
    assert needed == 9
    for number, (how, n) in enumerate(moments):
        out, cells = f"out-{number}", user / f"out-{number}" / "cells"
        process = started(user, "--out", out, *SLOWLY)
        ended = stopped(process, how, lambda cells=cells, n=n: len(cells_in(cells)) >= n)
        if how == signal.SIGINT:
            check_interrupted(*ended, Path(out) / "cells")
        else:
            assert ended[0] == -signal.SIGKILL
        assert not (user / out / "report.json").exists()
        kept, before = cells_in(cells), calls()
        assert n <= len(kept) < 18
        resumed = audited(*SLOWLY, "--resume", out=out)
        assert untimed(resumed) == whole
        assert {name: at for name, at in cells_in(cells).items() if name in kept} == kept
        if n > 8:  # of the 4 of the model and 7 of the slow method
            assert calls() - before < needed
    return needed, cells


def test_stopped_and_resumed_is_the_same_report_and_else_it_starts_anew(user, undrawn):
    needed, cells = check_goes_on(user, [(signal.SIGINT, 9), (signal.SIGKILL, 6)])
    # Finished, and asked again: nothing but what it takes to draw is left to do; without --resume, all of it.
    finished, before = cells_in(cells), calls()
    audited(*SLOWLY, "--resume", out=cells.parent.name)
    assert cells_in(cells) == finished and calls() == before + 1  # to tell the method
    audited(*SLOWLY, out=cells.parent.name)
    again = cells_in(cells)
    assert again.keys() == finished.keys() and all(again[name] > finished[name] for name in finished)
    assert calls() == before + 1 + needed


@pytest.mark.slow
def test_stopped_at_any_moment_and_resumed_is_the_same_report(user, undrawn):
    check_goes_on(user, [(how, n) for n in (1, 3, 5, 7, 8, 10) for how in (signal.SIGINT, signal.SIGKILL)])


def test_interrupted_before_the_first_figure(user):
    (user / "my_package" / "waits.py").write_text("import time\nopen('loaded', 'w').close()\ntime.sleep(100)\n")
    process = started(user, "--proxy", "my_package.waits:build", "--metrics", "gan_test")
    status, out, err = stopped(process, signal.SIGINT, (user / "loaded").exists)
    assert (status, out) == (130, "")
    assert err.strip() == "python -m captum_density: interrupted; nothing was measured yet"


def test_an_interrupt_waits_until_modules_are_loaded():
    before, loaded = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            loaded.append("all of it")
        assert loaded and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


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
    asked = ["--metrics", "diff_roar", "--train", "nowhere"]
    refused(capsys, "--model", "my_package.model:build", "--data", "images", *asked)
    assert cells_in(user / "report" / "cells") == before


def refused(capsys, *arguments):
    """The one line that is said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("python -m captum_density: error: ") and printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n") and len(printed.err) < 700
    return printed.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "my_package.models:build"}, ["--model: there is no module 'my_package.models'", "current folder"]),
        ({"model": "nowhere:build"}, ["--model: there is no module 'nowhere'", "installed packages"]),
        ({"model": "my_package.model"}, ["--model must be package.module:name, but is 'my_package.model'"]),
        ({"model": "my_package/model.py:build"}, ["there is no module 'my_package/model.py'"]),
        ({"model": "my_package.stops:build"}, ["importing 'my_package.stops' fails: ZeroDivisionError"]),
        ({"model": "my_package.needs:build"}, ["importing 'my_package.needs' fails: ModuleNotFoundError", "'nowhere'"]),
        ({"model": "my_package.leaves:build"}, ["importing 'my_package.leaves' fails: SystemExit: usage: train.py"]),
        ({"model": "my_package.model:built"}, ["--model: 'my_package.model' has no 'built'"]),
        ({"model": "my_package.model:raises"}, ["my_package.model:raises() fails: RuntimeError: no such layer"]),
        ({"model": "my_package.model:leaves"}, ["my_package.model:leaves() fails: SystemExit: 3"]),
        (
            {"model": "my_package.model:Twice.forward"},
            ["fails: TypeError: ", "missing 2 required"],
        ),
        ({"model": "my_package.model:no_module"}, ["must return a torch.nn.Module, but returns a str"]),
        ({"model": "my_package.model:number"}, ["must be a function that returns a model, but is a int"]),
        ({"model": "my_package.model:a_dict"}, ["must return a tensor of logits", "class dict with the keys logits"]),
        ({"model": "my_package.model:a_tuple"}, ["must return a tensor of logits", "class tuple", "wrap it"]),
        ({"model": "my_package.model:one_number"}, ["logits of shape (N, classes)", "shape (18,) for 18 examples"]),
        ({"model": "my_package.model:nan"}, ["the model returns 54 NaN or infinite logits"]),
        ({"model": "my_package.model:misspelt"}, ["fails on inputs of shape (18, 3, 8, 8): NameError", "'logit'"]),
        ({"model": "my_package.model:gray"}, ["inputs of shape (18, 3, 8, 8)", "1 channels, but got 3", "a transform"]),
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
        ({"data": "my_package.data:floats"}, ["labels must be integers", "torch.float32"]),
        ({"data": "my_package.data:named"}, ["labels must be integers", "got str"]),
        ({"data": "my_package.data:x", "transform": "my_package.data:resize"}, ["--transform is for a folder"]),
        ({"transform": "ResNet18_Weights"}, ["--transform: torchvision has no weights 'ResNet18_Weights'; give"]),
        ({"transform": "ResNet18_Weights.BEST"}, ["torchvision has no weights 'ResNet18_Weights.BEST'", "DEFAULT"]),
        ({"transform": "my_package.data:number"}, ["--transform: my_package.data:number cannot be called"]),
        ({"transform": "my_package.data:nothing"}, ["--transform: 'my_package.data' has no 'nothing'"]),
        ({"weights": "nowhere.pt"}, ["--weights: nowhere.pt cannot be read: No such file or directory"]),
        ({"weights": "images"}, ["--weights: images cannot be read: Is a directory"]),
    ],
    ids=lambda value: next(iter(value.values()))[:40] if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_status_2(change, words, user, capsys):
    asked = {"model": "my_package.model:build", "data": "images"} | change
    said = refused(capsys, *(text for name, value in asked.items() for text in (f"--{name}", value)))
    assert all(text in said for text in words), said
    assert not (user / "report" / "report.json").exists()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path, state: path.write_bytes(b""), "holds no weights that torch.load(weights_only=True) reads"),
        (lambda path, state: path.write_text("not weights"), "holds no weights"),
        (lambda path, state: path.write_bytes(_saved(state)[:-200]), "holds no weights"),
        (lambda path, state: torch.save(made(), path), "holds no weights"),
        (
            lambda path, state: torch.save([1, 2], path),
            "must hold a state dict, alone or under state_dict, model_",
        ),
        (lambda path, state: torch.save({"net": state, "epoch": 3}, path), "but holds a dict with the keys net, epoch"),
        (lambda path, state: torch.save({1: torch.zeros(2)}, path), "but holds a dict with the keys 1; save model"),
        (
            lambda path, state: torch.save({}, path),
            "4 missing (convolution.weight, convolution.bias, linear.weight,",
        ),
        (lambda path, state: torch.save(_without(state), path), "does not fit the model: 1 missing (linear.bias)"),
        (lambda path, state: torch.save(state | {"head": torch.zeros(2)}, path), "1 unexpected (head)"),
        (
            lambda path, state: torch.save(state | {"linear.weight": torch.zeros(5, 64)}, path),
            "1 of another shape (linear.weight is (5, 64) and should be (3, 64))",
        ),
    ],
)
def test_bad_weights_are_one_line(write, words, user, capsys):
    write(user / "weights.pt", made().state_dict())
    said = refused(capsys, "--model", "my_package.model:build", "--data", "images", "--weights", "weights.pt")
    assert "--weights: weights.pt " in said and words in said


def _saved(state):
    torch.save(state, "whole.pt")
    return Path("whole.pt").read_bytes()


def _without(state):
    return {key: value for key, value in state.items() if key != "linear.bias"}


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: folder.mkdir(), ["must hold a folder of images for each class, such as bad/cat/1.png", "find"]),
        (lambda folder: write_images(folder.parent, classes=("bad",)), ["a folder of images for each class"]),
        (lambda folder: write_images(folder, classes=("cat",)), ["images of one class only, 'cat'; give the folder"]),
        (
            lambda folder: [(folder / name).mkdir(parents=True) for name in ("cat", "dog")],
            ["a folder of images for each class", "cat, dog"],
        ),
        (
            lambda folder: (folder / ".ipynb_checkpoints").mkdir(parents=True),
            ["a folder of images for each class", "couldn't find any class folder"],
        ),
        (
            lambda folder: write_images(folder, sizes=(6, 9)),
            ["bad/cat/0.png has (3, 6, 9)", "bad/cat/1.jpg has (3, 9, 12)", "give the data a transform"],
        ),
        (
            lambda folder: [path.write_bytes(b"x") for path in sorted(write_images(folder).glob("*/*"))],
            ["hold no examples; none of 18 can be read, first bad/", "UnidentifiedImageError"],
        ),
    ],
)
def test_bad_folders_are_one_line(write, words, user, capsys):
    write(user / "bad")
    said = refused(capsys, "--model", "my_package.model:build", "--data", "bad")
    assert all(text in said for text in words), said


def test_corrupt_images_are_named_counted_and_skipped(user, undrawn, capsys, monkeypatch):
    cut = (user / "images" / "cat" / "0.png").read_bytes()
    (user / "images" / "cat" / "0.png").write_bytes(cut[: len(cut) // 2])
    (user / "images" / "dog" / "1.jpg").write_bytes(b"")
    (user / "images" / "fish" / "2.png").write_bytes(cut.replace(b"IDAT", b"ID\0T"))
    Image.new("RGB", (60, 60)).save(user / "images" / "fish" / "4.png")  # a bomb, by the measure that follows
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    model = made(seed=0)
    report = audited(*FEW)
    bad = ["images/cat/0.png", "images/dog/1.jpg", "images/fish/2.png", "images/fish/4.png"]
    assert report.settings["examples"] == 14
    assert [line.partition(" (")[0] for line in report.skipped] == bad
    for line, kind in zip(
        report.skipped, ("OSError", "Unidentified", "Unidentified", "DecompressionBomb"), strict=True
    ):
        assert f" ({kind}" in line, line
    assert json.loads(Path("report/report.json").read_text())["skipped"] == list(report.skipped)
    page, printed = Path("report/report.html").read_text(encoding="utf-8"), capsys.readouterr().out
    assert all(path in page for path in bad)
    for text in (page, printed, Path("report/table.md").read_text(encoding="utf-8")):
        assert "4 examples" in text and "could not be read" in " ".join(text.split()) and bad[0] in text
    for path in bad:
        Path(path).unlink()
    check_model_figures(report, model, *of_folder("images", ToTensor()))


def test_corrupt_images_of_a_limited_audit_are_made_up_for(user, undrawn):
    for path in (user / "images" / "cat").iterdir():
        path.write_bytes(b"")
    report = audited("--limit", "8", "--metrics", "accuracy", "--attributions", "Saliency")
    assert report.settings["examples"] == 8
    assert 0 < len(report.skipped) <= 6 and all("images/cat/" in line for line in report.skipped)


def test_corrupt_images_to_train_on_are_named(user, undrawn):
    for path in list((write_images(user / "training", n=10) / "cat").iterdir())[:2]:
        path.write_bytes(b"")
    (user / "images" / "dog" / "1.jpg").write_bytes(b"")
    report = audited("--metrics", "diff_roar", "--attributions", "Saliency", "--train", "training")
    told = [line.partition(" (")[0] for line in report.skipped]
    assert len(told) == 3 and told[0] == "images/dog/1.jpg" and all("training/cat/" in path for path in told[1:])


def test_images_without_labels_are_audited_and_nothing_is_retrained(user, undrawn, capsys):
    report = audited("--metrics", "accuracy", "infidelity", "--attributions", "Saliency", data="my_package.data:alone")
    assert report.model["accuracy"].text() == "-" and report.methods["Saliency"]["infidelity"].value > 0
    asked = ["--model", "my_package.model:build", "--data", "my_package.data:alone", "--train", "images"]
    assert "the data to test models on have no labels" in refused(capsys, *asked, "--metrics", "diff_roar")


@pytest.mark.parametrize("digits", [True, False])
def test_out_that_cannot_be_written_is_one_line_before_any_work(digits, user, capsys):
    (user / "out").mkdir()
    (user / "out" / "cells").touch()
    asked = [] if digits else ["--model", "my_package.model:build", "--data", "images"]
    said = refused(capsys, *asked, "--out", "out")
    assert "argument --out: cannot write to out: " in said and "File exists" in said


def test_out_of_another_user_is_one_line(user, capsys, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    said = refused(capsys, "--model", "my_package.model:build", "--data", "images", "--out", "out")
    assert "argument --out: cannot write to out: " in said and "Permission denied" in said


@pytest.mark.parametrize("names", [["--metrics", "infidelty"], ["--attributions", "Salience"]])
def test_the_digits_are_not_trained_on_for_an_unknown_name(names, user, capsys):
    said = refused(capsys, *names)
    assert f"{names[0]}: there is no " in said and not (user / "report").exists()


def test_cuda_that_is_absent_is_one_line(user, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = ["--model", "my_package.model:build", "--data", "images", "--device", "cuda"]
    assert "PyTorch finds no such CUDA device here; use cpu" in refused(capsys, *asked)


@pytest.mark.cuda
def test_cuda(user, undrawn):
    model = made()
    torch.save(model.state_dict(), "weights.pt")
    report = audited("--weights", "weights.pt", "--device", "cuda", *FEW)
    assert report.settings["device"].startswith("cuda") and not failures(report)
    check_model_figures(report, model, *of_folder("images", ToTensor()))
