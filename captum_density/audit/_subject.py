"""What an audit measures: a function of one floating-point tensor, whatever a model takes and returns.

Every kind of model is brought into this form at the door, so that measurements know no kinds: several inputs are joined
and split again within, what a layer makes of token ids takes the ids' place, channels come to dimension 1, features of
unlike scales are counted in their own deviations, and of an output for every pixel the mean over a region is taken.
What else a model needs of an example, ids or a mask, it looks up by the example's number, which is passed as Captum
passes additional arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.batch import rows_of
from captum_density._model.errors import describe, one_line
from captum_density._model.validation import how_to_pick
from captum_density.audit._sample import Sample

__all__ = ["ELEMENTS", "Subject", "deviation", "logits_of", "of_unlike_scales", "subject_of"]

# What an input of each kind consists of.
ELEMENTS = {
    "image": "pixels",
    "volume": "voxels",
    "signal": "time steps",
    "table": "features",
    "text": "tokens",
    "inputs": "features",
    "layer": "units",
}
# Of features: at more, the overall deviation says nothing of the least.
_UNLIKE = 10.0
_BACKGROUND = ("background", "__background__")


@dataclass(frozen=True)
class Subject:
    """What is audited, in the form that all measurements know.

    Args:
        model: (N, ...), and numbers of rows where there are such, to (N, outputs).
        inputs: (N, features), or (N, channels, ...).
        rows: (N,) the numbers of the examples, where the model takes them; else None.
        logits: (N, outputs) what the model returns.
        pool: (M, ...) inputs that show how data vary; None for those that are audited.
        kind: One of `ELEMENTS`.
        values: (N, ...) the inputs in the data's own units, to be shown.
        sizes: Of several inputs, how many values each has; of one its own.
        ids: (N, L) of token ids; else None.
        is_flat: Whether the model returns (N,), a number for each example.
        regions: (N, ...) the pixels over which an output for each of them is averaged; else None.
        target: (N,) the class of the regions; else None.
        scales: How many times the largest deviation of a feature is that of the least, where each counts in its own;
            else None.
    """

    model: Callable[..., Tensor]
    inputs: Tensor
    rows: Tensor | None
    logits: Tensor
    pool: Tensor | None
    kind: str
    values: Tensor
    sizes: tuple[int, ...] = ()
    ids: Tensor | None = None
    is_flat: bool = False
    regions: Tensor | None = None
    target: Tensor | None = None
    scales: float | None = None


class OneTensor(nn.Module):
    """A model as a function of one tensor.

    Args:
        model: The user's.
        form: How the tensor becomes what the model takes.
        args: The model's additional arguments, tensors with a row for each example among them.
        has_rows: Which of these are such.
        units: Mean and deviation of the tensor's values, where it counts in these.
        regions: (N, ...) of an output for each pixel, those that count.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        form: _Form,
        args: tuple[Any, ...],
        has_rows: tuple[bool, ...],
        units: tuple[Tensor, Tensor] | None = None,
        regions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model, self.form, self.args, self.has_rows = model, form, args, has_rows
        self.units, self.regions = units, regions
        self.training = False

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """(N, outputs), of (N, ...) and the numbers of the examples."""
        if self.units is not None:
            mean, unit = self.units
            x = x * unit + mean
        args = tuple(
            rows_of(arg, rows) if has and rows is not None else arg
            for arg, has in zip(self.args, self.has_rows, strict=True)
        )
        outputs: Tensor = self.form.run(self.model, x, rows, args)
        if self.regions is not None and rows is not None:
            region = rows_of(self.regions, rows).to(outputs.dtype).unsqueeze(1)
            dims = tuple(range(2, outputs.ndim))
            return (outputs * region).sum(dims) / region.sum(dims)
        return outputs.unsqueeze(1) if outputs.ndim == 1 else outputs


