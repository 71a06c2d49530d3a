"""The engine: a PyTorch computation seen as a chain of locally affine operations.

Every operation y = op(u_1, ..., u_k) of activations is, where it was evaluated, y = sum_j J_j u_j + r (`_remainder`).
Summing <df/dy, r> over all operations, plus <df/dx, x>, gives f(x) exactly, per example (Srinivas & Fleuret, "Full-Gradient
Representation for Neural Network Visualization", NeurIPS 2019, arXiv:1905.00780, Proposition 1, there for ReLU networks).

`AffineTrace` intercepts each torch function call while the model runs, finds r, and leaves a hook on y at that moment
(so in-place operations are no exception). One backward pass then hands every (df/dy, r) to a consumer, last operation
first, which reduces it on the spot: nothing but r is kept between the two passes.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from captum_density._places import Place, Source, propagate, settle
from captum_density._remainder import (
    Call,
    Rule,
    map_tensors,
    operation_name,
    remainders,
    reverse_mode_product,
    reverse_products,
    select_rule,
    tensors_in,
)

__all__ = ["AffineTrace", "IncompleteError", "OpaqueOperationError", "Operation", "unwrap"]

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


def unwrap(model: Callable[..., Any]) -> Callable[..., Any]:
    """The module inside DataParallel, DistributedDataParallel and torch.compile; TorchScript is refused.

    Raises:
        TypeError: If the model is TorchScript, whose operations cannot be seen.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            _refuse_opaque(module, name)
    elif isinstance(model, torch.jit.ScriptFunction):
        raise TypeError("a TorchScript function hides its operations; pass the Python function it was made from")
    return model


