"""The mode under which a balanced view of a model runs: each torch function call, and the linear map it gets.

Nothing here knows a model family. What an operation is follows from what it computes: every activation carries a mark
that says of which activation it is a pointwise function (its root), what that function is at 0, and whether it is a
gate. A chain of pointwise functions, however it is spelt, gets the secant of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from captum_density._linear.definitions import DEFINITIONS, opened
from captum_density._linear.jacobian import jacobian_products
from captum_density._linear.operations import ROWS, UNKNOWN, Balance
from captum_density._linear.recurrent import RECURRENT
from captum_density._linear.remainders import linear
from captum_density._linear.trace import Trace, enclosing_trace
from captum_density._model.calls import Call, in_checkpoint, map_tensors, mutated, operation_name, tensors_in
from captum_density._model.errors import warn
from captum_density._model.fixed_modules import modules_of
from captum_density._model.interrupts import CleanInterrupts
from captum_density._model.modules import FSDP_IDENTITY, as_written
from captum_density.rules._choices import Choice, RuleCall, Rules, RuleSet
from captum_density.rules._maps import Secant, Valued, probe_points, scaled
from captum_density.rules._normalisations import NORMALISATIONS, bias_of

__all__ = ["TRANSFORMS", "RuleMode", "in_transform"]

_MARK = "_captum_density_rule"
_POINTWISE = frozenset({"nonlinear", "divisor", "scaled", "same"})
# Their Jacobian is the secant through 0, as they leave no remainder.
_HOMOGENEOUS = frozenset(name for name, row in ROWS.items() if row.balance == "nonlinear" and row.remainder is linear)


@dataclass(frozen=True)
class _Mark:
    """What is known of a tensor.

    Attributes:
        run: The run of the model in which it arose.
        depends: Whether it depends on the inputs; what depends on parameters alone is a constant.
        root: The activation of which it is a pointwise function; None where that is itself.
        probe: That function at the points of `probe_points`.
        nonlinear: Whether that function is not linear.
        gate: "divisor", "softmax", "sigmoid" or "chosen": a factor that a rule set may take for a constant.
    """

    run: object
    depends: bool = True
    root: Tensor | None = None
    probe: Tensor | None = None
    nonlinear: bool = False
    gate: str | None = None


@dataclass
class _Call:
    """A call on activations, and the rules that hold for it."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    activations: list[Tensor]
    rules: RuleSet

    def run(self, substitute: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The call, with other tensors in place of its own."""
        if substitute is None:
            return self.func(*self.args, **self.kwargs)
        return self.func(*map_tensors(substitute, self.args), **map_tensors(substitute, self.kwargs))

    def value(self) -> Any:
        """Its value, with no graph."""
        return self.run(Tensor.detach)

    @property
    def kind(self) -> Balance:
        """What the table of operations says that rules can choose."""
        return ROWS.get(self.name, UNKNOWN).balance

    def argument(self, position: int, name: str) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    def tensors(self) -> Iterable[Tensor]:
        return tensors_in((self.args, self.kwargs))


class RuleMode(TorchFunctionMode):
    """Within, gradients by the inputs are those of the linear maps that the rules choose.

    An activation is what depends on a tensor among the model's inputs and requires grad.

    Args:
        rules: The rules.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self._points = probe_points()
        self._token = object()
        self._plain = _Mark(self._token, probe=self._points)
        self._constant = _Mark(self._token, depends=False)
        self._sources = set[Node]()
        self._modules: list[Choice | None] = []
        self._paused = False
        self._foreign: list[Tensor] = []  # tensors of others that carry marks
        self._trace: Trace | None = None

    def run(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the model returns; its graph is that of the rules."""
        self._foreign = list(tensors_in((args, kwargs)))
        self._trace = enclosing_trace()
        try:
            for t in self._foreign:
                setattr(t, _MARK, self._plain)
                self._remember_source(t)
            with CleanInterrupts(), self._watching(model), self:
                output = model(*args, **kwargs)
            for t in tensors_in(output):
                self._depends(t)
                self._foreign.append(t)
            return output
        finally:
            for t in self._foreign:
                if hasattr(t, _MARK):
                    delattr(t, _MARK)

    @contextmanager
    def _watching(self, model: Callable[..., Any]) -> Iterator[None]:
        """Within, it is known in which module an operation runs, and compiled code runs as it was written."""
        with ExitStack() as stack:
            if self.rules.classes or self.rules.modules:
                stack.callback(module_hooks.register_module_forward_pre_hook(self._enter_module).remove)
                stack.callback(module_hooks.register_module_forward_hook(self._leave_module, always_call=True).remove)
            for module in modules_of(model):
                # Last, so that what others put in place of a layer's tensors is met.
                if module._forward_hooks:
                    stack.callback(module.register_forward_hook(lambda _, args, output: self._take(output)).remove)
                if module._forward_pre_hooks:
                    before = module.register_forward_pre_hook(lambda _, *given: self._take(given), with_kwargs=True)
                    stack.callback(before.remove)
            stack.enter_context(as_written())
            yield

    # -- modules

    def _take(self, tree: Any) -> None:
        """Tensors that hooks put in place of a layer's, as Layer methods do, are activations from then on."""
        for t in tensors_in(tree):
            is_own = self._is_marked(t) or isinstance(t, nn.Parameter) or not t.requires_grad
            if not is_own and not self._depends(t):
                setattr(t, _MARK, self._plain)
                self._remember_source(t)
                self._foreign.append(t)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        outer = self._modules[-1] if self._modules else None
        own = self.rules.of_module(module)
        self._modules.append(outer if own is None else own if isinstance(own, str) else "jacobian")

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._modules:
            self._modules.pop()
        own = self.rules.of_module(module)
        if own is None or isinstance(own, str) or not torch.is_grad_enabled() or output is None:
            return None
        self._paused = True
        try:
            return self._mark_all(_checked(own, RuleCall.of_module(module, args, output), output), self._plain)
        finally:
            self._paused = False

    def _rules_for(self, name: str) -> RuleSet | Callable[[RuleCall], Any]:
        base = self.rules.base
        choice = self._modules[-1] if self._modules else None
        choice = self.rules.operations.get(name) if choice is None else choice
        if choice is None:
            return base
        return base.with_choice(choice) if isinstance(choice, str) else choice

    # -- marks

    def _mark(self, t: Tensor) -> _Mark:
        mark = getattr(t, _MARK, None)
        return mark if mark is not None and mark.run is self._token else self._plain

    def _is_marked(self, t: Tensor) -> bool:
        mark = getattr(t, _MARK, None)
        return mark is not None and mark.run is self._token

    def _mark_all(self, result: Any, mark: _Mark) -> Any:
        for y in tensors_in(result):
            if y.requires_grad or not self._is_marked(y):
                setattr(y, _MARK, mark)
        return result

    def _depends(self, t: Tensor) -> bool:
        if self._is_marked(t):
            return self._mark(t).depends
        if t.grad_fn is None:
            return False
        # No call of a torch function made it: a custom Function, or a parameter computed before the model ran.
        depends = self._is_reached_from(t.grad_fn)
        setattr(t, _MARK, self._plain if depends else self._constant)
        if depends:
            name = t.grad_fn.name()
            _refuse_recomputation(name)
            if name != f"{FSDP_IDENTITY}Backward":
                warn(
                    f"{name} is not made of torch functions that rules could be chosen for: its own derivative stands "
                    "for it"
                )
        return depends

    def _refuse_transforms(self, arguments: Any) -> None:
        """A function of torch.func is at work, and on an activation."""
        if not in_transform():
            return
        for t in tensors_in(arguments):
            while torch._C._functorch.is_functorch_wrapped_tensor(t):
                t = torch._C._functorch.get_unwrapped(t)
            if self._depends(t) and t.requires_grad:
                raise NotImplementedError(TRANSFORMS)

    def _remember_source(self, t: Tensor) -> None:
        if t.requires_grad:
            self._sources.add(torch.autograd.graph.get_gradient_edge(t).node)

    def _is_reached_from(self, node: Node) -> bool:
        seen, waiting = set[Node](), [node]
        while waiting:
            node = waiting.pop()
            if node in self._sources:
                return True
            if node not in seen:
                seen.add(node)
                waiting += [upstream for upstream, _ in node.next_functions if upstream is not None]
        return False

    def _root(self, t: Tensor) -> Tensor:
        root = self._mark(t).root
        return t if root is None else root

    # -- calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or not torch.is_grad_enabled() or _reads_only(func):
            return func(*args, **kwargs)
        self._refuse_transforms((args, kwargs))
        dependent = [t for t in tensors_in((args, kwargs)) if self._depends(t)]
        if not dependent:
            result = func(*args, **kwargs)
            for y in tensors_in(result):
                if y.requires_grad and not self._is_marked(y):
                    setattr(y, _MARK, self._constant)
            return result
        activations = list({id(t): t for t in dependent if t.requires_grad}.values())
        if not activations:  # token ids, and a layer over them, whose output is an activation
            result = self._mark_all(func(*args, **kwargs), self._plain)
            for y in tensors_in(result):
                self._remember_source(y)
            return result
        name = operation_name(func)
        if in_checkpoint():
            _refuse_recomputation("CheckpointFunction")
        rules = self._rules_for(name)
        if not isinstance(rules, RuleSet):
            own = RuleCall(name, func, args, kwargs)
            return self._mark_all(_checked(rules, own, own()), self._plain)
        call = _Call(name, func, args, kwargs, activations, rules)
        targets = mutated(func, args, kwargs)
        return self._run_in_place(call, targets[0]) if targets else self._run(call)

    def _run(self, call: _Call) -> Any:
        kind, rules = call.kind, call.rules
        if rules.nonlinearity == "jacobian" and rules.product == "jacobian":
            return self._mark_all(call.run(), self._after(call))
        if kind == "opened":
            with self:
                return opened(call.func)(*call.args, **call.kwargs)
        if kind == "defined" or kind == "recurrent":
            definition = DEFINITIONS[call.name] if kind == "defined" else RECURRENT[call.name]
            with self:
                parts = definition(*call.args, **call.kwargs)
            return self._valued(parts, self._unseen(call.run))
        if kind == "normalisation":
            only_input = len(call.activations) == 1 and call.activations[0] is call.argument(0, "input")
            if only_input and "divisor" in rules.gates:
                result = self._unseen(lambda: NORMALISATIONS[call.name](call.func, *call.args, **call.kwargs))
                return self._told(
                    call, result, self._plain, lambda: bias_of(call.name, result, *call.args, **call.kwargs)
                )
        if kind == "weights":
            gate = "chosen" if rules.choice == "constant" else "softmax"
            gates = gate if gate in rules.gates else None
            return self._mark_all(call.run(), replace(self._plain, nonlinear=True, gate=gates))
        if kind == "attention":
            return self._attention(call)
        root = self._root(call.activations[0])
        if self._is_pointwise(call, root):
            return self._chain(call, root)
        if kind == "quotient" and len(call.activations) == 2 and "divisor" in rules.gates:
            dividend, divisor = call.argument(0, "input"), call.argument(1, "other")
            result = self._unseen(lambda: call.run(lambda t: t.detach() if t is divisor else t))
            return self._told(call, result, self._moved([dividend]))
        if kind in ("product", "summed product") and rules.product != "jacobian":
            added = call.argument(0, "input") if kind == "summed product" else _bias(call)
            call = self._distinct(call)
            factors = [u for u in call.activations if u is not added]
            if len(factors) > 1 or call.name == "prod":
                return self._product(call, factors, added)
        result = call.run()
        if call.name not in ROWS:
            self._unseen(lambda: _refuse_without_derivative(call, result))
        return self._mark_all(result, self._after(call))

    def _after(self, call: _Call) -> _Mark:
        """The mark of what an operation of no particular kind returns: a gate that is moved or scaled remains one."""
        if call.name == "div" and not any(call.argument(0, "input") is u for u in call.activations):
            return replace(self._plain, nonlinear=True, gate="divisor")
        moved = call.kind in ("moved", "same") or call.name in ("mul", "div")
        return self._moved(call.activations) if moved else self._plain

    def _moved(self, activations: list[Tensor]) -> _Mark:
        marks = [self._mark(u) for u in activations]
        gate = marks[0].gate if len({mark.gate for mark in marks}) == 1 else None
        return replace(self._plain, gate=gate, nonlinear=all(mark.nonlinear for mark in marks))

    # -- pointwise functions

    def _is_pointwise(self, call: _Call, root: Tensor) -> bool:
        """Whether the call is a pointwise function of one activation beside numbers, or of functions of it."""
        if call.kind not in _POINTWISE and call.name not in ("mul", "div"):
            return False
        if "dropout" in call.name and call.argument(2, "training") is not False and call.argument(1, "p") != 0:
            return False
        if not root.is_floating_point() or any(u.shape != root.shape for u in call.activations):
            return False
        if any(self._root(u) is not root for u in call.activations):
            return False
        others = [t for t in call.tensors() if not any(t is u for u in call.activations)]
        return all(t.ndim == 0 and t.device.type == "cpu" and not t.requires_grad for t in others)

    def _chain(self, call: _Call, root: Tensor) -> Any:
        u, mark = call.activations[0], self._mark(call.activations[0])
        marks = [self._mark(t) for t in call.activations]
        uses = sum(any(t is a for a in call.activations) for t in call.tensors())
        linear = call.kind in ("scaled", "same") or (
            call.name in ("mul", "div") and uses == 1 and call.argument(0, "input") is u
        ) or (call.name == "mul" and uses == 1)  # fmt: skip
        probe = self._probe(call, lambda t: self._mark(t).probe if self._is_marked(t) else self._points)
        gate = self._gate(call, probe, marks, linear)
        if probe is None or not math.isfinite(float(probe[0])):
            # No secant through 0, as of a logarithm: its Jacobian, and the end of the chain.
            mark = self._after(call) if linear else replace(self._plain, nonlinear=True, gate=gate)
            return self._mark_all(call.run(), mark)
        start = None if mark.probe is None else float(mark.probe[0])
        homogeneous = call.name in _HOMOGENEOUS and start == 0
        nonlinear = not linear or any(m.nonlinear for m in marks)
        own = _Mark(self._token, True, root, probe, nonlinear, gate)
        if linear or homogeneous or call.rules.nonlinearity == "jacobian":
            return self._mark_all(call.run(), own)
        origin = root
        if uses == 1 and start == 0:  # secants of parts that are 0 at 0 compose
            origin, probe = u, probe if mark.root is None else self._probe(call, lambda t: self._points)
        function = self._function(call, u) if uses == 1 and origin is u else None
        result = self._unseen(lambda: Secant.apply(origin, call.value(), probe, function))
        assert probe is not None
        at_zero = float(probe[0])
        of_origin = _Call(call.name, call.func, call.args, call.kwargs, [origin], call.rules)
        return self._told(of_origin, result, own, lambda: _left_of_secant(origin, result, at_zero))

    def _function(self, call: _Call, u: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The call as a function of u, which it does not keep; None where it would not give the same value again."""
        if call.name == "rrelu" or torch.is_autocast_enabled(u.device.type):
            return None
        place, func = self._points, call.func
        args, kwargs = (map_tensors(lambda t: place if t is u else t, part) for part in (call.args, call.kwargs))

        def function(t: Tensor) -> Tensor:
            positional, named = (map_tensors(lambda a: t if a is place else a, part) for part in (args, kwargs))
            return func(*positional, **named)

        return function

    def _probe(self, call: _Call, at_points: Callable[[Tensor], Tensor | None]) -> Tensor | None:
        """The chain's function at the probe's points, in float64 on the host."""

        def replaced(t: Tensor) -> Any:
            return at_points(t) if any(t is u for u in call.activations) else t

        if call.kind == "same":
            return at_points(call.activations[0])
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                value = call.run(replaced)
        except (RuntimeError, TypeError):
            return None
        return value if isinstance(value, Tensor) and value.shape == self._points.shape else None

    def _gate(self, call: _Call, probe: Tensor | None, marks: list[_Mark], linear: bool) -> str | None:
        gates = [mark.gate for mark in marks if mark.gate]
        if linear or "divisor" in gates:
            return gates[0] if gates else None
        exponent = call.argument(1, "exponent") if call.name == "pow" else None
        root = isinstance(exponent, int | float) and (exponent < 0 or exponent == 0.5)
        if call.kind in ("divisor", "quotient") or root:
            return "divisor"
        if call.rules.choice == "constant":
            return "chosen"
        return "sigmoid" if probe is None or float(probe[0]) != 0 else None

    # -- products

    def _product(self, call: _Call, factors: list[Tensor], added: Tensor | None) -> Any:
        """A product of several activations, to each of which its part of the gradient goes; what is added has all."""
        shares = {id(u): share for u, share in zip(factors, self._shares(call.rules, factors), strict=True)}
        if call.name == "prod":
            (u,), dim = factors, call.argument(1, "dim")
            shares = {id(u): 1 / (u.numel() if dim is None else u.size(dim))}
        result = self._unseen(lambda: call.run(lambda t: scaled(t, shares[id(t)]) if id(t) in shares else t))
        mark = self._moved(factors) if added is None and all(self._mark(u).gate for u in factors) else self._plain
        constant = None if any(added is u for u in call.activations) else added
        return self._told(call, result, mark, lambda: None if constant is None else _summand(call, constant, result))

    def _shares(self, rules: RuleSet, factors: list[Tensor]) -> list[float]:
        if rules.product == "jacobian":
            return [1.0] * len(factors)
        marks = [self._mark(u) for u in factors]
        constant = [mark.gate in rules.gates for mark in marks]
        if all(constant):
            constant = [mark.gate == "divisor" for mark in marks]
        if rules.nonlinear_factor == "constant" and any(
            not c and not mark.nonlinear for c, mark in zip(constant, marks, strict=True)
        ):
            constant = [c or mark.nonlinear for c, mark in zip(constant, marks, strict=True)]
        if all(constant):
            constant = [False] * len(factors)
        return [0.0 if c else 1.0 / constant.count(False) for c in constant]

    def _attention(self, call: _Call) -> Any:
        """Attention as it runs, fused or not; parts of the gradient go to queries, keys and values."""
        copied = self._distinct(call)
        operands = {name: copied.argument(i, name) for i, name in enumerate(_OPERANDS)}
        active = {name: t for name, t in operands.items() if any(t is u for u in copied.activations)}
        if "softmax" in call.rules.gates:
            shares = {"query": 0.0, "key": 0.0, "attn_mask": 0.0, "value": 1.0}
        else:
            of_weights = 0.5 if "value" in active and len(active) > 1 else 1.0
            of_scores = of_weights * (0.5 if {"query", "key"} <= active.keys() else 1.0)
            shares = {"query": of_scores, "key": of_scores, "attn_mask": of_weights, "value": of_weights}
        by_id = {id(t): shares[name] for name, t in active.items()}
        result = self._unseen(lambda: copied.run(lambda t: scaled(t, by_id[id(t)]) if id(t) in by_id else t))

        def remainder() -> Tensor | None:
            if not any(shares[name] for name in active if name != "value"):
                return None
            record = Call(copied.func, copied.args, copied.kwargs, list(active.values()))
            return result.detach() - jacobian_products(record, False, by_id)[0]

        return self._told(copied, result, self._plain, remainder)

    def _distinct(self, call: _Call) -> _Call:
        """The call with another tensor in every place, so that one that stands in two has two shares."""
        places = [t for t in call.tensors() if any(t is u for u in call.activations)]
        if len(places) == len(call.activations):
            return call
        copies = []

        def copied(t: Tensor) -> Tensor:
            if not any(t is u for u in call.activations):
                return t
            copy = t.view(t.shape)
            setattr(copy, _MARK, self._mark(t))
            copies.append(copy)
            return copy

        args, kwargs = map_tensors(copied, (call.args, call.kwargs))
        return _Call(call.name, call.func, args, kwargs, copies, call.rules)

    # -- what a trace around this mode is told

    def _unseen(self, run: Callable[[], Any]) -> Any:
        """What a function returns, of whose operations a trace sees nothing."""
        if self._trace is None:
            return run()
        with self._trace.paused():
            return run()

    def _told(
        self, call: _Call, result: Tensor, mark: _Mark, remainder: Callable[[], Tensor | None] = lambda: None
    ) -> Tensor:
        """A result that a trace has not seen, marked; the trace is told of it, and what the map leaves of it."""
        self._mark_all(result, mark)
        if self._trace is not None:
            with self._trace.paused(), torch.no_grad():
                left = remainder()
            self._trace.tell(Call(call.func, call.args, call.kwargs, call.activations), [result], [left])
        return result

    # -- what is made of other operations

    def _valued(self, parts: Any, value: Any) -> Any:
        """The value as the model computes it, with the gradients of the parts that define it."""
        remaining = iter(list(tensors_in(parts)))

        def linked(y: Tensor) -> Tensor:
            part = next(remaining)
            if not part.requires_grad:
                return y
            mark = self._mark(part)
            out = self._unseen(lambda: Valued.apply(part, y))
            same = _Call("clone", torch.clone, (part,), {}, [part], self.rules.base)
            self._told(same, out, mark)
            setattr(out, _MARK, replace(mark, root=None, probe=self._points))
            return out

        return map_tensors(linked, value)

    def _run_in_place(self, call: _Call, target: Tensor) -> Any:
        """An operation that overwrites its argument: done beside it, and written there."""
        kind = call.kind
        if kind not in ("nonlinear", "product", "summed product", "quotient", "defined") or "out" in call.kwargs:
            mark = replace(self._mark(target), root=None, probe=self._points)
            result = call.run()
            setattr(target, _MARK, mark if kind in ("moved", "same") else self._plain)
            return result
        copy = target.clone()
        setattr(copy, _MARK, self._mark(target))

        def swapped(t: Tensor) -> Tensor:
            return copy if t is target else t

        python = getattr(call.func, "__module__", None) == "torch.nn.functional" and not call.func.__name__.endswith(
            "_"
        )
        beside = call.func if python else getattr(Tensor, call.name, None) or getattr(F, call.name)
        args = tuple(False if value is True else value for value in call.args) if python else call.args
        kwargs = {key: value for key, value in call.kwargs.items() if key != "inplace"}
        with self:
            y = beside(*map_tensors(swapped, args), **map_tensors(swapped, kwargs))
        target.copy_(y)
        setattr(target, _MARK, replace(self._mark(y), root=None, probe=self._points))
        return target


_OPERANDS = ("query", "key", "value", "attn_mask")


def _bias(call: _Call) -> Tensor | None:
    """What a dense layer or a convolution adds."""
    position = {"linear": 2, "bilinear": 3}.get(call.name, 2 if call.name.startswith("conv") else None)
    return None if position is None else call.argument(position, "bias")


def _left_of_secant(u: Tensor, y: Tensor, at_zero: float) -> Tensor | None:
    """y - A u with A = (y - sigma(0)) / u, broadcastable to y; where u is infinite, as a masked score is, A is 0."""
    if not at_zero:
        return None
    infinite = u.detach().isinf()
    left = y.new_full((1,) * y.ndim, at_zero)
    return torch.where(infinite, y.detach(), left) if bool(infinite.any()) else left


def _summand(call: _Call, added: Tensor, result: Tensor) -> Tensor:
    """What is added to a product, broadcastable to the result."""
    if call.name.startswith("conv"):
        return added.view(-1, *[1] * (int(call.name[-2]) if call.name[-1] == "d" else result.ndim - 2))
    beta = call.kwargs.get("beta", 1)
    added = added if beta == 1 else beta * added
    return added.reshape((1,) * (result.ndim - added.ndim) + tuple(added.shape))


def _checked(rule: Callable[[RuleCall], Any], call: RuleCall, expected: Any) -> Any:
    """What a rule of the user's returns, which has to have the call's value."""
    result = rule(call)
    pairs = zip(tensors_in(result), tensors_in(expected), strict=False)
    name = getattr(rule, "__name__", repr(rule))
    if len(list(tensors_in(result))) != len(list(tensors_in(expected))) or any(
        y.shape != e.shape or not torch.allclose(y, e, rtol=1e-4, atol=1e-6, equal_nan=True) for y, e in pairs
    ):
        raise ValueError(
            f"the rule {name} for {call.name} must return a tensor of the call's own value, of which only the "
            "derivative is chosen, but returned another; write it as call().detach() + (y - y.detach())"
        )
    return result


TRANSFORMS = (
    "torch.func transforms (vmap, grad) hide a model's operations from the rules; write what they compute on the whole "
    "batch, or take rules='jacobian'"
)


def in_transform() -> bool:
    """Whether a function of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _reads_only(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return operation_name(func) not in ("T", "mT", "H", "mH", "real", "imag")
    return name in _QUERIES


_QUERIES = frozenset(
    """
    size dim stride numel is_contiguous element_size storage_offset backward register_hook detach data_ptr
    is_floating_point is_complex get_device item tolist __len__ ndimension
    """.split()
)


# -- what hides operations from the rules, or has no derivative


def _refuse_without_derivative(call: _Call, result: Any) -> None:
    """An operation that is in no table: whether PyTorch can send a gradient back through it."""
    outputs = [y for y in tensors_in(result) if y.grad_fn is not None]
    nodes = [y.grad_fn.name() for y in outputs if y.grad_fn is not None]
    reason = next((name for name in nodes if name.endswith("NotImplemented")), None)
    try:
        if outputs and reason is None:
            zeros = [torch.zeros_like(y) for y in outputs]
            torch.autograd.grad(outputs, call.activations, zeros, retain_graph=True, allow_unused=True)
    except NotImplementedError as error:
        reason = str(error)
    if reason is not None:
        raise NotImplementedError(
            f"{call.name} has no derivative ({reason.rstrip('.')}); give it a rule, as in BalancedGradients(model, "
            f"{{{call.name!r}: rule}}), or explain the model as it was before it was quantised"
        )


def _refuse_recomputation(name: str) -> None:
    if "CheckpointFunction" in name:
        raise NotImplementedError(
            "activation checkpointing runs the model again in the backward pass, where the rules do not hold; switch "
            "it off for this call (model.gradient_checkpointing_disable(), or model.eval())"
        )
