"""DistillationLoss: a student that gives classes the probabilities that the teacher gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_density._model.copies import ModelOnCopies
from captum_density._model.validation import one_output_advice
from captum_density.losses._density_loss import Log
from captum_density.losses._transfer import TransferLoss, require_same_outputs

__all__ = ["DistillationLoss"]


class DistillationLoss(TransferLoss):
    r"""Distillation: the divergence of the student's softened probabilities from the teacher's.

    .. math:: \frac{1}{N} \sum_n \tau^2 \, \mathrm{KL}\left( \operatorname{softmax}(t(x_n) / \tau) \,\|\,
        \operatorname{softmax}(s(x_n) / \tau) \right)

    with t and s the logits and tau the temperature; the square keeps the gradients' size when it changes. As tau grows
    it becomes half the mean squared difference of the logits, each less its mean. At least 0, and 0 where the
    probabilities are the same, whatever is added to all logits of an example. Add it to the cross-entropy, or train on
    it alone, for which no labels are needed.

    Batch norm of the student uses its running statistics, in training mode as well, and learns them from the
    cross-entropy's forward pass: trained on this loss alone, a student should have none.

    Args:
        teacher: As `JacobianMatchingLoss`; it returns logits (N, C).
        temperature: tau, positive. The higher, the more the small probabilities count.

    Attributes:
        agreement: Share of the examples for which both predict the same class, of the last call, in [0, 1].

    Raises:
        TypeError: If the teacher cannot be called.
        ValueError: If the temperature is not positive and finite; from a call, if the outputs are not (N, C) with two
            classes at least, and where `forward` says so.

    References:
        G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Example:
        >>> import torch
        >>> teacher, student, x = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), torch.randn(8, 4)
        >>> distillation = DistillationLoss(teacher)
        >>> bool(distillation(student, x) > 0)
        True
        >>> bool(distillation(lambda x: teacher(x) + 1, x).abs() < 1e-5)
        True
    """

    agreement: Tensor | None

    def __init__(self, teacher: Callable[..., Any], temperature: float = 4.0) -> None:
        super().__init__(teacher)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, but is {temperature}")
        self.temperature = temperature
        self.agreement = None

    def _lesson(self, teacher: ModelOnCopies) -> Tensor:
        with torch.no_grad():
            logits = teacher.outputs(teacher.points())[0]
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"the teacher must return logits (N, C) of two classes at least, but returned {tuple(logits.shape)}; "
                f"{one_output_advice()}"
            )
        return logits

    def _compare(self, student: ModelOnCopies, lesson: Tensor, create_graph: bool) -> tuple[Tensor, Log]:
        logits = student.outputs(student.points())[0]
        require_same_outputs(tuple(lesson.shape[1:]), tuple(logits.shape[1:]))
        # In double precision: at a high temperature the two are nearly the same, and what is left is multiplied.
        ours, theirs = ((t.double() / self.temperature).log_softmax(1) for t in (logits, lesson))
        # A class that the teacher rules out, by a logit of minus infinity, counts nothing.
        difference = (theirs - ours).masked_fill(theirs == -torch.inf, 0)
        loss = self.temperature**2 * (theirs.exp() * difference).sum(1).mean()
        return loss.to(logits.dtype), {"agreement": (logits.argmax(1) == lesson.argmax(1)).to(logits.dtype).mean()}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"temperature={self.temperature}"
