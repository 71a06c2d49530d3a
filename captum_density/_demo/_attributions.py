"""The methods that the main job measures, and their picture."""

from pathlib import Path

from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor

from captum_density.attr import FullGrad, SimpleFullGrad, SmoothFullGrad
from captum_density.audit import AuditReport, Method
from captum_density.plots import saliency_grid
from captum_density.softmax_shift import CenteredLogits

__all__ = ["METHODS", "SMOOTH_GRAD", "draw_attributions"]

_DRAWN = 6
_NOISE: dict[str, object] = {"nt_samples": 20, "stdevs": 0.15}
# As in the paper, the mean of the signed gradients.
SMOOTH_GRAD = Method(lambda model: NoiseTunnel(Saliency(model)), {**_NOISE, "nt_type": "smoothgrad", "abs": False})

# What the main job measures: Captum's methods and the FullGrad family, by the name to show.
METHODS = {
    "Saliency": Method(Saliency),
    "Saliency, centered": Method(Saliency, view=CenteredLogits),
    "IntegratedGradients": Method(IntegratedGradients),
    "IntegratedGradients, centered": Method(IntegratedGradients, view=CenteredLogits),
    "SmoothGrad": SMOOTH_GRAD,
    "FullGrad": Method(FullGrad),
    "FullGrad, complete": Method(lambda model: FullGrad(model, complete=True)),
    "SimpleFullGrad": Method(SimpleFullGrad),
    "SmoothFullGrad": Method(SmoothFullGrad, _NOISE),
}


def draw_attributions(report: AuditReport, images: Tensor, target: Tensor, path: Path) -> None:
    """Draw the first digits beside their attributions.

    Args:
        report: holds the attributions.
        images: (N, 1, 8, 8).
        target: (N,) the explained classes.
        path: the picture to write.
    """
    drawn = {name: attribution[:_DRAWN] for name, attribution in report.attributions.items()}
    labels = [str(int(label)) for label in target[:_DRAWN]]
    caption = (
        "left, the predicted class, which is explained; white to orange: unsigned maps (Saliency takes absolute values "
        "here)\norange and purple: positive and negative; each map on a scale of its own"
    )
    saliency_grid(images[:_DRAWN], drawn, row_labels=labels, caption=caption).savefig(path, dpi=150)
