"""One checked sweep over a model: run it, and hand out the terms whose sum is f(x), with the batch first.

The batch is not always dimension 0 (`nn.MultiheadAttention` works on (L, N, E), windowed attention folds windows into
the batch). Where it stands is read from the shape, and the identity itself is the guard: where the terms of an example
do not sum to its output, the sweep is done again one example at a time, where nothing can be mixed up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from captum_density._linear.places import Place
from captum_density._linear.trace import AffineTrace, IncompleteError, OpaqueOperationError, Operation
from captum_density._model.captum import TargetType, format_additional_forward_args, run_forward
from captum_density._model.modules import unwrap
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import selected_output, validate_inputs

__all__ = ["IncompleteError", "Sweep", "Term", "per_example", "sweep"]

# Largest |sum of terms - f| over the sum of the terms' absolute values that rounding explains.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Term:
    """One operation's bias-gradient df/dy * r, before the product is taken; examples first.

    Attributes:
        name: The operation.
        gradient: (N, ...) df/dy.
        remainder: r, broadcastable to the gradient.
        place: Where the elements of one example sit, cells broadcastable to `gradient[0]`; None if nowhere.
    """

    name: str
    gradient: Tensor
    remainder: Tensor
    place: Place | None

    @property
    def values(self) -> Tensor:
        """(N, ...) df/dy * r; gradient and remainder are in float32 or float64."""
        return self.gradient * self.remainder


class Consumer(Protocol):
    """What a sweep is done for. Gets every term, last operation first."""

    def add(self, term: Term) -> Tensor:
        """Take one term; returns its sum per example, (N,)."""


C = TypeVar("C", bound=Consumer)


@dataclass
class Sweep:
    """The result of a sweep over a batch.

    Attributes:
        output: (N,) f(x).
        inputs: The inputs the gradients were taken at.
        gradients: df/dx for each input.
        total: (N,) sum of all terms, float64.
        scale: (N,) sum over operations and inputs of |sum of the term|, float64: below the sum of absolute values.
        precision: The least precise dtype that an operation computed in, which bounds how well the sum can be met.
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    total: Tensor
    scale: Tensor
    precision: torch.dtype

    def gap(self) -> Tensor:
        """(N,) |sum of terms - f| over `scale`, or over |f| where that is larger."""
        scale = torch.maximum(self.scale, self.output.double().abs())
        return (self.total - self.output.double()).abs() / scale.clamp(min=torch.finfo(torch.float64).tiny)


def sweep(
    model: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object,
    make_consumer: Callable[[], C],
    create_graph: bool = False,
) -> list[tuple[Sweep, C]]:
    """Sweep over a batch; one part holding all examples, or a part for each where they had to be told apart.

    Args:
        model: Module or function; returns a tensor with the examples first.
        inputs: The inputs, floating-point, (N, ...) each.
        target: As Captum's, picks one scalar per example.
        additional_forward_args: Passed on after the inputs.
        make_consumer: Makes what takes the terms of one part.
        create_graph: Whether gradients and terms carry a graph.

    Raises:
        IncompleteError: If the terms of an example do not sum to its output.
    """
    model = unwrap(model)
    validate_inputs(model, inputs)
    args = format_additional_forward_args(additional_forward_args)
    whole, consumer = _attempt(model, inputs, target, args, make_consumer, create_graph)
    if whole is not None and _is_complete(whole, model, target, args):
        return [(whole, consumer)]
    n = inputs[0].shape[0]
    if n == 1:
        raise _diagnose(model, inputs, target, args, whole)
    output = whole.output if whole is not None else _forward(model, inputs, target, args)
    parts = []
    for i in range(n):
        x, t, a = _example(inputs, i, n), _target_of(target, i, n), _example(args, i, n)
        try:
            one, consumer = _attempt(model, x, t, a, make_consumer, create_graph)
        except Exception as error:
            raise IncompleteError(
                f"the shapes inside the model do not tell its {n} examples apart, and it does not accept example {i} "
                f"alone ({type(error).__name__}: {error}); hand what belongs to each example, such as masks or "
                "lengths, through additional_forward_args, and pass examples one at a time if they depend on each other"
            ) from error
        if one is None or not _is_complete(one, model, t, a):
            raise _diagnose(model, x, t, a, one)
        alone, together = float(one.output), float(output[i])
        if abs(alone - together) > _TOLERANCE[one.precision] * max(abs(together), float(one.scale)):
            raise IncompleteError(
                f"the output of example {i} is {together:.6g} in this batch and {alone:.6g} alone: the model mixes "
                "examples (or draws at random), so they have no full gradients of their own; pass them one at a time"
            )
        parts.append((one, consumer))
    return parts


