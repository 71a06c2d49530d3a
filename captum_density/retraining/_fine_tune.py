"""A copy of a model that learns to expect what a metric does to its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from captum_density._model.arrays import as_tensors
from captum_density.retraining._config import FitConfig
from captum_density.retraining._engines import train_loop
from captum_density.retraining._examples import Data, Examples

__all__ = ["fine_tune"]


def fine_tune(
    model: nn.Module,
    train: Data,
    augment: Callable[..., Tensor] | None = None,
    *,
    fit: FitConfig | None = None,
    seed: int = 0,
    run: int = 0,
) -> nn.Module:
    """Train a copy of a classifier further, on batches that are changed at random, each time anew.

    Args:
        model: Returns (N, C) logits. It stays as it is. What of it requires a gradient is trained; where nothing does,
            everything is.
        train: As `adversarial_fit`; batches go where the model is.
        augment: What changes a batch, ``augment(inputs, generator=generator)``, such as
            ``functools.partial(single_deletion, feature_mask=patch_mask(x, 7))``; None for nothing.
        fit: How to train; None for 10 epochs from a learning rate of 1e-3, a third of a new model's. Its `devices`,
            `threads` and `stack_size` do not count.
        seed: Of order and augmentation.
        run: A number to train further copies by, as in `fit_many`.

    Returns:
        The copy after the last epoch, in evaluation mode.

    Raises:
        TypeError: As `adversarial_fit`; a model that is no module, an augmentation that returns no tensor.
        ValueError: Inputs that are empty or not finite, a model whose outputs do not fit the labels, an augmentation
            that changes the shape of the inputs.

    References:
        What it is for, and what that has it from: `single_deletion` (arXiv:2407.11910), `random_deletion`
        (arXiv:2410.02970).

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from captum_density.retraining import single_deletion
        >>> x = torch.randn(200, 4)
        >>> y = (x[:, 0] + x[:, 1] > 0).long()
        >>> delete = partial(single_deletion, feature_mask=torch.arange(4)[None])
        >>> tuned = fine_tune(torch.nn.Linear(4, 2), (x, y), delete, fit=FitConfig(epochs=20, lr=0.1))
        >>> (tuned(x).argmax(1) == y).float().mean().item() > 0.9
        True
    """
    config = FitConfig(epochs=10, lr=1e-3) if fit is None else fit
    if not isinstance(config, FitConfig):
        raise TypeError(f"fit must be a FitConfig, but is {type(config).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose weights are trained, but is {type(model).__name__}")
    if augment is not None and not callable(augment):
        raise TypeError(f"augment must be a function of inputs, but is {type(augment).__name__}")
    tuned = copy.deepcopy(model)
    parameters = list(tuned.parameters())
    if not parameters:
        raise ValueError("the model has no parameters to train; pass the module that has them")
    requiring = [p.requires_grad for p in parameters]
    if not any(requiring):
        tuned.requires_grad_(True)
    device = parameters[0].device
    inputs, labels = (as_tensors(part).to(device) for part in Examples(train, train).splits[0])

    def changed(_: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        assert augment is not None
        x_changed = as_tensors(augment(x, generator=generator))
        if not isinstance(x_changed, Tensor):
            raise TypeError(f"augment must return a tensor, but returned {type(x_changed).__name__}")
        if x_changed.shape != x.shape:
            raise ValueError(f"augment must return {tuple(x.shape)}, but returned {tuple(x_changed.shape)}")
        return x_changed.to(x)

    train_loop(tuned, inputs, labels.long(), config, seed=seed, run=run, attack=None if augment is None else changed)
    for parameter, before in zip(parameters, requiring, strict=True):
        parameter.requires_grad_(before)
    return tuned.eval()
