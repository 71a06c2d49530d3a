"""softplus_surrogate: a ReLU network with its corners rounded, for as long as it takes to look at its Hessian."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["softplus_surrogate"]

_functional = nn.functional
_RELU = {_functional.relu, torch.relu, Tensor.relu}
_RELU_IN_PLACE = {_functional.relu_, torch.relu_, Tensor.relu_}
_LEAKY_IN_PLACE = {_functional.leaky_relu_}
_LEAKY = {_functional.leaky_relu} | _LEAKY_IN_PLACE
_CLAMPS_IN_PLACE = {getattr(where, f"{name}_") for where in (torch, Tensor) for name in ("clamp", "clamp_min", "clip")}
_CLAMPS = {getattr(where, name) for where in (torch, Tensor) for name in ("clamp", "clamp_min", "clip")}
_IN_PLACE = _RELU_IN_PLACE | _LEAKY_IN_PLACE | _CLAMPS_IN_PLACE


@contextmanager
def softplus_surrogate(model: nn.Module, beta: float = 10.0) -> Iterator[nn.Module]:
    r"""Within, the model computes softplus wherever it would compute a ReLU; after, it is as before.

    .. math:: \mathrm{softplus}_\beta(u) = \frac{1}{\beta} \log(1 + e^{\beta u}) \to \max(0, u)
        \quad (\beta \to \infty)

    A ReLU network's second derivatives are zero or undefined. This one's are not, and its values differ from the
    network's by at most log(2) / beta at each unit. Replaced are ReLU and leaky ReLU, as modules, functions or tensor
    methods, in place or not, and clamping from below at 0. Max pooling, absolute values, ReLU6, thresholds and
    recurrent layers with nonlinearity="relu" keep their corners. It works where the model is called, not where one of
    its other methods is, and a copy made within stays as it is within.

    Args:
        model: An eager module; its submodules may be shared, and its weights stay its own.
        beta: Sharpness, in 1 / units of the activations; softplus reaches slope 0.99 at 4.6 / beta. Higher is closer to
            ReLU and has larger second derivatives in fewer places.

    Yields:
        The model itself.

    Warns:
        UserWarning: If the model ran within and met no ReLU.

    Raises:
        ValueError: If beta is not positive and finite.
        TypeError: If the model is no module, or it or one within is compiled or scripted, so that its Python code does
            not run.

    References:
        A.-K. Dombrowski et al., "Explanations Can Be Manipulated and Geometry Is to Blame", NeurIPS 2019,
        arXiv:1906.07983, which explains ReLU networks by such copies.

    Example:
        >>> import torch
        >>> model = torch.nn.ReLU()
        >>> with softplus_surrogate(model, beta=1.0):
        ...     round(model(torch.tensor(0.0)).item(), 4)  # log 2
        0.6931
        >>> model(torch.tensor(0.0)).item()
        0.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
            raise TypeError(
                f"module {name!r} must be an eager torch.nn.Module, but is {type(module).__name__}; take the module it "
                "was made from"
            )
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be positive and finite, but is {beta}")
    own = vars(model).get("forward")
    mode = _Softplus(beta)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        mode.ran = True
        with mode:
            return own(*args, **kwargs) if own is not None else type(self).forward(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)  # which a copy of the model binds to the copy
    try:
        yield model
    finally:
        if own is not None:
            model.forward = own
        else:
            del model.forward
    if mode.ran and not mode.replaced:
        warnings.warn("softplus_surrogate met no ReLU in this model, and changed nothing", stacklevel=3)


class _Softplus(TorchFunctionMode):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.ran = self.replaced = False

    def __torch_function__(
        self, func: Callable[..., Any], classes: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELU or func in _RELU_IN_PLACE or func in _LEAKY or _clamps_at_zero(func, args, kwargs):
            arguments = dict(zip(_parameters(func), args, strict=False)) | kwargs
            x = arguments.get("input", args[0] if args else None)
            # Positions are clamped, too, and are integers.
            if isinstance(x, Tensor) and x.is_floating_point():
                return self._replace(func, x, arguments)
        return func(*args, **kwargs)

    def _replace(self, func: Callable[..., Any], x: Tensor, arguments: dict[str, Any]) -> Tensor:
        self.replaced = True
        slope = arguments.get("negative_slope", 0.01) if func in _LEAKY else 0.0
        in_place = func in _IN_PLACE or bool(arguments.get("inplace", False))
        # A copy of what is overwritten: the derivative needs it.
        value = x.clone() if in_place else x
        result = (1 - slope) * _functional.softplus(value, beta=self.beta)
        result = result + slope * value if slope else result
        return x.copy_(result) if in_place else result


def _parameters(func: Callable[..., Any]) -> tuple[str, ...]:
    if func is _functional.relu:
        return ("input", "inplace")
    if func in _LEAKY:
        return ("input", "negative_slope", "inplace")
    return ("input",)


def _clamps_at_zero(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if func not in _CLAMPS and func not in _CLAMPS_IN_PLACE:
        return False
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return isinstance(low, (int, float)) and low == 0 and high is None
