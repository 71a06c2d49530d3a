"""The figures of an audit one by one: measured, or read from the store where they were measured before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import captum
import torch
from torch import Tensor

from captum_density import __version__
from captum_density._cache.identity import described, name_of, of_library, rounded
from captum_density._cache.store import Store
from captum_density._model.errors import one_line
from captum_density._model.refusals import looked_at_together
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures import FIGURES
from captum_density.audit._figures.figure import Figure
from captum_density.audit._maps import Maps, drawn_maps
from captum_density.audit._results import Measured, as_json, from_json
from captum_density.audit._setting import Setting
from captum_density.density import class_score

__all__ = ["Measurements"]

T = TypeVar("T")
_SCHEMA = 5
_GROUND = (
    "model inputs rows labels no_labels target task kind seed noise_std perturb_radius infidelity_samples "
    "sensitivity_samples batch budget"
).split()


class Measurements:
    """Every figure by what it depends on.

    Args:
        setting: What all share.
        store: Where finished figures are kept; None to keep none.
        bar: The progress bar.
    """

    def __init__(self, setting: Setting, store: Store | None, bar: Any) -> None:
        self._setting, self._store, self._bar = setting, store, bar
        self._ground = None if store is None else name_of(_ground(setting))
        self._needs: dict[str, Any] = {}
        self._methods: dict[str, Any] = {}

    def of_model(self, figure: Figure[Setting]) -> Measured:
        """A figure of the model; an error becomes a failed one, which is tried again next time."""

        def measure() -> Measured:
            obstacle = figure.obstacle(self._setting)
            return Measured(None, note=obstacle) if obstacle else figure.measure(self._setting)

        return self._figure("the model", figure.name, ("model", figure.name), measure)

    def of_method(self, figure: Figure[Explanation], explanation: Explanation) -> Measured:
        """The same of a method."""

        def measure() -> Measured:
            if explanation.failure is not None:
                return Measured(None, note=explanation.failure, failed=True)
            obstacle = figure.obstacle(self._setting)
            return Measured(None, note=obstacle) if obstacle else figure.measure(explanation)

        measured = self._figure(explanation.name, figure.name, self._key(explanation, figure.name), measure)
        explanation.row[figure.name] = measured
        return measured

    def maps(self, explanation: Explanation) -> Tensor | None:
        """What is drawn of a method's attributions; None where it fails, or the inputs cannot be drawn."""
        identity = self._identity(self._key(explanation, "map"))
        maps = self._read(identity, lambda content: Maps.unpacked(content["map"]))
        self._bar.update()
        if maps is not None:
            return maps
        if explanation.failure is not None or not Maps.can_show(self._setting.inputs, self._setting.kind):
            return None
        try:
            maps = drawn_maps(explanation.attributions)
        except Exception:  # said by the figures already
            return None
        self._write(identity, {"map": Maps.packed(maps)})
        return maps

    def _figure(self, row: str, name: str, key: tuple[Any, ...] | None, measure: Callable[[], Measured]) -> Measured:
        self._bar.set_postfix_str(f"{row}: {name}")
        identity = self._identity(key)
        measured = self._read(identity, from_json)
        if measured is None:
            try:
                with looked_at_together():
                    measured = measure()
            except Exception as error:  # whatever a method raises is said in its row
                measured = Measured(None, note=one_line(error), failed=True)
            if not measured.failed:
                self._write(identity, as_json(measured))
        self._bar.update()
        return measured

    def _read(self, identity: dict[str, Any] | None, decode: Callable[[dict[str, Any]], T]) -> T | None:
        return None if self._store is None or identity is None else self._store.read(identity, decode)

    def _write(self, identity: dict[str, Any] | None, content: dict[str, Any]) -> None:
        if self._store is not None and identity is not None:
            self._store.write(identity, content)

    def _identity(self, key: tuple[Any, ...] | None) -> dict[str, Any] | None:
        if self._store is None or key is None:
            return None
        name = key[-1]
        if name not in self._needs:
            self._needs[name] = _needs(self._setting, name)
        return {"audit": _SCHEMA, "ground": self._ground, "key": list(key), "needs": self._needs[name]}

    def _key(self, explanation: Explanation, name: str) -> tuple[Any, ...] | None:
        """What tells a figure of a method from others; None where nothing does, or nothing is kept."""
        if self._store is None:
            return None
        if explanation.name not in self._methods:
            self._methods[explanation.name] = _method_identity(explanation)
        identity = self._methods[explanation.name]
        return None if identity is None else ("method", identity, name)


def _method_identity(explanation: Explanation) -> Any:
    """What tells a method from another, as JSON; None where nothing does.

    A method of the user's is told by what it computes for an example as well: its code may call other code.
    """
    method = explanation.method
    try:
        description = described(method)
    except TypeError:  # measured, and not kept
        return None
    makers = [part for part in (method.make, method.view) if part is not None]
    if all(_of_package(getattr(part, "__module__", None) or "") for part in makers):
        return description
    try:
        return [description, rounded(explanation.of_one())]
    except Exception as error:  # said by the figures
        return [description, type(error).__name__]


def _of_package(module: str) -> bool:
    """Whether code is a library's, which changes with its version only."""
    return of_library(module) or module.partition(".")[0] in ("captum", "captum_density")


def _needs(setting: Setting, name: str) -> Any:
    """What one figure alone depends on."""
    figure = FIGURES.get(name)
    if figure is None or figure.identity is None:
        return None
    try:
        return figure.identity(setting)
    except Exception as error:  # said by the figure
        return type(error).__name__


def _ground(setting: Setting) -> dict[str, Any]:
    """What every figure depends on, as JSON: what is given, and what the model computes from it."""
    arguments = {each: described(getattr(setting, each)) for each in _GROUND}
    outputs = rounded(setting.logits)
    few = slice(len(setting.few))
    score = class_score(setting.model, setting.few, setting.target[few], **setting.arguments(few))
    versions = [__version__, captum.__version__, torch.__version__]
    numbers = [str(torch.get_default_dtype()), torch.is_autocast_enabled(), str(setting.inputs.device)]
    return arguments | {"computed": [outputs, rounded(score)], "versions": versions, "numbers": numbers}
