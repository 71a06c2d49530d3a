"""Photographs that EfficientNet-Lite0 classifies, explained by Captum's methods and ours."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from tqdm import tqdm

from captum_density._model.generators import seeded
from captum_density.attr import FullGrad, SmoothFullGrad
from captum_density.datasets import Photographs
from captum_density.plots import saliency_grid

__all__ = ["PhotographStudy", "study_photographs", "write_photographs"]

_STDEVS = 0.15 * 2  # of the noise, 0.15 of the range of the pixels, [-1, 1]
_DPI, _PAGE_DPI = 130, 96


@dataclass(frozen=True)
class PhotographStudy:
    """Photographs, what a network sees in them, and where methods say that it sees it.

    Args:
        images: (K, 3, 224, 224) in [0, 1].
        names: What each photograph shows.
        classes: The name of each one's most probable class, which is explained.
        probabilities: Of these classes, in [0, 1].
        attributions: Each method's attributions, (K, 3, 224, 224).
        samples: Noisy copies of each photograph in the methods that average over such.
    """

    images: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    attributions: Mapping[str, Tensor]
    samples: int

    def text(self) -> str:
        """Return what each photograph is classified as, a line for each after a heading."""
        rows = zip(self.names, self.classes, self.probabilities, strict=True)
        lines = [f"  {name:<12} {label}, probability {probability:.2f}" for name, label, probability in rows]
        heading = f"what EfficientNet-Lite0 sees, by {', '.join(self.attributions)}, in photographs.png:"
        return "\n".join([heading, *lines])

    def to_dict(self) -> dict[str, object]:
        """Return what `json` can write of it."""
        rows = zip(self.names, self.classes, self.probabilities, strict=True)
        photographs = [{"name": name, "class": label, "probability": p} for name, label, p in rows]
        return {"network": "EfficientNet-Lite0", "samples": self.samples, "photographs": photographs}

    def caption(self) -> str:
        """Return what the picture shows, and what its colours mean."""
        return (
            "what EfficientNet-Lite0 sees, with its probability, and where: orange the most, white the least; in "
            "Integrated Gradients orange speaks for the class and purple against it; each map on a scale of its own; "
            f"SmoothGrad and SmoothFullGrad average over {self.samples} noisy copies"
        )

    def draw(self, *, caption: bool = True) -> Figure:
        """Draw the photographs beside each method's maps of them.

        Args:
            caption: Whether it stands below.
        """
        labels = [f"{label}\n{p:.0%}" for label, p in zip(self.classes, self.probabilities, strict=True)]
        text = self.caption() if caption else None
        return saliency_grid(self.images, self.attributions, row_labels=labels, caption=text, cell_size=1.3)


def study_photographs(
    network: nn.Module, data: Photographs, *, seed: int, device: str, count: int, samples: int
) -> PhotographStudy:
    """Explain the class that a network takes each photograph for.

    Args:
        network: (K, 3, 224, 224) in [-1, 1] to (K, 1000), such as `efficientnet_lite0` returns; it is moved to the
            device.
        data: As `photographs` returns them.
        seed: Of the noise; the global random states are left as they were.
        device: Where to run.
        count: How many of the photographs that show a class of ImageNet, the first ones.
        samples: Noisy copies of each; Integrated Gradients takes twice as many steps.

    Returns:
        Everything that is drawn and printed, on the CPU.
    """
    of_a_class = (data.labels >= 0).nonzero()[:count, 0].tolist()
    images = data.images[of_a_class].to(device)
    network = network.to(device)
    with torch.no_grad():
        probabilities, target = network(images).softmax(1).max(1)
    attributions = {}
    with seeded(seed, images.device):
        for name, attribute in tqdm(_methods(network, samples).items(), desc="photographs", unit="method"):
            attributions[name] = attribute(images.clone().requires_grad_(), target=target).detach().cpu()
    titles = ResNet18_Weights.DEFAULT.meta["categories"]
    return PhotographStudy(
        images=(data.images[of_a_class] + 1) / 2,
        names=tuple(data.names[i] for i in of_a_class),
        classes=tuple(titles[i] for i in target.tolist()),
        probabilities=tuple(probabilities.tolist()),
        attributions=attributions,
        samples=samples,
    )


def _methods(network: nn.Module, samples: int) -> Mapping[str, Callable[..., Any]]:
    noise: dict[str, Any] = {"nt_samples": samples, "nt_samples_batch_size": 2, "stdevs": _STDEVS}
    return {
        "Saliency": Saliency(network).attribute,
        "Integrated Gradients": partial(
            IntegratedGradients(network).attribute, n_steps=2 * samples, internal_batch_size=10
        ),
        "SmoothGrad": partial(NoiseTunnel(Saliency(network)).attribute, nt_type="smoothgrad", **noise),
        "FullGrad": FullGrad(network).attribute,
        "SmoothFullGrad": partial(SmoothFullGrad(network).attribute, **noise),
    }


def write_photographs(study: PhotographStudy, out: Path) -> str:
    """Write ``photographs.png``, and the same picture below what ``report.html`` in that folder says.

    Args:
        study: What `study_photographs` returned.
        out: The folder, with the page.

    Returns:
        The picture's name.
    """
    name = "photographs.png"
    study.draw().savefig(out / name, dpi=_DPI)
    page = out / "report.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</main>", f"{_section(study, out / name)}\n</main>"), encoding="utf-8")
    return name


def _section(study: PhotographStudy, path: Path) -> str:
    """A part of the audit's page, in its style."""
    file = io.BytesIO()
    with Image.open(path) as picture:
        width, height = (round(side * _PAGE_DPI / _DPI) for side in picture.size)
        # Noise compresses badly without loss: a PNG of this is five times as large.
        picture.convert("RGB").save(file, "jpeg", quality=90, subsampling=0)
    seen = "; ".join(f"{name}: {label}" for name, label in zip(study.names, study.classes, strict=True))
    alternative = f"Photographs beside their maps by {', '.join(study.attributions)}; {seen}"
    return (
        '<div class="captum-density">\n<h2>Beside this audit: another network, on photographs</h2>\n'
        f'<div class="scroll"><figure><img alt="{escape(alternative)}" width="{width}" height="{height}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}"></figure></div>\n'
        f'<p class="small">{escape(study.caption()[0].upper() + study.caption()[1:])}.</p>\n</div>'
    )
