"""Rankings of the elements of every example, by attribution, made batch by batch and kept in files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.generators import seeded
from captum_density.metrics._attributors import Attributor, Split, attribute_function, device_of, explained_module
from captum_density.metrics._elements import Elements
from captum_density.metrics._masks import ranks

__all__ = ["Ranked", "random_ranks", "ranked"]

Pair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]

_ROWS = 1024


class Ranked:
    """The rankings of one attribution's training and test examples, (N, d) each, mapped from files.

    Args:
        plain: By |attribution|.
        blurred: By |attribution| after a Gaussian blur; None where it was not asked for.
        agnostic: One for all examples, by the mean |attribution| of the training examples; None likewise.
        constant: The share of all examples whose attributions are all equal, and so ranked by position alone.
    """

    def __init__(self, plain: Pair, blurred: Pair | None, agnostic: Pair | None, constant: float) -> None:
        self.plain, self.blurred, self.agnostic, self.constant = plain, blurred, agnostic, constant


def ranked(
    name: str,
    attributor: Attributor,
    splits: tuple[Split, Split],
    elements: Elements,
    *,
    target: Literal["predicted", "true"],
    folder: Path,
    blurred: bool,
    agnostic: bool,
    max_examples_per_batch: int,
    seed: int,
    show_progress: bool,
) -> Ranked:
    """Attribute both data sets, in batches, and rank.

    Args:
        name: Of the attribution.
        attributor: An attribution, a function, or ready attributions of training and test examples.
        splits: Training and test inputs and labels.
        elements: What is ranked.
        target: Which class is attributed.
        folder: Where the rankings are written.
        blurred: Whether to rank blurred attributions, too.
        agnostic: Whether to make one ranking of the training examples' mean, too.
        max_examples_per_batch: How many examples are attributed at once.
        seed: Of what an attributor draws.
        show_progress: Whether to show a progress bar.

    Returns:
        The rankings.
    """
    attribute = attribute_function(name, attributor, splits, target)
    writers = {kind: _Writer(folder, splits, elements.d) for kind, wanted in (("", True), ("b", blurred)) if wanted}
    total = torch.zeros(elements.shape, dtype=torch.float64)
    constant = 0
    device = device_of(attributor, splits[0][0])
    count = sum(len(inputs) for inputs, _ in splits)
    with (
        seeded(seed, device),
        fixed_modules(explained_module(attributor) or (lambda: None)),
        tqdm(total=count, desc=f"attributing, {name}", unit="example", disable=not show_progress) as bar,
    ):
        for split, (inputs, _) in enumerate(splits):
            for low, high in _batches(len(inputs), max_examples_per_batch):
                magnitude = elements.magnitude(attribute(split, slice(low, high), device), high - low, name)
                importance = elements.importance(magnitude)
                constant += int((importance == importance[:, :1]).all(1).sum())
                writers[""].write(split, importance)
                if blurred:
                    writers["b"].write(split, elements.importance(_blurred(magnitude)))
                if split == 0:
                    total += magnitude.sum(0, dtype=torch.float64)
                bar.update(high - low)
    done = {kind: writer.done() for kind, writer in writers.items()}
    shared = None
    if agnostic:
        # Rounded last, so that what ties still does, and that no split into batches shows.
        mean = (elements.importance(total[None]) / len(splits[0][0])).float()
        one = _small(ranks(mean), elements.d)
        shared = _constant(folder, splits, one)
    return Ranked(done[""], done.get("b"), shared, constant / count)


def random_ranks(folder: Path, splits: tuple[Split, Split], d: int, seed: int) -> Pair:
    """A ranking of its own for every example, drawn."""
    generator = torch.Generator().manual_seed(seed)
    writer = _Writer(folder, splits, d)
    for split, (inputs, _) in enumerate(splits):
        for low, high in _batches(len(inputs), _ROWS):
            writer.write(split, torch.rand(high - low, d, generator=generator, dtype=torch.float64))
    return writer.done()


class _Writer:
    """Ranks of both splits, written row by row to files of 16 bits a rank where that is enough."""

    def __init__(self, folder: Path, splits: tuple[Split, Split], d: int) -> None:
        number = len(list(folder.iterdir()))
        self._d = d
        self._paths = [folder / f"ranks-{number}-{split}.npy" for split in ("train", "test")]
        for split, (inputs, _) in enumerate(splits):
            header = io.BytesIO()
            shape = {"descr": np.dtype(_dtype(d)).str, "fortran_order": False, "shape": (len(inputs), d)}
            np.lib.format.write_array_header_1_0(header, shape)
            self._append(split, header.getvalue())

    def write(self, split: int, importance: Tensor) -> None:
        self.write_ranks(split, _small(ranks(importance), self._d))

    def write_ranks(self, split: int, rows: npt.NDArray[Any]) -> None:
        self._append(split, np.ascontiguousarray(rows).tobytes())

    def _append(self, split: int, content: bytes) -> None:
        try:
            # Written like any file: of a map, a full disk would end the process. Opened each time, so that nothing is
            # left open or unwritten, whatever happens in between.
            with self._paths[split].open("ab") as file:
                file.write(content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"a ranking cannot be written ({error.strerror}): it takes 16 bits for each element of each example, "
                "several times for each attribution; let the environment variable TMPDIR name a larger place",
                str(self._paths[split]),
            ) from error

    def done(self) -> Pair:
        train, test = (np.load(path, mmap_mode="r", allow_pickle=False) for path in self._paths)
        return train, test


def _constant(folder: Path, splits: tuple[Split, Split], one: npt.NDArray[Any]) -> Pair:
    writer = _Writer(folder, splits, one.shape[1])
    for split, (inputs, _) in enumerate(splits):
        for low, high in _batches(len(inputs), _ROWS):
            writer.write_ranks(split, np.broadcast_to(one, (high - low, one.shape[1])))
    return writer.done()


def _small(order: Tensor, d: int) -> npt.NDArray[Any]:
    return order.numpy().astype(_dtype(d))


def _dtype(d: int) -> type[np.signedinteger[Any]]:
    return np.int16 if d < 2**15 else np.int32


def _batches(n: int, size: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, n, size), n])


def _blurred(magnitude: Tensor) -> Tensor:
    """Blurred by a Gaussian of one pixel in 28, at least 1, and rounded, so that all processors find the same."""
    height, width = magnitude.shape[-2:]
    sigma = max(1.0, min(height, width) / 28)
    down, across = (_gaussian(side, sigma) for side in (height, width))
    return (down @ magnitude.double() @ across.T).float()


def _gaussian(side: int, sigma: float) -> Tensor:
    """(side, side) weights that blur a line which is reflected at its ends, to three deviations or as far as that goes.

    As a matrix: a convolution of two dimensions takes a second for a plane of 224 x 224, a thousand times as long.
    """
    reach = min(round(3 * sigma), side - 1)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    at = (torch.arange(side)[:, None] + offsets).abs()
    at = side - 1 - (side - 1 - at).abs()
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, at, (weights / weights.sum()).expand(at.shape))