def _attempt(
    model: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    args: Any,
    make_consumer: Callable[[], C],
    create_graph: bool,
    sizes: bool = False,
) -> tuple[Sweep | None, C]:
    """One sweep as it is; no result where an operation's shape does not tell its examples apart."""
    try:
        return _run(AffineTrace(create_graph, sizes=sizes), model, inputs, target, args, make_consumer())
    except OpaqueOperationError:
        return _run(AffineTrace(create_graph, keep=True, sizes=sizes), model, inputs, target, args, make_consumer())


def _run(
    trace: AffineTrace,
    model: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    args: Any,
    consumer: C,
) -> tuple[Sweep | None, C]:
    n = inputs[0].shape[0]
    create_graph = trace.create_graph
    with torch.inference_mode(False), torch.enable_grad():
        leaves = tuple(_leaf(x, create_graph) for x in inputs)
        tracked = trace.track(leaves)
        with trace:
            output = run_forward(model, tracked, None, args)
        selected = selected_output(output, target, n)
        if not trace.depends_on_inputs(output):
            raise ValueError("the model's output is not connected to its inputs by differentiable operations")
        dtype = accumulation_dtype(*inputs)
        sums: list[Tensor] = []
        unclear: list[str] = []
        dtypes = {selected.dtype, *(x.dtype for x in inputs)}

        def consume(operation: Operation, gradient: Tensor) -> None:
            assert operation.remainder is not None
            dtypes.add(gradient.dtype)
            place = None if operation.place is None else operation.place.final()
            layout = _examples_first(gradient.shape, n, place)
            if layout is None:
                unclear.append(operation.name)
                return
            gradient, remainder = layout(gradient), layout(operation.remainder)
            if place is not None:
                place = place.with_cells(layout(place.cells)[0])
            if gradient.is_complex():  # <df/dy, r> of complex y is that of its real and imaginary parts
                gradient, remainder = (
                    torch.view_as_real(gradient.resolve_conj()),
                    torch.view_as_real(remainder.resolve_conj()),
                )
                place = None if place is None else place.with_cells(place.cells.unsqueeze(-1))
            sums.append(consumer.add(Term(operation.name, gradient.to(dtype), remainder.to(dtype), place)))

        gradients = trace.backward(selected, consume)
        sums += [per_example(g.to(dtype) * x.to(dtype)) for x, g in zip(leaves, gradients, strict=True)]
    if unclear:
        return None, consumer
    if not create_graph:
        selected = selected.detach()
    table = torch.stack([s.detach().double() for s in sums])
    precision = max(dtypes & _TOLERANCE.keys(), key=_TOLERANCE.__getitem__)
    at = leaves if create_graph else tuple(x.detach() for x in leaves)
    return Sweep(selected, at, gradients, table.sum(0), table.abs().sum(0), precision), consumer


def _leaf(x: Tensor, create_graph: bool) -> Tensor:
    """The tensor to differentiate by: the user's own is neither marked nor changed."""
    x = x.as_subclass(Tensor)
    if create_graph and x.requires_grad:
        return x.view_as(x)
    return x.detach().clone().requires_grad_()


def _forward(model: Callable[..., Any], inputs: tuple[Tensor, ...], target: TargetType, args: Any) -> Tensor:
    with torch.no_grad():
        return selected_output(run_forward(model, inputs, None, args), target, inputs[0].shape[0])


