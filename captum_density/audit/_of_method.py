"""The figures of one attribution method, each from the same seed, in batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import median, stdev

import torch
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor

from captum_density import metrics
from captum_density._model.errors import one_line
from captum_density.audit._measures import Measured, of_examples
from captum_density.audit._methods import Made, Method
from captum_density.audit._setting import Setting

__all__ = ["OF_METHOD", "Explained", "Replay"]

_ERASED = 0.2
# So many calls are timed, or fewer that take so long together; one that took this long is not repeated.
_TIMED_CALLS, _TIMED_SECONDS, _LONG = 3, 1.0, 10.0
# Bytes of outputs that are remembered for the next method; a model of more is run again.
_REMEMBERED = 2**28
# NoiseTunnel's sums of squares and variances, whose deltas are of what was not squared.
_NO_SUM = ("smoothgrad_sq", "vargrad")


class Replay:
    """A model that remembers what it returned, for methods that are measured on the same inputs in the same order.

    Captum's infidelity runs the model on all perturbed inputs for each method; seeded alike, they are the same.

    Args:
        model: (N, ...) to (N, classes).
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self._model = model
        self._kept: list[tuple[tuple[object, ...], Tensor]] = []
        self._next = self._bytes = 0

    def rewind(self) -> None:
        """Start again from the first call."""
        self._next = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs, computed only where this call's inputs are not those of the call in this place before."""
        weights = torch.linspace(1, 2, inputs[0].numel(), dtype=torch.float64, device=inputs.device)
        sums = inputs.detach().double().flatten(1) @ weights
        key = (tuple(inputs.shape), *sums.tolist())
        at, self._next = self._next, self._next + 1
        if at < len(self._kept) and self._kept[at][0] == key:
            return self._kept[at][1]
        outputs = self._model(inputs).detach()
        if at <= len(self._kept) and self._bytes < _REMEMBERED:
            self._kept[at:] = [(key, outputs)]
            self._bytes += outputs.nbytes
        return outputs


class Explained:
    """One method on the audited examples; attributions are computed when the first figure needs them.

    Args:
        setting: What all share.
        name: As in the report.
        method: How to make it.
        replays: Of the model and of each view, shared by the methods; by the view's identity.
    """

    def __init__(self, setting: Setting, name: str, method: Method, replays: dict[int, Replay]) -> None:
        self.setting, self.name, self.method = setting, name, method
        self.failure: str | None = None
        self._replays = replays
        self._gaps: list[Tensor] = []
        self._first = 0.0
        self._times: list[float] = []

    @cached_property
    def made(self) -> Made:
        """The method, made for the model; where it cannot be, `failure` says why."""
        with self._noting_failure():
            self.setting.reseed()
            return Made(self.name, self.method, self.setting.model, self.setting.batch)

    @property
    def replay(self) -> Replay:
        """The view's outputs, remembered."""
        return self._replays.setdefault(id(self.method.view), Replay(self.made.explained))

    @cached_property
    def attributions(self) -> Tensor:
        """(N, ...) of all examples; what they lack of a sum, and how long they take, is noted on the way."""
        with self._noting_failure():
            return self._attributed()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = one_line(error)
            raise

    def _attributed(self) -> Tensor:
        options = self.made.options
        promises_sum = self.made.attribution.has_convergence_delta() and "nt_samples_batch_size" not in options
        promises_sum = promises_sum and options.get("nt_type") not in _NO_SUM
        self.setting.reseed()
        start = time.perf_counter()
        found = []
        for at in self.setting.chunks():
            if promises_sum:
                part, delta = self._attribute(at, return_convergence_delta=True)
                # NoiseTunnel gives a delta per noisy sample; its attributions are the mean over the samples.
                delta = delta.detach().reshape(len(part), -1).mean(dim=1)
                ought = part.detach().flatten(1).sum(dim=1) - delta
                # Nothing of nothing is missing: an input that is the baseline.
                self._gaps.append((delta.abs() / ought.abs()).masked_fill((delta == 0) & (ought == 0), 0).double())
            else:
                part = self._attribute(at)
            found.append(part.detach())
        self._first = self._elapsed(start)
        attributions = torch.cat(found)
        x = self.setting.inputs
        shapes = {tuple(x.shape), *([(len(x), 1, *x.shape[2:])] if self.setting.has_channels else [])}
        if tuple(attributions.shape) not in shapes:
            raise ValueError(
                f"attributions must have the inputs' shape, {tuple(x.shape)}, but have {tuple(attributions.shape)}; "
                "of a layer's, take `captum.attr.LayerAttribution.interpolate`"
            )
        if not attributions.isfinite().all():
            raise ValueError(f"{int((~attributions.isfinite()).sum())} of the attributions are NaN or infinite")
        return attributions

    def gaps(self) -> Tensor | None:
        """(N,) |delta| / |what should be the sum|; None where the method promises none."""
        _ = self.attributions
        return torch.cat(self._gaps) if self._gaps else None

    def seconds(self) -> list[float]:
        """Of calls on all examples after the first one, or of that one where it was long."""
        _ = self.attributions
        if self._first > _LONG:
            return [self._first]
        while not self._times or (len(self._times) < _TIMED_CALLS and sum(self._times) < _TIMED_SECONDS):
            start = time.perf_counter()
            for at in self.setting.chunks():
                self._attribute(at)
            self._times.append(self._elapsed(start))
        return self._times

    def of_one(self) -> Tensor:
        """(1, ...) of the first example, from the same seed."""
        made = self.made
        self.setting.reseed()
        found = made.attribution.attribute(self.setting.inputs[:1], target=self.setting.target[:1], **made.options)
        return found.detach()

    def _attribute(self, at: slice, **extra: bool) -> tuple[Tensor, Tensor] | Tensor:
        inputs, target = self.setting.inputs[at], self.setting.target[at]
        return self.made.attribution.attribute(inputs, target=target, **self.made.options, **extra)

    def _elapsed(self, start: float) -> float:
        if self.setting.inputs.is_cuda:
            torch.cuda.synchronize(self.setting.inputs.device)
        return time.perf_counter() - start


