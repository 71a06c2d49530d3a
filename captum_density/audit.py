"""Measure attribution methods on one model side by side: completeness, infidelity, sensitivity and time."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from captum.attr import Attribution
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor

__all__ = ["AuditReport", "Method", "MethodReport", "audit"]

_TIMED_CALLS = 3

_LEGEND = (
    "Lower is better in every column; means over {examples} examples.",
    "completeness gap: |convergence delta| / |what the attributions should sum to|; '-': the method promises no sum.",
    "infidelity: Captum's, normalised for scale, squared output units, when a random fifth of the input is set to 0;",
    "  {zero_infidelity:.3g} is what attributions of zero would score.",
    "sensitivity_max: largest relative change of the attributions when the input moves by at most {perturb_radius:g}.",
    "seconds: median time of one attribute() call on all {examples} examples.",
)


@dataclass(frozen=True)
class Method:
    """An attribution method with the options to call it with.

    Args:
        attribution: any Captum attribution on the audited model.
        options: keyword arguments of its ``attribute`` beside ``inputs`` and ``target``, such as ``nt_samples``.
        multiplies_by_inputs: whether a feature's attribution is its contribution (IntegratedGradients) and not a
            slope (Saliency); infidelity compares the two differently. None asks the attribution itself.
    """

    attribution: Attribution
    options: Mapping[str, object] = field(default_factory=dict)
    multiplies_by_inputs: bool | None = None


@dataclass(frozen=True)
class MethodReport:
    """One method's figures, each a mean over the examples; lower is better in all of them.

    Args:
        name: the method's name in the report.
        completeness_gap: |delta| / |sum of the attributions - delta|, delta being the method's own convergence delta;
            at least 0. None where the method promises no sum, as Saliency does not.
        infidelity: Captum's `infidelity` with ``normalize=True``, squared units of the output, at least 0 up to
            rounding.
        sensitivity_max: Captum's `sensitivity_max`, relative, at least 0.
        seconds: median time of one ``attribute`` call on all examples.
    """

    name: str
    completeness_gap: float | None
    infidelity: float
    sensitivity_max: float
    seconds: float


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Args:
        rows: one entry per method, in the order given.
        attributions: each method's attributions, of the inputs' shape.
        examples: number of examples, N.
        zero_infidelity: the infidelity of attributions that are zero everywhere, the scale to read the column by.
        perturb_radius: the largest change of an input value in the sensitivity column.
    """

    rows: tuple[MethodReport, ...]
    attributions: Mapping[str, Tensor] = field(repr=False)
    examples: int
    zero_infidelity: float
    perturb_radius: float

    def table(self) -> str:
        """Return the figures as an aligned Markdown table, followed by what each column means.

        Returns:
            Several lines of text, without a newline at the end.
        """
        cells = [["method", "completeness gap", "infidelity", "sensitivity_max", "seconds"]]
        for row in self.rows:
            gap = "-" if row.completeness_gap is None else f"{row.completeness_gap:.1e}"
            cells.append([row.name, gap, f"{row.infidelity:.3g}", f"{row.sensitivity_max:.3g}", f"{row.seconds:.4f}"])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [
            f"| {line[0]:<{widths[0]}} | {' | '.join(map(str.rjust, line[1:], widths[1:]))} |"
            for line in (cells[0], rule, *cells[1:])
        ]
        legend = "\n".join(_LEGEND).format(
            examples=self.examples, zero_infidelity=self.zero_infidelity, perturb_radius=self.perturb_radius
        )
        return "\n".join([*lines, "", legend])

    def to_dict(self) -> dict[str, object]:
        """Return the figures, without the attributions, as what `json` can write.

        Returns:
            The report's fields by name, ``rows`` as a list of dicts.
        """
        return {
            "rows": [asdict(row) for row in self.rows],
            "examples": self.examples,
            "zero_infidelity": self.zero_infidelity,
            "perturb_radius": self.perturb_radius,
        }


