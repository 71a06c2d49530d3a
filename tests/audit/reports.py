"""Reports to write, with names that try to be markup: what tests of texts, pictures and pages share.

Only an audit makes maps for a report; those here come without one, hence the private name.
"""

import torch

from captum_density.audit import AuditReport, Control, Measured
from captum_density.audit._maps import Maps, drawn_maps

SETTINGS = {
    "model": "Net",
    "examples": 64,
    "shape": [1, 6, 6],
    "classes": 10,
    "seed": 0,
    "device": "cpu",
    "noise_std": 0.123,
    "perturb_radius": 0.0456,
    "infidelity_samples": 100,
    "sensitivity_samples": 5,
    "torch": "2.0",
}


NAUGHTY = '<b>&"x"</b> $\\frac$ `y`'


def failed(note='RuntimeError: <i>no</i> & "none"'):
    return Measured(None, note=note, failed=True)


def beside(low, high, value=0.2, control="a blob in the centre"):
    """A figure of pixels whose gain over its only control has this interval."""
    gain = (low + high) / 2
    return Measured(
        value, low=value - 0.1, high=value + 0.1, controls=(Control(control, value - gain, gain, low, high),)
    )


def row(value=0.5, **changes):
    """A method with every figure, none of which gives rise to a finding."""
    figures = {
        "completeness_gap": Measured(None, note="the method promises no sum"),
        "infidelity": Measured(0.5 * value, 0.1, reference=2.0),
        "sensitivity_max": Measured(0.2 * value, 0.01),
        "shift_sensitivity": Measured(0.005 * value, 0.001),
        "pixel_perturbation": Measured(value, 0.2, reference=0.3),
        "seconds": Measured(0.01 * value, 0.02),
    }
    return figures | changes


def report_of(methods=None, model=None, skipped=(), shown=None, settings=None):
    methods = {"Saliency": row()} if methods is None else methods
    return AuditReport(methods, {} if model is None else model, SETTINGS | (settings or {}), tuple(skipped), shown)


def pictures(names=("Saliency",), images=2):
    maps = {name: drawn_maps(torch.randn(images, 1, 6, 6)) for name in names}
    return Maps.of(torch.rand(images, 1, 6, 6), torch.arange(images), maps)


def texts(tokens, maps):
    """Texts as an audit shows them, with the value of each token by each method."""
    values = {name: torch.tensor(rows)[:, None] for name, rows in maps.items()}
    inputs, labels = torch.zeros(len(tokens), 1, len(tokens[0])), tuple("predicted <good>\nlabel bad" for _ in tokens)
    return Maps.of(inputs, torch.zeros(len(tokens)).long(), values, kind="text", labels=labels, tokens=tokens)


LONG = "IntegratedGradients, centered, of the block before the last with fifty steps and noise"
