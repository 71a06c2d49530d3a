"""ContrastiveDivergenceLoss: approximate maximum likelihood, with samples of the model's own as the contrast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_density._density.langevin import Bounds, Langevin, check_bounds, check_steps, limits
from captum_density._density.log_density import LogDensity
from captum_density._model.arrays import takes_arrays
from captum_density._model.copies import Points
from captum_density._model.validation import class_targets
from captum_density.losses._density_loss import DensityLoss, Log, check_weight, share_in_words

__all__ = ["ContrastiveDivergenceLoss"]


class ContrastiveDivergenceLoss(DensityLoss):
    r"""Persistent contrastive divergence: raises log p at the data and lowers it where Langevin chains end.

    .. math:: -\frac{1}{N} \sum_n f(x_n) + \frac{1}{N} \sum_n f(\tilde{x}_n) + \lambda \,
        \overline{f(x)^2 + f(\tilde{x})^2}, \qquad \tilde{x} \sim p_f \ \text{by Langevin dynamics}

    Its gradient by the parameters is that of -log p(x | y), or -log p(x), as far as the chains have come at temperature
    1. Chains go on from call to call in a buffer, where gradients are off, too, and a few start anew each time, as in
    JEM. With a target, a chain keeps the class it started with, which it took from an example of its batch; of
    additional arguments it would keep none, so those that hold one for each example are refused.

    Args:
        step_size: Of the chains; the variance of the noise of a step.
        n_steps: Steps of a chain in one call.
        buffer_size: Chains that are kept.
        restart: The share of chains that start anew, in [0, 1]; with 1 all do, and none goes on.
        temperature: Of the chains, as for `captum_density.samplers.LangevinSampler`. JEM's steps of 1 along the
            gradient with noise of 0.01 are step_size 1e-4 and temperature 5e-5.
        bounds: As of `captum_density.samplers.LangevinSampler`; chains start uniformly between them. None starts them
            from a Gaussian of the batch's mean and standard deviation.
        regularization: lambda, of the squared energies, which keeps them from drifting apart; at least 0.
        share: As `ScoreMatchingLoss`; of as many examples start chains.
        generator: As `ScoreMatchingLoss`.

    Attributes:
        positive: Mean log-density, up to a constant, of the data of the last call, detached.
        negative: Mean log-density of the chains' ends, detached. Far below `positive`, the chains are too short.

    Raises:
        ValueError: If an argument is out of range; from a call, if examples have another shape than the buffer's, the
            inputs are several, the target is no class for each example, or the chains leave the finite numbers.

    References:
        T. Tieleman, "Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient", ICML
        2008; Y. Du and I. Mordatch, NeurIPS 2019, arXiv:1903.08689 (the regulariser); W. Grathwohl et al., ICLR 2020,
        arXiv:1912.03263 (JEM).

    Example:
        >>> import torch
        >>> x = torch.rand(8, 2)
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
        >>> contrast = ContrastiveDivergenceLoss(step_size=0.01, n_steps=5, buffer_size=32, bounds=(0.0, 1.0))
        >>> loss = contrast(model, x)  # of log p(x)
        >>> bool(torch.isclose(loss, contrast.negative - contrast.positive))
        True
    """

    positive: Tensor | None
    negative: Tensor | None
    chains: Tensor
    chain_targets: Tensor

    @takes_arrays
    def __init__(
        self,
        step_size: float,
        n_steps: int = 20,
        buffer_size: int = 10_000,
        restart: float = 0.05,
        *,
        temperature: float = 1.0,
        bounds: Bounds | None = None,
        regularization: float = 0.0,
        share: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(share=share, generator=generator)
        check_steps(n_steps, step_size)
        check_bounds(bounds)
        check_weight("regularization", regularization)
        if bounds is not None and not all(
            bool(torch.as_tensor(bound, device="cpu").isfinite().all()) for bound in bounds
        ):
            raise ValueError(f"chains start uniformly between the bounds, which must be finite, but are {bounds}")
        if not isinstance(buffer_size, int) or buffer_size < 1:
            raise ValueError(f"buffer_size must be an integer of at least 1, but is {buffer_size!r}")
        if not 0 <= restart <= 1:
            raise ValueError(f"restart must be in [0, 1], but is {restart}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, but is {temperature}")
        self.n_steps, self.buffer_size, self.restart = n_steps, buffer_size, restart
        self.regularization = regularization
        self._langevin = Langevin(step_size, temperature, bounds, False, generator)
        self.positive = self.negative = None
        # Made by the first call, and grown until they hold buffer_size.
        self.register_buffer("chains", torch.empty(0, device="cpu"))
        self.register_buffer("chain_targets", torch.empty(0, dtype=torch.int64, device="cpu"))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # As many chains as were saved, which torch takes for a mismatch.
        for name in ("chains", "chain_targets"):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _loss(self, density: LogDensity, create_graph: bool) -> tuple[Tensor, Log]:
        (x,) = self._one_input(density)
        if any(isinstance(arg, Tensor) and arg.ndim > 0 and len(arg) == density.n > 1 for arg in density.args or ()):
            raise ValueError(
                "additional_forward_args holds a tensor with one entry for each example, which chains that go on from "
                "call to call do not have; pass a function of the inputs alone"
            )
        targets = None if density.target is None else class_targets(density.target, density.n, x.device)
        slots, start, classes = self._start(x, targets)
        moved = density.moved(start, None if targets is None else classes)
        with torch.no_grad():
            for step in self._langevin.chain(moved, self.n_steps):
                ends = step.points
        self._keep(slots, ends[0][0], classes)

        clean, negative = density.clean_values, moved.values(ends)
        positive = density.values(density.points()) if clean is None else clean
        penalty = self.regularization * (positive**2 + negative**2).mean()
        loss = negative.mean() - positive.mean() + penalty
        return loss, {"positive": positive.mean(), "negative": negative.mean()}

    def _one_input(self, density: LogDensity) -> Points:
        if len(density.inputs) != 1:
            raise ValueError(
                f"the chains are kept for one input, but there are {len(density.inputs)}; concatenate them"
            )
        x = density.inputs[0]
        if len(self.chains) and self.chains.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"examples have shape {tuple(x.shape[1:])}, the chains kept {tuple(self.chains.shape[1:])}; use a loss "
                "for each"
            )
        return density.inputs

    def _start(self, x: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the buffer, and for each of the N chains its start and class.

        While the buffer fills up, slots that it does not have yet; then old ones, each once. Chains beyond its size
        start anew and have no slot.
        """
        n, filled = len(x), len(self.chains)
        added = min(n, self.buffer_size - filled)
        old = torch.randperm(filled, generator=self.generator, device=self._device())[: n - added].to(x.device)
        slots = torch.cat([torch.arange(filled, filled + added, device=x.device), old])
        continues = torch.zeros(n, dtype=torch.bool, device=x.device)
        # A chain of p(x), of class -1, does not go on as one of p(x | y), nor the other way round.
        fits = (self.chain_targets.to(x.device)[old] == -1) == (targets is None)
        continues[added : len(slots)] = (self._random(len(old)).to(x.device) >= self.restart) & fits
        again = old[continues[added : len(slots)]]

        start = self._fresh(x)
        classes = torch.full((n,), -1, device=x.device) if targets is None else targets.clone()
        if len(again):
            start[continues] = self.chains[again.to(self.chains.device)].to(x)
            classes[continues] = self.chain_targets[again.to(self.chain_targets.device)].to(x.device)
        return slots, start, classes

    def _keep(self, slots: Tensor, ends: Tensor, classes: Tensor) -> None:
        ends, classes = ends.detach()[: len(slots)], classes[: len(slots)]
        added = int(slots.max()) + 1 - len(self.chains)
        if added > 0:
            self.chains = torch.cat([self.chains.to(ends).reshape(-1, *ends.shape[1:]), torch.zeros_like(ends[:added])])
            self.chain_targets = torch.cat([self.chain_targets.to(classes), torch.zeros_like(classes[:added])])
        self.chains[slots] = ends.to(self.chains)
        self.chain_targets[slots] = classes.to(self.chain_targets)

    def _fresh(self, x: Tensor) -> Tensor:
        device = x.device if self.generator is None else self.generator.device
        bounds = self._langevin.bounds
        if bounds is not None:
            low, high = limits(bounds, x)
            uniform = torch.rand(x.shape, generator=self.generator, device=device, dtype=x.dtype).to(x.device)
            return low + (high - low) * uniform
        noise = torch.randn(x.shape, generator=self.generator, device=device, dtype=x.dtype).to(x.device)
        return x.mean() + noise * x.std(correction=0)

    def _random(self, n: int) -> Tensor:
        return torch.rand(n, generator=self.generator, device=self._device())

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.generator is None else self.generator.device

    def extra_repr(self) -> str:
        """What `print` shows."""
        chain = self._langevin
        return (
            f"step_size={chain.step_size}, n_steps={self.n_steps}, buffer_size={self.buffer_size}, "
            f"restart={self.restart}, temperature={chain.temperature}, bounds={chain.bounds}, "
            f"regularization={self.regularization}{share_in_words(self.share)}"
        )
