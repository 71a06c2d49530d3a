"""CounterShift: a shift that takes the target's own gradient away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.precision import accumulation_dtype
from captum_density._model.refusals import are_looked_at_together, refuse_where
from captum_density._model.validation import check_model
from captum_density.softmax_shift._logits import class_dimension
from captum_density.softmax_shift._patterns import floating, leading, product
from captum_density.softmax_shift._shifts import Shift

__all__ = ["CounterShift"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CounterShift(Shift):
    r"""A shift that makes the target's gradient vanish, or point to a chosen map.

    .. math:: g(x) = -f_t(x) + \langle m, x \rangle, \quad \nabla g = m - \nabla f_t, \quad \nabla (f_t + g) = m

    The target's shifted logit is <m, x> for every x: 0, with gradient 0, if there is no map. Other logits get
    f_i - f_t + <m, x>, so their gradients show what tells them from the target.

    With `inputs`, each given input has a map, and a target, of its own; any other input those of the nearest given one,
    so that what is attributed around a given input (a noisy copy, a point on a path near it) is fooled alike.

    A module is copied, weights and all, so that methods with hooks on the model's layers (DeepLift, Grad-CAM) meet each
    layer once; what the model learns later, the copy does not. A function is called a second time instead, with the
    layers it shares. In training mode, dropout differs between the two.

    With `inputs`, methods that go far from an input (IntegratedGradients) meet the maps of others on the way; one map
    for all has no such borders.

    Args:
        model: The model to counter: module or function that returns logits.
        target: The class t; None for the predicted class at each x (and at each position, where the logits have more
            dimensions). With `inputs`, also (M,) classes, one for each.
        maps: m, of one example's shape (of the model's first argument); with `inputs`, (M, ...), one for each. None: 0.
        inputs: The given inputs, (M, ...).
        class_dim: As `CenteredLogits`.

    Raises:
        TypeError: If the model cannot be called, target is no integer, or maps or inputs are no floating-point tensors.
        ValueError: If maps, inputs and target do not fit together, or are not finite; from a call: if they do not fit
            the model's first argument, or the target its classes.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2, on gradients of one's choice.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_density.softmax_shift import SoftmaxShift
        >>> model, x = torch.nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
        >>> hidden = SoftmaxShift(model, CounterShift(model, target=1))
        >>> Saliency(hidden).attribute(x, target=1).max()
        tensor(0.)
    """

    @takes_arrays
    def __init__(
        self,
        model: Callable[..., Any],
        target: int | Tensor | None = None,
        maps: Tensor | None = None,
        inputs: Tensor | None = None,
        class_dim: int | None = None,
    ) -> None:
        check_model(model, "model")
        super().__init__()
        targets = None
        if isinstance(target, Tensor) and target.ndim > 0:
            target, targets = None, target
        _check_target(target if targets is None else targets)
        _check(targets, maps, inputs)
        self.model = copy.deepcopy(model).requires_grad_(False) if isinstance(model, nn.Module) else model
        self.class_dim = class_dim
        self.target = None if target is None else int(target)
        for name, value in (("targets", targets), ("maps", maps), ("inputs", inputs)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    targets: Tensor | None
    maps: Tensor | None
    inputs: Tensor | None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """g(x), one number for each softmax.

        Args:
            args: The model's arguments.
            kwargs: Its keyword arguments.

        Returns:
            A tensor of the logits' shape without the class dimension.
        """
        logits = self.model(*args, **kwargs)
        dim = class_dimension(logits, self.class_dim)
        nearest = None if self.inputs is None else self._nearest(leading(args, 1)[0])
        values = -self._target(logits, dim, nearest)
        if self.maps is not None:
            products = self._map_product(leading(args, 1)[0], nearest)
            values = values + products.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        return values

    def extra_repr(self) -> str:
        """What `print` shows beside the model."""
        inputs = "" if self.inputs is None else f", {len(self.inputs)} given inputs"
        target = "each its own" if self.targets is not None else "predicted" if self.target is None else self.target
        return f"target={target}, maps={self.maps is not None}{inputs}, class_dim={self.class_dim}"

    def _target(self, logits: Tensor, dim: int, nearest: Tensor | None) -> Tensor:
        """f_t, the logits' shape without the classes."""
        if self.targets is None and self.target is None:
            index = logits.detach().argmax(dim, keepdim=True)
        elif self.targets is None:
            index = torch.tensor(self.target, device=logits.device).reshape((1,) * logits.ndim)
        else:
            index = self.targets[nearest].long().reshape(-1, *[1] * (logits.ndim - 1))
        classes = logits.shape[dim]
        text = f"target must be in [0, {classes}), one of the model's classes"
        refuse_where(((index < 0) | (index >= classes)).any(), partial(ValueError, text))
        index = index.clamp(0, classes - 1) if are_looked_at_together(index) else index
        shape = (*logits.shape[:dim], 1, *logits.shape[dim + 1 :])
        return logits.gather(dim, index.expand(shape)).squeeze(dim)

    def _nearest(self, x: Tensor) -> Tensor:
        """(N,) the index of the given input nearest to each x."""
        assert self.inputs is not None
        x = floating(x)
        if x.shape[1:] != self.inputs.shape[1:] or x.device != self.inputs.device:
            raise ValueError(
                f"the given inputs are {tuple(self.inputs.shape)} on {self.inputs.device}, the model's first argument "
                f"{tuple(x.shape)} on {x.device}"
            )
        dtype = accumulation_dtype(x)
        points, centres = x.detach().to(dtype).flatten(1), self.inputs.to(dtype).flatten(1)
        return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)

    def _map_product(self, x: Tensor, nearest: Tensor | None) -> Tensor:
        """<m, x>, (N,)."""
        assert self.maps is not None
        if nearest is None:
            return product(self.maps, x)
        return (x * self.maps.to(x.dtype)[nearest]).flatten(1).sum(1)


def _check_target(target: Any) -> None:
    if isinstance(target, Tensor) and target.dtype not in _INTEGERS:
        raise TypeError(f"target must hold classes, integers, but is a tensor of {target.dtype}")
    if not isinstance(target, Tensor | int | None) or isinstance(target, bool):
        raise TypeError(f"target must be an integer, a tensor of integers or None, but is {type(target).__name__}")


def _check(targets: Tensor | None, maps: Tensor | None, inputs: Tensor | None) -> None:
    for name, value in (("maps", maps), ("inputs", inputs)):
        if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
            received = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, but is {received}")
        if value is not None and not bool(value.isfinite().all()):
            raise ValueError(f"{name} contains NaN or infinity")
    if inputs is None:
        if targets is not None:
            raise ValueError("a target for each example needs `inputs`, the examples they belong to")
        return
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (M, ...) with M > 0, but have {tuple(inputs.shape)}")
    if maps is not None and maps.shape != inputs.shape:
        raise ValueError(f"maps must have the inputs' shape {tuple(inputs.shape)}, but have {tuple(maps.shape)}")
    if targets is not None and tuple(targets.shape) != (len(inputs),):
        raise ValueError(f"target must have shape {(len(inputs),)}, but has {tuple(targets.shape)}")
