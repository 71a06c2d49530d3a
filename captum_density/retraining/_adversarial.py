"""Adversarial training: the robust model to compare a standard one with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from captum_density._density.langevin import Bounds
from captum_density._model.arrays import as_tensors
from captum_density.retraining._config import FitConfig
from captum_density.retraining._engines import train_loop
from captum_density.retraining._examples import Data, Examples
from captum_density.retraining._pgd import pgd
from captum_density.retraining._seeds import initial_model

__all__ = ["adversarial_fit"]


def adversarial_fit(
    make_model: Callable[[], nn.Module],
    train: Data,
    *,
    norm: Literal["linf", "l2"] = "linf",
    radius: float,
    step_size: float | None = None,
    n_steps: int = 7,
    bounds: Bounds | None = None,
    random_start: bool = True,
    fit: FitConfig | None = None,
    seed: int = 0,
    run: int = 0,
) -> nn.Module:
    r"""Train a classifier on the worst examples that a ball around each training example holds.

    .. math:: \min_\theta \; E_{x, y} \max_{\lVert \delta \rVert \le \epsilon} L(f_\theta(x + \delta), y)

    The maximum is `pgd`'s; every batch is attacked afresh, and the model learns from nothing else. With a radius of 0
    it is standard training, from the same initial weights and in the same order of batches: the two to compare.

    Args:
        make_model: Returns a new classifier, (N, C) logits; called with the global generators seeded.
        train: Inputs (N, ...) and labels (N,), as of `Examples`. The model is trained on their device.
        norm: "linf" or "l2", over all elements of an example.
        radius: epsilon, in units of the inputs. 0 for standard training.
        step_size: As `pgd`'s.
        n_steps: As `pgd`'s.
        bounds: As `pgd`'s.
        random_start: As `pgd`'s.
        fit: How to train; None for the defaults of `FitConfig`. Its `devices`, `threads` and `stack_size` do not count.
        seed: Of initial weights, order and attacks.
        run: A number to train further models by, as in `fit_many`.

    Returns:
        The model after the last epoch, in evaluation mode.

    Raises:
        TypeError: Inputs or labels of the wrong type, a factory that makes no module.
        ValueError: As `pgd`; inputs that are empty or not finite, a model whose outputs do not fit the labels.

    References:
        A. Madry, A. Makelov, L. Schmidt, D. Tsipras and A. Vladu, "Towards Deep Learning Models Resistant to
        Adversarial Attacks", ICLR 2018, arXiv:1706.06083, equation (2.1).

    Example:
        >>> import torch
        >>> x = torch.randn(200, 2) * torch.tensor([1.0, 0.1])
        >>> y = (x[:, 0] > 0).long()
        >>> fit = FitConfig(epochs=20, lr=0.1)
        >>> robust = adversarial_fit(lambda: torch.nn.Linear(2, 2), (x, y), radius=0.3, fit=fit)
        >>> change = robust.weight[1] - robust.weight[0]
        >>> (change[0].abs() > 5 * change[1].abs()).item()  # the second element can be attacked, and is not used
        True
    """
    config = FitConfig() if fit is None else fit
    if not isinstance(config, FitConfig):
        raise TypeError(f"fit must be a FitConfig, but is {type(config).__name__}")
    inputs, labels = map(as_tensors, Examples(train, train).splits[0])

    def attack(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return pgd(
            model,
            x,
            y,
            norm=norm,
            radius=radius,
            step_size=step_size,
            n_steps=n_steps,
            bounds=bounds,
            random_start=random_start,
            generator=generator,
        )

    model = initial_model(make_model, seed, run).to(inputs.device)
    train_loop(model, inputs, labels.long(), config, seed=seed, run=run, attack=None if radius == 0 else attack)
    return model.eval()
