"""How well attributions foretell what erasing part of the input does: Captum's `infidelity`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import listed, verb
from captum_density.audit._results import Finding, Measured, Results, by_method
from captum_density.audit._setting import Setting
from captum_density.softmax_shift import CenteredLogits

__all__ = ["INFIDELITY"]

_NAME = "infidelity"
_ERASED = 0.2
# Of a map of zeros: where little of a map is left to read.
_NO_BETTER = 0.9
_FEWEST = 25  # samples, before they may be enough


@dataclass(frozen=True)
class _Erasure:
    """Some examples, each several times with values erased, and what becomes of the model's outputs.

    Args:
        at: The examples.
        samples: How many times each.
        state: Of the generator that erases: masks are drawn again where they are needed, as all are too many to keep.
        logits: (N, samples, classes) of the erased inputs.
    """

    at: slice
    samples: int
    state: Tensor
    logits: Tensor

    def masks(self, inputs: Tensor) -> Tensor:
        """(N * samples, ...) whether a value is erased."""
        return _drawn(torch.Generator().set_state(self.state), inputs[self.at], self.samples)


def _measure(explanation: Explanation) -> Measured:
    setting, view = explanation.setting, explanation.method.view
    erasures = setting.shared((_NAME, "erasures"), lambda: list(_erasures(setting)))
    changes = setting.shared((_NAME, id(view)), lambda: [_changes(explanation, erasure) for erasure in erasures])
    # A contribution vanishes with its feature, and a slope acts on its change, as Captum's decorator has it.
    x = setting.inputs
    effects = explanation.attributions * ((x != 0).to(x.dtype) if explanation.multiplies_by_inputs else x)
    zero = setting.shared((_NAME, id(view), "zero"), lambda: _infidelities(setting, erasures, changes, None))
    return of_examples(_infidelities(setting, erasures, changes, effects), reference=zero)


def _erasures(setting: Setting) -> Iterator[_Erasure]:
    """In the order in which Captum's metric asks for them, so that figures are its own."""
    generator = setting.generator()
    for at in setting.chunks():
        inputs, taken = setting.inputs[at], 0
        squares: list[Tensor] = []
        most = min(max(setting.at_once(at, setting.infidelity_samples) // len(inputs), 1), setting.infidelity_samples)
        while taken < setting.infidelity_samples and not _are_enough(setting, squares):
            samples, state = min(most, setting.infidelity_samples - taken), generator.get_state()
            masks = _drawn(generator, inputs, samples)
            erased = inputs.repeat_interleave(samples, dim=0).masked_fill_(masks, 0)
            with torch.no_grad():
                logits = setting.model(erased, *_rows(setting, at, samples)).unflatten(0, (-1, samples))
            yield _Erasure(at, samples, state, logits)
            taken += samples
            squares.append(
                (_explained(setting, at, logits) - _explained(setting, at, setting.logits[at][:, None])) ** 2
            )


def _are_enough(setting: Setting, squares: list[Tensor]) -> bool:
    """Whether more samples of the same examples would hardly change the mean square, (N, samples) each."""
    if not setting.budget.enough or sum(each.shape[1] for each in squares) < _FEWEST:
        return False
    values = torch.cat(squares, dim=1).double()
    error = (values.var(dim=1) / values.shape[1]).sum().sqrt() / len(values)
    return bool(error <= setting.budget.enough * values.mean())


def _drawn(generator: torch.Generator, inputs: Tensor, samples: int) -> Tensor:
    shape = (len(inputs) * samples, *inputs.shape[1:])
    return (torch.rand(shape, generator=generator, device="cpu") < _ERASED).to(inputs.device)


def _rows(setting: Setting, at: slice, samples: int) -> tuple[Tensor, ...]:
    """What the model takes beside copies of examples that stand together."""
    return tuple(
        rows.repeat_interleave(samples, dim=0) for rows in setting.arguments(at).get("additional_forward_args", ())
    )


def _explained(setting: Setting, at: slice, logits: Tensor) -> Tensor:
    """(N, samples) of (N, samples, classes)."""
    return logits.gather(2, setting.target[at][:, None, None].expand(-1, logits.shape[1], 1))[:, :, 0]


def _changes(explanation: Explanation, erasure: _Erasure) -> Tensor:
    """(N, samples) by how much the explained output falls as values are erased."""
    setting, at, samples, view = explanation.setting, erasure.at, erasure.samples, explanation.method.view
    inputs = setting.inputs[at]

    def viewed(logits: Tensor, erased: Callable[[], Tensor]) -> Tensor:
        copies = logits.shape[1]
        if view is None:
            return logits
        if view is CenteredLogits:  # which reads the logits alone
            return CenteredLogits(lambda _: logits.flatten(0, 1))(inputs).unflatten(0, (-1, copies))
        return explanation.function(erased(), *_rows(setting, at, copies)).unflatten(0, (-1, copies))

    def erased() -> Tensor:
        return inputs.repeat_interleave(samples, dim=0).masked_fill_(erasure.masks(setting.inputs), 0)

    with torch.no_grad():
        before = viewed(setting.logits[at][:, None], lambda: inputs)
        return _explained(setting, at, before) - _explained(setting, at, viewed(erasure.logits, erased))


def _infidelities(setting: Setting, erasures: list[_Erasure], changes: list[Tensor], effects: Tensor | None) -> Tensor:
    """(N,) Captum's, normalised: the mean of (beta a - c)^2, c the change and a what the effects foretell of it.

    Args:
        setting: What all figures share.
        erasures: Of the examples.
        changes: (N, samples) of each of them.
        effects: (N, ...) what erasing a value takes from the output; None of a map of zeros.
    """
    sums: dict[int, Tensor] = {}  # by the first example
    counts: dict[int, int] = {}
    for erasure, change in zip(erasures, changes, strict=True):
        if effects is None:
            foretold = torch.zeros_like(change)
        else:
            masks = erasure.masks(setting.inputs).unflatten(0, (-1, erasure.samples)).flatten(2)
            foretold = (masks.to(effects.dtype) @ effects[erasure.at].flatten(1)[:, :, None])[:, :, 0]
        a, c = foretold.double(), change.double()
        products = torch.stack([(a * a).sum(1), (a * c).sum(1), (c * c).sum(1)])
        start = erasure.at.start
        sums[start] = sums[start] + products if start in sums else products
        counts[start] = counts.get(start, 0) + erasure.samples
    parts = []
    for start, (aa, ac, cc) in sums.items():
        beta = ac / torch.where(aa != 0, aa, 1)
        parts.append((beta * beta * aa - 2 * beta * ac + cc) / counts[start])
    return torch.cat(parts)


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
