"""Projected gradient ascent on the loss within a ball: the attack of adversarial training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_density._density.langevin import Bounds, FiniteSteps, check_bounds, check_steps, limits
from captum_density._model.arrays import takes_arrays
from captum_density._model.evaluation import differentiable
from captum_density._model.fixed_modules import evaluation_mode, fixed_modules
from captum_density._model.generators import standard_noise
from captum_density._model.validation import class_targets, received, validate_inputs

__all__ = ["pgd"]


@takes_arrays
def pgd(
    model: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Any,
    *,
    norm: Literal["linf", "l2"],
    radius: float,
    step_size: float | None = None,
    n_steps: int = 10,
    bounds: Bounds | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    loss: Callable[[Tensor, Any], Tensor] | None = None,
) -> Tensor:
    r"""Adversarial examples by projected gradient descent: steps up each example's loss, each projected on a ball.

    .. math:: x_{t+1} = \Pi \left( x_t + \alpha \, s(\nabla_x L(f(x_t), y)) \right), \qquad
        s(g) = \operatorname{sign} g \ \text{(linf)} \ \text{or} \ g / \lVert g \rVert_2 \ \text{(l2)}

    Pi projects on the ball around the input and then on the bounds. An example whose gradient is zero stays where it
    is: for a network so sure that its loss is 0 to rounding, use float64 or another loss.

    The model runs in evaluation mode and is put back after. In training mode an example's gradient would be another one
    for each batch it is in (batch norm) and each step (dropout), and the attack would move the running statistics that
    it is meant to be tested with. MadryLab's `robustness` package does the same, and Pang et al. found higher clean
    accuracy and equal robustness. Of a function that is no module or method of one, only batch norm is held still.

    Args:
        model: Returns logits (N, C), or what `loss` takes.
        inputs: Floating-point, (N, ...), the centres of the balls.
        target: The true class: an integer, or (N,); with a `loss`, what it takes.
        norm: "linf" or "l2", over all elements of an example.
        radius: epsilon, in units of the inputs; 0 gives the inputs back.
        step_size: alpha, in units of the inputs; None for 2.5 * radius / n_steps, with which a point can cross the ball
            (Madry et al.).
        n_steps: Gradient steps.
        bounds: (low, high), such as (0, 1) for pixels, within which the inputs must lie; each a number for every
            element, or a tensor that broadcasts to the inputs, such as (C, 1, 1) for images normalised by channel.
        random_start: Whether to start from a uniform draw in the ball, clamped to the bounds, and not from the inputs.
        generator: What the start is drawn from; None for the global generator.
        loss: Takes the model's output and the target, returns each example's loss, (N,); None for cross-entropy.

    Returns:
        (N, ...), of the inputs' dtype and device, without gradient, within ball and bounds to rounding.

    Raises:
        TypeError: If inputs are not floating-point tensors.
        ValueError: If a number or norm is out of range, inputs are empty, NaN, infinite or out of bounds, the target is
            no class for each example, the output or loss has another shape than said, the loss does not depend on the
            inputs, its gradient is NaN or infinite, or batch norm keeps no running statistics.

    References:
        A. Madry, A. Makelov, L. Schmidt, D. Tsipras and A. Vladu, "Towards Deep Learning Models Resistant to
        Adversarial Attacks", ICLR 2018, arXiv:1706.06083, section 2.1; T. Pang et al., "Bag of Tricks for Adversarial
        Training", ICLR 2021, arXiv:2010.00467 (evaluation mode).

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> inputs = torch.tensor([[1.0, 1.0]])
        >>> attacked = pgd(model, inputs, 0, norm="l2", radius=0.5, random_start=False)
        >>> attacked - inputs  # against w0 - w1 = (3, 4)
        tensor([[-0.3000, -0.4000]])
    """
    _check(norm, radius, step_size, n_steps)
    validate_inputs(model, (inputs,))
    limits = None if bounds is None else _limits(bounds, inputs)
    centre = inputs.detach()
    if loss is None:
        target = class_targets(target, len(inputs), inputs.device)
        loss = partial(_cross_entropy, highest=int(target.max()))
    step_size = 2.5 * radius / n_steps if step_size is None else step_size
    direction, project = (_sign, _clamp) if norm == "linf" else (_unit, _shrink)

    def within(x: Tensor) -> Tensor:
        x = centre + project(x - centre, radius)
        return x if limits is None else x.clamp(*limits)

    x = within(centre + _start(centre, norm, radius, generator)) if random_start else centre
    with evaluation_mode(model), fixed_modules(model):
        finite = FiniteSteps(n_steps, x.device)
        for _ in range(n_steps):
            gradient = _gradient(model, x, target, loss)
            if finite.first_other((gradient,)) is not None:  # and torch.sign(nan) is 0
                raise ValueError("the gradient of the loss is NaN or infinite within the ball")
            x = within(x + step_size * direction(gradient))
    return x


def _gradient(model: Callable[..., Any], x: Tensor, target: Any, loss: Callable[..., Tensor]) -> Tensor:
    """Of each example's loss by itself: the sum, unlike the mean, does not shrink with the batch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        with differentiable(model, x.device):
            outputs = model(x.clone())  # a copy, as a model may write to its input
        losses = loss(outputs, target)
        if losses.shape != x.shape[:1]:
            raise ValueError(
                f"the loss must return one value for each of {len(x)} examples, but has shape {tuple(losses.shape)}; "
                "use reduction='none'"
            )
        gradient = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise ValueError("the loss does not depend on the inputs; does the model detach them or run without gradients?")
    return gradient


