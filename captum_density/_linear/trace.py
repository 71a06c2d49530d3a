"""The engine: a PyTorch computation seen as a chain of locally affine operations.

Every operation y = op(u_1, ..., u_k) of activations is, where it was evaluated, y = sum_j J_j u_j + r (`remainders`).
Summing <df/dy, r> over all operations, plus <df/dx, x>, gives f(x) exactly, per example (Srinivas & Fleuret,
"Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019, arXiv:1905.00780, Proposition 1, there
for ReLU networks).

A `Trace` intercepts each torch function call while the model runs, finds r, and leaves a hook on y at that moment (so
in-place operations are no exception). One backward pass then hands over every (df/dy, r), last operation first, to be
reduced on the spot: nothing but r is kept between the two passes.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from captum_density._linear.definitions import opened
from captum_density._linear.jacobian import reverse_mode_product
from captum_density._linear.operations import row
from captum_density._linear.places import Place
from captum_density._linear.propagation import Positions, place_beside, place_of_input, propagate, unknown_place
from captum_density._linear.remainders import DERIVATIVE, PARTS, ZERO, Remainder
from captum_density._model.calls import Call, Versions, map_tensors, mutated, operation_name, tensors_in
from captum_density._model.evaluation import grad_mode
from captum_density._model.modules import ModuleStack, batch_statistics_error

__all__ = ["OpaqueOperationError", "Operation", "PromptTrace", "Trace", "enclosing_trace"]

_MARK = "_captum_density_activation"
_LARGE = 2**14  # elements of an output whose factor waits for the backward pass


class OpaqueOperationError(RuntimeError):
    """An activation came from an operation the trace did not see, and its operands are no longer at hand."""


class _Later:
    """r of an operation with one output, computed when it is asked for; raises OverwrittenError if that is too late.

    It does not keep the output: where autograd does not either, as of a product before a layer with frozen weights, it
    is computed again.
    """

    def __init__(self, remainder: Remainder, call: Call, y: Tensor) -> None:
        self._remainder, self._call = remainder, call
        self._y, self._version = weakref.ref(y), y._version
        self._read = Versions(tensors_in((call.args, call.kwargs)))

    def __call__(self) -> Tensor:
        self._read.check()
        y = self._y()
        # What autograd does not keep may be gone, or have been overwritten since.
        if y is None or y._version != self._version:
            with torch.no_grad():
                (y,) = self._call.evaluate(Tensor.detach, differentiable=False)
        y = y.detach()
        with torch.no_grad():
            (r,) = self._remainder.of(self._call, [y], False)
        assert r is not None
        return r


Factor: TypeAlias = "Tensor | _Later | None"


@dataclass
class Operation:
    """One operation of the forward pass that adds to f(x).

    Attributes:
        name: "module.path:operation", unique, numbered "#2", "#3", ... where an operation runs again.
        output_shape: Shape of its output y.
        factor: What df/dy is to be multiplied by, broadcastable to y: r, unless another kind of trace says otherwise.
            Dropped after the backward pass. Or what computes it.
        place: Where y's elements lie on the inputs, None where that could not be followed.
        lost: The operation at which some of them lost their place, None if none has.
        constant: What of r is a constant that the operation adds: all of it, nothing, or this, broadcastable to y.
    """

    name: str
    output_shape: torch.Size
    factor: Factor
    place: Place | None
    lost: str | None = None
    constant: bool | Tensor = False


class _Mark(NamedTuple):
    """What the trace knows of a tensor that depends on the inputs."""

    trace: object
    place: Place | None
    lost: str | None


class Trace(TorchFunctionMode):
    """Record the operations of what runs inside `with trace:`, each with its remainder r.

    Args:
        create_graph: Whether the remainders and gradients shall carry a graph of their own.
        keep_activations: Hold on to every activation, so that an operation the trace did not see can be taken as one
            step.
    """

    postpones: ClassVar[bool] = True  # Whether large factors may be computed in the backward pass.

    def __init__(self, create_graph: bool = False, keep_activations: bool = False) -> None:
        super().__init__()
        self.create_graph = create_graph
        self.keep_activations = keep_activations
        self.positions = Positions([])
        self.operations: list[Operation] = []
        self._on_gradient: Callable[[Operation, Tensor], None] | None = None
        self._keep = False
        self._leaves: list[Tensor] = []
        self._activations: dict[tuple[Node, int], Tensor] = {}
        self._constant_nodes: set[Node] = set()
        self._modules = ModuleStack()
        self._counts: Counter[str] = Counter()
        self._paused = False
        self.dtypes: set[torch.dtype] = set()

    # -- inputs and outputs

    def track(
        self,
        inputs: Sequence[Tensor],
        layout: Sequence[Sequence[int] | None] | None = None,
        beside: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Copies of the leaves to run the model on, known to the trace as activations.

        Args:
            inputs: The leaves that terms can have a place on.
            layout: For each input the dimensions that are positions, None where the model is to show it.
            beside: Further leaves, on which nothing has a place.
        """
        self.positions = Positions(inputs, layout)
        leaves = [*inputs, *beside]
        self._leaves += leaves
        copies = [leaf.clone() for leaf in leaves]
        for index, copy in enumerate(copies):
            place = place_of_input if index < len(inputs) else place_beside
            self._mark(copy, place(index, copy.shape), None)
        return tuple(copies)

    def backward(
        self, output: Tensor, on_gradient: Callable[[Operation, Tensor], None], keep: bool = False
    ) -> tuple[Tensor, ...]:
        """Hand over df/dy of every operation; returns df/dx for every input, zeros where f ignores it.

        Args:
            output: f per example, of any shape: its sum is differentiated.
            on_gradient: Called with each operation and its df/dy, in backward order.
            keep: Whether another backward pass follows, of another output.
        """
        self._on_gradient, self._keep, leaves = on_gradient, keep, self._leaves
        try:
            gradients = torch.autograd.grad(
                output,
                leaves,
                torch.ones_like(output),
                retain_graph=keep or self.create_graph,
                create_graph=self.create_graph,
                allow_unused=True,
            )
        except BaseException:
            keep = False
            raise
        finally:
            self._on_gradient = None
            if not keep:
                for operation in self.operations:
                    operation.factor = None
                self._activations.clear()
                self._leaves = []
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))

    # -- the function mode

    def __enter__(self) -> Trace:
        self._modules.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._modules.__exit__(*error)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Within, the mode is at work again, which PyTorch switches off while it handles a call."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or not torch.is_grad_enabled() or _reads_only(func):
            return func(*args, **kwargs)
        activations = self._activations_in(args, kwargs)
        if not activations:
            return func(*args, **kwargs)
        call = Call(func, args, kwargs, activations, mutated(func, args, kwargs))
        remainder = row(call).remainder(call)
        if remainder is PARTS:
            with self._watching():
                return opened(func)(*args, **kwargs)
        self._prepare(call, remainder)
        if call.mutated:
            (t, *others) = call.mutated
            if remainder.evaluates and remainder.later and not others and t._base is None and self._postpones(t):
                return self._overwrite(call, remainder, t)
            return self._run_in_place(call, remainder)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            result = self._on_its_own(result, False)
            outputs = [result]
        else:
            related = remainder.related and isinstance(result, tuple)
            result = map_tensors(lambda y: self._on_its_own(y, related), result)
            outputs = tensors_in(result)
        if any([self._is_new(y) for y in outputs]):
            constant = remainder.constant(call, outputs[0])
            if self._postpones(result) and remainder.waits(result):
                self._refuse_without_gradient(call.name, outputs)
                self.record(call, outputs, [_Later(remainder, call, result)], constant)
            else:
                self.record(call, outputs, self._factors(remainder, call, outputs), constant)
        return result

    def _postpones(self, result: Any) -> bool:
        """Whether a result is so large that its factor should wait for the backward pass, and autograd keeps it all."""
        return (
            self.postpones
            and isinstance(result, Tensor)
            and result.numel() > _LARGE
            and not self.create_graph
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        )

    def record(
        self, call: Call, outputs: Sequence[Tensor], factors: Sequence[Factor], constant: bool | Tensor = False
    ) -> None:
        """Take what a call returned for activations.

        Args:
            call: The call.
            outputs: What it returned.
            factors: r of each output, None for zero.
            constant: What of each r is constant, as `Operation` has it.
        """
        places = self._propagated(call, [self._place(u) for u in call.activations], outputs)
        for y, r, place in zip(outputs, factors, places, strict=True):
            if self._is_new(y):
                self._add(call.name, y, r, place, self._lost(call, place), constant)

    # -- what another function mode knows better

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, operations are not seen: a mode inside the trace runs them, and tells what came of them."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def tell(self, call: Call, outputs: Sequence[Tensor], remainders: Sequence[Tensor | None]) -> None:
        """Take outputs whose derivatives are another linear map than the call's Jacobian.

        Args:
            call: The call that the outputs have the values of.
            outputs: The outputs, in order.
            remainders: What the map leaves of each, None for nothing.
        """
        known = [u for u in call.activations if self._is_activation(u)]
        constant = row(call).balance in _LINEAR_BY_RULE
        self.record(replace(call, activations=known), outputs, remainders, constant)

    def _prepare(self, call: Call, remainder: Remainder) -> None:
        """What has to be done before the call runs."""
        if remainder is DERIVATIVE:
            self._refuse_batch_statistics(call)
        remainder.prepare(call)

    def _on_its_own(self, y: Tensor, related: bool) -> Tensor:
        """An output whose gradient is that of its later uses alone, even if they overwrite it.

        One output may be computed from another (an LSTM's h from its c), or be a view of memory the trace has never
        seen.
        """
        hidden = y.requires_grad and y._base is not None and not self._is_marked(y._base)
        return y.clone() if hidden or (related and y.requires_grad) else y

    def _run_in_place(self, call: Call, remainder: Remainder) -> Any:
        """An operation that overwrites its argument: the activation is what stands there afterwards.

        Where the argument is a view, gradients reach it through its base, so r is laid into the base's shape.
        """
        record = call.frozen() if remainder.evaluates else call
        bases = [t._base for t in call.mutated]
        constants = [b.detach().clone() if b is not None and not self._is_activation(b) else None for b in bases]
        places = [self._place(u) for u in call.activations]
        base_places = [self._place(b) if b is not None else None for b in bases]
        result = call.func(*call.args, **call.kwargs)
        factors = self._factors(remainder, record, call.mutated)
        new_places = self._propagated(call, places, call.mutated)
        lost = [self._lost(call, place) for place in new_places]
        added = remainder.constant(call, call.mutated[0])
        for t, base, constant, r, place, base_place, at in zip(
            call.mutated, bases, constants, factors, new_places, base_places, lost, strict=True
        ):
            if not t.requires_grad:
                continue
            if base is None:
                self._add(call.name, t, r, place, at, added)
                continue
            whole = torch.zeros_like(base) if constant is None else constant
            if r is not None or constant is not None:
                region = whole.as_strided(t.shape, t.stride(), t.storage_offset() - base.storage_offset())
                region.copy_(torch.zeros_like(t) if r is None else r)
                self._add(call.name, base, whole, base_place, at, r is None or added is True)
            self._mark(base, base_place, at)
            self._mark(t, place, at)
        return result

    def _overwrite(self, call: Call, remainder: Remainder, t: Tensor) -> Any:
        """An operation that overwrites its one argument, of which autograd keeps what r is made of later."""
        places = [self._place(u) for u in call.activations]
        result = call.func(*call.args, **call.kwargs)
        self._refuse_without_gradient(call.name, [t])
        (place,) = self._propagated(call, places, [t])
        later = _Later(remainder, remainder.on_saved(call, t), t)
        self._add(call.name, t, later, place, self._lost(call, place), remainder.constant(call, t))
        return result

    def _factors(self, remainder: Remainder, call: Call, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        """What the gradient of each output is to be multiplied by, None for zero: here, r."""
        self._refuse_without_gradient(call.name, outputs)
        if remainder is ZERO:
            return [None] * len(outputs)
        try:
            with grad_mode(self.create_graph):
                return remainder.of(call, outputs, self.create_graph)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{self._name(call.name)}: {error}; no full gradient passes through it"
            ) from error

    def _propagated(
        self, call: Call, places: Sequence[Place | None], outputs: Sequence[Tensor]
    ) -> Sequence[Place | None]:
        found, mixings = propagate(call, places, outputs)
        for mixing in mixings:
            self.positions.learn(mixing)
        return found

    def _lost(self, call: Call, place: Place | None) -> str | None:
        """The operation at which elements of an output lost their place: an earlier one, else this.

        "" where it was a dense layer over flat features, of which nothing else can be expected.
        """
        if place is not None and (place.everywhere or place.is_beside):
            return None
        for u in call.activations:
            if self._is_marked(u) and (earlier := getattr(u, _MARK).lost) is not None:
                return earlier
        flat = all(p is not None and p.is_flat for p in map(self._place, call.activations))
        return "" if flat and row(call).layout.mixes is not None else self._name(call.name)

    def _add(
        self,
        name: str,
        y: Tensor,
        factor: Factor,
        place: Place | None,
        lost: str | None = None,
        constant: bool | Tensor = False,
    ) -> None:
        self._mark(y, place, lost)
        self.dtypes.add(y.dtype)
        if name in _LAYOUT_SENSITIVE and y.device.type == "cpu" and y.shape[:1] == (1,):
            y.register_hook(_in_layout(y.shape, y.stride()))
        if factor is None:
            return
        full = self._name(name)
        self._counts[full] += 1
        unique = full if self._counts[full] == 1 else f"{full}#{self._counts[full]}"
        operation = Operation(unique, y.shape, factor, place, lost, constant)
        self.operations.append(operation)

        def hand_over(gradient: Tensor | None) -> None:
            # None where nothing reaches y, though it does reach another output of the same operation.
            if self._on_gradient is not None and gradient is not None:
                self._on_gradient(operation, gradient)
                if not self._keep:
                    operation.factor = None  # and with it the activations that it waited with

        y.register_hook(hand_over)

    def _name(self, operation: str) -> str:
        return f"{self._modules.path}:{operation}" if self._modules.path else operation

    def _refuse_without_gradient(self, operation: str, outputs: Sequence[Tensor]) -> None:
        """PyTorch connects what it cannot differentiate, such as a quantised layer, to a node that says so."""
        for y in outputs:
            if (node := y.grad_fn) is not None and node.name().endswith("NotImplemented"):
                raise NotImplementedError(
                    f"{self._name(operation)} has no gradient, as quantised layers have none; explain the model as it "
                    "was before it was quantised"
                )

    def _refuse_batch_statistics(self, call: Call) -> None:
        if call.name == "batch_norm" and call.argument(5, "training"):
            x = call.argument(0, "input")
            if call.argument(1, "running_mean") is not None or (x.ndim > 0 and x.shape[0] > 1):
                raise batch_statistics_error(self._modules.path or "batch_norm")

    # -- activations

    def _mark(self, t: Tensor, place: Place | None, lost: str | None) -> None:
        setattr(t, _MARK, _Mark(self, place, lost))
        if self.keep_activations and t.grad_fn is not None:
            self._activations[t.grad_fn, t.output_nr] = t

    def _is_new(self, y: Tensor) -> bool:
        return y.requires_grad and not self._is_marked(y)

    def _is_marked(self, t: Tensor) -> bool:
        return (mark := getattr(t, _MARK, None)) is not None and mark.trace is self

    def _place(self, t: Tensor) -> Place | None:
        mark = getattr(t, _MARK, None)
        return mark.place if mark is not None and mark.trace is self else None

    def _activations_in(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        result = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                if self._is_activation(value):
                    result.append(value)
            elif isinstance(value, (tuple, list, dict)):
                result += [t for t in tensors_in(value) if self._is_activation(t)]
        return result

    def _is_activation(self, t: Tensor) -> bool:
        return t.requires_grad and (self._is_marked(t) or (not t.is_leaf and self._adopt(t)))

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
        self._refuse_without_gradient(name, [t])
        if not self.keep_activations:
            raise OpaqueOperationError(name)
        try:
            product = reverse_mode_product(t, operands, self.create_graph)
        except RuntimeError as error:
            raise NotImplementedError(
                f"{self._name(name)} is not made of torch function calls and its backward cannot be differentiated "
                f"({error}); write that backward with differentiable operations"
            ) from error
        place = unknown_place(operands, [self._place(u) for u in operands], t)
        lost = None if place is not None and place.everywhere else self._name(name)
        self._add(name, t, (t if self.create_graph else t.detach()) - product, place, lost)
        return True

    def _operands(self, start: Node) -> list[Tensor]:
        """The nearest known activations upstream of a node; just any sign of one unless they are kept."""
        leaves = {id(leaf) for leaf in self._leaves}
        nearest: dict[int, Tensor] = {}
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
                activation = self._activations.get((parent, index))
                variable = getattr(parent, "variable", None)
                if activation is not None:
                    nearest[id(activation)] = activation
                elif variable is not None:
                    if id(variable) in leaves:
                        nearest[id(variable)] = variable
                else:
                    pending.append(parent)
            if nearest and not self.keep_activations:
                break
        if not nearest:
            self._constant_nodes |= seen
        return list(nearest.values())


class PromptTrace(Trace):
    """Computes every factor as soon as it can."""

    postpones = False


def enclosing_trace() -> Trace | None:
    """The innermost trace that is entered, None outside all."""
    modes = _get_current_function_mode_stack()
    return next((mode for mode in reversed(modes) if isinstance(mode, Trace)), None)


def _in_layout(shape: torch.Size, strides: tuple[int, ...]) -> Callable[[Tensor | None], Tensor | None]:
    """A hook that gives a gradient the strides of its tensor, whose memory is dense.

    PyTorch 2.14's batch norm on the CPU takes tensors for laid out alike where `suggest_memory_format` says so, and
    that reads the stride of the batch. Of a single example this is arbitrary: a gradient (1, C, H, W) with the strides
    (1, 1, W C, C), as that of `weights @ y.flatten(2).mT` may have, is called contiguous and is channels last in
    memory. The backward pass then reads it in the wrong order, in `instance_norm` and in 3-D as well.
    """

    def copy(gradient: Tensor | None) -> Tensor | None:
        if gradient is None or gradient.stride() == strides:
            return None
        return gradient.new_empty_strided(shape, strides).copy_(gradient)

    return copy


@lru_cache(maxsize=4096)
def _reads_only(func: Callable[..., Any]) -> bool:
    """Attribute access and size queries: no operation, or one (`.T`) that is worth looking at."""
    if getattr(func, "__name__", "") == "__get__":
        return operation_name(func) not in ("T", "mT", "H", "mH", "real", "imag")
    return getattr(func, "__name__", "") in _QUERIES


# What a rule makes a linear map of, which leaves nothing but what is added to it.
_LINEAR_BY_RULE = frozenset({"normalisation", "product", "summed product"})
_LAYOUT_SENSITIVE = frozenset("batch_norm native_batch_norm instance_norm".split())
_QUERIES = frozenset("size dim stride numel is_contiguous element_size storage_offset backward register_hook".split())