def _completeness_gap(explained: Explained) -> Measured:
    gaps = explained.gaps()
    return Measured(None, note="the method promises no sum") if gaps is None else of_examples(gaps)


def _infidelity(explained: Explained) -> Measured:
    zero = _infidelities(explained, torch.zeros_like(explained.setting.inputs), True)
    found = _infidelities(explained, explained.attributions, explained.made.multiplies_by_inputs)
    return of_examples(found, reference=zero.mean().item())


def _infidelities(explained: Explained, attributions: Tensor, multiplies_by_inputs: bool) -> Tensor:
    setting, generator = explained.setting, torch.Generator().manual_seed(explained.setting.seed)

    # Captum's decorator lets a contribution vanish with its feature and a slope act on its change.
    @infidelity_perturb_func_decorator(multiplies_by_inputs)
    def erase(inputs: Tensor) -> Tensor:
        erased = torch.rand(inputs.shape, generator=generator).to(inputs.device) < _ERASED
        return inputs.masked_fill(erased, 0)

    explained.replay.rewind()
    found = [
        infidelity(
            explained.replay,
            erase,
            setting.inputs[at],
            attributions[at].expand_as(setting.inputs[at]),
            target=setting.target[at],
            n_perturb_samples=setting.infidelity_samples,
            max_examples_per_batch=_at_once(setting, at, setting.infidelity_samples),
            normalize=True,
        )
        for at in setting.chunks()
    ]
    return torch.cat(found).double()


def _at_once(setting: Setting, at: slice, samples: int) -> int:
    """What Captum takes without a warning: no more than there are."""
    return min(setting.batch, samples * len(setting.inputs[at]))


def _sensitivity_max(explained: Explained) -> Measured:
    setting, made = explained.setting, explained.made
    setting.reseed()
    found = [
        sensitivity_max(
            made.attribution.attribute,
            setting.inputs[at],
            perturb_radius=setting.perturb_radius,
            n_perturb_samples=setting.sensitivity_samples,
            max_examples_per_batch=_at_once(setting, at, setting.sensitivity_samples),
            target=setting.target[at],
            **made.options,
        )
        for at in setting.chunks()
    ]
    return of_examples(torch.cat(found))


def _shift_sensitivity(explained: Explained) -> Measured:
    setting, made = explained.setting, explained.made
    if setting.classes == 1:
        return Measured(None, note="one output has no softmax to shift")
    setting.reseed()
    found = [
        metrics.shift_sensitivity(
            made.attribute_of, setting.model, setting.inputs[at], target=setting.target[at], **made.options
        ).cosine_distance
        for at in setting.chunks()
    ]
    return of_examples(torch.cat(found))


def _pixel_perturbation(explained: Explained) -> Measured:
    if explained.setting.classes == 1:
        return Measured(None, note="one output has no softmax")
    if len(explained.setting.inputs) == 1:
        return Measured(None, note="one example is its own mean, which removed pixels take")
    at_random = explained.setting.random_area
    gained = explained.setting.kept_area(explained.attributions) - at_random
    return of_examples(gained, reference=at_random.mean().item(), seed=explained.setting.seed)


def _diff_roar(explained: Explained) -> Measured:
    setting, made, retraining = explained.setting, explained.made, explained.setting.retraining
    if retraining is None:
        raise ValueError("diff_roar needs retraining, a captum_density.audit.Retraining")

    def ranking(inputs: Tensor) -> Tensor:
        inputs = inputs.to(setting.inputs)
        outputs = setting.model(inputs)
        target = outputs.argmax(dim=1) if setting.classes > 1 else 0
        found: Tensor = made.attribution.attribute(inputs, target=target, **made.options)
        return found.detach().expand_as(inputs)

    with tempfile.TemporaryDirectory() as scratch:
        result = metrics.diff_roar(
            retraining.make_model,
            retraining.train,
            retraining.test,
            {explained.name: ranking},
            controls=("random",),
            seed=setting.seed,
            store=setting.cells or Path(scratch),
            show_progress=setting.show_progress,
            max_examples_per_batch=setting.batch,
            **retraining.options,
        )
    value, low, high = result.means()[0].tolist()
    return Measured(value, low=low, high=high, reference=result.means("random")[0, 0].item())


def _seconds(explained: Explained) -> Measured:
    times = explained.seconds()
    return Measured(median(times), stdev(times) if len(times) > 1 else None)


OF_METHOD: Mapping[str, Callable[[Explained], Measured]] = {
    "completeness_gap": _completeness_gap,
    "infidelity": _infidelity,
    "sensitivity_max": _sensitivity_max,
    "shift_sensitivity": _shift_sensitivity,
    "pixel_perturbation": _pixel_perturbation,
    "diff_roar": _diff_roar,
    "seconds": _seconds,
}
