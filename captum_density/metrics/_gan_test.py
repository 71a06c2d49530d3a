"""GAN-test: whether another classifier recognises samples as what they were drawn to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density.metrics._classifier import Classifier
from captum_density.samplers import Samples

__all__ = ["GanTest", "gan_test"]


class GanTest(NamedTuple):
    """What an independent classifier says of samples. See `gan_test`.

    Args:
        correct: (N,) whether it predicts the class each sample was drawn for.
        probability: (N,) its softmax probability of that class, in [0, 1]; higher is better.
    """

    correct: Tensor
    probability: Tensor

    @property
    def accuracy(self) -> float:
        """The GAN-test's figure, the share predicted as drawn, in [0, 1]; higher is better, chance is 1 / classes."""
        return self.correct.double().mean().item()


@takes_arrays
def gan_test(
    proxy: Callable[..., Any],
    samples: TensorOrTupleOfTensorsGeneric | Samples,
    target: TargetType,
    additional_forward_args: object = None,
    *,
    max_examples_per_batch: int | None = None,
) -> GanTest:
    """Accuracy of an independent classifier on class-conditional samples of a model.

    Samples of p(x | y) that only the model itself takes for y are adversarial examples; those that a classifier trained
    elsewhere, with another architecture and seed, takes for y show what y looks like. Draw them with
    `captum_density.samplers`, from noise.

    Args:
        proxy: A classifier, (N, C) logits; not the sampled model, and better not of its kind. It runs
            without gradients, batch norm on its running statistics.
        samples: Floating-point tensor (N, ...) or tuple of such, or what a sampler returned.
        target: The class each sample was drawn for: an integer, or (N,).
        additional_forward_args: As Captum's.
        max_examples_per_batch: How many samples run at once; None for all.

    Returns:
        Per sample whether it is recognised and with what probability, and the accuracy over all.

    Raises:
        ValueError: If samples are empty, NaN or infinite, the proxy does not return (N, C) or draws random
            numbers (dropout in training mode), or the target is no class for each sample.
        TypeError: If samples are not floating-point.

    References:
        K. Shmelkov, C. Schmid and K. Alahari, "How good is my GAN?", ECCV 2018, arXiv:1807.09499; S. Srinivas and F.
        Fleuret, ICLR 2021, arXiv:2006.09128, experiments.

    Example:
        >>> import torch
        >>> proxy = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)  # class 0 is positive
        >>> gan_test(proxy, torch.tensor([[1.0], [2.0], [-3.0]]), target=0).correct
        tensor([ True,  True, False])
    """
    samples = samples.samples if isinstance(samples, Samples) else samples
    classifier = Classifier(proxy, samples, target, additional_forward_args, max_examples_per_batch)
    # Copies, as a proxy may write to what it is given.
    correct, probability = classifier(tuple(x.detach().clone()[None] for x in classifier.inputs))
    classifier.refuse_nan(probability)
    return GanTest(correct[0], probability[0])
