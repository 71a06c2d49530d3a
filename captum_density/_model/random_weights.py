"""A model whose weights are drawn anew, the topmost layers first, and are its own again afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_density._model.fixed_modules import modules_of
from captum_density._model.generators import seeded
from captum_density._model.sparse import dense_parts

__all__ = ["RandomWeights"]

# Of one module: its parameters and buffers by name.
_Tensors = dict[str, Tensor | None]


class RandomWeights:
    """New weights for a model: its modules' own initial values, as `reset_parameters` draws them.

    A parameter that no module draws anew keeps its values, in random order. Nothing is copied but parameters and
    buffers, and the model's own are not written to: others stand in their place for as long as `drawn_anew` lasts.
    So what holds on to the model or to a layer of it explains the changed model, too.

    Args:
        model: A module, or a function that runs modules.
        inputs: Some examples, which tell in what order layers run.
        seed: Of the drawing.
        additional_forward_args: What else the model takes.

    References:
        J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt and B. Kim, "Sanity Checks for Saliency Maps",
        NeurIPS 2018, arXiv 1810.03292, section 3: cascading randomization.
    """

    def __init__(
        self, model: Callable[..., Any], inputs: Tensor, seed: int, additional_forward_args: tuple[Any, ...] = ()
    ) -> None:
        self._layers = _layers(model, inputs, additional_forward_args)
        self._new = self._draw(seed, inputs.device)

    def __len__(self) -> int:
        """How many layers have weights that can be drawn anew; none of TorchScript's can."""
        return len(self._layers)

    @contextmanager
    def drawn_anew(self, top: int | None = None, *, alone: bool = False) -> Iterator[None]:
        """Within, layers have other weights.

        Args:
            top: How many, those nearest to the output; None for all.
            alone: Whether of these only the one that is furthest from the output.
        """
        first = 0 if top is None else len(self) - top
        layers = self._layers[first : first + 1] if alone else self._layers[first:]
        with _substituted([(module, self._new[module]) for layer in layers for module in layer]):
            yield

    def _draw(self, seed: int, device: torch.device) -> dict[nn.Module, _Tensors]:
        """Other weights for every module, with all in place: a module's `reset_parameters` may reach into its parts."""
        modules = [module for layer in self._layers for module in layer]
        memo: dict[int, Any] = {}  # a tensor of two modules stays one
        new = {module: {name: _copy(value, memo) for name, value in _own(module).items()} for module in modules}
        with seeded(seed, device), torch.no_grad(), _substituted(list(new.items())):
            for module in modules:
                reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
                if callable(reset):
                    with suppress(Exception):  # a user's, which may want arguments: in random order, then
                        reset()
            drawn = {module: _own(module) for module in modules}
        done: set[int] = set()
        with seeded(seed, device), torch.no_grad():
            for module in modules:
                for name, value in drawn[module].items():
                    before = _own(module).get(name)
                    if isinstance(value, nn.Parameter) and isinstance(before, Tensor) and id(value) not in done:
                        done.add(id(value))
                        values, old = dense_parts(value)[-1], dense_parts(before)[-1]
                        if values.shape == old.shape and torch.equal(values, old):
                            values.copy_(_in_random_order(old))
        return drawn


def _copy(value: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    """As `copy.deepcopy`, which not all sparse tensors have."""
    if value is None or value.layout == torch.strided:
        return copy.deepcopy(value, memo)
    if id(value) not in memo:
        values = value.detach().clone()
        memo[id(value)] = nn.Parameter(values, value.requires_grad) if isinstance(value, nn.Parameter) else values
    copied: Tensor = memo[id(value)]
    return copied


def _in_random_order(values: Tensor) -> Tensor:
    order = torch.randperm(values.numel(), device="cpu").to(values.device)
    return values.flatten()[order].reshape(values.shape)


def _layers(model: Callable[..., Any], inputs: Tensor, args: tuple[Any, ...]) -> list[list[nn.Module]]:
    """Modules with weights in the order in which they first run, each with those parts of it that never do.

    Attention's last projection, for one, is no module that runs: attention takes its weights.
    """
    ran: dict[nn.Module, None] = {}
    hook = register_module_forward_pre_hook(lambda module, _: ran.setdefault(module))
    try:
        with torch.no_grad():
            model(inputs, *args)
    finally:
        hook.remove()
    for module in modules_of(model)[:1]:
        ran.setdefault(module)
    seen: set[nn.Module] = set()
    layers = []
    for module in ran:
        parts = [part for part in _with_idle_parts(module, ran) if part not in seen]
        parts = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]
        layer = [part for part in parts if any(True for _ in part.parameters(recurse=False))]
        seen.update(layer)
        if layer:
            layers.append(layer)
    return layers


def _with_idle_parts(module: nn.Module, ran: Container[nn.Module]) -> Iterator[nn.Module]:
    yield module
    for part in module.children():
        if part not in ran:
            yield from _with_idle_parts(part, ran)


def _own(module: nn.Module) -> _Tensors:
    """A module's parameters and buffers, not those of its parts."""
    return {**module._parameters, **module._buffers}


@contextmanager
def _substituted(tensors: list[tuple[nn.Module, _Tensors]]) -> Iterator[None]:
    """Within, modules have other parameters and buffers."""
    own = [(module, dict(module._parameters), dict(module._buffers)) for module, _ in tensors]
    try:
        for module, values in tensors:
            _put(module, values)
        yield
    finally:
        for module, parameters, buffers in own:
            _put(module, {**parameters, **buffers})


def _put(module: nn.Module, values: _Tensors) -> None:
    for name, value in values.items():
        if name in module._buffers:
            module._buffers[name] = value
        elif isinstance(value, nn.Parameter):
            setattr(module, name, value)  # as recurrent modules keep another list of theirs
