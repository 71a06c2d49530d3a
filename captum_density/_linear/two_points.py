"""A model run at two points at once, each operation with a discrete gradient between them.

Every activation of the run at x carries its counterpart, its value at the baseline x'. Each torch function call on
activations is made twice, on these and on their counterparts, so that both runs take the same operations by
construction, and its output gets for its derivative the linear map of `discrete` that the table of operations names.
The two can go apart only where a tensor becomes a number, a bool, a shape or an index: there the values are compared.
Where they differ, the module that runs becomes one step, with Gonzalez' discrete gradient; if its outputs cannot be
told apart by its inputs either, the module around it does, and at last the whole model.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.attention.bias import CausalBias
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from captum_density._linear import discrete
from captum_density._linear.definitions import DEFINITIONS, opened
from captum_density._linear.operations import ROWS, UNKNOWN, Difference
from captum_density._linear.recurrent import RECURRENT
from captum_density._model.calls import in_checkpoint, map_tensors, mutated, operation_name, tensors_in
from captum_density._model.modules import FSDP_IDENTITY, ModuleStack

__all__ = ["TwoPointsMode", "WaysPartError"]

_MARK = "_captum_density_counterpart"
_READS = frozenset(
    """
    size dim stride numel is_contiguous element_size storage_offset backward register_hook data_ptr
    is_floating_point is_complex get_device ndimension retain_grad __len__
    """.split()
)


class WaysPartError(RuntimeError):
    """The runs at x and x' cannot be followed together.

    Args:
        path: The module in which they part.
        reason: Why.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"in module {path!r}: {reason}")
        self.path, self.reason = path, reason