def _refuse_opaque(module: nn.Module, name: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        where = f"submodule {name!r} is" if name else "the model is"
        raise TypeError(f"{where} TorchScript, which hides its operations; pass the nn.Module it was made from")


class AffineTrace(TorchFunctionMode):
    """Record the affine view of what runs inside `with trace:`.

    Args:
        create_graph: Whether the terms shall carry a graph of their own.
        keep: Hold on to every activation, so that an operation the trace did not see can be taken as one step.
        check: Compare each r with what autograd says of the graph; the first that differs is the `culprit`.
    """

    def __init__(self, create_graph: bool = False, keep: bool = False, check: bool = False) -> None:
        super().__init__()
        self.create_graph = create_graph
        self.keep = keep
        self.check = check
        self.culprit: str | None = None
        self.sources: list[Source] = []
        self.operations: list[Operation] = []
        self.consumer: Callable[[Operation, Tensor], None] | None = None
        self._leaves: list[Tensor] = []
        self._kept: dict[tuple[Node, int], Tensor] = {}
        self._constant_nodes: set[Node] = set()
        self._names: dict[int, str] = {}
        self._stack: list[str] = []
        self._counts: Counter[str] = Counter()
        self._exit = contextlib.ExitStack()

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
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(self._leaves, gradients, strict=True))

    # -- the function mode

    def __enter__(self) -> AffineTrace:
        pre = module_hooks.register_module_forward_pre_hook(self._enter_module)
        self._exit.callback(pre.remove)
        post = module_hooks.register_module_forward_hook(self._leave_module, always_call=True)
        self._exit.callback(post.remove)
        if "torch._dynamo" in sys.modules:  # only then can anything be compiled
            self._exit.enter_context(torch.compiler.set_stance("force_eager"))
            self._exit.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._exit.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        activations = [t for t in tensors_in((args, kwargs)) if self._is_activation(t)]
        if not activations or _reads_only(func):
            return func(*args, **kwargs)
        call = Call(func, args, kwargs, activations, _mutated(func, args, kwargs))
        rule = select_rule(call)
        if rule.kind == "derivative":
            self._refuse_batch_statistics(call)
        if rule.kind == "derivative" or self.check:
            call.record_rng(always=self.check)
        if rule.kind == "symmetric":
            call.record_edge()
        places = [_place(u) for u in activations]
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

        One output may be computed from another (an LSTM's h from its c), or be a view of memory the trace has never seen.
        """
        hidden = y.requires_grad and y._is_view() and not self._is_marked(y._base)
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
        bases = [t._base if t._is_view() else None for t in call.mutated]
        constants = [b.detach().clone() if b is not None and not self._is_activation(b) else None for b in bases]
        base_places = [_place(b) if b is not None else None for b in bases]
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

    # -- activations

    def _mark(self, t: Tensor, place: Place | None) -> None:
        setattr(t, _MARK, _Mark(self, place))
        if self.keep and t.grad_fn is not None:
            self._kept[t.grad_fn, t.output_nr] = t

    def _is_marked(self, t: Tensor) -> bool:
        mark = getattr(t, _MARK, None)
        return mark is not None and mark.trace is self

    def _is_activation(self, t: Tensor) -> bool:
        return self._is_marked(t) or (t.requires_grad and not t.is_leaf and self._adopt(t))

    def depends_on_inputs(self, output: Tensor) -> bool:
        """Whether the model's output is connected to its inputs by differentiable operations."""
        return self._is_activation(output)

    def _adopt(self, t: Tensor) -> bool:
        """Whether an unknown tensor depends on the inputs; if so, what made it is taken as one operation.

        Custom autograd Functions, vmap and C++ extensions make activations without a torch function call. The graph tells
        which known activations they came from, and a derivative through that graph gives r.
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
        place = next((_place(u) for u in operands if u.shape == t.shape), None)
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

    # -- names

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if id(module) not in self._names:
            # A model met inside a plain function: its own names from here on.
            for name, child in module.named_modules():
                _refuse_opaque(child, name)
                self._names.setdefault(id(child), name.replace("_orig_mod.", "").removesuffix("._orig_mod"))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            raise ValueError(_BATCH_STATISTICS.format(self._names[id(module)]))
        self._stack.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _name(self, operation: str) -> str:
        path = self._stack[-1] if self._stack else ""
        return f"{path}:{operation}" if path else operation

    def _refuse_batch_statistics(self, call: Call) -> None:
        if call.name == "batch_norm" and call.argument(5, "training"):
            x = call.argument(0, "input")
            if call.argument(1, "running_mean") is not None or (x.ndim > 0 and x.shape[0] > 1):
                raise ValueError(_BATCH_STATISTICS.format(self._stack[-1] if self._stack else "batch_norm"))


_BATCH_STATISTICS = (
    "batch norm {!r} normalises with the statistics of the batch, so an example's output depends on the other examples and has no full "
    "gradient of its own; call model.eval() first (batch norm must have running statistics)"
)


def _place(t: Tensor) -> Place | None:
    mark = getattr(t, _MARK, None)
    return mark.place if mark is not None else None


def _reads_only(func: Callable[..., Any]) -> bool:
    """Attribute access and size queries: no operation, or one (`.T`) that is worth looking at."""
    if getattr(func, "__name__", "") == "__get__":
        return operation_name(func) not in ("T", "mT", "H", "mH", "real", "imag")
    return getattr(func, "__name__", "") in _QUERIES


_QUERIES = frozenset("size dim stride numel is_contiguous element_size storage_offset backward register_hook".split())


def _mutated(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors a call writes to."""
    if isinstance(out := kwargs.get("out"), Tensor):
        return [out]
    name = getattr(func, "__name__", "")
    if isinstance(func, torch._ops.OpOverload):
        return [a for a, spec in zip(args, func._schema.arguments, strict=False) if spec.is_write]
    in_place = (
        (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"))
        or name == "__setitem__"
    )
    in_place = in_place or Call(func, args, kwargs, []).overwrites_by_flag()
    target = args[0] if args else kwargs.get("input")
    return [target] if in_place and isinstance(target, Tensor) and name != "requires_grad_" else []
