"""The figures of an audit one by one: measured, or read from the store where they were measured before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import captum
import torch
from torch import Tensor

from captum_density import __version__
from captum_density._cache.identity import described, identity_of_model, name_of, of_library, rounded
from captum_density._cache.store import Store
from captum_density._model.errors import one_line
from captum_density._model.generators import seeded
from captum_density.audit._measures import Measured
from captum_density.audit._of_method import Explained
from captum_density.audit._setting import Setting
from captum_density.audit._shown import Shown, shown_map
from captum_density.density import class_score

__all__ = ["Cells"]

_SCHEMA = 2
_FEW = 8
Key = tuple[Any, ...] | None


class Cells:
    """Every figure by what it depends on.

    Args:
        setting: What all share.
        store: Where finished figures are kept; None to keep none.
        bar: The progress bar.
    """

    def __init__(self, setting: Setting, store: Store | None, bar: Any) -> None:
        self._setting, self._store, self._bar = setting, store, bar
        self._ground = None if store is None else name_of(_ground(setting))
        self._needed: dict[str, Any] = {}

    def identity_of(self, explained: Explained) -> Any:
        """What tells a method from another, as JSON; None where nothing does, or nothing is kept.

        A method of the user's is told by what it computes for an example as well: its code may call other code.
        """
        method = explained.method
        if self._store is None:
            return None
        try:
            told = described(method)
        except TypeError:  # measured, and not kept
            return None
        makers = [part for part in (method.make, method.view) if part is not None]
        if all(_ours(getattr(part, "__module__", None) or "") for part in makers):
            return told
        try:
            return [told, rounded(explained.of_one())]
        except Exception as error:  # said by the figures
            return [told, type(error).__name__]

    def figure(
        self, row: str, name: str, key: Key, measure: Callable[[], Measured], explained: Explained | None = None
    ) -> Measured:
        """One figure of a row; an error becomes a failed one, which is tried again next time."""
        self._bar.set_postfix_str(f"{row}: {name}")
        identity = self._identity(key)
        known = self._read(identity)
        if known is not None:
            measured = Measured(**known)
        elif explained is not None and explained.failure is not None:
            measured = Measured(None, note=explained.failure, failed=True)
        else:
            try:
                measured = measure()
            except Exception as error:  # whatever a method raises is said in its row
                measured = Measured(None, note=one_line(error), failed=True)
            if not measured.failed:
                self._write(identity, asdict(measured))
        self._bar.update()
        return measured

    def shown(self, key: Key, explained: Explained) -> Tensor | None:
        """What is drawn of a method's attributions; None where it fails, or the inputs are no images."""
        identity = self._identity(key)
        known = self._read(identity)
        if known is not None:
            found = Shown.unpacked(known["map"])
        elif explained.failure is not None or not Shown.can_show(self._setting.inputs):
            found = None
        else:
            try:
                found = shown_map(explained.attributions)
            except Exception:  # said by the figures already
                found = None
            if found is not None:
                self._write(identity, {"map": Shown.packed(found)})
        self._bar.update()
        return found

    def _read(self, identity: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if self._store is None or identity is None else self._store.read(identity)

    def _write(self, identity: dict[str, Any] | None, result: dict[str, Any]) -> None:
        if self._store is not None and identity is not None:
            self._store.write(identity, result)

    def _identity(self, key: Key) -> dict[str, Any] | None:
        if self._store is None or key is None:
            return None
        figure = key[-1]
        if figure not in self._needed:
            self._needed[figure] = self._needs(figure)
        return {"audit": _SCHEMA, "ground": self._ground, "key": list(key), "needs": self._needed[figure]}

    def _needs(self, figure: str) -> Any:
        """What one figure alone depends on."""
        few, proxy, retraining = self._setting.inputs[:_FEW], self._setting.proxy, self._setting.retraining
        try:
            if figure == "gan_test" and proxy is not None:
                with torch.no_grad():
                    return [described(proxy), rounded(proxy(few))]
            if figure == "diff_roar" and retraining is not None:
                with seeded(self._setting.seed, torch.device("cpu")):
                    model = retraining.make_model()
                return [described(retraining), identity_of_model(retraining.make_model, model, few.cpu())]
        except Exception as error:  # said by the figure
            return type(error).__name__
        return None


def _ours(module: str) -> bool:
    """Whether code is a library's, which changes with its version only."""
    return of_library(module) or module.partition(".")[0] in ("captum", "captum_density")


def _ground(setting: Setting) -> dict[str, Any]:
    """What every figure depends on, as JSON: what is given, and what the model computes from it."""
    told = "model inputs labels no_labels target seed noise_std perturb_radius"
    told += " infidelity_samples sensitivity_samples batch"
    found = {each: described(getattr(setting, each)) for each in told.split()}
    x, outputs = setting.inputs, rounded(setting.logits)
    gradients = rounded(class_score(setting.model, x[:_FEW], setting.target[:_FEW]))
    versions = [__version__, captum.__version__, torch.__version__]
    numbers = [str(torch.get_default_dtype()), torch.is_autocast_enabled(), str(x.device)]
    return found | {"computed": [outputs, gradients], "versions": versions, "numbers": numbers}
