"""`audit`: every method measured on the same examples, each measurement from the same seed."""

import random
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor

from captum_density import metrics
from captum_density._random import replayable, seed_generators
from captum_density.audit._methods import Made, Method, named
from captum_density.audit._report import AuditReport, MethodReport

__all__ = ["audit"]

_TIMED_CALLS = 3


def audit(
    model: Callable[..., Tensor],
    inputs: Tensor,
    target: Tensor,
    methods: Mapping[str, Callable[[Any], Attribution] | Method],
    *,
    seed: int = 0,
    infidelity_samples: int = 100,
    sensitivity_samples: int = 10,
    perturb_radius: float = 0.02,
    max_examples_per_batch: int = 256,
) -> AuditReport:
    """Explain the same outputs by several methods and measure each of them.

    Infidelity (Yeh et al., equation 1) compares the change in output that the attributions foretell with the one that
    comes about. The perturbation sets each value of the input to 0 with probability 0.2, the same for every method; the
    scale of the attributions does not count (``normalize=True``), so that maps in arbitrary units can be compared.

    Shift sensitivity makes each method once more, for the model with a shift added to all logits, and is measured with
    the shift that `captum_density.metrics.shift_sensitivity` takes by default.

    Args:
        model: maps (N, ...) to (N, classes), logits; a module is best in evaluation mode.
        inputs: (N, ...), floating point.
        target: (N,), the output to explain for each example.
        methods: name to a function that makes the attribution for a model, which a Captum class is
            (``{"IG": IntegratedGradients}``), or to a `Method` where options are needed.
        seed: of all perturbations and of methods that draw noise, from PyTorch, NumPy or Python; the global random
            states are left as they were.
        infidelity_samples: perturbations per example in the infidelity column.
        sensitivity_samples: perturbations per example in the sensitivity column.
        perturb_radius: the largest change of an input value in the sensitivity column, in the inputs' unit.
        max_examples_per_batch: most examples given to a method or the model at once, where that is at least N.

    Returns:
        An `AuditReport`; lower is better in each of its columns.

    Raises:
        TypeError: ``inputs`` is not a floating-point tensor; a method is an attribution already made, or makes none.
        ValueError: no inputs, NaN or infinite ones, no methods, or ``target`` not of shape (N,).

    References:
        C.-K. Yeh, C.-Y. Hsieh, A. S. Suggala, D. I. Inouye and P. Ravikumar, "On the (In)fidelity and Sensitivity of
        Explanations", 2019, arXiv 1901.09392.

    Example:
        >>> from captum.attr import InputXGradient, IntegratedGradients
        >>> model = torch.nn.Linear(3, 2)
        >>> inputs, target = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        >>> report = audit(model, inputs, target, {"IG": IntegratedGradients, "grad": InputXGradient})
        >>> [row.name for row in report.rows]
        ['IG', 'grad']
        >>> report.rows[0].completeness_gap < 1e-5, report.rows[1].completeness_gap is None
        (True, True)
        >>> report.rows[0].infidelity < 1e-5 * report.zero_infidelity  # a linear model is explained in full
        True
    """
    _check(inputs, target, methods)
    taken = named(methods)
    inputs = inputs.detach()
    batch = _Batch(inputs, target, seed, max(max_examples_per_batch, len(inputs)))
    attributions: dict[str, Tensor] = {}
    rows = []
    with replayable(inputs.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        zero = batch.infidelity(model, None, infidelity_samples)
        # Methods share their views, such as CenteredLogits.
        zeros = {id(None): zero}
        for name, method in taken.items():
            made = Made(name, method, model)
            if id(method.view) not in zeros:
                zeros[id(method.view)] = batch.infidelity(made.explained, None, infidelity_samples)
            attributions[name], gap = batch.explain(made)
            rows.append(
                MethodReport(
                    name,
                    gap,
                    batch.infidelity(made.explained, attributions[name], infidelity_samples, made.multiplies_by_inputs),
                    zeros[id(method.view)],
                    batch.sensitivity(made, sensitivity_samples, perturb_radius),
                    batch.shift_sensitivity(made),
                    batch.seconds(made),
                )
            )
    return AuditReport(tuple(rows), attributions, len(inputs), zero, perturb_radius)


def _check(inputs: Tensor, target: Tensor, methods: Mapping[str, Callable[[Any], Attribution] | Method]) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        received = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be one floating-point tensor, got {received}")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (N, ...) with N > 0, got {tuple(inputs.shape)}")
    if not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite, got {int((~inputs.isfinite()).sum())} NaN or infinite values")
    if not isinstance(target, Tensor) or tuple(target.shape) != (len(inputs),):
        given = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target must be a tensor of shape {(len(inputs),)}, one output per example, got {given}")
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods must map names to functions of the model, got {type(methods).__name__}")
    if not methods:
        raise ValueError("methods is empty: give at least one {name: function of the model}")


