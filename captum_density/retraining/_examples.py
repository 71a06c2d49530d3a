"""What models are trained on and judged by: examples, and jobs, each of which keeps some of their elements."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_density._cache.arrays import parts_of
from captum_density._model.arrays import as_tensor, as_tensors

__all__ = ["Data", "Examples", "Impute", "Job", "Split"]

# What removed elements become: images (B, ...), which of their elements are kept (B, ...), and a generator by name.
Impute = Callable[..., Tensor]
Array: TypeAlias = Tensor | npt.NDArray[Any]
Split: TypeAlias = tuple[Array, Array]
Data: TypeAlias = Split | Dataset[Any] | DataLoader[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Training and test examples, and an order of the elements of each, by which to keep some of them.

    Args:
        train: Inputs (N, ...), floating-point, and labels (N,), integers from 0. Tensors or NumPy arrays, or a data set
            or DataLoader of such pairs, which is read once and held in memory. `numpy.memmap` arrays are read from
            their files, by each worker too; a model that is trained in a loop has its masked training inputs in
            memory, one in a stack a batch of them.
        test: Inputs (M, ...) and labels (M,), as `train`.
        ranks: For each example the places 0..d-1 of its d elements or groups, (N, d) and (M, d), integers; 0 for the
            most important. None where nothing is ever removed.
        groups: The group of each element, of an input's shape, integers 0..d-1; None for every element singly.
        fill: What a removed element becomes: a number, or a tensor that broadcasts to an input.
        impute: Instead of `fill`, ``impute(inputs, kept, generator=generator)``, such as `noisy_linear_imputation`.
        mask_only: Whether the model sees the mask, 1 where an element is kept, and nothing of the input.

    Raises:
        TypeError: Inputs that are not floating-point, labels or ranks that are not integers.
        ValueError: Nothing to train on or to test, shapes that do not fit, NaN or infinite inputs, negative labels, or
            test labels that no training example has.

    Example:
        >>> import torch
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 2
        >>> examples = Examples((x, y), (x, y), ranks=(x.argsort(1), x.argsort(1)))
        >>> examples.n_train, examples.n_test, examples.d
        (8, 8, 4)
    """

    train: Data
    test: Data
    ranks: tuple[Array, Array] | None = None
    groups: Tensor | None = None
    fill: float | Tensor = 0.0
    impute: Impute | None = None
    mask_only: bool = False

    def __post_init__(self) -> None:
        for name in ("groups", "fill"):
            object.__setattr__(self, name, as_tensors(getattr(self, name)))
        for name in ("train", "test"):
            object.__setattr__(self, name, _split(name, getattr(self, name)))
        (train, train_labels), (test, test_labels) = self.splits
        if train.shape[1:] != test.shape[1:]:
            raise ValueError(
                f"training inputs have shape {tuple(train.shape)}, test inputs {tuple(test.shape)}: "
                "all but the first dimension must agree"
            )
        classes, tested = (set(np.unique(_numpy(labels)).tolist()) for labels in (train_labels, test_labels))
        if not tested <= classes:
            raise ValueError(f"the test labels {sorted(tested - classes)} are of no training example")
        dtypes = [_numpy(inputs[:1]).dtype for inputs in (train, test)]
        if dtypes[0] != dtypes[1]:
            raise TypeError(f"training inputs are {dtypes[0]}, test inputs {dtypes[1]}; convert one of them")
        if self.ranks is not None:
            self._check_ranks(self.ranks)
        elif self.mask_only or self.groups is not None:
            raise ValueError("mask_only and groups have a meaning with ranks only; pass ranks")
        self._check_fill()

    @property
    def splits(self) -> tuple[Split, Split]:
        """Training and test examples, each inputs (N, ...) and labels (N,)."""
        return cast("tuple[Split, Split]", (self.train, self.test))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.splits[0][0].shape[1:])

    @property
    def n_train(self) -> int:
        """How many training examples there are."""
        return len(self.splits[0][1])

    @property
    def n_test(self) -> int:
        """How many test examples there are."""
        return len(self.splits[1][1])

    @property
    def d(self) -> int:
        """How many elements or groups of an example can be kept or removed."""
        if self.ranks is not None:
            return int(self.ranks[0].shape[1])
        return int(np.prod(self.shape, dtype=int))

    def _check_fill(self) -> None:
        shape = self.shape
        fill = as_tensor(self.fill)
        try:
            fits = tuple(torch.broadcast_shapes(fill.shape, shape)) == shape
        except RuntimeError:
            fits = False
        if not fits or not bool(fill.isfinite().all()):
            found = "is NaN or infinite" if fits else f"has shape {tuple(fill.shape)}"
            raise ValueError(f"fill must be finite and broadcast to an input {shape}, but {found}")
        if self.impute is not None and (self.mask_only or bool((fill != 0).any())):
            raise ValueError("impute says what removed elements become: fill and mask_only have no meaning beside it")

    def __repr__(self) -> str:
        return f"Examples({self.n_train} and {self.n_test} of {self.shape}, d={self.d})"

    def _check_ranks(self, ranks: tuple[Array, Array]) -> None:
        shape = self.shape
        d = int(np.prod(shape, dtype=int))
        if self.groups is not None:
            if tuple(self.groups.shape) != shape or self.groups.is_floating_point():
                raise ValueError(
                    f"groups must be integers of an input's shape {shape}, but are {self.groups.dtype} of "
                    f"{tuple(self.groups.shape)}"
                )
            d = int(self.groups.max()) + 1
            if int(self.groups.min()) < 0:
                raise ValueError("groups must be numbered from 0, but some are negative")
        for name, r, (inputs, _) in zip(("training", "test"), ranks, self.splits, strict=True):
            if tuple(r.shape) != (len(inputs), d):
                raise ValueError(f"the ranks of {name} examples must be ({len(inputs)}, {d}), but are {tuple(r.shape)}")
            if _numpy(r[:1]).dtype.kind != "i":
                raise TypeError(f"ranks must be signed integers, but are {r.dtype}")
            parts = [r] if isinstance(r, Tensor) else parts_of(r)
            ends = [(int(part.min()), int(part.max())) for part in parts]
            lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
            if lowest < 0 or highest >= d:
                raise ValueError(
                    f"the ranks of {name} examples must be in 0..{d - 1}, but go from {lowest} to {highest}"
                )


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """One model to train: on which examples, with what kept, in which run.

    Args:
        examples: What to train and test on.
        kept: Places ``(low, high)``: elements whose rank is in low..high-1 are kept. None for all.
        run: Which initial weights and order of batches; jobs of one run share them.

    Raises:
        ValueError: Places outside 0..d, or without ranks.

    Example:
        >>> import torch
        >>> x, y = torch.randn(8, 4), torch.arange(8) % 2
        >>> Job(Examples((x, y), (x, y)), run=3).kept
        (0, 4)
    """

    examples: Examples
    kept: tuple[int, int] | None = None
    run: int = 0

    def __post_init__(self) -> None:
        d = self.examples.d
        low, high = (0, d) if self.kept is None else map(operator.index, self.kept)
        if not 0 <= low <= high <= d:
            raise ValueError(f"kept must be places (low, high) with 0 <= low <= high <= {d}, but is {self.kept}")
        if operator.index(self.run) < 0:
            raise ValueError(f"run must be at least 0, but is {self.run}")
        object.__setattr__(self, "run", operator.index(self.run))
        object.__setattr__(self, "kept", (low, high))
        if not self.complete and self.examples.ranks is None:
            raise ValueError("to keep some elements and not others, the examples need ranks")

    def __repr__(self) -> str:
        return f"Job({self.examples}, kept={self.kept}, run={self.run})"

    @property
    def places(self) -> tuple[int, int]:
        """The places kept, (low, high)."""
        assert self.kept is not None  # set above
        return self.kept

    @property
    def complete(self) -> bool:
        """Whether the model sees its examples whole, whatever the ranks."""
        return self.places == (0, self.examples.d) and not self.examples.mask_only


