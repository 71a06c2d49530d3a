"""Linear and convolutional layers by output and by input; where they stand, and what calls them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

__all__ = [
    "TRANSPOSED",
    "Layer",
    "by_input",
    "by_output",
    "check_layer",
    "copied",
    "from_input",
    "from_output",
    "groups_of",
    "has_hooks",
    "input_units",
    "new_parameter",
    "output_units",
    "random_generator",
    "replaced",
    "submodule",
    "trace",
    "uses_of",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Containers that do nothing with their modules but call them.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Layer: TypeAlias = Any  # nn.Linear or a convolution, whose weights are laid out in three ways


def copied(model: nn.Module) -> nn.Module:
    """A copy to rewrite.

    Raises:
        TypeError: The model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is {type(model).__name__}")
    return copy.deepcopy(model)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of this name.

    Raises:
        ValueError: There is none.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        named = [path for path in modules if path] or [""]
        near = [path for path in named if name.rpartition(".")[2] in path] or named
        shown = ", ".join(map(repr, near[:8])) + (", ..." if len(near) > 8 else "")
        raise ValueError(f"the model has no module {name!r}; take one of {shown}")
    return modules[name]


def replaced(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The model with another module in this place, under all its names; the module itself for the model's name, "".

    Raises:
        ValueError: A layer of PyTorch that reads its parts' weights by itself.
    """
    if not name:
        return module
    old = model.get_submodule(name)
    for path, other in list(model.named_modules(remove_duplicate=False)):
        if other is not old:
            continue
        parent_name, _, own = path.rpartition(".")
        parent = model.get_submodule(parent_name)
        if type(parent).__module__.startswith("torch.nn.") and not isinstance(parent, _CONTAINERS):
            raise ValueError(f"{path!r} is part of a {type(parent).__name__}, which reads its weights by itself")
        setattr(parent, own, module)
    return model


def check_layer(module: nn.Module, name: str) -> None:
    """Refuse what is no plain layer.

    Raises:
        ValueError: Another type of module, or one that computes its weights or has hooks.
    """
    if type(module) not in (nn.Linear, *CONVOLUTIONS, *TRANSPOSED):
        raise ValueError(
            f"{name!r} must be a torch.nn.Linear, Conv or ConvTranspose layer, but is {type(module).__name__}; "
            "remove parametrizations and lazy layers first"
        )
    if not isinstance(module._parameters.get("weight"), nn.Parameter) or module._forward_hooks:
        raise ValueError(f"{name!r} has hooks, or a weight that is no parameter of its own; remove them first")
    if module._forward_pre_hooks:
        raise ValueError(f"{name!r} has hooks, which may depend on its weights; remove them first")


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward pass of the module runs functions of somebody else's."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def groups_of(layer: Layer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def output_units(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def input_units(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """Within each group, inputs for outputs."""
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def by_output(layer: Layer) -> Tensor:
    """The weight in double precision, (outputs, inputs of a group, ...)."""
    weight = layer.weight.detach().double()
    return _swapped(weight, layer.groups) if isinstance(layer, TRANSPOSED) else weight


def from_output(layer: Layer, weight: Tensor) -> Tensor:
    """What `by_output` gave, in the layer's own layout."""
    return _swapped(weight, layer.groups) if isinstance(layer, TRANSPOSED) else weight


def by_input(layer: Layer) -> Tensor:
    """The weight in double precision, (inputs, outputs of a group, ...)."""
    weight = layer.weight.detach().double()
    return weight if isinstance(layer, TRANSPOSED) else _swapped(weight, groups_of(layer))


def from_input(layer: Layer, weight: Tensor) -> Tensor:
    """What `by_input` gave, in the layer's own layout."""
    return weight if isinstance(layer, TRANSPOSED) else _swapped(weight, groups_of(layer))


def new_parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter of its own, so that whatever shared the old one keeps it."""
    return nn.Parameter(values.to(like).contiguous(), requires_grad=like.requires_grad)


class _Tracer(fx.Tracer):
    """Looks into no batch norm, also where others than PyTorch have written it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """What the model calls, and in which order.

    Raises:
        ValueError: Its forward pass cannot be traced.
    """
    try:
        return _Tracer().trace(copy.deepcopy(model))
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace the model ({type(error).__name__}: {str(error).splitlines()[0]}), so what follows "
            "what is not known; rewrite a submodule without control flow instead"
        ) from error


def uses_of(model: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often each module (by identity) is called or has its tensors read."""
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: Counter[int] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            uses[id(modules[node.target])] += 1
        elif node.op == "get_attr":
            uses[id(modules.get(str(node.target).rpartition(".")[0]))] += 2  # what reads it is left as it is
    return uses


def random_generator(seed: int) -> torch.Generator:
    """On the CPU, so that every device gets the same numbers."""
    return torch.Generator("cpu").manual_seed(seed)
