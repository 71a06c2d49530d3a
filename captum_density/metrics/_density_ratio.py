"""Density ratio: how much likelier the implicit density takes a perturbed example to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_density._density.hessian_trace import check_noise
from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import as_tensors, takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.copies import Points
from captum_density._model.generators import standard_noise

__all__ = ["density_ratio"]

_SEQUENCES = (list, tuple, Tensor)


@takes_arrays
def density_ratio(
    forward_func: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    noise_std: float | Sequence[float] | None = None,
    perturb_func: Callable[..., Any] | None = None,
    additional_forward_args: object = None,
    target: TargetType = None,
    *,
    n_perturb_samples: int = 10,
    generator: torch.Generator | None = None,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""log p(x + eta | y) - log p(x | y): how much likelier the model takes a perturbed example to be than the example.

    .. math:: \log \frac{p(x + \eta \,|\, y)}{p(x \,|\, y)} = f_y(x + \eta) - f_y(x)

    The normalisers cancel. Of noise, data should lose: a density that is aligned with the data gives figures below 0,
    the more so the stronger the noise. One that noise raises is a density of something else, and so are its gradients.

    Args:
        forward_func: Returns logits, (N, C) or with further dimensions.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        noise_std: Standard deviation of Gaussian noise, in the inputs' units; a sequence of them for a curve, whose
            points are given the same noise, scaled.
        perturb_func: In its place, a function that takes n_perturb_samples copies of the inputs, whole batches after
            each other, (n_perturb_samples * N, ...), and returns as many perturbed ones.
        additional_forward_args: As Captum's.
        target: y, as Captum's; None for log p(x), the logsumexp of logits (N, C).
        n_perturb_samples: Perturbations of each example, averaged over.
        generator: What noise is drawn from; None for the global generator. Not for a function.
        max_examples_per_batch: As Captum's: how many examples, copies included, run at once.

    Returns:
        (N,), in nats, detached; for a sequence of S standard deviations (S, N). Below 0: less likely.

    Raises:
        ValueError: If a standard deviation is not positive and finite, or the model draws random numbers (dropout in
            training mode); if the function returns other shapes, NaN or infinity, or a generator comes with it; as
            `captum_density.density.class_log_density` otherwise.
        TypeError: As there; or if not just one of `noise_std` and `perturb_func` is given.
        AssertionError: Captum's own, for a target that does not fit.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, experiments.

    Example:
        >>> import torch
        >>> normal = lambda x: -0.5 * (x**2).sum(1)
        >>> density_ratio(normal, torch.zeros(1, 2), perturb_func=lambda x: x + 1.0)  # log p(1, 1) - log p(0, 0)
        tensor([-1.])
        >>> curve = density_ratio(normal, torch.zeros(3, 2), [0.1, 0.2, 0.4])
        >>> curve.shape, bool((curve.diff(dim=0) < 0).all())
        (torch.Size([3, 3]), True)
    """
    if perturb_func is not None and not callable(perturb_func):
        raise TypeError(
            f"perturb_func must be a function, but is {type(perturb_func).__name__}; a target is passed as target=..."
        )
    if (noise_std is None) == (perturb_func is None):
        raise TypeError("give either noise_std or perturb_func")
    density = LogDensity(
        forward_func, inputs, target, additional_forward_args, max_examples_per_batch=max_examples_per_batch
    )
    check_noise(n_perturb_samples, 1.0, generator, name="n_perturb_samples")
    if isinstance(noise_std, Tensor) and noise_std.ndim == 0:
        noise_std = noise_std.item()
    stds = _standard_deviations(noise_std)
    if perturb_func is not None and generator is not None:
        raise ValueError("a perturb_func draws its own numbers; leave generator out")
    with density.evaluation(comparison=True), torch.no_grad():
        displaced: Iterable[Points]
        if perturb_func is not None:
            with torch.enable_grad():  # of which an adversarial perturbation is made
                displaced = [_perturbed(density, perturb_func, n_perturb_samples)]
        else:
            noise = standard_noise(density.inputs, n_perturb_samples, "gaussian", generator)
            # One after the other, so that a long curve takes no more memory than one of its points.
            displaced = (density.displaced(tuple(std * u for u in noise)) for std in stds)
        middle = density.values(density.points())
        curve = torch.stack([(density.values(points) - middle).mean(0) for points in displaced])
    return curve if isinstance(noise_std, _SEQUENCES) else curve[0]


def _standard_deviations(noise_std: float | Sequence[float] | None) -> list[float]:
    if noise_std is None:
        return []
    given: list[Any] = list(noise_std) if isinstance(noise_std, _SEQUENCES) else [noise_std]
    if not given:
        raise TypeError("noise_std is an empty sequence")
    stds = [std.item() if isinstance(std, Tensor) else std for std in given]
    for std in stds:
        check_noise(1, std)
    return stds


def _perturbed(density: LogDensity, perturb_func: Callable[..., Any], n_samples: int) -> Points:
    copies = tuple(x.repeat(n_samples, *[1] * (x.ndim - 1)) for x in density.inputs)
    made = as_tensors(perturb_func(copies if density.is_tuple else copies[0]))
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) != len(copies) or not all(
        isinstance(part, Tensor) and part.shape == x.shape for part, x in zip(parts, copies, strict=False)
    ):
        received = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        expected = [tuple(x.shape) for x in copies]
        raise ValueError(f"perturb_func must return what it takes, of shape {expected}, but returned {received}")
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError("perturb_func returned NaN or infinity")
    # Copies, as a model may write to what it is given.
    return tuple(
        part.detach().clone().reshape(n_samples, *x.shape) for part, x in zip(parts, density.inputs, strict=True)
    )