class _Call:
    """A call of a torch function, which can be made on other tensors."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name = operation_name(func)
        self.target = next(iter(mutated(func, args, kwargs)), None)

    def argument(self, position: int, name: str) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    def run(self, substitute: Callable[[Tensor], Tensor]) -> Any:
        """What it returns on other tensors, of which none is overwritten."""
        copies: dict[int, Tensor] = {}

        def replaced(t: Tensor) -> Tensor:
            new = substitute(t)
            if t is self.target:
                new = copies.setdefault(id(t), new.clone())
            return new

        args, kwargs = map_tensors(replaced, self.args), map_tensors(replaced, self.kwargs)
        kwargs.pop("out", None)
        result = self.func(*args, **kwargs)
        return next(iter(copies.values())) if result is None and copies else result


class TwoPointsMode(TorchFunctionMode):
    """Within it and its `watching`, gradients by the inputs are products of discrete gradients.

    Args:
        examples: How many there are, first in the inputs.
        steps: Names of modules that are one step each.
        tested: Whether each operation's sum is tested, by what a random vector makes of it.
        in_blocks: Whether attention may be made again in the backward pass, in blocks: then its weights are not kept.

    Attributes:
        precision: The coarsest epsilon of an activation's dtype.
        culprit: The operation whose sum was missed by most, with `tested`; None if none was.
    """

    def __init__(
        self, examples: int, steps: frozenset[str] = frozenset(), tested: bool = False, in_blocks: bool = True
    ) -> None:
        super().__init__()
        self.examples, self.steps, self.tested, self.in_blocks = examples, steps, tested, in_blocks
        self.culprit: str | None = None
        self.precision = 0.0
        self._worst = 0.0
        self._token = object()
        self._sources = set[Node]()
        self._constants = set[int]()
        self._written: list[Tensor] = []
        self._modules = ModuleStack()
        self._open: list[tuple[str, list[int]] | None] = []
        self._paused = False

    # -- entering, and what runs

    def track(self, inputs: Sequence[Tensor], baselines: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Leaves to take gradients by, and copies of them to run the model on."""
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.enable_grad():
            copies = tuple(leaf.clone() for leaf in leaves)
        for leaf, copy, baseline in zip(leaves, copies, baselines, strict=True):
            self._sources.add(get_gradient_edge(leaf).node)
            self._pair(copy, baseline.detach().clone())
        return leaves, copies

    def counterpart(self, t: Tensor) -> Tensor | None:
        """The value at x' of a tensor of the run at x, None of what does not depend on the inputs."""
        token, other = getattr(t, _MARK, (None, None))
        return other if token is self._token else None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, it is known in which module an operation runs; after, no mark is left on what is not the mode's."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._modules)
            before = module_hooks.register_module_forward_pre_hook(self._enter_module)
            stack.callback(before.remove)
            after = module_hooks.register_module_forward_hook(self._leave_module, with_kwargs=True, always_call=True)
            stack.callback(after.remove)
            # PyTorch's handle leaves this note of the hook.
            stack.callback(module_hooks._global_forward_hooks_with_kwargs.pop, after.id, None)
            try:
                yield
            finally:
                for t in self._written:
                    if hasattr(t, _MARK):
                        delattr(t, _MARK)

    # -- modules that are one step

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        path = self._modules.path
        begins = not self._paused and path in self.steps
        self._open.append((path, [t._version for t in tensors_in(args)]) if begins else None)
        self._paused = self._paused or begins

    def _leave_module(self, module: nn.Module, args: Any, *kwargs_and_output: Any) -> Any:
        step = self._open.pop() if self._open else None
        if step is None:
            return None
        try:
            if len(kwargs_and_output) < 2 or kwargs_and_output[1] is None:  # it raised
                return None
            parent = step[0].rpartition(".")[0]
            if step[1] != [t._version for t in tensors_in(args)]:
                raise WaysPartError(parent, f"{type(module).__name__} overwrites its input")
            kwargs, output = kwargs_and_output
            return self._as_step(module, args, kwargs, output, parent)
        finally:
            self._paused = False

    def _as_step(self, module: nn.Module, args: Any, kwargs: Any, output: Any, parent: str) -> Any:
        call = _Call(module.forward, args, kwargs)
        ys = list(tensors_in(output))
        if not ys or not isinstance(output, Tensor | tuple | list):
            raise WaysPartError(parent, f"{type(module).__name__} returns {type(output).__name__}")
        activations = self._floats(call)
        with torch.no_grad():
            zs = list(tensors_in(call.run(lambda t: self._other(t).clone())))
        self._compare(parent, ys, zs)
        try:
            mapped = self._gonzalez(call, activations, ys, zs, parent)
        except discrete.UnrepresentableError:
            raise WaysPartError(parent, f"{type(module).__name__}'s output differs where its input does not") from None
        for y, z in zip(mapped, zs, strict=True):
            self._pair(y, z)
        return map_tensors(lambda y: mapped.pop(0), output)

    # -- marks

    def _pair(self, y: Tensor, z: Tensor) -> None:
        setattr(y, _MARK, (self._token, z))
        if y.is_floating_point():
            self.precision = max(self.precision, torch.finfo(y.dtype).eps)

    def _other(self, t: Tensor) -> Tensor:
        other = self.counterpart(t)
        return t if other is None else other

    def _refuse_lost(self, t: Tensor) -> None:
        """An autograd Function's output, or another tensor that depends on the inputs in a way that is not followed."""
        node = t.grad_fn
        if node is None or id(node) in self._constants:
            return
        if self.counterpart(t) is not None:
            function = getattr(type(node), "_forward_cls", None)  # what runs within is seen, but not its derivative
            if function is CheckpointFunction:
                raise NotImplementedError(_CHECKPOINT)
            if function is not None and function is not discrete.Mapped and function.__name__ != FSDP_IDENTITY:
                raise WaysPartError(self._modules.path, f"{function.__name__} has a derivative of its own")
            return
        if t._base is not None and self.counterpart(t._base) is not None:
            self._pair_view(t)
            return
        seen, waiting = set[Node](), [node]
        while waiting:
            upstream = waiting.pop()
            if upstream in self._sources:
                raise WaysPartError(self._modules.path, f"{node.name()} is not made of torch functions")
            if upstream not in seen:
                seen.add(upstream)
                waiting += [n for n, _ in upstream.next_functions if n is not None]
        self._constants.add(id(node))
        self._written.append(t)  # kept, so that its node is no other's

    def _pair_view(self, t: Tensor) -> None:
        """The counterpart of a view that is as old as what was written to its memory."""
        base = t._base
        assert base is not None
        other = self._other(base)
        if other.stride() != base.stride():
            raise WaysPartError(self._modules.path, "a view of another layout is overwritten")
        self._pair(t, other.as_strided(t.shape, t.stride(), t.storage_offset() - base.storage_offset()))

    def _floats(self, call: _Call) -> list[Tensor]:
        """The activations that have derivatives, each once."""
        marked = [t for t in tensors_in((call.args, call.kwargs)) if self.counterpart(t) is not None]
        return list({id(t): t for t in marked if t.is_floating_point() or t.is_complex()}.values())

    # -- calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused or _reads_only(func):
            return func(*args, **kwargs)
        tensors = list(tensors_in((args, kwargs)))
        for t in tensors:
            self._refuse_lost(t)
        if all(self.counterpart(t) is None for t in tensors):
            return func(*args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise WaysPartError("", "torch.func transforms hide a model's operations")
        _refuse_checkpoint()
        if func is torch.autograd.grad:
            raise WaysPartError("", "torch.autograd.grad hides what it computes")
        call = _Call(func, args, kwargs)
        try:
            # What a model hides from gradients changes its output all the same.
            with torch.enable_grad():
                return self._in_place(call) if call.target is not None else self._run(call)
        except discrete.UnrepresentableError:
            raise WaysPartError(
                self._modules.path, f"the output of {call.name} differs where its activations do not"
            ) from None

    def _run(self, call: _Call) -> Any:
        name = call.name
        if name in ("detach", "data", "requires_grad", "new_tensor"):
            u = call.args[1 if name == "new_tensor" else 0]
            y = u.view_as(u)
            self._pair(y, self._other(u))
            return u if name == "requires_grad" else y
        if name.endswith("_like") or name.startswith("new_"):
            return call.func(*call.args, **call.kwargs)
        kind = ROWS.get(name, UNKNOWN).difference
        activations = self._floats(call)
        if self._is_linear(call, kind, activations):
            y = call.func(*call.args, **call.kwargs)
            return self._paired(call, y, self._counterparts(call), activations)
        if kind == "attention" and isinstance(call.argument(3, "attn_mask"), CausalBias):
            with self:  # it calls the function again, with the mask that it stands for
                return CausalBias.__torch_function__(call.func, (), call.args, call.kwargs)
        if (kind == "pieces" or (kind == "attention" and not self._is_plain_attention(call))) and activations:
            result = self._in_pieces(call)
            if result is not NotImplemented:
                return result
        if kind == "any" and isinstance(call.func, types.FunctionType) and call.func.__module__.startswith("torch."):
            with self:
                return opened(call.func)(*call.args, **call.kwargs)
        z = self._counterparts(call)
        with torch.no_grad():
            value = call.run(lambda t: t.detach())
        self._compare_trees(value, z)
        ys, zs = list(tensors_in(value)), list(tensors_in(z))
        if any(y.is_floating_point() or y.is_complex() for y in ys):
            if not activations:
                if any(not torch.equal(y, z) for y, z in zip(ys, zs, strict=True)):
                    raise discrete.UnrepresentableError
            else:
                made = iter(self._mapped(call, kind, activations, ys, zs))
                value = map_tensors(lambda y: next(made), value)
        return self._paired(call, value, z, activations)

    def _counterparts(self, call: _Call) -> Any:
        """What the call returns at x'; in place, if it is."""
        with torch.no_grad():
            return call.func(*map_tensors(self._other, call.args), **map_tensors(self._other, call.kwargs))

    def _discrete_arguments_differ(self, call: _Call) -> bool:
        """Whether indices, masks and the like are others at x'."""
        for t in tensors_in((call.args, call.kwargs)):
            other = self.counterpart(t)
            if other is not None and not (t.is_floating_point() or t.is_complex()) and not torch.equal(t, other):
                return True
        return False

    def _is_linear(self, call: _Call, kind: Difference, activations: list[Tensor]) -> bool:
        """Whether its own backward pass is that of the linear map between the two points."""
        if not activations or self._discrete_arguments_differ(call):
            return False
        if kind in ("linear", "choice"):
            return True
        if call.name == "instance_norm" and call.argument(5, "use_input_stats") is False:
            return True
        uses = sum(self.counterpart(t) is not None for t in tensors_in((call.args, call.kwargs)))
        if call.name == "div":
            plain = call.kwargs.get("rounding_mode") is None
            return plain and uses == 1 and call.argument(0, "input") is activations[0]
        return kind == "midpoint" and uses == 1

    def _paired(self, call: _Call, result: Any, other: Any, activations: list[Tensor]) -> Any:
        """The result, each tensor of which has its counterpart; what is no tensor has to be the same."""
        self._compare_trees(result, other)
        arguments = {id(t) for t in tensors_in((call.args, call.kwargs))}
        for y, z in zip(tensors_in(result), tensors_in(other), strict=True):
            if id(y) not in arguments or y is call.target or self.counterpart(y) is not None:
                self._pair(y, z)
        if self.tested and call.target is None:
            self._test(call.name, activations, list(tensors_in(result)))
        return result

    def _compare_trees(self, result: Any, other: Any) -> None:
        self._compare(self._modules.path, list(tensors_in(result)), list(tensors_in(other)))
        if not _same_without_tensors(result, other):
            raise WaysPartError(self._modules.path, "a number that is read from an activation differs")

    def _compare(self, path: str, ys: list[Tensor], zs: list[Tensor]) -> None:
        if [y.shape for y in ys] != [z.shape for z in zs]:
            raise WaysPartError(path, "a shape that depends on values differs")

    # -- the maps

    def _mapped(
        self, call: _Call, kind: Difference, activations: list[Tensor], ys: list[Tensor], zs: list[Tensor]
    ) -> list[Tensor]:
        if len(ys) > 1 and kind not in ("extremum", "windows"):
            kind = "any"
        u, y, z = activations[0], ys[0], zs[0]
        uses = sum(t is u for t in tensors_in((call.args, call.kwargs)))
        alone = len(activations) == 1
        first = None
        if kind == "secant" or (kind == "midpoint" and self._discrete_arguments_differ(call)):
            if alone and u.shape == y.shape and not u.is_complex():
                first = discrete.secant(u, self._other(u), y, z, lambda m: call.run(lambda t: m if t is u else t))
        elif kind == "extremum":
            first = self._extremum(call, activations, y, z)
        elif kind == "choice":
            first = self._choice(call, activations, y, z)
        elif kind == "windows" and alone:
            sizes = _windows(call, u.shape, y.shape)
            first = None if sizes is None else discrete.windows(u, self._other(u), y, z, sizes)
        elif kind == "attention":
            first = self._attention(call, y)
        elif kind == "closed" and alone and uses == 1 and u is call.argument(0, "input"):
            first = self._closed(call, u, y, z)
        if first is not None:
            return [first, *ys[1:]]
        if kind == "midpoint":
            count = sum(self.counterpart(t) is not None for t in tensors_in((call.args, call.kwargs)))
            if count <= 2 and not self._discrete_arguments_differ(call):
                return self._gonzalez(call, activations, ys, zs, None)
        return self._gonzalez(call, activations, ys, zs, self._modules.path)

    def _gonzalez(
        self, call: _Call, activations: list[Tensor], ys: list[Tensor], zs: list[Tensor], path: str | None
    ) -> list[Tensor]:
        """Gonzalez' discrete gradient for each example; without a path, of what is of degree 2."""
        examples = None if path is None else self.examples
        tensors = [*activations, *(y for y in ys if y.is_floating_point())]
        if examples is not None and examples > 1 and any(t.ndim == 0 or len(t) != examples for t in tensors):
            raise ExamplesLostError
        if not activations:
            raise discrete.UnrepresentableError
        if path is not None and any(t.is_complex() for t in (*activations, *ys)):
            raise WaysPartError(path, f"{call.name} is of complex numbers")

        def run(middles: list[Tensor]) -> list[Tensor]:
            by_id = dict(zip(map(id, activations), middles, strict=True))
            return list(tensors_in(call.run(lambda t: by_id[id(t)].clone() if id(t) in by_id else t)))

        return discrete.gonzalez(activations, [self._other(u) for u in activations], ys, zs, run, examples)

    def _extremum(self, call: _Call, activations: list[Tensor], y: Tensor, z: Tensor) -> Tensor | None:
        name, u = call.name, activations[0]
        sign = 1 if name in ("max", "amax", "maximum") else -1
        second = call.argument(1, "other" if name in ("max", "min", "maximum", "minimum") else "dim")
        if isinstance(second, Tensor):
            pair = [call.argument(0, "input"), second]
            if any(t.dtype != y.dtype for t in pair):
                return None
            values = [(t.detach().expand_as(y), self._other(t).expand_as(y)) for t in pair]
            middles = [sign * discrete.midpoint(a, b) for a, b in values]
            is_first = (middles[0] >= middles[1]).to(y.dtype)
            return self._among(pair, values, [is_first, 1 - is_first], y, z)
        dim = call.argument(1, "dim")
        if dim is None:
            return None
        keepdim = bool(call.argument(2, "keepdim"))
        dims = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
        dims = dims or tuple(range(u.ndim))
        return discrete.extremum(u, self._other(u), y, z, dims, keepdim, sign)

    def _choice(self, call: _Call, activations: list[Tensor], y: Tensor, z: Tensor) -> Tensor | None:
        if call.name == "where":
            chosen, first, second = (call.argument(i, n) for i, n in enumerate(("condition", "input", "other")))
        else:
            second, chosen, first = (call.argument(i, n) for i, n in enumerate(("input", "mask", "value")))
        pair = [t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=y.dtype, device=y.device)
                for t in (first, second)]  # fmt: skip
        if any(t.dtype != y.dtype for t in pair):
            return None
        values = [(t.detach().expand_as(y), self._other(t).expand_as(y)) for t in pair]
        share = (chosen.to(y.dtype) + self._other(chosen).to(y.dtype)).expand_as(y) / 2
        return self._among(pair, values, [share, 1 - share], y, z)

    def _among(self, pair: Any, values: Any, shares: Any, y: Tensor, z: Tensor) -> Tensor:
        parts = [(a, b, share) for (a, b), share in zip(values, shares, strict=True)]
        return discrete.among(parts, y, z, [t.expand_as(y) for t in pair])

    def _closed(self, call: _Call, u: Tensor, y: Tensor, z: Tensor) -> Tensor | None:
        v, name = self._other(u), call.name
        if name in ("softmax", "log_softmax", "logsumexp"):
            dim = call.argument(1, "dim")
            dim = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
            if not isinstance(dim, int):
                return None
            if name == "logsumexp":
                return discrete.logsumexp(u, v, y, z, dim, bool(call.argument(2, "keepdim")))
            return getattr(discrete, name)(u, v, y, z, dim)
        shape: Sequence[int] = u.shape
        if name in ("layer_norm", "rms_norm"):
            dims = tuple(range(-len(call.argument(1, "normalized_shape")), 0))
            weight = call.argument(2, "weight")
            eps = call.argument(4, "eps") if name == "layer_norm" else call.argument(3, "eps")
            eps = eps if eps is not None else 1e-5 if name == "layer_norm" else torch.finfo(u.dtype).eps
        else:
            groups = call.argument(1, "num_groups") if name == "group_norm" else u.shape[1]
            weight = call.argument(2 if name == "group_norm" else 3, "weight")
            eps = call.argument(4 if name == "group_norm" else 7, "eps")
            eps = 1e-5 if eps is None else eps
            shape, dims = (len(u), groups, u.shape[1] // groups, -1), (2, 3)
            weight = None if weight is None else weight.view(1, -1, *[1] * (u.ndim - 2))
        weight = None if weight is None else weight.detach()
        return discrete.normalised(u, v, y, shape, dims, eps, weight, name != "rms_norm")

    def _is_plain_attention(self, call: _Call) -> bool:
        """Whether nothing is dropped, the mask is a constant, and all operands have the same leading dimensions."""
        q, k, v, mask, dropout = (call.argument(i, name) for i, name in enumerate(_ATTENTION))
        if not self.in_blocks or dropout or q.numel() == 0 or k.numel() == 0 or not q.is_floating_point():
            return False
        leads = [(t.ndim, t.shape[:-3]) for t in (q, k, v)]  # heads may be shared
        constant = type(mask) in (type(None), Tensor, nn.Parameter) and self.counterpart(mask) is None
        return constant and leads[0] == leads[1] == leads[2]

    def _attention(self, call: _Call, y: Tensor) -> Tensor:
        operands, mask = (
            [call.argument(i, name) for i, name in enumerate(_ATTENTION[:3])],
            call.argument(3, "attn_mask"),
        )
        scale = call.kwargs.get("scale")
        active = [i for i, t in enumerate(operands) if self.counterpart(t) is not None]
        scale = operands[0].shape[-1] ** -0.5 if scale is None else scale
        others = [self._other(t) for t in operands]
        return discrete.attention(operands, others, y, mask, bool(call.argument(5, "is_causal")), scale, active)

    def _in_pieces(self, call: _Call) -> Any:
        """An operation as its definition has it."""
        definition = RECURRENT.get(call.name) or DEFINITIONS.get(call.name) or opened(call.func)
        with self:
            return definition(*call.args, **call.kwargs)

    def _in_place(self, call: _Call) -> Any:
        """An operation that overwrites its argument: linear ones do, others are made beside it and written there."""
        target = call.target
        assert target is not None
        if self.counterpart(target) is None:
            memory = target if target._base is None else target._base
            if self.counterpart(memory) is None:
                self._written.append(memory)
                self._pair(memory, memory.detach().clone())
            if memory is not target:
                self._pair_view(target)
        other = self._other(target)
        kind = ROWS.get(call.name, UNKNOWN).difference
        activations = self._floats(call)
        if "out" not in call.kwargs and self._is_linear(call, kind, activations):
            result = call.func(*call.args, **call.kwargs)
            returned = self._counterparts(call)
            self._pair(target, other)
            return result if result is None or result is target else self._paired(call, result, returned, activations)
        copy = target.view_as(target)
        self._pair(copy, other.clone())
        kwargs = {k: v for k, v in call.kwargs.items() if k != "out"}
        beside = _Call(_without_overwriting(call), *_swapped(target, copy, call.args, kwargs))
        beside.name = call.name
        y = self._run(beside)
        z = self._other(y)
        target.copy_(y)
        with torch.no_grad():
            other.copy_(z)
        self._pair(target, other)
        return target

    # -- whose fault it is

    def _test(self, name: str, activations: list[Tensor], ys: list[Tensor]) -> None:
        us = [u for u in activations if u.requires_grad]
        ys = [y for y in ys if y.requires_grad]
        if not us or not ys:
            return
        generator = torch.Generator(ys[0].device).manual_seed(0)
        vectors = [torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype) for y in ys]
        back = torch.autograd.grad(ys, us, vectors, retain_graph=True, allow_unused=True)
        ends = [(g * discrete.difference(y.detach(), self._other(y))) for g, y in zip(vectors, ys, strict=True)]
        starts = [g * discrete.difference(u.detach(), self._other(u)) for g, u in zip(back, us, strict=True)
                  if g is not None]  # fmt: skip
        gap = abs(sum(float(t.sum()) for t in ends) - sum(float(t.sum()) for t in starts))
        size = sum(float(t.abs().sum()) for t in [*ends, *starts])
        if not gap <= max(self._worst, 1e-4) * size:
            self.culprit, self._worst = f"{self._modules.path}:{name}".lstrip(":"), gap / size if size else 0.0


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")


