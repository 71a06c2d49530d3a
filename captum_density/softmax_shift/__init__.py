"""Softmax ignores what is added to all logits: shifts that make gradients show anything, and the cure.

softmax(f(x) + g(x)) = softmax(f(x)) for every scalar g, so the gradient of a logit is f's own plus any vector field
(S. Srinivas and F. Fleuret, "Rethinking the Role of Gradient-Based Attribution Methods for Model Interpretability",
ICLR 2021, arXiv:2006.09128, section 2). `SoftmaxShift` does that to a model of yours; `CenteredLogits` undoes it.
"""

from captum_density.softmax_shift._bounded import BoundedShift as BoundedShift
from captum_density.softmax_shift._centered import CenteredLogits as CenteredLogits
from captum_density.softmax_shift._counter import CounterShift as CounterShift
from captum_density.softmax_shift._shifts import LinearShift as LinearShift
from captum_density.softmax_shift._shifts import NetworkShift as NetworkShift
from captum_density.softmax_shift._shifts import Shift as Shift
from captum_density.softmax_shift._wrapper import SoftmaxShift as SoftmaxShift

__all__ = ["BoundedShift", "CenteredLogits", "CounterShift", "LinearShift", "NetworkShift", "Shift", "SoftmaxShift"]


def __dir__() -> list[str]:
    return __all__