def _split(name: str, data: Any) -> Split:
    """Inputs and labels, checked; those of a data set or DataLoader in one tensor each."""
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=1024)
    if isinstance(data, DataLoader):
        data = _collected(name, data)
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(
            f"{name} must be a pair (inputs, labels), a data set or a DataLoader, but is {type(data).__name__}"
        )
    _check_split(name, data)
    return data[0], data[1]


def _collected(name: str, loader: DataLoader[Any]) -> list[Tensor]:
    batches = list(loader)
    if not batches or not all(isinstance(batch, tuple | list) and len(batch) == 2 for batch in batches):
        raise TypeError(f"{name} must give pairs (inputs, labels); wrap it in one that does")
    return [torch.cat([as_tensor(as_tensors(part)) for part in parts]) for parts in zip(*batches, strict=True)]


def _check_split(name: str, pair: Sequence[Any]) -> None:
    inputs, labels = pair
    for what, array in (("inputs", inputs), ("labels", labels)):
        if not isinstance(array, Tensor | np.ndarray):
            raise TypeError(f"the {what} of {name} must be a tensor or array, but are {type(array).__name__}")
    if len(inputs.shape) < 2 or 0 in inputs.shape:
        raise ValueError(f"the inputs of {name} must be (N, ...), none of it empty, but are {tuple(inputs.shape)}")
    if tuple(labels.shape) != (len(inputs),):
        raise ValueError(f"the labels of {name} must be ({len(inputs)},), but are {tuple(labels.shape)}")
    for what, array in (("inputs", inputs), ("labels", labels)):
        if isinstance(array, np.ndarray) and not (array.dtype.isnative and array.dtype.itemsize <= 8):
            raise TypeError(f"the {what} of {name} are {array.dtype.str}, which PyTorch does not know; convert them")
    if inputs.dtype == torch.bfloat16:
        raise TypeError(f"the inputs of {name} are bfloat16, which NumPy does not know; give float32")
    if _numpy(inputs[:1]).dtype.kind != "f":
        raise TypeError(f"the inputs of {name} must be floating-point, but are {inputs.dtype}")
    if _numpy(labels[:1]).dtype.kind not in "iu":
        raise TypeError(f"the labels of {name} must be integers, but are {labels.dtype}")
    if int(labels.min()) < 0:
        raise ValueError(f"the labels of {name} must be classes from 0, but {int(labels.min())} is among them")
    parts = (inputs[start : start + 4096] for start in range(0, len(inputs), 4096))
    if isinstance(inputs, Tensor):  # on its device, which is waited for once
        is_finite = bool(torch.stack([part.isfinite().all() for part in parts]).all())
    else:
        is_finite = all(np.isfinite(part).all() for part in parts)
    if not is_finite:
        raise ValueError(f"the inputs of {name} contain NaN or infinity")


def _numpy(array: Array) -> npt.NDArray[Any]:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else array
