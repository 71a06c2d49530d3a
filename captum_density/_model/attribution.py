"""One attribution function out of whatever users pass: a Captum class, an attribution, its method, a function.

There are two needs. Something that attributes the inputs of *one* model, its own: `attribute_function`. And something
that attributes those of *any* model, the audited one and then that with a shift: `attribution_maker`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._model.errors import describe
from captum_density._model.fixed_modules import modules_of

__all__ = ["attribute_function", "attribution_maker", "attribution_of", "parameters_of", "remake"]


def attribution_of(attributor: Any) -> Attribution | None:
    """The Captum attribution that an attributor is, or is a method of, options set by `functools.partial` or not."""
    function = _without_options(attributor)
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, Attribution) else None


def attribute_function(attributor: Any, name: str, *, model: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """What attributes the inputs of the model that an attributor is made for.

    Args:
        attributor: An attribution, such as `Saliency(model)`; its method, as it is or in a `functools.partial` with
            options; or a function of the inputs that returns attributions.
        name: What the caller calls it, for the message.
        model: What classes and functions of a model are made for; None where nothing tells, and they are refused.

    Raises:
        TypeError: It is of no such kind: a class, which is made for no model yet, or a model.
    """
    if model is not None:
        attributor = _made_for(model, attributor, name)
    if isinstance(attributor, Attribution):
        return attributor.attribute
    unmade = _without_options(attributor)
    if isinstance(unmade, type):
        raise _error(name, attributor, f"make it for a model first, as `{unmade.__name__}(model)`")
    if not callable(attributor) or isinstance(attributor, nn.Module):
        raise _error(name, attributor, "pass such as `Saliency(model)`, or a function of the inputs")
    return attributor


def attribution_maker(
    method: Any, name: str, *, model: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """What makes the attribution of any model.

    Args:
        method: A function of a model that returns an attribution or what attributes inputs, of which a Captum class
            such as `Saliency` is one. Or what is made for a model already, an attribution or its method, options set by
            `functools.partial` or not: it is made anew for another, see `remake`.
        name: What the caller calls it, for messages.
        model: The model that a method made already must be made for: of a view of it, such as
            `Saliency(CenteredLogits(model))`, the view would be lost on another. None for any.

    Returns:
        A function of a model that returns an attribution or a function of inputs; `attribute_function` and
        `attribution_of` tell them apart. It raises a TypeError where a user's function returns neither, and as
        `remake`.

    Raises:
        TypeError: The method is of no such kind: a model, for example.
        ValueError: It is made for another model than the one named.
    """
    own = attribution_of(method)
    if own is not None:
        if model is not None and own.forward_func != model:
            raise ValueError(
                f"{name} is made for another model ({describe(own.forward_func)}) than the one that is examined; pass "
                f"a function of the model, such as `lambda model: {type(own).__name__}(CenteredLogits(model))`"
            )
        return lambda model: _transferred(method, remake(own, model, name))
    owner = getattr(_without_options(method), "__self__", method)
    if not callable(method) or isinstance(owner, nn.Module):
        raise _error(name, method, "pass a function of the model, such as Saliency or `lambda model: Saliency(model)`")

    def make(model: Callable[..., Any]) -> Any:
        attribution = method(model)
        if not callable(attribution) and not isinstance(attribution, Attribution):
            raise TypeError(
                f"{name} must return an attribution of the model, or an attribute function such as "
                f"`Saliency(model).attribute`, but returned {describe(attribution)}"
            )
        return attribution

    return make


def remake(attribution: Attribution, model: Callable[..., Any], name: str = "the attribution") -> Attribution:
    """The same attribution of another model: a copy, in which the other stands wherever its own stood.

    Attributions within, as in `NoiseTunnel(Saliency(model))`, are made anew too. A model that functions of the user's
    keep hold of cannot be seen.

    Raises:
        TypeError: It holds a part of its own model, such as a layer, that the other does not have.
    """
    own = attribution.forward_func
    if own == model:
        return attribution
    other = copy.copy(attribution)
    own_parts, parts = ({id(module) for module in modules_of(m)} for m in (own, model))

    def belongs_to_own(module: nn.Module) -> bool:
        return any(id(part) in own_parts - parts for part in module.modules())

    def substitute(value: Any) -> Any:
        if isinstance(value, nn.Module | MethodType | Attribution) and value == own:
            return model
        if value is attribution:
            return other
        if isinstance(value, Attribution) and value.forward_func == own:
            return remake(value, model, name)
        if isinstance(value, MethodType) and value.__self__ is attribution:
            return MethodType(value.__func__, other)
        if isinstance(value, Attribution) or (isinstance(value, nn.Module) and belongs_to_own(value)):
            raise TypeError(
                f"{name} is made for its own model and holds {describe(value)}, which no other model has; pass a "
                f"function of the model, such as `lambda model: {type(attribution).__name__}(model, ...)`"
            )
        if type(value) in (list, tuple):
            return type(value)(map(substitute, value))
        if type(value) is dict:
            return {key: substitute(item) for key, item in value.items()}
        return model if value is own else value

    vars(other).update({key: substitute(value) for key, value in vars(attribution).items()})
    return other


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """A function's parameters by name; none where it has no signature."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _without_options(attributor: Any) -> Any:
    while isinstance(attributor, functools.partial):
        attributor = attributor.func
    return attributor


def _made_for(model: Callable[..., Any], attributor: Any, name: str) -> Any:
    """The attributor, or what it makes of a model where it is a class or a function of models, not of inputs."""
    if isinstance(_without_options(attributor), type):
        return attribution_maker(attributor, name)(model)
    if attribution_of(attributor) is not None or isinstance(attributor, nn.Module) or not callable(attributor):
        return attributor
    try:
        result = attributor(model)
    except Exception:  # as of any function of tensors that is given a model
        return attributor
    is_function = callable(result) and not isinstance(result, nn.Module | Tensor) and result is not model
    return result if is_function or isinstance(result, Attribution) else attributor


def _transferred(method: Any, other: Attribution) -> Any:
    """What is, or is bound to, an attribution, with another in its place."""
    if isinstance(method, functools.partial):
        return functools.partial(_transferred(method.func, other), *method.args, **method.keywords)
    return other if isinstance(method, Attribution) else MethodType(method.__func__, other)


def _error(name: str, attributor: Any, remedy: str) -> TypeError:
    return TypeError(
        f"{name} must be a Captum attribution, its attribute method or a function, but is {describe(attributor)}; "
        f"{remedy}"
    )
