"""Four networks trained alike but for the density they imply, and what that does to their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from captum.attr import Saliency
from torch import Tensor, nn

from captum_density._command.network import perceptron, train
from captum_density._display import tables
from captum_density.datasets import Digits
from captum_density.density import hessian_trace
from captum_density.losses import AntiScoreMatchingLoss, GradientNormLoss, ScoreMatchingLoss
from captum_density.metrics import PixelPerturbation, density_ratio, gan_test, pixel_perturbation
from captum_density.plots import density_ratio_curves, pixel_perturbation_curves, sample_grid
from captum_density.samplers import ActivationMaximization

__all__ = [
    "HEADINGS",
    "MODELS",
    "DensityStudy",
    "ModelFigures",
    "keep_by_gradient",
    "markdown",
    "study_density",
    "train_judge",
]

# Chosen with the seeds 10 and 11 of tests.experiments.density: one weight for all three losses, since heavier ones cost
# score matching and gradient norm samples and pixels, and a tenth of it changes little; a stability that stops the
# trace at twice to four times the plain network's, and a noise_std wide enough to see past the bends of ReLU.
_WEIGHT = 1e-4
_NOISE_STD = 0.3
_STABILITY = 1e-3
_THRESHOLD = 1e3

# What is added to the cross-entropy, given what its noise is drawn from.
MODELS: dict[str, Callable[[torch.Generator], nn.Module] | None] = {
    "plain": None,
    "score matching": lambda generator: ScoreMatchingLoss(
        noise_std=_NOISE_STD, stability=_STABILITY, generator=generator
    ),
    "anti score matching": lambda generator: AntiScoreMatchingLoss(
        _THRESHOLD, noise_std=_NOISE_STD, generator=generator
    ),
    "gradient norm": lambda _: GradientNormLoss(),
}

_CLASSES = 10
_CURVE = (0.03, 0.1, 0.2, 0.3, 0.5)
_TRACE_STD = 0.1
# Steps of one length, as the four networks' gradients differ by a factor in theirs; the ascent can cross the unit cube.
_STEP, _STEPS = 0.1, 100
_JUDGE_EPOCHS = 20

# The figures of a model, by the name they have in report.json, and the column of the table.
HEADINGS = {
    "accuracy": "accuracy",
    "hessian_trace": "Hessian trace",
    "log_density_ratio_0.1": "log density ratio, noise 0.1",
    "log_density_ratio_0.3": "noise 0.3",
    "gan_test": "GAN-test accuracy",
    "pixel_perturbation_area": "pixel perturbation area",
    "pixel_perturbation_accuracy_area": "of accuracy",
}
_DECIMALS = {"accuracy": 4, "hessian_trace": 1, "log_density_ratio_0.1": 2, "log_density_ratio_0.3": 2}
_LEGEND = """\
Four networks of seed {seed}, trained alike but for a loss of the density exp(logit) that is added to the cross-entropy:
{settings}.
Of accuracy, GAN-test accuracy and both areas, higher is better; of Hessian trace and log density ratio, signs tell:
Hessian trace: of the label's logit, mean over {digits} test digits; below 0: digits lie on peaks, above 0: in valleys.
log density ratio: of a digit with Gaussian noise to the digit, median; below 0: noise is unlikelier, as it ought to be.
GAN-test accuracy: of a perceptron ({proxy:.4f} on digits), on {samples} images from climbing each class's logit.
pixel perturbation area: under the label's probability, and under accuracy, over the fraction of pixels kept, those of
  the largest gradient; the others are set to the mean training digit."""


@dataclass(frozen=True)
class ModelFigures:
    """What was measured of one network, on the test digits and on its own samples.

    Args:
        accuracy: In [0, 1]; higher is better.
        hessian_trace: Of the label's logit, mean over digits; below 0 at peaks.
        ratios: (S, N) log density ratios, for each standard deviation of the noise; below 0 where noise is unlikelier.
        gan_test: Accuracy of another network on the samples, in [0, 1]; higher is better.
        perturbation: What is left of predictions when the pixels of the largest gradients are.
        samples: (10, 1, 8, 8), one of each class.
        network: The network itself.
    """

    accuracy: float
    hessian_trace: float
    ratios: Tensor
    gan_test: float
    perturbation: PixelPerturbation
    samples: Tensor
    network: nn.Module = field(repr=False)

    def to_dict(self) -> dict[str, float]:
        """Return the table's figures, by the keys of HEADINGS."""
        median = dict(zip(_CURVE, self.ratios.quantile(0.5, dim=1).tolist(), strict=True))
        return {
            "accuracy": self.accuracy,
            "hessian_trace": self.hessian_trace,
            "log_density_ratio_0.1": median[0.1],
            "log_density_ratio_0.3": median[0.3],
            "gan_test": self.gan_test,
            "pixel_perturbation_area": self.perturbation.area.mean().item(),
            "pixel_perturbation_accuracy_area": self.perturbation.accuracy_area.mean().item(),
        }


