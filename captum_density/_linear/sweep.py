"""One checked sweep over a model: run it, and reduce the terms whose sum is f(x), with the batch first.

The batch is not always dimension 0 (`nn.MultiheadAttention` works on (L, N, E) and flattens it, windowed attention
folds windows into the batch). Which example an element belongs to is followed as its other places are, and read from
the shape where it cannot be. The identity itself is the guard: where the terms of an example do not sum to its output,
the sweep is done again one example at a time, where nothing can be mixed up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from captum_density._linear.diagnosis import CulpritTrace, FiniteTrace, RoundingTrace
from captum_density._linear.places import NOWHERE, Spread
from captum_density._linear.trace import OpaqueOperationError, Operation, PromptTrace, Trace
from captum_density._model.batch import ModelOnBatch
from captum_density._model.calls import OverwrittenError
from captum_density._model.captum import TargetType
from captum_density._model.evaluation import differentiable_twice, full_precision, grad_mode
from captum_density._model.modules import unwrap
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import class_span, examples_first, refuse_out_of_range, selected_or_nan

__all__ = ["IncompleteError", "Reduction", "Sweep", "Term", "per_example", "sweep", "sweep_each"]

# Largest |sum of terms - f| over the sum of the terms' absolute values that rounding explains.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

_SMALL, _TOGETHER = 2**13, 2**16  # elements of a term that waits for others, and of those that wait


class IncompleteError(RuntimeError):
    """The terms of an example do not sum to its output."""


@dataclass(frozen=True)
class Term:
    """One operation's bias-gradient df/dy * r, before the product is taken; examples first.

    Attributes:
        name: The operation.
        gradient: (N, ...) df/dy.
        remainder: r, broadcastable to the gradient.
        spread: How the elements lie on the inputs.
        lost: The operation at which some of them lost their place; None if none has, "" if flat features lost it to a
            dense layer.
        count: How many operations it is of, whose examples stand one after another: (count * N, ...).
        constant: What of r is a constant that the operation adds: all of it, nothing, or this, broadcastable to the
            gradient. Known of a term that is of one operation.
    """

    name: str
    gradient: Tensor
    remainder: Tensor
    spread: Spread
    lost: str | None
    count: int = 1
    constant: bool | Tensor = False

    @property
    def values(self) -> Tensor:
        """(N, ...) df/dy * r; gradient and remainder are in float32 or float64."""
        return self.gradient * self.remainder

    def summed(self, values: Tensor) -> Tensor:
        """(count * N, ...) summed over operations, (N, ...)."""
        return values if self.count == 1 else values.unflatten(0, (self.count, -1)).sum(0)


R = TypeVar("R")
T = TypeVar("T", bound=Trace)


class Reduction(Protocol[R]):
    """What a sweep makes of the terms of f(x), each reduced inside the backward pass so that none has to be kept.

    Attributes:
        together: Whether it takes small terms that lie alike as one.
    """

    together: bool

    def add(self, term: Term) -> Tensor:
        """Take a term, last operation first; returns its sums per example, (count * N,)."""

    def result(self, products: list[Tensor], positions: Sequence[Sequence[int]]) -> R:
        """What has come of the terms, once all are there.

        Args:
            products: The input terms df/dx * x, each of its input's shape (N, ...), and those of what is beside.
            positions: For each input, which of its dimensions are positions; the others but the first are channels.
        """

    def join(self, results: list[R]) -> R:
        """The results for examples that had to be run one by one, as one for their batch."""


@dataclass(frozen=True)
class Sweep(Generic[R]):
    """What a sweep over a batch found.

    Attributes:
        output: (N,) f(x).
        result: What its reduction made of the terms.
    """

    output: Tensor
    result: R


def sweep(
    model: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: object,
    reduction: Callable[[], Reduction[R]],
    create_graph: bool = False,
    layout: Sequence[Sequence[int] | None] | None = None,
    unchecked: list[Tensor] | None = None,
    beside: tuple[Tensor, ...] = (),
) -> Sweep[R]:
    """Sweep over a batch.

    Args:
        model: Module or function; returns a tensor with the examples first.
        inputs: The inputs, floating-point, (N, ...) each.
        target: As Captum's, picks one scalar per example.
        additional_forward_args: Passed on after the inputs.
        reduction: Makes what takes the terms: one for the batch, or one for each example where they had to be told
            apart.
        create_graph: Whether gradients and terms carry a graph.
        layout: For each input the dimensions that are positions, None where the model shows them.
        unchecked: Takes whether the sum is met, a bool on the inputs' device, for a caller that makes several sweeps
            and waits for the device once; where it is not, all have to be done again without.
        beside: Further inputs, which the model takes after those: terms have no place on them, and what is made of them
            alone has only them for `Spread.sources`.

    Raises:
        IncompleteError: If the terms of an example do not sum to its output.
    """
    batch = _Batch(unwrap(model), _joined(inputs, beside), target, additional_forward_args)
    batch.beside = len(beside)
    (result,) = _sweep(batch, reduction, create_graph, layout, unchecked)
    return result


def sweep_each(
    model: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: object,
    reduction: Callable[[], Reduction[R]],
    layout: Sequence[Sequence[int] | None] | None = None,
) -> list[Sweep[R]]:
    """A sweep for each of several outputs, of which the model is run once.

    Args:
        model: As `sweep`; returns a tensor (N, K) of K outputs.
        inputs: As `sweep`.
        additional_forward_args: As `sweep`.
        reduction: As `sweep`; makes one for each output.
        layout: As `sweep`.

    Returns:
        K sweeps, in order.

    Raises:
        IncompleteError: As `sweep`, of any output.
    """
    batch = _Batch(unwrap(model), inputs, None, additional_forward_args)
    batch.takes_all = True
    return _sweep(batch, reduction, False, layout)


def _sweep(
    batch: _Batch,
    reduction: Callable[[], Reduction[R]],
    create_graph: bool,
    layout: Sequence[Sequence[int] | None] | None,
    unchecked: list[Tensor] | None = None,
) -> list[Sweep[R]]:
    """A sweep for each of the batch's outputs."""
    whole = _terms(batch, reduction, create_graph, layout)
    if whole is not None and unchecked is not None:
        unchecked += [(terms.gap() <= _TOLERANCE[terms.precision]).all() for terms in whole]
        return [Sweep(terms.output, terms.result()) for terms in whole]
    if whole is not None and _is_complete(whole, batch):
        return [Sweep(terms.output, terms.result()) for terms in whole]
    if batch.n == 1:
        raise _diagnosis(batch, whole)
    with torch.no_grad():
        batch.check_values()
        outputs = batch.outputs() if whole is None else [terms.output for terms in whole]
    together = torch.stack([output.detach() for output in outputs]).T.tolist()
    parts = [_alone(batch, i, together[i], reduction, create_graph, layout) for i in range(batch.n)]
    return [
        Sweep(torch.cat([part.output for part in own]), reduction().join([part.result() for part in own]))
        for own in zip(*parts, strict=True)
    ]


