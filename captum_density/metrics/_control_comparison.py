"""A method's figure beside those of maps that know nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_density._controls.comparison import Gain, gains_over, widened
from captum_density._display.tables import markdown
from captum_density._model.arrays import as_tensors, takes_arrays

__all__ = ["ControlComparison", "compare_with_controls"]


@dataclass(frozen=True, eq=False)
class ControlComparison:
    """A method beside controls. See `compare_with_controls`.

    Args:
        values: (N,) the method's figure of each example, float64.
        control_values: (N,) the same of each control, by name, the strongest first.
        mean: The method's mean.
        control_means: Each control's, by name.
        gains: By how much the method's mean is better than each control's, with the ends of its 95% interval, in pairs
            of the same example.
        strongest: The name of the control whose mean is best.
        gain: By how much the method's mean is better than that; below 0, it is worse.
        low: Lower end of a 95% interval of the gain over whichever control is truly the strongest.
        high: Its upper end.
    """

    values: Tensor
    control_values: Mapping[str, Tensor]
    mean: float
    control_means: Mapping[str, float]
    gains: Mapping[str, tuple[float, float, float]]
    strongest: str
    gain: float
    low: float
    high: float

    @property
    def beats_controls(self) -> bool:
        """Whether the method is better than each control, by the whole interval."""
        return self.low > 0

    def table(self) -> str:
        """Write a line for the method and for each control, the strongest first, in Markdown.

        Returns:
            Means, and what the method has beyond each.
        """
        lines = [["", "mean", "the method's gain over it"], ["the method", f"{self.mean:.3g}", ""]]
        for name, (gain, low, high) in self.gains.items():
            lines.append([name, f"{self.control_means[name]:.3g}", f"{gain:.2g} [{low:.2g}, {high:.2g}]"])
        return markdown(lines)

    def __repr__(self) -> str:
        gain = f"{self.gain:.2g} [{self.low:.2g}, {self.high:.2g}]"
        return f"ControlComparison(mean={self.mean:.3g}, gain over {self.strongest!r}: {gain})"


@takes_arrays
def compare_with_controls(
    metric: Callable[[Any], Tensor],
    attributions: Any,
    controls: Mapping[str, Any],
    *,
    lower_is_better: bool = False,
    methods: int = 1,
    seed: int = 0,
) -> ControlComparison:
    r"""How much better a method does at a metric than maps that know nothing of the model.

    With :math:`g_c` the method's mean less that of control c, the gain over the strongest control is
    :math:`\min_c g_c`. Its interval knows that the control was chosen: the lower end is the least of the lower ends
    :math:`l_c`, each of 97.5% alone, as all of them have to be below their gains only where the smallest one is (the
    intersection-union test); the upper end is the least of the upper ends, each at Bonferroni's level for as many
    controls. The :math:`g_c` are bootstrapped in pairs of the same example, 2000 times.

    Args:
        metric: A function of attributions that returns (N,) numbers, as `group_perturbation`'s symmetric gain or
            Captum's `infidelity` with all else set.
        attributions: The method's, in the form that the metric takes, such as a tensor (N, ...).
        controls: Other maps in that form, by name, such as `control_maps` returns.
        lower_is_better: Whether the metric is better when lower.
        methods: Among how many methods this one was picked as the best; Bonferroni's correction, for both ends.
        seed: Of the bootstrap.

    Returns:
        Means, gains with intervals, and which control is the strongest; gains are above 0 where the method is better.

    Raises:
        ValueError: No controls; a metric that returns something else than (N,) finite numbers, or of unequal N.
        TypeError: A metric that is no function, or returns no tensor.

    References:
        R. L. Berger, "Multiparameter Hypothesis Testing and Acceptance Sampling", Technometrics 1982, the
        intersection-union test. The comparison is ours.

    Example:
        >>> import torch
        >>> from captum_density.metrics import control_maps, group_perturbation
        >>> _ = torch.manual_seed(0)
        >>> weights, x = torch.randn(20), torch.randn(30, 20)
        >>> model = lambda x: x @ weights
        >>> gain = lambda maps: group_perturbation(model, x, maps).symmetric_gain
        >>> result = compare_with_controls(gain, x * weights, control_maps(x, x * weights))
        >>> result.beats_controls, result.strongest in control_maps(x, x)
        (True, True)
        >>> compare_with_controls(gain, x.abs(), control_maps(x)).beats_controls
        False
    """
    if not callable(metric):
        raise TypeError("metric must be a function of attributions that returns (N,) numbers")
    if not controls:
        raise ValueError("there are no controls to compare with; give such as control_maps(inputs, attributions)")
    own = _figures(metric, attributions, None)
    figures = {name: _figures(metric, maps, len(own)) for name, maps in controls.items()}
    gains = gains_over(own, figures, seed, lower_is_better=lower_is_better)
    first = gains[0]
    return ControlComparison(
        values=own,
        control_values={each.name: figures[each.name] for each in gains},
        mean=own.mean().item(),
        control_means={each.name: each.value for each in gains},
        gains={each.name: (each.gain, each.low, each.high) for each in gains},
        strongest=first.name,
        gain=first.gain,
        low=min(widened(each.gain, each.low, methods) for each in gains),
        high=min(_upper(each, methods * len(gains)) for each in gains),
    )


def _upper(each: Gain, choices: int) -> float:
    return widened(each.gain, each.high, choices)


def _figures(metric: Callable[[Any], Any], maps: Any, n: int | None) -> Tensor:
    values = as_tensors(metric(maps))
    if not isinstance(values, Tensor):
        raise TypeError(f"metric must return (N,) numbers, but returned {type(values).__name__}; pick one field of it")
    if values.ndim != 1 or len(values) == 0 or n not in (None, len(values)):
        expected = "(N,)" if n is None else f"({n},)"
        raise ValueError(f"metric must return {expected} numbers, one an example, but returned {tuple(values.shape)}")
    values = values.detach().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("metric returned NaN or infinity; leave out the examples that it has no value for")
    return values
