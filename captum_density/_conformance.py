"""The conformance suite behind `captum_density.testing.check_attribution`: models, checks and the report."""

import contextlib
import inspect
import random
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import Attribution, NoiseTunnel, Saliency
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

__all__ = ["CAPTUM_DEPARTURES", "ConformanceError", "Failure", "attribution_checks", "check_attribution"]

Inputs = Tensor | tuple[Tensor, ...]
CLASSES = 4
BATCH = 3
# What Captum's own methods say whenever they are handed plain tensors, as these checks must.
EXPECTED_WARNINGS = (
    r"Input Tensor \d+ did not already require gradients",
    r"\s*Setting forward, backward hooks and attributes on non-linear",
    r"Setting backward hooks on ReLU activations",
)
PLAIN = bool | int | float | str
RELATIVE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


class Failure(NamedTuple):
    """One check that failed: its name, on which model, what was expected and received, and how to mend it."""

    check: str
    where: str
    expected: str
    received: str
    mend: str


class ConformanceError(AssertionError):
    """An attributor broke at least one law of `check_attribution`; `failures` holds every `Failure` found."""

    def __init__(self, attributor: str, failures: Iterable[Failure], ran: int):
        self.failures = tuple(failures)
        by_check: dict[str, list[Failure]] = {}
        for failure in self.failures:
            by_check.setdefault(failure.check, []).append(failure)
        lines = [f"{attributor} fails {len(by_check)} of {ran} checks"]
        for name, found in by_check.items():
            lines += ["", f"{name}: {attribution_checks()[name]}"]
            for failure in found[:3]:
                lines += [
                    f"  on {failure.where}",
                    f"    expected: {failure.expected}",
                    f"    received: {failure.received}",
                ]
            if len(found) > 3:
                lines.append(f"  and {len(found) - 3} more like these in .failures")
            lines.append(f"  to mend it: {found[0].mend}")
        lines += ["", f"To leave checks out: skip={tuple(by_check)!r}"]
        super().__init__("\n".join(lines))


# ----------------------------------------------------------------------------------------------------------------------
# The models


class _ModelError(RuntimeError):
    """Raised by the built-in models when told to, to see what an attributor leaves behind."""


class _RaiseInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise _ModelError("the model raised in its backward pass")


class _Model(nn.Module):
    """Base of the built-in models: `fuse` makes it raise in its forward or in its backward pass."""

    fuse = ""

    def end(self, output: Tensor) -> Tensor:
        if self.fuse == "forward":
            raise _ModelError("the model raised in its forward pass")
        if self.fuse == "backward" and output.requires_grad:
            raising: Tensor = _RaiseInBackward.apply(output)
            return raising
        return output


class _MLP(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class _CNN(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Dropout(0.5)
        )
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.features(x)))


class _Sequence(_Model):
    """Reads (N, length, features) and transposes at once, so the gradient comes back with permuted strides."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(5, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(nn.functional.gelu(self.convolution(x.transpose(1, 2))).mean(2)))


class _TwoInputs(_Model):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 6)
        self.right = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor, shift: float = 0.0) -> Tensor:
        hidden = torch.tanh(self.left(left) * scale + shift) + torch.sigmoid(self.right(right.flatten(1)))
        return self.end(self.head(hidden))


class _ManyOutputs(_Model):
    """Output of shape (N, 4, 3), whose target is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES * 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x).unflatten(1, (CLASSES, 3)))


