"""Folders of images, and what makes tensors of them."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.transforms import ToTensor

from captum_density.audit import _sample
from tests._command.users import (
    FEW,
    audited,
    check_model_figures,
    failures,
    of_folder,
    refused,
    user_model,
    write_images,
)

OPTIONS = ["--metrics", "accuracy", "gradient_norm", "--attributions", "Saliency"]


def write_deep_images(folder, suffix, n=4):
    """Grey images of 16 bits, and their values."""
    values = []
    for label, name in enumerate(("cat", "dog", "fish")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            levels = np.random.default_rng(10 * label + i).integers(0, 65536, (8, 8), dtype=np.uint16)
            path = folder / name / f"{i}{suffix}"
            if suffix == ".pgm":
                path.write_bytes(b"P5 8 8 65535\n" + levels.astype(">u2").tobytes())
            else:
                Image.fromarray(levels).save(path)
            values.append(torch.from_numpy(levels / 65535).float().expand(3, -1, -1))
    return torch.stack(values), torch.arange(3).repeat_interleave(n)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_images_of_16_bits_keep_their_values(suffix, user, undrawn):
    x, y = write_deep_images(user / "deep", suffix)
    model = user_model(seed=0)
    check_model_figures(audited(*OPTIONS, data="deep"), model, x, y)
    # A transform of images has those of 8 bits.
    report = audited(*OPTIONS, "--transform", "my_package.data:resize", data="deep")
    check_model_figures(report, model, (x * 255).round() / 255, y)


def test_images_whose_range_no_file_says_are_named_and_skipped(user, undrawn):
    Image.fromarray(np.random.rand(8, 8).astype(np.float32)).save(user / "images" / "cat" / "x.tif")
    Image.fromarray(np.full((8, 8), 70000, dtype=np.int32)).save(user / "images" / "dog" / "x.tif")
    report = audited(*OPTIONS)
    assert [line.partition(" (")[0] for line in report.skipped] == ["images/cat/x.tif", "images/dog/x.tif"]
    assert all("save it with 16" in line for line in report.skipped)


@pytest.mark.parametrize("suffix", [".gif", ".heic", ".npy"])
def test_images_of_kinds_that_are_not_read_are_named_and_skipped(suffix, user, undrawn, capsys):
    (user / "images" / "cat" / "0.png").rename(user / "images" / "cat" / f"0{suffix}")
    (user / "images" / "cat" / "notes.txt").write_text("a biologist's")
    report = audited(*OPTIONS)
    assert report.settings["examples"] == 17
    assert len(report.skipped) == 1 and report.skipped[0].startswith(
        f"images/cat/0{suffix} (ValueError: {suffix} files"
    )
    assert f"images/cat/0{suffix}" in " ".join(capsys.readouterr().out.split())


def test_a_class_of_gif_alone_is_named(user, capsys):
    for path in (write_images(user / "gifs")).glob("*/*"):
        path.rename(path.with_suffix(".gif"))
    message = refused(capsys, "--model", "my_package.model:build", "--data", "gifs")
    assert "none of 18 can be read" in message and ".gif files are not read; save it as .png" in message


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0.png", "cat/._0.png"])
def test_hidden_folders_and_files_are_no_classes_and_no_images(hidden, user, undrawn):
    path = user / "images" / hidden
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((user / "images" / "dog" / "0.png").read_bytes())
    report = audited(*OPTIONS)
    path.unlink()
    if path.parent.name.startswith("."):
        path.parent.rmdir()
    assert not report.skipped
    check_model_figures(report, user_model(seed=0), *of_folder("images", ToTensor()))


@pytest.mark.parametrize(
    ("parts", "first"),
    [(("train", "val"), "val"), (("train", "val", "test"), "test"), (("Training", "notes"), "Train")],
)
def test_parts_of_a_data_set_are_no_classes(parts, first, user, capsys):
    for part in parts:
        write_images(user / "parted" / part, n=1)
    message = refused(capsys, "--model", "my_package.model:build", "--data", "parted")
    assert f"give one of them, as in --data parted/{first}" in message
    arguments = ["--metrics", "diff_roar", "--train", "parted"]
    message = refused(capsys, "--model", "my_package.model:build", "--data", "images", *arguments)
    assert f"as in --train parted/{parts[0]}" in message


def test_parts_without_classes_are_no_classes(user, capsys):
    write_images(user / "parted", classes=("train", "val"), n=2)
    message = refused(capsys, "--model", "my_package.model:build", "--data", "parted")
    assert "give one of them" in message


def test_a_train_is_a_class_beside_a_car(user, undrawn):
    write_images(user / "vehicles", classes=("car", "plane", "train"), n=2)
    report = audited(*OPTIONS, data="vehicles")
    check_model_figures(report, user_model(seed=0), *of_folder("vehicles", ToTensor()))


@pytest.mark.parametrize(
    "transform",
    ["resize", "make_resize", "make_resize(side=8)", "make_resize(8)", "resized", "resized(side=8)", "Resize"],
)
def test_a_transform_or_what_makes_one(transform, user, undrawn):
    from my_package.data import resize

    write_images(user / "varying", sizes=(6, 9, 14), n=2)
    report = audited(*OPTIONS, "--transform", f"my_package.data:{transform}", data="varying")
    check_model_figures(report, user_model(seed=0), *of_folder("varying", resize))


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ("sized_transform", "give it a transform that ends in a tensor"),  # called with an image, as a transform
        ("no_transform", "must be a transform, or return one, but gives a int, which cannot be called"),
        ("raises", "my_package.data:raises() fails: RuntimeError"),
        ("number", "but gives a int, which cannot be called"),
        ("number(3)", "my_package.data:number is a int, which cannot be called"),
    ],
)
def test_a_bad_transform_is_one_line(transform, words, user, capsys):
    arguments = ["--data", "images", "--transform", f"my_package.data:{transform}"]
    assert words in refused(capsys, "--model", "my_package.model:build", *arguments)


def test_images_of_varying_sizes_with_a_transform_of_the_users(user, undrawn):
    from my_package.data import resize

    write_images(user / "varying", sizes=(6, 9, 14))
    model = user_model()
    torch.save(model.state_dict(), "weights.pt")
    report = audited("--weights", "weights.pt", "--transform", "my_package.data:resize", *FEW, data="varying")
    x, y = of_folder("varying", resize)
    assert report.settings["shape"] == [3, 8, 8] and len(x) == 18
    check_model_figures(report, model, x, y)
    assert not failures(report)


def test_transform_of_torchvision_weights_and_their_categories(user, undrawn):
    write_images(user / "pets", sizes=(20, 31), n=2, classes=("goldfish", "tabby", "golden retriever", "zebra"))
    arguments = ["--transform", "ResNet18_Weights.DEFAULT", "--metrics", "accuracy", "gradient_norm"]
    report = audited(*arguments, "--attributions", "Saliency", model="cats", data="pets")
    x, y = of_folder("pets", ResNet18_Weights.DEFAULT.transforms())
    labels = torch.tensor([207, 1, 281, 340])[y]  # of ImageNet, in the alphabetical order of the folders
    assert report.settings["shape"] == [3, 224, 224]
    torch.manual_seed(0)  # as --seed
    check_model_figures(report, user_model("cats", seed=0), x, labels)
    assert report.model["accuracy"].value == 0.25
    # Folders that are no categories are classes of their own, and there are not 1000 of them.
    (user / "pets" / "zebra").rename(user / "pets" / "my zebra")
    report = audited(*arguments, "--attributions", "Saliency", model="cats", data="pets")
    assert report.model["accuracy"].value is None
    assert report.model["accuracy"].note == "the data have 4 classes and the model 1000 outputs"


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
    message = refused(capsys, "--model", "my_package.model:build", "--data", "bad")
    assert all(text in message for text in words), message


def test_corrupt_images_are_named_counted_and_skipped(user, undrawn, capsys, monkeypatch):
    cut = (user / "images" / "cat" / "0.png").read_bytes()
    (user / "images" / "cat" / "0.png").write_bytes(cut[: len(cut) // 2])
    (user / "images" / "dog" / "1.jpg").write_bytes(b"")
    (user / "images" / "fish" / "2.png").write_bytes(cut.replace(b"IDAT", b"ID\0T"))
    Image.new("RGB", (60, 60)).save(user / "images" / "fish" / "4.png")  # a bomb, by the measure that follows
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    model = user_model(seed=0)
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


def test_images_that_would_fill_the_memory_and_names_that_would_move_a_cursor(user, undrawn, capsys):
    header = b"IHDR" + struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (user / "images" / "cat" / "huge.png").write_bytes(png + struct.pack(">I", 0) + b"IDAT")
    (user / "images" / "fish" / "\x1b[2Jred.png").write_bytes(b"")
    report = audited("--metrics", "accuracy", "--attributions", "Saliency")  # without Pillow's warning
    assert len(report.skipped) == 2 and "13000 x 13000 pixels; make it smaller" in report.skipped[0]
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out and "[2Jred.png" in printed.out.replace("\n", "")


def test_a_sample_that_would_fill_the_memory(user, undrawn, capsys, monkeypatch):
    monkeypatch.setattr(_sample, "_BYTES", 2 * 3 * 8 * 8 * 4)
    message = refused(capsys, "--model", "my_package.model:build", "--data", "images")
    assert "transform that resizes" in message and "limit of at most 2" in message
    assert audited("--limit", "2", *OPTIONS).settings["examples"] == 2


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
    files = [line.partition(" (")[0] for line in report.skipped]
    assert len(files) == 3 and files[0] == "images/dog/1.jpg" and all("training/cat/" in path for path in files[1:])