def _cross_entropy(logits: Tensor, target: Tensor, *, highest: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(target):
        raise ValueError(
            f"the model must return logits ({len(target)}, C), or pass a loss of what it returns; but it returned "
            f"{received(logits)}"
        )
    if highest >= logits.shape[1]:
        raise ValueError(f"target holds class {highest}, but the model has {logits.shape[1]} classes")
    return F.cross_entropy(logits, target, reduction="none")


def _start(centre: Tensor, norm: str, radius: float, generator: torch.Generator | None) -> Tensor:
    """A uniform draw from the ball around 0, for each example."""
    device = centre.device if generator is None else generator.device
    # In l2, a uniform direction at distance radius * u^(1/d): the share of the volume within r grows as r^d.
    shape = centre.shape if norm == "linf" else (len(centre), *[1] * (centre.ndim - 1))
    uniform = torch.rand(shape, generator=generator, device=device, dtype=centre.dtype).to(centre.device)
    if norm == "linf":
        return radius * (2 * uniform - 1)
    noise = standard_noise((centre,), 1, "gaussian", generator)[0][0]
    return radius * uniform ** (1 / centre[0].numel()) * _unit(noise)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def _sign(gradient: Tensor) -> Tensor:
    return gradient.sign()


def _unit(gradient: Tensor) -> Tensor:
    """Divided by its norm; 0 stays 0. By its largest element first, as squares of small ones are 0."""
    largest = gradient.abs().flatten(1).amax(1).view(-1, *[1] * (gradient.ndim - 1))
    gradient = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / _norm(gradient).clamp_min(1.0)


def _clamp(change: Tensor, radius: float) -> Tensor:
    return change.clamp(-radius, radius)


def _shrink(change: Tensor, radius: float) -> Tensor:
    norm = _norm(change)
    return torch.where(norm > radius, change * (radius / norm), change)


def _limits(bounds: Bounds, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of each element of the inputs, which lie within them."""
    check_bounds(bounds)
    low, high = (torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device) for bound in limits(bounds, inputs))
    # What one normalises the bounds as the inputs by may differ in the last place.
    slack = 4 * torch.finfo(inputs.dtype).eps * torch.maximum(low.abs(), high.abs())
    outside = (inputs < low - slack) | (inputs > high + slack)
    if bool(outside.any()):
        raise ValueError(
            f"inputs must lie within the bounds {bounds}, but {int(outside.sum())} elements, from "
            f"{inputs.min()} to {inputs.max()}, do not"
        )
    return low, high


def _check(norm: str, radius: float, step_size: float | None, n_steps: int) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', but is {norm!r}")
    if not 0 <= radius < float("inf"):
        raise ValueError(f"radius must be at least 0 and finite, but is {radius}")
    check_steps(n_steps, 1.0 if step_size is None else step_size)
