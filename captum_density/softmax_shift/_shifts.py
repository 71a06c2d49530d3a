"""The shifts: g(x), one number for each example, with a gradient of one's choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.refusals import refuse_where
from captum_density._model.validation import check_model
from captum_density.softmax_shift._patterns import check_patterns, leading, product

__all__ = ["LinearShift", "NetworkShift", "Shift", "as_shift"]


class Shift(nn.Module):
    """A shift g, added to every logit. Subclass it for one that reads more than the model's first argument.

    `forward` is called with the model's own arguments, additional forward arguments included. It returns (N,), or one
    number for each softmax where the logits have more dimensions: their shape without the class dimension, or with 1
    in its place.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> class Masked(Shift):
        ...     def forward(self, x, mask):
        ...         return (x * mask).sum(1)
        >>> x, mask = torch.ones(2, 3), torch.eye(3)[:2]
        >>> Masked().add_to(torch.zeros(2, 4), x, mask)
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """

    def add_to(self, logits: Tensor, *args: Any, class_dim: int = 1, **kwargs: Any) -> Tensor:
        """The logits plus g(x), of the logits' shape and dtype.

        Args:
            logits: What the model returned, (N, ...).
            args: The model's arguments, passed to `forward`.
            class_dim: Dimension of the classes, for a shift with one number for each softmax.
            kwargs: The model's keyword arguments, passed to `forward`.

        Returns:
            logits + g, broadcast over the classes and, where g is (N,), over all else.

        Raises:
            TypeError: If g is no floating-point tensor.
            ValueError: If g has another shape or device, is not finite, takes the sum out of the dtype's range or,
                where the first argument requires grad, does not depend on any.
        """
        values = self(*args, **kwargs)
        if not isinstance(values, Tensor) or not values.is_floating_point():
            received = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"the shift returned {received}, not a floating-point tensor (N,)")
        if values.device != logits.device:
            raise ValueError(f"the shift is on {values.device}, the logits on {logits.device}; move one of them")
        shifted = logits + _one_each(values, logits, class_dim).to(logits.dtype)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        # Captum's inputs come first; another argument's gradient is not what a shift is for.
        is_explained = torch.is_grad_enabled() and any(t.requires_grad for t in tensors[:1])
        is_explained = is_explained and not torch.compiler.is_compiling()
        if is_explained and not _depends(values, tensors):
            raise ValueError(
                "the shift does not depend on the inputs, so it moves no gradient; is it a constant, or computed "
                "under torch.no_grad or from detached inputs?"
            )
        in_range = (shifted.isfinite() | ~logits.isfinite()).all()
        refuse_where(~(values.isfinite().all() & in_range), partial(_not_finite, values.detach(), logits.dtype))
        return shifted


def _not_finite(values: Tensor, dtype: torch.dtype) -> ValueError:
    """Why a shift, or logits that it is added to, are not finite."""
    bad = int((~values.isfinite()).sum())
    if not bad:
        return ValueError(f"logits plus shift exceed the range of {dtype}; lower the shift's scale")
    return ValueError(
        f"the shift gave {bad} NaN or infinite values of {values.numel()} in {values.dtype}; lower its scale, or look "
        "for NaN in the inputs"
    )


def _one_each(values: Tensor, logits: Tensor, class_dim: int) -> Tensor:
    """The shift in a shape that broadcasts to the logits'."""
    shape = tuple(logits.shape)
    if tuple(values.shape) == shape[:1]:
        return values.reshape(-1, *[1] * (logits.ndim - 1))
    dim = class_dim + logits.ndim if class_dim < 0 else class_dim
    if not 0 < dim < logits.ndim:
        raise ValueError(f"logits {shape} have no class dimension {class_dim}, so the shift must be {shape[:1]}")
    if tuple(values.shape) == (*shape[:dim], *shape[dim + 1 :]):
        return values.unsqueeze(dim)
    keepdim = (*shape[:dim], 1, *shape[dim + 1 :])
    if tuple(values.shape) == keepdim:
        return values
    expected = " or ".join(map(str, dict.fromkeys([shape[:1], (*shape[:dim], *shape[dim + 1 :]), keepdim])))
    raise ValueError(
        f"the shift must have shape {expected}, the same number for every class of logits {shape} with "
        f"class_dim={class_dim}, but has {tuple(values.shape)}"
    )


