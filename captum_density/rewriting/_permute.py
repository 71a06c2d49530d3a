"""Permute the hidden units between two layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from captum_density.rewriting._layers import (
    Layer,
    by_input,
    by_output,
    check_layer,
    copied,
    from_input,
    from_output,
    groups_of,
    has_hooks,
    input_units,
    new_parameter,
    output_units,
    random_generator,
    submodule,
    trace,
    uses_of,
)

__all__ = ["permute_hidden_units"]

_ELEMENTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh),
    *(nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink),
    *(nn.Identity, nn.Dropout),
)
_BY_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)
_POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Upsample),
)
_FUNCTIONS = (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid)
_POOLING_FUNCTIONS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_METHODS = ("relu", "tanh", "sigmoid", "contiguous")


def permute_hidden_units(model: nn.Module, first: str, second: str, seed: int = 0) -> nn.Module:
    """Permute the outputs of one layer, and the inputs of the one that reads them to match.

    What lies between must treat each channel by itself: elementwise nonlinearities, pooling, batch norm and PReLU
    (whose parameters are permuted along), dropout, and a flattening from dimension 1 on, after which each channel is a
    block of features. Units of different groups of a convolution are not exchanged. Batch norm and PReLU after a linear
    layer are taken to be of its features, (N, features): on (N, L, features) they are of L.

    Args:
        model: Such that `torch.fx` can trace it.
        first: Name of the layer whose outputs are permuted, as in `model.named_modules()`.
        second: Name of the layer that reads them.
        seed: Of the permutation, never the identity.

    Returns:
        A copy that computes the same function, but for the order of summation; the model stays as it was.

    Raises:
        TypeError: `model` is no module.
        ValueError: There is no such module, a layer is not plain or used more than once, what lies between is not
            channel by channel or is read elsewhere too, there is nothing to permute, or the model cannot be traced.

    References:
        Implementation invariance: M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML
        2017, arXiv:1703.01365. The symmetry is R. Hecht-Nielsen's, "On the algebraic structure of feedforward network
        weight spaces", 1990.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> permuted, x = permute_hidden_units(model, "0", "2"), torch.randn(5, 3)
        >>> torch.equal(permuted[0].weight, model[0].weight), torch.allclose(permuted(x), model(x), atol=1e-5)
        (False, True)
    """
    rewritten = copied(model)
    layers: list[Layer] = [submodule(rewritten, name) for name in (first, second)]
    for layer, name in zip(layers, (first, second), strict=True):
        check_layer(layer, name)
    writer, reader = layers
    if writer is reader:
        raise ValueError(f"first and second must be two layers, but are both {first!r}")
    graph = trace(rewritten)
    modules, uses = dict(rewritten.named_modules(remove_duplicate=False)), uses_of(rewritten, graph)
    path = _path(graph, modules, writer, reader, first, second)
    convolution = not isinstance(writer, nn.Linear)
    flattened = False
    carriers: list[tuple[Any, bool]] = []
    for node in path:
        kind = _kind(node, modules)
        if node.op == "call_module" and has_hooks(modules[str(node.target)]):
            raise ValueError(f"{node.target!r}, between {first!r} and {second!r}, has hooks; remove them first")
        if kind == "flatten":
            flattened = True
        elif kind is None or (kind == "pooling" and (flattened or not convolution)):
            raise ValueError(f"{node.name!r}, between {first!r} and {second!r}, may mix the units")
        elif kind == "by channel":
            carriers.append((modules[str(node.target)], flattened))
    n, block = output_units(writer), _block(writer, reader, flattened, second)
    for module in (writer, reader, *(carrier for carrier, _ in carriers)):
        if uses[id(module)] > 1:
            raise ValueError(f"a {type(module).__name__} from {first!r} to {second!r} is used more than once")

    order = _permutation(n, groups_of(writer), groups_of(reader), seed).to(writer.weight.device)
    writer.weight = new_parameter(from_output(writer, by_output(writer)[order]), writer.weight)
    if writer.bias is not None:
        writer.bias = new_parameter(writer.bias.detach()[order], writer.bias)
    wide = (order[:, None] * block + torch.arange(block, device=order.device)).flatten()
    for carrier, follows_flattening in carriers:
        _permute_carrier(carrier, wide if follows_flattening else order)
    reader.weight = new_parameter(from_input(reader, by_input(reader)[wide]), reader.weight)
    return rewritten


def _path(
    graph: fx.Graph, modules: dict[str, nn.Module], writer: Layer, reader: Layer, first: str, second: str
) -> list[fx.Node]:
    """The nodes between two layers."""
    starts = [node for node in graph.nodes if node.op == "call_module" and modules[node.target] is writer]
    if len(starts) != 1:
        raise ValueError(f"{first!r} must be called once, but is called {len(starts)} times")
    node: fx.Node = starts[0]
    path: list[fx.Node] = []
    while True:
        if len(node.users) != 1:
            raise ValueError(f"{node.name!r}, after {first!r}, is read {len(node.users)} times and must be read once")
        node = next(iter(node.users))
        if node.op == "call_module" and modules[str(node.target)] is reader:
            return path
        if node.op == "output":
            raise ValueError(f"{second!r} does not read what {first!r} returns")
        path.append(node)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """What a node does to the units: "elementwise", "by channel", "pooling", "flatten"; None for anything else."""
    kind = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            kind = "flatten"
        else:
            kinds = {"elementwise": _ELEMENTWISE, "by channel": _BY_CHANNEL, "pooling": _POOLING}
            kind = next((kind for kind, types in kinds.items() if type(module) in types), None)
    elif _flattens(node):
        kind = "flatten"
    elif len(node.all_input_nodes) == 1 and _is_elementwise(node):
        kind = "elementwise"
    elif node.op == "call_function" and node.target in _POOLING_FUNCTIONS:
        kind = "pooling"
    return kind


def _is_elementwise(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    scaled = node.target in (operator.mul, operator.add, operator.sub, operator.truediv)
    return node.op == "call_function" and (node.target in _FUNCTIONS or (scaled and _has_number(node)))


def _has_number(node: fx.Node) -> bool:
    return any(isinstance(value, int | float) for value in node.args)


def _flattens(node: fx.Node) -> bool:
    if node.target not in (torch.flatten, "flatten"):
        return False
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _block(writer: Layer, reader: Layer, flattened: bool, second: str) -> int:
    """How many inputs of the second layer each unit has."""
    n, inputs = output_units(writer), input_units(reader)
    spreads = not isinstance(writer, nn.Linear) and isinstance(reader, nn.Linear)
    if spreads and not flattened:
        raise ValueError(f"{second!r} is a linear layer that reads positions, not channels: nothing is flattened")
    if not isinstance(reader, nn.Linear) and (flattened or isinstance(writer, nn.Linear)):
        raise ValueError(f"{second!r} is a convolution, which reads no features")
    if inputs % n or (inputs != n and not spreads):
        raise ValueError(f"{second!r} reads {inputs} inputs, which the {n} units are no equal blocks of")
    return inputs // n


def _permutation(n: int, groups_before: int, groups_after: int, seed: int) -> Tensor:
    """(n,) an order of the units other than their own, in which each stays within its groups."""
    units, generator = torch.arange(n, device="cpu"), random_generator(seed)
    labels = units // (n // groups_before) * groups_after + units // (n // groups_after)
    order = units.clone()
    if len(labels.unique()) == n:
        raise ValueError("there are no two units in a group to exchange")
    while torch.equal(order, units):
        for label in labels.unique():
            members = units[labels == label]
            order[members] = members[torch.randperm(len(members), generator=generator, device="cpu")]
    return order


def _permute_carrier(module: Any, order: Tensor) -> None:
    """Permute what has one number a channel: batch norm's parameters and statistics, PReLU's slopes.

    Raises:
        ValueError: It has another number of them, and so counts something else.
    """
    channels = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
    if isinstance(module, nn.PReLU) and channels == 1:
        return
    if channels != len(order):
        raise ValueError(f"a {type(module).__name__} has {channels} channels where there are {len(order)} units")
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            setattr(module, name, new_parameter(parameter.detach()[order], parameter))
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.ndim == 1:
            setattr(module, name, buffer[order])