def _examples_first(shape: torch.Size, n: int, place: Place | None) -> Callable[[Tensor], Tensor] | None:
    """What brings a tensor of this shape (or cells that broadcast to it) into the form (N, ...)."""
    second = len(shape) > 1 and shape[1] == n
    if second and place is not None and place.cells.size(0) > 1 and place.cells.size(1) == 1:
        return lambda t: t.transpose(0, 1)  # positions run along the first dimension, so examples do not
    if shape and shape[0] == n:
        return lambda t: t
    if second:
        return lambda t: t.transpose(0, 1)
    if n == 1:
        return lambda t: t.unsqueeze(0)
    if shape and shape[0] % n == 0 and shape[0] > 0:
        return lambda t: t.reshape(n if t.shape[0] > 1 else 1, -1, *t.shape[1:])
    return None


def per_example(values: Tensor) -> Tensor:
    """Sums over all dimensions but the first, (N,)."""
    return values.reshape(len(values), -1).sum(1)


def _is_complete(result: Sweep, model: Callable[..., Any], target: TargetType, args: Any) -> bool:
    """Whether every example's terms sum to its output, up to what rounding explains of them."""
    tolerance = _TOLERANCE[result.precision]
    if bool((result.gap() <= tolerance).all()):
        return True
    # Large elements may cancel within a term: then their absolute values are the scale, and have to be summed for it.
    error = (result.total - result.output.double()).abs()
    at = tuple(x.detach() for x in result.inputs)
    remeasured, magnitude = _attempt(model, at, target, args, _Magnitude, False)
    if remeasured is None:
        return False
    inputs = zip(remeasured.gradients, remeasured.inputs, strict=True)
    scale = magnitude.total + sum(per_example((g.double() * x.double()).abs()) for g, x in inputs)
    if bool((error <= tolerance * scale).all()):
        return True
    # They may also cancel between operations, as in log p of a sure prediction: a difference of large logits, all of
    # whose terms are as small as itself. Then the numbers that the largest operation works with are the scale, of
    # which rounding explains less; or numbers so small that there is no precision left.
    remeasured, magnitude = _attempt(model, at, target, args, _Magnitude, False, sizes=True)
    precision = torch.finfo(result.precision)
    tolerance = min(0.1 * tolerance, 16 * precision.eps)
    return remeasured is not None and bool((error <= tolerance * magnitude.largest + precision.tiny).all())


class _Magnitude:
    """Sums of absolute values per example: of all terms, and of the largest."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.largest = torch.zeros(())

    def add(self, term: Term) -> Tensor:
        values = term.values
        size = per_example(values.abs()).double()
        self.total, self.largest = self.total + size, torch.maximum(self.largest.to(size), size)
        return per_example(values)


def _example(values: Any, i: int, n: int) -> Any:
    """Example i of every tensor that has n of them, as Captum reads additional arguments."""
    if values is None:
        return None
    return tuple(v[i : i + 1] if isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == n else v for v in values)


def _target_of(target: TargetType, i: int, n: int) -> TargetType:
    one_each = isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)
    return target[i : i + 1] if one_each else target


def _diagnose(
    model: Callable[..., Any], inputs: tuple[Tensor, ...], target: TargetType, args: Any, result: Sweep | None
) -> IncompleteError:
    """Find the operation whose own identity fails, by a second, slow sweep that checks each against autograd."""
    trace = AffineTrace(keep=True, check=True)
    _run(trace, model, inputs, target, args, _Magnitude())
    gap = "" if result is None else f" (relative gap {float(result.gap().max()):.2g})"
    if trace.culprit is not None:
        return IncompleteError(
            f"{trace.culprit} differs from what its own gradient says{gap}; is it random, or stateful?"
        )
    return IncompleteError(
        f"the terms do not sum to the output{gap}, though each operation is consistent; do hooks change gradients, or "
        "does the output depend on the inputs in ways that autograd does not see?"
    )
