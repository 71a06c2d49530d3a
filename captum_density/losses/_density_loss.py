"""What all losses of a model's density share: how they are called, and what holds during the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.captum import TargetType, TensorOrTupleOfTensorsGeneric
from captum_density._model.evaluation import without_compilation

__all__ = ["DensityLoss", "Log", "check_weight"]

# What a call leaves for logging: attribute of the loss to value.
Log: TypeAlias = dict[str, Tensor]


class DensityLoss(nn.Module):
    """A loss of log p(x | y), or of log p(x), averaged over the batch; its terms stay in attributes, for logging.

    During a call batch norm uses copies of its running statistics, whatever the mode, and no buffer of the model
    changes; autocast is off. Where a derivative is taken twice, what torch.compile made runs as it was before.
    DistributedDataParallel, around or within the model, synchronises the gradients, whatever else is in the step. The
    model is another for the time of the call, which other threads see.

    Args:
        max_examples_per_batch: As Captum's: how many examples, noisy copies included, run at once; one copy of the
            batch runs in any case. None for all. It bounds a run; what the backward pass needs of all runs is kept.
        second_derivatives: Whether it takes second derivatives, which compiled code does not have.
        comparison: Whether it compares values, which a model that draws random numbers spoils.
    """

    def __init__(
        self,
        max_examples_per_batch: int | None = None,
        *,
        second_derivatives: bool = False,
        comparison: bool = False,
    ) -> None:
        super().__init__()
        self.max_examples_per_batch = max_examples_per_batch
        self._is_checked = False
        self._settings = {"second_derivatives": second_derivatives, "comparison": comparison}

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

        Args:
            forward_func: The model, a module or a function: returns logits (N, C), or a log-density (N,) itself.
            inputs: Floating-point tensor (N, ...) or tuple of such.
            target: y, as Captum's; None for log p(x), the logsumexp of the logits.
            additional_forward_args: As Captum's.

        Returns:
            A scalar of float32, or float64 for a model of float64; it carries a graph if gradients are enabled.

        Raises:
            TypeError: If the model cannot be called or returns no tensor, or the inputs are not floating-point.
            ValueError: If inputs are empty, unequally many, NaN, infinite or on another device than the model; if no
                gradient reaches them; if the output does not have the examples first, or is one where labels are
                given; for losses that compare values, if the model draws random numbers, as dropout does, or changes
                its buffers; for DistributedDataParallel with static_graph=True.
            AssertionError: Captum's own, for a target that does not fit.

        Warns:
            UserWarning: From the first call: the model seems to return probabilities.
        """
        density = LogDensity(
            forward_func,
            inputs,
            target,
            additional_forward_args,
            max_examples_per_batch=self.max_examples_per_batch,
        )
        density.refuses_labels, density.warns, self._is_checked = True, not self._is_checked, True
        with density.evaluation(**self._settings):
            create_graph = torch.is_grad_enabled()
            loss, log = self._loss(density, create_graph)
        if create_graph:
            loss = density.anchored(loss)
        for name, value in log.items():
            setattr(self, name, value.detach())
        return loss

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        """The loss of a batch, and its terms by the attribute that shows them; runs within `evaluation`."""
        raise NotImplementedError


def check_weight(name: str, value: float) -> None:
    """Refuse a weight that would reward.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, but is {value}")
