"""Rankings of the elements of every example, by attribution, made batch by batch and kept in files."""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import Attribution
from torch import Tensor, nn
from tqdm import tqdm

from captum_density._captum import run_forward
from captum_density._fixed_modules import fixed_modules
from captum_density._masks import ranks
from captum_density._random import seeded

__all__ = ["Attributor", "Elements", "Ranked", "check_attributor", "random_ranks", "ranked"]

Array: TypeAlias = Tensor | npt.NDArray[Any]
Split: TypeAlias = tuple[Array, Array]
Attributor: TypeAlias = Attribution | Callable[..., Any] | tuple[Array, Array]
Pair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]

_ROWS = 1024


class Elements:
    """What is kept or removed as one: every element of an input, or groups of them.

    Args:
        shape: Of an input.
        groups: None; "channels" for a pixel in all its channels; a number or a pair for patches of that many pixels, in
            all channels; or the group of each element, integers that broadcast to `shape`.

    Raises:
        ValueError: Groups that do not fit the shape.
    """

    def __init__(self, shape: Sequence[int], groups: Any) -> None:
        self.shape = tuple(shape)
        self.groups = None if groups is None else _groups(self.shape, groups)
        if self.groups is None:
            self.d = int(np.prod(self.shape, dtype=int))
            return
        flat = self.groups.flatten()
        self.d = int(flat.max()) + 1
        sizes = flat.bincount(minlength=self.d)
        if int(sizes.min()) == 0:
            raise ValueError(
                f"groups must be numbered 0..{self.d - 1} without gaps, but {int(sizes.argmin())} is empty"
            )
        # (d, largest group): the elements of each group, one position more than there are for "none".
        places = torch.arange(len(flat)) - (sizes.cumsum(0) - sizes)[flat.sort(stable=True).values]
        self._members = torch.full((self.d, int(sizes.max())), len(flat))
        order = flat.argsort(stable=True)
        self._members[flat[order], places] = order
        self._sizes = sizes

    def importance(self, magnitude: Tensor) -> Tensor:
        """(B, d) how important each is, from (B, *shape), at least 0: a group's is the mean of its elements'."""
        flat = magnitude.flatten(1)
        if self.groups is None:
            return flat
        padded = torch.cat([flat.double(), flat.new_zeros(len(flat), 1, dtype=torch.float64)], dim=1)
        total = torch.zeros(len(flat), self.d, dtype=torch.float64)
        for members in self._members.T:  # one after another: the same order of additions on every machine
            total += padded[:, members]
        return total / self._sizes

    def magnitude(self, attributions: Any, n: int, name: str) -> Tensor:
        """|attribution| on the CPU, (n, *shape).

        Raises:
            TypeError: It is no floating-point tensor.
            ValueError: Its shape does not fit, or it is NaN or infinite.
        """
        if isinstance(attributions, tuple) and len(attributions) == 1:
            attributions = attributions[0]
        if isinstance(attributions, np.ndarray):
            attributions = torch.from_numpy(np.array(attributions))
        if not isinstance(attributions, Tensor) or not attributions.is_floating_point():
            found = attributions.dtype if isinstance(attributions, Tensor) else type(attributions).__name__
            raise TypeError(f"attributions {name!r} must be a floating-point tensor, but are {found}")
        whole = (n, *self.shape)
        shared = (n, 1, *self.shape[1:])  # one value for all channels of a pixel
        if tuple(attributions.shape) != whole and not (self.groups is not None and attributions.shape == shared):
            raise ValueError(
                f"attributions {name!r} must have the inputs' shape {whole}, but have {tuple(attributions.shape)}"
                + (
                    "; to rank pixels, all channels together, pass groups='channels'"
                    if attributions.shape == shared
                    else ""
                )
            )
        magnitude = attributions.detach().cpu().abs().expand(whole)
        bad = int((~magnitude.isfinite()).sum())
        if bad:
            raise ValueError(f"attributions {name!r} contain {bad} NaN or infinite values, which have no rank")
        return magnitude


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
    attribute = _attribute_function(name, attributor, splits, target)
    writers = {kind: _Writer(folder, splits, elements.d) for kind, wanted in (("", True), ("b", blurred)) if wanted}
    total = torch.zeros(elements.shape, dtype=torch.float64)
    constant = 0
    device = _device(attributor, splits[0][0])
    count = sum(len(inputs) for inputs, _ in splits)
    with (
        seeded(seed, device),
        fixed_modules(_model(attributor) or (lambda: None)),
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


def _groups(shape: tuple[int, ...], groups: Any) -> Tensor:
    if isinstance(groups, Tensor):
        if groups.is_floating_point() or int(groups.min()) < 0:
            raise ValueError("groups must be integers from 0, one for each element")
        try:
            return groups.detach().cpu().long().expand(shape).contiguous()
        except RuntimeError as error:
            raise ValueError(f"groups must broadcast to an input, {shape}, but have {tuple(groups.shape)}") from error
    if len(shape) < 2:
        raise ValueError(f"inputs of shape {shape} have no channels or patches; pass groups as a tensor, or None")
    if isinstance(groups, str) and groups == "channels":
        return torch.arange(int(np.prod(shape[1:]))).view(1, *shape[1:]).expand(shape).contiguous()
    patch = (groups, groups) if isinstance(groups, int) else groups
    if not (isinstance(patch, tuple | list) and len(patch) == 2 and all(isinstance(p, int) and p >= 1 for p in patch)):
        raise ValueError(f"groups must be None, 'channels', a patch's size, or a tensor of integers, but is {groups!r}")
    if len(shape) != 3:
        raise ValueError(f"patches need inputs (channels, height, width), but they are {shape}")
    rows, columns = (torch.arange(side) // p for side, p in zip(shape[1:], patch, strict=True))
    return (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(shape).contiguous()


def check_attributor(name: str, attributor: Any, splits: tuple[Split, Split], target: str) -> None:
    """Refuse what cannot rank, before anything is computed.

    Raises:
        TypeError: It is of no known kind.
        ValueError: Ready attributions of another number of examples; a target of its own.
    """
    if isinstance(attributor, tuple | list):
        if len(attributor) != 2 or not all(isinstance(a, Tensor | np.ndarray) for a in attributor):
            raise TypeError(f"ready attributions {name!r} must be a pair of tensors or arrays, of train and test")
        for array, (inputs, _), what in zip(attributor, splits, ("training", "test"), strict=True):
            if len(array) != len(inputs):
                raise ValueError(f"attributions {name!r} are of {len(array)} {what} examples, not of {len(inputs)}")
        return
    if isinstance(attributor, type):
        raise TypeError(f"attributions[{name!r}] is the class {attributor.__name__}; make it for a model first")
    if not callable(attributor) and not isinstance(attributor, Attribution):
        raise TypeError(
            f"attributions[{name!r}] must be a Captum attribution, a function, or a pair of arrays, but is "
            f"{type(attributor).__name__}"
        )
    if isinstance(attributor, functools.partial) and "target" in attributor.keywords:
        raise ValueError(
            f"attributions[{name!r}] has a target of its own, which the argument target of this call would replace; "
            "leave it out, or pass a function that sets it"
        )
    if target == "predicted" and _bound(attributor) is None and _needs_target(attributor):
        raise TypeError(
            f"attributions[{name!r}] is a function with an argument target, and is given none with target='predicted': "
            "only Captum attributions say which model to predict with; let it predict the class itself, such as "
            "`lambda x: explain(x, model(x).argmax(1))`"
        )


def _attribute_function(
    name: str, attributor: Attributor, splits: tuple[Split, Split], target: str
) -> Callable[[int, slice, torch.device], Any]:
    """What gives the attributions of some rows of a split.

    Raises:
        TypeError: The explained model returns no logits to predict a class with.
        RuntimeError: The attributor raised; the message names it.
    """
    if isinstance(attributor, tuple | list):
        ready = attributor
        return lambda split, rows, device: ready[split][rows]
    bound = _bound(attributor)
    function = attributor.attribute if isinstance(attributor, Attribution) else attributor

    def attribute(split: int, rows: slice, device: torch.device) -> Any:
        # Copies: an attributor may write to what it is given, and PyTorch warns of arrays that may not be written to.
        parts = (
            a[rows].clone() if isinstance(a, Tensor) else torch.from_numpy(np.array(a[rows])) for a in splits[split]
        )
        inputs, labels = (part.to(device) for part in parts)
        options = {}
        if target == "true":
            options["target"] = labels.long()
        elif bound is not None:
            with torch.no_grad():
                logits = run_forward(bound.forward_func, inputs.clone())
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise TypeError(
                    f"the model that attributions[{name!r}] explains must return logits (N, classes), but returned "
                    f"{found}: wrap it in a module that returns them, or pass a function of the inputs that returns "
                    "attributions"
                )
            options["target"] = logits.argmax(1)
        try:
            return function(inputs, **options)
        except Exception as error:
            raise RuntimeError(
                f"attributions[{name!r}] raised {type(error).__name__}: {error}. Options are passed as in "
                "functools.partial(NoiseTunnel(Saliency(model)).attribute, nt_samples=10)"
            ) from error

    return attribute


def _needs_target(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("target")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _bound(attributor: Any) -> Attribution | None:
    """The Captum attribution that an attributor is, or is a method of."""
    while isinstance(attributor, functools.partial):
        attributor = attributor.func
    owner = getattr(attributor, "__self__", attributor)
    return owner if isinstance(owner, Attribution) else None


def _model(attributor: Any) -> nn.Module | None:
    bound = None if isinstance(attributor, tuple | list) else _bound(attributor)
    model = getattr(bound, "forward_func", None)
    return model if isinstance(model, nn.Module) else None


def _device(attributor: Any, inputs: Array) -> torch.device:
    model = _model(attributor)
    parameter = None if model is None else next(model.parameters(), None)
    if parameter is not None:
        return parameter.device
    return inputs.device if isinstance(inputs, Tensor) else torch.device("cpu")
