"""Which attribution method satisfies which axiom: computed, on networks with known answers."""

from __future__ import annotations

import copy
import html
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._display.tables import markdown
from captum_density._model.attribution import attribute_function, attribution_maker
from captum_density.metrics._axioms._completeness import completeness_gap
from captum_density.metrics._axioms._feature_vectors import FeatureVectors, explaining
from captum_density.metrics._axioms._implementation import implementation_gap
from captum_density.metrics._axioms._methods import default_methods
from captum_density.metrics._axioms._networks import AXIOMS, Network, networks_by_axiom
from captum_density.metrics._axioms._sensitivity import sensitivity_gap
from captum_density.metrics._axioms._symmetry import symmetry_gap

__all__ = ["AxiomTable", "axiom_table"]

_LEGEND = (
    "Each figure is the worst gap over the networks tried, 0 where the axiom holds; 'yes': at most {tolerance:g}.",
    "completeness: the attributions sum to f(x) - f(0); to output: they sum to f(x). At most 2.",
    "sensitivity: the share of features without attribution that change the output by themselves. At most 1.",
    "implementation invariance: the relative difference between two networks of one function. At most 1.",
    "symmetry: the relative difference between two interchangeable features. At most 1.",
    "'yes' holds on these networks and is no proof; 'no' is a counterexample.",
)


