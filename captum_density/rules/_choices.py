"""What can be chosen for an operation, and the named sets of such choices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from captum_density._model.calls import operation_name

__all__ = ["RULE_SETS", "Choice", "RuleCall", "RuleSet", "Rules", "rules_of"]

Choice: TypeAlias = "str | Callable[[RuleCall], Any]"
CHOICES = ("jacobian", "secant", "constant", "share")


@dataclass(frozen=True)
class RuleCall:
    """One call of an operation or a module, as a rule of one's own is given it.

    Args:
        name: The operation's name, such as "gelu", or the module's class.
        function: What was called.
        args: Its arguments: a tensor that requires grad is an activation, or a parameter.
        kwargs: Its keyword arguments.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of_module(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> RuleCall:
        """The call of a module that has run."""
        return cls(type(module).__name__, lambda *_: output, args, {})

    def __call__(self) -> Any:
        """The call as it stands: its value, with its own derivative."""
        return self.function(*self.args, **self.kwargs)


@dataclass(frozen=True)
class RuleSet:
    """What stands for an operation that leaves a choice.

    Attributes:
        name: How `BalancedGradients` calls it.
        nonlinearity: Of a pointwise nonlinear function: "secant" or "jacobian".
        gates: Factors that are constants beside an activation: a divisor or its reciprocal ("divisor", which makes
            normalisations linear), attention weights ("softmax"), nonlinear pointwise functions that are not 0 at 0
            ("sigmoid").
        nonlinear_factor: What becomes of any other nonlinear pointwise factor beside a linear one, such as silu(g) in a
            gated MLP: "share" or "constant".
        product: What k activations that are multiplied get: "share", 1 / k of the gradient, or "jacobian", all of it.
        choice: What was chosen for one operation in place of the set.
    """

    name: str
    nonlinearity: Literal["secant", "jacobian"]
    gates: frozenset[str]
    nonlinear_factor: Literal["share", "constant"]
    product: Literal["share", "jacobian"]
    choice: str | None = None

    @functools.cache  # noqa: B019  rule sets are few and small
    def with_choice(self, choice: str) -> RuleSet:
        """The set for an operation of which something else was chosen."""
        if choice == "jacobian":
            return replace(RULE_SETS["jacobian"], choice=choice)
        if choice == "secant":
            return replace(self, nonlinearity="secant", choice=choice)
        if choice == "constant":
            return replace(self, gates=_ALL, choice=choice)
        gates = self.gates - {"softmax", "sigmoid"}
        return replace(self, gates=gates, nonlinear_factor="share", product="share", choice=choice)


_ALL = frozenset({"divisor", "softmax", "sigmoid", "chosen"})
RULE_SETS = {
    rules.name: rules
    for rules in (
        RuleSet("libragrad", "secant", _ALL, "share", "share"),
        RuleSet("attnlrp", "secant", frozenset({"divisor", "chosen"}), "share", "share"),
        RuleSet("cp-lrp", "secant", _ALL, "constant", "share"),
        RuleSet("jacobian", "jacobian", frozenset({"chosen"}), "share", "jacobian"),
    )
}


@dataclass(frozen=True)
class Rules:
    """A rule set, and what was chosen otherwise for single operations and modules."""

    base: RuleSet
    operations: Mapping[str, Choice]
    classes: Mapping[type[nn.Module], Choice]
    modules: Mapping[nn.Module, Choice]

    @property
    def is_plain(self) -> bool:
        """Whether every operation has its Jacobian, so that there is nothing to do."""
        return self.base.name == "jacobian" and not (self.operations or self.classes or self.modules)

    def of_module(self, module: nn.Module) -> Choice | None:
        """What was chosen for a module: for itself, or for the nearest of its classes."""
        if module in self.modules:
            return self.modules[module]
        return next((self.classes[kind] for kind in type(module).__mro__ if kind in self.classes), None)

    def __repr__(self) -> str:
        chosen = {**self.operations, **{kind.__name__: c for kind, c in self.classes.items()},
                  **{f"a {type(module).__name__}": c for module, c in self.modules.items()}}  # fmt: skip
        words = [f"{key}: {c if isinstance(c, str) else getattr(c, '__name__', repr(c))}" for key, c in chosen.items()]
        return ", ".join([repr(self.base.name), *words])


def rules_of(rules: str | Mapping[Any, Choice]) -> Rules:
    """The rules that a user names.

    Raises:
        ValueError: A set, an operation or a choice of another name.
        TypeError: Neither a name nor a mapping; a key that is no operation and no module.
    """
    if isinstance(rules, str):
        return Rules(_set_of(rules), {}, {}, {})
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"rules must be one of {', '.join(map(repr, RULE_SETS))}, or a mapping from operations or modules to "
            f"choices, but is {type(rules).__name__}"
        )
    base: Any = "libragrad"
    operations, classes, modules = dict[str, Choice](), dict[Any, Choice](), dict[Any, Choice]()
    for key, choice in rules.items():
        if key == "default":
            base = choice
            continue
        if not (callable(choice) or choice in CHOICES):
            raise ValueError(f"the choice for {key!r} must be one of {CHOICES} or a function, but is {choice!r}")
        if isinstance(key, nn.Module):
            modules[key] = choice
        elif isinstance(key, type) and issubclass(key, nn.Module):
            classes[key] = choice
        elif isinstance(key, str):
            operations[_known(key)] = choice
        elif callable(key):
            operations[operation_name(key)] = choice
        else:
            raise TypeError(
                f"rules are given for operations (by name, such as 'gelu', or as torch functions) and for modules (or "
                f"their classes), not for {key!r}; the key 'default' names the set for all others"
            )
    return Rules(_set_of(base), operations, classes, modules)


def _set_of(name: Any) -> RuleSet:
    if name not in RULE_SETS:
        raise ValueError(f"the rule set must be one of {', '.join(map(repr, RULE_SETS))}, but is {name!r}")
    return RULE_SETS[name]


def _known(name: str) -> str:
    places = (torch, nn.functional, Tensor, torch.special, torch.linalg)
    if not any(hasattr(place, name) for place in places):
        raise ValueError(f"no operation of torch is called {name!r}; name one as torch does, such as 'layer_norm'")
    return operation_name(next(getattr(place, name) for place in places if hasattr(place, name)))
