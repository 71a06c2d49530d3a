"""What tests of the command share."""

import sys

import pytest
from matplotlib.figure import Figure

from captum_density._command import density, digits_job, softmax_shift, transformer
from captum_density.audit import _page, _report
from captum_density.audit._images import Images
from tests._command.users import ATTRIBUTIONS, DATA, MODEL, forget_modules, write_images

DRAWING = {
    density: ("density_ratio_curves", "pixel_perturbation_curves", "sample_grid"),
    softmax_shift: ("saliency_grid",),
    transformer: ("saliency_grid",),
}


@pytest.fixture
def undrawn(monkeypatch):
    """Without what takes most of the time of a small audit."""
    for module in (_page, _report):
        monkeypatch.setattr(module, "draw_images", lambda results, **_: Images((), ()))
    for module, names in DRAWING.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: Figure())
    monkeypatch.setattr(digits_job, "write_photographs", lambda *_: "photographs.png")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


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
