"""What an audit of a large model samples less or leaves out, unless it is to be thorough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["ECONOMICAL", "THOROUGH", "Budget", "budget_for", "check_effort"]

# Multiplications and additions of a forward pass of one example: of a ResNet-18 at 32 x 32 it has 7e7, at 224 x 224
# 4e9, and thousands of passes take minutes.
_LARGE = 2e8


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Args:
        few_passes: Methods of more runs of the model for an example are measured by what they show, and not by how that
            changes with the input, the model or the class; None for no such limit.
        left_out: Of the default methods, those that average over a path or over noise.
        fractions: Of the pixels kept in pixel perturbation: two between nothing and all rank maps as more do, so that
            every control is affordable for every method.
        random_rankings: That pixels are compared with.
        sensitivity_samples: At most.
        trace_samples: Of the Hessian trace.
        common_samples: Of what logits have in common.
        enough: Infidelity's samples end where the standard error of its reference, from the samples of each example, is
            at most this share of it.
        last_layer: Whether maps are compared when the last layer's weights alone are random as well.
        needless_controls: Whether a method of more than few passes, which another control equals, is compared with its
            map at random weights nevertheless.
        shift_examples: How many examples tell whether a shift moves a method, which is a property of the method.
    """

    few_passes: int | None = None
    left_out: tuple[str, ...] = ()
    fractions: tuple[float, ...] = tuple(i / 10 for i in range(11))
    random_rankings: int = 5
    sensitivity_samples: int | None = None
    trace_samples: int = 20
    common_samples: int = 16
    enough: float = 0.0
    last_layer: bool = True
    needless_controls: bool = True
    shift_examples: int | None = None

    def spares(self, passes: int) -> str:
        """Why a method of so many runs for an example is not measured; empty where it is."""
        if self.few_passes is None or passes <= self.few_passes:
            return ""
        return f'not measured of a method of {passes} runs for each example, as effort="thorough" does'


THOROUGH = Budget()
ECONOMICAL = Budget(
    few_passes=1,
    left_out=("IntegratedGradients", "SmoothGrad", "SmoothFullGrad"),
    fractions=(0.0, 0.1, 0.4, 1.0),
    random_rankings=3,
    sensitivity_samples=2,
    trace_samples=10,
    common_samples=8,
    enough=0.15,
    last_layer=False,
    needless_controls=False,
    shift_examples=4,
)


def check_effort(name: str) -> None:
    """Refuse another name than those there are.

    Raises:
        ValueError: It is none.
    """
    if name not in ("default", "thorough"):
        raise ValueError(f"effort must be 'default' or 'thorough', but is {name!r}")


def budget_for(name: Literal["default", "thorough"], model: Callable[..., Any], *example: Tensor) -> Budget:
    """How much to measure of a model, by what it takes to run it on one example."""
    return ECONOMICAL if name == "default" and _operations(model, *example) > _LARGE else THOROUGH


def _operations(model: Callable[..., Any], *example: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(*example)
    except Exception:  # TorchScript and the like, which the counter cannot follow: as a small model
        return 0
    return int(counter.get_total_flops())