class _Selected(nn.Module):
    """The model with a choice of output columns, and its last arguments, built in."""

    def __init__(self, model: nn.Module, columns: int | slice, last: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.model, self.columns, self.last = model, columns, last

    def forward(self, *args: Any) -> Tensor:
        output: Tensor = self.model(*args, *self.last)
        return output[:, self.columns]


class _Spec(NamedTuple):
    build: Callable[[], _Model]
    shapes: tuple[tuple[int, ...], ...]
    target: int | tuple[int, ...] = 1
    has_args: bool = False


MODELS = {
    "mlp": _Spec(_MLP, ((5,),)),
    "cnn": _Spec(_CNN, ((3, 8, 8),)),
    "sequence": _Spec(_Sequence, ((6, 5),)),
    "two_inputs": _Spec(_TwoInputs, ((5,), (2, 3)), has_args=True),
    "many_outputs": _Spec(_ManyOutputs, ((5,),), target=(1, 2)),
}
VECTOR_OUTPUT = ("mlp", "cnn", "sequence", "two_inputs")


@dataclass
class _Case:
    """A model, inputs (tensor or tuple as `attribute` gets them), a good target and additional forward arguments."""

    name: str
    model: nn.Module
    inputs: Inputs
    target: Any
    args: tuple[Any, ...] | None

    def output(self) -> Tensor:
        """The model's output (N,) at the case's target."""
        with torch.no_grad():
            output: Tensor = self.model(*_as_tuple(self.inputs), *(self.args or ()))
            index = (slice(None), *_as_tuple(self.target))
            selected: Tensor = output[index]
            return selected


# ----------------------------------------------------------------------------------------------------------------------
# The suite: how a check calls the attributor


class _Inapplicable(Exception):
    """The attributor does not offer what a check is about."""


class _Finding(NamedTuple):
    where: str
    expected: str
    received: str


_UNSET = object()


class _Suite:
    """What the checks need: cases, and calls of the attributor with just the arguments its signature names."""

    def __init__(
        self,
        make_attribution: Callable[[nn.Module], Attribution],
        models: Collection[str],
        device: torch.device,
        attribute_kwargs: Mapping[str, Any] | Callable[[Inputs], Mapping[str, Any]],
        stochastic: bool,
        seed: int,
    ):
        self.make, self.models, self.device, self.stochastic = make_attribution, models, device, stochastic
        self.attribute_kwargs, self.seed = attribute_kwargs, seed
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.where = "the models' inputs"  # where an unexpected exception happened
        self._leftovers: dict[str, dict[str, list[_Finding]]] = {}
        sample = make_attribution(self._build(MODELS["mlp"], torch.float32)[0])
        if not isinstance(sample, Attribution):
            raise TypeError(
                f"make_attribution must turn a model into a captum.attr.Attribution; it returned {type(sample)!r}. "
                "Pass the attributor's class, or a function of the model"
            )
        self.name = type(sample).__name__
        self.parameters = inspect.signature(sample.attribute).parameters
        self.has_delta = bool(sample.has_convergence_delta())

    def accepts(self, name: str) -> bool:
        """Whether `attribute` takes the keyword."""
        return name in self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def require(self, *names: str) -> None:
        """End the check as inapplicable unless `attribute` takes the keywords."""
        if not all(self.accepts(name) for name in names):
            raise _Inapplicable

    def _build(self, spec: _Spec, dtype: torch.dtype) -> tuple[_Model, tuple[Tensor, ...], tuple[Any, ...] | None]:
        with preserve_rng(self.device):
            torch.default_generator.manual_seed(self.seed)
            model = spec.build().eval()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):  # as if trained: statistics of 0 and 1 hide mistakes
                    for tensor in (module.weight, module.running_var):
                        assert tensor is not None
                        nn.init.uniform_(tensor, 0.5, 2.0)
                    for tensor in (module.bias, module.running_mean):
                        assert tensor is not None
                        nn.init.normal_(tensor)
            inputs = tuple(torch.randn(BATCH, *shape, dtype=torch.float64) for shape in spec.shapes)
            args = (torch.rand(BATCH, 1, dtype=torch.float64) + 0.5,) if spec.has_args else ()
        extra = (*(arg.to(self.device, dtype) for arg in args), 0.25) if spec.has_args else None
        return model.to(self.device, dtype), tuple(x.to(self.device, dtype) for x in inputs), extra

    def cases(self, *names: str, dtype: torch.dtype | None = None) -> list[_Case]:
        """Fresh cases of the named models (all by default) that the user kept and the attributor can be given."""
        found = []
        for name in names or MODELS:
            spec = MODELS[name]
            if name in self.models and (self.accepts("additional_forward_args") or not spec.has_args):
                model, inputs, args = self._build(spec, dtype or self.dtype)
                found.append(_Case(name, model, inputs if len(inputs) > 1 else inputs[0], spec.target, args))
        if not found:
            raise _Inapplicable
        return found

    def kwargs(self, case: _Case, target: Any = _UNSET) -> dict[str, Any]:
        """The keyword arguments of a call."""
        given = self.attribute_kwargs(case.inputs) if callable(self.attribute_kwargs) else self.attribute_kwargs
        kwargs = dict(given)
        if self.accepts("target"):
            kwargs["target"] = case.target if target is _UNSET else target
        if case.args is not None:
            kwargs["additional_forward_args"] = case.args
        return kwargs

    def attribute(
        self, case: _Case, *, target: Any = _UNSET, attribution: Attribution | None = None, **extra: Any
    ) -> Any:
        """The attributor's answer, with the generators seeded before and put back after."""
        self.where = case.name
        attribution = self.make(case.model) if attribution is None else attribution
        with self.seeded():
            return attribution.attribute(case.inputs, **{**self.kwargs(case, target), **extra})

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Within, the global generators start from the suite's seed; after, they are as before."""
        with preserve_rng(self.device):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reseed every device
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(self.seed)
            np.random.seed(self.seed)
            random.seed(self.seed)
            yield

    def leftovers(self, scenario: str) -> dict[str, list[_Finding]]:
        """What differs, aspect by aspect, between before and after the scenario's calls."""
        if scenario not in self._leftovers:
            found: dict[str, list[_Finding]] = {aspect: [] for aspect in ASPECTS}
            for where, aspect, label, before, after in self._run_scenario(scenario):
                old, new = _brief(before), _brief(after)
                received = new if new != old else f"{new}, but another one or with other values"
                found[aspect].append(_Finding(where, f"{label} as before: {old}", received))
            self._leftovers[scenario] = found
        return self._leftovers[scenario]

    def _run_scenario(self, scenario: str) -> Iterator[tuple[str, str, str, Any, Any]]:
        triggers: tuple[tuple[Any, str], ...] = {
            "success": ((_UNSET, ""),),
            "bad_target": ((99, ""), ([0] * (BATCH + 1), ""), ("seven", "")),
            "raising_model": ((_UNSET, "forward"), (_UNSET, "backward")),
        }[scenario]
        if scenario == "bad_target":
            self.require("target")
        for target, fuse in triggers:
            for differentiable in (False, True):
                for case in self.cases(dtype=torch.float32):
                    _furnish(case, differentiable)
                    kwargs = self.kwargs(case, target)
                    assert isinstance(case.model, _Model)
                    case.model.fuse = fuse
                    before = _snapshot(case, self.device)
                    # What it raises is another check's business; here only what it leaves behind counts.
                    with preserve_settings(), preserve_rng(self.device):
                        with contextlib.suppress(Exception):
                            self.make(case.model).attribute(case.inputs, **kwargs)
                        after = _snapshot(case, self.device)
                    where = case.name + (", inputs that require grad" if differentiable else "")
                    where += f", target={target!r}" if scenario == "bad_target" else ""
                    where += f", raising in its {fuse} pass" if fuse else ""
                    for aspect in ASPECTS:
                        for label in {**before[aspect], **after[aspect]}:
                            old, new = before[aspect].get(label, _UNSET), after[aspect].get(label, _UNSET)
                            if not _identical(old, new):
                                yield where, aspect, label, old, new


# ----------------------------------------------------------------------------------------------------------------------
# State: what must be as it was


ASPECTS = {
    "hooks": (
        "hooks on modules, parameters and inputs, torch's global module hooks, and the modules' attributes",
        "keep every hook's handle and call its remove() in a finally; do not patch or leave attributes on the model",
    ),
    "training_mode": (
        "every module's `training` flag",
        "do not call model.eval() or train(); if you must, record each module's own flag, restore it in a finally",
    ),
    "parameters": ("the values of parameters and buffers", "work on copies, or restore the values in a finally"),
    "requires_grad": (
        "`requires_grad` of parameters and inputs",
        "work on input.detach().requires_grad_() and leave the caller's tensors alone, or restore in a finally",
    ),
    "grad": (
        "`.grad` of parameters and inputs (the same tensor with the same values)",
        "use torch.autograd.grad(output, tensors), which does not accumulate, in place of backward()",
    ),
    "rng": (
        "the state of torch's, NumPy's and Python's global random generators",
        "draw from a torch.Generator of your own, or declare stochastic=True if the method samples",
    ),
    "inputs": (
        "the values and layout of inputs and additional forward arguments",
        "do not write to an argument in place: clone it first",
    ),
    "torch_settings": (
        "torch's global settings: grad mode, default dtype, backend switches, active function modes",
        "change a global setting only within a `with` statement",
    ),
}
SCENARIOS = {
    "success": "after a successful call",
    "bad_target": "after a malformed target",
    "raising_model": "after a model that raises, forward or backward",
}

