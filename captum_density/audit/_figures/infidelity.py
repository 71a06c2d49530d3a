"""How well attributions foretell what erasing part of the input does: Captum's `infidelity`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_density.audit._controls import CONSTANT, RANDOM_WEIGHTS, Comparison, common_maps, own_maps
from captum_density.audit._explanation import Explanation
from captum_density.audit._figures.figure import Figure, Panel, of_examples
from captum_density.audit._figures.words import compared_by, level_in_words, listed, verb
from captum_density.audit._results import Finding, Measured, Results, by_method
from captum_density.audit._setting import Setting
from captum_density.softmax_shift import CenteredLogits

__all__ = ["INFIDELITY"]

_NAME = "infidelity"
_ERASED = 0.2
# Of a map of zeros: where little of a map is left to read.
_NO_BETTER = 0.9
_ROUNDING = 1e-4  # of a map of zeros: below, a difference may be one of rounding
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
    setting, view, reading = explanation.setting, id(explanation.method.view), explanation.multiplies_by_inputs
    erasures = setting.shared((_NAME, "erasures"), lambda: list(_erasures(setting)))
    changes = setting.shared((_NAME, view), lambda: [_changes(explanation, erasure) for erasure in erasures])
    # A contribution vanishes with its feature, and a slope acts on its change, as Captum's decorator has it.
    factor = (setting.inputs != 0).to(setting.inputs.dtype) if reading else setting.inputs

    def foretold(maps: Iterable[Tensor]) -> list[Tensor]:
        return _foretold(setting, erasures, [each.to(factor.dtype) * factor for each in maps])

    def infidelities(maps: Iterable[Tensor]) -> Tensor:
        return _infidelities(erasures, changes, foretold(maps))

    own_controls = own_maps(explanation)
    cheap = {name: own_controls.pop(name)() for name in [*own_controls] if name != RANDOM_WEIGHTS}
    values, *others = infidelities([explanation.attributions, *cheap.values()])
    zero = setting.shared(
        (_NAME, view, "zero"),
        lambda: _infidelities(erasures, changes, [torch.zeros_like(each)[:, :, None] for each in changes])[0],
    )
    if len(values) == 1:
        return of_examples(values, reference=zero)
    # Whatever the method, maps that are read alike foretell alike.
    common = {CONSTANT: torch.ones_like(factor), **common_maps(setting)}
    of_common = setting.shared((_NAME, "common maps", reading), lambda: foretold(common.values()))
    others += setting.shared((_NAME, view, reading), lambda: _infidelities(erasures, changes, of_common)).unbind()

    def beside(other: Tensor) -> Tensor:
        return torch.where((other - values).abs() > _ROUNDING * zero, other, values)

    comparison = Comparison(setting, values, zero, lower_is_better=True)
    comparison.add(dict(zip([*cheap, *common], map(beside, others), strict=True)))
    comparison.add_own(own_controls, lambda each: beside(infidelities([each])[0]), explanation.passes)
    values, zero, controls = comparison.result()
    return replace(of_examples(values, reference=zero), note=comparison.note, controls=controls)


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


def _foretold(setting: Setting, erasures: list[_Erasure], effects: list[Tensor]) -> list[Tensor]:
    """What maps foretell of each erasure, (N, samples, maps).

    Args:
        setting: What all figures share.
        erasures: Of the examples.
        effects: (N, ...) of each map, what erasing a value takes from the output.
    """
    foretold = []
    for erasure in erasures:
        masks = erasure.masks(setting.inputs).unflatten(0, (-1, erasure.samples)).flatten(2)
        columns = torch.stack([each[erasure.at].flatten(1) for each in effects], dim=2)
        foretold.append(masks.to(columns.dtype) @ columns)
    return foretold


def _infidelities(erasures: list[_Erasure], changes: list[Tensor], foretold: list[Tensor]) -> Tensor:
    """(maps, N) Captum's, normalised: the mean of (beta a - c)^2, c the change and a what is foretold of it.

    The factor beta is the best one for each map and example, as in the code of Yeh et al. (2019), so that neither scale
    nor sign counts: without it, a map in another unit than the output's would lose to zeros, whatever it shows.

    Args:
        erasures: Of the examples.
        changes: (N, samples) of each of them.
        foretold: (N, samples, maps) of each of them.
    """
    sums: dict[int, Tensor] = {}  # by the first example
    counts: dict[int, int] = {}
    for erasure, change, each in zip(erasures, changes, foretold, strict=True):
        a, c = each.double(), change.double()[:, :, None].expand_as(each)
        products = torch.stack([(a * a).sum(1), (a * c).sum(1), (c * c).sum(1)])
        start = erasure.at.start
        sums[start] = sums[start] + products if start in sums else products
        counts[start] = counts.get(start, 0) + erasure.samples
    parts = []
    for start, (aa, ac, cc) in sums.items():
        beta = ac / torch.where(aa != 0, aa, 1)
        parts.append((beta * beta * aa - 2 * beta * ac + cc) / counts[start])
    return torch.cat(parts).T


def _findings(results: Results) -> Iterator[Finding]:
    # Of a map of zeros, whose own infidelity is another for logits than for a view of them.
    shares = {
        name: (measured.value or 0.0) / measured.reference
        for name, measured in by_method(results, _NAME).items()
        if measured.reference
    }
    compared = compared_by(results, _NAME)
    unfaithful = [name for name, share in shares.items() if share >= _NO_BETTER]
    others = {name: each for name, each in compared.items() if shares.get(name, 1) < _NO_BETTER}
    better = [name for name, each in others.items() if each.beats_every_control(len(compared))]
    level = {name: each for name, each in others.items() if name not in better}
    able = better if compared else [name for name in shares if name not in unfaithful]
    best = min(able, key=shares.__getitem__, default="")
    advice = f"For such questions, {listed([best])} does best here." if best else ""
    if better:
        which = f"best: {listed([best])}, " if len(better) > 1 else ""
        yield Finding(
            "good",
            f"{listed(better)} {verb('foretell', better)} what erasing part of the input does better than every "
            f"control, maps that know nothing of the model ({which}infidelity {shares[best]:.2g} of that of a map of "
            "zeros).",
        )
    if unfaithful:
        yield Finding(
            "warning",
            f"{listed(unfaithful)} {verb('foretell', unfaithful)} what erasing part of the input does hardly better "
            "than a map of zeros.",
            advice,
        )
    if level:
        yield Finding(
            "warning",
            f"At foretelling what erasing part of the input does, {level_in_words(level, len(compared))}, as far as "
            "these examples tell.",
            advice,
        )


INFIDELITY = Figure(
    name=_NAME,
    title="infidelity",
    better="lower is better",
    meaning="Mean squared error of the change in output that the attributions foretell, in squared units of the "
    "output, when a random fifth of the input is set to 0, scale and sign of each map fitted to each example; a map "
    "of zeros is what to compare with. Controls, maps that know nothing of the model's reasons, are read as the "
    "method's are, as contributions or as slopes; a method in favour is better than each, in pairs of the same "
    "example.",
    against=f"from {_NO_BETTER:g} of that of a map of zeros on, or where a control does as well",
    measure=_measure,
    findings=_findings,
    priority=1,
    reference="a map of zeros",
    panel=Panel(relative=True, logarithmic_below=0.02, line=(1.0, "a map of zeros")),
)
