"""The examples of an audit: as many as asked for, from tensors, a data set or a loader, without those that fail."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from captum_density._model.arrays import as_tensors
from captum_density._model.errors import one_line
from captum_density._model.generators import seeded

__all__ = ["Sample", "draw_sample"]

_POOL, _POOL_ELEMENTS = 2000, 4096  # examples, and elements of each
_BYTES = 2 * 2**30  # of the examples of a data set, of which an audit makes several copies


@dataclass(frozen=True)
class Sample:
    """What is audited.

    Args:
        inputs: (N, ...), finite; or a tuple of such.
        labels: (N,) or, of pixels, (N, H, W) int64; floating-point (N,) or (N, outputs); None where the data have none.
        skipped: A line for each example that could not be read.
        classes: Their names in the order of the labels, as torchvision's data sets give them; None where they do not.
        categories: Names of a model's outputs, where the data know them, as a folder with a preset of weights does.
        pool: (M, ...) of each input, that show how data vary: those that are audited, and more where there are more and
            they are small.
        places: (N,) which rows of the data these are, where the data are tensors.
        total: How many rows these have.
    """

    inputs: Tensor | tuple[Tensor, ...]
    labels: Tensor | None
    skipped: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    pool: tuple[Tensor, ...] | None = None
    places: Tensor | None = None
    total: int | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs, one or several."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)


def draw_sample(data: Any, limit: int | None, seed: int, *, pool: bool = False, ids: bool = False) -> Sample:
    """Take examples.

    Args:
        data: A tensor; a pair of inputs, a tensor or a tuple of such, and labels; a map-style data set of inputs or of
            pairs; or what yields batches of them, such as a `DataLoader`.
        limit: At most so many; drawn at random, but for what only yields, whose first are taken. None for all.
        seed: Of the drawing, and of what a data set or a loader draws; the global random states are left as they were.
        pool: Whether to take more inputs than are audited, of what does not only yield.
        ids: Whether inputs may be integers.

    Raises:
        TypeError: Data of no such kind, inputs that are not floating-point tensors, labels that are no numbers.
        ValueError: No examples, batches that cannot be read, unequal shapes, NaN or infinite inputs, a limit below 1, a
            data set of which so many examples take more than 2 GiB.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a positive integer or None, but is {limit!r}")
    if isinstance(data, Tensor) or (isinstance(data, tuple | list) and _is_pair(data)):
        inputs, labels = (data, None) if isinstance(data, Tensor) else data
        return _from_tensors(inputs if isinstance(inputs, tuple) else (inputs,), labels, limit, seed, pool, ids)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        with seeded(seed, torch.device("cpu")):
            return _finite(_from_dataset(data, limit, seed, pool, ids))
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | dict):
        with seeded(seed, torch.device("cpu")):
            return _finite(_from_batches(data, limit, ids))
    raise TypeError(
        "data must be inputs, a pair of inputs and labels, a data set or a loader, but is an object of class "
        f"{type(data).__name__}"
    )


def _is_pair(data: Sequence[Any]) -> bool:
    if len(data) != 2:
        return False
    inputs = data[0] if isinstance(data[0], tuple) and isinstance(data, tuple) else data[:1]
    of_tensors = len(inputs) > 0 and all(isinstance(x, Tensor) for x in inputs)
    return of_tensors and (data[1] is None or isinstance(data[1], Tensor))


def _from_tensors(
    xs: tuple[Tensor, ...], labels: Tensor | None, limit: int | None, seed: int, pool: bool, ids: bool
) -> Sample:
    n = len(xs[0]) if xs[0].ndim else 0
    for x in xs:
        _check_inputs(x, ids)
        if len(x) != n:
            raise ValueError(f"inputs must hold as many examples each, but hold {n} and {len(x)}")
    labels = None if labels is None else _checked_labels(labels, n).to(xs[0].device)
    places = _places(n, limit, seed)
    at = torch.tensor(places, device=xs[0].device)
    drawn = tuple(x.detach()[at.to(x.device)] for x in xs)
    sample = _finite(
        Sample(
            drawn if len(drawn) > 1 else drawn[0],
            None if labels is None else labels[at],
            places=torch.tensor(places, device="cpu"),
            total=n,
        )
    )
    if not pool or not all(map(_is_small, drawn)) or not all(x.is_floating_point() for x in drawn):
        return sample
    more = tuple(x.detach()[torch.tensor(_places(n, _POOL, seed), device=x.device)] for x in xs)
    finite = torch.stack([x.flatten(1).isfinite().all(dim=1) for x in more]).all(dim=0)
    return replace(sample, pool=tuple(x[finite] for x in more))


