"""NoiseContrastiveLoss: density estimation as telling data from noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from captum_density._density.log_density import LogDensity
from captum_density._model.generators import seed_generators
from captum_density._model.validation import class_targets
from captum_density.losses._density_loss import DensityLoss, Log, share_in_words

__all__ = ["NoiseContrastiveLoss"]


class NoiseContrastiveLoss(DensityLoss):
    r"""Noise-contrastive estimation: the log-density, its normaliser included, that best tells data from noise.

    .. math:: -\frac{1}{N} \sum_n \left[ \log \sigma(h(x_n)) + \sum_{k=1}^{\nu} \log \sigma(-h(\tilde{x}_{nk})) \right],
        \qquad h(x) = f(x) - c - \log q(x) - \log \nu

    with the noise :math:`\tilde{x} \sim q` of known density and c = log Z, learned with the model: give
    `loss.parameters()` to the optimizer too. At the minimum f - c is the data's log-density. The closer q is to the
    data the better; a noise that is told apart at a glance teaches nothing. Under DistributedDataParallel wrap the
    loss as well as the model, or each process learns a c of its own.

    Args:
        noise: q, of one example: `noise.sample((n,))` has shape `(n, *example)` and `noise.log_prob` of it (n,). On the
            inputs' device. `torch.distributions.Independent` sums over an example's elements.
        ratio: nu, noise samples for each example, at least 1.
        n_classes: For a c of its own for each class, where targets are given; None for one c.
        share: As `ScoreMatchingLoss`.
        generator: Draws the share, and the seed of each call's noise (a Distribution takes none itself); None for the
            global generator.
        max_examples_per_batch: As `ScoreMatchingLoss`.

    Attributes:
        log_normalizer: c, the parameter, (1,) or (n_classes,).
        accuracy: The share of examples and noise told apart rightly in the last call, in [0, 1]. 1 is too easy a noise.

    Raises:
        ValueError: If an argument is out of range; from a call, if the noise does not have the examples' shape, the
            inputs are several, or with `n_classes` the target is no class for each example.

    References:
        M. U. Gutmann and A. Hyvarinen, "Noise-Contrastive Estimation of Unnormalized Statistical Models", JMLR 2012.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> noise = Independent(Normal(torch.zeros(2), 2 * torch.ones(2)), 1)
        >>> loss = NoiseContrastiveLoss(noise, ratio=4)
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()])
        >>> loss(model, torch.randn(8, 2)).backward()
        >>> loss.log_normalizer.grad.shape  # learned with the model
        torch.Size([1])
    """

    accuracy: Tensor | None

    def __init__(
        self,
        noise: Distribution,
        ratio: int = 1,
        n_classes: int | None = None,
        *,
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        super().__init__(max_examples_per_batch, share=share, generator=generator)
        if not isinstance(noise, Distribution):
            raise TypeError(f"noise must be a torch.distributions.Distribution, but is {type(noise).__name__}")
        if not isinstance(ratio, int) or ratio < 1:
            raise ValueError(f"ratio must be an integer of at least 1, but is {ratio!r}")
        if n_classes is not None and not n_classes >= 1:
            raise ValueError(f"n_classes must be at least 1, but is {n_classes}")
        self.noise, self.ratio = noise, ratio
        self.log_normalizer = nn.Parameter(torch.zeros(n_classes or 1))
        self._has_classes = n_classes is not None
        self.accuracy = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        if len(density.inputs) != 1:
            raise ValueError(f"the noise is for one input, but there are {len(density.inputs)}; concatenate them")
        x, normalizer = density.inputs[0], self._normalizer(density)
        points = torch.cat([x[None], self._draw(x)])
        log_noise = self.noise.log_prob(points.flatten(0, 1))
        if log_noise.shape != (points.shape[0] * density.n,):
            raise ValueError(
                f"noise.log_prob must return one number for each of {points.shape[0] * density.n} examples, but "
                f"returned {tuple(log_noise.shape)}; wrap it in torch.distributions.Independent"
            )
        clean = density.clean_values
        if clean is None:
            log_density = density.values((points,)) - normalizer
        else:
            log_density = torch.cat([clean, density.values((points[1:],))]) - normalizer
        logits = log_density - log_noise.reshape(log_density.shape).to(log_density) - math.log(self.ratio)
        loss = nn.functional.softplus(-logits[0]).mean() + nn.functional.softplus(logits[1:]).sum(0).mean()
        is_right = torch.cat([logits[:1] > 0, logits[1:] < 0])
        return loss, {"accuracy": is_right.to(logits).mean()}

    def _normalizer(self, density: LogDensity) -> Tensor:
        if not self._has_classes:
            return self.log_normalizer
        classes = class_targets(density.target, density.n, self.log_normalizer.device)
        if int(classes.max()) >= len(self.log_normalizer):
            raise ValueError(f"target holds class {int(classes.max())}, but n_classes is {len(self.log_normalizer)}")
        return self.log_normalizer[classes]

    def _draw(self, x: Tensor) -> Tensor:
        shape = (self.ratio, len(x))
        if self.generator is None:
            examples = self.noise.sample(shape)
        else:
            seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                seed_generators(seed, x.device)
                examples = self.noise.sample(shape)
        if examples.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"noise has examples of shape {tuple(examples.shape[2:])}, the inputs {tuple(x.shape[1:])}"
            )
        return examples.to(x)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.noise}, ratio={self.ratio}{share_in_words(self.share)}"