@dataclass(frozen=True)
class _Batch:
    """What is explained, by which every method is measured; each measurement starts from the same seed."""

    inputs: Tensor
    target: Tensor
    seed: int
    max_examples: int

    def explain(self, made: Made) -> tuple[Tensor, float | None]:
        """Return the attributions and the completeness gap."""
        self._reseed()
        if not made.attribution.has_convergence_delta():
            return self._attribute(made), None
        attributions, delta = made.attribution.attribute(
            self.inputs, target=self.target, return_convergence_delta=True, **made.options
        )
        attributions = attributions.detach()
        # NoiseTunnel gives a delta per noisy sample; its attributions are the mean over the samples.
        delta = delta.detach().reshape(len(self.inputs), -1).mean(dim=1)
        explained = attributions.flatten(1).sum(dim=1) - delta
        return attributions, (delta.abs() / explained.abs()).mean().item()

    def infidelity(
        self,
        explained: Callable[..., Tensor],
        attributions: Tensor | None,
        samples: int,
        multiplies_by_inputs: bool = True,
    ) -> float:
        """Return that of the attributions, or of zeros, to the output of what is explained."""
        generator = torch.Generator(self.inputs.device).manual_seed(self.seed)

        # Captum's decorator lets a contribution vanish with its feature and a slope act on its change.
        @infidelity_perturb_func_decorator(multiplies_by_inputs)
        def erase(inputs: Tensor) -> Tensor:
            erased = torch.rand(inputs.shape, generator=generator, device=inputs.device) < 0.2
            return inputs.masked_fill(erased, 0)

        values = infidelity(
            explained,
            erase,
            self.inputs,
            torch.zeros_like(self.inputs) if attributions is None else attributions,
            target=self.target,
            n_perturb_samples=samples,
            max_examples_per_batch=min(self.max_examples, samples * len(self.inputs)),
            normalize=True,
        )
        return float(values.mean())

    def sensitivity(self, made: Made, samples: int, radius: float) -> float:
        self._reseed()
        values = sensitivity_max(
            made.attribution.attribute,
            self.inputs,
            perturb_radius=radius,
            n_perturb_samples=samples,
            max_examples_per_batch=min(self.max_examples, samples * len(self.inputs)),
            target=self.target,
            **made.options,
        )
        return float(values.mean())

    def shift_sensitivity(self, made: Made) -> float | None:
        with torch.no_grad():
            outputs = made.model(self.inputs)
        if tuple(outputs.shape[1:]) == (1,):
            return None
        self._reseed()
        moved = metrics.shift_sensitivity(
            made.attribute_of, made.model, self.inputs, target=self.target, **made.options
        )
        return moved.cosine_distance.mean().item()

    def seconds(self, made: Made) -> float:
        times = []
        for _ in range(_TIMED_CALLS):
            start = time.perf_counter()
            self._attribute(made)
            if self.inputs.is_cuda:
                torch.cuda.synchronize(self.inputs.device)
            times.append(time.perf_counter() - start)
        return median(times)

    def _attribute(self, made: Made) -> Tensor:
        attributions: Tensor = made.attribution.attribute(self.inputs, target=self.target, **made.options)
        return attributions.detach()

    def _reseed(self) -> None:
        """Seed the generators that `replayable` gives back, and no other device's, as `torch.manual_seed` would."""
        seed_generators(self.seed, self.inputs.device)
        np.random.seed(self.seed % 2**32)  # GradientShap draws its baselines from NumPy
        random.seed(self.seed)
