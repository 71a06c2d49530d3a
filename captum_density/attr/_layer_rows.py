"""Which layer an operation is of: the rows of a ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from captum_density._linear.trace import enclosing_trace

__all__ = ["LayerRows"]


class LayerRows:
    """The layers of a model: for each list of layers, what comes before, they themselves, and what comes after.

    Args:
        model: The model.
        paths: The paths of its lists of layers; None to find them.

    Raises:
        ValueError: A path that leads to no list.
    """

    def __init__(self, model: Callable[..., Any], paths: Sequence[str] | None) -> None:
        self._blocks = _blocks(model, paths)

    @property
    def names(self) -> list[str]:
        """The rows in words."""
        lists = [["embedding", *map(str, range(len(own))), "final"] for own in self._blocks.values()]
        if len(lists) < 2:
            return lists[0] if lists else ["embedding", "final"]
        stacks = [path.rpartition(".")[0] or path for path in self._blocks]
        return [f"{stack} {layer}" for stack, layers in zip(stacks, lists, strict=True) for layer in layers]

    @property
    def first_of_last(self) -> int:
        """The first row of the last list, a decoder's where there is an encoder."""
        return self._first(len(self._blocks) - 1)

    @contextmanager
    def watched(self) -> Iterator[Callable[[str], int]]:
        """Within, the model is run; gives what tells an operation's row by its name, afterwards."""
        before: dict[str, set[str]] = {path: set() for path in self._blocks}
        entered: set[tuple[object, str]] = set()

        def note(path: str, module: nn.Module, args: Any) -> None:
            trace = enclosing_trace()
            if trace is not None and (trace, path) not in entered:
                entered.add((trace, path))
                before[path] |= {operation.name for operation in trace.operations}

        with ExitStack() as stack:
            for path, modules in self._blocks.items():
                for module in modules:
                    stack.callback(module.register_forward_pre_hook(partial(note, path)).remove)
            yield lambda name: self._row(name, before)
        entered.clear()

    def _row(self, name: str, before: dict[str, set[str]]) -> int:
        """By the path of the operation's module; where that is in no layer, by when it ran."""
        path, lists = name.rpartition(":")[0], list(self._blocks)
        for i, own in enumerate(lists):
            numbered = re.match(rf"{re.escape(own)}\.(\d+)(\.|$)", path)
            if numbered:
                return self._first(i) + 1 + int(numbered[1])
        following = next((i for i, own in enumerate(lists) if name in before[own]), len(lists))
        last = self._first(following) - 1  # what ends the list before
        if not lists:
            return 1
        if following == 0 or following == len(lists):
            return max(last, 0)
        parent = lists[following - 1].rpartition(".")[0]
        return last if path == parent or path.startswith(f"{parent}.") else last + 1

    def _first(self, index: int) -> int:
        return sum(len(own) + 2 for own in list(self._blocks.values())[: max(index, 0)])


def _blocks(model: Callable[..., Any], paths: Sequence[str] | None) -> dict[str, list[nn.Module]]:
    """The lists of layers by their paths: modules of one class, which have parts, in a list of their own.

    Raises:
        ValueError: A path that leads to no list.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if paths is not None:
        wrong = [path for path in paths if not isinstance(modules.get(path), nn.ModuleList | nn.Sequential)]
        if wrong:
            known = ", ".join(map(repr, _blocks(model, None))) or "none that is found"
            raise ValueError(f"layers must name lists of modules, but {wrong[0]!r} is none; this model has {known}")
        return {path: list(modules[path].children()) for path in paths}
    result: dict[str, list[nn.Module]] = {}
    for path, module in modules.items():
        children = list(module.children())
        within = any(path.startswith(f"{outer}.") for outer in result)
        alike = len({type(child) for child in children}) == 1 and any(True for _ in children[0].children())
        if isinstance(module, nn.ModuleList | nn.Sequential) and path and alike and not within:
            result[path] = children
    return result
