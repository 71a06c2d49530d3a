"""Rankings of the elements of every example, by attribution, made batch by batch; large ones lie in files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from captum_density._model.fixed_modules import fixed_modules
from captum_density._model.generators import seeded
from captum_density.metrics._attributors import Attributor, Split, attribute_rows, device_of, explained_module
from captum_density.metrics._elements import Elements
from captum_density.metrics._masks import ranks

__all__ = ["Rankings", "random_ranks", "ranked"]

Pair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]

_ROWS = 1024
# Of one ranking of training and test examples: a dozen attributions with three rankings each stay below 600 MB.
_BYTES_IN_MEMORY = 2**24


class Rankings(NamedTuple):
    """The rankings of one attribution's training and test examples, (N, d) and (M, d) each.

    Args:
        plain: By |attribution|.
        blurred: By |attribution| after a Gaussian blur; None where it was not asked for.
        agnostic: One for all examples, by the mean |attribution| of the training examples; None likewise.
        constant: The share of all examples whose attributions are all equal, and so ranked by position alone.
    """

    plain: Pair
    blurred: Pair | None
    agnostic: Pair | None
    constant: float


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
) -> Rankings:
    """Attribute both data sets, in batches, and rank.

    Args:
        name: Of the attribution.
        attributor: An attribution, a function, or ready attributions of training and test examples.
        splits: Training and test inputs and labels.
        elements: What is ranked.
        target: Which class is attributed.
        folder: Where rankings that are too large for memory are written.
        blurred: Whether to rank blurred attributions, too.
        agnostic: Whether to make one ranking of the training examples' mean, too.
        max_examples_per_batch: How many examples are attributed at once.
        seed: Of what an attributor draws.
        show_progress: Whether to show a progress bar.

    Returns:
        The rankings.
    """
    attribute = attribute_rows(name, attributor, splits, target)
    plain = _Ranking(folder, splits, elements.d)
    smooth = _Ranking(folder, splits, elements.d) if blurred else None
    total = torch.zeros(elements.shape, dtype=torch.float64, device="cpu")
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
                plain.add(split, ranks(importance))
                if smooth is not None:
                    smooth.add(split, ranks(elements.importance(_blurred(magnitude))))
                if split == 0:
                    total += magnitude.sum(0, dtype=torch.float64)
                bar.update(high - low)
    shared = None
    if agnostic:
        # Rounded last, so that what ties still does, and that no split into batches shows.
        mean = (elements.importance(total[None]) / len(splits[0][0])).float()
        shared = _repeated(folder, splits, ranks(mean))
    return Rankings(plain.pair(), None if smooth is None else smooth.pair(), shared, constant / count)


def random_ranks(folder: Path, splits: tuple[Split, Split], d: int, seed: int) -> Pair:
    """A ranking of its own for every example, drawn."""
    generator = torch.Generator().manual_seed(seed)
    drawn = _Ranking(folder, splits, d)
    for split, (inputs, _) in enumerate(splits):
        for low, high in _batches(len(inputs), _ROWS):
            drawn.add(split, ranks(torch.rand(high - low, d, generator=generator, dtype=torch.float64, device="cpu")))
    return drawn.pair()


def _repeated(folder: Path, splits: tuple[Split, Split], one: Tensor) -> Pair:
    """One ranking, (1, d), of every example."""
    ranking = _Ranking(folder, splits, one.shape[1])
    for split, (inputs, _) in enumerate(splits):
        for low, high in _batches(len(inputs), _ROWS):
            ranking.add(split, one.expand(high - low, -1))
    return ranking.pair()


class _Ranking:
    """Ranks of both splits, of 16 bits where that is enough, added row by row: in memory, or in files if large."""

    def __init__(self, folder: Path, splits: tuple[Split, Split], d: int) -> None:
        self._dtype = np.int16 if d < 2**15 else np.int32
        shapes = [(len(inputs), d) for inputs, _ in splits]
        self._rows: tuple[list[npt.NDArray[Any]], ...] = ([], [])
        self._paths: list[Path] | None = None
        if sum(n * d for n, _ in shapes) * np.dtype(self._dtype).itemsize <= _BYTES_IN_MEMORY:
            return
        number = len(list(folder.iterdir()))
        self._paths = [folder / f"ranks-{number}-{split}.npy" for split in ("train", "test")]
        for path, shape in zip(self._paths, shapes, strict=True):
            header = io.BytesIO()
            described = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, described)
            _append(path, header.getvalue())

    def add(self, split: int, rows: Tensor) -> None:
        small = rows.numpy().astype(self._dtype)
        if self._paths is None:
            self._rows[split].append(small)
        else:
            _append(self._paths[split], small.tobytes())

    def pair(self) -> Pair:
        if self._paths is None:
            train, test = (np.concatenate(rows) for rows in self._rows)
        else:
            train, test = (np.load(path, mmap_mode="r", allow_pickle=False) for path in self._paths)
        return train, test


def _append(path: Path, content: bytes) -> None:
    try:
        # Written like any file: of a map, a full disk would end the process. Opened each time, so that nothing is
        # left open or unwritten, whatever happens in between.
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"a ranking cannot be written ({error.strerror}): it takes 16 bits for each element of each example, "
            "several times for each attribution; let the environment variable TMPDIR name a larger place",
            str(path),
        ) from error


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
    offsets = torch.arange(-reach, reach + 1, device="cpu")
    weights = torch.exp(-(offsets.double() ** 2) / (2 * sigma**2))
    at = (torch.arange(side, device="cpu")[:, None] + offsets).abs()
    at = side - 1 - (side - 1 - at).abs()
    return torch.zeros(side, side, dtype=torch.float64, device="cpu").scatter_add_(
        1, at, (weights / weights.sum()).expand(at.shape)
    )