def audit(
    model: Callable[..., Tensor],
    inputs: Tensor,
    target: Tensor,
    methods: Mapping[str, Attribution | Method],
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

    Args:
        model: maps (N, ...) to (N, classes); a module is best in evaluation mode.
        inputs: (N, ...), floating point.
        target: (N,), the output to explain for each example.
        methods: name to attribution, or to a `Method` where options are needed.
        seed: of all perturbations and of methods that draw noise; the global random state is left as it was.
        infidelity_samples: perturbations per example in the infidelity column.
        sensitivity_samples: perturbations per example in the sensitivity column.
        perturb_radius: the largest change of an input value in the sensitivity column, in the inputs' unit.
        max_examples_per_batch: most examples given to a method or the model at once, where that is at least N.

    Returns:
        An `AuditReport`; lower is better in each of its columns.

    Raises:
        TypeError: ``inputs`` is not a floating-point tensor.
        ValueError: no inputs, no methods, or ``target`` not of shape (N,).

    References:
        C.-K. Yeh, C.-Y. Hsieh, A. S. Suggala, D. I. Inouye and P. Ravikumar, "On the (In)fidelity and Sensitivity of
        Explanations", 2019, arXiv 1901.09392.

    Example:
        >>> from captum.attr import InputXGradient, IntegratedGradients
        >>> model = torch.nn.Linear(3, 2)
        >>> inputs, target = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
        >>> report = audit(model, inputs, target, {"IG": IntegratedGradients(model), "grad": InputXGradient(model)})
        >>> [row.name for row in report.rows]
        ['IG', 'grad']
        >>> report.rows[0].completeness_gap < 1e-5, report.rows[1].completeness_gap is None
        (True, True)
        >>> report.rows[0].infidelity < 1e-5 * report.zero_infidelity  # a linear model is explained in full
        True
    """
    _check(inputs, target, methods)
    inputs = inputs.detach()
    attributions: dict[str, Tensor] = {}
    rows = []
    batch = _Batch(model, inputs, target, seed, max(max_examples_per_batch, len(inputs)))
    with _seeded(inputs.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Input Tensor \d+ did not already require gradients", UserWarning)
        for name, value in methods.items():
            method = value if isinstance(value, Method) else Method(value)
            attributions[name], gap = batch.explain(method)
            rows.append(
                MethodReport(
                    name,
                    gap,
                    batch.infidelity(attributions[name], infidelity_samples, _multiplies(method)),
                    batch.sensitivity(method, sensitivity_samples, perturb_radius),
                    batch.seconds(method),
                )
            )
        zero = batch.infidelity(torch.zeros_like(inputs), infidelity_samples, multiplies_by_inputs=True)
    return AuditReport(tuple(rows), attributions, len(inputs), zero, perturb_radius)


def _check(inputs: Tensor, target: Tensor, methods: Mapping[str, Attribution | Method]) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        received = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be one floating-point tensor, got {received}")
    if inputs.ndim < 2 or len(inputs) == 0:
        raise ValueError(f"inputs must have shape (N, ...) with N > 0, got {tuple(inputs.shape)}")
    if not isinstance(target, Tensor) or tuple(target.shape) != (len(inputs),):
        given = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target must be a tensor of shape {(len(inputs),)}, one output per example, got {given}")
    if not methods:
        raise ValueError("methods is empty: give at least one {name: attribution}")


def _multiplies(method: Method) -> bool:
    declared = method.multiplies_by_inputs
    return bool(method.attribution.multiplies_by_inputs) if declared is None else declared


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Give the global random state back as it was; the methods and Captum's metrics draw from it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class _Batch:
    """What is explained, by which every method is measured; each measurement starts from the same seed."""

    model: Callable[..., Tensor]
    inputs: Tensor
    target: Tensor
    seed: int
    max_examples: int

    def explain(self, method: Method) -> tuple[Tensor, float | None]:
        """Return the attributions and the completeness gap."""
        torch.manual_seed(self.seed)
        if not method.attribution.has_convergence_delta():
            return self._attribute(method), None
        attributions, delta = method.attribution.attribute(
            self.inputs, target=self.target, return_convergence_delta=True, **method.options
        )
        attributions = attributions.detach()
        # NoiseTunnel gives a delta per noisy sample; its attributions are the mean over the samples.
        delta = delta.detach().reshape(len(self.inputs), -1).mean(dim=1)
        explained = attributions.flatten(1).sum(dim=1) - delta
        return attributions, (delta.abs() / explained.abs()).mean().item()

    def infidelity(self, attributions: Tensor, samples: int, multiplies_by_inputs: bool) -> float:
        generator = torch.Generator(self.inputs.device).manual_seed(self.seed)

        # Captum's decorator lets a contribution vanish with its feature and a slope act on its change.
        @infidelity_perturb_func_decorator(multiplies_by_inputs)
        def erase(inputs: Tensor) -> Tensor:
            erased = torch.rand(inputs.shape, generator=generator, device=inputs.device) < 0.2
            return inputs.masked_fill(erased, 0)

        values = infidelity(
            self.model,
            erase,
            self.inputs,
            attributions,
            target=self.target,
            n_perturb_samples=samples,
            max_examples_per_batch=min(self.max_examples, samples * len(self.inputs)),
            normalize=True,
        )
        return float(values.mean())

    def sensitivity(self, method: Method, samples: int, radius: float) -> float:
        torch.manual_seed(self.seed)
        values = sensitivity_max(
            method.attribution.attribute,
            self.inputs,
            perturb_radius=radius,
            n_perturb_samples=samples,
            max_examples_per_batch=min(self.max_examples, samples * len(self.inputs)),
            target=self.target,
            **method.options,
        )
        return float(values.mean())

    def seconds(self, method: Method) -> float:
        times = []
        for _ in range(_TIMED_CALLS):
            start = time.perf_counter()
            self._attribute(method)
            if self.inputs.is_cuda:
                torch.cuda.synchronize(self.inputs.device)
            times.append(time.perf_counter() - start)
        return median(times)

    def _attribute(self, method: Method) -> Tensor:
        attributions: Tensor = method.attribution.attribute(self.inputs, target=self.target, **method.options)
        return attributions.detach()