class _Form:
    """One input, whose channels may be elsewhere than in dimension 1."""

    def __init__(self, channel_dim: int = 1) -> None:
        self.channel_dim = channel_dim

    def pack(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """The one tensor, of what the model takes."""
        (x,) = inputs
        return x.movedim(self.channel_dim, 1) if self.channel_dim != 1 else x

    def run(self, model: Callable[..., Any], x: Tensor, rows: Tensor | None, args: tuple[Any, ...]) -> Any:
        """What the model returns, given the one tensor."""
        return model(x.movedim(1, self.channel_dim) if self.channel_dim != 1 else x, *args)


class _SeveralInputs(_Form):
    """Several inputs, joined: (N, all their values)."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.shapes = [tuple(x.shape[1:]) for x in inputs]

    def pack(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([x.flatten(1) for x in inputs], dim=1)

    def run(self, model: Callable[..., Any], x: Tensor, rows: Tensor | None, args: tuple[Any, ...]) -> Any:
        parts = x.split([math.prod(shape) for shape in self.shapes], dim=1)
        return model(*(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)), *args)


class _AtLayer(_Form):
    """What a layer returns, in place of what it would return; the model's own inputs are looked up."""

    def __init__(self, layer: nn.Module, inputs: tuple[Tensor, ...], channel_dim: int) -> None:
        super().__init__(channel_dim)
        self.layer, self.inputs = layer, inputs

    def run(self, model: Callable[..., Any], x: Tensor, rows: Tensor | None, args: tuple[Any, ...]) -> Any:
        value = x.movedim(1, self.channel_dim) if self.channel_dim != 1 else x
        handle = self.layer.register_forward_hook(lambda *_: value)
        try:
            return model(*(each if rows is None else rows_of(each, rows) for each in self.inputs), *args)
        finally:
            handle.remove()


def subject_of(
    model: Callable[..., Any],
    sample: Sample,
    device: torch.device,
    batch: int,
    *,
    layer: nn.Module | None = None,
    additional_forward_args: Any = None,
    channel_dim: int = 1,
    standardize: bool | None = None,
    target: Any = None,
    class_names: Sequence[str] | None = None,
) -> Subject:
    """Bring a model and examples into the form that measurements know.

    Args:
        model: The user's.
        sample: The examples.
        device: Where to put them.
        batch: Most examples that run at once.
        layer: As `audit`'s, as are all that follow.

    Raises:
        TypeError: A layer that is none; outputs that are no tensor; rows of arguments for data that have no order.
        ValueError: Arguments that do not fit each other or the model.
    """
    xs = tuple(x.to(device) for x in sample.tensors)
    xs = tuple(x.clone() if x.is_inference() else x for x in xs)
    args, has_rows = _arguments(additional_forward_args, sample, device)
    _check(xs, layer, channel_dim)
    shown, values = _run(model, xs, args, has_rows, batch, layer)
    form, kind = _form(xs, layer, values, channel_dim)
    z = form.pack(xs) if values is None else form.pack((values,))
    pool = None if sample.pool is None else form.pack(tuple(x.to(xs[0]) for x in sample.pool))
    units = _units(kind, xs if kind == "inputs" else (z,), pool, standardize)
    regions, classes = _regions(shown, target, class_names)
    needs_rows = layer is not None or any(has_rows) or regions is not None
    is_flat = shown.ndim == 1
    is_plain = type(form) is _Form and channel_dim == 1 and units is None and not args and not needs_rows
    function = model if is_plain and not is_flat else OneTensor(model, form, args, has_rows, units, regions)
    inputs = z if units is None else (z - units[0]) / units[1]
    rows = torch.arange(len(z), device=device) if needs_rows else None
    logits = shown.unsqueeze(1) if is_flat else shown
    if regions is not None or logits.ndim != 2:
        logits = logits_of(function, inputs, batch, rows)
    return Subject(
        model=function,
        inputs=inputs,
        rows=rows,
        logits=logits,
        pool=None if pool is None else pool if units is None else (pool - units[0]) / units[1],
        kind=kind,
        values=z,
        sizes=tuple(x[0].numel() for x in xs),
        ids=xs[0] if kind == "text" else None,
        is_flat=is_flat,
        regions=regions,
        target=classes,
        scales=None if units is None else _spread(units[1]),
    )


def deviation(inputs: Tensor) -> float:
    """Standard deviation of all values, and 1 where they do not differ."""
    return inputs.double().std().item() or 1.0 if inputs.numel() > 1 else 1.0


def logits_of(model: Callable[..., Any], inputs: Tensor, batch: int, rows: Tensor | None = None) -> Tensor:
    """(N, outputs) the model's outputs, detached.

    Args:
        model: The model.
        inputs: (N, ...).
        batch: Most examples that run at once.
        rows: Their numbers, where the model takes them.

    Raises:
        TypeError: It returns no tensor.
        ValueError: It fails on the inputs, returns another shape, or NaN or infinity.
    """
    args = () if rows is None else (rows,)
    logits, _ = _run(model, (inputs,), args, (True,) * len(args), batch, None)
    if logits.ndim != 2:
        raise _wrong_shape(logits)
    return logits


def _arguments(given: Any, sample: Sample, device: torch.device) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Additional arguments of the audited examples, and which of them hold a row for each."""
    args = given if isinstance(given, tuple) else () if given is None else (given,)
    n, total = len(sample.tensors[0]), sample.total
    has_rows = tuple(isinstance(arg, Tensor) and arg.ndim > 0 and len(arg) == (total or n) for arg in args)
    if any(has_rows) and total is None:
        raise TypeError(
            "additional_forward_args with a row for each example go with data that are tensors, whose rows have an "
            "order; read the data set into tensors first"
        )
    places = None if sample.places is None else sample.places.to(device)
    picked = [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]
    return (
        tuple(arg[places] if has and places is not None else arg for arg, has in zip(picked, has_rows, strict=True)),
        has_rows,
    )


def _check(xs: tuple[Tensor, ...], layer: Any, channel_dim: Any) -> None:
    if layer is not None and not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a module of the model, such as model.embeddings, but is {describe(layer)}")
    if type(channel_dim) is not int or channel_dim in (0, -xs[0].ndim) or not -xs[0].ndim <= channel_dim < xs[0].ndim:
        raise ValueError(
            f"channel_dim must be a dimension of inputs of shape {tuple(xs[0].shape)} after the first, but is "
            f"{channel_dim!r}; of (N, length, channels) give -1"
        )
    if channel_dim not in (1, 1 - xs[0].ndim) and (len(xs) > 1 or layer is not None):
        raise ValueError("channel_dim is for one input that is explained itself; leave it out")


def _form(
    xs: tuple[Tensor, ...], layer: nn.Module | None, values: Tensor | None, channel_dim: int
) -> tuple[_Form, str]:
    """How inputs become one tensor, and their kind."""
    if layer is not None and values is not None:
        is_text = values.ndim == 3 and not xs[0].is_floating_point() and xs[0].shape == values.shape[:2]
        return _AtLayer(layer, xs, -1 if is_text else 1), "text" if is_text else "layer"
    if len(xs) > 1:
        return _SeveralInputs(xs), "inputs"
    dims = {2: "table", 3: "signal", 4: "image"}
    return _Form(channel_dim if channel_dim != 1 - xs[0].ndim else 1), dims.get(xs[0].ndim, "volume")


def _units(
    kind: str, inputs: tuple[Tensor, ...], pool: Tensor | None, standardize: bool | None
) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each feature, where features are of scales so unlike that one deviation fits none."""
    if kind not in ("table", "signal", "inputs"):
        if standardize:
            raise ValueError("standardize is for the features of tables and the channels of signals; leave it out")
        return None
    if standardize is False:
        return None
    parts = inputs if kind == "inputs" or pool is None else (pool,)
    means, units = zip(*map(_moments, parts), strict=True)
    mean, unit = (
        torch.cat([each.flatten(1) for each in both], 1) if len(parts) > 1 else both[0] for both in (means, units)
    )
    whole = torch.cat([x.flatten(1) for x in parts], dim=1) if len(parts) > 1 else parts[0]
    if not standardize and not _are_unlike(unit, whole):
        return None
    # What is the same in all examples is counted in its own size.
    size = torch.where(mean == 0, 1, mean.abs())
    return mean, torch.where(unit > 0, unit, size)


def _are_unlike(units: Tensor, whole: Tensor) -> bool:
    own = units[units > 0]
    return bool(len(own)) and deviation(whole) >= _UNLIKE * own.min().item()


def of_unlike_scales(x: Tensor, kind: str) -> bool:
    """Whether features, or channels of signals, are of scales so unlike that one deviation fits none."""
    return kind in ("table", "signal", "inputs") and _are_unlike(_moments(x)[1], x)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column of a table, each channel of a signal, and all of another input, in the shape of an example."""
    dims = {2: (0,), 3: (0, 2)}.get(x.ndim, tuple(range(x.ndim)))
    wide = x.double()
    mean, unit = wide.mean(dims, keepdim=True), wide.std(dims, keepdim=True, unbiased=False)
    # Rounding of a mean is no deviation.
    unit = unit.masked_fill(unit <= 8 * torch.finfo(x.dtype).eps * mean.abs(), 0)
    shape = x.shape if x.ndim != 3 else (len(x), x.shape[1], 1)
    return mean.to(x.dtype).expand(1, *shape[1:]), unit.to(x.dtype).expand(1, *shape[1:])


def _spread(units: Tensor) -> float:
    return float(units.max() / units.min())


def _regions(outputs: Tensor, target: Any, class_names: Sequence[str] | None) -> tuple[Tensor | None, Tensor | None]:
    """Where the explained class is predicted, and which class that is: the one of the most pixels, no background."""
    if outputs.is_floating_point() or outputs.ndim < 2:
        return None, None
    n = len(outputs)
    counts = torch.stack([row.flatten().bincount(minlength=int(outputs.max()) + 1) for row in outputs])
    if isinstance(target, str) or target is None:
        if class_names and class_names[0].lower() in _BACKGROUND:
            counts[:, 0] = counts[:, 0].clamp(max=1) * (counts[:, 1:].sum(1) == 0)
        classes = counts.argmax(dim=1)
    else:
        classes = torch.as_tensor(target, device=outputs.device).long().expand(n)
    regions = outputs == classes.view(-1, *[1] * (outputs.ndim - 1))
    empty = (~regions.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"class {int(classes[empty[0]])} is predicted nowhere in example {empty[0]}, so that there is no region to "
            "explain; give target='predicted', or examples that show it"
        )
    return regions, classes


def _run(
    model: Callable[..., Any],
    xs: tuple[Tensor, ...],
    args: tuple[Any, ...],
    has_rows: tuple[bool, ...],
    batch: int,
    layer: nn.Module | None,
) -> tuple[Tensor, Tensor | None]:
    """What the model returns, (N, outputs) or (N,), of an output for each pixel the class; and what a layer does.

    Raises:
        TypeError: It returns no tensor.
        ValueError: It fails, returns another shape, or NaN or infinity; a layer that does not run once.
    """
    outputs, values = [], []
    for start in range(0, len(xs[0]), batch):
        at = slice(start, start + batch)
        part = tuple(x[at] for x in xs)
        n = len(part[0])
        with torch.no_grad(), _seen(layer) as seen:
            try:
                returned = model(*part, *(arg[at] if has else arg for arg, has in zip(args, has_rows, strict=True)))
            except Exception as error:  # whatever a user's model does
                raise ValueError(
                    f"the model fails on inputs of shape {', '.join(str(tuple(x.shape)) for x in part)}: "
                    f"{one_line(error)}; if it is made for other inputs, give the data a transform"
                ) from error
        outputs.append(_checked(returned, n))
        if layer is not None:
            values.append(_layer_value(layer, seen, n))
    return torch.cat(outputs), torch.cat(values) if values else None


def _checked(outputs: Any, n: int) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model must return a tensor of logits, but returns {describe(outputs)}; {how_to_pick(outputs)}, "
            "or a module that does"
        )
    if outputs.ndim == 0 or len(outputs) != n or not outputs.is_floating_point() or outputs.ndim == 3:
        raise _wrong_shape(outputs, n)
    if not outputs.isfinite().all():
        raise ValueError(f"the model returns {int((~outputs.isfinite()).sum())} NaN or infinite logits")
    return outputs.detach() if outputs.ndim < 3 else outputs.argmax(dim=1)


def _wrong_shape(outputs: Tensor, n: int | None = None) -> ValueError:
    n = len(outputs) if n is None else n
    pick = (
        "; of an output for each token give that of one, as in lambda x: model(x)[:, -1]" if outputs.ndim == 3 else ""
    )
    return ValueError(
        f"the model must return logits of shape (N, classes), numbers (N,), or (N, classes, H, W) of segmentation, but "
        f"gives {outputs.dtype} of shape {tuple(outputs.shape)} for {n} examples{pick}"
    )


@contextmanager
def _seen(layer: nn.Module | None) -> Iterator[list[Any]]:
    """What a layer returns within, in the order of its runs."""
    seen: list[Any] = []
    if layer is None:
        yield seen
        return
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _layer_value(layer: nn.Module, seen: list[Any], n: int) -> Tensor:
    name = type(layer).__name__
    if len(seen) != 1:
        raise ValueError(
            f"layer ({name}) must run once in the model, but runs {len(seen)} times; give a module of the model, such "
            "as model.embeddings"
        )
    (value,) = seen
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or len(value) != n:
        shape = tuple(value.shape) if isinstance(value, Tensor) else describe(value)
        raise ValueError(
            f"layer ({name}) must return one floating-point tensor ({n}, ...) for {n} examples, but returns {shape}; "
            "give another, such as model.embeddings"
        )
    return value.detach()
