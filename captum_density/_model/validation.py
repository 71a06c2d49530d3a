"""What can be refused before a model runs, and of what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._model.captum import TargetType, select_targets
from captum_density._model.errors import warn
from captum_density._model.refusals import are_looked_at_together, refuse_where

__all__ = [
    "are_probabilities",
    "check_limit",
    "check_model",
    "class_span",
    "class_targets",
    "examples_first",
    "expanded_baselines",
    "how_to_pick",
    "in_range",
    "one_output_advice",
    "picked",
    "received",
    "refuse_labels_of_one_output",
    "refuse_out_of_range",
    "returned_tensor",
    "selected_or_nan",
    "selected_output",
    "validate_inputs",
    "warn_of_probabilities",
]


def check_model(model: Any, name: str = "forward_func") -> None:
    """Refuse what is no model.

    Args:
        model: A module or a function.
        name: What the caller calls it.

    Raises:
        TypeError: It is neither, or is a class, or an attribution of a model.
    """
    if not callable(model) or isinstance(model, type | Attribution):
        what = f"the class {model.__name__}; make an object of it" if isinstance(model, type) else type(model).__name__
        remedy = "; pass the model that it explains" if isinstance(model, Attribution) else ""
        raise TypeError(f"{name} must be a torch.nn.Module or a function, but is {what}{remedy}")


def validate_inputs(
    model: Callable[..., Any], inputs: tuple[Tensor, ...], *, differentiable: bool = True, finite: bool = True
) -> None:
    """Refuse, before anything runs, inputs that hold no example, and those that no gradient exists by.

    Args:
        model: What they are for.
        inputs: Any number.
        differentiable: Whether a gradient is taken by them. Where none is, ids, masks of minus infinity and inputs of
            one row for all examples pass.
        finite: Whether to look for NaN and infinity, too.

    Raises:
        TypeError: Inputs that are no tensors, or not floating-point.
        ValueError: Empty batches, a device that is not the model's; unequal batches, NaN or infinity.
    """
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs must be a tensor or a tuple of tensors, but input {i} is {type(x).__name__}")
        if differentiable and not x.is_floating_point():
            raise TypeError(
                f"input {i} has dtype {x.dtype}, which has no gradient; convert images to float, pass token ids "
                "through additional_forward_args and their embeddings as inputs"
            )
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(
                f"input {i} has shape {tuple(x.shape)}: the first dimension must hold at least one example"
            )
        if differentiable and x.shape[0] != inputs[0].shape[0]:
            raise ValueError(f"input {i} holds {x.shape[0]} examples, input 0 holds {inputs[0].shape[0]}")
    if isinstance(model, nn.Module):
        devices = {p.device for p in model.parameters()}
        for i, x in enumerate(inputs):
            if len(devices) == 1 and x.device not in devices:
                raise ValueError(f"input {i} is on {x.device}, the model on {devices.pop()}; move one of them")
    for i, x in enumerate(inputs):
        if differentiable and finite:
            text = f"input {i} contains NaN or infinity: f has no gradient there"
            refuse_where(~torch.isfinite(x).all(), partial(ValueError, text))


def how_to_pick(output: Any) -> str:
    """What to do about a model that returned a mapping, a record, a sequence: code that picks a tensor out of it."""
    return f"pass a function that picks one, such as `lambda x: {picked(output)}`"


def received(output: Any) -> str:
    """What a model returned, in words: a tensor's shape; of anything else its class, and how to pick a tensor of it."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    return f"{type(output).__name__}; {how_to_pick(output)}"


def picked(output: Any) -> str:
    """Code that picks a tensor out of whatever else a model returned."""
    if isinstance(output, Mapping):
        names = [f"[{key!r}]" for key, value in output.items() if isinstance(value, Tensor)] or ["['key']"]
    elif dataclasses.is_dataclass(output) or hasattr(output, "_fields"):
        fields = getattr(output, "_fields", None) or [field.name for field in dataclasses.fields(output)]
        names = [f".{name}" for name in fields if isinstance(getattr(output, name), Tensor)] or [".field"]
    elif isinstance(output, list | tuple):
        names = [f"[{i}]" for i, item in enumerate(output) if isinstance(item, Tensor)] or ["[0]"]
    else:
        names = [".logits"]
    name = next((name for name in names if "logits" in name), names[0])
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    of_each_position = "logits" in name and isinstance(logits, Tensor) and logits.ndim == 3  # a decoder's
    return f"model(x){name}{'[:, -1]' if of_each_position else ''}"


