"""JacobianMatchingLoss: a student whose outputs change with the inputs as the teacher's do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_density._density.hessian_trace import check_noise
from captum_density._density.log_density import squared_norm
from captum_density._model.captum import TargetType
from captum_density._model.copies import ModelOnCopies, Points
from captum_density._model.generators import standard_noise
from captum_density._model.precision import accumulation_dtype
from captum_density._model.validation import refuse_labels_of_one_output, selected_output
from captum_density.losses._density_loss import Log
from captum_density.losses._fooling import directions
from captum_density.losses._transfer import TransferLoss, as_rows, require_same_outputs

__all__ = ["JacobianMatchingLoss"]

_OUTPUTS = ("target", "all", "random")


class _Lesson(NamedTuple):
    """For K vectors (K, N, ...) in the space of outputs, the teacher's J'v, (K, N, ...) for each input."""

    vectors: Tensor
    products: Points


class JacobianMatchingLoss(TransferLoss):
    r"""Squared error between a student's and a teacher's input-Jacobians, averaged over the batch.

    .. math:: \frac{1}{N} \sum_n \left\| \frac{J_T(x_n)}{\|J_T(x_n)\|} - \frac{J_S(x_n)}{\|J_S(x_n)\|} \right\|^2
        \qquad \text{or} \qquad \frac{1}{N} \sum_n \| J_T(x_n) - J_S(x_n) \|^2

    J is one row of the outputs' Jacobian, the gradient of the target's output; or all of it, with the Frobenius norm;
    or its products J'v with random v. The entries of v are 1 or -1, so that the mean of |J'v|^2 is |J|^2: without
    `normalize`, "random" is an unbiased estimate of "all" for any number of projections.

    It is what matching outputs on noisy inputs, `NoiseMatchingLoss`, asks for on top of matching them on clean ones:
    divided by the noise's variance, up to terms that grow with that variance and with curvature. Add it to
    `DistillationLoss`: the outputs themselves it leaves alone.

    The normalised form leaves the scales of the two alone and is in [0, 4]; twice 1 - cosine. An example whose Jacobian
    is zero in one of the models then counts as 1, in both as 0, and trains nothing. Every operation of the student must
    be differentiable twice. Call it on logits: the gradients of a softmax that is sure of itself are next to nothing.

    Args:
        teacher: The model to learn from, a module or a function; see `forward` for the student.
        output: "target" (of the call; without one, the class that the teacher predicts), "all" (a backward pass for
            each output, in both models) or "random".
        normalize: Whether each example's Jacobian, or its projections together, are divided by their norm.
        n_projections: Vectors v for each example, a backward pass each; for "random".
        generator: What they are drawn from; None for the global generator; for "random".

    Attributes:
        cosine: Mean over the batch of the cosine between the Jacobians, of the last call, detached, in [-1, 1]; 0 for
            one that is zero. None before the first call.

    Raises:
        TypeError: If the teacher cannot be called, or an argument is of another type.
        ValueError: If an argument is out of range or has no meaning for the output; from a call, if a target is given
            to other than "target", there is none and the teacher's outputs are not (N, C), and where `forward` says so.

    References:
        S. Srinivas and F. Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv:1803.00443; W.
        Czarnecki et al., "Sobolev Training for Neural Networks", NeurIPS 2017, arXiv:1706.04859 (random projections).

    Example:
        >>> import torch
        >>> teacher, student, x = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), torch.randn(8, 4)
        >>> matching = JacobianMatchingLoss(teacher, "all", normalize=False)
        >>> bool(torch.isclose(matching(student, x), ((teacher.weight - student.weight) ** 2).sum()))
        True
    """

    cosine: Tensor | None

    def __init__(
        self,
        teacher: Callable[..., Any],
        output: str = "target",
        normalize: bool = True,
        *,
        n_projections: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(teacher, second_derivatives=True)
        if output not in _OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(map(repr, _OUTPUTS))}, but is {output!r}")
        check_noise(n_projections, 1.0, generator, name="n_projections")
        if output != "random" and (n_projections != 1 or generator is not None):
            raise ValueError(f"n_projections and generator are for output='random', and output is {output!r}")
        self.output, self.normalize = output, normalize
        self.n_projections, self.generator = n_projections, generator
        self.cosine = None

    def _check_target(self, target: TargetType) -> None:
        if target is not None and self.output != "target":
            raise ValueError(f"a target is for output='target', and output is {self.output!r}; leave it out")

    def _lesson(self, teacher: ModelOnCopies) -> _Lesson:
        lesson: list[Tensor] = []

        def vectors(outputs: Tensor) -> Tensor:
            lesson.append(self._vectors(outputs, teacher.target))
            return lesson[0]

        _, products = teacher.jacobian_products(vectors)
        return _Lesson(lesson[0], products)

    def _vectors(self, outputs: Tensor, target: TargetType) -> Tensor:
        """(K, N, ...) for the teacher's outputs (N, ...)."""
        n, span = len(outputs), None
        if self.output == "all":
            size = outputs[0].numel()
            every = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
            return every.reshape(size, 1, *outputs.shape[1:]).expand(size, *outputs.shape)
        if self.output == "random":
            return standard_noise((outputs,), self.n_projections, "rademacher", self.generator)[0]
        if target is None and outputs[0].numel() > 1:
            if outputs.ndim != 2:
                raise ValueError(
                    "without a target, the teacher's predicted class is taken, of logits (N, C), but it returned "
                    f"{tuple(outputs.shape)}; name a target"
                )
            target, span = outputs.argmax(1), (0, 0)
        refuse_labels_of_one_output(outputs, target, n)
        # Captum's targets come in many forms; the derivative of its choice is 1 where it chose.
        leaf = outputs.detach().requires_grad_()
        try:
            selected = selected_output(leaf, target, n, span)
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"the target does not fit the teacher's outputs {tuple(outputs.shape)}: {error}"
            ) from error
        return torch.autograd.grad(selected.sum(), leaf)[0][None]

    def _compare(self, student: ModelOnCopies, lesson: _Lesson, create_graph: bool) -> tuple[Tensor, Log]:
        vectors, products = lesson

        def same(outputs: Tensor) -> Tensor:
            require_same_outputs(tuple(vectors.shape[2:]), tuple(outputs.shape[1:]))
            return vectors

        _, own = student.jacobian_products(same, create_graph=create_graph)
        dtype = accumulation_dtype(*student.inputs)
        direction = partial(directions, dtype=dtype)
        theirs, ours = direction(as_rows(products)), direction(as_rows(own))
        cosine = (theirs * ours).sum(1).mean()
        if self.normalize:
            loss = ((theirs - ours) ** 2).sum(1).mean()
        else:
            squared = squared_norm(tuple(t - s for t, s in zip(products, own, strict=True)))
            # The whole Jacobian's rows add up; projections are an estimate each.
            loss = (squared.mean(0) if self.output == "random" else squared.sum(0)).mean()
        return loss, {"cosine": cosine}

    def extra_repr(self) -> str:
        """What `print` shows."""
        projections = f", n_projections={self.n_projections}" if self.output == "random" else ""
        return f"output={self.output!r}, normalize={self.normalize}{projections}"
