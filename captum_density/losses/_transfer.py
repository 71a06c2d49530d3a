"""What all losses of knowledge transfer share: a teacher that nothing trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import (
    TargetType,
    TensorOrTupleOfTensorsGeneric,
)
from captum_density._model.copies import ModelOnCopies, Points
from captum_density._model.evaluation import without_compilation
from captum_density._model.fixed_modules import evaluation_mode
from captum_density._model.validation import check_model
from captum_density.losses._density_loss import Log

__all__ = ["TransferLoss", "as_rows", "require_same_outputs"]


class TransferLoss(nn.Module):
    """A loss of how a student differs from a teacher, averaged over the batch; its terms stay in attributes.

    Of the student holds what holds of other losses' models: during a call batch norm uses copies of its running
    statistics, whatever the mode, and no buffer changes; autocast is off; where a derivative is taken twice, what
    torch.compile made runs as it was before; DistributedDataParallel synchronises the gradients.

    The teacher is evaluated in evaluation mode, gets no gradients and is left as it was. It is no submodule: an
    optimizer of `loss.parameters()` does not train it, `state_dict()` does not hold it, and `.to()` does not move it.

    Args:
        teacher: The model to learn from, a module or a function, on the inputs' device.
        max_examples_per_batch, second_derivatives: As `DensityLoss`.
    """

    def __init__(
        self,
        teacher: Callable[..., Any],
        max_examples_per_batch: int | None = None,
        *,
        second_derivatives: bool = False,
    ) -> None:
        super().__init__()
        check_model(teacher, "teacher")
        self._teacher = (teacher,)  # not a submodule
        self.max_examples_per_batch = max_examples_per_batch
        self._second_derivatives = second_derivatives

    @without_compilation
    @takes_arrays
    def forward(
        self,
        forward_func: Callable[..., Any],
        inputs: TensorOrTupleOfTensorsGeneric,
        target: TargetType = None,
        additional_forward_args: object = None,
    ) -> Tensor:
        """The loss of a batch; nothing is differentiated by the inputs.

        The student's batch norm uses its running statistics and does not learn them here, in training mode either: the
        forward pass of the cross-entropy that this is added to does. The teacher runs as in evaluation mode.

        Args:
            forward_func: The student, a module or a function, with as many outputs as the teacher where those are
                compared.
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
            ModelOnCopies(
                model, inputs, target, additional_forward_args, max_examples_per_batch=self.max_examples_per_batch
            )
            for model in (forward_func, self._teacher[0])
        )
        # First and by itself, as the two may share modules.
        with (
            evaluation_mode(teacher.forward_func),
            teacher.evaluation(second_derivatives=self._second_derivatives, comparison=True),
        ):
            lesson = self._lesson(teacher)
        with student.evaluation(second_derivatives=self._second_derivatives):
            create_graph = torch.is_grad_enabled()
            loss, log = self._compare(student, lesson, create_graph)
        if create_graph:
            loss = student.anchored(loss)
        for name, value in log.items():
            setattr(self, name, value.detach())
        return loss

    def _check_target(self, target: TargetType) -> None:
        if target is not None:
            raise ValueError(f"{type(self).__name__} needs no label, so that a target has no meaning; leave it out")

    def _lesson(self, teacher: ModelOnCopies) -> Any:
        """What the student is compared with; nothing in it carries a graph."""
        raise NotImplementedError

    def _compare(self, student: ModelOnCopies, lesson: Any, create_graph: bool) -> tuple[Tensor, Log]:
        """The loss of a batch, and its terms by the attribute that shows them; runs within `evaluation`."""
        raise NotImplementedError


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
