"""Real architectures with random weights, biases and batch statistics, so that completeness is not trivial.

`python -m tests._linear.architectures` measures the table of `tutorials/guides/completeness.md`.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torchvision.models as tv
from torch import Tensor, nn

from captum_density.attr import FullGrad

# One member at least of every classification family of torchvision; the side of the images that the table is measured
# on, and one that is enough to go through all operations.
TORCHVISION = {
    "alexnet": (64, 63),
    "vgg11": (64, 32),
    "vgg11_bn": (64, 32),
    "resnet18": (64, 32),
    "resnet50": (64, 32),
    "resnext50_32x4d": (64, 32),
    "wide_resnet50_2": (64, 32),
    "densenet121": (64, 32),
    "googlenet": (64, 32),
    "inception_v3": (96, 75),
    "squeezenet1_1": (64, 32),
    "shufflenet_v2_x0_5": (64, 32),
    "mnasnet0_5": (64, 32),
    "mobilenet_v2": (64, 32),
    "mobilenet_v3_small": (64, 32),
    "efficientnet_b0": (64, 32),
    "efficientnet_v2_s": (64, 32),
    "regnet_x_400mf": (64, 32),
    "regnet_y_400mf": (64, 32),
    "convnext_tiny": (64, 32),
    "vit_b_32": (224, 64),
    "swin_t": (64, 32),
    "swin_v2_t": (64, 32),
    "maxvit_t": (224, 32),
}
HUGGING_FACE = ("bert", "gpt2", "llama", "llama_rms_norm", "vit")
RECURRENT = ("lstm", "gru")
NAMES = (*TORCHVISION, *HUGGING_FACE, *RECURRENT)


class Case(NamedTuple):
    """A model, inputs it takes, and a target for each example."""

    model: nn.Module | Callable[..., Tensor]
    inputs: Tensor
    target: list[int]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give biases, norm weights and batch statistics values that nothing cancels, and heads that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.ndim == 1 or not bool(parameter.any()):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


class RecurrentClassifier(nn.Module):
    """Two bidirectional layers over time, and a dense layer on the mean."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool = True) -> None:
        super().__init__()
        self.recurrent = kind(6, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
        self.head = nn.Linear(10, 3)
        self.time = 1 if batch_first else 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, 6) to (N, 3)."""
        return self.head(self.recurrent(x if self.time == 1 else x.transpose(0, 1))[0].mean(self.time))


def _hugging_face(name: str) -> nn.Module:
    import transformers

    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if name == "bert":
        config = transformers.BertConfig(vocab_size=50, num_labels=3, **small)
        return transformers.BertForSequenceClassification(config)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, num_labels=3, pad_token_id=0)
        return transformers.GPT2ForSequenceClassification(config)
    if name.startswith("llama"):
        config = transformers.LlamaConfig(vocab_size=50, num_labels=3, num_key_value_heads=2, pad_token_id=0, **small)
        model = transformers.LlamaForSequenceClassification(config)
        if name == "llama_rms_norm":  # PyTorch's norm for transformers' own, which computes in float32 always
            for parent in list(model.modules()):
                for child, module in list(parent.named_children()):
                    if type(module).__name__ == "LlamaRMSNorm":
                        setattr(parent, child, nn.RMSNorm(32, eps=config.rms_norm_eps))
        return model
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **small)
    return transformers.ViTForImageClassification(config)


def _swin(block: Callable[..., nn.Module] | None = None, merging: Any = tv.swin_transformer.PatchMerging) -> nn.Module:
    # Windows that the images have to be padded for, and one of each two layers shifts, as in the large ones.
    return tv.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [3, 3], stochastic_depth_prob=0.2, num_classes=10, block=block,
        downsample_layer=merging,
    )  # fmt: skip


# Few and narrow blocks, for small images, of those that have many or wide ones.
NARROW: dict[str, Callable[[int], nn.Module]] = {
    "convnext_tiny": lambda side: tv.ConvNeXt(
        [tv.convnext.CNBlockConfig(12, 24, 2), tv.convnext.CNBlockConfig(24, None, 1)], 0.1, num_classes=10
    ),
    "vit_b_32": lambda side: tv.VisionTransformer(side, 32, 2, 2, 16, 32, num_classes=10),
    "swin_t": lambda side: _swin(),
    "swin_v2_t": lambda side: _swin(tv.swin_transformer.SwinTransformerBlockV2, tv.swin_transformer.PatchMergingV2),
    "maxvit_t": lambda side: tv.MaxVit(
        (side, side), 16, 4, [16, 32], [1, 2], head_dim=8, stochastic_depth_prob=0.2, num_classes=10
    ),
}


def _torchvision(name: str, side: int, narrow: bool) -> nn.Module:
    if name in NARROW and (narrow or (name == "maxvit_t" and side < 224)):  # whose windows fit no smaller image
        return NARROW[name](side)
    options: dict[str, Any] = {"num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    if name == "vit_b_32":
        options["image_size"] = side
    return tv.get_model(name, weights=None, **options)


def build(name: str, dtype: torch.dtype = torch.float32, small: bool = False, narrow: bool = False) -> Case:
    """One of NAMES, seeded, on images as the table's or small ones; leaves the global random state as it was.

    Those that are `narrow` have the operations of the others, in fewer and narrower blocks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in TORCHVISION:
            side = TORCHVISION[name][small]
            model = randomise(_torchvision(name, side, narrow)).to(dtype)
            return Case(model, torch.randn(2, 3, side, side, dtype=dtype), [1, 2])
        if name in RECURRENT:
            recurrent = RecurrentClassifier({"lstm": nn.LSTM, "gru": nn.GRU}[name])
            return Case(randomise(recurrent).to(dtype), torch.randn(3, 7, 6, dtype=dtype), [0, 1, 2])
        network = randomise(_hugging_face(name)).to(dtype)
        if name == "vit":
            return Case(lambda pixels: network(pixels).logits, torch.randn(3, 3, 32, 32, dtype=dtype), [0, 1, 2])
        embeddings = torch.randn(3, 7, 32, dtype=dtype)
        return Case(lambda x: network(inputs_embeds=x).logits, embeddings, [0, 1, 2])


def gaps(case: Case) -> tuple[float, float, int]:
    """Worst gap over the terms' absolute values, worst |sum - f| / |f|, and the number of bias terms."""
    full = FullGrad(case.model).decompose(case.inputs, case.target)
    relative = (full.total() - full.output).abs() / full.output.abs()
    return float(full.gap().max()), float(relative.max()), len(full.biases)


def rows(names: tuple[str, ...] = NAMES) -> Iterator[str]:
    """The lines of the table."""
    yield "| model | bias terms | gap, float32 | over \\|f\\| | gap, float64 | over \\|f\\| |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        single, double = gaps(build(name)), gaps(build(name, torch.float64))
        yield f"| {name} | {single[2]} | {single[0]:.0e} | {single[1]:.0e} | {double[0]:.0e} | {double[1]:.0e} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure completeness over architectures; prints a Markdown table.")
    parser.add_argument("names", nargs="*", default=NAMES)
    for row in rows(tuple(parser.parse_args().names)):
        print(row, flush=True)
