"""One attribution method on the audited examples: made once, run once, asked by every figure."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._model.attribution import attribution_maker, attribution_of
from captum_density._model.errors import describe, one_line
from captum_density._model.refusals import looked_at_together, refuse_where
from captum_density.audit._methods import Method
from captum_density.audit._results import Measured
from captum_density.audit._runs import rows_of_the_outermost
from captum_density.audit._setting import Setting

__all__ = ["Explanation"]

T = TypeVar("T")

# NoiseTunnel's sums of squares and variances, whose deltas are of what was not squared.
_NO_SUM = ("smoothgrad_sq", "vargrad")


class Explanation:
    """What a method says of the audited examples, computed when the first figure needs it.

    Where the method cannot be made, or fails on the examples, `failure` says why, and every figure with it.

    Args:
        setting: What all methods share.
        name: As in the report.
        method: How to make it.

    Attributes:
        failure: Why there is nothing, if so.
        row: Its figures that are measured already, in their order.
        times: Seconds of each pass over all examples, which figures make anyway.
    """

    def __init__(self, setting: Setting, name: str, method: Method) -> None:
        self.setting, self.name, self.method = setting, name, method
        self.failure: str | None = None
        self.times: list[float] = []
        self.row: dict[str, Measured] = {}
        self._shared: dict[Hashable, Any] = {}

    @functools.cached_property
    def _parts(self) -> tuple[Callable[..., Tensor], Attribution, dict[str, Any]]:
        with self._failing():
            self.setting.reseed()
            function = self._viewed(self.setting.model)
            return function, *self._make(function)

    @property
    def function(self) -> Callable[..., Tensor]:
        """What is explained: the model, or the method's view of it."""
        return self._parts[0]

    @property
    def attribution(self) -> Attribution:
        """The method, made for what is explained."""
        return self._parts[1]

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `attribute`."""
        return {**_frugal(self.attribution, self.setting.batch), **self._parts[2], **self.method.options}

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether a feature's attribution is its contribution and not a slope."""
        declared = self.method.multiplies_by_inputs
        return bool(self.attribution.multiplies_by_inputs if declared is None else declared)

    def attribution_of(self, model: Callable[..., Tensor]) -> Attribution:
        """The method, made for another model."""
        return self._make(self._viewed(model))[0]

    def attribute(self, inputs: Tensor, target: Tensor | int, **extra: Any) -> Any:
        """What the method returns for any inputs."""
        return self.attribution.attribute(inputs, target=target, **self.options, **extra)

    def attribute_rows(self, at: slice, target: Tensor | int | None = None, **extra: bool) -> Any:
        """What the method returns for some of the examples, of the explained class or another."""
        setting = self.setting
        target = setting.target[at] if target is None else target
        return self.attribute(setting.inputs[at], target, **setting.arguments(at), **extra)

    def attribute_all(self, target: Tensor | None = None) -> Tensor:
        """(N, ...) of all examples, from the seed, of the explained classes or others."""
        return self._all(lambda at: self.attribute_rows(at, None if target is None else target[at]))[0]

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several figures of the method have in common, made when the first of them needs it."""
        if key not in self._shared:
            self._shared[key] = make()
        value: T = self._shared[key]
        return value

    @property
    def attributions(self) -> Tensor:
        """(N, ...) of all examples."""
        return self._pass[0]

    @property
    def deltas(self) -> Tensor | None:
        """(N,) by how much each example's attributions exceed what ought to be their sum; None without a promise."""
        return self._pass[1]

    @property
    def passes(self) -> int:
        """How many runs of the model, of one example each, the method takes for an example."""
        return self._pass[2]

    def of_one(self) -> Tensor:
        """(1, ...) of the first example, from the same seed."""
        _ = self.attribution
        self.setting.reseed()
        # The class as a number: Captum reads one of a tensor at each run, and waits for a GPU.
        first = self.setting.shared("first target", lambda: int(self.setting.target[0]))
        return self.attribute_rows(slice(1), first).detach()

    @functools.cached_property
    def _pass(self) -> tuple[Tensor, Tensor | None, int]:
        with self._failing(), looked_at_together():
            options = self.options
            has_sum = self.attribution.has_convergence_delta() and "nt_samples_batch_size" not in options
            has_sum = has_sum and options.get("nt_type") not in _NO_SUM
            deltas: list[Tensor] = []

            def attribute(at: slice) -> Tensor:
                if not has_sum:
                    part: Tensor = self.attribute_rows(at)
                    return part
                part, delta = self.attribute_rows(at, return_convergence_delta=True)
                # NoiseTunnel gives a delta per noisy sample; its attributions are the mean over the samples.
                deltas.append(delta.detach().reshape(len(part), -1).mean(dim=1))
                return part

            attributions, rows = self._all(attribute)
            self._check(attributions)
            return attributions, torch.cat(deltas) if has_sum else None, rows // len(attributions)

    def _all(self, attribute: Callable[[slice], Tensor]) -> tuple[Tensor, int]:
        """The parts of all examples together, each from its seed, and how many rows the model ran for them."""
        start, parts = time.perf_counter(), []
        with rows_of_the_outermost() as rows:
            for at in self.setting.chunks():
                self.setting.reseed(at)
                parts.append(attribute(at).detach())
        self.times.append(self.setting.elapsed(start))
        return torch.cat(parts), next(iter(rows.values()), 0)

    def _check(self, attributions: Tensor) -> None:
        x = self.setting.inputs
        shapes = {tuple(x.shape), *([(len(x), 1, *x.shape[2:])] if self.setting.has_channels else [])}
        if tuple(attributions.shape) not in shapes:
            raise ValueError(
                f"attributions must have the inputs' shape, {tuple(x.shape)}, but have {tuple(attributions.shape)}; "
                "of a layer's, take `captum.attr.LayerAttribution.interpolate`"
            )
        bad = (~attributions.isfinite()).sum()
        refuse_where(bad > 0, lambda: ValueError(f"{int(bad)} of the attributions are NaN or infinite"))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = one_line(error)
            raise

    def _viewed(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.method.view is None:
            return model
        view = self.method.view(model)
        return view.eval() if isinstance(view, nn.Module) else view

    def _make(self, function: Callable[..., Tensor]) -> tuple[Attribution, dict[str, Any]]:
        """The attribution, and options that a `functools.partial` of its method sets."""
        name = f"attributions[{self.name!r}]"
        attributor = attribution_maker(self.method.make, name)(function)
        attribution = attribution_of(attributor)
        if attribution is None:
            raise TypeError(f"{name} must make a captum.attr.Attribution for a model, but made {describe(attributor)}")
        options: dict[str, Any] = {}
        while isinstance(attributor, functools.partial):
            options = {**attributor.keywords, **options}
            attributor = attributor.func
        return attribution, options


def _frugal(attribution: Attribution, batch: int) -> dict[str, Any]:
    """Options by which Captum's methods run no more copies of the examples at once than there are examples."""
    parameters = inspect.signature(attribution.attribute).parameters
    options = {"internal_batch_size": batch}
    if not attribution.has_convergence_delta():  # NoiseTunnel's deltas of samples in parts are in another order
        options["nt_samples_batch_size"] = 1
    return {name: value for name, value in options.items() if name in parameters}
