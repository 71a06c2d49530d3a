"""The layers of random networks that `torch.nn` does not have."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addition": operator.add,
    "addition in place": lambda x, y: operator.iadd(y, x),
    "concatenation": lambda x, y: torch.cat([x, y], dim=1),
    "product": lambda x, y: x * torch.sigmoid(y),
}


class Combined(nn.Module):
    """x and body(x), combined: added (in place or not), side by side in the features, or one gating the other."""

    def __init__(self, how: str, body: nn.Module) -> None:
        super().__init__()
        self.how, self.body = how, body

    def forward(self, x: Tensor) -> Tensor:
        return _COMBINE[self.how](x, self.body(x))


class Offset(nn.Module):
    """x + a parameter used directly, beside a module that is never used."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(shape))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


class Recurrent(nn.Module):
    """A recurrent network over (N, length, features), read at the last step or averaged: (N, hidden)."""

    def __init__(self, cell: nn.RNNBase, last: bool) -> None:
        super().__init__()
        self.cell, self.last = cell, last

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.cell(x if self.cell.batch_first else x.transpose(0, 1))[0]
        steps = steps if self.cell.batch_first else steps.transpose(0, 1)
        return steps[:, -1] if self.last else steps.mean(1)


class Tokens(nn.Module):
    """Projects tokens to a width, puts a class token before them and adds a position embedding."""

    def __init__(self, features: int, width: int, length: int, class_token: bool) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.position = nn.Parameter(torch.randn(1, length + class_token, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return x + self.position


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of tokens to themselves, batch or length first, with or without weights returned."""

    def __init__(self, width: int, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


class DotProductAttention(nn.Module):
    """Attention in two heads, written out or by scaled_dot_product_attention."""

    def __init__(self, width: int, fused: bool, causal: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fused, self.causal = fused, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            if self.causal:
                ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(ahead, -torch.inf)
            y = scores.softmax(-1) @ v
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Pick(nn.Module):
    """One vector of a sequence of tokens: the first token's, or the mean."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.first else x.mean(1)


def as_if_trained(model: nn.Module) -> None:
    """Move biases, norms and running statistics off the zeros and ones they start at, which hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
