"""What tests of the command share."""

import pytest
from matplotlib.figure import Figure

from captum_density._command import density, softmax_shift
from captum_density.audit import _page, _report

DRAWING = {
    _page: ("draw_figures", "draw_maps"),
    _report: ("draw_figures", "draw_maps"),
    density: ("density_ratio_curves", "pixel_perturbation_curves", "sample_grid"),
    softmax_shift: ("saliency_grid",),
}


@pytest.fixture
def undrawn(monkeypatch):
    """Without what takes most of the time of a small audit."""
    for module, names in DRAWING.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: Figure())
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