def returned_tensor(output: Any) -> Tensor:
    """What a model returned, which has to be a tensor.

    Raises:
        TypeError: It is none; says how to pick one.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returned {type(output).__name__}, not a tensor; {how_to_pick(output)}")
    return output


def examples_first(output: Any, n: int) -> Tensor:
    """What a model returned, a tensor (N, ...).

    Raises:
        TypeError: It is no tensor.
        ValueError: The examples do not come first.
    """
    output = returned_tensor(output)
    if output.ndim == 0 or output.shape[0] != n:
        raise ValueError(
            f"the model returned shape {tuple(output.shape)} for {n} examples; examples must come first "
            "(is the batch dimension missing?)"
        )
    return output


def class_span(target: TargetType) -> tuple[int, int] | None:
    """The lowest and the highest of several classes; None where PyTorch refuses what is out of range by itself.

    On a GPU a bad index in a tensor ends all use of the GPU in this process, so these are looked at before. Where they
    are on one, that waits for it.
    """
    if isinstance(target, Tensor):
        if target.device.type in ("cpu", "meta") or target.numel() < 2 or target.is_complex():
            return None
        low, high = torch.stack(target.aminmax()).tolist()
        return low, high
    if isinstance(target, list) and target and all(type(index) is int for index in target):
        return min(target), max(target)
    return None


def refuse_out_of_range(shape: torch.Size, span: tuple[int, int] | None) -> None:
    """Refuse classes that a model's outputs, of shape (N, C), do not have.

    Raises:
        RuntimeError: There are some.
    """
    if span is not None and len(shape) == 2 and not 0 <= span[0] <= span[1] < shape[1]:
        raise _out_of_range(shape, *span)


def _out_of_range(shape: torch.Size, low: Tensor | int, high: Tensor | int) -> RuntimeError:
    return RuntimeError(
        f"target holds classes from {int(low)} to {int(high)}, but the model has the outputs 0 to {shape[1] - 1}; "
        "leave out, or relabel, what is not among them"
    )


def in_range(target: Tensor, shape: torch.Size) -> Tensor:
    """A target on a GPU with the nearest class in place of those that there are not, which are refused later."""
    if len(shape) != 2 or target.numel() < 2 or not are_looked_at_together(target) or target.is_complex():
        return target
    low, high = target.aminmax()
    refuse_where((low < 0) | (high >= shape[1]), partial(_out_of_range, shape, low, high))
    return target.clamp(0, shape[1] - 1)


def selected_output(output: Any, target: TargetType, n: int, span: tuple[int, int] | None = None) -> Tensor:
    """f per example, (N,): the target's output.

    Args:
        output: What the model returned.
        target: As Captum's.
        n: How many examples there are.
        span: `class_span` of the target, where it is known.

    Raises:
        TypeError: If the model returned no tensor.
        ValueError: If the examples do not come first.
        AssertionError: As Captum's, for a target that does not fit.
        RuntimeError: As PyTorch's, for classes that there are not.
    """
    output = examples_first(output, n)
    if span is None and isinstance(target, Tensor) and are_looked_at_together(output):
        target = in_range(target, output.shape)
    elif output.device.type != "cpu":
        refuse_out_of_range(output.shape, class_span(target) if span is None else span)
    selected = select_targets(output, target)
    assert selected[0].numel() == 1, _advice(output, target, selected)
    return selected.reshape(n)


def selected_or_nan(output: Any, target: TargetType, n: int) -> Tensor:
    """As `selected_output`, but NaN for classes that there are not, where looking for them would wait for a GPU."""
    of_each = isinstance(target, Tensor) and target.shape == (n,) and n > 1 and target.device.type == "cuda"
    if not of_each or not isinstance(output, Tensor) or output.ndim != 2:
        return selected_output(output, target, n)
    highest = output.shape[1] - 1
    selected = selected_output(output, target.clamp(0, highest), n, (0, 0))
    return selected.where((target >= 0) & (target <= highest), torch.nan)


def _advice(output: Tensor, target: TargetType, selected: Tensor) -> str:
    """What to do about a target that selects several numbers."""
    if target is None:  # Captum's own words
        return "Target not provided when necessary, cannot take gradient with respect to multiple outputs."
    return (
        f"target {target!r} selects {tuple(selected.shape[1:])} values of each example, of the model's output "
        f"{tuple(output.shape)}, where one is needed; give an index for each dimension after the first, such as "
        f"{(0,) * (output.ndim - 1)}, or sum over the others in a function of the model"
    )


def are_probabilities(outputs: Tensor, class_dim: int) -> bool:
    """Whether outputs look like what a softmax returns: at least 0, and of sum 1 up to rounding."""
    sums = outputs.double().sum(class_dim)
    slack = 16 * torch.finfo(outputs.dtype).eps
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() < slack).all())


def warn_of_probabilities(outputs: Any, harm: str) -> None:
    """Warn where outputs that are taken for logits look like what a softmax returns, along any dimension.

    Args:
        outputs: What the model returned, the examples first; what is no tensor of classes is passed over, as is what
            cannot be read: in compiled code, on the meta device, under `torch.func.vmap`.
        harm: What goes wrong with probabilities.
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or not outputs.numel():
        return
    dims = [dim for dim in range(1, outputs.ndim) if outputs.shape[dim] > 1]
    try:
        is_likely = not (outputs.is_meta or torch.compiler.is_compiling()) and any(
            are_probabilities(outputs.detach(), dim) for dim in dims
        )
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return
    if is_likely:
        warn(
            f"the model seems to return probabilities, {harm}; pass the model without its softmax, or the logarithm of "
            "what it returns"
        )


