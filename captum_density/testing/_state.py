"""Checks that everything is as it was: after success, after a malformed target, after a model that raises."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_density.testing._attributor import Attributor
from captum_density.testing._globals import GLOBAL_HOOKS, preserved, read_settings, rng_states
from captum_density.testing._models import BATCH, Case
from captum_density.testing._registry import Check
from captum_density.testing._violations import Violation, brief, identical

# aspect -> (what is as before, how to mend it)
ASPECTS = {
    "hooks": (
        "Hooks on modules, parameters and inputs, torch's global module hooks, and the modules' attributes",
        "keep every hook's handle and call its remove() in a finally; do not patch or leave attributes on the model",
    ),
    "training_mode": (
        "Every module's `training` flag",
        "do not call model.eval() or train(); if you must, record each module's own flag, restore it in a finally",
    ),
    "parameters": ("The values of parameters and buffers", "work on copies, or restore the values in a finally"),
    "requires_grad": (
        "`requires_grad` of parameters and inputs",
        "work on input.detach().requires_grad_() and leave the caller's tensors alone, or restore in a finally",
    ),
    "grad": (
        "`.grad` of parameters and inputs (the same tensor with the same values)",
        "use torch.autograd.grad(output, tensors), which does not accumulate, in place of backward()",
    ),
    "rng": (
        "The state of torch's, NumPy's and Python's global random generators",
        "draw from a torch.Generator of your own, or declare stochastic=True if the method samples",
    ),
    "inputs": (
        "The values and layout of inputs and additional forward arguments",
        "do not write to an argument in place: clone it first",
    ),
    "torch_settings": (
        "Torch's global settings: grad mode, default dtype, backend switches, active function modes",
        "change a global setting only within a `with` statement",
    ),
}
_SCENARIOS = {
    "success": "after a successful call",
    "bad_target": "after a malformed target",
    "raising_model": "after a model that raises, forward or backward",
}
_BAD_TARGETS = (99, [0] * (BATCH + 1), "seven")
_PLAIN = bool | int | float | str
_State = dict[str, dict[str, Any]]  # aspect -> label -> value


def _furnish(case: Case, differentiable: bool) -> None:
    """Give the case the state users have: own hooks, frozen layers, gradients in `.grad`, frozen batch norm."""
    modules, parameters = list(case.model.modules()), list(case.model.parameters())
    modules[-1].register_forward_hook(_user_hook)
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.full_like(parameters[-1], 0.5)
    for module in modules:  # mixed flags, but nothing that samples or updates itself is in training mode
        module.training = not isinstance(module, nn.Dropout | nn.BatchNorm2d | nn.Tanh)
    if differentiable:
        x = case.tensors[0].requires_grad_()
        x.grad = torch.full_like(x, 0.25)


def _user_hook(module: nn.Module, args: object, output: object) -> None:
    """A hook of the user's, which must survive."""


class _Same:
    """Equal only for the very same object, which it holds, so that its identity is not used again."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __repr__(self) -> str:
        return brief(self.value)


def _snapshot(case: Case, device: torch.device) -> _State:
    """All that an attributor could leave changed."""
    state: _State = {aspect: {} for aspect in ASPECTS}
    for name, module in case.model.named_modules():
        title = f"model.{name}" if name else "model"
        state["hooks"][f"type of {title}"] = type(module)
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                state["hooks"][f"{title}.{key}"] = dict(value)
            elif key != "training":  # of other attributes only plain ones are compared by value
                state["hooks"][f"{title}.{key}"] = value if isinstance(value, _PLAIN) else "(present)"
        state["training_mode"][f"{title}.training"] = module.training
    state["hooks"] |= {key: dict(hooks) for key, hooks in GLOBAL_HOOKS.items()}
    tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in case.model.named_parameters()}
    tensors |= {f"inputs[{i}]": x for i, x in enumerate(case.tensors)}
    for name, tensor in tensors.items():
        state["hooks"][f"hooks of {name}"] = dict(tensor._backward_hooks or {})
        state["requires_grad"][f"{name}.requires_grad"] = tensor.requires_grad
        state["grad"][f"{name}.grad"] = (_Same(tensor.grad), None if tensor.grad is None else tensor.grad.clone())
    for name, tensor in case.model.state_dict().items():
        state["parameters"][f"model.{name}"] = tensor.detach().clone()
    for i, x in enumerate((*case.tensors, *(case.args or ()))):
        state["inputs"][f"argument {i}"] = (x.detach().clone(), x.stride()) if isinstance(x, Tensor) else x
    state["rng"] = rng_states(device)
    state["torch_settings"] = read_settings()
    return state


def _situations(attributor: Attributor, name: str, scenario: str) -> Iterator[tuple[str, Case]]:
    """Fresh cases for a scenario, with the words that tell one from another."""
    for differentiable in (False, True):
        words = "inputs that require grad" if differentiable else "plain inputs"
        for target in _BAD_TARGETS if scenario == "bad_target" else ():
            case = attributor.case(name)
            case.target = target
            _furnish(case, differentiable)
            yield f"{words}, target={target!r}", case
        for fuse in {"success": [""], "raising_model": ["forward", "backward"]}.get(scenario, []):
            case = attributor.case(name, fuse)
            _furnish(case, differentiable)
            yield f"{words}, raising in its {fuse} pass" if fuse else words, case


def _leftovers(attributor: Attributor, case: Case, scenario: str, aspect: str) -> Iterator[Violation]:
    """What differs between before and after the scenario's calls; the calls are made once for all aspects."""
    key = (case.name, scenario)
    if key not in attributor.memory:
        attributor.memory[key] = list(_changes(attributor, *key))
    yield from (violation for changed, violation in attributor.memory[key] if changed == aspect)


def _changes(attributor: Attributor, name: str, scenario: str) -> Iterator[tuple[str, Violation]]:
    for where, case in _situations(attributor, name, scenario):
        kwargs = attributor.kwargs(case)
        before = _snapshot(case, attributor.device)
        with preserved(attributor.device):
            # What it raises is another check's business; here only what it leaves behind counts.
            with contextlib.suppress(Exception):
                attributor.make(case.model).attribute(case.inputs, **kwargs)
            after = _snapshot(case, attributor.device)
        for aspect in ASPECTS:
            for label in before[aspect] | after[aspect]:
                old, new = (state[aspect].get(label, "(absent)") for state in (before, after))
                if not identical(old, new):
                    received = brief(new) if brief(new) != brief(old) else f"{brief(new)}, but another or changed"
                    yield aspect, Violation(f"{label} as before: {brief(old)}", received, where)


def _needs(aspect: str, scenario: str) -> list[str]:
    return ["determinism"] * (aspect == "rng") + ["target"] * (scenario == "bad_target")


RESTORATION = [
    Check(
        name=f"{aspect}_after_{scenario}",
        law=f"{what} are as before {when}.",
        mend=mend,
        function=partial(_leftovers, scenario=scenario, aspect=aspect),
        needs=_needs(aspect, scenario),
    )
    for aspect, (what, mend) in ASPECTS.items()
    for scenario, when in _SCENARIOS.items()
]