def _joined(inputs: Any, beside: tuple[Tensor, ...]) -> Any:
    """All inputs, in the form that is refused where it has to be."""
    return (*inputs, *beside) if beside and isinstance(inputs, tuple) else inputs


class _Batch(ModelOnBatch):
    """A model and examples to trace it on.

    Inputs that are not finite, and classes that there are not, show in the sum.

    Attributes:
        takes_all: Whether all K outputs of each example, (N, K), are explained, one after the other, not the target.
        beside: How many of the inputs, the last ones, terms have no place on.
    """

    takes_all = False
    beside = 0
    _checks_late = True
    _shape = torch.Size()

    def outputs(self) -> list[Tensor]:
        """What is explained, (N,) each."""
        return [*examples_first(self.run(), self.n).unbind(1)] if self.takes_all else [self.selected()]

    def check_values(self) -> None:
        """As there, and classes that there are not.

        Raises:
            ValueError: As there.
            RuntimeError: As `selected_output`.
        """
        super().check_values()
        refuse_out_of_range(self._shape, class_span(self.target))

    def traced(
        self, kind: type[T], create_graph: bool, layout: Sequence[Sequence[int] | None] | None = None
    ) -> tuple[T, tuple[Tensor, ...], Tensor]:
        """A trace of the model, the inputs as leaves, and f(x) (N,), or (N, K), computed from them."""
        try:
            return self._traced_by(kind(create_graph), layout)
        except OpaqueOperationError:
            return self._traced_by(kind(create_graph, keep_activations=True), layout)

    def _traced_by(
        self, trace: T, layout: Sequence[Sequence[int] | None] | None
    ) -> tuple[T, tuple[Tensor, ...], Tensor]:
        leaves = tuple(_leaf(x, trace.create_graph) for x in self.inputs)
        placed = len(leaves) - self.beside
        tracked = trace.track(leaves[:placed], layout, leaves[placed:])
        with trace, differentiable_twice(self.forward_func) if trace.create_graph else nullcontext():
            output = self.run(tracked)
        self._shape = getattr(output, "shape", self._shape)
        selected = examples_first(output, self.n) if self.takes_all else selected_or_nan(output, self.target, self.n)
        if not trace.depends_on_inputs(output):
            raise ValueError(
                "the model's output is not connected to its inputs by differentiable operations; a quantised model has "
                "no gradient: explain it as it was before it was quantised"
            )
        return trace, leaves, selected