@dataclass(frozen=True)
class DensityStudy:
    """The four networks side by side.

    Args:
        models: Name to figures.
        seed: Of training, noise and samples.
        proxy_accuracy: Of the network that judges samples, on test digits.
        n_samples: How many samples of each network it judged.
    """

    models: Mapping[str, ModelFigures]
    seed: int
    proxy_accuracy: float
    n_samples: int

    def table(self) -> str:
        """Return what the columns mean and an aligned Markdown table, without a newline at the end."""
        digits = next(iter(self.models.values())).ratios.shape[1]
        settings = f"weight {_WEIGHT}, noise_std {_NOISE_STD}, stability {_STABILITY}, threshold {_THRESHOLD:g}"
        legend = _LEGEND.format(
            settings=settings, seed=self.seed, digits=digits, proxy=self.proxy_accuracy, samples=self.n_samples
        )
        rows = {
            name: [f"{value:.{_DECIMALS.get(key, 3)}f}" for key, value in figures.to_dict().items()]
            for name, figures in self.models.items()
        }
        return f"{legend}\n\n{markdown(list(HEADINGS.values()), rows)}"

    def to_dict(self) -> dict[str, object]:
        """Return the figures as what `json` can write."""
        return {
            "proxy_accuracy": self.proxy_accuracy,
            "samples": self.n_samples,
            "models": [{"name": name, **figures.to_dict()} for name, figures in self.models.items()],
        }

    def draw(self, out: Path, test_images: Tensor, test_labels: Tensor) -> list[str]:
        """Write the pictures of ratios, samples and perturbed pixels.

        Args:
            out: The folder.
            test_images: (N, 1, 8, 8), of which one of each class is shown above the samples.
            test_labels: (N,).

        Returns:
            The names of the files.
        """
        figures = {
            "density_ratio.png": density_ratio_curves(
                _CURVE,
                {name: model.ratios for name, model in self.models.items()},
                caption="below 0: less likely with the noise than without, as it ought to be",
            ),
            "samples.png": sample_grid(
                {
                    "a test digit": test_images[[int((test_labels == c).nonzero()[0]) for c in range(_CLASSES)]],
                    **{f"{name}\n({model.gan_test:.3f})": model.samples for name, model in self.models.items()},
                },
                column_labels=[str(c) for c in range(_CLASSES)],
                caption="each column's logit climbed from the same noise; in brackets the GAN-test accuracy of all "
                f"{self.n_samples} samples",
            ),
            "pixel_perturbation.png": pixel_perturbation_curves(
                {name: model.perturbation for name, model in self.models.items()},
                caption="kept: the pixels of the largest gradients; the others: the mean training digit",
            ),
        }
        for name, figure in figures.items():
            figure.savefig(out / name, dpi=150)
        return list(figures)


