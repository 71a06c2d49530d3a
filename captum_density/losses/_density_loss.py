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

__all__ = ["DensityLoss", "Log", "check_weight", "share_in_words"]

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
        share: Of each batch, how much is looked at, in (0, 1]: a new random part in every call, at least one example,
            whose mean estimates that of the batch without bias.
        generator: What that part is drawn from, and whatever else a loss draws; None for the global generator.
        second_derivatives: Whether it takes second derivatives, which compiled code does not have.
        comparison: Whether it compares values, which a model that draws random numbers spoils.
    """

    # Whether it evaluates the examples themselves, and not displaced ones alone, so that it has a use for their logits.
    _evaluates_examples = True

    def __init__(
        self,
        max_examples_per_batch: int | None = None,
        *,
        share: float = 1.0,
        generator: torch.Generator | None = None,
        second_derivatives: bool = False,
        comparison: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], but is {share}; 0.5 looks at half of the examples of each call")
        self.share, self.generator = share, generator
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
        *,
        logits: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch; nothing is differentiated by the inputs.

        A training step has run the model on the examples already, for its cross-entropy. Given those logits, the loss
        does not run it on them again::

            x.requires_grad_()  # for losses that take the gradient by the inputs
            logits = model(x)
            loss = cross_entropy(logits, labels) + 1e-3 * score_matching(model, x, labels, logits=logits)

        The numbers are those without, where the model is in evaluation mode or has neither batch norm nor dropout. With
        batch norm in training mode, or dropout, the logits are another network's, of this batch or this draw. Losses
        that evaluate the model beside them refuse this; `GradientNormLoss` and `FoolingLoss` do not evaluate it, and
        their gradient is that other network's, in which batch norm takes away what the examples' gradients have in
        common. Running statistics are moved by the step's forward pass alone.

        Args:
            forward_func: The model, a module or a function: returns logits (N, C), or a log-density (N,) itself.
            inputs: Floating-point tensor (N, ...) or tuple of such.
            target: y, as Captum's; None for log p(x), the logsumexp of the logits.
            additional_forward_args: As Captum's.
            logits: (N, C), what `forward_func` has just returned for these inputs, with its graph and not under
                autocast. For losses that take the gradient by the inputs, these must have required one, and the model
                must have run in operations that can be differentiated twice (fused attention, fused recurrence and
                compiled code cannot); `backward` then fills `inputs.grad`, too. None to run the model on the examples.

        Returns:
            A scalar of float32, or float64 for a model of float64; it carries a graph if gradients are enabled.

        Raises:
            TypeError: If the model cannot be called or returns no tensor, or the inputs are not floating-point.
            ValueError: If inputs are empty, unequally many, NaN, infinite or on another device than the model; if no
                gradient reaches them; if the output does not have the examples first, or is one where labels are
                given; for losses that compare values, if the model draws random numbers, as dropout does, or changes
                its buffers; for logits that are not what the model returns, or do not have the graph that is needed,
                or where the loss does not evaluate the examples themselves; for DistributedDataParallel with
                static_graph=True.
            AssertionError: Captum's own, for a target that does not fit.

        Warns:
            UserWarning: From the first call: the model seems to return probabilities.
        """
        if logits is not None and not self._evaluates_examples:
            raise ValueError(f"{self} does not evaluate the examples themselves, but displaced ones; leave logits out")
        density = LogDensity(
            forward_func,
            inputs,
            target,
            additional_forward_args,
            max_examples_per_batch=self.max_examples_per_batch,
            logits=logits,
        )
        rows = self._drawn_rows(density)
        density = density if rows is None else density.at(rows)
        density.refuses_labels, density.warns, self._is_checked = True, not self._is_checked, True
        with density.evaluation(**self._settings):
            create_graph = torch.is_grad_enabled()
            loss, log = self._loss(density, create_graph)
        if create_graph:
            loss = density.anchored(loss)
        for name, value in log.items():
            setattr(self, name, value.detach())
        return loss

    def _drawn_rows(self, density: LogDensity) -> Tensor | None:
        """Which examples are looked at; None for all, in their order."""
        n = density.n
        size = max(1, round(self.share * n))
        if size == n:
            return None
        device = density.device if self.generator is None else self.generator.device
        return torch.randperm(n, generator=self.generator, device=device)[:size].to(density.device)

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        """The loss of a batch, and its terms by the attribute that shows them; runs within `evaluation`."""
        raise NotImplementedError


def share_in_words(share: float) -> str:
    """What `print` shows of it: nothing where all examples count."""
    return "" if share == 1 else f", share={share}"


def check_weight(name: str, value: float) -> None:
    """Refuse a weight that would reward.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, but is {value}")
