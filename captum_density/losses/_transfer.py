"""What all losses of knowledge transfer share: a teacher that nothing trains, and all outputs of a model at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor, nn

from captum_density._captum import (
    ExpansionTypes,
    TargetType,
    TensorOrTupleOfTensorsGeneric,
    expand_additional_forward_args,
    run_forward,
)
from captum_density._evaluation import eager, refuse_random_numbers, refuse_reentrant_checkpoint
from captum_density._fixed_modules import modules_of
from captum_density._log_density import LogDensity, Points

__all__ = ["Outputs", "TransferLoss", "as_rows", "require_same_outputs"]


class Outputs(LogDensity):
    """All outputs (N, ...) of a model, where a log-density is one of them; else as `LogDensity`."""

    def jacobian_products(
        self, vectors_of: Callable[[Tensor], Tensor], *, create_graph: bool = False
    ) -> tuple[Tensor, Points]:
        """The outputs (N, ...), and J'v for each vector v: a backward pass each, after one run.

        Args:
            vectors_of: A function of the outputs, detached, which returns the vectors (K, N, ...).
            create_graph: As torch.autograd.grad's.

        Returns:
            The outputs, and for each input a tensor (K, N, ...).

        Raises:
            ValueError: No gradient reaches any input.
        """
        with torch.enable_grad():
            leaves = tuple(x.clone().requires_grad_() for x in self.inputs)
            (outputs,) = self._run(tuple(leaf.clone()[None] for leaf in leaves))  # which a model may write to
            rows = [self.gradients(outputs, v, leaves, create_graph=create_graph) for v in vectors_of(outputs.detach())]
        return outputs, tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def gradients(self, values: Tensor, vector: Tensor, leaves: Points, *, create_graph: bool) -> Points:
        """The gradient of <values, vector> by the leaves; the graph is kept for another.

        Raises:
            ValueError: No gradient reaches any input.
        """
        found: tuple[Tensor | None, ...] = (None,)
        if values.requires_grad:
            found = torch.autograd.grad(
                values, leaves, vector, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        if all(g is None for g in found):
            raise ValueError(
                "the model's output has no gradient by its inputs; does it detach them, run under torch.no_grad(), or "
                "return classes instead of logits?"
            )
        return tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves, strict=True))

    def _run(self, points: Points) -> Tensor:
        copies = len(points[0])
        flat = tuple(p.flatten(0, 1) for p in points)
        args = expand_additional_forward_args(self.args, copies, expansion_type=ExpansionTypes.repeat)
        if self._compared:
            with refuse_random_numbers(flat[0]):
                output = run_forward(self.forward_func, flat, None, args)
        else:
            output = run_forward(self.forward_func, flat, None, args)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}, not a tensor; pass a function that picks one, such as "
                "`lambda x: model(x)[0]` or `lambda x: model(x).logits`"
            )
        if output.ndim == 0 or len(output) != copies * self.n:
            raise ValueError(
                f"the model returned shape {tuple(output.shape)} for {copies * self.n} examples; examples must come "
                "first (is the batch dimension missing?)"
            )
        if output.requires_grad and self._modules is not None and self._modules.switched:
            refuse_reentrant_checkpoint(output)
        if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            self.anchor = output.flatten()[:0].sum()
        output = output if output.dtype in (torch.float32, torch.float64) else output.float()
        return output.reshape(copies, self.n, *output.shape[1:])


class TransferLoss(nn.Module):
    """A loss of how a student differs from a teacher, averaged over the batch, whose parts are kept for logging.

    Of the student holds what holds of other losses' models: during a call batch norm uses copies of its running
    statistics, whatever the mode, and no buffer changes; autocast is off; where a derivative is taken twice, what
    torch.compile made runs as it was before; DistributedDataParallel synchronizes the gradients.

    The teacher is evaluated in evaluation mode, gets no gradients and is left as it was. It is no submodule: an
    optimizer of `loss.parameters()` does not train it, `state_dict()` does not hold it, and `.to()` does not move it.

    Args:
        teacher: The model to learn from, a module or a function, on the inputs' device.
        max_examples_per_batch: As Captum's: how many examples, noisy copies included, run at once.
    """

    # Whether it takes second derivatives, which compiled code does not have.
    _twice = False

    def __init__(self, teacher: Callable[..., Any], max_examples_per_batch: int | None = None) -> None:
        super().__init__()
        if not callable(teacher) or isinstance(teacher, Attribution | type):
            raise TypeError(f"teacher must be a module or a function, but is {type(teacher).__name__}")
        self._teacher = (teacher,)  # not a submodule
        self.max_examples_per_batch = max_examples_per_batch

    @eager
    def forward(
        self,
        forward_func: Callable[..., Any],
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """The loss of a batch; nothing is differentiated by the inputs.

        Args:
            forward_func: The student, a module or a function, with as many outputs as the teacher.
            inputs: Floating-point tensor (N, ...) or tuple of such, for both models.
            target: As Captum's, for a loss of one output; refused by those of all.
            additional_forward_args: As Captum's, for both models.

        Returns:
            A scalar of float32, or float64 for models of float64; lower is closer to the teacher. It carries a graph if
            gradients are enabled.

        Raises:
            TypeError: If a model cannot be called or returns no tensor, or the inputs are not floating-point.
            ValueError: If the models' outputs differ in shape; if inputs are empty, unequally many, NaN, infinite or on
                another device than a model; if no gradient reaches them where it is asked for; if the examples do not
                come first; if the teacher draws random numbers; for a target that has no meaning; for
                DistributedDataParallel with static_graph=True.
            AssertionError: Captum's own, for a target that does not fit.
        """
        self._check_target(target)
        student, teacher = (
            Outputs(model, inputs, target, additional_forward_args, max_examples_per_batch=self.max_examples_per_batch)
            for model in (forward_func, self._teacher[0])
        )
        # First and by itself, as the two may share modules.
        with _evaluation_mode(teacher.forward_func), teacher.opened(twice=self._twice, compared=True):
            lesson = self._ask(teacher)
        with student.opened(twice=self._twice):
            create_graph = torch.is_grad_enabled()
            loss, parts = self._compare(student, lesson, create_graph)
        if create_graph and student.anchor is not None:
            # Zeros as the gradient of what the loss does not depend on, such as the last bias: with none at all,
            # DistributedDataParallel would wait for it and synchronize nothing.
            loss = loss + student.anchor
        for name, part in parts.items():
            setattr(self, name, part.detach())
        return loss

    def _check_target(self, target: TargetType) -> None:
        if target is not None:
            raise ValueError(f"{type(self).__name__} is of all outputs, so that a target has no meaning; leave it out")

    def _ask(self, teacher: Outputs) -> Any:
        """What the student is compared with; nothing in it carries a graph."""
        raise NotImplementedError

    def _compare(self, student: Outputs, lesson: Any, create_graph: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts by the name of the attribute that keeps them."""
        raise NotImplementedError


@contextmanager
def _evaluation_mode(model: Callable[..., Any]) -> Iterator[None]:
    saved = [(module, module.training) for module in modules_of(model)]
    try:
        for module, _ in saved:
            module.training = False  # not by .eval(), which a class may override
        yield
    finally:
        for module, training in saved:
            module.training = training


def require_same_outputs(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    """Refuse a student whose outputs are not the teacher's.

    Args:
        teacher: Shape of its outputs for one example.
        student: The same.

    Raises:
        ValueError: They differ.
    """
    if teacher != student:
        expected, received = (f"(N, {', '.join(map(str, shape))})" if shape else "(N,)" for shape in (teacher, student))
        raise ValueError(
            f"the teacher's outputs are {expected}, the student's {received}; they must be of the same classes: pass "
            "a function that picks those, or give the student another last layer"
        )


def as_rows(points: Points) -> tuple[Tensor, ...]:
    """(N, K, ...) for each (K, N, ...)."""
    return tuple(p.transpose(0, 1) for p in points)