def refuse_labels_of_one_output(output: Any, target: TargetType, n: int) -> None:
    """Refuse labels of a model of one output, which knows no classes; a batch of zeros would pass for its index.

    Raises:
        ValueError: A target other than the index 0, one for each example for example.
    """
    if target is None or not isinstance(output, Tensor) or output.numel() != n or output.shape[:1] != (n,):
        return  # what else is wrong is refused elsewhere
    indices = target if isinstance(target, tuple) else (target,)
    if (
        output.ndim == 1
        or any(isinstance(i, list) or (isinstance(i, Tensor) and i.ndim > 0) for i in indices)
        or any(isinstance(i, int | Tensor) and int(i) > 0 for i in indices)
    ):
        raise ValueError(
            f"the model returned {tuple(output.shape)}, one output for each example, of which labels name no class; "
            f"leave the target out, which takes the output for a log-density, or, {one_output_advice()}"
        )


def one_output_advice(dim: int = 1) -> str:
    """What to do with a model of one output where classes are needed."""
    return (
        "to see the input z of a sigmoid, from before the sigmoid, as the logits of two classes, pass "
        f"`lambda x: torch.cat([torch.zeros_like(z := model(x)), z], dim={dim})`"
    )


def check_limit(max_examples_per_batch: int | None) -> None:
    """Refuse a limit that lets nothing run.

    Raises:
        ValueError: It is no integer of at least 1.
    """
    limit = max_examples_per_batch
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise ValueError(f"max_examples_per_batch must be an integer of at least 1, but is {limit}")


def class_targets(target: Any, n: int, device: torch.device) -> Tensor:
    """A class for each of n examples, (n,) int64, where Captum's further forms of a target have no meaning.

    Raises:
        ValueError: It is neither a class nor one for each example.
    """

    def no_classes() -> ValueError:
        return ValueError(
            f"target must be a class, or one for each of {n} examples, as integers, but is {target!r}; pass it as "
            "target=..."
        )

    try:
        classes = torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError):
        classes = torch.empty(0, 0, device="cpu")
    if (
        (isinstance(target, tuple) and len(target) > 1)  # an index into several dimensions of the output
        or classes.is_floating_point()
        or classes.ndim > 1
        or classes.numel() not in (1, n)
    ):
        raise no_classes()
    refuse_where((classes < 0).any(), no_classes)
    classes = classes.clamp_min(0) if are_looked_at_together(classes) else classes
    return classes.long().reshape(-1).expand(n)


def expanded_baselines(baselines: Any, xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Captum's baselines in the shapes of the inputs, finite.

    Raises:
        ValueError: They are not as many, do not broadcast to the inputs, or contain NaN or infinity.
    """
    values = baselines if isinstance(baselines, tuple) else (baselines,) * len(xs)
    if len(values) != len(xs):
        raise ValueError(f"there must be a baseline for each of {len(xs)} inputs, but there are {len(values)}")
    fills = []
    for x, b in zip(xs, values, strict=True):
        b = 0.0 if b is None else b
        # A number copied to a GPU would wait for it.
        fill = x.new_full((), b) if isinstance(b, float | int) else torch.as_tensor(b, dtype=x.dtype, device=x.device)
        refuse_where(~fill.isfinite().all(), partial(ValueError, "baselines contain NaN or infinity"))
        try:
            fills.append(fill.detach().expand_as(x))
        except RuntimeError as error:
            raise ValueError(
                f"a baseline must broadcast to its input, {tuple(x.shape)}, but has shape {tuple(fill.shape)}"
            ) from error
    return tuple(fills)
