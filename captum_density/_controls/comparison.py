"""How much better a method is than each control, in pairs of the same example."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from captum_density._display.intervals import Bootstrap, interval

__all__ = ["Gain", "gains_over", "widened"]

_RESAMPLES, _LEVEL = 2000, 0.95
_NORMAL = NormalDist()


class Gain(NamedTuple):
    """How much better a method is than a control.

    Args:
        name: The control's.
        value: The control's figure, a mean over examples.
        gain: By how much the method's mean is better.
        low: Lower end of the 95% interval of the gain.
        high: Its upper end.
    """

    name: str
    value: float
    gain: float
    low: float
    high: float


def gains_over(
    values: Tensor, controls: Mapping[str, Tensor], seed: int, *, lower_is_better: bool = False
) -> tuple[Gain, ...]:
    """What a method has beyond each control, the strongest control first.

    The interval is a bootstrap of pairs, the same resamples for all.

    Args:
        values: (N,) the method's figure.
        controls: (N,) the same of each control, by name.
        seed: Of the bootstrap.
        lower_is_better: Whether a control's larger value counts for the method.
    """
    own, *others = torch.stack([values.double(), *(each.double() for each in controls.values())]).cpu()
    stacked = torch.stack(others)
    gains = own - stacked
    gains = -gains if lower_is_better else gains
    ends = interval(Bootstrap(1, gains.shape[1], _RESAMPLES, seed).means(gains[:, None]), _LEVEL)
    beside = [
        Gain(name, value, gain, low, high)
        for name, value, gain, (low, high) in zip(
            controls, stacked.mean(dim=1).tolist(), gains.mean(dim=1).tolist(), ends.tolist(), strict=True
        )
    ]
    return tuple(sorted(beside, key=lambda each: each.gain))


def widened(gain: float, end: float, choices: int) -> float:
    """An end of a gain's 95% interval where the gain is one picked from several; the end itself where there is one.

    Args:
        gain: The gain.
        end: The lower or upper end without a choice.
        choices: How many: the level is C. E. Bonferroni's (1936), 1 - 0.05 / choices. The interval is widened as that
            of a normal distribution is.
    """
    return gain + _NORMAL.inv_cdf(1 - 0.025 / max(1, choices)) / _NORMAL.inv_cdf(0.975) * (end - gain)