def _places(n: int, limit: int | None, seed: int) -> list[int]:
    if limit is None or n <= limit:
        return list(range(n))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    return sorted(order[:limit].tolist())


def _is_small(example: Tensor) -> bool:
    return example.numel() <= _POOL_ELEMENTS


def _finite_rows(inputs: Tensor) -> Tensor:
    return inputs[inputs.flatten(1).isfinite().all(dim=1)]


def _from_dataset(data: Any, limit: int | None, seed: int, pool: bool, ids: bool) -> Sample:
    n = len(data)
    order = list(range(n))
    if limit is not None and n > limit:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    items: dict[int, tuple[Tensor, Any]] = {}
    skipped: list[str] = []
    for i in order:
        if len(items) == (limit or n):
            break
        try:
            item = data[i]
        # Pillow tells a corrupt image by an OSError, a SyntaxError, a ValueError or an error of its own.
        except Exception as error:
            skipped.append(f"{_name_of(data, i)} ({one_line(error)})")
            continue
        items[i] = _split(item)
        _check_memory(items[i][0], min(limit or n, n))
    if not items:
        why = f"; none of {n} can be read, first {skipped[0]}" if skipped else ""
        raise ValueError(f"the data hold no examples{why}")
    places = sorted(items)
    joined = _joined([items[i] for i in places], [_name_of(data, i) for i in places], ids)
    (inputs,) = joined.tensors
    small = pool and _is_small(inputs[0]) and inputs.is_floating_point()
    classes, categories = getattr(data, "classes", None), getattr(data, "categories", None)
    return replace(
        joined,
        skipped=tuple(skipped),
        classes=tuple(map(str, classes)) if isinstance(classes, Sequence) else None,
        categories=tuple(map(str, categories)) if isinstance(categories, Sequence) else None,
        pool=(_finite_rows(_pooled(inputs, data, order, items)),) if small else None,
    )


def _check_memory(example: Tensor, n: int) -> None:
    """Refuse as many examples of this size as would fill the memory, before they are read."""
    size = example.numel() * example.element_size()
    if n > 1 and n * size > _BYTES:
        raise ValueError(
            f"{n} examples of shape {tuple(example.shape)} take {n * size / 2**30:.2g} GiB; give the data a transform "
            f"that resizes them, or a limit of at most {max(1, _BYTES // size)}"
        )


def _pooled(inputs: Tensor, data: Any, order: Sequence[int], items: Mapping[int, Any]) -> Tensor:
    """The inputs, and those that follow in the order; what cannot be read, or has another shape, is left out."""
    more: list[Tensor] = []
    for i in order:
        if len(inputs) + len(more) >= _POOL:
            break
        if i not in items:
            try:
                x, _ = _split(data[i])
            except Exception:  # as above; it is not audited
                continue
            if x.shape == inputs.shape[1:] and x.is_floating_point():
                more.append(x.detach())
    return torch.cat([inputs, torch.stack(more).to(inputs)]) if more else inputs


def _name_of(data: Any, i: int) -> str:
    samples = getattr(data, "samples", None)
    if isinstance(samples, list) and isinstance(samples[i], tuple):  # as torchvision's folders have them
        return _printable(samples[i][0])
    return f"example {i}"


