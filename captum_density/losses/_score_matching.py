"""ScoreMatchingLoss and AntiScoreMatchingLoss: align a model's implicit density with the data's, or keep it away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_density._density.hessian_trace import TraceEstimator
from captum_density._density.log_density import LogDensity, squared_norm
from captum_density.losses._density_loss import DensityLoss, Log, check_weight, share_in_words

__all__ = ["AntiScoreMatchingLoss", "ScoreMatchingLoss"]


class ScoreMatchingLoss(DensityLoss):
    r"""Score matching: at its minimum the model's gradient is the data's score, grad log p_data(x | y).

    .. math:: \frac{1}{N} \sum_n \operatorname{tr} H(x_n) + \frac{1}{2} \|\nabla f(x_n)\|^2 + \mu \,
        (\operatorname{tr} H(x_n))^2

    with f the log-density and H its Hessian. The last term, of weight mu = `stability`, keeps the trace from running
    off to minus infinity, as it does where data have little noise.

    The default estimate takes 2 * n_samples + 1 evaluations, the copies in one batch, and one gradient that is
    differentiated again: a training step of a ResNet-18 takes 4 times as long as one without it. The step's own
    `logits` spare the evaluation of the examples, and a `share` of the batch all of it in proportion (0.375: 2.4 times,
    at 2.6 times the variance). Its noise is that of `captum_density.density.hessian_trace`: raise `n_samples`, not
    `noise_std`, where it hurts; the square in the last term takes the estimate, and so adds its variance. On ReLU
    networks the estimators by derivatives see no trace, and warn.

    How much of it: start with a weight that leaves the accuracy alone, and watch `trace`. Where it falls to many times
    the plain network's, the loss has found pixels without noise, such as a black border, in which the data's own score
    is infinite, and the gradient goes there instead of to the picture: raise `stability`, add noise to the inputs, or
    take `DenoisingScoreMatchingLoss`. And scores are local: how much probability separate modes have is not learned.

    The estimators by differences refuse dropout in training mode; call `model.eval()` before the loss and
    `model.train()` after. Batch norm uses its running statistics in any mode.

    Args:
        estimator: "antithetic", "taylor" (the paper's, noisy), "hutchinson" or "exact", as for `hessian_trace`.
        n_samples: Noise samples for each example; not for "exact".
        noise_std: Their standard deviation in the inputs' units, for "antithetic" and "taylor".
        stability: mu, at least 0.
        distribution: "gaussian" or "rademacher".
        share: Of each batch, how much is looked at, in (0, 1]: a new random part in every call, at least one example,
            whose mean estimates the batch's without bias. The loss then takes that share of its time, and has the
            variance of a batch that is smaller by as much.
        generator: What noise, and the share, are drawn from; None for the global generator.
        max_examples_per_batch: As Captum's: how many examples, noisy copies included, run at once.

    Attributes:
        trace: Mean over the batch of the trace, of the last call, detached.
        gradient_norm: Root of the batch's mean squared gradient norm, so that the second term is half its square.
        stability_penalty: The last term.

    Raises:
        ValueError: If an argument is out of range or has no meaning for the estimator.

    References:
        A. Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", JMLR 2005, theorem 1; S.
        Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, section 4 (the stability regulariser).

    Example:
        >>> import torch
        >>> model, x, labels = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
        >>> score_matching = ScoreMatchingLoss(noise_std=0.1)
        >>> loss = torch.nn.functional.cross_entropy(model(x), labels) + 1e-3 * score_matching(model, x, labels)
        >>> loss.backward()
        >>> bool(score_matching.trace.abs() < 1e-3)  # logits that are linear have none
        True
    """

    trace: Tensor | None
    gradient_norm: Tensor | None
    stability_penalty: Tensor | None

    def __init__(
        self,
        estimator: str = "antithetic",
        n_samples: int = 1,
        noise_std: float = 0.1,
        stability: float = 1e-4,
        *,
        distribution: str = "gaussian",
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        check_weight("stability", stability)
        traces = _traces(estimator, n_samples, noise_std, distribution, generator, share)
        super().__init__(
            max_examples_per_batch,
            share=share,
            generator=generator,
            second_derivatives=True,
            comparison=traces.by_differences,
        )
        self.estimator = traces
        self.stability = stability
        self.trace = self.gradient_norm = self.stability_penalty = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        values, gradients = density.clean_scores(create_graph=create_graph)
        squared = squared_norm(gradients)[0]
        trace = self.estimator(density, values, create_graph=create_graph)
        penalty = self.stability * trace**2
        loss = (trace + 0.5 * squared + penalty).mean()
        return loss, {
            "trace": trace.mean(),
            "gradient_norm": squared.mean().sqrt(),
            "stability_penalty": penalty.mean(),
        }

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.estimator}, stability={self.stability}{share_in_words(self.share)}"


class AntiScoreMatchingLoss(DensityLoss):
    r"""The opposite of score matching: drives the Hessian's trace up, so that data lie in valleys of the density.

    .. math:: -\frac{1}{N} \sum_n \min(\operatorname{tr} H(x_n), \theta)

    The paper's control: a network that predicts as well, and whose gradients are those of a density unlike the data's.
    Examples whose estimated trace has reached the threshold theta are left alone, or it would grow without end; with
    few samples, noise has a say in which these are.

    Args:
        threshold: theta, in nats per squared unit of the inputs.
        Other arguments: As `ScoreMatchingLoss`.

    Attributes:
        trace: Mean over the batch of the trace, unclamped, of the last call, detached.

    Raises:
        ValueError: If an argument is out of range or has no meaning for the estimator.

    References:
        S. Srinivas and F. Fleuret, ICLR 2021, arXiv:2006.09128, and its published code, AntiScoreMatching.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 3))
        >>> anti = AntiScoreMatchingLoss(threshold=1e3, estimator="exact")
        >>> loss = anti(model, torch.randn(8, 4), target=0)
        >>> bool(loss == -anti.trace)
        True
    """

    trace: Tensor | None

    def __init__(
        self,
        threshold: float = 1e4,
        estimator: str = "antithetic",
        n_samples: int = 1,
        noise_std: float = 0.1,
        *,
        distribution: str = "gaussian",
        share: float = 1.0,
        generator: torch.Generator | None = None,
        max_examples_per_batch: int | None = None,
    ) -> None:
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, but is {threshold}")
        traces = _traces(estimator, n_samples, noise_std, distribution, generator, share)
        super().__init__(
            max_examples_per_batch,
            share=share,
            generator=generator,
            second_derivatives=not traces.by_differences,
            comparison=traces.by_differences,
        )
        self.estimator = traces
        self._evaluates_examples = traces.by_differences
        self.threshold = threshold
        self.trace = None

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        trace = self.estimator(density, None, create_graph=create_graph)
        return -trace.clamp(max=self.threshold).mean(), {"trace": trace.mean()}

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"threshold={self.threshold}, {self.estimator}{share_in_words(self.share)}"


def _traces(
    estimator: str,
    n_samples: int,
    noise_std: float,
    distribution: str,
    generator: torch.Generator | None,
    share: float,
) -> TraceEstimator:
    # "exact" has no use for a generator, but a share has.
    unused = estimator == "exact" and share != 1
    return TraceEstimator(estimator, n_samples, noise_std, distribution, None if unused else generator)
