"""Checks of the target in all its forms, of additional forward arguments, and of exceptions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.attr import Saliency
from torch import Tensor, nn

from captum_density.testing._attributor import Attributor
from captum_density.testing._models import BATCH, CLASSES, VECTOR_OUTPUT, Case, ModelError, Selected
from captum_density.testing._registry import check
from captum_density.testing._violations import Violation, as_tuple, brief, located, relative_gap


def _same_targets(attributor: Attributor, case: Case, expected: Any, law: str, *forms: Any) -> Iterator[Violation]:
    for form in forms:
        form = form.to(attributor.device) if isinstance(form, Tensor) else form
        yield from attributor.compare(
            expected, attributor.attribute(replace(case, target=form)), law, f"target={form!r}"
        )


def _row_by_row(attributor: Attributor, case: Case, targets: list[int]) -> tuple[Tensor, ...]:
    """Attributions whose row i comes from a call with the plain int targets[i] for the whole batch."""
    calls = [as_tuple(attributor.attribute(replace(case, target=target))) for target in targets]
    return tuple(torch.stack([call[row] for row, call in enumerate(parts)]) for parts in zip(*calls, strict=True))


@check(
    "select the output through Captum's own _select_targets, or handle every form that it does",
    needs=["target"],
    models=VECTOR_OUTPUT,
)
def target_forms(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """An int, a tuple of one, a list and integer tensors of dimension 0 and 1 mean the same target."""
    forms = (
        (2,),
        torch.tensor(2, device="cpu"),
        torch.tensor([2], device="cpu"),
        [2] * BATCH,
        torch.tensor([2] * BATCH, device="cpu"),
        [(2,)] * BATCH,
    )
    expected = attributor.attribute(replace(case, target=2))
    yield from _same_targets(attributor, case, expected, "as for target=2", *forms)


@check(
    "select the output through Captum's own _select_targets: a target may be a tuple, or one tuple an example",
    needs=["target"],
    models=["many_outputs"],
)
def target_tuples(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """For outputs of more than two dimensions a tuple, or a list of one tuple an example, selects the output."""
    flat = replace(case, model=nn.Sequential(case.model, nn.Flatten()))
    for form in ((1, 2), [(1, 2)] * BATCH, [(0, 1), (3, 0), (1, 2)]):
        pairs = form if isinstance(form, list) else [form] * BATCH
        expected = _row_by_row(attributor, flat, [first * 3 + second for first, second in pairs])
        yield from _same_targets(attributor, case, expected, "as for the flattened output at the same positions", form)


@check("give each example its own target: select output[i, target[i]]", needs=["target"], models=VECTOR_OUTPUT)
def target_per_example(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """A list or tensor of N targets attributes example i to target i."""
    targets = [(row + 1) % CLASSES for row in range(BATCH)]
    expected = _row_by_row(attributor, case, targets)
    yield from _same_targets(
        attributor, case, expected, "row i as for target[i]", targets, torch.tensor(targets, device="cpu")
    )


@check(
    "differentiate the selected output; drop the argument if the method has no use for a target",
    needs=["target"],
    models=VECTOR_OUTPUT,
)
def target_used(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Another target gives other attributions: no argument is accepted and ignored."""
    first, second = (attributor.attribute(replace(case, target=target)) for target in (0, 2))
    if relative_gap(first, second) <= attributor.tolerance:
        yield Violation("other attributions for target=0 than for target=2", "the same")


@check(
    "when the model returns one value an example, select nothing: target=None is right",
    needs=["target"],
    models=VECTOR_OUTPUT,
)
def target_none(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """A model with one output an example, (N,) or (N, 1), needs no target."""
    expected = attributor.attribute(case)
    for column, shape in ((1, "(N,)"), (slice(1, 2), "(N, 1)")):
        received = attributor.attribute(replace(case, model=Selected(case.model, column), target=None))
        law = "with target=None as for the full model's target"
        yield from attributor.compare(expected, received, law, f"output {shape}")


def _outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or the exception it raises."""
    try:
        return call()
    except Exception as error:
        return error


def _unexpected(attributor: Attributor, case: Case, expected: str, outcome: Any, where: str = "") -> Violation:
    """The violation that there was no exception, or another one."""
    if isinstance(outcome, Exception):
        return Violation(expected, located(outcome), where, attributor.cause(outcome, case.name))
    return Violation(expected, "no exception", where)


@check(
    "let Captum's own _select_targets refuse a target, and refuse None unless each example has one output, before "
    "anything is changed",
    needs=["target"],
)
def target_refused(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """A malformed target raises what Captum's Saliency raises: wrong range, length, depth or type, or none at all."""
    bad: list[Any] = [99, 1, (99,), (1, 2, 3), [0] * (BATCH + 1), [], [(99,)] * BATCH, 1.5, "seven", [0.5] * BATCH]
    bad += [
        None,
        torch.zeros(BATCH + 1, dtype=torch.long, device="cpu"),
        torch.zeros(BATCH, 2, dtype=torch.long, device="cpu"),
    ]
    if attributor.device.type == "cpu":  # elsewhere an index out of range in a tensor brings the device down
        bad += [[99] * BATCH, torch.tensor([99] * BATCH, device="cpu")]
    reference, attribution = Saliency(case.model), attributor.make(case.model)
    extra = {} if case.args is None else {"additional_forward_args": case.args}
    for target in bad:
        target = target.to(attributor.device) if isinstance(target, Tensor) else target
        inputs = tuple(x.clone() for x in case.tensors)  # Saliency leaves them requiring grad
        expected = _outcome(partial(reference.attribute, inputs, target=target, **extra))
        received = _outcome(partial(attributor.attribute, replace(case, target=target), attribution))
        if isinstance(expected, Exception) and not isinstance(received, type(expected)):
            yield _unexpected(attributor, case, f"as from Saliency, {brief(expected)}", received, f"target={target!r}")


@check(
    "pass additional_forward_args on to the model after the inputs; attribute the inputs only",
    needs=["additional_forward_args"],
    models=["two_inputs"],
)
def additional_forward_args(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Additional arguments, one alone or a tuple, reach the model and get no attribution."""
    assert case.args is not None
    scale, shift = case.args[0][:1], case.args[1]  # one example's, so that it can be built into the model
    each = scale.expand(BATCH, 1)
    for args, last in (((each, shift), (scale, shift)), (each, (scale,))):
        bound = replace(case, model=Selected(case.model, slice(None), last), args=None)
        expected, received = attributor.attribute(bound), attributor.attribute(case, additional_forward_args=args)
        law = "as for the model with these arguments built in"
        yield from attributor.compare(expected, received, law, f"{len(as_tuple(args))} arguments")


@check("do not catch the model's exceptions")
def model_error_propagates(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """An exception in the model's forward pass reaches the caller as it was raised."""
    received = _outcome(partial(attributor.attribute, attributor.case(case.name, fuse="forward")))
    if not isinstance(received, ModelError):
        yield _unexpected(attributor, case, "the model's own exception", received)