def _depends(values: Tensor, tensors: list[Tensor]) -> bool:
    """Whether the graph of `values` reaches one of the tensors."""
    nodes = {t.grad_fn for t in tensors} - {None}
    leaves = {id(t) for t in tensors if t.requires_grad and t.grad_fn is None}
    visited: set[Any] = set()
    stack = [values.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        if node in nodes or id(getattr(node, "variable", None)) in leaves:
            return True
        visited.add(node)
        stack.extend(following for following, _ in node.next_functions)
    return any(values is t for t in tensors)


def as_shift(shift: Shift | Callable[..., Tensor]) -> Shift:
    """A shift as it is, and any other callable as a function of the model's first argument."""
    return shift if isinstance(shift, Shift) else NetworkShift(shift)


class NetworkShift(Shift):
    r"""Any scalar network as the shift: g(x) = net(x), with gradient \nabla net.

    Args:
        net: Module or function, of the model's first `n_inputs` arguments; returns (N,), (N, 1), or one number for each
            softmax.
        n_inputs: How many of the model's arguments it reads, from the first.

    Raises:
        TypeError: If `net` cannot be called.
        ValueError: If `n_inputs` is below 1; from a call: if there are fewer arguments.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> NetworkShift(net)(torch.randn(2, 4)).shape
        torch.Size([2])
    """

    def __init__(self, net: Callable[..., Tensor], n_inputs: int = 1) -> None:
        check_model(net, "a shift")
        if n_inputs < 1:
            raise ValueError(f"n_inputs must be at least 1, but is {n_inputs}")
        super().__init__()
        self.net = net
        self.n_inputs = n_inputs

    def forward(self, *args: Any, **_: Any) -> Tensor:
        """g(x), (N,) or one number for each softmax.

        Args:
            args: The model's arguments.
            _: Its keyword arguments, which the network does not read.

        Returns:
            A tensor (N,), or what the network returned.
        """
        values = self.net(*leading(args, self.n_inputs))
        is_column = isinstance(values, Tensor) and values.ndim == 2 and values.shape[1] == 1
        return values.squeeze(1) if is_column else values


class LinearShift(Shift):
    r"""A picture in every gradient: g(x) = scale <pattern, x>, whose gradient is scale * pattern everywhere.

    Args:
        pattern: The picture, of one example's shape, with or without a leading 1: (C, H, W), (F,), ...; a tuple for a
            model of several inputs. `.to(device)` on the shift or its `SoftmaxShift` moves it.
        scale: Its strength, in logits per unit of <pattern, x>.

    Raises:
        TypeError: If a pattern is no floating-point tensor.
        ValueError: If pattern or scale is not finite or zero throughout; from a call: if the pattern does not have the
            inputs' shape and device.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2.

    Example:
        >>> import torch
        >>> shift, x = LinearShift(torch.tensor([0.0, 1.0]), scale=3.0), torch.ones(1, 2, requires_grad=True)
        >>> shift(x), torch.autograd.grad(shift(x).sum(), x)
        (tensor([3.], grad_fn=...), (tensor([[0., 3.]]),))
    """

    @takes_arrays
    def __init__(self, pattern: Tensor | tuple[Tensor, ...], scale: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(scale) or scale == 0:
            raise ValueError(f"scale must be finite and not 0, but is {scale}")
        patterns = pattern if isinstance(pattern, tuple) else (pattern,)
        check_patterns(patterns)
        check_patterns(tuple(scale * p.detach() for p in patterns), f"pattern times scale {scale:g}")
        self.scale = scale
        for i, p in enumerate(patterns):
            self.register_buffer(f"pattern_{i}", p.detach().clone())

    def forward(self, *args: Any, **_: Any) -> Tensor:
        """g(x), (N,), in the first input's dtype.

        Args:
            args: The model's arguments, as many of which are read as there are patterns.
            _: The model's keyword arguments, which are not read.

        Returns:
            A tensor (N,), in logits.
        """
        patterns = list(self.buffers())
        inputs = leading(args, len(patterns))
        products = [product(p, x, i) for i, (p, x) in enumerate(zip(patterns, inputs, strict=True))]
        total = products[0]
        for other in products[1:]:
            total = total + other.to(total.dtype)
        return self.scale * total

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"scale={self.scale:g}"