def _leaf(x: Tensor, create_graph: bool) -> Tensor:
    """The tensor to differentiate by: the user's own is neither marked nor changed."""
    x = x.as_subclass(Tensor)
    if create_graph and x.requires_grad:
        return x.view_as(x)
    return x.detach().clone().requires_grad_()


@dataclass(frozen=True)
class _Terms(Generic[R]):
    """One pass over a batch, as it is, and what its terms sum to.

    Attributes:
        output: (N,) f(x).
        products: The input terms.
        reduction: What took the bias terms.
        total: (N,) sum of all terms, float64.
        scale: (N,) sum over operations and inputs of |sum of the term|, float64: below the sum of absolute values.
        precision: The least precise dtype that an operation computed in, which bounds how well the sum can be met.
        positions: For each input, the dimensions that are positions.
    """

    output: Tensor
    products: list[Tensor]
    reduction: Reduction[R]
    total: Tensor
    scale: Tensor
    precision: torch.dtype
    positions: Sequence[Sequence[int]]

    def result(self) -> R:
        with full_precision(self.total.device):
            return self.reduction.result(self.products, self.positions)

    def gap(self) -> Tensor:
        """(N,) |sum of terms - f| over `scale`, or over |f| where that is larger."""
        scale = torch.maximum(self.scale, self.output.double().abs())
        return (self.total - self.output.double()).abs() / scale.clamp(min=torch.finfo(torch.float64).tiny)


def _terms(
    batch: _Batch,
    reduction: Callable[[], Reduction[R]],
    create_graph: bool,
    layout: Sequence[Sequence[int] | None] | None = None,
    kind: type[Trace] = Trace,
) -> list[_Terms[R]] | None:
    """One pass for each output; nothing where nothing tells the examples of an operation apart."""
    with torch.inference_mode(False), torch.enable_grad():
        trace, leaves, output = batch.traced(kind, create_graph, layout)
        outputs = [*output.unbind(1)] if batch.takes_all else [output]
        result = []
        try:
            for k, one in enumerate(outputs, start=1):
                terms = _pass(batch, trace, leaves, one, reduction(), keep=k < len(outputs))
                if terms is None:
                    return None
                result.append(terms)
        except OverwrittenError:
            return _terms(batch, reduction, create_graph, layout, PromptTrace)
    return result


def _pass(
    batch: _Batch, trace: Trace, leaves: tuple[Tensor, ...], output: Tensor, reduction: Reduction[R], keep: bool
) -> _Terms[R] | None:
    """The backward pass of one output (N,), after which others follow if the trace is to be kept."""
    create_graph, dtype = trace.create_graph, accumulation_dtype(*batch.inputs)
    terms, unclear = _Gathering(reduction, not create_graph), False
    positions = trace.positions.of_all()
    dtypes = {output.dtype, *(x.dtype for x in leaves)}

    def take(operation: Operation, gradient: Tensor) -> None:
        nonlocal unclear
        dtypes.add(gradient.dtype)
        parts = _examples_first(operation, gradient, batch.n, dtype, positions)
        if parts is None:
            unclear = True
        else:
            constant = operation.constant
            if isinstance(constant, Tensor):
                constant = parts[2].arrange(constant).to(dtype)
            terms.add(Term(operation.name, *parts, operation.lost, constant=constant))

    gradients = trace.backward(output, take, keep)
    if unclear:
        return None
    at = leaves if create_graph else tuple(x.detach() for x in leaves)
    products = [g.to(dtype) * x.to(dtype) for g, x in zip(gradients, at, strict=True)]
    with grad_mode(create_graph):  # as in the backward pass
        of_biases = terms.sums()
    sums = [*of_biases, *(per_example(product) for product in products)]
    dtypes |= trace.dtypes
    # A model may lie on several devices.
    table = torch.cat([s.detach().to(batch.device) for s in sums]).double().view(-1, batch.n)
    precision = max(dtypes & _TOLERANCE.keys(), key=_TOLERANCE.__getitem__)
    output = (output if create_graph else output.detach()).to(batch.device)
    return _Terms(output, products, terms.reduction, table.sum(0), table.abs().sum(0), precision, positions)


