"""Networks without additive parameters, on which gradient times input under conserving rules is all of the output."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig


class Attention(nn.Module):
    """Multi-head attention written by hand, in the spellings that people use."""

    def __init__(self, spelling: str, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.spelling, self.heads = spelling, heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scale = q.shape[-1] ** -0.5
        if self.spelling == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.spelling == "matmul":
            y = (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v
        elif self.spelling == "einsum":
            weights = torch.softmax(torch.einsum("nhid,nhjd->nhij", q * scale, k), dim=-1)
            y = torch.einsum("nhij,nhjd->nhid", F.dropout(weights, 0.0, True), v)
        elif self.spelling == "masked":
            scores = (q * scale) @ k.mT
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
            y = F.softmax(scores.masked_fill(mask, -torch.inf), -1).to(v.dtype) @ v
        else:  # the softmax by hand, too
            scores = torch.matmul(q, k.transpose(2, 3)) * scale
            powers = torch.exp(scores - scores.amax(-1, keepdim=True))
            y = torch.matmul(powers / powers.sum(-1, keepdim=True), v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class RMSNorm(nn.Module):
    """As Hugging Face's models have it."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Gated(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, activation: Callable[[Tensor], Tensor], width: int = 16) -> None:
        super().__init__()
        self.activation = activation
        self.up, self.gate, self.down = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """A transformer's block, its parts in place of one's choice."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention, self.mlp, self.norms = attention, mlp, nn.ModuleList([norm(), norm()])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class Head(nn.Module):
    """The mean over positions, and logits."""

    def __init__(self, body: nn.Module, normalise: Callable[[Tensor], Tensor] = lambda x: x, width: int = 16) -> None:
        super().__init__()
        self.body, self.normalise, self.classify = body, normalise, nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.normalise(self.body(x).mean(1)))


class Recurrent(nn.Module):
    """A recurrent layer's outputs."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = kind(16, 16 if options else 8, 2, bidirectional=True, batch_first=True, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class SqueezeAndExcitation(nn.Module):
    """A convolutional block whose channels are gated, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 1, bias=False)
        self.norm, self.head = nn.GroupNorm(4, 16, affine=False), nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)), inplace=True)
        x *= self.squeeze(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.head(x.mean((2, 3)))


def _layer_norm() -> nn.Module:
    return nn.LayerNorm(16, bias=False)


def _mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32, bias=False), activation, nn.Linear(32, 16, bias=False))


def _encoder(**options: object) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, bias=False, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _block(spelling: str) -> nn.Module:
    return Block(Attention(spelling), _mlp(nn.GELU()), _layer_norm)


TOKENS: dict[str, Callable[[], nn.Module]] = {
    **{f"attention by {s}": lambda s=s: Head(_block(s)) for s in ("sdpa", "matmul", "einsum", "masked", "hand")},
    "rms norm by hand": lambda: Head(Block(Attention("sdpa"), Gated(F.silu), RMSNorm)),
    "nn.RMSNorm": lambda: Head(Block(Attention("sdpa"), Gated(F.sigmoid), lambda: nn.RMSNorm(16))),
    "encoder, post-norm": lambda: Head(_encoder()),
    "encoder, pre-norm, gelu": lambda: Head(_encoder(activation="gelu", norm_first=True)),
    "cosine head": lambda: Head(_block("sdpa"), lambda x: F.normalize(x, dim=1)),
    "x / x.norm()": lambda: Head(_block("sdpa"), lambda x: x / x.norm(dim=1, keepdim=True)),
    "LSTM": lambda: Head(Recurrent(nn.LSTM)),
    "LSTM, projected": lambda: Head(Recurrent(nn.LSTM, proj_size=8)),
    "GRU": lambda: Head(Recurrent(nn.GRU)),
    "RNN": lambda: Head(Recurrent(nn.RNN)),
}  # fmt: skip
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "squeeze and excitation": SqueezeAndExcitation,
    "ViT": lambda: tv.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3),
    "ConvNeXt": lambda: ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], num_classes=3),
    "EfficientNet": lambda: EfficientNet(
        [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(6, 3, 2, 8, 16, 2), MBConvConfig(6, 5, 2, 16, 24, 2)],
        dropout=0.2,
        num_classes=3,
        last_channel=64,
    ),
}


def without_additive_parameters(model: nn.Module) -> nn.Module:
    """The model in eval mode and float64, with no biases, positions, class tokens and running means."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or any(part in name for part in ("pos_embedding", "class_token")):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.zero_()
        if hasattr(model, "heads"):
            nn.init.normal_(model.heads[-1].weight)
    return model.double().eval()
