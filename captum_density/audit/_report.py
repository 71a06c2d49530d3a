"""What `audit` found, and how it is written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

__all__ = ["AuditReport", "MethodReport"]

_LEGEND = (
    "Lower is better in every column; means over {examples} examples.",
    "completeness gap: |convergence delta| / |what the attributions should sum to|; '-': the method promises no sum.",
    "infidelity: Captum's, normalised for scale, squared output units, when a random fifth of the input is set to 0;",
    "  attributions of zero would score {zero_infidelity}.",
    "sensitivity_max: largest relative change of the attributions when the input moves by at most {perturb_radius:g}.",
    "shift sensitivity: 1 - cosine of the attributions before and after a shift of all logits that changes no",
    "  prediction; 0 is invariant, see captum_density.softmax_shift.CenteredLogits; '-': one output, no softmax.",
    "  Small is not 0: maps on a positive floor, as FullGrad's saliency maps are, look alike whatever they show.",
    "seconds: median time of one attribute() call on all {examples} examples.",
)


@dataclass(frozen=True)
class MethodReport:
    """One method's figures, each a mean over the examples; lower is better in all of them.

    Args:
        name: the method's name in the report.
        completeness_gap: |delta| / |sum of the attributions - delta|, delta being the method's own convergence delta;
            at least 0. None where the method promises no sum, as Saliency does not.
        infidelity: Captum's `infidelity` with ``normalize=True``, squared units of the output, at least 0 up to
            rounding.
        zero_infidelity: the infidelity of attributions that are zero everywhere, the scale to read it by; that of the
            method's view, where it has one.
        sensitivity_max: Captum's `sensitivity_max`, relative, at least 0.
        shift_sensitivity: the ``cosine_distance`` of `captum_density.metrics.shift_sensitivity`, in [0, 2]. None where
            the model has one output, and so no softmax.
        seconds: median time of one ``attribute`` call on all examples.
    """

    name: str
    completeness_gap: float | None
    infidelity: float
    zero_infidelity: float
    sensitivity_max: float
    shift_sensitivity: float | None
    seconds: float


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Args:
        rows: one entry per method, in the order given.
        attributions: each method's attributions, of the inputs' shape.
        examples: number of examples, N.
        zero_infidelity: the infidelity of attributions of the model that are zero everywhere.
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
        cells = [["method", "completeness gap", "infidelity", "sensitivity_max", "shift sensitivity", "seconds"]]
        for row in self.rows:
            gap = "-" if row.completeness_gap is None else f"{row.completeness_gap:.1e}"
            figures = [gap, f"{row.infidelity:.3g}", f"{row.sensitivity_max:.3g}", _distance(row.shift_sensitivity)]
            cells.append([row.name, *figures, f"{row.seconds:.4f}"])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [
            f"| {line[0]:<{widths[0]}} | {' | '.join(map(str.rjust, line[1:], widths[1:]))} |"
            for line in (cells[0], rule, *cells[1:])
        ]
        legend = "\n".join(_LEGEND).format(
            examples=self.examples, zero_infidelity=self._scales(), perturb_radius=self.perturb_radius
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

    def _scales(self) -> str:
        """The infidelity of zeros, of the model and then of each view, with the methods that have it."""
        viewed: dict[float, list[str]] = {}
        for row in self.rows:
            if row.zero_infidelity != self.zero_infidelity:
                viewed.setdefault(row.zero_infidelity, []).append(row.name)
        views = [f"{zero:.3g} for {' and '.join(map(repr, names))}" for zero, names in viewed.items()]
        return "; ".join([f"{self.zero_infidelity:.3g}", *views])


def _distance(value: float | None) -> str:
    # Invariant methods come to rounding of 1e-16 to 1e-7, in which there is nothing to compare.
    return "-" if value is None else "<1e-6" if 0 < value < 1e-6 else f"{value:.3g}"