@dataclass(frozen=True, eq=False, repr=False)
class AxiomTable:
    """Which method satisfies which axiom, on small networks.

    Args:
        methods: M names.
        axioms: A names.
        networks: (method, axiom) to network to the worst gap over its examples, or why the method refused it.
        tolerance: The largest gap that counts as none.

    Example:
        >>> import torch
        >>> from captum.attr import InputXGradient
        >>> table = axiom_table({"input x gradient": InputXGradient})
        >>> table.holds["input x gradient"]["sensitivity"], table.holds["input x gradient"]["symmetry"]
        (False, True)
    """

    methods: tuple[str, ...]
    axioms: tuple[str, ...]
    networks: Mapping[tuple[str, str], Mapping[str, float | str]]
    tolerance: float = 0.01

    @property
    def found(self) -> Mapping[tuple[str, str], Mapping[str, float | str]]:
        """`networks`, by its former name."""
        warnings.warn("AxiomTable.found is now AxiomTable.networks", DeprecationWarning, stacklevel=2)
        return self.networks

    @property
    def gaps(self) -> Tensor:
        """(M, A) float64, the worst gap over the networks; NaN where the method refused every one of them."""
        worst = [[self._worst(method, axiom) for axiom in self.axioms] for method in self.methods]
        return torch.tensor(
            [[math.nan if gap is None else gap for gap in row] for row in worst], dtype=torch.float64, device="cpu"
        )

    @property
    def holds(self) -> dict[str, dict[str, bool | None]]:
        """By method and axiom, whether no gap is above the tolerance; None where there is no figure."""
        return {method: {axiom: self._holds(method, axiom) for axiom in self.axioms} for method in self.methods}

    def table(self) -> str:
        """The figures as an aligned Markdown table, what each column means, and who refused what.

        Returns:
            Several lines of text, without a newline at the end.
        """
        return "\n".join([markdown([["method", *self.axioms], *self._rows()]), "", *self._words()])

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values.

        Returns:
            By "methods": method, then axiom, to its gap (None for no figure), whether it holds, and the result on each
            network, a figure or a reason; by "tolerance": that.
        """
        return {
            "methods": {
                method: {
                    axiom: {
                        "gap": self._worst(method, axiom),
                        "holds": self._holds(method, axiom),
                        "networks": dict(self.networks[method, axiom]),
                    }
                    for axiom in self.axioms
                }
                for method in self.methods
            },
            "tolerance": self.tolerance,
        }

    def __repr__(self) -> str:
        satisfied = (
            f"{method}: {', '.join(axiom for axiom, holds in axioms.items() if holds) or 'none'}"
            for method, axioms in self.holds.items()
        )
        return f"AxiomTable({'; '.join(satisfied)})"

    def _repr_html_(self) -> str:
        names = "".join(f"<th>{html.escape(name)}</th>" for name in ("method", *self.axioms))
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        words = "".join(f"<li>{html.escape(line)}</li>" for line in self._words())
        return f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table><ul>{words}</ul>"

    def _figures(self, method: str, axiom: str) -> list[float]:
        return [gap for gap in self.networks[method, axiom].values() if not isinstance(gap, str)]

    def _worst(self, method: str, axiom: str) -> float | None:
        return max(self._figures(method, axiom), default=None)

    def _holds(self, method: str, axiom: str) -> bool | None:
        worst = self._worst(method, axiom)
        return None if worst is None else worst <= self.tolerance

    def _rows(self) -> list[list[str]]:
        return [[method, *(self._cell(method, axiom) for axiom in self.axioms)] for method in self.methods]

    def _cell(self, method: str, axiom: str) -> str:
        gap = self._worst(method, axiom)
        if gap is None:
            return "-"
        star = "*" if len(self._figures(method, axiom)) < len(self.networks[method, axiom]) else ""
        figure = "0" if gap == 0 else "<1e-6" if gap < 1e-6 else f"{gap:.2g}"
        return f"{'yes' if self._holds(method, axiom) else 'no'}{star} {figure}"

    def _words(self) -> list[str]:
        lines = [line.format(tolerance=self.tolerance) for line in _LEGEND]
        refused: dict[tuple[str, str], list[str]] = {}
        for (method, _), gaps in self.networks.items():
            for network, reason in gaps.items():
                if isinstance(reason, str) and network not in refused.setdefault((method, reason), []):
                    refused[method, reason].append(network)
        if refused:
            lines.append("*: of the networks that the method takes; '-': it takes none of them.")
        return lines + [f"{method} refuses {', '.join(networks)}: {why}" for (method, why), networks in refused.items()]


def axiom_table(methods: Mapping[str, Callable[..., Any]] | None = None, *, tolerance: float = 0.01) -> AxiomTable:
    """Try attribution methods on small networks, and tabulate which axioms they satisfy.

    The networks are min(x, 1), max(0, x - 10), the two of figure 7, min(x1, x2), max(x1, x2), and random ones with
    tanh, with rectifiers and convolutions, rewritten in the ways of `captum_density.rewriting`, or symmetric in two
    inputs; all in double precision, with baseline 0.

    What is tried is an implementation. LRP with Captum's default rule, epsilon, is gradient times input on ReLU
    networks (M. Ancona et al., ICLR 2018, arXiv:1711.06104) and as invariant as that; it fails where an identity is
    inserted, as Captum has no rule for the subtraction in it. The rule for positive contributions fails on others. A
    gradient is not zero at 15 for max(0, x - 10), and fails sensitivity only on min(x, 1). FullGrad's saliency map of a
    single feature is always zero, as it is rescaled.

    Args:
        methods: Name to method, as `implementation_gap` takes it: a Captum class will do. None for ten of Captum's,
            FullGrad and PathIntegratedGradients along three paths.
        tolerance: The largest gap that counts as none, in [0, 1). Integrals of 1000 steps come to 0.005 where a path
            crosses a kink, all else that holds to rounding.

    Returns:
        An `AxiomTable`; print its `table()`. A network that a method refuses does not count, and the reason is noted.

    Raises:
        TypeError: `methods` is no mapping, or a method is none.
        ValueError: No methods, or a tolerance out of range.

    References:
        M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365,
        sections 2 to 4 and figure 7.

    Example:
        >>> import torch
        >>> from captum.attr import DeepLift
        >>> from captum_density.attr import FullGrad
        >>> table = axiom_table({"DeepLift": DeepLift, "FullGrad": lambda model: FullGrad(model, complete=True)})
        >>> table.holds["DeepLift"]["completeness"], table.holds["DeepLift"]["implementation invariance"]
        (True, False)
        >>> table.holds["FullGrad"]["completeness to output"]
        True
    """
    methods = default_methods() if methods is None else methods
    makers = _makers(methods)
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), but is {tolerance}")
    networks = networks_by_axiom()
    worst = {
        (method, axiom): {network.name: _worst_gap(make, axiom, copy.deepcopy(network)) for network in networks[axiom]}
        for method, make in makers.items()
        for axiom in AXIOMS
    }
    return AxiomTable(tuple(methods), AXIOMS, worst, tolerance)


def _makers(methods: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """By name, what makes the method for any network."""
    if not isinstance(methods, Mapping):
        raise TypeError(f"methods must be a mapping of names to functions, but is {type(methods).__name__}")
    if not methods:
        raise ValueError("methods is empty; leave it out for the usual ones")
    return {name: attribution_maker(method, f"methods[{name!r}]") for name, method in methods.items()}


def _worst_gap(make: Callable[[Any], Any], axiom: str, network: Network) -> float | str:
    """The worst gap over its examples, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum's, of the hooks it sets
            return float(_gap(make, axiom, network).max())
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _gap(make: Callable[[Any], Any], axiom: str, network: Network) -> Tensor:
    model, x = network.model, network.inputs
    if axiom == "implementation invariance":
        return implementation_gap(make, model, network.rewritten or model, x)
    attribute = attribute_function(make(model), "the method of a model")
    if axiom == "sensitivity":
        return sensitivity_gap(attribute, model, x)
    if axiom == "symmetry":
        return symmetry_gap(attribute, model, x, network.pairs)
    vectors = FeatureVectors(model, x, None, None, None)
    with explaining(model, x.device):
        a = vectors.attributions(attribute, vectors.x, None, {})
    return completeness_gap(model, x, a, complete_to="difference" if axiom == "completeness" else "output")
