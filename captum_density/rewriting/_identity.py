"""Insert an identity that is made of two rectifiers."""

from __future__ import annotations

from torch import Tensor, nn

from captum_density.rewriting._layers import copied, replaced, submodule

__all__ = ["insert_identity"]


def insert_identity(model: nn.Module, name: str) -> nn.Module:
    """Insert u = relu(u) - relu(-u) after a module: the same numbers, exactly, by a detour.

    Where u is exactly 0 the derivative of the detour is 0 in PyTorch, not 1: put it after a linear or convolutional
    layer, whose outputs hardly ever are, and not after a ReLU, whose outputs often are.

    Args:
        model: Any module that calls the one named and does not read its weights or attributes itself.
        name: Of a module that returns a tensor, as in `model.named_modules()`; "" for the model's own output.

    Returns:
        A copy with the same outputs, a `torch.nn.Sequential` of the module and the detour in its place; the model stays
        as it was.

    Raises:
        TypeError: `model` is no module.
        ValueError: There is no such module, or it is part of a PyTorch layer that reads its weights by itself.

    References:
        Implementation invariance: M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML
        2017, arXiv:1703.01365. The rewriting is ours.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> detour, x = insert_identity(model, "0"), torch.randn(5, 3)
        >>> torch.equal(detour(x), model(x))
        True
    """
    rewritten = copied(model)
    module = submodule(rewritten, name)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise ValueError(f"{name!r} is a {type(module).__name__}, which is never called; take one of its modules")
    detour = nn.Sequential(module, _Detour().train(module.training))
    detour.training = module.training
    return replaced(rewritten, name, detour)


class _Detour(nn.Module):
    """u = relu(u) - relu(-u); two rectifiers, as hooks on one would see two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.ReLU(), nn.ReLU()

    def forward(self, u: Tensor) -> Tensor:
        # A tensor for each: Captum's hooks on a rectifier replace the whole gradient of the tensor that it reads, the
        # other's share included.
        return self.positive(u.clone()) - self.negative(-u)