def _printable(path: Any) -> str:
    """A file's name as text that can be written and printed, whatever bytes it is made of."""
    text = os.fsencode(str(path)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _split(item: Any) -> tuple[Tensor, Any]:
    x, y = as_tensors(item if isinstance(item, tuple | list) and len(item) == 2 else (item, None))
    if not isinstance(x, Tensor):
        raise TypeError(
            f"the data set must yield tensors, but yields an object of class {type(x).__name__}; give it a transform "
            "that ends in a tensor"
        )
    return x, y


def _joined(items: list[tuple[Tensor, Any]], names: list[str], ids: bool) -> Sample:
    first = items[0][0]
    for (x, _), name in zip(items, names, strict=True):
        if x.shape != first.shape:
            raise ValueError(
                f"examples differ in shape: {names[0]} has {tuple(first.shape)}, {name} has {tuple(x.shape)}; give "
                "the data a transform that makes them equal, such as the preset of torchvision weights"
            )
    inputs = torch.stack([x for x, _ in items]).detach()
    _check_inputs(inputs, ids)
    labels = [y for _, y in items]
    if all(y is None for y in labels):
        return Sample(inputs, None)
    try:
        of_pixels = all(isinstance(y, Tensor) and y.ndim for y in labels)
        joined = torch.stack(labels) if of_pixels else torch.tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = sorted({type(y).__name__ for y in labels})
        raise TypeError(f"labels must be numbers, one for each example, got {' and '.join(kinds)}") from error
    return Sample(inputs, _checked_labels(joined, len(labels)))


def _from_batches(data: Iterable[Any], limit: int | None, ids: bool) -> Sample:
    parts = list(_batches(data, limit, ids))
    if not parts:
        raise ValueError("the data hold no examples")
    labels = [y for _, y in parts]
    if any(y is None for y in labels) and not all(y is None for y in labels):
        raise ValueError("some batches have labels and some have none")
    shapes = list(dict.fromkeys(tuple(x.shape[1:]) for x, _ in parts))
    if len(shapes) > 1:
        raise ValueError(
            f"examples differ in shape: one batch is of {shapes[0]}, another of {shapes[1]}; make them equal"
        )
    joined = None if labels[0] is None else torch.cat([y for y in labels if y is not None])
    return Sample(torch.cat([x for x, _ in parts]), joined)


def _batches(data: Iterable[Any], limit: int | None, ids: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    left = limit
    for batch in _read(data):
        x, y = _split(batch)
        _check_inputs(x, ids)
        y = None if y is None else _checked_labels(y, len(x))
        yield (x.detach(), y) if left is None else (x.detach()[:left], None if y is None else y[:left])
        if left is not None:
            left -= len(x)
            if left <= 0:
                return


def _read(data: Iterable[Any]) -> Iterator[Any]:
    batches, n = None, 0
    while True:
        try:
            batches = iter(data) if batches is None else batches
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # nothing can be skipped of what only yields
            raise ValueError(f"the data fail after {n} batches: {one_line(error)}") from error
        n += 1
        yield batch


def _check_inputs(inputs: Any, ids: bool) -> None:
    is_integer = isinstance(inputs, Tensor) and not inputs.is_floating_point() and not inputs.is_complex()
    if not isinstance(inputs, Tensor) or not (inputs.is_floating_point() or (ids and is_integer)):
        received = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        fix = "of token ids, name the layer that embeds them, as in layer=model.embeddings"
        if received == torch.uint8:
            fix = "scale images to [0, 1], as torchvision's ToTensor does"
        elif isinstance(inputs, Tensor) and inputs.ndim > 3:  # as ToTensor leaves images of 16 bits
            fix = "scale images to [0, 1], those of 16 bits by 65535"
        raise TypeError(f"inputs must be floating-point tensors, got {received}; {fix}")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (N, ...) with N > 0, got {tuple(inputs.shape)}")


def _checked_labels(labels: Any, n: int) -> Tensor:
    shape = tuple(labels.shape) if isinstance(labels, Tensor) else None
    dims = () if shape is None else (1, 2) if labels.is_floating_point() else (1, 3)
    if shape is None or labels.is_complex() or len(shape) not in dims or shape[0] != n:
        kind = type(labels).__name__ if shape is None else f"{labels.dtype} of shape {shape}"
        raise TypeError(
            f"labels must be integers, one for each of {n} examples, those of pixels ({n}, H, W), or the numbers of a "
            f"regression, ({n},) or ({n}, outputs), got {kind}; without any, leave labels out"
        )
    if labels.is_floating_point():
        if not labels.isfinite().all():
            raise ValueError(f"labels must be finite, got {int((~labels.isfinite()).sum())} NaN or infinite ones")
        return labels.detach()
    return labels.detach().to(torch.int64)


def _finite(sample: Sample) -> Sample:
    for x in sample.tensors:
        if not x.isfinite().all():
            raise ValueError(f"inputs must be finite, got {int((~x.isfinite()).sum())} NaN or infinite values")
    return sample