class _Gathering(Generic[R]):
    """Hands terms to a reduction: small ones that lie alike together, as what a call costs outweighs them.

    Args:
        reduction: The reduction.
        together: Whether they may wait for each other.
    """

    def __init__(self, reduction: Reduction[R], together: bool) -> None:
        self.reduction = reduction
        self._together = together and reduction.together
        self._sums: list[Tensor] = []
        self._waiting: dict[Hashable, list[Term]] = {}

    def add(self, term: Term) -> None:
        """Take a term, now or later."""
        gradient = term.gradient
        if not self._together or gradient.numel() > _SMALL or not term.spread.is_uniform:
            self._reduce(term)
            return
        key = term.spread, term.lost, gradient.shape
        alike = self._waiting.setdefault(key, [])
        alike.append(term)
        if len(alike) * gradient.numel() > _TOGETHER:
            self._hand_over(self._waiting.pop(key))

    def _hand_over(self, terms: list[Term]) -> None:
        first = terms[0]
        if len(terms) > 1:
            gradient = torch.cat([term.gradient for term in terms])
            remainder = torch.cat([term.remainder.expand_as(first.gradient) for term in terms])
            first = Term(first.name, gradient, remainder, first.spread, first.lost, len(terms))
        self._reduce(first)

    def _reduce(self, term: Term) -> None:
        if not torch.is_autocast_enabled(term.gradient.device.type):
            self._sums.append(self.reduction.add(term))
            return
        with full_precision(term.gradient.device):  # autocast would round the sums
            self._sums.append(self.reduction.add(term))

    def sums(self) -> list[Tensor]:
        """(count * N,) of every term."""
        for terms in self._waiting.values():
            self._hand_over(terms)
        self._waiting.clear()
        return self._sums


def _examples_first(
    operation: Operation, gradient: Tensor, n: int, dtype: torch.dtype, positions: tuple[tuple[int, ...], ...]
) -> tuple[Tensor, Tensor, Spread] | None:
    """df/dy, the factor and how both lie on the inputs, examples first; None if nothing tells the examples apart."""
    factor, place = operation.factor, operation.place
    assert factor is not None
    factor = factor if isinstance(factor, Tensor) else factor()
    spread = (NOWHERE if place is None else place).spread(gradient.shape, n, positions)
    if spread is None:
        return None
    gradient, factor = spread.arrange(gradient), spread.arrange(factor)
    if gradient.is_complex():  # <df/dy, r> of complex y is that of its real and imaginary parts
        gradient, factor = (torch.view_as_real(t.resolve_conj()) for t in (gradient, factor))
        spread = spread.with_pairs()
    # A call that changes nothing costs as much as small terms do.
    gradient = gradient if gradient.dtype == dtype else gradient.to(dtype)
    return gradient, factor if factor.dtype == dtype else factor.to(dtype), spread


def _alone(
    batch: _Batch,
    i: int,
    together: Sequence[float],
    reduction: Callable[[], Reduction[R]],
    create_graph: bool,
    layout: Sequence[Sequence[int] | None] | None,
) -> list[_Terms[R]]:
    """The passes over example i by itself, whose outputs in the batch are known.

    Raises:
        IncompleteError: It cannot be run alone, is not complete, or gives another output.
    """
    one = batch.at(slice(i, i + 1))
    try:
        terms = _terms(one, reduction, create_graph, layout)
    except Exception as error:
        raise IncompleteError(
            f"the shapes inside the model do not tell its {batch.n} examples apart, and it does not accept example "
            f"{i} alone ({type(error).__name__}: {error}); hand what belongs to each example, such as masks or "
            "lengths, through additional_forward_args, and pass examples one at a time if they depend on each other"
        ) from error
    if terms is None or not _is_complete(terms, one):
        raise _diagnosis(one, terms)
    for own, before in zip(terms, together, strict=True):
        alone = float(own.output)
        if abs(alone - before) > _TOLERANCE[own.precision] * max(abs(before), float(own.scale)):
            raise IncompleteError(
                f"the output of example {i} is {before:.6g} in this batch and {alone:.6g} alone: the model mixes "
                "examples (or draws at random), so they have no full gradients of their own; pass them one at a time"
            )
    return terms


def per_example(values: Tensor) -> Tensor:
    """Sums over all dimensions but the first, (N,)."""
    return values.reshape(len(values), -1).sum(1)


# -- the guard


