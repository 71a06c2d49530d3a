"""Shift sensitivity: how far attributions move although no prediction does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_density._model.arrays import takes_arrays
from captum_density._model.attribution import attribute_function, attribution_maker
from captum_density._model.batch import ModelOnBatch
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import differentiable
from captum_density._model.generators import replayable
from captum_density._model.refusals import are_looked_at_together
from captum_density._model.validation import in_range, selected_output
from captum_density.metrics._attribution_rows import attribution_rows, counted_runs
from captum_density.softmax_shift import LinearShift, Shift, SoftmaxShift

__all__ = ["ShiftSensitivity", "shift_sensitivity"]


class ShiftSensitivity(NamedTuple):
    """How far attributions move under a softmax shift, per example; 0 is invariant, higher is worse.

    See `shift_sensitivity`; a is the attribution of the model f, a' that of the shifted model f + g.

    Args:
        cosine_distance: (N,) 1 - cosine between a and a', in [0, 2]: 0 for the same direction, 1 for an orthogonal one,
            2 for the opposite. Where both are zero throughout it is 0, where one is, 1.
        norm_change: (N,) relative change of the norm, | |a'| / |a| - 1 |, at least 0. Where both are zero it is 0,
            where only a is, infinite.
    """

    cosine_distance: Tensor
    norm_change: Tensor


@takes_arrays
def shift_sensitivity(
    make_attribution: Attribution | Callable[..., Any],
    model: Callable[..., Any],
    inputs: TensorOrTupleOfTensorsGeneric,
    shift: Shift | Callable[..., Tensor] | None = None,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    class_dim: int = 1,
    **kwargs: Any,
) -> ShiftSensitivity:
    r"""How far an attribution method's maps move when a shift is added to all logits, which changes no prediction.

    Attributes f and f + g, which have the same softmax, with the same random numbers, and compares the maps example by
    example. Whatever moves says something about the logits' common term, and nothing about the predictions.

    The shift by default is linear in all inputs, g(x) = <w, x>, with w white noise (the same for all inputs of a shape)
    whose norm is the median of those of the model's own gradients in the batch: as large as what it hides in. (Where
    that is 0, the norm is 1.) It
    moves a signed gradient by 1 - cosine of about 0.29, or 1 - 1 / sqrt(2), and needs no tuning, because it scales with
    inputs and outputs.

    0 is a statement about this shift: attributions that stop at a hidden layer (Grad-CAM) do not see a shift that
    goes around the layer. And a small figure is not 0: maps that stand on a positive floor, such as FullGrad's with
    `keep_floor`, have a cosine near 1 with each other whatever they show; they too are invariant only through
    `CenteredLogits`.

    Args:
        make_attribution: Takes a model, returns the attribute function of it, such as
            `lambda model: IntegratedGradients(model).attribute`, or the attribution itself: a Captum class will do.
            Called for the model f and for the shifted model f + g. Or an attribution of this model, such as
            `Saliency(model)`, or its attribute method, which is made anew for the shifted model.
        model: Module or function that returns logits, (N, C) or with classes elsewhere.
        inputs: Floating-point tensor (N, ...) or tuple of such.
        shift: g, as in `SoftmaxShift`; None for the one described above.
        target: As Captum's; passed to the attribute function unless None. The default shift takes its size from this
            output's gradient, so leave no target to the attribute function alone.
        additional_forward_args: As Captum's; passed to the attribute function unless None.
        class_dim: Dimension of the classes, as in `SoftmaxShift`.
        kwargs: Further arguments of the attribute function, such as `n_steps`.

    Returns:
        Two tensors (N,), float64, `cosine_distance` and `norm_change`, lower is better. 0 for an invariant method, up
        to rounding: with the default shift in float32, below 1e-10 and 1e-5 where inputs are of the order of 1.

    Raises:
        ValueError: As `SoftmaxShift`: a shift that has the wrong shape, is not finite or does not depend on the inputs;
            logits without a class dimension; inputs that are empty, NaN or infinite; attributions whose first dimension
            is not N, or with NaN or infinity in them; an attribution of the model that ignores the one it is made for;
            no gradient to take the default shift's size from; `return_convergence_delta`; an attribution made for
            another model or a view of this one, which would not see the shift as the view does.
        TypeError: If `make_attribution` is of no such kind or returns no function, or the function no tensor or tuple
            of tensors; an attribution made already that holds a part of the model, such as a layer, that the shifted
            model does not have; integers for inputs where there is no shift.

    References:
        The measure is ours; the shift is that of S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 2. A
        constant shift of the input, another thing, is in P.-J. Kindermans et al., "The (Un)reliability of saliency
        methods", 2017, arXiv:1711.00867.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_density.softmax_shift import CenteredLogits
        >>> _ = torch.manual_seed(0)
        >>> model, x = torch.nn.Linear(50, 3), torch.randn(2, 50)
        >>> logits = shift_sensitivity(lambda model: Saliency(model).attribute, model, x, target=0, abs=False)
        >>> bool((logits.cosine_distance > 0.1).all())
        True
        >>> centered = shift_sensitivity(lambda model: Saliency(CenteredLogits(model)).attribute, model, x, target=0)
        >>> bool((centered.cosine_distance < 1e-6).all())
        True
    """
    if kwargs.get("return_convergence_delta"):
        raise ValueError("shift_sensitivity compares attributions only; leave return_convergence_delta out")
    # Token ids have no gradient, which a shift of one's own does not need.
    batch = ModelOnBatch(model, inputs, target, additional_forward_args, differentiable=shift is None, name="model")
    make = attribution_maker(make_attribution, "make_attribution", model=model)
    recurrent = differentiable(model, batch.device)
    with replayable(batch.device) as rewind, torch.inference_mode(False), recurrent:
        if shift is None:
            shift = _default_shift(batch)
        shifted = SoftmaxShift(model, shift, class_dim)
        floor, target = _rounding(shifted, batch)
        options = {"target": target, "additional_forward_args": additional_forward_args}
        options = {name: value for name, value in options.items() if value is not None}
        maps = []
        for attributed in (model, shifted):
            rewind()
            copies = tuple(x.detach().clone() for x in batch.inputs)
            attribute = attribute_function(make(attributed), "make_attribution(model)")
            with counted_runs(shifted) as shifted_runs, counted_runs(model) as model_runs:
                attributions = attribute(batch.in_form(copies), **options, **kwargs)
            maps.append(attribution_rows(attributions, batch.n))
    if model_runs and not shifted_runs:
        raise ValueError(
            "the attribution ran the model and not the shifted one; make_attribution must make it for the model "
            "that it is given, as `lambda model: Saliency(model).attribute` does"
        )
    return _compare(maps[0], maps[1], floor)


def _default_shift(batch: ModelOnBatch) -> LinearShift:
    """White noise as long as the model's gradient."""
    with torch.enable_grad():
        leaves = tuple(x.detach().clone().requires_grad_() for x in batch.inputs)
        output = batch.selected(leaves)
        if not output.requires_grad:
            raise ValueError(
                "the model's output has no gradient by its inputs, from which the default shift takes its size; pass a "
                "shift, such as LinearShift(pattern, scale)"
            )
        gradients = torch.autograd.grad(output.sum(), leaves, allow_unused=True, materialize_grads=True)
    # The median, as one example with a large gradient would else decide for all.
    length = torch.cat([g.double().reshape(len(g), -1) for g in gradients], dim=1).norm(dim=1).quantile(0.5).item()
    noise = torch.Generator("cpu").manual_seed(0)
    patterns = [torch.randn(x.shape[1:], generator=noise, dtype=torch.float64, device="cpu") for x in batch.inputs]
    norm = torch.cat([p.flatten() for p in patterns]).norm().item()
    scale = (length or 1.0) / norm
    return LinearShift(tuple(p.to(x.device, x.dtype) for p, x in zip(patterns, batch.inputs, strict=True)), scale)


