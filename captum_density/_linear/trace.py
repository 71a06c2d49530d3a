"""The engine: a PyTorch computation seen as a chain of locally affine operations.

Every operation y = op(u_1, ..., u_k) of activations is, where it was evaluated, y = sum_j J_j u_j + r (`_remainder`).
Summing <df/dy, r> over all operations, plus <df/dx, x>, gives f(x) exactly, per example (Srinivas & Fleuret,
"Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019, arXiv:1905.00780, Proposition 1, there
for ReLU networks).

`AffineTrace` intercepts each torch function call while the model runs, finds r, and leaves a hook on y at that moment
(so in-place operations are no exception). One backward pass then hands every (df/dy, r) to a consumer, last operation
first, which reduces it on the spot: nothing but r is kept between the two passes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from captum_density._linear.places import Place, Source, propagate, settle
from captum_density._linear.remainder import Rule, remainders, reverse_mode_product, reverse_products, select_rule
from captum_density._model.calls import Call, map_tensors, mutated, operation_name, tensors_in
from captum_density._model.modules import ModuleStack, batch_statistics_error

__all__ = ["AffineTrace", "IncompleteError", "OpaqueOperationError", "Operation"]

_MARK = "_captum_density_activation"


class IncompleteError(RuntimeError):
    """The terms of an example do not sum to its output."""


class OpaqueOperationError(RuntimeError):
    """An activation came from an operation the trace did not see, and its operands are no longer at hand."""


@dataclass
class Operation:
    """One operation of the forward pass that has a bias.

    Attributes:
        name: "module.path:operation", unique, numbered "#2", "#3", ... where an operation runs again.
        output_shape: Shape of its output y.
        remainder: r, broadcastable to y; dropped once its gradient has been consumed.
        place: Where y's elements sit on an input's grid, if anywhere.
    """

    name: str
    output_shape: torch.Size
    remainder: Tensor | None
    place: Place | None


@dataclass(frozen=True)
class _Mark:
    """What the trace knows of a tensor that depends on the inputs."""

    trace: object
    place: Place | None


class AffineTrace(TorchFunctionMode):
    """Record the affine view of what runs inside `with trace:`.

    Args:
        create_graph: Whether the terms shall carry a graph of their own.
        keep: Hold on to every activation, so that an operation the trace did not see can be taken as one step.
        check: Compare each r with what autograd says of the graph; the first that differs is the `culprit`.
        sizes: Of every operation, hand out the size of the numbers that its rounding comes from in place of r.
    """

    def __init__(self, create_graph: bool = False, keep: bool = False, check: bool = False, sizes: bool = False):
        super().__init__()
        self.create_graph = create_graph
        self.keep = keep
        self.check = check
        self.sizes = sizes
        self.culprit: str | None = None
        self.sources: list[Source] = []
        self.operations: list[Operation] = []
        self.consumer: Callable[[Operation, Tensor], None] | None = None
        self._leaves: list[Tensor] = []
        self._kept: dict[tuple[Node, int], Tensor] = {}
        self._constant_nodes: set[Node] = set()
        self._modules = ModuleStack()
        self._counts: Counter[str] = Counter()

    # -- inputs and outputs

    def track(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies of the leaf inputs to run the model on, known to the trace as activations."""
        copies = []
        for index, leaf in enumerate(inputs):
            copy = leaf.clone()
            source = Source.of(index, copy)
            self.sources.append(source)
            self._leaves.append(leaf)
            self._mark(copy, source.place(copy.device))
            copies.append(copy)
        return tuple(copies)

    def backward(self, output: Tensor, consumer: Callable[[Operation, Tensor], None]) -> tuple[Tensor, ...]:
        """Send df/dy of every operation to the consumer; returns df/dx for every input, zeros where f ignores it.

        Args:
            output: f per example, of any shape: its sum is differentiated.
            consumer: Called with each operation and its df/dy, in backward order.
        """
        self.consumer = consumer
        try:
            gradients = torch.autograd.grad(
                output, self._leaves, torch.ones_like(output), create_graph=self.create_graph, allow_unused=True
            )
        finally:
            self.consumer = None
            for operation in self.operations:
                operation.remainder = None
            self._kept.clear()
            leaves, self._leaves = self._leaves, []
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))

    # -- the function mode

    def __enter__(self) -> AffineTrace:
        self._modules.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._modules.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or _reads_only(func):
            return func(*args, **kwargs)
        activations = [t for t in tensors_in((args, kwargs)) if self._is_activation(t)]
        if not activations:
            return func(*args, **kwargs)
        call = Call(func, args, kwargs, activations, mutated(func, args, kwargs))
        rule = select_rule(call)
        if rule.kind == "derivative":
            self._refuse_batch_statistics(call)
        if rule.kind == "derivative" or self.check:
            call.record_rng(always=self.check)
        if rule.kind == "symmetric":
            call.record_edge()
        places = [self._place(u) for u in activations]
        for place in places:
            settle(call, place)
        if call.mutated:
            return self._run_in_place(call, rule, places)
        result = func(*args, **kwargs)
        related = rule.kind == "derivative" and isinstance(result, tuple)
        result = map_tensors(lambda y: self._on_its_own(y, related), result)
        returned = list(tensors_in(result))
        new = [y.requires_grad and not self._is_marked(y) for y in returned]
        if any(new):
            found = self._remainders(rule, call, returned)
            for y, r, place, is_new in zip(
                returned, found, propagate(call, places, returned, self.sources), new, strict=True
            ):
                if is_new:
                    self._add(call.name, y, r, place)
            if self.check and self.culprit is None:
                self._compare(call, returned, found)
        return result

    def _on_its_own(self, y: Tensor, related: bool) -> Tensor:
        """An output whose gradient is that of its later uses alone, even if they overwrite it.

        One output may be computed from another (an LSTM's h from its c), or be a view of memory the trace has never
        seen.
        """
        hidden = y.requires_grad and y._base is not None and not self._is_marked(y._base)
        return y.clone() if hidden or (related and y.requires_grad) else y

    def _compare(self, call: Call, outputs: list[Tensor], found: list[Tensor | None]) -> None:
        with contextlib.suppress(RuntimeError):  # no second derivative: nothing to compare with
            for y, r, product in zip(outputs, found, reverse_products(call), strict=True):
                if y.requires_grad:
                    error = y.detach() - product if r is None else y.detach() - product - r.detach()
                    if float(error.abs().max()) > 1e-3 * float(y.detach().abs().max()):
                        self.culprit = self._name(call.name)

    def _run_in_place(self, call: Call, rule: Rule, places: list[Place | None]) -> Any:
        """An operation that overwrites its argument: the activation is what stands there afterwards.

        Where the argument is a view, gradients reach it through its base, so the bias is laid into the base's shape.
        """
        record = call.frozen() if rule.evaluates else call
        bases = [t._base for t in call.mutated]
        constants = [b.detach().clone() if b is not None and not self._is_activation(b) else None for b in bases]
        base_places = [self._place(b) if b is not None else None for b in bases]
        result = call.func(*call.args, **call.kwargs)
        found = self._remainders(rule, record, call.mutated)
        new_places = propagate(call, places, call.mutated, self.sources)
        for t, base, constant, r, place, base_place in zip(
            call.mutated, bases, constants, found, new_places, base_places, strict=True
        ):
            if not t.requires_grad:
                continue
            if base is None:
                self._add(call.name, t, r, place)
                continue
            whole = torch.zeros_like(base) if constant is None else constant
            if r is not None or constant is not None:
                region = whole.as_strided(t.shape, t.stride(), t.storage_offset() - base.storage_offset())
                region.copy_(torch.zeros_like(t) if r is None else r)
                self._add(call.name, base, whole, base_place)
            self._mark(base, base_place)
            self._mark(t, place)
        return result

    def _remainders(self, rule: Rule, call: Call, outputs: list[Tensor]) -> list[Tensor | None]:
        if self.sizes:
            return [_size(call, y) for y in outputs]
        try:
            return remainders(rule, call, outputs, self.create_graph)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{self._name(call.name)}: {error}; no full gradient passes through it"
            ) from error

    def _add(self, name: str, y: Tensor, r: Tensor | None, place: Place | None) -> None:
        self._mark(y, place)
        if r is None:
            return
        full = self._name(name)
        self._counts[full] += 1
        unique = full if self._counts[full] == 1 else f"{full}#{self._counts[full]}"
        operation = Operation(unique, y.shape, r, place)
        self.operations.append(operation)
        y.register_hook(lambda gradient: self.consumer(operation, gradient) if self.consumer else None)

    def _name(self, operation: str) -> str:
        return f"{self._modules.path}:{operation}" if self._modules.path else operation

    def _refuse_batch_statistics(self, call: Call) -> None:
        if call.name == "batch_norm" and call.argument(5, "training"):
            x = call.argument(0, "input")
            if call.argument(1, "running_mean") is not None or (x.ndim > 0 and x.shape[0] > 1):
                raise batch_statistics_error(self._modules.path or "batch_norm")

    # -- activations

    def _mark(self, t: Tensor, place: Place | None) -> None:
        setattr(t, _MARK, _Mark(self, place))
        if self.keep and t.grad_fn is not None:
            self._kept[t.grad_fn, t.output_nr] = t

    def _is_marked(self, t: Tensor) -> bool:
        mark = getattr(t, _MARK, None)
        return mark is not None and mark.trace is self

    def _place(self, t: Tensor) -> Place | None:
        return getattr(t, _MARK).place if self._is_marked(t) else None

    def _is_activation(self, t: Tensor) -> bool:
        return self._is_marked(t) or (t.requires_grad and not t.is_leaf and self._adopt(t))

    def depends_on_inputs(self, output: Tensor) -> bool:
        """Whether the model's output is connected to its inputs by differentiable operations."""
        return self._is_activation(output)

    def _adopt(self, t: Tensor) -> bool:
        """Whether an unknown tensor depends on the inputs; if so, what made it is taken as one operation.

        Custom autograd Functions, vmap and C++ extensions make activations without a torch function call. The graph
        tells which known activations they came from, and a derivative through that graph gives r.
        """
        assert t.grad_fn is not None
        operands = self._operands(t.grad_fn)
        if not operands:
            return False
        name = type(t.grad_fn).__name__
        if not self.keep:
            raise OpaqueOperationError(name)
        try:
            product = reverse_mode_product(t, operands, self.create_graph)
        except RuntimeError as error:
            raise NotImplementedError(
                f"{self._name(name)} is not made of torch function calls and its backward cannot be differentiated "
                f"({error}); write that backward with differentiable operations"
            ) from error
        place = next((self._place(u) for u in operands if u.shape == t.shape), None)
        self._add(name, t, (t if self.create_graph else t.detach()) - product, place)
        return True

    def _operands(self, start: Node) -> list[Tensor]:
        """The nearest known activations upstream of a node; just any sign of one unless they are kept."""
        leaves = {id(leaf) for leaf in self._leaves}
        found: dict[int, Tensor] = {}
        seen: set[Node] = set()
        pending = [start]
        while pending:
            node = pending.pop()
            if node in seen or node in self._constant_nodes:
                continue
            seen.add(node)
            for parent, index in node.next_functions:
                if parent is None:
                    continue
                known = self._kept.get((parent, index))
                variable = getattr(parent, "variable", None)
                if known is not None:
                    found[id(known)] = known
                elif variable is not None:
                    if id(variable) in leaves:
                        found[id(variable)] = variable
                else:
                    pending.append(parent)
            if found and not self.keep:
                break
        if not found:
            self._constant_nodes |= seen
        return list(found.values())


def _size(call: Call, y: Tensor) -> Tensor:
    """|y|, and the logarithm of the sum of exponentials (the largest u) where the operation subtracts it inside."""
    size = y.detach().abs()
    if call.name in ("log_softmax", "cross_entropy"):
        u = call.argument(0, "input").detach()
        dim = min(1, u.ndim - 1) if call.name == "cross_entropy" else call.argument(1, "dim")
        top = u.amax(-1 if dim is None else dim, keepdim=True).abs()
        size = size + (top if y.ndim == u.ndim else top.squeeze(dim) if y.ndim > 0 else top.max())
    return torch.complex(size, size) if y.is_complex() else size


def _reads_only(func: Callable[..., Any]) -> bool:
    """Attribute access and size queries: no operation, or one (`.T`) that is worth looking at."""
    if getattr(func, "__name__", "") == "__get__":
        return operation_name(func) not in ("T", "mT", "H", "mH", "real", "imag")
    return getattr(func, "__name__", "") in _QUERIES


_QUERIES = frozenset("size dim stride numel is_contiguous element_size storage_offset backward register_hook".split())
