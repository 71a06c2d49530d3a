"""A user's model on a batch of examples: what a call of Captum names, rows of it, and what has to hold as it runs."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from captum_density._model.calls import tensors_in
from captum_density._model.captum import (
    TargetType,
    format_additional_forward_args,
    format_tensor_into_tuples,
    run_forward,
)
from captum_density._model.evaluation import differentiable, full_precision, grad_mode, refuse_random_numbers
from captum_density._model.fixed_modules import FixedModules, fixed_modules
from captum_density._model.generators import replayable
from captum_density._model.interrupts import CleanInterrupts
from captum_density._model.refusals import are_looked_at_together
from captum_density._model.validation import (
    check_limit,
    check_model,
    class_span,
    selected_output,
    validate_inputs,
)

__all__ = ["ModelOnBatch", "Rows", "rows_of"]

# Which examples, in any order and as often as wanted.
Rows: TypeAlias = Tensor | slice

_ALL = slice(None)

B = TypeVar("B", bound="ModelOnBatch")


class ModelOnBatch:
    """A model, N examples, and what else a call of the model takes.

    Args:
        forward_func: A module or a function.
        inputs: Tensor (N, ...) or tuple of such; where not differentiable, others may hold one row for all examples.
        target: As Captum's.
        additional_forward_args: As Captum's. Tensors of N rows hold one for each example, all else is for all of them.
            Of an (N, N) tensor, which may also be a mask from N positions to N, the model's outputs tell.
        max_examples_per_batch: As Captum's: How many examples, or versions of them, run at once; None for all.
        differentiable: Whether a gradient is taken by the inputs, see `validate_inputs`.
        name: What the caller calls the model, for messages.

    Raises:
        TypeError: A model that cannot be called; inputs as `validate_inputs`.
        ValueError: Inputs as `validate_inputs`; a limit below 1.
    """

    # Whether numbers on a GPU are looked at by `check_values` alone, not before anything runs: each look waits for it.
    _checks_late = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Any,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        max_examples_per_batch: int | None = None,
        differentiable: bool = True,
        name: str = "forward_func",
    ) -> None:
        check_model(forward_func, name)
        check_limit(max_examples_per_batch)
        if not isinstance(inputs, Tensor) and not (isinstance(inputs, tuple) and inputs):
            raise TypeError(f"inputs must be a tensor or a non-empty tuple of tensors, but is {type(inputs).__name__}")
        self.is_tuple = isinstance(inputs, tuple)
        self.inputs: tuple[Tensor, ...] = format_tensor_into_tuples(inputs)
        late = self._checks_late and self.device.type != "cpu"
        validate_inputs(forward_func, self.inputs, differentiable=differentiable, finite=not late)
        if isinstance(target, Tensor) and target.is_inference():  # which autograd does not keep
            with torch.inference_mode(False):
                target = target.clone()
        self.forward_func, self.target = forward_func, target
        # The lowest and the highest class, read once: on a GPU each look at a tensor waits for it.
        together = isinstance(target, Tensor) and are_looked_at_together(target)
        self.span = None if late or together else class_span(target)
        self.args: tuple[Any, ...] | None = format_additional_forward_args(additional_forward_args)
        # Which of them hold a row for each example, None where that is unclear: known of all the examples, and kept of
        # some, of which as many may be left as an argument for all of them has rows.
        self._has_rows = tuple(_has_rows(arg, self.n) for arg in self.args or ())
        self.limit = max_examples_per_batch
        self._comparison = False
        self._modules: FixedModules | None = None

    def check_values(self) -> None:
        """Refuse inputs that are not finite, where that has not been looked at.

        Raises:
            ValueError: They contain NaN or infinity.
        """
        validate_inputs(self.forward_func, self.inputs)

    @property
    def n(self) -> int:
        """How many examples there are."""
        return self.inputs[0].shape[0]  # for less than `len`, which is Python

    @property
    def device(self) -> torch.device:
        """Of the inputs."""
        return self.inputs[0].device

    def in_form(self, parts: tuple[Any, ...]) -> Any:
        """A tuple of one part for each input, or the one part where the inputs are a tensor."""
        return parts if self.is_tuple else parts[0]

    def at(self: B, rows: Rows) -> B:
        """The same model on some of the examples."""
        other = copy.copy(self)
        other.inputs, other.target, other.args = self.inputs_of(rows), self.target_of(rows), self.args_of(rows)
        return other

    def inputs_of(self, rows: Rows) -> tuple[Tensor, ...]:
        """Some of the examples."""
        return tuple(rows_of(x, rows) if x.ndim and len(x) == self.n else x for x in self.inputs)

    def target_of(self, rows: Rows) -> TargetType:
        """The target of some of the examples.

        Raises:
            AssertionError: As Captum's: A target for each of another number of examples.
        """
        target = self.target
        if not isinstance(target, list) and (not isinstance(target, Tensor) or target.numel() == 1):
            return target
        assert len(target) == self.n, f"target must be one, or one for each of {self.n} examples, not {len(target)}"
        if isinstance(target, Tensor):
            return rows_of(target, rows)
        return target[rows] if isinstance(rows, slice) else [target[row] for row in rows.tolist()]

    def args_of(self, rows: Rows) -> tuple[Any, ...] | None:
        """The additional arguments of some of the examples.

        Raises:
            ValueError: Of an (N, N) tensor, rows for each example give other outputs than the whole batch, and so does
                all of it.
        """
        if self.args is None or (isinstance(rows, slice) and rows.indices(self.n) == (0, self.n, 1)):
            return self.args
        if None in self._has_rows:
            self._has_rows = self._known_rows()
        return _picked(self.args, self._has_rows, rows)

    def _known_rows(self) -> tuple[bool, ...]:
        """Which arguments hold a row for each example: those whose row, with the example alone, gives its output."""
        choices = [*itertools.product(*((True, False) if has is None else (has,) for has in self._has_rows))]
        alone = copy.copy(self)
        with alone.evaluation(), torch.no_grad(), replayable(self.device):
            outputs = _outputs(self.forward_func, self.inputs, self.args)
            for row in range(self.n):
                at = slice(row, row + 1)

                def fits(choice: tuple[bool, ...], at: slice = at) -> bool:
                    with contextlib.suppress(Exception):  # shapes that do not fit
                        own = _outputs(self.forward_func, self.inputs_of(at), _picked(self.args, choice, at))
                        return all(_equal(a[at], b) for a, b in zip(outputs, own, strict=True) if len(a) == self.n)
                    return False

                choices = [choice for choice in choices if fits(choice)]
                if len(choices) == 1:
                    break
        if not choices:
            raise ValueError(
                f"additional_forward_args hold a tensor ({self.n}, {self.n}), and whether it has a row for each of "
                f"{self.n} examples could not be told from the outputs of one alone; pass a function that has it, "
                "lambda x: model(x, mask), or another number of examples"
            )
        return choices[0]

    def parts(self, count: int | None = None, *, unlimited: int | None = None) -> Iterator[slice]:
        """Slices of examples, or of so many versions of them, none longer than the limit, or `unlimited` without."""
        count = self.n if count is None else count
        size = self.limit or unlimited or count
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    @contextmanager
    def evaluation(self, *, comparison: bool = False) -> Iterator[None]:
        """Within, it runs in full precision, with batch norm fixed, and nothing that a run does to the model lasts.

        So one example's output depends neither on the others nor on how often it was asked for.

        Args:
            comparison: Whether values are compared, so that a model that draws random numbers is refused.

        Raises:
            ValueError: Batch norm without running statistics; where values are compared, a model that changes itself.
        """
        with ExitStack() as stack:
            stack.enter_context(CleanInterrupts())
            gradients = grad_mode(torch.is_grad_enabled())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(gradients)  # leaving inference mode enables them
            stack.enter_context(full_precision(self.device))
            self._modules = stack.enter_context(fixed_modules(self.forward_func, comparison=comparison))
            self._comparison = comparison
            stack.callback(setattr, self, "_comparison", False)
            yield

    def run(self, inputs: tuple[Tensor, ...] | None = None, rows: Rows = _ALL) -> Any:
        """What the model returns.

        Args:
            inputs: Versions of examples, (R, ...) each; None for the examples themselves.
            rows: Of which example each is a version; all, in turn, where it is left out.

        Raises:
            ValueError: The model draws random numbers, where values are compared.
        """
        inputs = self.inputs_of(rows) if inputs is None else inputs
        comparison = refuse_random_numbers(inputs[0]) if self._comparison else nullcontext()
        gradients = torch.is_grad_enabled()
        with comparison, differentiable(self.forward_func, self.device) if gradients else nullcontext():
            return run_forward(self.forward_func, inputs, None, self.args_of(rows))

    def selected(self, inputs: tuple[Tensor, ...] | None = None, rows: Rows = _ALL) -> Tensor:
        """The target's output, (R,).

        Args:
            inputs: As `run`.
            rows: As `run`.

        Raises:
            TypeError: The model returned no tensor.
            ValueError: The examples do not come first, and as `run`.
            AssertionError: Captum's own, for a target that does not fit.
        """
        inputs = self.inputs_of(rows) if inputs is None else inputs
        return selected_output(self.run(inputs, rows), self.target_of(rows), len(inputs[0]), self.span)


def _has_rows(value: Any, n: int) -> bool | None:
    if not isinstance(value, Tensor) or not value.ndim or len(value) != n:
        return False
    return None if n > 1 and value.shape == (n, n) else True


def _picked(args: tuple[Any, ...] | None, has_rows: tuple[bool | None, ...], rows: Rows) -> tuple[Any, ...]:
    return tuple(rows_of(arg, rows) if has else arg for arg, has in zip(args or (), has_rows, strict=True))


def _outputs(model: Callable[..., Any], inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> list[Tensor]:
    return [output for output in tensors_in(run_forward(model, inputs, None, args)) if output.ndim]


def _equal(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(a.dtype).eps ** 0.5 if a.dtype.is_floating_point else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def rows_of(values: Tensor, rows: Rows) -> Tensor:
    """Some rows of a tensor, wherever the indices are."""
    if rows is _ALL:
        return values  # itself, as a trace of the model knows tensors by identity
    return values[rows] if isinstance(rows, slice) else values[rows.to(values.device)]