def _rounding(shifted: SoftmaxShift, batch: ModelOnBatch) -> tuple[Tensor, TargetType]:
    """(N,) what rounding may leave of the shift in a map of zeros: some units in the last place of its gradient * x.

    And the target, of which nothing can be out of range any more.

    Run where gradients are taken, so that a shift in name only is refused for methods without gradients too, as is a
    target that does not fit.
    """
    args = batch.args or ()
    with torch.enable_grad():
        leaves = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in batch.inputs)
        output = shifted(*leaves, *args)
        target = batch.target
        if isinstance(target, Tensor) and are_looked_at_together(target):
            target = in_range(target, output.shape)
        if target is not None:
            selected_output(output, target, batch.n, batch.span)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        values = shifted.shift(*leaves, *args)
        gradients: tuple[Tensor, ...] = tuple(map(torch.zeros_like, wanted))
        if values.requires_grad and wanted:
            gradients = torch.autograd.grad(values.sum(), wanted, allow_unused=True, materialize_grads=True)
    floor = torch.zeros(batch.n, dtype=torch.float64, device=batch.device)
    for x, g in zip(wanted, gradients, strict=True):
        flat = [t.detach().double().reshape(len(t), -1) for t in (x, g)]
        floor += 64 * torch.finfo(x.dtype).eps * flat[1].norm(dim=1) * flat[0].abs().amax(1).clamp_min(1)
    return floor, target


def _compare(plain: Tensor, shifted: Tensor, floor: Tensor) -> ShiftSensitivity:
    """What becomes of the attributions of a model, (N, elements), by the shift; below the floor a norm counts as 0."""
    if plain.shape != shifted.shape:
        raise ValueError(f"the two attributions have {plain.shape[1]} and {shifted.shape[1]} elements an example")
    # By their largest element first, so that squares of very small or large ones are not lost.
    sizes = [a.abs().amax(1, keepdim=True) for a in (plain, shifted)]
    units = [a / torch.where(size > 0, size, 1) for a, size in zip((plain, shifted), sizes, strict=True)]
    lengths = [u.norm(dim=1) for u in units]
    norms = [length * size.squeeze(1) for length, size in zip(lengths, sizes, strict=True)]
    # A map of zeros beside one of what rounding left of the shift.
    norms = [norm.where((other > 0) | (norm > floor), 0.0) for norm, other in (norms, norms[::-1])]
    product = (units[0] * units[1]).sum(1) / (lengths[0] * lengths[1])
    either_zero, both_zero = (norms[0] == 0) | (norms[1] == 0), (norms[0] == 0) & (norms[1] == 0)
    distance = torch.where(either_zero, 1.0, 1 - product).clamp(0, 2)
    change = (norms[1] / norms[0] - 1).abs()
    return ShiftSensitivity(distance.masked_fill(both_zero, 0.0), change.masked_fill(both_zero, 0.0))