class ExamplesLostError(RuntimeError):
    """An operation that takes each example by itself, of which it is not known where the examples are."""


def _swapped(target: Tensor, copy: Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return map_tensors(lambda t: copy if t is target else t, args), map_tensors(
        lambda t: copy if t is target else t, kwargs
    )


def _without_overwriting(call: _Call) -> Callable[..., Any]:
    """The function on a copy of what it would overwrite."""

    def run(first: Any, *args: Any, **kwargs: Any) -> Any:
        first = first.clone()
        result = call.func(first, *args, **kwargs)
        return first if result is None else result

    return call.func if "out" in call.kwargs else run


def _windows(call: _Call, shape: Sequence[int], spots: Sequence[int]) -> list[list[list[int]]] | None:
    """Which indices lie in each window of a maximum pooling, along each dimension."""
    nd = next(int(c) for c in call.name if c.isdigit())
    grid, counts = shape[-nd:], spots[-nd:]
    if call.name.startswith("adaptive"):
        return [discrete.adaptive_windows(s, c) for s, c in zip(grid, counts, strict=True)]

    def each(position: int, name: str, default: Any) -> Sequence[int]:
        value = call.argument(position, name)
        value = default if value is None or value == [] or value == () else value
        return [value] * nd if isinstance(value, int) else list(value) * (nd // len(value))

    kernel = each(1, "kernel_size", None)
    settings = (kernel, each(2, "stride", kernel), each(3, "padding", 0), each(4, "dilation", 1))
    return [discrete.pool_windows(*along) for along in zip(grid, counts, *settings, strict=True)]


def _same_without_tensors(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same_without_tensors(p, q) for p, q in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:
        return True
    return type(a) is type(b) and bool(a == b)


_CHECKPOINT = (
    "activation checkpointing runs the model again in the backward pass, without its baseline; switch it off for this "
    "call (model.gradient_checkpointing_disable(), or model.eval())"
)


def _refuse_checkpoint() -> None:
    if in_checkpoint():
        raise NotImplementedError(_CHECKPOINT)


def _reads_only(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return operation_name(func) not in ("T", "mT", "H", "mH", "real", "imag", "data")
    return name in _READS