def _is_complete(passes: Sequence[_Terms[Any]], batch: _Batch) -> bool:
    """Whether every example's terms sum to its output, up to what rounding explains of them, in every pass."""
    tolerance = max(_TOLERANCE[terms.precision] for terms in passes)
    if bool(torch.stack([terms.gap() <= _TOLERANCE[terms.precision] for terms in passes]).all()):
        return True
    batch.check_values()
    # Large elements may cancel within a term: then their absolute values are the scale, and have to be summed for it.
    error = torch.stack([(terms.total - terms.output.double()).abs() for terms in passes])
    again = _terms(batch, _Magnitude, False)
    if again is None:
        return False
    if bool((error <= tolerance * torch.stack([terms.result() for terms in again])).all()):
        return True
    # They may also cancel between operations, as in log p of a sure prediction: a difference of large logits, all of
    # whose terms are as small as itself. Then the numbers that the largest operation works with are the scale, of
    # which rounding explains less; or numbers so small that there is no precision left.
    precision = torch.finfo(max(passes, key=lambda terms: _TOLERANCE[terms.precision]).precision)
    tolerance = min(0.1 * tolerance, 16 * precision.eps)
    largest = _largest_rounding(batch)
    return largest is not None and bool((error <= tolerance * largest + precision.tiny).all())


class _Magnitude:
    """(N,) sum of the absolute values of all terms, float64."""

    together = False

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, term: Term) -> Tensor:
        values = term.values
        size = per_example(values.abs()).double()
        self._total = size if self._total is None else self._total + size
        return per_example(values)

    def result(self, products: list[Tensor], positions: Sequence[Sequence[int]]) -> Tensor:
        sizes = [per_example(product.double().abs()) for product in products]
        return torch.stack(sizes if self._total is None else [self._total, *sizes]).sum(0)

    def join(self, results: list[Tensor]) -> Tensor:
        return torch.cat(results)


def _largest_rounding(batch: _Batch) -> Tensor | None:
    """(K, N) of the operation where it is largest, |df/dy| times the numbers that rounding comes from, float64.

    None where an operation's shape does not tell its examples apart.
    """
    sizes: list[Tensor | None] = []
    dtype = accumulation_dtype(*batch.inputs)
    largest = []
    with torch.inference_mode(False), torch.enable_grad():
        trace, _, output = batch.traced(RoundingTrace, False)
        positions = trace.positions.of_all()

        def take(operation: Operation, gradient: Tensor) -> None:
            parts = _examples_first(operation, gradient, batch.n, dtype, positions)
            sizes.append(None if parts is None else per_example((parts[0] * parts[1]).abs()).double())

        outputs = [*output.unbind(1)] if batch.takes_all else [output]
        for k, one in enumerate(outputs, start=1):
            sizes.clear()
            trace.backward(one, take, keep=k < len(outputs))
            clear = [size.to(batch.device) for size in sizes if size is not None]
            if not clear or len(clear) < len(sizes):
                return None
            largest.append(torch.stack(clear).amax(0))
    return torch.stack(largest)


def _diagnosis(batch: _Batch, passes: Sequence[_Terms[Any]] | None) -> IncompleteError:
    """What to say of a sum that is not met, from a second, slow pass that checks each operation against autograd."""
    gaps = None if passes is None else torch.stack([terms.gap() for terms in passes])
    if gaps is not None and not bool(gaps.isfinite().all()):
        return _not_finite(batch)
    with torch.inference_mode(False), torch.enable_grad():
        trace, _, _ = batch.traced(CulpritTrace, False)
    gap = "" if gaps is None else f" (relative gap {float(gaps.max()):.2g})"
    if trace.culprit is not None:
        return IncompleteError(
            f"{trace.culprit} differs from what its own gradient says{gap}; is it random, or stateful?"
        )
    return IncompleteError(
        f"the terms do not sum to the output{gap}, though each operation is consistent; do hooks change gradients, or "
        "does the output depend on the inputs in ways that autograd does not see?"
    )


def _not_finite(batch: _Batch) -> IncompleteError:
    """What to say of terms that are no numbers."""
    with torch.inference_mode(False), torch.enable_grad():
        trace, _, output = batch.traced(FiniteTrace, False)
        if not bool(output.isfinite().all()):
            number = output.detach()[~output.isfinite()][0]
            return IncompleteError(
                f"the output is {float(number):g}, which arises in {trace.first_nan or trace.last_infinity}; "
                "look at what that is given"
            )
        name = trace.first_gradient(output)
    return IncompleteError(
        f"the output is finite and its gradient is not, from {name or 'an operation that is not known'} on; keep away "
        "from where that has no finite derivative, as sqrt has none at 0, for example by adding a small number"
    )
