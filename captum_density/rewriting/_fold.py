"""Fold batch norm into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from captum_density.rewriting._layers import (
    Layer,
    by_output,
    check_layer,
    copied,
    from_output,
    has_hooks,
    new_parameter,
    output_units,
    replaced,
    trace,
    uses_of,
)

__all__ = ["fold_batch_norm"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch norm that directly follows a layer into it: one layer does the work of two.

    W becomes W gamma / sigma, b becomes (b - mu) gamma / sigma + beta, and `torch.nn.Identity` stands where the batch
    norm stood; where timm's `BatchNormAct2d` stood, its activation does. Batch norms that follow something else, or a
    layer that something else reads too, are left as they are.

    Args:
        model: In evaluation mode, at least its batch norms, and such that `torch.fx` can trace it. A batch norm after
            a linear layer is taken to be one of its features, (N, F).

    Returns:
        A copy that computes the same function up to rounding; the model stays as it was.

    Raises:
        TypeError: `model` is no module.
        ValueError: There is no batch norm that can be folded, one is in training mode or keeps no running statistics,
            or the model cannot be traced.

    References:
        S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
        Covariate Shift", ICML 2015, arXiv:1502.03167.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU()).eval()
        >>> folded, x = fold_batch_norm(model), torch.randn(4, 1, 5, 5)
        >>> type(folded[1]).__name__, torch.allclose(folded(x), model(x), atol=1e-5)
        ('Identity', True)
    """
    rewritten = copied(model)
    graph = trace(rewritten)
    modules, uses = dict(rewritten.named_modules(remove_duplicate=False)), uses_of(rewritten, graph)
    count, reasons = 0, []
    for node in graph.nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, _NORMS):
            continue
        if norm.training or norm.running_mean is None:
            raise ValueError(
                f"batch norm {node.target!r} normalises with the statistics of the batch and is no fixed affine map; "
                "call model.eval() first (it must have running statistics)"
            )
        layer, before = _layer_before(node, modules)
        rest = _rest(norm)
        if rest is None:
            reasons.append(f"{node.target!r} is a {type(norm).__name__}, which may do more than a batch norm")
        elif layer is None:
            reasons.append(f"{node.target!r} does not directly follow a Linear or Conv layer")
        elif has_hooks(norm):
            reasons.append(f"{node.target!r} has hooks")
        elif len(before.users) > 1 or uses[id(layer)] > 1 or uses[id(norm)] > 1:
            reasons.append(f"{node.target!r} or the layer before it is used more than once")
        else:
            check_layer(layer, str(before.target))
            if output_units(layer) != norm.num_features:
                reasons.append(f"{node.target!r} has {norm.num_features} channels, the layer {output_units(layer)}")
                continue
            _fold(layer, norm)
            replaced(rewritten, str(node.target), rest.train(norm.training))
            count += 1
    if not count:
        raise ValueError(f"there is no batch norm to fold: {'; '.join(reasons) or 'the model calls none'}")
    return rewritten


def _rest(norm: Any) -> nn.Module | None:
    """What a batch norm does after normalising: timm's BatchNormAct2d drops and activates; None where it is unknown."""
    if type(norm) in _NORMS:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d":
        return norm.act if isinstance(norm.drop, nn.Identity) else nn.Sequential(norm.drop, norm.act)
    return None


def _layer_before(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Layer, fx.Node]:
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return None, node
    layer = modules[str(before.target)]
    return (layer if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) else None), before


def _fold(layer: Layer, norm: Any) -> None:
    mean, variance, like = norm.running_mean.double(), norm.running_var.double(), layer.weight
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach().double()
    scale = gamma / (variance + norm.eps).sqrt()
    weight = by_output(layer)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    layer.weight = new_parameter(from_output(layer, weight), like)
    layer.bias = new_parameter((bias - mean) * scale + beta, like)
