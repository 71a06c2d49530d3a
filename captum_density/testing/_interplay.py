"""Checks that Captum's NoiseTunnel, metrics and convergence delta work with the attributor."""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max as captum_sensitivity_max
from torch import Tensor

from captum_density.testing._attributor import Attributor
from captum_density.testing._globals import seeded
from captum_density.testing._models import BATCH, Case, Inputs
from captum_density.testing._registry import check
from captum_density.testing._violations import NAN, SHAPES, Violation, as_tuple, brief, shapes


@check("decorate attribute with captum.log.log_usage(), whose __wrapped__ NoiseTunnel calls; treat each row by itself")
def noise_tunnel(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """NoiseTunnel wraps the attributor, and with zero noise gives the attributor's own numbers."""
    expected, tunnel = attributor.attribute(case), NoiseTunnel(attributor.make(case.model))
    smooth = attributor.attribute(case, tunnel, nt_type="smoothgrad", nt_samples=2, stdevs=0.0)
    if not attributor.stochastic:
        yield from attributor.compare(expected, smooth, "with zero noise, the attributor's numbers")
    variance = attributor.attribute(case, tunnel, nt_type="vargrad", nt_samples=2, stdevs=0.5)
    for kind, received in (("smoothgrad", smooth), ("vargrad", variance)):
        if shapes(received) != shapes(expected):
            yield Violation(f"the attributor's shapes {shapes(expected)}", str(shapes(received)), kind, cause=SHAPES)


def _one_value_an_example(value: Any) -> Iterator[Violation]:
    if not isinstance(value, Tensor) or value.shape != (BATCH,):
        yield Violation(f"{BATCH} values", brief(value))
    elif not value.isfinite().all():
        yield Violation("finite values", brief(value), cause=NAN)


def _perturb(inputs: Inputs) -> tuple[Inputs, Inputs]:
    noise = tuple(torch.randn_like(x) * 0.01 for x in as_tuple(inputs))
    moved = tuple(x - n for x, n in zip(as_tuple(inputs), noise, strict=True))
    return (noise, moved) if isinstance(inputs, tuple) else (noise[0], moved[0])


@check("return attributions of the inputs' shapes and dtype, without a graph, one for each input", needs=["to inputs"])
def infidelity(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """captum.metrics.infidelity accepts the attributions and gives one finite value an example."""
    attributions = attributor.attribute(case)
    arguments = {"additional_forward_args": case.args, "target": case.target, "n_perturb_samples": 2}
    with seeded(attributor.device):
        value = captum_infidelity(case.model, _perturb, case.inputs, attributions, **arguments)
    yield from _one_value_an_example(value)


# A model that permutes its input is left to the check `contiguous`, so that one cause fails one check. The metric takes
# attributions for tensors of the inputs' number of dimensions.
@check(
    "accept a tuple of one and a batch of any size, and return contiguous attributions",
    needs=["to inputs"],
    models=["mlp", "cnn", "two_inputs", "many_outputs"],
)
def sensitivity_max(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """captum.metrics.sensitivity_max can call the attributor and gives one finite value an example."""
    attribution = attributor.make(case.model)
    with seeded(attributor.device):
        value = captum_sensitivity_max(
            attribution.attribute, case.inputs, n_perturb_samples=2, **attributor.kwargs(case)
        )
    yield from _one_value_an_example(value)


@check("return (attributions, delta) with one delta an example if has_convergence_delta(), else refuse the argument")
def convergence_delta(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """return_convergence_delta=True adds N deltas, or raises where has_convergence_delta() is false."""
    try:
        received = attributor.attribute(case, return_convergence_delta=True)
    except Exception:
        if attributor.has_delta:
            raise
        return
    if not attributor.has_delta:
        yield Violation("an exception, for has_convergence_delta() is False", brief(received))
    elif not isinstance(received, tuple) or len(received) != 2 or not isinstance(received[1], Tensor):
        yield Violation("(attributions, delta)", brief(received))
    else:
        attributions, delta = received
        size = delta.numel() // BATCH if attributor.stochastic else 1  # sampling methods give a delta a sample
        if delta.shape != (BATCH * size,):
            yield Violation(f"delta of shape ({BATCH},)", str(tuple(delta.shape)))
        yield from attributor.compare(
            attributor.attribute(case), attributions, "the attributions of a call without delta"
        )


@check(
    "delta = sum of attributions - (f(input) - f(baseline)), or - f(input) where there is no baseline",
    needs=["convergence delta", "determinism"],
)
def convergence_delta_value(attributor: Attributor, case: Case) -> Iterator[Violation]:
    """Delta is what compute_convergence_delta says, and the sum of attributions less the output (difference)."""
    attributions, delta = attributor.attribute(case, return_convergence_delta=True)
    kwargs = attributor.kwargs(case)
    baselines = kwargs.get("baselines", 0.0)
    each = baselines if isinstance(baselines, tuple) else (baselines,) * len(case.tensors)
    start = tuple(torch.zeros_like(x) + baseline for x, baseline in zip(case.tensors, each, strict=True))
    flat = torch.cat([x.detach().flatten(1) for x in as_tuple(attributions)], dim=1)
    total, output, origin = flat.sum(1), case.output(), replace(case, inputs=start).output()
    allowed = attributor.tolerance * (flat.abs().sum(1) + output.abs() + origin.abs())
    gaps = [total - output + origin, total - output]
    if not any(bool(((delta - gap).abs() <= allowed).all()) for gap in gaps):
        expected = "the sum of attributions less the change of output"
        yield Violation(f"{expected}: {brief(gaps[0])} or {brief(gaps[1])}", brief(delta))

    # LRP's takes the output alone; the others take the inputs, and from where to where if there is a baseline.
    compute = attributor.make(case.model).compute_convergence_delta
    known = {"start_point": start, "end_point": case.tensors, "inputs": case.tensors, **kwargs}
    arguments = {name: known[name] for name in inspect.signature(compute).parameters if name in known}
    if arguments.keys() & {"end_point", "inputs"}:
        computed = compute(attributions, **arguments)
        if not bool(((delta - computed).abs() <= allowed).all()):
            yield Violation(f"compute_convergence_delta's {brief(computed)}", brief(delta))