def study_density(
    data: Digits,
    *,
    seed: int,
    epochs: int,
    samples_per_class: int,
    noise_samples: int,
    plain: nn.Module | None = None,
    judge: nn.Module | None = None,
) -> DensityStudy:
    """Train the four networks, and another to judge their samples, and measure them.

    Args:
        data: The digits; figures are of the test digits.
        seed: Of training, noise and samples.
        epochs: Passes over the training digits, for each of the four.
        samples_per_class: Samples to draw of each class and network.
        noise_samples: For each digit, in the density ratio; twice as many in the Hessian trace.
        plain: The plain network where it is trained already, with this seed and as many epochs.
        judge: What judges samples where it is trained already.

    Returns:
        All figures.
    """
    proxy = train_judge(data, seed) if judge is None else judge
    models = {}
    for name, make in MODELS.items():
        model = plain if make is None else None
        if model is None:
            model = _train_with_loss(data, name, make, seed=seed, epochs=epochs)
        models[name] = _measure(model, proxy, data, seed, samples_per_class, noise_samples)
    return DensityStudy(models, seed, _accuracy(proxy, data), samples_per_class * _CLASSES)


def train_judge(data: Digits, seed: int) -> nn.Module:
    """Train the network that judges samples.

    Args:
        data: The digits.
        seed: Of the judged networks; the judge's is the next but, in the first place, another architecture.

    Returns:
        A perceptron in evaluation mode.
    """
    # 2**63 is where PyTorch's seeds end.
    return train(data, seed=(seed + 1) % 2**63, epochs=_JUDGE_EPOCHS, network=perceptron, name="training the judge")


def keep_by_gradient(model: nn.Module, data: Digits, fill: float | Tensor | None = None) -> PixelPerturbation:
    """Keep the pixels where the label's logit has the largest gradients.

    Args:
        model: (N, 1, 8, 8) to (N, 10).
        data: The digits, of which those for testing are perturbed.
        fill: What the other pixels are set to; None for the mean training digit, which, unlike 0, changes a background
            that is not kept, too.

    Returns:
        What is left of the label.
    """
    images, labels = data.test_images, data.test_labels
    saliency = Saliency(model).attribute(images.clone().requires_grad_(), target=labels).detach()
    if fill is None:
        fill = data.train_images.mean(dim=0, keepdim=True)
    return pixel_perturbation(model, images, saliency, fill, target=labels)


def markdown(headings: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Align a Markdown table.

    Args:
        headings: Of the columns, without that of the names.
        rows: Name of the model to the texts of its cells.

    Returns:
        Lines without a newline at the end.
    """
    return tables.markdown([["model", *headings], *([name, *cells] for name, cells in rows.items())])


def _train_with_loss(
    data: Digits, name: str, make: Callable[[torch.Generator], nn.Module] | None, *, seed: int, epochs: int
) -> nn.Module:
    if make is None:
        return train(data, seed=seed, epochs=epochs, name=f"training, {name}")
    loss = make(torch.Generator().manual_seed(seed))

    def extra(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        weighted: Tensor = _WEIGHT * loss(model, images, labels)
        return weighted

    return train(data, seed=seed, epochs=epochs, extra_loss=extra, name=f"training, {name}")


def _accuracy(model: nn.Module, data: Digits) -> float:
    with torch.no_grad():
        return (model(data.test_images).argmax(dim=1) == data.test_labels).double().mean().item()


def _measure(
    model: nn.Module, proxy: nn.Module, data: Digits, seed: int, samples_per_class: int, noise_samples: int
) -> ModelFigures:
    images, labels = data.test_images, data.test_labels
    # The same noise for each network, on any device.
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(_CLASSES, device=images.device).repeat(samples_per_class)
    noise = 0.5 + 0.2 * torch.randn(len(classes), *images.shape[1:], generator=generator, device="cpu")
    climb = ActivationMaximization(model, _STEP, _STEPS, bounds=(0.0, 1.0), normalize=True)
    samples = climb.sample(noise.clamp(0, 1).to(images.device), classes).samples
    return ModelFigures(
        accuracy=_accuracy(model, data),
        hessian_trace=hessian_trace(
            model, images, labels, n_samples=2 * noise_samples, noise_std=_TRACE_STD, generator=generator
        )
        .mean()
        .item(),
        ratios=density_ratio(
            model, images, list(_CURVE), target=labels, n_perturb_samples=noise_samples, generator=generator
        ),
        gan_test=gan_test(proxy, samples, classes).accuracy,
        perturbation=keep_by_gradient(model, data),
        samples=samples[:_CLASSES],
        network=model,
    )
