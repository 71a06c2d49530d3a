"""Checks of an attribution's form (shape, dtype, device, layout) and of what may not change its numbers."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from captum_density.testing._attributor import Attributor
from captum_density.testing._models import BATCH, Case
from captum_density.testing._registry import check
from captum_density.testing._violations import DTYPE, NAN, SHAPES, Violation, as_tuple, shapes


@check("return a tensor for a tensor and a tuple for a tuple, one attribution of the same shape for each input")
def output_form(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Tensor in, tensor out; tuple in, tuple out, also a tuple of one; shapes are the inputs' (of a layer: its own)."""
    for inputs in (case.inputs, case.tensors):
        variant = replace(case, inputs=inputs)
        like, received = attributor.like(variant), attributor.attribute(variant)
        if isinstance(received, tuple) != isinstance(like, tuple) or shapes(received) != shapes(like):
            expected, kind = (f"{type(value).__name__} of shapes {shapes(value)}" for value in (like, received))
            yield Violation(expected, kind, f"{type(inputs).__name__} input", cause=SHAPES)


@check("guard divisions (by a norm, by a range, by a sum of weights) against zero")
def finite(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions are finite on ordinary, on constant and on all-zero inputs."""
    variants = {"random": case, "all-zero": case.map(torch.zeros_like), "constant": case.map(torch.ones_like)}
    for label, variant in variants.items():
        for received in as_tuple(attributor.attribute(variant)):
            bad = int((~received.isfinite()).sum())
            if bad:
                yield Violation("finite values", f"{bad} that are NaN or infinite", f"{label} inputs", cause=NAN)


def _of_dtype(attributor: Attributor, case: Case, dtype: torch.dtype) -> Iterator[Violation]:
    for received in as_tuple(attributor.attribute(case.to(dtype))):
        if received.dtype != dtype:
            yield Violation(str(dtype), str(received.dtype), cause=DTYPE)


@check("create tensors with dtype=input.dtype (torch.zeros_like, input.new_tensor), not with torch's default")
def dtype(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions have the dtype of the input: float32 and float64."""
    for each in (attributor.dtype, torch.float32):
        yield from _of_dtype(attributor, case, each)


@check("multiply only with tensors of the input's dtype: a float32 factor promotes a bfloat16 attribution")
def reduced_precision(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions of a bfloat16 model and input are bfloat16."""
    yield from _of_dtype(attributor, case, torch.bfloat16)


@check("create tensors with device=input.device and do not call .cpu() on the result")
def device(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions are on the device of the input."""
    expected = case.tensors[0].device
    for received in as_tuple(attributor.attribute(case)):
        if received.device != expected:
            yield Violation(str(expected), str(received.device))


def _layouts(case: Case) -> dict[str, Case]:
    """The same values in other memory layouts."""
    layouts = {
        "contiguous": case,
        "transposed": case.map(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1)),
        "strided": case.map(lambda x: torch.stack([x, -x], dim=-1)[..., 0]),
    }
    if all(x.dim() == 4 for x in case.tensors):
        layouts["channels-last"] = case.map(lambda x: x.contiguous(memory_format=torch.channels_last))
    return layouts


@check("end with .contiguous(), for Captum's sensitivity_max and NoiseTunnel call .view on attributions")
def contiguous(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions are contiguous, whatever the layout of the input and of the gradient."""
    for label, laid_out in _layouts(case).items():
        for received in as_tuple(attributor.attribute(laid_out)):
            if not received.is_contiguous():
                expected = f"contiguous, shape {tuple(received.shape)}"
                yield Violation(expected, f"strides {received.stride()}", f"{label} input")


# Stochastic methods are exempt because torch.randn_like fills in the order of memory.
@check("use reshape in place of view on anything derived from the input", needs=["determinism"])
def strided_inputs(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """An input's memory layout (transposed, strided, channels-last) does not change the numbers."""
    expected = attributor.attribute(case)
    for label, laid_out in _layouts(case).items():
        yield from attributor.compare(expected, attributor.attribute(laid_out), "the same numbers", f"{label} input")


@check("detach the result, or multiply with input.detach()")
def detached(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Attributions of inputs that do not require grad carry no graph."""
    for received in as_tuple(attributor.attribute(case)):
        if received.requires_grad:
            yield Violation("requires_grad=False", f"requires_grad=True, from {type(received.grad_fn).__name__}")


@check("enable gradients around your own forward pass: with torch.enable_grad()")
def under_no_grad(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Called under torch.no_grad(), the attributor gives the same numbers."""
    expected = attributor.attribute(case)
    with torch.no_grad():
        received = attributor.attribute(case)
    yield from attributor.compare(expected, received, "the same numbers as with gradients enabled")


@check("accept inputs that require grad, leaves or not; differentiate a detached copy")
def differentiable_inputs(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Inputs that require grad, as leaves or as results of a computation, give the same numbers."""
    expected = attributor.attribute(case)
    leaves = case.map(lambda x: x.clone().requires_grad_())
    for label, variant in (("leaf", leaves), ("computed", leaves.map(lambda x: x * 1.0))):
        received = attributor.attribute(variant)
        yield from attributor.compare(expected, received, "the same numbers as for plain inputs", f"{label} inputs")


@check("differentiate with respect to the input (made to require grad), which needs no parameter to require grad")
def frozen_parameters(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """A model whose parameters do not require grad gives the same numbers."""
    expected = attributor.attribute(case)
    case.model.requires_grad_(False)
    yield from attributor.compare(expected, attributor.attribute(case), "the same numbers")


@check("keep nothing from one call to the next (hook outputs, caches); draw no random numbers unless stochastic")
def repeatable(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """The same call gives the same numbers, after a call with other inputs and on a fresh attributor."""
    attribution = attributor.make(case.model)
    expected = attributor.attribute(case, attribution)
    attributor.attribute(case.row(1), attribution)
    yield from attributor.compare(expected, attributor.attribute(case, attribution), "the numbers of the first call")
    yield from attributor.compare(expected, attributor.attribute(case), "the numbers of another attributor")
    if not attributor.stochastic:
        law = "the same numbers whatever the random state (or declare stochastic=True)"
        yield from attributor.compare(expected, attributor.attribute(case, attribution, seed=1), law)


@check(
    "normalise, rank or average within an example, never over the batch; mind which dimension is the batch",
    needs=["determinism"],
)
def batch_independence(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """A batch of N gives the numbers of N batches of one."""
    singles = [as_tuple(attributor.attribute(case.row(row))) for row in range(BATCH)]
    expected = tuple(map(torch.cat, zip(*singles, strict=True)))
    yield from attributor.compare(expected, attributor.attribute(case), "the numbers of single examples")