_BACKENDS = torch.backends
# name -> (read, write); what cannot be written is only watched.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any] | None]] = {
    "torch.is_grad_enabled()": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.is_anomaly_enabled()": (torch.is_anomaly_enabled, None),
    "torch.are_deterministic_algorithms_enabled()": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch.get_num_threads()": (torch.get_num_threads, torch.set_num_threads),
    "torch.backends.cudnn.enabled": (lambda: _BACKENDS.cudnn.enabled, torch._C._set_cudnn_enabled),
    "torch.backends.mkldnn.enabled": (lambda: torch._C._get_mkldnn_enabled(), torch._C._set_mkldnn_enabled),
    "flash attention": (_BACKENDS.cuda.flash_sdp_enabled, _BACKENDS.cuda.enable_flash_sdp),
    "memory-efficient attention": (
        _BACKENDS.cuda.mem_efficient_sdp_enabled,
        _BACKENDS.cuda.enable_mem_efficient_sdp,
    ),
    "math attention": (_BACKENDS.cuda.math_sdp_enabled, _BACKENDS.cuda.enable_math_sdp),
    "active torch function modes": (lambda: torch._C._len_torch_function_stack(), None),
    "active torch dispatch modes": (lambda: torch._C._len_torch_dispatch_stack(), None),
}
GLOBAL_HOOKS = {
    key: hooks
    for key, hooks in vars(nn.modules.module).items()
    if key.startswith("_global") and isinstance(hooks, dict)
}


@contextlib.contextmanager
def preserve_settings() -> Iterator[None]:
    """Put torch's global settings back, so that an attributor that leaks one fails its own check and no other."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    hooks_before = {key: dict(hooks) for key, hooks in GLOBAL_HOOKS.items()}
    try:
        yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if write is not None and read() != before[name]:
                write(before[name])
        for key, hooks in GLOBAL_HOOKS.items():
            if hooks != hooks_before[key]:
                hooks.clear()
                hooks.update(hooks_before[key])


def _rng_state(device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = {"torch.get_rng_state()": torch.get_rng_state()}
    if device.type == "cuda":
        state["torch.cuda.get_rng_state()"] = torch.cuda.get_rng_state(device)
    state["numpy.random.get_state()"] = np.random.get_state()
    state["random.getstate()"] = random.getstate()
    return state


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Put every global generator back where it was."""
    state = _rng_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(state["torch.get_rng_state()"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["torch.cuda.get_rng_state()"], device)
        np.random.set_state(state["numpy.random.get_state()"])
        random.setstate(state["random.getstate()"])


def _furnish(case: _Case, differentiable: bool) -> None:
    """Give the case the state users have: own hooks, frozen layers, gradients in `.grad`, frozen batch norm."""
    modules = list(case.model.modules())
    modules[-1].register_forward_hook(_user_hook)
    parameters = list(case.model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.full_like(parameters[-1], 0.5)
    for module in modules:  # mixed flags, but nothing that samples or updates itself is in training mode
        module.training = not isinstance(module, nn.Dropout | nn.BatchNorm2d | nn.Tanh)
    if differentiable:
        for tensor in _as_tuple(case.inputs)[:1]:
            tensor.requires_grad_()
            tensor.grad = torch.full_like(tensor, 0.25)


def _user_hook(module: nn.Module, args: object, output: object) -> None:
    """A hook of the user's, which must survive."""


def _snapshot(case: _Case, device: torch.device) -> dict[str, dict[str, Any]]:
    """The state that an attributor could leave changed: aspect -> label -> value."""
    state: dict[str, dict[str, Any]] = {aspect: {} for aspect in ASPECTS}
    for name, module in case.model.named_modules():
        title = f"model.{name}" if name else "model"
        state["hooks"][f"type of {title}"] = type(module)
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                state["hooks"][f"{title}.{key}"] = dict(value)
            elif key != "training":  # of other attributes only plain ones are compared by value
                state["hooks"][f"{title}.{key}"] = value if isinstance(value, PLAIN) else "(present)"
        state["training_mode"][f"{title}.training"] = module.training
    for key, hooks in GLOBAL_HOOKS.items():
        state["hooks"][f"torch.nn.modules.module.{key}"] = dict(hooks)
    tensors = {f"model.{name}": p for name, p in case.model.named_parameters()}
    tensors |= {f"inputs[{i}]": x for i, x in enumerate(_as_tuple(case.inputs))}
    for name, tensor in tensors.items():
        state["hooks"][f"hooks of {name}"] = dict(tensor._backward_hooks or {})
        state["requires_grad"][f"{name}.requires_grad"] = tensor.requires_grad
        state["grad"][f"{name}.grad"] = (_Same(tensor.grad), None if tensor.grad is None else tensor.grad.clone())
    for name, tensor in case.model.state_dict().items():
        state["parameters"][f"model.{name}"] = tensor.detach().clone()
    for i, x in enumerate((*_as_tuple(case.inputs), *(case.args or ()))):
        state["inputs"][f"argument {i}"] = (x.detach().clone(), x.stride()) if isinstance(x, Tensor) else x
    state["rng"] = _rng_state(device)
    state["torch_settings"] = {name: read() for name, (read, _) in SETTINGS.items()}
    return state


@dataclass(frozen=True)
class _Same:
    """Equal only for the very same object; it holds the object, so that its identity is not used again."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return _brief(self.value)


# ----------------------------------------------------------------------------------------------------------------------
# Comparisons and words


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _identical(first: Any, second: Any) -> bool:
    """Bit for bit the same, through tuples; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
            return False
        return torch.equal(first, second) or bool(torch.allclose(first, second, rtol=0, atol=0, equal_nan=True))
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_identical, first, second))
    return bool(first == second)


