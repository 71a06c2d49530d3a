"""How well attributions foretell what erasing part of the input does: Captum's `infidelity`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from captum.metrics import infidelity
from torch import Tensor

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._results import Finding, Measured, Results, by_method
from captum_density.audit._setting import Setting

__all__ = ["INFIDELITY"]

_NAME = "infidelity"
_ERASED = 0.2
# Of a map of zeros: where little of a map is left to read.
_NO_BETTER = 0.9
# Bytes of outputs that are kept for the next method; a model of more is run again.
_KEPT_BYTES = 2**28


class _Replay:
    """A model whose outputs are kept for methods that are measured on the same inputs in the same order.

    Captum's infidelity runs the model on all perturbed inputs for each method; seeded alike, they are the same. Whether
    they are is asked once all are there, as a GPU is waited for at each question.

    Args:
        model: (N, ...) to (N, classes).
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self._model = model
        self._calls: list[tuple[Tensor, Tensor]] = []
        self._differs: list[Tensor] = []
        self._next = self._bytes = 0

    def measured(self, measure: Callable[[], Tensor]) -> Tensor:
        """What a function returns that calls this from the first call on; alike, whatever was called before."""
        self._next, self._differs = 0, []
        result = measure()
        if not self._differs or not bool(torch.stack(self._differs).any()):
            return result
        self._calls.clear()
        self._next, self._bytes, self._differs = 0, 0, []
        return measure()

    def __call__(self, inputs: Tensor, *rows: Tensor) -> Tensor:
        """The outputs, computed only where there was no call in this place before."""
        weights = torch.linspace(1, 2, inputs[0].numel(), dtype=torch.float64, device=inputs.device)
        sums = inputs.detach().double().flatten(1) @ weights
        at, self._next = self._next, self._next + 1
        if at < len(self._calls) and self._calls[at][0].shape == sums.shape:
            self._differs.append((self._calls[at][0] != sums).any())
            return self._calls[at][1]
        outputs = self._model(inputs, *rows).detach()
        if at <= len(self._calls) and self._bytes < _KEPT_BYTES:
            self._calls[at:] = [(sums, outputs)]
            self._bytes += outputs.nbytes
        return outputs


def _measure(explanation: Explanation) -> Measured:
    setting, view = explanation.setting, id(explanation.method.view)
    # By what is explained, which several methods have in common.
    replay = setting.shared((_NAME, view), lambda: _Replay(explanation.function))
    zeros = torch.zeros_like(setting.inputs)
    zero = setting.shared((_NAME, view, "zero"), lambda: _infidelities(setting, replay, zeros, True))
    values = _infidelities(setting, replay, explanation.attributions, explanation.multiplies_by_inputs)
    return of_examples(values, reference=zero)


def _infidelities(setting: Setting, model: _Replay, attributions: Tensor, multiplies_by_inputs: bool) -> Tensor:
    def measure() -> Tensor:
        erase = partial(_erased, setting.generator(), multiplies_by_inputs)
        values = [
            infidelity(
                model,
                erase,
                setting.inputs[at],
                attributions[at].expand_as(setting.inputs[at]),
                target=setting.target[at],
                **setting.arguments(at),
                n_perturb_samples=setting.infidelity_samples,
                max_examples_per_batch=setting.at_once(at, setting.infidelity_samples),
                normalize=True,
            )
            for at in setting.chunks()
        ]
        return torch.cat(values).double()

    return model.measured(measure)


def _erased(generator: torch.Generator, multiplies_by_inputs: bool, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What attributions are multiplied by, and the inputs with values erased.

    A contribution vanishes with its feature, and a slope acts on its change, as Captum's decorator has it; that copies
    a number to a GPU in each call, which waits for it.
    """
    erased = (torch.rand(inputs.shape, generator=generator, device="cpu") < _ERASED).to(inputs.device)
    changed = inputs.masked_fill(erased, 0)
    return ((erased & (inputs != 0)).to(inputs.dtype) if multiplies_by_inputs else inputs - changed), changed


def _findings(results: Results) -> Iterator[Finding]:
    # Of a map of zeros, whose own infidelity is another for logits than for a view of them.
    shares = {
        name: (measured.value or 0.0) / measured.reference
        for name, measured in by_method(results, _NAME).items()
        if measured.reference
    }
    unfaithful = [name for name, share in shares.items() if share >= _NO_BETTER]
    others = [name for name, share in shares.items() if share < _NO_BETTER]
    if unfaithful:
        best = min(others, key=shares.__getitem__, default="")
        yield Finding(
            "warning",
            f"{listed(unfaithful)} {verb('foretell', unfaithful)} what erasing part of the input does hardly better "
            "than a map of zeros.",
            f"For such questions, {listed([best])} does best here." if best else "",
        )


INFIDELITY = Figure(
    name=_NAME,
    title="infidelity",
    better="lower is better",
    meaning="Mean squared error of the change in output that the attributions foretell, in squared units of the "
    "output, when a random fifth of the input is set to 0, the attributions' scale and sign fitted; a map of zeros is "
    "what to compare with.",
    measure=_measure,
    findings=_findings,
    priority=1,
    reference="a map of zeros",
    panel=Panel(relative=True, logarithmic_below=0.02, line=(1.0, "a map of zeros")),
)