def _brief(value: Any) -> str:
    """A few words for a value, for a line of the report."""
    if value is _UNSET:
        return "(absent)"
    if isinstance(value, Tensor):
        small = f" {value.tolist()}" if value.numel() <= 4 else ""
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)} on {value.device}{small}"
    if isinstance(value, dict):
        return f"{len(value)} hooks"
    if isinstance(value, tuple):
        return f"({', '.join(_brief(item) for item in value[:4])}{', ...' if len(value) > 4 else ''})"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _gap(received: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected value; infinite where the forms differ."""
    first, second = _as_tuple(received), _as_tuple(expected)
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        gap = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def _compare(where: str, expected: Any, received: Any, law: str, dtype: torch.dtype) -> Iterator[_Finding]:
    gap = _gap(received, expected)
    if gap > RELATIVE_TOLERANCE[dtype]:
        shapes = [[tuple(x.shape) for x in _as_tuple(value)] for value in (received, expected)]
        differing = f"shapes {shapes[0]} for {shapes[1]}" if shapes[0] != shapes[1] else f"{gap:.1e} apart"
        yield _Finding(where, f"{law}, within {RELATIVE_TOLERANCE[dtype]:.0e} of its largest value", differing)


def _rows(case: _Case, row: int) -> _Case:
    """The case reduced to one example."""

    def cut(value: Any) -> Any:
        return value[row : row + 1] if isinstance(value, Tensor) else value

    inputs = tuple(map(cut, case.inputs)) if isinstance(case.inputs, tuple) else cut(case.inputs)
    return replace(case, inputs=inputs, args=None if case.args is None else tuple(map(cut, case.args)))


def _outcome(call: Callable[[], Any]) -> tuple[Exception | None, Any]:
    try:
        return None, call()
    except Exception as error:
        return error, None


# ----------------------------------------------------------------------------------------------------------------------
# The checks. Each is a generator of findings, its docstring the law; `mend` says what usually is the matter.

CheckFunction = Callable[[_Suite], Iterator[_Finding]]
CHECKS: dict[str, tuple[CheckFunction, str]] = {}


def _check(mend: str) -> Callable[[CheckFunction], CheckFunction]:
    def register(function: CheckFunction) -> CheckFunction:
        CHECKS[function.__name__.removeprefix("_")] = (function, mend)
        return function

    return register


@_check("return a tensor for a tensor and a tuple for a tuple, one attribution of the same shape for each input")
def _output_form(suite: _Suite) -> Iterator[_Finding]:
    """Tensor in, tensor out; tuple in, tuple out, also a tuple of one; shapes are the inputs'."""
    for case in suite.cases():
        wrapped = [case] if isinstance(case.inputs, tuple) else [case, replace(case, inputs=(case.inputs,))]
        for form in wrapped:
            received = suite.attribute(form)
            shapes = [getattr(x, "shape", None) for x in _as_tuple(received)]
            expected = [x.shape for x in _as_tuple(form.inputs)]
            if isinstance(received, tuple) != isinstance(form.inputs, tuple) or shapes != expected:
                kind = type(form.inputs).__name__
                yield _Finding(
                    f"{case.name}, {kind} input",
                    f"{kind} of shapes {[tuple(s) for s in expected]}",
                    f"{type(received).__name__} of shapes {[s and tuple(s) for s in shapes]}",
                )


@_check("guard divisions (by a norm, by a range, by a sum of weights) against zero")
def _finite(suite: _Suite) -> Iterator[_Finding]:
    """Attributions are finite on ordinary, on constant and on all-zero inputs."""
    for case in suite.cases():
        for label, factor, offset in (("random", 1.0, 0.0), ("all-zero", 0.0, 0.0), ("constant", 0.0, 1.0)):
            inputs = tuple(x * factor + offset for x in _as_tuple(case.inputs))
            same = replace(case, inputs=inputs if isinstance(case.inputs, tuple) else inputs[0])
            for received in _as_tuple(suite.attribute(same)):
                if not received.isfinite().all():
                    bad = int((~received.isfinite()).sum())
                    yield _Finding(f"{case.name}, {label} inputs", "finite values", f"{bad} that are NaN or infinite")


def _dtypes(suite: _Suite, *dtypes: torch.dtype) -> Iterator[_Finding]:
    for dtype in dtypes:
        for case in suite.cases(dtype=dtype):
            for received in _as_tuple(suite.attribute(case)):
                if received.dtype != dtype:
                    yield _Finding(f"{case.name} in {dtype}", str(dtype), str(received.dtype))


@_check("create tensors with dtype=input.dtype (torch.zeros_like, input.new_tensor), not with torch's default")
def _dtype(suite: _Suite) -> Iterator[_Finding]:
    """Attributions have the dtype of the input: float32 and float64."""
    yield from _dtypes(suite, *({torch.float32, suite.dtype}))


@_check("multiply only with tensors of the input's dtype: a float32 factor promotes a bfloat16 attribution")
def _reduced_precision(suite: _Suite) -> Iterator[_Finding]:
    """Attributions of a bfloat16 model and input are bfloat16."""
    yield from _dtypes(suite, torch.bfloat16)


@_check("create tensors with device=input.device and do not call .cpu() on the result")
def _device(suite: _Suite) -> Iterator[_Finding]:
    """Attributions are on the device of the input."""
    for case in suite.cases():
        device = _as_tuple(case.inputs)[0].device
        for received in _as_tuple(suite.attribute(case)):
            if received.device != device:
                yield _Finding(case.name, str(device), str(received.device))


@_check("end with .contiguous(), for Captum's sensitivity_max and NoiseTunnel call .view on attributions")
def _contiguous(suite: _Suite) -> Iterator[_Finding]:
    """Attributions are contiguous, whatever the layout of the input and of the gradient."""
    for case in suite.cases():
        for label, laid_out in _layouts(case):
            for received in _as_tuple(suite.attribute(laid_out)):
                if not received.is_contiguous():
                    shape = f"shape {tuple(received.shape)}"
                    yield _Finding(
                        f"{case.name}, {label} input", f"contiguous, {shape}", f"strides {received.stride()}"
                    )


def _layouts(case: _Case) -> Iterator[tuple[str, _Case]]:
    """The case with the same values in other memory layouts."""

    def rearranged(change: Callable[[Tensor], Tensor]) -> _Case:
        inputs = tuple(map(change, _as_tuple(case.inputs)))
        return replace(case, inputs=inputs if isinstance(case.inputs, tuple) else inputs[0])

    yield "contiguous", case
    yield "transposed", rearranged(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    yield "strided", rearranged(lambda x: torch.stack([x, -x], dim=-1)[..., 0])
    if all(x.dim() == 4 for x in _as_tuple(case.inputs)):
        yield "channels-last", rearranged(lambda x: x.contiguous(memory_format=torch.channels_last))


@_check("use reshape in place of view on anything derived from the input")
def _strided_inputs(suite: _Suite) -> Iterator[_Finding]:
    """An input's memory layout (transposed, strided, channels-last) does not change the numbers."""
    if suite.stochastic:  # torch.randn_like fills in the order of memory
        raise _Inapplicable
    for case in suite.cases():
        expected = suite.attribute(case)
        for label, laid_out in _layouts(case):
            received = suite.attribute(laid_out)
            yield from _compare(f"{case.name}, {label} input", expected, received, "the same numbers", suite.dtype)


@_check("detach the result, or multiply with input.detach()")
def _detached(suite: _Suite) -> Iterator[_Finding]:
    """Attributions of inputs that do not require grad carry no graph."""
    for case in suite.cases():
        for received in _as_tuple(suite.attribute(case)):
            if received.requires_grad:
                graph = type(received.grad_fn).__name__
                yield _Finding(case.name, "requires_grad=False", f"requires_grad=True, from {graph}")


@_check("enable gradients around your own forward pass: with torch.enable_grad()")
def _under_no_grad(suite: _Suite) -> Iterator[_Finding]:
    """Called under torch.no_grad(), the attributor gives the same numbers."""
    for case in suite.cases():
        expected = suite.attribute(case)
        with torch.no_grad():
            received = suite.attribute(case)
        yield from _compare(case.name, expected, received, "the same numbers as with gradients enabled", suite.dtype)


@_check("accept inputs that require grad, leaves or not; differentiate a detached copy")
def _differentiable_inputs(suite: _Suite) -> Iterator[_Finding]:
    """Inputs that require grad, as leaves or as results of a computation, give the same numbers."""
    for case in suite.cases():
        expected = suite.attribute(case)
        leaves = tuple(x.clone().requires_grad_() for x in _as_tuple(case.inputs))
        for label, inputs in (("leaf", leaves), ("computed", tuple(x * 1.0 for x in leaves))):
            same = replace(case, inputs=inputs if isinstance(case.inputs, tuple) else inputs[0])
            law = "the same numbers as for plain inputs"
            yield from _compare(f"{case.name}, {label} inputs", expected, suite.attribute(same), law, suite.dtype)


@_check("differentiate with respect to the input (made to require grad), which needs no parameter to require grad")
def _frozen_parameters(suite: _Suite) -> Iterator[_Finding]:
    """A model whose parameters do not require grad gives the same numbers."""
    for case in suite.cases():
        expected = suite.attribute(case)
        case.model.requires_grad_(False)
        yield from _compare(case.name, expected, suite.attribute(case), "the same numbers", suite.dtype)


@_check("keep nothing from one call to the next (hook outputs, caches); draw no random numbers unless stochastic")
def _repeatable(suite: _Suite) -> Iterator[_Finding]:
    """The same call gives the same numbers, after a call with other inputs and on a fresh attributor."""
    for case in suite.cases():
        attribution = suite.make(case.model)
        expected = suite.attribute(case, attribution=attribution)
        suite.attribute(_rows(case, 1), attribution=attribution)
        yield from _compare(
            case.name,
            expected,
            suite.attribute(case, attribution=attribution),
            "the numbers of the first call",
            suite.dtype,
        )
        yield from _compare(
            case.name, expected, suite.attribute(case), "the numbers of another attributor", suite.dtype
        )
        if not suite.stochastic:
            torch.rand(1)  # within check_attribution's own preserve_rng
            received = attribution.attribute(case.inputs, **suite.kwargs(case))
            law = "the same numbers whatever the random state (or declare stochastic=True)"
            yield from _compare(case.name, expected, received, law, suite.dtype)


@_check("normalise, rank or average within an example, never over the batch; mind which dimension is the batch")
def _batch_independence(suite: _Suite) -> Iterator[_Finding]:
    """A batch of N gives the numbers of N batches of one."""
    if suite.stochastic:
        raise _Inapplicable
    for case in suite.cases():
        singles = [_as_tuple(suite.attribute(_rows(case, row))) for row in range(BATCH)]
        expected = tuple(torch.cat(parts) for parts in zip(*singles, strict=True))
        yield from _compare(case.name, expected, suite.attribute(case), "the numbers of single examples", suite.dtype)


def _row_by_row(suite: _Suite, case: _Case, targets: list[int]) -> tuple[Tensor, ...]:
    """Attributions whose row i comes from a call with the plain int targets[i] for the whole batch."""
    calls = [_as_tuple(suite.attribute(case, target=target)) for target in targets]
    return tuple(torch.stack([call[row] for row, call in enumerate(parts)]) for parts in zip(*calls, strict=True))


@_check("select the output through Captum's own _select_targets, or handle every form that it does")
def _target_forms(suite: _Suite) -> Iterator[_Finding]:
    """An int, a tuple of one, a list and integer tensors of dimension 0 and 1 mean the same target."""
    suite.require("target")
    for case in suite.cases(*VECTOR_OUTPUT):
        expected = suite.attribute(case, target=2)
        forms = ((2,), torch.tensor(2), torch.tensor([2]), [2] * BATCH, torch.tensor([2] * BATCH), [(2,)] * BATCH)
        for form in forms:
            form = form.to(suite.device) if isinstance(form, Tensor) else form
            received = suite.attribute(case, target=form)
            yield from _compare(f"{case.name}, target={form!r}", expected, received, "as for target=2", suite.dtype)


@_check("select the output through Captum's own _select_targets: a target may be a tuple, or one tuple an example")
def _target_tuples(suite: _Suite) -> Iterator[_Finding]:
    """For outputs of more than two dimensions a tuple, or a list of one tuple an example, selects the output."""
    suite.require("target")
    for case in suite.cases("many_outputs"):
        flat = replace(case, model=nn.Sequential(case.model, nn.Flatten()))
        for form in ((1, 2), [(1, 2)] * BATCH, [(0, 1), (3, 0), (1, 2)]):
            pairs = form if isinstance(form, list) else [form] * BATCH
            expected = _row_by_row(suite, flat, [first * 3 + second for first, second in pairs])
            received = suite.attribute(case, target=form)
            law = "as for the flattened output at the same positions"
            yield from _compare(f"{case.name}, target={form!r}", expected, received, law, suite.dtype)


@_check("give each example its own target: select output[i, target[i]]")
def _target_per_example(suite: _Suite) -> Iterator[_Finding]:
    """A list or tensor of N targets attributes example i to target i."""
    suite.require("target")
    for case in suite.cases(*VECTOR_OUTPUT):
        targets = [(row + 1) % CLASSES for row in range(BATCH)]
        expected = _row_by_row(suite, case, targets)
        for form in (targets, torch.tensor(targets, device=suite.device)):
            received = suite.attribute(case, target=form)
            law = "row i as for target[i]"
            yield from _compare(f"{case.name}, target={form!r}", expected, received, law, suite.dtype)


@_check("differentiate the selected output; drop the argument if the method has no use for a target")
def _target_used(suite: _Suite) -> Iterator[_Finding]:
    """Another target gives other attributions: no argument is accepted and ignored."""
    suite.require("target")
    for case in suite.cases(*VECTOR_OUTPUT):
        first, second = suite.attribute(case, target=0), suite.attribute(case, target=2)
        if _gap(first, second) <= RELATIVE_TOLERANCE[suite.dtype]:
            yield _Finding(case.name, "other attributions for target=0 than for target=2", "the same")


@_check("when the model returns one value an example, select nothing: target=None is right")
def _target_none(suite: _Suite) -> Iterator[_Finding]:
    """A model with one output an example, (N,) or (N, 1), needs no target."""
    suite.require("target")
    for case in suite.cases(*VECTOR_OUTPUT):
        expected = suite.attribute(case)
        for column, shape in ((1, "(N,)"), (slice(1, 2), "(N, 1)")):
            single = replace(case, model=_Selected(case.model, column))
            received = suite.attribute(single, target=None)
            law = "with target=None as for the full model's target"
            yield from _compare(f"{case.name} with output {shape}", expected, received, law, suite.dtype)


@_check("let Captum's own _select_targets refuse a target, before anything is changed")
def _target_refused(suite: _Suite) -> Iterator[_Finding]:
    """A malformed target raises what Captum's Saliency raises: wrong range, length, depth or type, or none at all."""
    suite.require("target")
    bad: list[Any] = [
        99,
        1,
        (99,),
        (1, 2, 3),
        [0] * (BATCH + 1),
        [],
        [(99,)] * BATCH,
        1.5,
        "seven",
        [0.5] * BATCH,
        None,
    ]
    bad += [torch.zeros(BATCH + 1, dtype=torch.long), torch.zeros(BATCH, 2, dtype=torch.long)]
    if suite.device.type == "cpu":  # elsewhere an index out of range in a tensor brings the device down
        bad += [[99] * BATCH, torch.tensor([99] * BATCH)]
    for case in suite.cases():
        reference, attribution = Saliency(case.model), suite.make(case.model)
        for target in bad:
            target = target.to(suite.device) if isinstance(target, Tensor) else target
            extra = {} if case.args is None else {"additional_forward_args": case.args}
            inputs = tuple(x.clone() for x in _as_tuple(case.inputs))
            expected, _ = _outcome(partial(reference.attribute, inputs, target=target, **extra))
            received, _ = _outcome(partial(suite.attribute, case, target=target, attribution=attribution))
            if expected is not None and not isinstance(received, type(expected)):
                yield _Finding(
                    f"{case.name}, target={target!r}",
                    f"{type(expected).__name__}, as from Saliency: {_brief(str(expected))}",
                    "no exception" if received is None else f"{type(received).__name__}: {_brief(str(received))}",
                )


@_check("pass additional_forward_args on to the model after the inputs; attribute the inputs only")
def _additional_forward_args(suite: _Suite) -> Iterator[_Finding]:
    """Additional arguments, one alone or a tuple, reach the model and get no attribution."""
    suite.require("additional_forward_args")
    for case in suite.cases("two_inputs"):
        assert case.args is not None
        scale, shift = case.args[0][:1], case.args[1]  # one example's, so that it can be built into the model
        each = scale.expand(BATCH, 1)
        for args, last in (((each, shift), (scale, shift)), (each, (scale,))):
            bound = replace(case, model=_Selected(case.model, slice(None), last), args=None)
            expected = suite.attribute(bound)
            received = suite.attribute(case, additional_forward_args=args)
            law = "as for the model with these arguments built in"
            yield from _compare(f"{case.name}, {len(_as_tuple(args))} arguments", expected, received, law, suite.dtype)


@_check("do not catch the model's exceptions")
def _model_error_propagates(suite: _Suite) -> Iterator[_Finding]:
    """An exception in the model's forward pass reaches the caller as it was raised."""
    for case in suite.cases():
        attribution = suite.make(case.model)
        assert isinstance(case.model, _Model)
        case.model.fuse = "forward"
        error, result = _outcome(partial(suite.attribute, case, attribution=attribution))
        if not isinstance(error, _ModelError):
            received = f"no exception but {_brief(result)}" if error is None else f"{type(error).__name__}: {error}"
            yield _Finding(case.name, "the model's own exception", received)


@_check("decorate attribute with captum.log.log_usage(), whose __wrapped__ NoiseTunnel calls; treat each row by itself")
def _noise_tunnel(suite: _Suite) -> Iterator[_Finding]:
    """NoiseTunnel wraps the attributor, and with zero noise gives the attributor's own numbers."""
    for case in suite.cases():
        expected = suite.attribute(case)
        tunnel = NoiseTunnel(suite.make(case.model))
        for kind, stdev in (("smoothgrad", 0.0), ("vargrad", 0.5)):
            settings = {"nt_type": kind, "nt_samples": 2, "stdevs": stdev}
            received = suite.attribute(case, attribution=tunnel, **settings)
            if kind == "smoothgrad" and not suite.stochastic:
                law = "with zero noise, the attributor's numbers"
                yield from _compare(case.name, expected, received, law, suite.dtype)
            elif [x.shape for x in _as_tuple(received)] != [x.shape for x in _as_tuple(case.inputs)]:
                shapes = [tuple(x.shape) for x in _as_tuple(received)]
                yield _Finding(f"{case.name}, {kind}", "the inputs' shapes", str(shapes))


def _metric_findings(case: _Case, value: Any) -> Iterator[_Finding]:
    if not isinstance(value, Tensor) or value.shape != (BATCH,) or not value.isfinite().all():
        yield _Finding(case.name, f"{BATCH} finite values", _brief(value))


@_check("return attributions of the inputs' shapes and dtype, without a graph, one for each input")
def _infidelity(suite: _Suite) -> Iterator[_Finding]:
    """captum.metrics.infidelity accepts the attributions and gives one finite value an example."""
    for case in suite.cases():

        def perturb(inputs: Inputs) -> tuple[Inputs, Inputs]:
            noise = tuple(torch.randn_like(x) * 0.01 for x in _as_tuple(inputs))
            moved = tuple(x - n for x, n in zip(_as_tuple(inputs), noise, strict=True))
            return (noise, moved) if isinstance(inputs, tuple) else (noise[0], moved[0])

        attributions = suite.attribute(case)
        with suite.seeded():
            value = infidelity(
                case.model,
                perturb,
                case.inputs,
                attributions,
                additional_forward_args=case.args,
                target=case.target,
                n_perturb_samples=2,
            )
        yield from _metric_findings(case, value)


@_check("accept a tuple of one and a batch of any size, and return contiguous attributions")
def _sensitivity_max(suite: _Suite) -> Iterator[_Finding]:
    """captum.metrics.sensitivity_max can call the attributor and gives one finite value an example."""
    # A model that permutes its input is left to the check `contiguous`, so that one cause fails one check.
    for case in suite.cases("mlp", "cnn", "two_inputs", "many_outputs"):
        attribution = suite.make(case.model)

        def explain(inputs: Inputs, attribution: Attribution = attribution, **kwargs: Any) -> Any:
            return attribution.attribute(inputs, **kwargs)

        with suite.seeded():
            value = sensitivity_max(explain, case.inputs, n_perturb_samples=2, **suite.kwargs(case))
        yield from _metric_findings(case, value)


@_check("return (attributions, delta) with one delta an example if has_convergence_delta(), else refuse the argument")
def _convergence_delta(suite: _Suite) -> Iterator[_Finding]:
    """return_convergence_delta=True adds N deltas, or raises where has_convergence_delta() is false."""
    for case in suite.cases():
        error, received = _outcome(partial(suite.attribute, case, return_convergence_delta=True))
        if not suite.has_delta:
            if error is None:
                yield _Finding(case.name, "an exception, for has_convergence_delta() is False", _brief(received))
            continue
        if error is not None:
            raise error
        if not isinstance(received, tuple) or len(received) != 2 or not isinstance(received[1], Tensor):
            yield _Finding(case.name, "(attributions, delta)", _brief(received))
            continue
        attributions, delta = received
        size = delta.numel() // BATCH if suite.stochastic else 1  # sampling methods give a delta a sample
        if delta.shape != (BATCH * size,):
            yield _Finding(case.name, f"delta of shape ({BATCH},)", str(tuple(delta.shape)))
        law = "the attributions of a call without delta"
        yield from _compare(case.name, suite.attribute(case), attributions, law, suite.dtype)


@_check("delta = sum of attributions - (f(input) - f(baseline)), or - f(input) where there is no baseline")
def _convergence_delta_value(suite: _Suite) -> Iterator[_Finding]:
    """Delta is what compute_convergence_delta says, and the sum of attributions less the output (difference)."""
    if not suite.has_delta or suite.stochastic:
        raise _Inapplicable
    for case in suite.cases():
        attributions, delta = suite.attribute(case, return_convergence_delta=True)
        inputs, kwargs = _as_tuple(case.inputs), suite.kwargs(case)
        baselines = kwargs.get("baselines", 0.0)
        given = _as_tuple(baselines) if isinstance(baselines, tuple) else (baselines,) * len(inputs)
        start = tuple(torch.zeros_like(x) + b for x, b in zip(inputs, given, strict=True))
        total = sum(x.detach().flatten(1).sum(1) for x in _as_tuple(attributions))
        output, origin = case.output(), replace(case, inputs=start).output()
        scale = sum(x.detach().flatten(1).abs().sum(1) for x in _as_tuple(attributions)) + output.abs() + origin.abs()
        gaps = [((delta - total + change).abs() / scale).max().item() for change in (output - origin, output)]
        if not min(gaps) <= RELATIVE_TOLERANCE[suite.dtype]:
            expected = f"{_brief(total - output + origin)} or {_brief(total - output)}"
            yield _Finding(case.name, f"the sum of attributions less the change of output: {expected}", _brief(delta))
        attribution = suite.make(case.model)
        names = list(inspect.signature(attribution.compute_convergence_delta).parameters)
        points = {"start_point": start, "end_point": inputs, "inputs": inputs, **kwargs}
        if case.args is None:
            points.pop("additional_forward_args", None)
        call = {name: points[name] for name in names[1:] if name in points}
        if "end_point" in call or "inputs" in call:
            computed = attribution.compute_convergence_delta(attributions, **call)
            if not ((delta - computed).abs() <= RELATIVE_TOLERANCE[suite.dtype] * scale).all():
                yield _Finding(case.name, f"compute_convergence_delta's {_brief(computed)}", _brief(delta))


def _restoration_check(aspect: str, scenario: str) -> None:
    what, mend = ASPECTS[aspect]

    def check(suite: _Suite) -> Iterator[_Finding]:
        if aspect == "rng" and suite.stochastic:
            raise _Inapplicable
        yield from suite.leftovers(scenario)[aspect]

    check.__name__ = f"{aspect}_after_{scenario}"
    check.__doc__ = f"{what[0].upper()}{what[1:]} are as before {SCENARIOS[scenario]}."
    _check(mend)(check)


for _aspect in ASPECTS:
    for _scenario in SCENARIOS:
        _restoration_check(_aspect, _scenario)


# ----------------------------------------------------------------------------------------------------------------------
# The public functions


# Where Captum's own methods break a law: attributor -> check -> what happens. Measured with Captum 0.8 and 0.9.
_STRIDES = "returns the gradient's strides, which sensitivity_max then fails to view as (N, -1)"
_UNDONE = "undo_gradient_requirements is not in a finally: the caller's input keeps requires_grad=True"
_GRAPH = "multiplies with the input itself, so the result requires grad and .numpy() fails"
_REQUIRES_GRAD = {"requires_grad_after_bad_target": _UNDONE, "requires_grad_after_raising_model": _UNDONE}
_ATTRIBUTES = "leaves tensors in the attributes input and output of the model's activations"
CAPTUM_DEPARTURES: Mapping[str, Mapping[str, str]] = {
    "Saliency": {"contiguous": _STRIDES, **_REQUIRES_GRAD},
    "InputXGradient": {"contiguous": _STRIDES, "detached": _GRAPH, **_REQUIRES_GRAD},
    "IntegratedGradients": {"reduced_precision": "weighs gradients by float32 step sizes, so bfloat16 becomes float32"},
    "GuidedBackprop": {"contiguous": _STRIDES, **_REQUIRES_GRAD},
    "Deconvolution": {"contiguous": _STRIDES, **_REQUIRES_GRAD},
    "DeepLift": {
        "contiguous": _STRIDES,
        "detached": _GRAPH,
        "hooks_after_bad_target": _ATTRIBUTES,
        "hooks_after_raising_model": _ATTRIBUTES,
        **_REQUIRES_GRAD,
    },
}


def attribution_checks() -> dict[str, str]:
    """The checks that `check_attribution` knows.

    Returns:
        The law each check holds an attributor to, by the check's name, in the order in which they run.

    Example:
        >>> attribution_checks()["batch_independence"]
        'A batch of N gives the numbers of N batches of one.'
    """
    return {name: (function.__doc__ or "").splitlines()[0] for name, (function, _) in CHECKS.items()}


def check_attribution(
    make_attribution: Callable[[nn.Module], Attribution],
    *,
    checks: Collection[str] | None = None,
    skip: Collection[str] = (),
    models: Collection[str] | None = None,
    device: str | torch.device = "cpu",
    attribute_kwargs: Mapping[str, Any] | Callable[[Inputs], Mapping[str, Any]] | None = None,
    stochastic: bool = False,
    seed: int = 0,
) -> tuple[str, ...]:
    """Hold a Captum attributor to what Captum's users rely on, as scikit-learn's `check_estimator` does estimators.

    Each check runs on small built-in models, with random weights: an MLP, a CNN with batch norm and dropout, a sequence
    model that permutes its input, one of two inputs with additional forward arguments, and one whose output is
    (N, 4, 3). A check on something that the attributor's `attribute` does not take (`target`,
    `additional_forward_args`) or does not offer (a convergence delta) does not run. The caller's random state and
    torch's global settings are left as they were.

    Args:
        make_attribution: From a model to the attributor: a class such as `Saliency`, or a function such as
            `lambda model: IntegratedGradients(model, multiply_by_inputs=False)`.
        checks: Names of the checks to run; all of `attribution_checks()` by default.
        skip: Names of checks to leave out.
        models: Names of the built-in models to use, of "mlp", "cnn", "sequence", "two_inputs" and "many_outputs"; all
            by default. A method for images alone takes `models=("cnn",)`.
        device: Where models and inputs are.
        attribute_kwargs: Further arguments of every call of `attribute`, such as `{"n_steps": 8}`; or a function that
            makes them from the inputs (a tensor or a tuple), such as a baseline of the inputs' shape or a fresh
            `torch.Generator`.
        stochastic: Declares that the method draws from the global random generators. The suite then seeds them before
            each call, lets their state move, and leaves out what sampling cannot promise.
        seed: Seed of the models' weights, of the inputs and of a stochastic method.

    Returns:
        The names of the checks that ran, all of which passed.

    Raises:
        ConformanceError: An AssertionError that lists, for every check that failed, the law, on which model, what was
            expected and received, and what usually mends it.
        ValueError: For an unknown name in `checks`, `skip` or `models`.
        TypeError: If `make_attribution` does not return a Captum `Attribution`.

    Example:
        Captum's own methods pass but for what `CAPTUM_DEPARTURES` says of them:

        >>> from captum.attr import Saliency
        >>> ran = check_attribution(Saliency, checks=("output_form", "target_forms", "hooks_after_raising_model"))
        >>> ran
        ('output_form', 'target_forms', 'hooks_after_raising_model')
    """
    for argument, names, known in (
        ("checks", checks or (), CHECKS),
        ("skip", skip, CHECKS),
        ("models", models or (), MODELS),
    ):
        unknown = sorted({names} if isinstance(names, str) else set(names).difference(known))
        if unknown:
            raise ValueError(f"{argument} takes a collection of {', '.join(known)}; received {', '.join(unknown)}")
    place = torch.device(device)
    kept = tuple(MODELS) if models is None else tuple(models)
    failures: list[Failure] = []
    ran: list[str] = []
    with preserve_rng(place), preserve_settings(), warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        suite = _Suite(make_attribution, kept, place, attribute_kwargs or {}, stochastic, seed)
        for name, (function, mend) in CHECKS.items():
            if name in skip or (checks is not None and name not in checks):
                continue
            found: list[_Finding] = []
            try:
                with preserve_settings():
                    found.extend(function(suite))
            except _Inapplicable:
                continue
            except Exception as error:
                found.append(_Finding(suite.where, "no exception", f"{type(error).__name__}: {error}"))
            ran.append(name)
            failures.extend(Failure(name, *finding, mend) for finding in found)
    if failures:
        raise ConformanceError(suite.name, failures, len(ran))
    return tuple(ran)
